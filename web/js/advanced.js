// The classic canvas shows every widget; ours that are marked advanced are folded there too, as the new nodes do by themselves.
import { app } from "../../scripts/app.js";
import { fold } from "./fold.mjs";
import { setting } from "./settings.mjs";

app.registerExtension({
    name: "lora_loom.advanced",
    nodeCreated(node) {
        if (node.constructor.nodeData?.category !== "LoRA Loom" || setting("Comfy.Node.AlwaysShowAdvancedWidgets")) return;
        fold(node);
    },
});
