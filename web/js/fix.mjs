// The way out of an error, set in the widgets that it names: of this node, or of those that its inputs come from.
import { here, ours, settable, valueOf } from "./graph.mjs";
import { words } from "./live_words.mjs";
import { say } from "./settings.mjs";
import { setValue, widgetOf } from "./widgets.mjs";

const ownerOf = (nodes, name) => nodes.find((one) => widgetOf(one, name));

// Whether a button can do it: what is computed on the way has no widget to be set.
export const mendable = (node, fix = {}) => Object.keys(fix).some((name) => ours(node).some((one) => settable(one, name)));

// What the graph says now of an input that an error names.
export function fixedNow(node, name) {
    const owner = ownerOf(ours(node), name);
    return owner && valueOf(here(owner), name);
}

const MOST = 24;  // characters of a value on the button
const clipped = (value, most) => (typeof value === "string" && [...value].length > most ? `${[...value].slice(0, most).join("")}…` : value);

// What the button does, in the names that the canvas shows: [briefly, in full].
export function fixText(node, fix) {
    const nodes = ours(node), w = words(), shown = (name) => { const owner = ownerOf(nodes, name); return (owner && widgetOf(owner, name).label) || name; };
    const said = (value) => (typeof value === "boolean" ? (value ? w.on : w.off) : value === "" ? w.nothing : value), each = Object.entries(fix);
    const text = (most) => w.apply(each.map(([name, value]) => [shown(name), clipped(said(value), most)]));
    return [each.length > 2 ? w.applyAll(each.length) : text(MOST), text(Infinity)];
}

export function applyFix(node, fix) {
    const nodes = ours(node), missed = [];
    for (const [name, value] of Object.entries(fix)) {
        const owner = ownerOf(nodes, name);
        if (!owner || !setValue(owner, name, value).there) missed.push(name);
    }
    if (missed.length) say("warn", words().notThere(missed.join(", ")));
    if (missed.length < Object.keys(fix).length) say("success", words().applied);
}
