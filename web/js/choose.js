// Choose Checkpoint's grid: which drawing a node shows, after a reload, in another workflow or another browser too.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { GridPanel, HEIGHT } from "./choose_panel.mjs";
import { root } from "./graph.mjs";
import { addView, after, living, watching } from "./node.mjs";
import { recentGrids } from "./runs_api.mjs";
import { list, widgetOf } from "./widgets.mjs";

const NODE = "ChooseCheckpoint", UI = "lora_loom_grid";
const KEPT = "lora_loom_grid";  // the node's property: the run and the grid that it has shown last
const panels = new Set();

// Node ids are small numbers that every workflow has: it is ours by the workflow's id, and for programs, which send none, where it shows that run or nothing yet.
function mine({ node, layout }, drawing) {
    if (!node.graph || String(drawing.node).split(":").at(-1) !== String(node.id)) return false;
    return drawing.workflow ? drawing.workflow === root()?.id : !layout || layout.run === drawing.run;
}

function keep(node, run, id) {
    if (node.properties) node.properties[KEPT] = `${run}/${id}`;
}

async function attach(panel) {
    const { node } = panel;
    if (!node.graph) return;
    const found = (await recentGrids().catch(() => [])).find((drawing) => mine(panel, drawing)), kept = node.properties?.[KEPT];
    if (found && (found.status === "drawing" || !kept || kept === `${found.run}/${found.grid}`)) {
        keep(node, found.run, found.grid);
        panel.take(found);
        await panel.load(found.run, found.grid);
        return;
    }
    const [run, id] = kept?.split("/") ?? [panel.choice?.run, ""];
    if (run && !(await panel.load(run, id))) delete node.properties[KEPT];  // in the trash, or on another machine
    panel.render();
}

api.addEventListener("lora_loom.grid", ({ detail }) => {
    for (const panel of panels) {
        if (!mine(panel, detail)) continue;
        keep(panel.node, detail.run, detail.grid);
        if (panel.take(detail)) attach(panel);
    }
});
api.addEventListener("lora_loom.cell", ({ detail }) => {
    for (const panel of panels) {
        if (!mine(panel, detail)) continue;
        if (panel.layout?.id === detail.grid && panel.layout.run === detail.run) panel.drawn(detail);
        else attach(panel);  // it began before this page was there
    }
});
// A node that ComfyUI takes from its cache draws nothing, and pages of 2025 are told no more of it than this: what hindered an earlier run is over.
api.addEventListener("execution_cached", ({ detail }) => {
    const cached = new Set((detail?.nodes ?? []).map((id) => String(id).split(":").at(-1)));
    for (const panel of panels) if (cached.has(String(panel.node.id))) panel.recovered();
});
// a run that began after the page was loaded can be chosen as well
api.addEventListener("lora_loom.ended", ({ detail }) => {
    if (detail.run) for (const { node } of panels) list(widgetOf(node, "run"), detail.run, 1);
});
api.addEventListener("lora_loom.renamed", ({ detail }) => { for (const panel of panels) panel.renamed(detail.from, detail.to); });
api.addEventListener("reconnected", () => { for (const panel of panels) attach(panel); });

function scrolling(panel) {
    panel.element.addEventListener("wheel", (event) => {
        const { board } = panel, room = board.scrollHeight > board.clientHeight || board.scrollWidth > board.clientWidth;
        if (room && !event.ctrlKey && event.composedPath().includes(board)) event.stopPropagation();  // it scrolls; the canvas would zoom
        else app.canvas.processMouseWheel?.(event);
    });
}

app.registerExtension({
    name: "lora_loom.choose",
    nodeCreated(node) {
        if (node.comfyClass !== NODE || !node.addDOMWidget) return;
        const panel = new GridPanel(node);
        scrolling(panel);
        addView(node, UI, panel.element, { width: 400, height: HEIGHT });
        node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1] + 120)]);  // room for a third row of pictures
        after(node, "onConfigure", () => setTimeout(() => attach(panel)));  // when the graph has its id
        after(node, "onExecuted", (output) => {
            const [found] = output?.[UI] ?? [];
            if (!found) return;
            keep(node, found.run, found.grid);
            if (panel.take(found)) panel.load(found.run, found.grid);  // of the cache, perhaps, while another grid is shown
        });
        living(node, () => {
            const stop = watching(panel.element, () => panel.look(), 400);
            panels.add(panel);
            return () => {
                stop();
                panels.delete(panel);
            };
        });
    },
});
