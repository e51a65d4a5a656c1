// The way out of an error, set in the widgets that it names: of this node, or of those that its inputs come from.
import { ancestors, here } from "./graph.mjs";
import { words } from "./live_words.mjs";
import { say } from "./settings.mjs";
import { setValue, widgetOf } from "./widgets.mjs";

const ours = (node) => ancestors(here(node)).map((place) => place.node).filter((one) => one.constructor.nodeData?.category === "LoRA Loom");
const ownerOf = (nodes, name) => nodes.find((one) => widgetOf(one, name));

// What the button does, in the names that the canvas shows.
export function fixText(node, fix) {
    const nodes = ours(node), w = words(), shown = (name) => { const owner = ownerOf(nodes, name); return (owner && widgetOf(owner, name).label) || name; };
    return `${w.apply} ${Object.entries(fix).map(([name, value]) => `${shown(name)} ${typeof value === "boolean" ? (value ? w.on : w.off) : value}`).join(w.comma)}`;
}

export function applyFix(node, fix) {
    const nodes = ours(node), missed = [];
    for (const [name, value] of Object.entries(fix)) {
        const owner = ownerOf(nodes, name);
        if (owner) setValue(owner, name, value);
        else missed.push(name);
    }
    if (missed.length) say("warn", words().notThere(missed.join(", ")));
    if (missed.length < Object.keys(fix).length) say("success", words().applied);
}
