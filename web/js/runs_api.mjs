// What the page asks of the server about runs (nodes/runs_routes.py).
import { get, post, urlOf } from "./server.mjs";

export const allRuns = () => get("runs");
export const oneRun = (name) => get("run", { name });
export const curveOf = (name, points = 800) => get("run/curve", { name, points });
export const control = (run, action) => post("control", { run, action });
export const renameRun = (run, to) => post("run/rename", { run, to });
export const trashRun = (run) => post("run/trash", { run });
export const restoreRun = (trashed) => post("run/restore", { trashed });
export const emptyTrash = () => post("trash/empty", {});
export const keepCheckpoint = (run, file) => post("run/keep", { run, file });

// `version` makes the address another where a run of the same name is another.
export const sampleUrl = (name, file, size, version = "") => urlOf("run/sample", { name, file, size, v: version });

let asked = null;  // one question for all the nodes of a graph that is opened

export function trainings() {
    asked ??= get("state").then((found) => found.trainings).finally(() => setTimeout(() => (asked = null), 300));
    return asked;
}

// Choose Checkpoint's grids (nodes/choose_routes.py). A cell's key stands for all that it was drawn from.
export const recentGrids = async () => (await get("grids")).grids;
export const gridOf = (name, id) => get("run/grid", { name, id });
export const cellUrl = (name, key) => urlOf("run/cell", { name, key });
