// What the route is asked for a Train LoRA: the loader, the dataset and the settings behind its inputs. Links are followed, never guessed.
import { computed, configOf, datasetOf, here, upstream, valueOf, valuesOf } from "./graph.mjs";
import { widgetOf } from "./widgets.mjs";

// The loader as the route takes it; null where none is met.
function loaderOf(trainer) {
    const place = upstream(here(trainer), "model", (one) => one.comfyClass === "ToyBase" || widgetOf(one, "ckpt_name") || widgetOf(one, "unet_name"));
    if (!place) return null;
    if (place.node.comfyClass === "ToyBase") return { kind: "toy" };
    if (widgetOf(place.node, "ckpt_name")) return { kind: "checkpoint", name: valueOf(place, "ckpt_name") };
    const dtype = valueOf(place, "weight_dtype");
    return { kind: "diffusion_model", name: valueOf(place, "unet_name"), ...(dtype === undefined ? {} : { weight_dtype: dtype }) };
}

const DATASET = ["folder", "resolution", "min_size", "caption_source", "trigger_word", "repeats", "flip", "buckets", "masks", "more_resolutions", "upscale"];

const TRAIN = ["steps", "epochs", "batch_size", "learning_rate"];

// What of it is computed on the way: nobody knows it before a run, and the widgets' own values stand in.
export function openIn(trainer) {
    const named = (place, names) => (place ? names.filter((name) => computed(place, name)).map((name) => widgetOf(place.node, name)?.label || name) : []);
    const config = configOf(trainer);
    return [...named(here(trainer), TRAIN), ...named(config, config?.node.widgets.map((widget) => widget.name) ?? []), ...named(datasetOf(trainer), DATASET)];
}

// What is asked of the server for a Train LoRA; null where an estimate has nothing to go on. The seed changes no byte.
export function requestFor(trainer) {
    const config = configOf(trainer), loader = loaderOf(trainer), dataset = datasetOf(trainer);
    if (!config || !loader || (loader.kind !== "toy" && !loader.name)) return null;
    const train = valuesOf(here(trainer), TRAIN);
    return { loader, config: valuesOf(config), train, dataset: dataset ? valuesOf(dataset, DATASET) : {} };
}
