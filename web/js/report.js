// The quality report, drawn in the node that made it: how many pictures, in which buckets, and what was found, worst first.
import { app } from "../../scripts/app.js";
import { folderOf, root } from "./graph.mjs";
import { addView, after, living } from "./node.mjs";
import { draw } from "./report.mjs";

const UI = "lora_loom_report", HEIGHT = 260;

// Outputs are kept by the node's number, within a subgraph by that of the subgraph too.
const reportOf = (node) => app.nodeOutputs?.[node.graph === root() ? node.id : `${node.graph?.id}:${node.id}`]?.[UI]?.[0];

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
    addView(node, UI, element, { width: Math.max(node.computeSize()[0], 320), height: HEIGHT, getValue: () => "", setValue() {} });
    return (node.loomReport = element);
}

function show(node, report) {
    if (!report?.findings || node.loomDrawn === report) return;
    node.loomDrawn = node.loomReported = report;
    node.loomReportOn = folderOf(node)?.folder;
    node.loomMark?.();
    draw(place(node), report);
    node.setDirtyCanvas?.(true, true);
}

// A report on another folder than the one that is chosen now is not to be seen.
function look(node) {
    const name = folderOf(node)?.folder, element = node.loomReport, same = name === (node.loomReportOn ?? name);
    if (element && name) element.style.visibility = same && name.split("/").at(-1) === node.loomReported?.folder ? "" : "hidden";
}

app.registerExtension({
    name: "lora_loom.report",
    nodeCreated(node) {
        if (!["LoadDataset", "FilterDataset"].includes(node.comfyClass)) return;
        after(node, "onExecuted", (output) => show(node, output?.[UI]?.[0]));
        living(node, () => {
            const timer = setInterval(() => node.loomReport?.isConnected && !document.hidden && look(node), 400);
            return () => clearInterval(timer);
        });
        // a graph that is opened again (another tab, an entry of the queue) gets its outputs just after its nodes
        after(node, "onConfigure", () => {
            for (const wait of [0, 500]) setTimeout(() => node.graph && show(node, reportOf(node)), wait);
        });
    },
});
