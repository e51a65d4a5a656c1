// The report on what Filter Dataset leaves, drawn in the node when it has run.
import { app } from "../../scripts/app.js";
import { folderOf } from "./graph.mjs";
import { living } from "./node.mjs";
import { draw } from "./report.mjs";
import { addPlace, whenRun } from "./report_place.mjs";

app.registerExtension({
    name: "lora_loom.report",
    nodeCreated(node) {
        if (node.comfyClass !== "FilterDataset" || !node.addDOMWidget) return;
        let shown = null, on = null;
        whenRun(node, (report) => {
            node.loomReport ??= addPlace(node);  // with the first report
            [shown, on] = [report, folderOf(node)?.folder];
            draw(node.loomReport, report);
        });
        // a report on another folder than the one that is chosen now is not to be seen
        const look = () => {
            const name = folderOf(node)?.folder, same = name === (on ?? name);
            if (name) node.loomReport.style.visibility = same && name.split("/").at(-1) === shown?.folder ? "" : "hidden";
        };
        living(node, () => {
            const timer = setInterval(() => node.loomReport?.isConnected && !document.hidden && look(), 400);
            return () => clearInterval(timer);
        });
    },
});
