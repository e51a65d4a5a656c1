// The sidebar tab with all runs.
import { app } from "../../scripts/app.js";
import { RunsPanel } from "./runs_panel.mjs";
import { words } from "./runs_words.mjs";

let panel = null;

app.registerExtension({
    name: "lora_loom.runs",
    setup() {
        const w = words();
        app.extensionManager?.registerSidebarTab?.({
            id: "lora_loom.runs", icon: "pi pi-chart-line", title: w.tab, tooltip: w.tip, type: "custom",
            render(element) {
                panel?.destroy();
                panel = new RunsPanel(element);
            },
            destroy() {
                panel?.destroy();
                panel = null;
            },
        });
    },
});
