// LoadDataset takes pictures from the user's disk and shows the report on them; it and AutoCaption open the caption editor, and AutoCaption shows the captions in small.
import { app } from "../../scripts/app.js";
import { openEditor } from "./captions_editor.mjs";
import { addStrip } from "./captions_strip.mjs";
import { words } from "./captions_words.mjs";
import { addReport } from "./dataset_report.mjs";
import { addZone } from "./dataset_zone.mjs";
import { refreshFolders } from "./folder_watch.mjs";
import { folderOf, here, valueOf } from "./graph.mjs";
import { say } from "./settings.mjs";

async function edit(node, at) {
    const found = folderOf(node);
    if (!found?.folder) return say("error", found ? words().chooseFolder : words().noDataset);
    const replaces = () => node.comfyClass === "AutoCaption" && valueOf(here(node), "existing") === "replace";
    if (await openEditor({ ...found, at, replaces })) refreshFolders();
}

app.registerExtension({
    name: "lora_loom.dataset",
    nodeCreated(node) {
        if (!node.addDOMWidget) return;
        if (node.comfyClass === "LoadDataset") {
            addZone(node, edit);
            addReport(node);
        }
        if (node.comfyClass === "AutoCaption") addStrip(node, edit);
    },
});
