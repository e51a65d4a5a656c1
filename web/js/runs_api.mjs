// What the page asks of the server about runs (nodes/runs_routes.py).
import { api } from "../../scripts/api.js";
import { translated } from "./translated.mjs";

async function answer(request) {
    const response = await request;
    const found = await response.json().catch(() => ({ error: `${response.status} ${response.statusText}` }));
    if (!response.ok) throw new Error(translated(found.error));
    return found;
}

const get = (route, values = {}) => answer(api.fetchApi(`/lora_loom/${route}?${new URLSearchParams(values)}`, { cache: "no-store" }));
const post = (route, body) => answer(api.fetchApi(`/lora_loom/${route}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }));

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
export const sampleUrl = (name, file, size, version = "") => api.apiURL(`/lora_loom/run/sample?${new URLSearchParams({ name, file, size, v: version })}`);

let asked = null;  // one question for all the nodes of a graph that is opened

export function trainings() {
    asked ??= get("state").then((found) => found.trainings).finally(() => setTimeout(() => (asked = null), 300));
    return asked;
}

// Choose Checkpoint's grids (nodes/choose_routes.py). A cell's key stands for all that it was drawn from.
export const recentGrids = async () => (await get("grids")).grids;
export const gridOf = (name, id) => get("run/grid", { name, id });
export const cellUrl = (name, key) => api.apiURL(`/lora_loom/run/cell?${new URLSearchParams({ name, key })}`);
