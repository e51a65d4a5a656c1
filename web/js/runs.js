// The sidebar tab with all runs.
import { app } from "../../scripts/app.js";
import { RunsPanel } from "./runs_panel.mjs";

let panel = null;

app.registerExtension({
    name: "lora_loom.runs",
    setup() {
        app.extensionManager?.registerSidebarTab?.({  // its texts are keys of locales/zh/main.json
            id: "lora_loom.runs", icon: "pi pi-chart-line", title: "LoRA runs", tooltip: "All trainings of LoRA Loom: look, compare, use", type: "custom",
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
