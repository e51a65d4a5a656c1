// The captions in small, inside AutoCaption: as they are on disk, or as the node has just made them. A click opens the editor there.
import { listSome, made, thumbnailUrl } from "./captions_api.mjs";
import { Grid } from "./captions_grid.mjs";
import { nodeStyle } from "./captions_style.mjs";
import { words } from "./captions_words.mjs";
import { reportOf, reportSettings } from "./dataset_report.mjs";
import { watchFolder } from "./folder_watch.mjs";
import { datasetOf } from "./graph.mjs";
import { el } from "./modal.mjs";
import { addView, living, refusals, watching } from "./node.mjs";
import { problems } from "./report.mjs";
import { translated } from "./translated.mjs";

const MOST = 200;  // pictures: the editor shows the others
const OF_CAPTIONS = ["no_caption", "same_caption", "without_trigger", "long_captions"];  // findings that new captions may have mended

export function addStrip(node, edit) {
    nodeStyle();
    const w = words(), scroll = el("div", { className: "scroll", role: "listbox", "aria-label": w.edit }), button = el("button", { textContent: w.edit, onclick: () => edit(node) });
    const refused = el("div", { className: "refused", tabIndex: 0, hidden: true });  // what is long is reached by keys too
    const hint = el("div", { className: "hint", textContent: w.noDataset }), counts = el("span", { className: "counts" });
    const strip = el("div", { className: "lora-loom-strip" }, el("div", { className: "buttons" }, button, counts), refused, scroll);
    let rows = [], captions = {}, folder = "", current = 0, report = null, marked = new Map();  // `current`: where the keys are
    scroll.append(hint);
    const grid = new Grid(scroll, {
        minWidth: 220, height: 52,
        make: () => {
            const item = el("div", { role: "option", onclick: () => edit(node, rows[item.place]?.name) });
            item.append(item.picture = el("img", { alt: "", decoding: "async" }), item.text = el("span"));
            return item;
        },
        fill: (item, place, resting) => {
            const row = rows[place], caption = captions[row.name] ?? row.caption, url = thumbnailUrl(folder, row, 46);
            item.place = place;
            item.className = place === current ? "item current" : "item";
            const [severity, titles] = marked.get(row.name) ?? ["", []];
            item.dataset.severity = severity;
            item.title = [row.name, caption, ...titles].filter(Boolean).join("\n");
            item.text.textContent = caption || w.noCaption;
            item.text.className = caption ? "" : "none";
            if (resting && item.picture.getAttribute("src") !== url) item.picture.src = url;
        },
    });
    scroll.addEventListener("keydown", (event) => {
        const by = { ArrowDown: grid.columns, ArrowUp: -grid.columns, ArrowRight: 1, ArrowLeft: -1, PageDown: grid.page, PageUp: -grid.page, Home: -Infinity, End: Infinity }[event.key];
        if (by) {
            current = Math.min(rows.length - 1, Math.max(0, current + by));
            grid.show(current);
        } else if (event.key === "Enter") edit(node, rows[current]?.name);
        else return;
        event.preventDefault();
        event.stopPropagation();  // the canvas has its own use for them
    });
    function mark(found = report) {  // what Load Dataset's report says of the pictures
        report = found;
        marked = problems(report, Object.keys(captions).length ? OF_CAPTIONS : []);
    }

    const read = async ({ folder: name, source }) => ({ ...(await listSome(name, source, MOST)), made: await made(name) });
    watchFolder(node, strip, read, (where, found, error) => {
        [rows, captions, folder] = [found?.pictures ?? [], found?.made ?? {}, where?.folder ?? ""];
        hint.textContent = error ? error.message : where ? "" : w.noDataset;
        hint.hidden = !hint.textContent;
        button.textContent = found?.total ? w.openAll(found.total) : w.edit;
        const all = rows.filter((row) => captions[row.name] ?? row.caption).length;
        counts.textContent = counts.title = rows.length ? w.captioned(all, rows.length, found.total) : "";
        mark();
        current = Math.min(current, Math.max(0, rows.length - 1));
        scroll.tabIndex = rows.length ? 0 : -1;
        grid.setCount(rows.length);
    });
    living(node, () => watching(strip, () => {
        const place = datasetOf(node), found = place && reportOf(place.node, reportSettings(place));
        if (found !== report) {
            mark(found);
            grid.draw(true);
        }
        const text = refusals(node).map((one) => translated(one)).join("\n");
        if (text === refused.textContent) return;
        refused.textContent = refused.title = text;
        refused.hidden = !text;
    }, 700));
    addView(node, "lora_loom_captions", strip, { height: 160, hideOnZoom: true });
}
