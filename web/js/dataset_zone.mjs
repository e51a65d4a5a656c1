// What LoadDataset has below its widgets: buttons for upload and captions, and a place to drop files on. The whole node takes them too.
import { nodeStyle } from "./captions_style.mjs";
import { words } from "./captions_words.mjs";
import { thumbs } from "./dataset_thumbs.mjs";
import { refreshFolders } from "./folder_watch.mjs";
import { everyNode, root } from "./graph.mjs";
import { el } from "./modal.mjs";
import { addView } from "./node.mjs";
import { say } from "./settings.mjs";
import { askName, dragged, droppedFiles, pickFiles, send, showRefused } from "./upload.mjs";
import { list, setValue, widgetOf } from "./widgets.mjs";

const HEIGHT = 172;  // pixels of the graph, with the margins that a node leaves around an element

export function addZone(node, edit) {
    nodeStyle();
    listUploaded(node);
    const w = words(), text = el("span", { textContent: w.drop }), bar = el("div", { className: "bar", hidden: true }), more = el("button", { hidden: true });
    const zone = el("div", { className: "lora-loom-zone" },
        el("div", { className: "buttons" }, el("button", { textContent: w.upload, onclick: async () => start(await pickFiles()) }), el("button", { textContent: w.edit, onclick: () => edit(node) })),
        el("div", { className: "drop" }, bar, text, more), thumbs(node, edit).element);
    const show = (said, label = "", work = null) => {
        text.textContent = said;
        more.hidden = !label;
        more.textContent = label;
        more.onclick = work;
    };
    let busy = false;

    async function start(files) {
        if (!files.length || busy) return;
        const name = await askName(files);
        if (!name) return;
        busy = true;
        const cancel = new AbortController();
        bar.hidden = false;
        const answer = await send(files, name, (part) => {
            bar.style.width = `${part * 100}%`;
            show(part < 1 ? w.sending(Math.floor(part * 100)) : w.checking, w.cancel, () => cancel.abort());
        }, cancel.signal);
        busy = false;
        bar.hidden = true;
        bar.style.width = "0";
        const refused = answer.refused?.length ?? 0;
        if (answer.folder) {
            choose(node, answer.folder);
            show(w.done(answer.files, answer.folder), refused ? w.refused(refused) : "", () => showRefused(answer));
            say("success", w.done(answer.files, answer.folder));
        } else {
            show(w.drop);
        }
        if (!cancel.signal.aborted) showRefused(answer);
        else say("info", w.cancelled);
    }

    const over = (on) => {
        zone.classList.toggle("over", on);
        if (!busy && more.hidden) text.textContent = on ? w.dropNow : w.drop;
    };
    const take = (event) => {
        over(false);
        if (!dragged(event)) return false;
        droppedFiles(event.dataTransfer).then(start, (error) => say("error", error.message));
        return true;
    };
    zone.addEventListener("dragover", (event) => { if (dragged(event)) { event.preventDefault(); event.stopPropagation(); over(true); } });
    zone.addEventListener("dragleave", (event) => { if (!zone.contains(event.relatedTarget)) over(false); });
    zone.addEventListener("drop", (event) => { if (take(event)) { event.preventDefault(); event.stopPropagation(); } });
    const before = { over: node.onDragOver, drop: node.onDragDrop };
    node.onDragOver = function (event) { return dragged(event) || Boolean(before.over?.call(this, event)); };
    node.onDragDrop = function (event) { return take(event) || (before.drop?.call(this, event) ?? false); };
    addView(node, "lora_loom_upload", zone, { width: 300, height: HEIGHT, fixed: true }).loomStart = start;
}

const uploaded = new Set();  // folders that the page's lists of nodes do not know until it is refreshed

const listUploaded = (node) => { for (const folder of uploaded) list(widgetOf(node, "folder"), folder); };

// The new folder in every list of folders, and chosen here.
function choose(node, folder) {
    uploaded.add(folder);
    for (const other of everyNode(root())) if (other.comfyClass === "LoadDataset") listUploaded(other);
    setValue(node, "folder", folder);
    refreshFolders();
}
