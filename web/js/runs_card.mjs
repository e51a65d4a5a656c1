// A run in the list: its name, where it stands, its curve in small, its best and newest sample, and what can be done with it.
import { words as states } from "./live_words.mjs";
import { el } from "./modal.mjs";
import { sampleUrl } from "./runs_api.mjs";
import { words } from "./runs_words.mjs";
import { translated } from "./translated.mjs";
import { ago, duration, moment, number, size } from "./units.mjs";

const SVG = "http://www.w3.org/2000/svg";

// What can be done with a run: why it cannot, in words, or "".
export const ACTIONS = [
    { id: "use", icon: "plus-circle", tip: "useTip", not: (run, w) => (run.lora ? "" : w.noFile) },
    { id: "resume", icon: "play", tip: "resumeTip", not: (run, w) => (run.status === "running" ? w.training : run.resumable ? "" : w.notResumable) },
    { id: "repeat", icon: "replay", tip: "repeatTip", not: () => "" },
    null,
    { id: "rename", icon: "pencil", tip: "rename", not: (run, w) => (run.status === "running" ? w.training : "") },
    { id: "trash", icon: "trash", tip: "trash", not: (run, w) => (run.status === "running" ? w.training : "") },
];

// Points as a path in a box of 100 by 100; `last` is the step at its right edge.
export function path(points, last) {
    if (points.length < 2) return "";
    const values = points.map(([, value]) => value), low = Math.min(...values), span = Math.max(...values) - low || 1, first = points[0][0];
    const width = Math.max(last, points.at(-1)[0]) - first || 1;
    const place = (step, value) => `${((100 * (step - first)) / width).toFixed(1)} ${(100 - (100 * (value - low)) / span).toFixed(1)}`;
    return points.map(([step, value], i) => `${i ? "L" : "M"}${place(step, value)}`).join("");
}

export const stepOf = (file) => Number(/^step(\d+)_/.exec(file ?? "")?.[1] ?? 0);

export function facts(run, w = words()) {
    const going = run.status === "running", found = [];
    if (run.steps || run.step) found.push(w.steps(run.step, run.steps));
    if (going && run.phase === "encode") return states().encode;
    if (going && run.eta_seconds) found.push(w.left(duration(run.eta_seconds)));
    if (run.loss !== null && run.loss !== undefined) found.push(w.loss(number(run.loss)));
    if (!going) found.push(size(run.bytes), ago(run.ended ?? run.started));
    return found.join(" · ");
}

// on: {open, select, act(id)}, each called with the card, whose `run` is the one that it shows now.
export function makeCard(on) {
    const w = words(), card = el("div", { className: "run", role: "listitem" });
    const button = (className, onclick, ...children) => el("button", { type: "button", className, onclick }, ...children);
    const picture = () => button("picture", () => on.open(card), el("img", { decoding: "async", draggable: false, alt: "" }), el("span"));
    const icon = (action) => button("", () => on.act(card, action.id), el("i", { className: `pi pi-${action.icon}`, "aria-hidden": "true" }));
    card.parts = {
        box: el("input", { type: "checkbox", onchange: () => on.select(card) }),
        name: button("name", () => on.open(card)), state: el("span", { className: "state" }), facts: el("div", { className: "facts" }),
        curve: el("div", { className: "curve" }), best: picture(), newest: picture(), done: el("i"),
        acts: ACTIONS.map((action) => action && icon(action)),
    };
    const svg = document.createElementNS(SVG, "svg"), line = document.createElementNS(SVG, "path");
    for (const [name, value] of [["viewBox", "0 0 100 100"], ["preserveAspectRatio", "none"], ["aria-hidden", "true"]]) svg.setAttribute(name, value);
    svg.append(line);
    Object.assign(card.parts, { line, hint: el("span", { textContent: w.noCurve }) });
    card.parts.curve.append(svg, card.parts.hint);
    const { box, name, state, facts: told, curve, best, newest, done, acts } = card.parts;
    card.append(el("div", {},
        el("div", { className: "head" }, box, name, state), told, el("div", { className: "seen" }, curve, best, newest), el("div", { className: "done" }, done),
        el("div", { className: "acts" }, ...acts.map((button) => button ?? el("span", { className: "gap" })))));
    card.controls = [box, name, best, newest, ...acts.filter(Boolean)];
    return card;
}

const put = (element, name, value) => { if (element[name] !== value) element[name] = value; };

// `resting`: the list stands still, and pictures never seen before may be asked for. `anew`: something has become of the run.
export function fillCard(card, run, { chosen, current, resting, anew = false }) {
    const w = words(), p = card.parts, other = card.run !== run, key = `${chosen} ${current} ${resting}`;
    // the list asks for every card in sight whenever it is scrolled
    if (!other && !anew && (card.key === key || card.key === `${chosen} ${current} true`)) return;
    card.key = key;
    card.run = run;
    card.dataset.status = run.status;
    card.classList.toggle("chosen", chosen);
    put(p.box, "checked", chosen);
    put(p.name, "textContent", run.name);
    if (other) {
        p.name.title = w.open(run.name);
        p.box.setAttribute("aria-label", w.select(run.name));
    }
    put(p.state, "textContent", run.elsewhere ? w.elsewhere : states()[run.status] ?? run.status);
    const line = facts(run, w);
    put(p.facts, "textContent", line);
    put(p.facts, "title", [line, moment(run.started), translated(run.error || run.report)].filter(Boolean).join("\n"));
    p.line.setAttribute("d", path(run.curve, run.status === "running" ? run.steps : 0));
    p.hint.hidden = run.curve.length > 1;
    const best = run.best_sample === run.sample ? null : run.best_sample;
    for (const [button, file, said] of [[p.best, best, w.best], [p.newest, run.sample, w.newest]]) {
        button.hidden = !file;
        const image = button.firstElementChild, url = file ? sampleUrl(run.name, file, 192, run.started) : "";
        if (image.dataset.url !== url && (resting || !url || other)) {
            image.dataset.url = resting ? url : "";
            if (url && resting) image.src = url;
            else image.removeAttribute("src");
        }
        put(button.lastElementChild, "textContent", file ? said(stepOf(file)) : "");
        put(button, "title", w.open(run.name));
    }
    p.done.style.width = run.status === "running" && run.steps ? `${(100 * run.step) / run.steps}%` : "0";
    ACTIONS.forEach((action, i) => {
        if (!action) return;
        const why = action.not(run, w), button = p.acts[i];
        put(button, "disabled", Boolean(why));
        put(button, "title", why || w[action.tip]);
        button.setAttribute("aria-label", `${w[action.id]}: ${run.name}`);
    });
    for (const control of card.controls) put(control, "tabIndex", current ? 0 : -1);
}
