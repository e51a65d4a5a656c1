// The name that a pattern such as {folder}_{date} gives, for Train LoRA nodes that have not been named by hand.
import { configOf, datasetOf, valueOf } from "./graph.mjs";

const BAD = /[\\/:*?"<>|\u0000-\u001f\u007f]/g;  // what a file name must not hold

function facts(node, now) {
    const two = (n) => String(n).padStart(2, "0"), dataset = datasetOf(node), config = configOf(node), value = (place, name) => (place && valueOf(place, name)) || "";
    return {
        folder: String(value(dataset, "folder")).split("/").at(-1) || "lora", trigger: String(value(dataset, "trigger_word")), preset: value(config, "preset") || "default",
        date: `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`,
    };
}

// A plain file name, as the node takes it; "" where the pattern gives none.
export function nameFor(node, pattern, now = new Date()) {
    const known = facts(node, now);
    const filled = String(pattern ?? "").replace(/\{(\w+)\}/g, (whole, word) => known[word] ?? whole);
    return filled.replace(BAD, "_").replace(/[\s_]+/g, "_").replace(/^[ ._-]+|[ ._-]+$/g, "").slice(0, 80);  // what is not known yet leaves no gap
}
