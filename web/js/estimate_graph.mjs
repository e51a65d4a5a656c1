// Which nodes an estimate is about: the Train LoRA behind a config, the loader and the dataset in front of it. Links are followed, never guessed.
const linkOf = (node, id) => (id === null || id === undefined ? null : node.graph?.getLink?.(id) ?? node.graph?.links?.[id] ?? node.graph?.links?.get?.(id));

// The node that an input comes from, and the output it comes out of; reroutes and bypassed nodes are looked through by ComfyUI's own link where it can.
function origin(node, name) {
    const link = linkOf(node, node.inputs?.find((input) => input.name === name)?.link);
    return link && node.graph?.getNodeById?.(link.origin_id);
}

// Upstream from one input through inputs of the same name (or the only one, as reroutes have it) to the first node that `found` accepts.
export function upstream(node, name, found) {
    const seen = new Set();
    for (let at = origin(node, name); at && !seen.has(at);) {
        if (found(at)) return at;
        seen.add(at);
        const input = at.inputs?.find((one) => one.name === name) ?? at.inputs?.find((one) => one.link !== null && one.link !== undefined);
        at = input && origin(at, input.name);
    }
    return null;
}

export const trainerOf = (config) => (config.outputs?.[0]?.links ?? []).map((id) => config.graph?.getNodeById?.(linkOf(config, id)?.target_id)).find((node) => node?.comfyClass === "TrainLoRA") ?? null;

export const configOf = (trainer) => upstream(trainer, "config", (node) => node.comfyClass === "LoRAConfig");
export const datasetOf = (trainer) => upstream(trainer, "dataset", (node) => node.comfyClass === "LoadDataset");
export const filtered = (trainer) => Boolean(upstream(trainer, "dataset", (node) => node.comfyClass === "FilterDataset"));

// A widget's value, or that of the primitive that its input is linked to.
export function valueOf(node, name) {
    const given = node.inputs?.some((input) => input.name === name && input.link) ? origin(node, name)?.widgets?.[0]?.value : undefined;
    return given ?? node.widgets?.find((widget) => widget.name === name)?.value;
}

export const valuesOf = (node, names = null) => Object.fromEntries((node?.widgets ?? [])
    .filter((widget) => widget.name && widget.value !== undefined && widget.serialize !== false && (!names || names.includes(widget.name)))
    .map((widget) => [widget.name, valueOf(node, widget.name)]));

// The loader as the route takes it; null where none is met.
export function loaderOf(trainer) {
    const has = (node, name) => node.widgets?.some((widget) => widget.name === name);
    const node = upstream(trainer, "model", (one) => one.comfyClass === "ToyBase" || has(one, "ckpt_name") || has(one, "unet_name"));
    if (!node) return null;
    if (node.comfyClass === "ToyBase") return { kind: "toy" };
    if (has(node, "ckpt_name")) return { kind: "checkpoint", name: valueOf(node, "ckpt_name") };
    return { kind: "diffusion_model", name: valueOf(node, "unet_name"), ...(has(node, "weight_dtype") ? { weight_dtype: valueOf(node, "weight_dtype") } : {}) };
}

const DATASET = ["folder", "resolution", "min_size", "caption_source", "trigger_word", "repeats", "flip", "buckets", "masks", "more_resolutions", "upscale"];

// What is asked of the server for a Train LoRA; null where an estimate has nothing to go on. The seed changes no byte.
export function requestFor(trainer, config = configOf(trainer)) {
    const loader = loaderOf(trainer);
    if (!config || !loader || (loader.kind !== "toy" && !loader.name)) return null;
    const dataset = datasetOf(trainer);
    return { loader, config: valuesOf(config), train: valuesOf(trainer, ["steps", "epochs", "batch_size", "learning_rate"]), dataset: dataset ? valuesOf(dataset, DATASET) : {} };
}
