// The name that a pattern such as {folder}_{date} gives, for Train LoRA nodes that have not been named by hand.
const BAD = /[\\/:*?"<>|\u0000-\u001f\u007f]/g;  // what a file name must not hold

// The LoadDataset at the other end of this input, through the nodes that caption, filter and augment.
function source(node, seen = new Set()) {
    if (!node || seen.has(node)) return null;
    seen.add(node);
    if (node.comfyClass === "LoadDataset") return node;
    const slot = node.inputs?.findIndex((input) => input.name === "dataset");
    return slot >= 0 ? source(node.getInputNode(slot), seen) : null;
}

const value = (node, name) => node?.widgets?.find((widget) => widget.name === name)?.value;

function facts(node, now) {
    const config = node.getInputNode?.(node.inputs?.findIndex((input) => input.name === "config") ?? -1);
    const two = (n) => String(n).padStart(2, "0");
    const loaded = source(node);
    return {
        folder: String(value(loaded, "folder") ?? "").split("/").at(-1) || "lora", trigger: String(value(loaded, "trigger_word") ?? "") || "lora", preset: value(config, "preset") ?? "default",
        date: `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`,
    };
}

// A plain file name, as the node takes it; "" where the pattern gives none.
export function nameFor(node, pattern, now = new Date()) {
    const known = facts(node, now);
    const filled = String(pattern ?? "").replace(/\{(\w+)\}/g, (whole, word) => known[word] ?? whole);
    return filled.replace(BAD, "_").replace(/\s+/g, "_").replace(/^[ .]+|[ .]+$/g, "").slice(0, 80);
}
