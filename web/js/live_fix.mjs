// The way out of an error, set in the widgets that it names: of this node, or of those that its inputs come from.
import { ancestors, here } from "./graph.mjs";
import { words } from "./live_words.mjs";
import { say } from "./settings.mjs";
import { setValue, widgetOf } from "./widgets.mjs";

export const fixText = (fix) => Object.entries(fix).map(([name, value]) => `${name} ${typeof value === "boolean" ? (value ? "on" : "off") : value}`).join(", ");

export function applyFix(node, fix) {
    const nodes = ancestors(here(node)).map((place) => place.node).filter((one) => one.constructor.nodeData?.category === "LoRA Loom"), missed = [];
    for (const [name, value] of Object.entries(fix)) {
        const owner = nodes.find((one) => widgetOf(one, name));
        if (owner) setValue(owner, name, value);
        else missed.push(name);
    }
    if (missed.length) say("warn", words().notThere(missed.join(", ")));
    if (missed.length < Object.keys(fix).length) say("success", words().applied);
}
