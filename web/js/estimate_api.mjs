// Asks the server what a run will take: one question at a time, the newest wins, and what was answered is remembered for a while.
import { post } from "./server.mjs";
import { translated } from "./translated.mjs";

const answers = new Map();  // question as text -> its answer, with the time it came
const FRESH = 30_000;  // ms: a folder or a file may be another after that

export async function estimate(question) {
    const text = JSON.stringify(question), known = answers.get(text);
    if (known && Date.now() - known.at < FRESH) return known.answer;
    const asked = post("estimate", question).then((found) => ({ ...found, notes: found.notes.map(translated) })).catch((error) => ({ error: error.message, fix: error.fix }));
    answers.set(text, { answer: asked, at: Date.now() });
    asked.then(({ error }) => error && answers.delete(text));  // it may be gone at any time
    if (answers.size > 200) answers.delete(answers.keys().next().value);
    return asked;
}
