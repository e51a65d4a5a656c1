// One run looked at, or several side by side: curves in one chart, samples by prompt and step, settings that differ. It follows runs that train.
import { api } from "../../scripts/api.js";
import { words as states } from "./live_words.mjs";
import { el, openModal } from "./modal.mjs";
import { act } from "./runs_actions.mjs";
import { curveOf, oneRun } from "./runs_api.mjs";
import { ACTIONS, facts, stepOf } from "./runs_card.mjs";
import { COLUMNS, Overlay } from "./runs_overlay.mjs";
import { Samples } from "./runs_samples.mjs";
import { settingsOf } from "./runs_settings.mjs";
import { COLORS, COMPARE } from "./runs_style.mjs";
import { words } from "./runs_words.mjs";
import { say } from "./settings.mjs";
import { translated } from "./translated.mjs";

const IN_HEAD = ["use", "resume", "repeat"];
const EVENTS = ["started", "progress", "sample", "checkpoint", "saved", "ended"], BETWEEN = 1500;  // ms from one look at a run's folder to the next

async function read(name) {
    const [run, curve] = await Promise.all([oneRun(name), curveOf(name)]);
    return { ...run, curve, bestStep: run.best_sample ? stepOf(run.best_sample) : null };
}

export async function openCompare(names, panel) {
    const w = words(), { dialog, close } = openModal(w.title(names), "runs"), title = el("h2"), all = el("div", { className: "all", tabIndex: -1 });
    const cross = (label, onclick) => el("button", { type: "button", className: "bare", "aria-label": label, title: label, textContent: "✕", onclick });
    dialog.getRootNode().append(el("link", { rel: "stylesheet", href: new URL("./lib/uplot.css", import.meta.url).href }), el("style", { textContent: COMPARE }));
    dialog.append(el("header", {}, title, cross(w.close, close)), all);
    let runs = [], overlay = null, samples = null;
    const entitle = (found) => (title.textContent = w.title(found));
    entitle(names);
    all.append(el("div", { className: "empty", textContent: w.reading }));
    const hear = ({ detail }) => {
        const run = runs.find((one) => one.name === detail.run);
        if (run) run.waits ??= setTimeout(() => renew(run), BETWEEN);
    };
    for (const name of EVENTS) api.addEventListener(`lora_loom.${name}`, hear);
    dialog.addEventListener("gone", () => {
        for (const name of EVENTS) api.removeEventListener(`lora_loom.${name}`, hear);
        for (const run of runs) clearTimeout(run.waits);
        overlay?.destroy();
    });
    // What has become of a run since it was read; what the reader has set (column, zoom, step, focus) stays.
    const renew = async (run) => {
        const fresh = await read(run.name).catch(() => null), drawn = run.samples.length, state = run.status;
        run.waits = null;
        if (!fresh || !runs.includes(run) || !dialog.isConnected) return;
        Object.assign(run, fresh);
        if (run.status !== state) return draw(overlay.column);  // there are other things to be done with it now
        run.told.textContent = facts(run);
        overlay.follow();
        if (run.samples.length !== drawn) samples = samples.follow();
    };

    const leave = (run) => {
        runs = runs.filter((other) => other !== run);
        entitle(runs.map((other) => other.name));
        draw();
    };
    // The dialog covers the graph and the page's messages: it goes before the work is done.
    const work = (run, id) => {
        close();
        return act(panel, panel.run(run.name) ?? run, id);
    };
    const about = (run) => {
        run.value = el("span", { className: "value soft" });
        run.told = el("span", { className: "soft", textContent: facts(run) });
        const buttons = ACTIONS.filter((action) => IN_HEAD.includes(action?.id)).map((action) => {
            const why = action.not(run, w);
            const values = { textContent: w[action.id], title: why || w[action.tip], disabled: Boolean(why) };
            return el("button", { type: "button", ...values, onclick: () => work(run, action.id) });
        });
        const state = el("span", { className: "state", textContent: run.elsewhere ? words().elsewhere : states()[run.status] ?? run.status });
        const out = runs.length > 2 ? cross(w.remove(run.name), () => leave(run)) : null;
        const report = run.error || run.report ? el("div", { className: "report", textContent: translated(run.error || run.report) }) : null;
        const card = el("div", { style: `--color: ${run.color}` }, el("div", { className: "head" }, el("b", { textContent: run.name }), state, out),
            run.told, run.value, el("div", { className: "row" }, ...buttons), report);
        card.dataset.status = run.status;
        return card;
    };
    const draw = (shown = COLUMNS[0]) => {
        overlay?.destroy();
        overlay = new Overlay(runs, (run, text) => (run.value.textContent = text));
        const column = el("select", { className: "end", "aria-label": w.curve, onchange: () => overlay.show(column.value) },
            ...COLUMNS.map((name) => el("option", { value: name, textContent: w.columns[name] })));
        const curves = el("section", {}, el("h3", {}, el("b", { textContent: w.curve }), el("span", { textContent: w.zoomHint }), column), overlay.element);
        samples = new Samples(runs);
        column.value = shown;
        all.replaceChildren(el("div", { className: "who" }, ...runs.map(about)), curves, samples.element, settingsOf(runs));
        overlay.show(shown);
    };

    const found = await Promise.allSettled(names.map((name) => read(name)));
    if (!dialog.isConnected) return;
    for (const { reason } of found) if (reason) say("error", reason.message);
    runs = found.filter(({ value }) => value).map(({ value }, i) => ({ ...value, color: COLORS[i % COLORS.length], dash: i < COLORS.length ? undefined : [7, 4] }));
    if (!runs.length) return close();
    entitle(runs.map((run) => run.name));
    draw();
    all.focus();
}
