// What a run does to the graph: its LoRA in a loader, itself in Train LoRA's `resume`, its settings in the nodes. Each answers whether it was done.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { fillConfig, fillDataset } from "./config_fill.mjs";
import { configOf, everyNode, root, settable } from "./graph.mjs";
import { words as live } from "./live_words.mjs";
import { changing } from "./node.mjs";
import { oneRun } from "./runs_api.mjs";
import { words } from "./runs_words.mjs";
import { say } from "./settings.mjs";
import { setValue, widgetOf } from "./widgets.mjs";

const NAMING = { TrainLoRA: { widget: "resume", property: "lora_loom_run" }, ChooseCheckpoint: { widget: "run", property: "lora_loom_grid" } };  // where nodes name a run
const LOADERS = ["LoraLoader", "LoraLoaderModelOnly"];
const selected = () => Object.values(app.canvas.selected_nodes ?? {});
const title = (kind) => window.LiteGraph.registered_node_types[kind]?.title ?? kind;

// The node of that kind that is meant: the selected one, or the only one. Null after saying why there is none.
function meant(kind) {
    const chosen = selected().filter((node) => node.comfyClass === kind), all = everyNode(root()).filter((node) => node.comfyClass === kind);
    const found = chosen.length === 1 ? chosen : all;
    if (found.length === 1) return found[0];
    say("warn", words()[found.length ? "several" : "missing"](title(kind)));
    return null;
}

// What was filled in is selected, and the canvas moves to it where it does not show it.
function show(node) {
    if (node.graph !== app.canvas.graph) return;  // within a subgraph: keys would reach what nobody sees
    app.canvas.selectNodes?.([node]);
    const [left, top, width, height] = app.canvas.visible_area ?? [-Infinity, -Infinity, Infinity, Infinity], [x, y] = node.pos;
    if (x < left || y < top || x > left + width - 40 || y > top + height - 40) app.canvas.centerOnNode?.(node);
    app.canvas.setDirty(true, true);
}

// Where the user looks: the canvas without the part that the sidebar covers.
function middle() {
    const { ds, canvas } = app.canvas, box = canvas.getBoundingClientRect(), bar = document.querySelector(".loom-runs")?.getBoundingClientRect();
    let [left, right] = [box.left, box.right];
    if (bar && bar.left - box.left < box.right - bar.right) left = Math.max(left, Math.min(bar.right, right));
    else if (bar) right = Math.min(right, Math.max(bar.left, left));
    return [((left + right) / 2 - box.left) / ds.scale - ds.offset[0], box.height / 2 / ds.scale - ds.offset[1]];
}

// Ways from the middle of the view, the shortest first.
const NEAR = Array.from({ length: 21 * 17 }, (_, i) => [60 * ((i % 21) - 10), 60 * (Math.floor(i / 21) - 8)]).sort((a, b) => Math.hypot(...a) - Math.hypot(...b));

function newLoader() {
    const node = window.LiteGraph.createNode(LOADERS[0]), [x, y] = middle(), graph = app.canvas.graph ?? root();
    const [width, height] = node.size, GAP = 20, TITLE = window.LiteGraph.NODE_TITLE_HEIGHT;
    const meets = (left, top, { pos, size }) => left < pos[0] + size[0] + GAP && pos[0] < left + width + GAP && top - TITLE < pos[1] + size[1] + GAP && pos[1] - TITLE < top + height + GAP;
    const free = ([left, top]) => !graph._nodes.some((other) => meets(left, top, other));
    const place = ([right, down]) => [Math.round(x - width / 2 + right), Math.round(y - height / 2 + down)];
    node.pos = NEAR.map(place).find(free) ?? place([30 * (graph._nodes.length % 10), 30 * (graph._nodes.length % 10)]);  // on top of others where there is no room
    graph.add(node);
    return node;
}

export async function useLora(lora) {
    const chosen = selected().filter((node) => LOADERS.includes(node.comfyClass));
    const known = await changing(() => (chosen.length ? chosen : [newLoader()]).map((node) => setValue(node, "lora_name", lora).known));
    if (known.includes(false)) await (app.reloadNodeDefs ?? app.refreshComboInNodes).call(app);  // a file that is new: other loaders may choose it too
    say("success", chosen.length ? words().usedIn(lora, chosen.length) : words().added(lora));
    return true;
}

// It goes on with the settings that it began with.
export async function resumeRun(name, trainer = meant("TrainLoRA")) {
    if (!trainer) return false;
    if (!settable(trainer, "resume")) {
        say("warn", live().notThere("resume"));
        return false;
    }
    const { config, settings } = await oneRun(name), node = configOf(trainer)?.node;
    const done = await changing(async () => {
        if (node && !(await fillConfig(node, config, [trainer]))) return false;
        fillDataset(trainer, settings?.dataset);
        return setValue(trainer, "resume", name).there;
    });
    if (!done) return false;
    say("success", words().resumed(name));
    return true;
}

export async function repeatRun(name) {
    const trainer = meant("TrainLoRA"), node = trainer && (configOf(trainer)?.node ?? meant("LoRAConfig"));
    if (!node) return false;
    const { config, settings } = await oneRun(name);
    const done = await changing(async () => {
        if (!(await fillConfig(node, config, [trainer]))) return false;
        fillDataset(trainer, settings?.dataset);
        return true;
    });
    if (!done) return false;
    show(trainer);
    say("success", words().repeated(name));
    return true;
}

// A run has another name: nodes that show it or go on with it know it under that, and live.js those that show it now.
export async function renamedInGraph(from, to) {
    await changing(() => {
        for (const node of everyNode(root())) {
            const naming = NAMING[node.comfyClass], shown = naming && node.properties?.[naming.property];
            if (!naming) continue;
            if (shown?.split("/")[0] === from) node.properties[naming.property] = to + shown.slice(from.length);
            if (widgetOf(node, naming.widget)?.value === from) setValue(node, naming.widget, to);
            const choice = widgetOf(node, "choice")?.value;
            if (choice?.startsWith(`${from}/`)) setValue(node, "choice", to + choice.slice(from.length));
        }
    });
    api.dispatchCustomEvent("lora_loom.renamed", { from, to });
}
