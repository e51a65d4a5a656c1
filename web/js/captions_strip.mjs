// The captions in small, inside AutoCaption: as they are on disk, or as the node has just made them. A click opens the editor there.
import { api } from "../../scripts/api.js";
import { folderOf, listSome, made, thumbnailUrl } from "./captions_api.mjs";
import { Grid } from "./captions_grid.mjs";
import { nodeStyle } from "./captions_style.mjs";
import { words } from "./captions_words.mjs";
import { el } from "./modal.mjs";

const MOST = 200;  // pictures: the editor shows the others
export const strips = new Set();  // what shows a folder, and is to look again: {refresh}

export const refreshStrips = () => { for (const strip of strips) strip.refresh(); };
for (const event of ["execution_success", "execution_error", "execution_interrupted", "reconnected"]) api.addEventListener(event, refreshStrips);

export function addStrip(node, edit) {
    nodeStyle();
    const w = words(), scroll = el("div", { className: "scroll" }), button = el("button", { textContent: w.edit, onclick: () => edit(node) });
    const hint = el("div", { className: "hint", textContent: w.noDataset }), strip = el("div", { className: "lora-loom-strip" }, el("div", { className: "buttons" }, button), scroll);
    let rows = [], captions = {}, folder = "", asked = "";
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
    const refresh = async () => {
        const found = folderOf(node);
        asked = JSON.stringify([found?.folder, found?.source]);
        const mine = asked;
        let said = w.noDataset, total = 0, list = [], fresh = {};
        if (found?.folder) {
            try {
                const page = await listSome(found.folder, found.source, MOST);
                [list, total, said, fresh] = [page.pictures, page.total, "", await made(found.folder)];
            } catch (error) {
                said = error.message;
            }
        }
        if (mine !== asked) return;  // another folder has been chosen meanwhile
        [rows, captions, folder] = [list, fresh, found?.folder ?? ""];
        hint.textContent = said;
        hint.hidden = !said;
        button.textContent = total ? w.openAll(total) : w.edit;
        grid.setCount(rows.length);
    };
    // the folder may be another whenever the node is drawn; asking the graph costs next to nothing
    const timer = setInterval(() => {
        if (!strip.isConnected || document.hidden) return;
        const found = folderOf(node);
        if (asked !== JSON.stringify([found?.folder, found?.source])) refresh();
    }, 700);
    const one = { refresh };
    strips.add(one);
    const removed = node.onRemoved;
    node.onRemoved = function (...values) {
        clearInterval(timer);
        strips.delete(one);
        grid.destroy();
        return removed?.apply(this, values);
    };
    const widget = node.addDOMWidget("lora_loom_captions", "lora_loom_captions", strip, { serialize: false, hideOnZoom: true, getMinHeight: () => 160 });
    widget.serialize = false;
    node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
}
