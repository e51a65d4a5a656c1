// Fills LoRAConfig, and the Train LoRA behind it, from a run's config.yaml or a preset's file.
import { refold } from "./fold.mjs";
import { fill, readConfig, say, trainers, words } from "./settings.mjs";

export const at = (node, name) => node.widgets?.find((w) => w.name === name)?.value;

// The preset and family that the node's values came with. Widgets call back without a choice too: a primitive at each run, an API file as it loads.
export function settle(node) {
    node.loomChosen = { preset: at(node, "preset"), family: at(node, "family") };
}

// True where it was a configuration; else what is wrong with it has been said. `also` are Train LoRA nodes that are filled even where no link leads to them.
export async function fillConfig(node, text, also = []) {
    const found = await readConfig(text);
    if (!found) return false;
    fill(node, { ...found.LoRAConfig, preset: "default", family: "any" });
    settle(node);
    refold(node);
    const lora = node.widgets.find((w) => w.name === "init_lora"), known = lora?.options?.values;
    if (Array.isArray(known) && !known.includes(lora.value)) {
        say("error", words().noLora(lora.value));
        lora.value = "none";
    }
    for (const trainer of new Set([...trainers(node), ...also])) {
        fill(trainer, { ...found.TrainLoRA, resume: "none" });  // one that goes on keeps the settings that it began with
        refold(trainer);
    }
    return true;
}
