// The server's messages in Chinese: the table is there before the first node is, and the text that ComfyUI puts into our nodes is translated too.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { everyNode } from "./graph.mjs";
import { chinese } from "./settings.mjs";
import { loadMessages, translated } from "./translated.mjs";

const WIDGET = "$$node-text-preview";  // ComfyUI's own, in which it shows a node's text

api.addEventListener("progress_text", ({ detail }) => {
    const said = translated(detail?.text), id = String(detail?.nodeId).split(":").at(-1);
    if (!said || said === detail.text) return;
    queueMicrotask(() => {  // when ComfyUI's own listener has put the text there
        for (const node of everyNode(app.rootGraph ?? app.graph)) {
            const widget = String(node.id) === id && node.constructor.nodeData?.category === "LoRA Loom" && node.widgets?.find((one) => one.name === WIDGET);
            if (widget && widget.value === detail.text) widget.value = said;
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
