// The server's messages in Chinese: the table is there before the first node is, and the text that ComfyUI puts into our nodes is translated too and gets
// the room that it needs.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { everyNode, root } from "./graph.mjs";
import { chinese } from "./settings.mjs";
import { loadMessages, translated } from "./translated.mjs";

const WIDGET = "$$node-text-preview";  // ComfyUI's own, in which it shows a node's text
const LEAST = 58, MOST = 160, LINE = 17, LETTER = 6.6, MARGIN = 50;  // pixels of the graph

// Two lines are all that the classic nodes give it.
function makeRoom(node, widget) {
    const letters = (line) => [...line].reduce((sum, letter) => sum + (letter > "\u2e80" ? 2 : 1), 0), width = Math.max(60, node.size[0] - MARGIN);
    const lines = String(widget.value).split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil((letters(line) * LETTER) / width)), 0);
    widget.options.getMinHeight = () => Math.min(MOST, Math.max(LEAST, LINE * (lines + 1)));
    const height = node.computeSize()[1];
    if (height > node.size[1]) node.setSize([node.size[0], height]);
}

api.addEventListener("progress_text", ({ detail }) => {
    const said = translated(detail?.text), id = String(detail?.nodeId).split(":").at(-1);
    if (!said) return;
    queueMicrotask(() => {  // when ComfyUI's own listener has put the text there
        for (const node of everyNode(root())) {
            const widget = String(node.id) === id && node.constructor.nodeData?.category === "LoRA Loom" && node.widgets?.find((one) => one.name === WIDGET);
            if (!widget || widget.value !== detail.text) continue;
            if (said !== detail.text) widget.value = said;
            makeRoom(node, widget);
        }
    });
});

app.registerExtension({
    name: "lora_loom.messages",
    init() {
        app.ui?.settings?.addEventListener?.("Comfy.Locale.change", loadMessages);  // told before the setting is another; the first message comes later
        return chinese() ? loadMessages() : undefined;
    },
});
