// ComfyUI's settings page: what new Train LoRA nodes are called and draw, and the units of speeds and sizes.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { nameFor } from "./naming.mjs";
import { after } from "./node.mjs";
import { setting } from "./settings.mjs";
import { SIZES, SPEED, SPEEDS, UNITS } from "./units.mjs";

const NAME = "LoraLoom.NamePattern", PROMPTS = "LoraLoom.SamplePrompts";
const unnamed = new Map();  // new node -> the name that the pattern gave it, as long as nobody has changed it

// What is shown is what runs: the widget holds the name itself, never the pattern, and follows folder and preset until it is changed by hand.
function rename(node) {
    const widget = node.widgets?.find((w) => w.name === "name");
    if (!widget || !unnamed.has(node)) return;
    if (widget.value !== unnamed.get(node)) return void unnamed.delete(node);
    const name = nameFor(node, setting(NAME));
    if (!name || name === widget.value) return;
    unnamed.set(node, name);
    widget.value = name;
    node.setDirtyCanvas?.(true, true);
}

const units = () => api.dispatchCustomEvent("lora_loom.units");  // views say what they show anew

const renameAll = () => { for (const node of [...unnamed.keys()]) rename(node); };

function prompts(_name, change, value) {
    const area = document.createElement("textarea");
    area.rows = 4;
    area.value = value ?? "";
    area.placeholder = "zxmug, on a wooden table";
    area.style.cssText = "width: 100%; min-width: 16rem; padding: 0.5rem; border: 1px solid var(--border-color); border-radius: 6px; "
        + "background: var(--comfy-input-bg); color: var(--input-text); font: inherit; resize: vertical";
    area.addEventListener("change", () => change(area.value));
    return area;
}

app.registerExtension({
    name: "lora_loom.preferences",
    settings: [  // the page shows them last to first
        { id: SIZES, name: "Sizes", category: ["LoRA Loom", "Units", "Sizes"], type: "combo", options: Object.keys(UNITS), defaultValue: "GB", onChange: units,
            tooltip: "GB counts 1024³ bytes, as graphics cards are sold; GiB is the same by its exact name; GB (1000) counts 1000³, as disks are sold." },
        { id: SPEED, name: "Speed", category: ["LoRA Loom", "Units", "Speed"], type: "combo", options: SPEEDS, defaultValue: "auto", onChange: units,
            tooltip: "Steps a second, or seconds a step. auto: steps a second where there is at least one." },
        { id: PROMPTS, name: "Sample prompts", category: ["LoRA Loom", "New Train LoRA nodes", "Sample prompts"], type: prompts, defaultValue: "",
            tooltip: "One a line. They are filled into Train LoRA nodes that you add; nodes in saved workflows keep theirs." },
        { id: NAME, name: "Name", category: ["LoRA Loom", "New Train LoRA nodes", "Name"], type: "text", defaultValue: "my_lora",
            tooltip: "For nodes that you add. {folder}, {trigger}, {preset} and {date} stand for what is connected, until you change the name by hand." },
    ],
    nodeCreated(node) {
        if (node.comfyClass === "LoadDataset" || node.comfyClass === "LoRAConfig") {
            for (const widget of node.widgets ?? []) if (["folder", "trigger_word", "preset"].includes(widget.name)) after(widget, "callback", renameAll);
        }
        if (node.comfyClass !== "TrainLoRA") return;
        const widget = (name) => node.widgets.find((w) => w.name === name);
        const name = nameFor(node, setting(NAME));
        if (name) widget("name").value = name;
        if (setting(PROMPTS)) widget("sample_prompts").value = setting(PROMPTS);
        unnamed.set(node, widget("name").value);
        after(node, "onConfigure", () => unnamed.delete(node));  // from a file, or a copy: it has its name
        after(node, "onRemoved", () => unnamed.delete(node));
        after(node, "onConnectionsChange", () => setTimeout(() => rename(node)));
    },
});
