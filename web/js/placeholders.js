// What an empty text box says on a Chinese page: its name there, and how it is written. ComfyUI's locale files know names and tooltips alone.
// The new nodes put the name above the box, and show no placeholder.
import { app } from "../../scripts/app.js";
import { chinese } from "./settings.mjs";

const HOW = {
    labels: "@medium、@style…，或一行一组：cat, dog, bird", instruction: "用于 vision_llm，例如 Write a descriptive caption for this image in one paragraph.",
    ban: "用逗号分隔", replace: "每行一个，grey => gray", target_modules: "每行一个正则表达式", sample_prompts: "每行一条", prompt: "每行一张图", prompts: "每行一条",
};

app.registerExtension({
    name: "lora_loom.placeholders",
    nodeCreated(node) {
        if (node.constructor.nodeData?.category !== "LoRA Loom" || !chinese()) return;
        for (const { name, label, element } of node.widgets ?? []) {
            if (element?.tagName === "TEXTAREA") element.placeholder = [label ?? name, HOW[name]].filter(Boolean).join("：");
        }
    },
});
