// Choosing a preset in LoRAConfig writes its values into the widgets: what is shown is what runs.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { refold } from "./fold.mjs";

let presets = null;

async function load() {
    presets ??= api.fetchApi("/lora_loom/presets").then((answer) => (answer.ok ? answer.json() : {}));
    return presets;
}

app.registerExtension({
    name: "lora_loom.presets",
    async nodeCreated(node) {
        if (node.comfyClass !== "LoRAConfig") return;
        const chooser = node.widgets?.find((w) => w.name === "preset");
        if (!chooser) return;
        const before = chooser.callback;
        chooser.callback = async function (name, ...rest) {
            before?.call(this, name, ...rest);
            const values = (await load())[name]?.values ?? {};
            for (const widget of node.widgets) {
                if (widget.name in values) widget.value = values[widget.name];
            }
            refold(node);
            node.setDirtyCanvas?.(true, true);
        };
    },
});
