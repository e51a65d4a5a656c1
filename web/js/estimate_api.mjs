// Asks the server what a run will take: one question at a time, the newest wins, and what was answered is remembered for a while.
import { api } from "../../scripts/api.js";
import { requestFor } from "./estimate_graph.mjs";
import { translated } from "./translated.mjs";

const answers = new Map();  // question as text -> its answer, with the time it came
const FRESH = 30_000;  // ms: a folder or a file may be another after that

export async function estimate(question) {
    const text = JSON.stringify(question), known = answers.get(text);
    if (known && Date.now() - known.at < FRESH) return known.answer;
    const asked = api.fetchApi("/lora_loom/estimate", { method: "POST", headers: { "Content-Type": "application/json" }, body: text }).then(async (response) => {
        const found = await response.json().catch(() => ({ error: `${response.status} ${response.statusText}` }));
        return response.ok ? { ...found, notes: found.notes.map(translated) } : { error: translated(found.error) };
    }).catch((error) => ({ error: error.message }));
    answers.set(text, { answer: asked, at: Date.now() });
    if (answers.size > 200) answers.delete(answers.keys().next().value);
    return asked;
}

// For the live panel: what a Train LoRA's run will take, or null where its graph is not whole.
export async function estimateFor(trainNode) {
    const question = requestFor(trainNode);
    return question && estimate(question);
}
