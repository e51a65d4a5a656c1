// Where a node shows a report on pictures, and what a run tells it to show there.
import { app } from "../../scripts/app.js";
import { root } from "./graph.mjs";
import { addView, after } from "./node.mjs";

export const UI = "lora_loom_report";
const HEIGHT = 260;

// It keeps its height, so that nothing moves when something is drawn or unfolded.
export function addPlace(node) {
    const element = document.createElement("div");
    element.dataset.captureWheel = "true";
    element.addEventListener("wheel", (event) => {
        const inside = element.firstElementChild;
        if (inside?.scrollHeight > inside?.clientHeight && !event.ctrlKey) event.stopPropagation();  // it scrolls; the canvas would zoom
        else app.canvas.processMouseWheel?.(event);
    });
    addView(node, UI, element, { width: Math.max(node.computeSize()[0], 320), height: HEIGHT, getValue: () => "", setValue() {} });
    return element;
}

// Outputs are kept by the node's number, within a subgraph by that of the subgraph too.
const outputOf = (node) => app.nodeOutputs?.[node.graph === root() ? node.id : `${node.graph?.id}:${node.id}`]?.[UI]?.[0];

// show(report) is called with each report that a run makes of the node's pictures.
export function whenRun(node, show) {
    let last = null;
    const take = (report) => {
        if (!report?.findings || report === last) return;
        show((last = report));
        node.setDirtyCanvas?.(true, true);
    };
    after(node, "onExecuted", (output) => take(output?.[UI]?.[0]));
    // a graph that is opened again (another tab, an entry of the queue) gets its outputs just after its nodes
    after(node, "onConfigure", () => {
        for (const wait of [0, 500]) setTimeout(() => node.graph && take(outputOf(node)), wait);
    });
}
