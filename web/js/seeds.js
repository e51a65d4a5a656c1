// A page's numbers are exact up to 2^53: seeds above it, which the server takes, would lose their last digits on the way there.
import { app } from "../../scripts/app.js";

app.registerExtension({
    name: "lora_loom.seeds",
    nodeCreated(node) {
        if (node.constructor.nodeData?.category !== "LoRA Loom") return;
        for (const widget of node.widgets ?? []) {
            if (/(^|_)seed$/.test(widget.name) && widget.options) widget.options.max = Math.min(widget.options.max ?? Infinity, Number.MAX_SAFE_INTEGER);
        }
    },
});
