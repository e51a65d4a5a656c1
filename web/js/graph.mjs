// What leads to what on the canvas, as a run will take it: through subgraphs in and out, reroutes and bypassed nodes; a muted node gives nothing.
// A place is {node, path}: `path` are the subgraphs' nodes that were entered on the way, for one subgraph may stand at several places.
import { app } from "../../scripts/app.js";

const OUTSIDE = -10;  // the origin of links that come into a subgraph from outside it
const MUTED = 2, BYPASSED = 4;
const DEEPEST = 200;  // nodes one behind the other: a circle, which a canvas may hold, ends there

export const root = () => app.rootGraph ?? app.graph;
export const here = (node) => ({ node, path: [] });

// Of a graph and its subgraphs, each once.
export function everyNode(graph, found = new Set()) {
    for (const node of graph?._nodes ?? []) {
        if (found.has(node)) continue;
        found.add(node);
        if (node.subgraph) everyNode(node.subgraph, found);
    }
    return [...found];
}

const linkOf = (graph, id) => (id === null || id === undefined ? null : graph?.getLink?.(id) ?? graph?.links?.[id] ?? null);
const inputOf = (node, name) => node.inputs?.find((input) => input.name === name);
const linked = (input) => input?.link !== null && input?.link !== undefined;

// The input that a bypassed node passes on at an output, as ComfyUI chooses it.
function passedOn(node, slot, type) {
    const { inputs } = node, may = (one, other) => window.LiteGraph.isValidConnection(one, other), fits = (input) => may(input.type, node.outputs[slot]?.type) && may(input.type, type);
    if (type === "*" || type === "") return inputs[slot] ?? inputs[0];
    if (inputs[slot] && fits(inputs[slot])) return inputs[slot];
    return inputs.find((input) => input.type === type) ?? inputs.find(fits);
}

// The places that an input's value is made at: none, one, or one for each place that the subgraph around the node stands at.
// `widget` is there where it is a widget's: a primitive's, or one that a subgraph's node shows of what is inside.
function* origins({ node, path }, input, type = input?.type, depth = 0) {
    const link = linkOf(node.graph, input?.link);
    if (link && depth < DEEPEST) yield* behind(node.graph, link, path, type, depth + 1);
}

function* behind(graph, link, path, type, depth) {
    if (Number(link.origin_id) !== OUTSIDE) {
        const from = graph.getNodeById(link.origin_id);
        if (from) yield* through(from, link.origin_slot, path, type, depth);
        return;
    }
    const holders = path.length ? [path.at(-1)] : everyNode(graph.rootGraph ?? root()).filter((node) => node.subgraph === graph);
    for (const node of holders) {
        const input = node.inputs?.[link.origin_slot], outer = { node, path: path.slice(0, -1) };
        const widget = !linked(input) && input?.widget && node.widgets?.find((one) => one.name === input.widget.name);
        if (widget) yield { ...outer, widget };
        else yield* origins(outer, input, type, depth);
    }
}

function* through(node, slot, path, type, depth) {
    if (node.mode === MUTED || depth > DEEPEST) return;
    if (node.mode === BYPASSED) return yield* origins({ node, path }, passedOn(node, slot, type), type, depth);
    if (node.subgraph) {
        const link = linkOf(node.subgraph, node.subgraph.outputNode?.slots?.[slot]?.linkIds?.[0]);
        if (link) yield* behind(node.subgraph, link, [...path, node], type, depth + 1);
        return;
    }
    const far = node.isVirtualNode && node.resolveVirtualOutput?.(slot), link = node.isVirtualNode && !far && node.getInputLink?.(slot);
    if (far) yield* through(far.node, far.slot, path, type, depth + 1);
    else if (link) yield* behind(node.graph, link, path, type, depth + 1);
    else if (!node.isVirtualNode || node.widgets?.length) yield { node, path, slot, widget: constant(node) };
}

// What the page does to the value after each run; its name differs from node to node.
const isControl = ({ options }) => Array.isArray(options?.values) && ["fixed", "increment", "randomize"].every((value) => options.values.includes(value));
const turning = (node) => node.widgets?.some((widget) => isControl(widget) && widget.value !== "fixed");

const KINDS = { INT: "number", FLOAT: "number", STRING: "string", BOOLEAN: "boolean" };

// The widget of a node that gives nothing else, but for what becomes of it after a run: a primitive. One that gives another kind has computed it, such as a text's length.
function constant(node) {
    const [own, ...others] = (node.widgets ?? []).filter((widget) => widget.serialize !== false && !isControl(widget));
    if (node.outputs?.length !== 1 || node.inputs?.some(linked)) return undefined;
    if (node.isVirtualNode) return own;
    return own && !others.length && [undefined, typeof own.value].includes(KINDS[node.outputs[0].type]) ? own : undefined;
}

// Upstream through inputs of the same name, else of the type that is asked for, else the first that is linked: all places that `found` accepts, the nearest on each way.
function* allUpstream(place, name, found, type, depth = 0) {
    const { node } = place, inputs = (node.inputs ?? []).filter(linked);
    const input = inputs.find((one) => one.name === name) ?? (depth ? inputs.find((one) => one.type === type) ?? inputs[0] : undefined);
    if (!input || depth > DEEPEST) return;
    for (const at of origins(place, input)) {
        if (found(at.node)) yield at;
        else yield* allUpstream(at, name, found, type ?? input.type, depth + 1);
    }
}

export const upstream = (place, name, found) => allUpstream(place, name, found).next().value ?? null;

// This place and all that lead to it, the nearest first.
export function ancestors(place) {
    const found = [place];
    for (const one of found) {
        if (one.widget && one.node.subgraph) continue;
        for (const input of one.node.inputs ?? []) for (const at of origins(one, input)) if (!found.some((other) => other.node === at.node)) found.push(at);
    }
    return found;
}

// {node, widget} that says what an input is: its own, or that of a primitive or of a subgraph's node that it is linked to.
export function giver(place, name) {
    const { node } = place, input = inputOf(node, name), from = linked(input) ? origins(place, input).next().value : null;
    return from?.widget ? from : { node, widget: node.widgets?.find((widget) => widget.name === name) };
}

// What an input may be in a run: one value for each place that the subgraph around the node stands at; undefined where it is computed on the way.
export function possible(node, name) {
    const input = inputOf(node, name);
    if (!linked(input)) return [node.widgets?.find((widget) => widget.name === name)?.value];
    const values = [...origins(here(node), input)].map((at) => at.widget?.value);
    return values.length ? values : [undefined];
}

// Whether there is a widget that says it; a value that is computed on the way has none.
export function settable(node, name) {
    const input = inputOf(node, name);
    return Boolean(node.widgets?.some((widget) => widget.name === name)) && (!linked(input) || giver(here(node), name).node !== node);
}

// Whether an input is computed on the way: no widget says what it will be.
export function computed(place, name) {
    const input = inputOf(place.node, name);
    return linked(input) && !origins(place, input).next().value?.widget;
}

export const valueOf = (place, name) => giver(place, name).widget?.value;

export const valuesOf = (place, names = null) => Object.fromEntries((place.node.widgets ?? [])
    .filter((widget) => widget.name && widget.value !== undefined && widget.serialize !== false && (!names || names.includes(widget.name)))
    .map((widget) => [widget.name, valueOf(place, widget.name)]));

const isOurs = (node) => node.constructor.nodeData?.category === "LoRA Loom";
// Whether what leads to a node is as it was when it was queued: [[id, class, {input: value}]…], ids with those of the subgraphs around them.
export function sameAs(node, queued) {
    const own = (id) => id.split(":").at(-1), there = ancestors(here(node)).filter((place) => place.node.comfyClass);
    const holder = (id, kind) => there.find((place) => String(place.node.id) === own(id) && place.node.comfyClass === kind);
    const same = (place, values) => Object.entries(values).every(([name, value]) => {
        const { node, widget } = giver(place, name);
        return widget?.value === undefined || turning(node) || String(widget.value) === String(value);
    });
    return queued.every(([id, kind, values]) => holder(id, kind) && same(holder(id, kind), values))
        && there.filter((place) => isOurs(place.node)).every((place) => queued.some(([id, kind]) => own(id) === String(place.node.id) && kind === place.node.comfyClass));
}

// This node of ours and those of ours that lead to it.
export const ours = (node) => ancestors(here(node)).map((place) => place.node).filter(isOurs);

// The nodes of ours that belong together.
const is = (kind) => (node) => node.comfyClass === kind;

export const configOf = (trainer) => upstream(here(trainer), "config", is("LoRAConfig"));
export const datasetOf = (node) => (is("LoadDataset")(node) ? here(node) : upstream(here(node), "dataset", is("LoadDataset")));
export const filtered = (trainer) => Boolean(upstream(here(trainer), "dataset", is("FilterDataset")));

// The Train LoRA nodes that a node's config or dataset goes to.
export const trainersOf = (node, input = "config") => everyNode(node.graph?.rootGraph ?? root())
    .filter((trainer) => is("TrainLoRA")(trainer) && !allUpstream(here(trainer), input, (one) => one === node).next().done);

// The folder that a node works on: {folder, source}; null where no Load Dataset is in front of it.
export function folderOf(node) {
    const place = datasetOf(node);
    return place && { folder: valueOf(place, "folder"), source: valueOf(place, "caption_source") ?? "auto" };
}
