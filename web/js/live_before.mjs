// What the live panel says while nothing has been trained yet: what the run will take, and what the dataset's report complains of.
import { estimate } from "./estimate_api.mjs";
import { openIn, requestFor } from "./estimate_graph.mjs";
import { words } from "./estimate_words.mjs";
import { ask, awaited, reportOf, reportSettings, unknown } from "./dataset_report.mjs";
import { datasetOf, filtered, here, valuesOf } from "./graph.mjs";
import { watching } from "./node.mjs";
import { chinese } from "./settings.mjs";
import { found as titleOf, said } from "./report_words.mjs";

const LOOK = 400, REST = 400, AGAIN = 30_000, WRONG = 4_000;  // ms; what was asked is asked again after a while, for folders and models come and go

// [[kind, text]…] of an estimate.
function needed(answer, { filtered, open }) {
    const w = words(), m = answer.memory, lines = [];
    if (answer.error) return [["error", answer.error]];
    if (m) {
        lines.push(["", `${w.takes(m)} · ${w.parameters(answer.parameters)} · ${w.file(answer.file_bytes)}`]);
        if (answer.checkpointing) lines.push(["warning", w.checkpointing(m)]);
        else if (m.free !== null && m.needed > m.free) lines.push(["warning", w.tight(m)]);
    }
    if (answer.steps) {
        const each = answer.steps_per_epoch, epochs = each && (answer.steps / each).toFixed(1);
        lines.push(["", w.steps(answer.steps, epochs, answer.pictures) + (filtered ? ` (${w.filtered})` : "")]);
    }
    if (open.length && lines.length) lines.unshift(["", w.computed(open)]);
    if (!answer.checkpointing) lines.push(...answer.notes.map((note) => ["", note]));
    return lines;
}

// The errors and warnings of a report, in the page's language.
const complaints = (report) => (report?.findings ?? []).filter((one) => one.severity !== "note")
    .map((one) => [one.severity, `${titleOf(one.id)}: ${(chinese() && said(one)) || one.text}`]);

const larger = new WeakMap();  // a node's report -> {batch, report: what is to be said of batches of that size too}

// The report that the node shows, with what is to be said of larger batches; else the server is asked.
async function reportFor(node, values, batch, signal) {
    while (awaited(node, values) && !signal.aborted) await new Promise((done) => setTimeout(done, LOOK));
    const own = reportOf(node, values);
    if (own && batch === 1) return own;
    if (own && larger.get(own)?.batch === batch) return larger.get(own).report;
    const asked = await ask(values, batch, signal).catch((error) => ({ findings: [], refused: error.message }));
    if (!own || asked.refused) return asked;
    const report = { findings: [...own.findings, ...asked.findings.filter(({ id }) => !own.findings.some((one) => one.id === id))] };
    larger.set(own, { batch, report });
    return report;
}

// Keeps `panel.before` right for as long as nothing trains in its node. What it answers ends it.
export function watchBefore(panel) {
    const { node } = panel;
    let seen = "", since = 0, asked = "", at = 0, asking = null, asks = -1, report = null, reported = 0;
    const set = (before) => {
        panel.before = before;
        panel.soon();
    };
    const drop = () => {
        asking?.abort();  // nobody waits for it any more
        [asking, asked] = [null, ""];
    };
    const look = async () => {
        if (!node.graph || !panel.rests) return drop();
        if (!panel.element.getClientRects().length) return;
        panel.look();
        const dataset = datasetOf(node), question = requestFor(node), values = dataset && reportSettings(dataset);
        const { name, batch_size: batch = 1 } = valuesOf(here(node), ["name", "batch_size"]);
        if (question) question.train.name = name;
        const open = openIn(node), text = JSON.stringify([question, values, open]);
        if (text !== seen) {
            drop();
            [seen, since] = [text, Date.now()];
        }
        if (asking) return;
        const same = text === asked && panel.asks === asks, fresh = same && Date.now() - at < (panel.before.wrong ? WRONG : AGAIN);
        if (fresh || Date.now() - since < REST) return;
        [asked, asks, at] = [text, panel.asks, Date.now()];
        const mine = (asking = new AbortController());
        try {
            const answer = question && (await estimate(question)), fix = answer?.fix;
            const first = question ? needed(answer, { filtered: filtered(node), open }) : [["", words().noModel]];
            const shown = (bad, wrong) => ({ lines: [...bad, ...first], error: answer?.error, fix, wrong });
            if (mine.signal.aborted) return;
            const folder = values?.folder && !unknown(dataset).length;
            if (!same || !folder) set(shown([], Boolean(answer?.error)));
            if (!folder) return;
            if (!same || !report || report.refused || Date.now() - reported > AGAIN) {  // which goes through all pictures
                const now = await reportFor(dataset.node, values, batch, mine.signal);
                if (mine.signal.aborted) return;
                report = now;
                reported = Date.now();
            }
            const bad = report.refused ? [["error", report.refused]] : complaints(report);
            const repeated = new Set(first.map(([, line]) => line));  // a folder that is missing is said by both
            set(shown(bad.filter(([, line]) => !repeated.has(line)), Boolean(answer?.error || report.refused)));
        } catch (error) {
            if (!mine.signal.aborted) set({ lines: [["error", error.message]], wrong: true });
        } finally {
            if (asking === mine) asking = null;
        }
    };
    const stop = watching(panel.element, look, LOOK);
    return () => {
        stop();
        drop();
    };
}
