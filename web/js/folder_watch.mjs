// What shows the folder that a node works on is kept right: when another is chosen, when a run has ended, when captions are saved, when the window comes to the front.
import { api } from "../../scripts/api.js";
import { folderOf } from "./graph.mjs";
import { living, watching } from "./node.mjs";

const LOOK = 700;  // ms: the folder may be another for many reasons; asking the graph costs little
const watches = new Set();

export const refreshFolders = () => { for (const refresh of watches) refresh(); };
for (const event of ["execution_success", "execution_error", "execution_interrupted", "reconnected"]) api.addEventListener(event, refreshFolders);
window.addEventListener("focus", refreshFolders);  // files were copied there meanwhile

// read({folder, source}) asks the server; show(where, found, error) is called with what came of it, and with nothing where no folder is known.
export function watchFolder(node, element, read, show) {
    let asked = null;
    const key = (where) => JSON.stringify([where?.folder, where?.source]);
    const refresh = async () => {
        const where = folderOf(node), mine = (asked = key(where)), known = Boolean(where?.folder);
        const [found, error] = known ? await read(where).then((answer) => [answer, null], (wrong) => [null, wrong]) : [null, null];
        if (mine === asked) show(known ? where : null, found, error);  // else another folder has been chosen meanwhile
    };
    living(node, () => {
        const stop = watching(element, () => node.graph && asked !== key(folderOf(node)) && refresh(), LOOK);
        watches.add(refresh);
        return () => {
            stop();
            watches.delete(refresh);
        };
    });
}
