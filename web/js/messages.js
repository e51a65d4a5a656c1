// The server's messages in Chinese: the table is there before the first node is, and the texts that ComfyUI draws inside our nodes are translated too.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { chinese, everyNode } from "./settings.mjs";
import { loadMessages, translated } from "./translated.mjs";

const ours = (id) => everyNode(app.rootGraph ?? app.graph).some((node) => String(node.id) === id && node.constructor.nodeData?.category === "LoRA Loom");

// Before ComfyUI's own listener, which puts the text into the node.
api.addEventListener("progress_text", ({ detail }) => {
    if (detail?.text && ours(String(detail.nodeId).split(":").at(-1))) detail.text = translated(detail.text);
}, { capture: true });

app.registerExtension({
    name: "lora_loom.messages",
    init: () => (chinese() ? loadMessages() : undefined),
});
