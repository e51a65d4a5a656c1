// What LoadDataset holds, in small: its first pictures, how many there are, and a mark on those that the report complains of.
import { folderOf, listSome, thumbnailUrl } from "./captions_api.mjs";
import { strips } from "./captions_strip.mjs";
import { words } from "./captions_words.mjs";
import { el } from "./modal.mjs";
import { found, words as reportWords } from "./report_words.mjs";

const MOST = 60;  // pictures: the editor shows the others
const WORSE = ["note", "warning", "error"];

// {name: [severity, titles]} of the pictures that a report names.
function problems(report) {
    const marked = new Map();
    for (const { id, severity, pictures } of report?.findings ?? []) {
        for (const { name } of pictures) {
            const [before, titles] = marked.get(name) ?? ["note", []];
            marked.set(name, [WORSE.indexOf(severity) > WORSE.indexOf(before) ? severity : before, [...titles, found(id)]]);
        }
    }
    return marked;
}

// {element}; a click opens the editor at that picture.
export function thumbs(node, edit) {
    const row = el("div", { className: "row", tabIndex: -1 }), counts = el("span", { className: "counts" }), element = el("div", { className: "thumbs" }, row, counts);
    let asked = "", rows = [];

    function mark() {
        const marked = problems(node.loomReported);
        for (const picture of row.children) {
            const [severity, titles] = marked.get(picture.name) ?? ["", []];
            picture.dataset.severity = severity;
            picture.title = [picture.name, picture.caption || words().noCaption, ...titles].join("\n");
        }
    }

    async function refresh() {
        const where = folderOf(node);
        asked = JSON.stringify([where?.folder, where?.source]);
        const mine = asked;
        let total = 0, captions = 0;
        rows = [];
        if (where?.folder) {
            try {
                const page = await listSome(where.folder, where.source, 1000);
                [rows, total, captions] = [page.pictures, page.total, page.pictures.filter((one) => one.caption).length];
            } catch {
                // the folder's own error comes when the node runs
            }
        }
        if (mine !== asked) return;  // another folder has been chosen meanwhile
        row.replaceChildren(...rows.slice(0, MOST).map((one) => {
            const picture = el("button", { type: "button", tabIndex: -1, onclick: () => edit(node, one.name) }, el("img", { alt: one.name, loading: "lazy", decoding: "async", draggable: false, src: thumbnailUrl(where.folder, one, 52) }));
            return Object.assign(picture, { name: one.name, caption: one.caption });
        }));
        counts.textContent = where?.folder ? `${reportWords().pictures(total)} · ${words().captioned(captions, Math.min(total, rows.length), total)}` : "";
        mark();
    }

    // the folder may be another whenever the node is drawn; asking the graph costs next to nothing
    const timer = setInterval(() => {
        if (!element.isConnected || document.hidden) return;
        const where = folderOf(node);
        if (asked !== JSON.stringify([where?.folder, where?.source])) refresh();
    }, 700);
    const one = { refresh };
    strips.add(one);
    const removed = node.onRemoved;
    node.onRemoved = function (...values) {
        clearInterval(timer);
        strips.delete(one);
        return removed?.apply(this, values);
    };
    row.addEventListener("wheel", (event) => {  // sideways, as far as there is room
        if (event.ctrlKey || row.scrollWidth <= row.clientWidth) return;
        const before = row.scrollLeft;
        row.scrollLeft += event.deltaY || event.deltaX;
        if (row.scrollLeft !== before) {
            event.preventDefault();
            event.stopPropagation();
        }
    }, { passive: false });
    node.loomMark = mark;
    return { element };
}
