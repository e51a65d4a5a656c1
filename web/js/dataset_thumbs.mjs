// What LoadDataset holds, in small: its first pictures, how many there are, and a mark on those that the report complains of.
import { listSome, thumbnailUrl } from "./captions_api.mjs";
import { words } from "./captions_words.mjs";
import { watchFolder } from "./folder_watch.mjs";
import { el } from "./modal.mjs";
import { problems } from "./report.mjs";
import { words as reportWords } from "./report_words.mjs";

const MOST = 60;  // pictures: the editor shows the others

// {element}; a click opens the editor at that picture.
export function thumbs(node, edit) {
    const row = el("div", { className: "row", role: "list" }), counts = el("span", { className: "counts" }), element = el("div", { className: "thumbs" }, row, counts);

    let report = null;

    function mark() {
        const marked = problems(report);
        for (const picture of row.children) {
            const [severity, titles] = marked.get(picture.name) ?? ["", []];
            picture.dataset.severity = severity;
            picture.title = [picture.name, picture.caption || words().noCaption, ...titles].join("\n");
        }
    }

    watchFolder(node, element, ({ folder, source }) => listSome(folder, source, 1000), (where, found, error) => {
        const before = node.loomListing;
        if (found && before?.fingerprint === found.fingerprint && before.folder === where.folder && before.source === where.source) return;
        const pictures = found?.pictures ?? [], readable = pictures.filter((one) => one.width), broken = pictures.length - readable.length;
        const total = (found?.total ?? 0) - broken, captions = readable.filter((one) => one.caption).length;
        node.loomListing = where && { ...where, total, fingerprint: found?.fingerprint, error };
        row.replaceChildren(...pictures.slice(0, MOST).map((one) => {
            const picture = el("button", { type: "button", tabIndex: -1, "aria-label": one.name, onclick: () => edit(node, one.name) });
            const broken = () => picture.classList.add("broken");
            picture.append(el("img", { alt: "", loading: "lazy", decoding: "async", draggable: false, onerror: broken, src: thumbnailUrl(where.folder, one, 52) }));
            return Object.assign(picture, { name: one.name, caption: one.caption });
        }));
        row.firstElementChild?.setAttribute("tabindex", 0);
        counts.classList.toggle("wrong", Boolean(error));
        counts.title = counts.textContent = error ? error.message : where ? `${reportWords().pictures(total)} · ${words().captioned(captions, readable.length, total)}${broken ? ` · ${words().unreadable(broken)}` : ""}` : "";
        mark();
    });
    row.addEventListener("keydown", (event) => {  // one picture is on the way of Tab; arrows go to the others
        const all = [...row.children], by = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key], at = all.indexOf(event.target);
        if (!by || at < 0) return;
        const next = all[Math.min(all.length - 1, Math.max(0, at + by))];
        all[at].tabIndex = -1;
        next.tabIndex = 0;
        next.focus({ preventScroll: true });
        next.scrollIntoView({ block: "nearest", inline: "nearest" });
        event.preventDefault();
        event.stopPropagation();  // the canvas has its own use for them
    });
    row.addEventListener("wheel", (event) => {  // sideways, as far as there is room
        if (event.ctrlKey || row.scrollWidth <= row.clientWidth) return;
        const before = row.scrollLeft;
        row.scrollLeft += event.deltaY || event.deltaX;
        if (row.scrollLeft !== before) {
            event.preventDefault();
            event.stopPropagation();
        }
    }, { passive: false });
    node.loomMark = (found) => {
        report = found;
        mark();
    };
    return { element };
}
