// The quality report, drawn in the node that made it: how many pictures, in which buckets, and what was found, worst first.
import { app } from "../../scripts/app.js";
import { draw } from "./report.mjs";

const UI = "lora_loom_report", HEIGHT = 260;

const reportOf = (node) => app.nodeOutputs?.[node.id]?.[UI]?.[0];

// The place to draw in comes with the first report. It keeps its height, so that nothing moves when it is drawn again or unfolded.
function place(node) {
    if (node.loomReport) return node.loomReport;
    const element = document.createElement("div");
    element.dataset.captureWheel = "true";
    element.addEventListener("wheel", (event) => {
        const inside = element.firstElementChild;
        if (inside?.scrollHeight > inside?.clientHeight && !event.ctrlKey) event.stopPropagation();  // it scrolls; the canvas would zoom
        else app.canvas.processMouseWheel?.(event);
    });
    // last and not saved, for the page saves values by their place
    const widget = node.addDOMWidget(UI, "div", element, { serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT, getValue: () => "", setValue() {} });
    widget.serialize = false;
    node.loomReport = element;
    const [width, height] = node.size, needed = node.computeSize();
    node.setSize([Math.max(width, needed[0], 320), Math.max(height, needed[1])]);
    return element;
}

function show(node, report) {
    if (!report?.findings || node.loomDrawn === report) return;
    node.loomDrawn = node.loomReported = report;
    node.loomMark?.();
    draw(place(node), report);
    node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
    name: "lora_loom.report",
    nodeCreated(node) {
        if (!["LoadDataset", "FilterDataset"].includes(node.comfyClass)) return;
        const executed = node.onExecuted, configure = node.onConfigure;
        node.onExecuted = function (output) {
            executed?.apply(this, arguments);
            show(this, output?.[UI]?.[0]);
        };
        // a graph that is opened again (another tab, an entry of the queue) gets its outputs just after its nodes
        node.onConfigure = function () {
            configure?.apply(this, arguments);
            for (const wait of [0, 500]) setTimeout(() => this.graph && show(this, reportOf(this)), wait);
        };
    },
});
