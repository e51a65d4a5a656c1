// TrainLoRA's live panel: which training a node shows, after a reload, in another workflow or another browser too.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { possible, root } from "./graph.mjs";
import { watchBefore } from "./live_before.mjs";
import { HEIGHT, Panel } from "./live_panel.mjs";
import { addView, after, living } from "./node.mjs";
import { trainings } from "./runs_api.mjs";

const EVENTS = ["preparing", "warnings", "started", "progress", "memory", "estimate", "sample", "checkpoint", "saved", "step_skipped", "out_of_memory", "will_not_fit", "compiling", "sample_failed",
    "checkpoint_failed", "state_failed", "ended"];
const KEPT = "lora_loom_run";  // the node's property: the run that it has shown last
const panels = new Set();

const bears = (node, name) => possible(node, "name").some((value) => value === undefined || value === name);  // whether the LoRA may be called so

// Node ids are small numbers that every workflow has: it is ours by the workflow's id and the LoRA's name, for workflows opened from one example share the
// id; by the run, where it has been saved under another since; by the prompt, once this panel has taken it up; for programs, which send no workflow, by name.
function mine({ node, state }, training) {
    if (!node.graph || String(training.node).split(":").at(-1) !== String(node.id)) return false;
    if (!training.workflow) return bears(node, training.name);
    if ((training.run && training.run === node.properties?.[KEPT]) || (training.prompt_id && training.prompt_id === state.prompt_id)) return true;
    return training.workflow === root()?.id && bears(node, training.name);
}

const refused = ({ status, run }) => status === "failed" && !run;

async function attach(panel) {
    const { node } = panel;
    if (!node.graph) return;
    const found = (await trainings().catch(() => [])).find((training) => mine(panel, training));
    const kept = node.properties?.[KEPT];
    if (found && refused(found)) return panel.refuse(found, kept);
    if (found && !found.ended) return panel.take(found);
    const again = found?.run && bears(node, found.name);  // an example that is opened anew has the same id
    if (again || (kept && found?.run === kept)) {  // a page that was closed meanwhile has kept the run before
        if (kept) node.properties[KEPT] = found.run;
        return panel.take(found);
    }
    if (kept && !(await panel.load(kept, true))) delete node.properties[KEPT];  // in the trash, or on another machine
}

for (const name of EVENTS) {
    api.addEventListener(`lora_loom.${name}`, ({ detail }) => {
        for (const panel of panels) {
            if (!mine(panel, detail)) continue;
            const learns = name === "ended" || detail.phase === "train";  // before that a run may come to nothing
            if (learns && detail.run && panel.node.properties) panel.node.properties[KEPT] = detail.run;
            const missed = name !== "preparing" && (panel.state.prompt_id !== detail.prompt_id || (detail.run && panel.run && panel.run !== detail.run));
            if (name === "ended" && !detail.run && !refused(detail)) {  // interrupted before it began
                panel.reset();
                setTimeout(() => attach(panel), 400);  // not what was asked a moment ago
            } else if (refused(detail)) panel.refuse(detail, panel.node.properties?.[KEPT]);
            else if (missed) attach(panel);  // it began before this page was there
            else panel.apply(name, detail);
        }
    });
}
api.addEventListener("reconnected", () => {
    for (const panel of panels) {
        panel.asks += 1;
        attach(panel);
    }
});
api.addEventListener("lora_loom.units", () => {
    for (const panel of panels) {
        panel.asks += 1;  // what is known before a run speaks of sizes
        panel.soon();
    }
});
api.addEventListener("lora_loom.renamed", ({ detail }) => { for (const panel of panels) panel.renamed(detail.from, detail.to); });

app.registerExtension({
    name: "lora_loom.live",
    nodeCreated(node) {
        if (node.comfyClass !== "TrainLoRA" || !node.addDOMWidget) return;
        const panel = new Panel(node);
        addView(node, "lora_loom_live", panel.element, { width: 400, height: HEIGHT });
        after(node, "onConfigure", () => setTimeout(() => attach(panel)));  // when the graph has its id
        living(node, () => {
            const stop = watchBefore(panel);
            panels.add(panel);
            return () => {
                stop();
                panels.delete(panel);
            };
        });
    },
});
