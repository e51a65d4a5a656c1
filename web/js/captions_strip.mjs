// The captions in small, inside AutoCaption: as they are on disk, or as the node has just made them. A click opens the editor there.
import { listSome, made, thumbnailUrl } from "./captions_api.mjs";
import { Grid } from "./captions_grid.mjs";
import { nodeStyle } from "./captions_style.mjs";
import { words } from "./captions_words.mjs";
import { watchFolder } from "./folder_watch.mjs";
import { el } from "./modal.mjs";
import { addView } from "./node.mjs";

const MOST = 200;  // pictures: the editor shows the others

export function addStrip(node, edit) {
    nodeStyle();
    const w = words(), scroll = el("div", { className: "scroll" }), button = el("button", { textContent: w.edit, onclick: () => edit(node) });
    const hint = el("div", { className: "hint", textContent: w.noDataset }), strip = el("div", { className: "lora-loom-strip" }, el("div", { className: "buttons" }, button), scroll);
    let rows = [], captions = {}, folder = "";
    scroll.append(hint);
    const grid = new Grid(scroll, {
        minWidth: 220, height: 52,
        make: () => {
            const item = el("div", { className: "item", tabIndex: -1, onclick: () => edit(node, rows[item.place]?.name) });
            item.append(item.picture = el("img", { alt: "", decoding: "async" }), item.text = el("span"));
            return item;
        },
        fill: (item, place, resting) => {
            const row = rows[place], caption = captions[row.name] ?? row.caption, url = thumbnailUrl(folder, row, 46);
            item.place = place;
            item.title = row.name;
            item.text.textContent = caption || w.noCaption;
            item.text.className = caption ? "" : "none";
            if (resting && item.picture.getAttribute("src") !== url) item.picture.src = url;
        },
    });
    const read = async ({ folder: name, source }) => ({ ...(await listSome(name, source, MOST)), made: await made(name) });
    watchFolder(node, strip, read, (where, found, error) => {
        [rows, captions, folder] = [found?.pictures ?? [], found?.made ?? {}, where?.folder ?? ""];
        hint.textContent = error ? error.message : where ? "" : w.noDataset;
        hint.hidden = !hint.textContent;
        button.textContent = found?.total ? w.openAll(found.total) : w.edit;
        grid.setCount(rows.length);
    });
    addView(node, "lora_loom_captions", strip, { height: 160, hideOnZoom: true });
}
