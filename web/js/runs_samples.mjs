// The samples of several runs by prompt: all at one step, or a row of steps for each run.
import { Film } from "./live_film.mjs";
import { el } from "./modal.mjs";
import { sampleUrl } from "./runs_api.mjs";
import { words } from "./runs_words.mjs";

// [{label, files: Map(run -> [{file, step, number}])}]: the same prompt of two runs is one row, whatever its number.
function rows(runs) {
    const found = new Map();
    for (const run of runs) {
        for (const sample of run.samples) {
            const prompt = run.prompts[sample.number - 1] || words().picture(sample.number);
            if (!found.has(prompt)) found.set(prompt, { label: prompt, files: new Map() });
            const { files } = found.get(prompt);
            files.set(run, [...(files.get(run) ?? []), sample]);
        }
    }
    return [...found.values()];
}

function large(run, sample) {
    const film = new Film();
    film.load(run.name, run.started, run.samples, run.prompts);
    film.slider.value = film.order.indexOf(sample.step);
    film.large(sample.number - 1);
}

export class Samples {
    constructor(runs) {
        this.runs = runs;
        this.rows = rows(runs);
        this.steps = [...new Set(runs.flatMap((run) => run.samples.map((sample) => sample.step)))].sort((a, b) => a - b);
        const w = words(), last = this.steps.length - 1;
        const range = { type: "range", min: 0, max: Math.max(0, last), value: last, disabled: last < 1 };
        this.slider = el("input", { ...range, "aria-label": w.slider, oninput: () => this.draw() });
        this.label = el("span");
        this.every = el("button", { type: "button", className: "end", textContent: w.allSteps, "aria-pressed": "false", onclick: () => this.turn() });
        this.head = el("h3", {}, el("b", { textContent: w.samples }), ...(this.steps.length ? [this.slider, this.label, this.every] : []));
        this.place = el("div", { className: "table" });
        this.element = el("section", {}, this.head, this.place);
        if (this.steps.length) this.draw();
        else this.place.append(el("p", { className: "soft", textContent: w.noSamples }));
    }

    // There are more of them: the same place again, at the newest step where that was shown.
    follow() {
        const anew = new Samples(this.runs), at = this.steps[Number(this.slider.value)], newest = Number(this.slider.value) >= Number(this.slider.max);
        if (!newest) anew.slider.value = anew.steps.indexOf(at);
        if (this.every.classList.contains("on")) anew.turn();
        else if (!newest) anew.draw();
        const inside = this.element.contains(this.element.getRootNode().activeElement), place = this.slider === this.element.getRootNode().activeElement;
        this.element.replaceWith(anew.element);
        if (inside) (place ? anew.slider : anew.every).focus({ preventScroll: true });
        return anew;
    }

    turn() {
        const on = this.every.classList.toggle("on");
        this.every.setAttribute("aria-pressed", String(on));
        this.slider.hidden = on;
        this.label.hidden = on;
        this.pictures = null;
        this.draw();
    }

    picture(run, width) {
        const image = el("img", { decoding: "async", loading: "lazy", draggable: false }), at = el("div", { className: "at" });
        const button = el("button", { type: "button", onclick: () => large(run, button.sample) }, image), cell = el("div", {}, button, at);
        const show = (sample) => {
            button.sample = sample;
            button.disabled = !sample;
            const url = sample ? sampleUrl(run.name, sample.file, width, run.started) : "";
            if (image.getAttribute("src") !== url) url ? (image.src = url) : image.removeAttribute("src");
            image.hidden = !sample;
            image.alt = button.title = sample ? run.prompts[sample.number - 1] ?? "" : "";
            const best = sample && sample.step === run.bestStep ? [el("b", { textContent: words().bestMark })] : [];
            at.replaceChildren(el("span", { textContent: sample ? words().atStep(sample.step) : "–" }), ...best);
        };
        return { cell, show };
    }

    draw() {
        if (this.every.classList.contains("on")) return this.drawAll();
        const step = this.steps[Number(this.slider.value)];
        this.label.textContent = words().upTo(step);
        this.pictures ??= this.table();
        for (const { files, show } of this.pictures) show(files.filter((sample) => sample.step <= step).at(-1));
    }

    heads() { return this.runs.map((run) => el("th", { scope: "col", textContent: run.name, title: run.name, style: `--color: ${run.color}` })); }

    // A column for each run; the pictures stay while the slider moves.
    table() {
        const made = [], body = this.rows.map((row) => el("tr", {}, el("th", { scope: "row", textContent: row.label }), ...this.runs.map((run) => {
            if (!row.files.has(run)) return el("td");
            const { cell, show } = this.picture(run, 384);
            made.push({ files: row.files.get(run), show });
            return el("td", {}, cell);
        })));
        this.place.replaceChildren(el("table", { className: "samples" }, el("thead", {}, el("tr", {}, el("th"), ...this.heads())), el("tbody", {}, ...body)));
        return made;
    }

    // A column for each step, a row for each prompt and run.
    drawAll() {
        const cell = (row, run, step) => {
            const sample = row.files.get(run).find((one) => one.step === step), made = sample ? this.picture(run, 192) : {};
            made.show?.(sample);
            return el("td", {}, made.cell);
        };
        const who = (run) => el("th", { scope: "row", className: "who-is", textContent: run.name, style: `--color: ${run.color}` });
        const body = this.rows.flatMap((row) => [
            el("tr", { className: "part" }, el("th", { scope: "row", colSpan: this.steps.length + 1, textContent: row.label })),
            ...this.runs.filter((run) => row.files.has(run)).map((run) => el("tr", {}, who(run), ...this.steps.map((step) => cell(row, run, step))))]);
        this.place.replaceChildren(el("table", { className: "samples steps" }, el("tbody", {}, ...body)));
    }
}
