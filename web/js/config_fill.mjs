// Fills LoRAConfig, the Train LoRA behind it and the Load Dataset in front of that, from what a run was trained with or a preset's file.
import { datasetOf, trainersOf } from "./graph.mjs";
import { readConfig } from "./presets_api.mjs";
import { say, words } from "./settings.mjs";
import { fill, widgetOf } from "./widgets.mjs";

export const at = (node, name) => widgetOf(node, name)?.value;

// The preset and family that the node's values came with. Widgets call back without a choice too: a primitive at each run, an API file as it loads.
export function settle(node) {
    node.loomChosen = { preset: at(node, "preset"), family: at(node, "family") };
}

// True where it was a configuration; else what is wrong with it has been said. `trainers` are the Train LoRA nodes that are filled with it.
export async function fillConfig(node, text, trainers = trainersOf(node)) {
    const found = await readConfig(text);
    if (!found) return false;
    const values = { ...found.LoRAConfig, preset: "default", family: "any" }, known = widgetOf(node, "init_lora")?.options?.values;
    if (Array.isArray(known) && values.init_lora && !known.includes(values.init_lora)) {
        say("error", words().noLora(values.init_lora));
        values.init_lora = "none";
    }
    fill(node, values);
    settle(node);
    // one that goes on keeps the settings that it began with
    for (const trainer of trainers) fill(trainer, { ...found.TrainLoRA, resume: "none" });
    return true;
}

// The Load Dataset in front of a trainer, from what a run says of its pictures; their folder may be on another machine.
export function fillDataset(trainer, values = {}) {
    const { node } = datasetOf(trainer) ?? {}, { folder, ...others } = values ?? {};
    if (node) fill(node, widgetOf(node, "folder")?.options?.values?.includes(folder) ? values : others);
}
