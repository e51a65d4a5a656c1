// The way out of an error, set in the widgets that it names: of this node, or of those that its inputs come from.
import { words } from "./live_words.mjs";
import { refold } from "./fold.mjs";
import { say } from "./settings.mjs";

export const fixText = (fix) => Object.entries(fix).map(([name, value]) => `${name} ${typeof value === "boolean" ? (value ? "on" : "off") : value}`).join(", ");

// This node and everything upstream of it, the nearest first; into subgraphs it does not go.
function upstream(node) {
    const found = [node];
    for (const one of found) {
        for (const input of one.inputs ?? []) {
            const link = input.link === null || input.link === undefined ? null : one.graph.getLink?.(input.link) ?? one.graph.links[input.link];
            const origin = link && one.graph.getNodeById(link.origin_id);
            if (origin && !found.includes(origin)) found.push(origin);
        }
    }
    return found;
}

export function applyFix(node, fix) {
    const nodes = upstream(node), missed = [];
    for (const [name, value] of Object.entries(fix)) {
        const owner = nodes.find((one) => ["LoRA Loom"].includes(one.constructor.nodeData?.category) && one.widgets?.some((w) => w.name === name));
        const widget = owner?.widgets.find((w) => w.name === name);
        if (!widget) {
            missed.push(name);
            continue;
        }
        const known = widget.options?.values;
        if (Array.isArray(known) && !known.includes(value)) known.push(value);  // a run that began after the page was loaded
        widget.value = value;
        widget.callback?.(value);
        refold(owner);
    }
    node.setDirtyCanvas?.(true, true);
    if (missed.length) say("warn", words().notThere(missed.join(", ")));
    if (missed.length < Object.keys(fix).length) say("success", words().applied);
}
