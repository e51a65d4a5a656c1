// Values set into a node's widgets.
import { refold } from "./fold.mjs";
import { giver, here, settable } from "./graph.mjs";

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

// A combo may be asked for what the page's list does not know yet: a file, a folder or a run that is newer than the page. False where it was not in the list.
export function list(widget, value, place = Infinity) {
    const known = widget?.options?.values;
    if (!Array.isArray(known) || known.includes(value)) return true;
    widget.options.values = known.toSpliced(place, 0, value);
    return false;
}

// As the user's own choice, in the widget that says what this input is. {there: has the node such an input, known: did the list have the value}
export function setValue(node, name, value) {
    const own = widgetOf(node, name);
    if (!own || !settable(node, name)) return { there: false, known: false };
    const at = giver(here(node), name), known = list(at.widget, value);
    list(own, value);
    at.widget.value = value;
    at.widget.callback?.(value);
    for (const one of new Set([node, at.node])) refold(one);
    node.setDirtyCanvas?.(true, true);
    return { there: true, known };
}

// Many at once, as a file has them: no widget's callback is called, for each may fill in others.
export function fill(node, values) {
    for (const widget of node.widgets) {
        if (!(widget.name in values)) continue;
        widget.value = values[widget.name];
        const at = giver(here(node), widget.name);  // a primitive, or what a subgraph's node shows
        if (at.widget && at.node !== node) at.widget.value = widget.value;
    }
    refold(node);
    node.setDirtyCanvas?.(true, true);
}
