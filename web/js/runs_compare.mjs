// One run looked at, or several side by side: curves in one chart, samples by prompt and step, settings that differ.
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

async function read(name, i) {
    const [run, curve] = await Promise.all([oneRun(name), curveOf(name)]);
    const color = COLORS[i % COLORS.length], dash = i < COLORS.length ? undefined : [7, 4];
    return { ...run, curve, color, dash, bestStep: run.best_sample ? stepOf(run.best_sample) : null };
}

export async function openCompare(names, panel) {
    const w = words(), { dialog, close } = openModal(w.title(names), "runs"), title = el("h2"), all = el("div", { className: "all", tabIndex: -1 });
    const cross = (label, onclick) => el("button", { type: "button", className: "bare", "aria-label": label, title: label, textContent: "✕", onclick });
    dialog.getRootNode().append(el("link", { rel: "stylesheet", href: new URL("./lib/uplot.css", import.meta.url).href }), el("style", { textContent: COMPARE }));
    dialog.append(el("header", {}, title, cross(w.close, close)), all);
    let runs = [], overlay = null;
    const entitle = (found) => (title.textContent = w.title(found));
    entitle(names);
    all.append(el("div", { className: "empty", textContent: w.reading }));
    dialog.addEventListener("gone", () => overlay?.destroy());

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
        const buttons = ACTIONS.filter((action) => IN_HEAD.includes(action?.id)).map((action) => {
            const why = action.not(run, w);
            const values = { textContent: w[action.id], title: why || w[action.tip], disabled: Boolean(why) };
            return el("button", { type: "button", ...values, onclick: () => work(run, action.id) });
        });
        const state = el("span", { className: "state", textContent: states()[run.status] ?? run.status });
        const out = runs.length > 2 ? cross(w.remove(run.name), () => leave(run)) : null;
        const report = run.error || run.report ? el("div", { className: "report", textContent: translated(run.error || run.report) }) : null;
        const card = el("div", { style: `--color: ${run.color}` }, el("div", { className: "head" }, el("b", { textContent: run.name }), state, out),
            el("span", { className: "soft", textContent: facts(run) }), run.value, el("div", { className: "row" }, ...buttons), report);
        card.dataset.status = run.status;
        return card;
    };
    const draw = () => {
        overlay?.destroy();
        overlay = new Overlay(runs, (run, text) => (run.value.textContent = text));
        const column = el("select", { className: "end", "aria-label": w.curve, onchange: () => overlay.show(column.value) },
            ...COLUMNS.map((name) => el("option", { value: name, textContent: w.columns[name] })));
        const curves = el("section", {}, el("h3", {}, el("b", { textContent: w.curve }), el("span", { textContent: w.zoomHint }), column), overlay.element);
        all.replaceChildren(el("div", { className: "who" }, ...runs.map(about)), curves, new Samples(runs).element, settingsOf(runs));
        overlay.show(column.value);
    };

    const found = await Promise.allSettled(names.map(read));
    if (!dialog.isConnected) return;
    for (const { reason } of found) if (reason) say("error", reason.message);
    runs = found.filter(({ value }) => value).map(({ value }) => value);
    if (!runs.length) return close();
    entitle(runs.map((run) => run.name));
    draw();
    all.focus();
}
