// Choose Checkpoint's grid: which drawing a node shows, after a reload, in another workflow or another browser too.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { GridPanel, HEIGHT } from "./choose_panel.mjs";
import { recentGrids } from "./runs_api.mjs";

const NODE = "ChooseCheckpoint", UI = "lora_loom_grid";
const KEPT = "lora_loom_grid";  // the node's property: the run and the grid that it has shown last
const panels = new Set();

const root = () => app.rootGraph ?? app.graph;

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
// a run that began after the page was loaded can be chosen as well
api.addEventListener("lora_loom.ended", ({ detail }) => {
    for (const { node } of panels) {
        const values = node.widgets?.find((widget) => widget.name === "run")?.options?.values;
        if (detail.run && Array.isArray(values) && !values.includes(detail.run)) values.splice(1, 0, detail.run);
    }
});
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
        panels.add(panel);
        scrolling(panel);
        const widget = node.addDOMWidget(UI, UI, panel.element, { serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT });
        widget.serialize = false;
        const choice = panel.widget, typed = choice?.callback;
        if (choice) {
            choice.callback = function (...values) {
                const answer = typed?.apply(this, values);
                panel.render();
                return answer;
            };
        }
        node.setSize([Math.max(node.size[0], 400), Math.max(node.size[1], node.computeSize()[1] + 120)]);  // room for a third row of pictures
        const configure = node.onConfigure, removed = node.onRemoved, added = node.onAdded, executed = node.onExecuted;
        node.onConfigure = function (...values) {
            const answer = configure?.apply(this, values);
            setTimeout(() => attach(panel));  // when the graph has its id
            return answer;
        };
        node.onExecuted = function (output, ...rest) {
            executed?.call(this, output, ...rest);
            const [found] = output?.[UI] ?? [];
            if (!found) return;
            keep(node, found.run, found.grid);
            if (panel.take(found)) panel.load(found.run, found.grid);  // of the cache, perhaps, while another grid is shown
        };
        node.onAdded = function (...values) {
            panels.add(panel);
            return added?.apply(this, values);
        };
        node.onRemoved = function (...values) {
            panels.delete(panel);
            return removed?.apply(this, values);
        };
    },
});
