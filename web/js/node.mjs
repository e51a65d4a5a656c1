// What our extensions do to a node: what follows its hooks, what goes on for as long as it is in a graph, and its elements.
import { app } from "../../scripts/app.js";
import { here, valuesOf } from "./graph.mjs";

const TEXT = 110;  // pixels of the graph

// What `work` changes is one step of the page's undo, however long it takes.
export async function changing(work) {
    app.canvas.emitBeforeChange?.();
    try {
        return await work();
    } finally {
        app.canvas.setDirty(true, true);
        app.canvas.emitAfterChange?.();
    }
}

// `then` follows what was there; the answer is that of what was there.
export function after(object, method, then) {
    const before = object[method];
    object[method] = function (...values) {
        const answer = before?.apply(this, values);
        then.apply(this, values);
        return answer;
    };
}

// start() answers what stops it again. A node that is moved into a subgraph or back is removed and added; one that is made to be copied never is.
export function living(node, start) {
    let stop = node.graph ? start() : null;
    after(node, "onAdded", () => {
        stop?.();
        stop = start();
    });
    after(node, "onRemoved", () => {
        stop?.();
        stop = null;
    });
}

// `look` every so often, while the element is on the page.
export function watching(element, look, ms) {
    const timer = setInterval(() => element.isConnected && !document.hidden && look(), ms);
    return () => clearInterval(timer);
}

const refused = new WeakMap();  // node -> [what ComfyUI refused, the node's values then]

// What ComfyUI refused of this node when Run was pressed last: our own messages, each once, for as long as the node is as it was.
export function refusals(node) {
    const errors = app.lastNodeErrors ?? null, values = JSON.stringify(valuesOf(here(node)));
    if (refused.get(node)?.[0] !== errors) refused.set(node, [errors, values]);
    if (!errors || refused.get(node)[1] !== values) return [];
    const found = Object.entries(errors).filter(([id]) => id.split(":").at(-1) === String(node.id)).flatMap(([, { errors }]) => errors ?? [])
        .filter((error) => error.type === "custom_validation_failed")
        .map(({ details, extra_info: of }) => (details ?? "").replace(`${of?.input_name} - `, ""));
    return [...new Set(found.filter(Boolean))];
}

// Tab goes to controls that the window does not show: the canvas moves until it does.
function intoSight({ target }) {
    if (!target.matches(":focus-visible")) return;
    const { ds, canvas } = app.canvas, box = canvas.getBoundingClientRect(), at = target.getBoundingClientRect(), ROOM = 60;  // what floats over the canvas's edges
    const by = (low, high, least, most) => (low < least + ROOM ? least + ROOM - low : high > most - ROOM ? Math.max(most - ROOM - high, least + ROOM - low) : 0);
    const outside = at.left < box.left || at.top < box.top || at.right > box.right || at.bottom > box.bottom;
    if (!outside) return;
    ds.offset[0] += by(at.left, at.right, box.left, box.right) / ds.scale;
    ds.offset[1] += by(at.top, at.bottom, box.top, box.bottom) / ds.scale;
    app.canvas.setDirty(true, true);
}

// An element below the node's widgets, and not in the page's panel of parameters, which would draw it at its own width. It is last and not saved, for the page saves values by their place. `height` is in pixels of the graph, as are all sizes here.
export function addView(node, name, element, { width = 0, height, fixed = false, ...options }) {
    // what the node is made higher is the view's: texts above it take no more than they need
    if (!fixed) for (const { element: text, options: of } of node.widgets ?? []) if (text?.tagName === "TEXTAREA") of.getMaxHeight ??= () => TEXT;
    const room = { getMinHeight: () => height, ...(fixed ? { getMaxHeight: () => height } : {}) };
    const widget = node.addDOMWidget(name, name, element, { serialize: false, hideOnZoom: false, hideInPanel: true, ...room, ...options });
    widget.serialize = false;
    element.addEventListener("focusin", intoSight);
    // a key meant for a control deletes no node
    element.addEventListener("keydown", (event) => { if (event.key === "Delete" || event.key === "Backspace") event.stopPropagation(); });
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], node.computeSize()[1])]);
    return widget;
}
