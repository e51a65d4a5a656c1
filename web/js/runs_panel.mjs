// The list of all runs in the sidebar. It shows the runs' folder as the server reads it, and follows the runs that train now.
import { api } from "../../scripts/api.js";
import { Grid } from "./captions_grid.mjs";
import { words as states } from "./live_words.mjs";
import { el } from "./modal.mjs";
import { act } from "./runs_actions.mjs";
import { allRuns, oneRun } from "./runs_api.mjs";
import { fillCard, makeCard } from "./runs_card.mjs";
import { openCompare } from "./runs_compare.mjs";
import { HEIGHT, listStyle } from "./runs_style.mjs";
import { openTrash } from "./runs_trash.mjs";
import { words } from "./runs_words.mjs";
import { size } from "./units.mjs";

const EVENTS = ["preparing", "started", "progress", "sample", "checkpoint", "saved", "ended"];
const ORDERS = {
    byTime: (a, b) => b.started - a.started, byName: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }), bySize: (a, b) => b.bytes - a.bytes,
};
const POINTS = 96;  // of a small curve that grows
const MOVES = {
    ArrowDown: (grid) => grid.columns, ArrowUp: (grid) => -grid.columns, ArrowRight: () => 1, ArrowLeft: () => -1,
    PageDown: (grid) => grid.page, PageUp: (grid) => -grid.page, Home: () => -Infinity, End: () => Infinity,
};

const button = (label, onclick, values = {}) => el("button", { type: "button", textContent: label, onclick, ...values });
const icon = (name) => el("i", { className: `pi pi-${name}`, "aria-hidden": "true" });
const iconButton = (name, label, onclick) => el("button", { type: "button", title: label, "aria-label": label, onclick }, icon(name));

// What the events have told of a run that trains is newer than its files.
function told(before, now) {
    if (before?.status !== "running" || now.status !== "running" || before.step <= now.step) return {};
    return { step: before.step, loss: before.loss, curve: before.curve, phase: before.phase, eta_seconds: before.eta_seconds };
}

export class RunsPanel {
    constructor(place) {
        listStyle();
        const w = words();
        Object.assign(this, { runs: [], shown: [], trash: [], chosen: new Set(), current: "", timers: new Map(), dirty: new Set(), asked: 0, held: false, waits: false });
        place.style.height = "100%";
        this.search = el("input", { type: "text", placeholder: w.search, "aria-label": w.search, spellcheck: false, oninput: () => this.show() });
        const orders = Object.keys(ORDERS).map((id) => el("option", { value: id, textContent: w[id] }));
        this.sort = el("select", { "aria-label": w.sort, title: w.sort, onchange: () => this.show() }, ...orders);
        this.compare = button("", () => this.open([...this.chosen]), { className: "compare strong", title: w.compareTip });
        this.clear = iconButton("times", w.clear, () => { this.chosen.clear(); this.show(); });
        this.box = el("div", { className: "grid", role: "list", "aria-label": w.tab });
        this.empty = el("div", { className: "empty", hidden: true });
        this.notice = el("div", { className: "notice", hidden: true, role: "status" });
        this.used = el("span");
        this.bin = button("", () => openTrash(this));
        this.element = el("div", { className: "loom-runs" },
            el("div", { className: "top" },
                el("div", {}, el("b", { textContent: w.tab }), iconButton("refresh", w.refresh, () => this.refresh())),
                el("div", {}, this.search, this.sort), el("div", {}, this.compare, this.clear)),
            this.empty, this.box, this.notice, el("div", { className: "foot" }, this.used, this.bin));
        place.replaceChildren(this.element);
        const on = { open: (card) => this.open([card.run.name]), select: (card) => this.select(card.run.name), act: (card, id) => act(this, card.run, id) };
        this.grid = new Grid(this.box, { minWidth: 250, height: HEIGHT, make: () => makeCard(on), fill: (card, at, resting) => this.fill(card, at, resting) });
        this.box.addEventListener("keydown", (event) => this.key(event));
        this.search.addEventListener("keydown", (event) => event.key !== "Escape" && event.stopPropagation());
        this.box.addEventListener("pointerdown", (event) => event.target.closest(".run") && this.hold());
        this.box.addEventListener("focusin", (event) => this.focused(event.target.closest(".run")));
        this.box.addEventListener("focusout", () => (this.grid.pinned = -1));
        this.hears = EVENTS.map((name) => [`lora_loom.${name}`, ({ detail }) => this.hear(name, detail)]);
        this.hears.push(["reconnected", () => this.refresh()], ["lora_loom.units", () => this.refresh()]);
        for (const [name, heard] of this.hears) api.addEventListener(name, heard);
        this.show();
        this.refresh();
    }

    destroy() {
        for (const [name, heard] of this.hears) api.removeEventListener(name, heard);
        for (const timer of this.timers.values()) clearTimeout(timer);
        this.grid.destroy();
        this.element.remove();
        this.gone = true;
    }

    run(name) { return this.runs.find((run) => run.name === name); }

    async refresh() {
        const asked = ++this.asked;
        try {
            const found = await allRuns();
            if (this.gone || asked !== this.asked) return;  // a later question has been put: this answer may be older than its
            const before = new Map(this.runs.map((run) => [run.name, run]));
            this.runs = found.runs.map((run) => ({ ...run, ...told(before.get(run.name), run) }));
            this.trash = found.trash;
            this.failed = "";
        } catch (error) {
            if (this.gone || asked !== this.asked) return;
            this.failed = error.message;
        }
        this.read = true;
        this.waits = this.held;
        if (!this.waits) this.show();
    }

    // Between press and release no card comes to show another run: a click means the run that was pressed.
    hold() {
        if (this.held) return;
        const ends = ["pointerup", "pointercancel"];
        const release = () => {
            for (const end of ends) window.removeEventListener(end, release, true);
            setTimeout(() => {  // after the click
                this.held = false;
                if (this.waits && !this.gone) this.show();
                this.waits = false;
            });
        };
        this.held = true;
        for (const end of ends) window.addEventListener(end, release, true);
    }

    // One run anew, where something has become of it.
    async renew(name) {
        const found = await oneRun(name).catch(() => null), run = this.run(name);
        if (!found || !run || this.gone) return this.refresh();
        const { settings, config, samples, checkpoints, prompts, ...summary } = found;
        Object.assign(run, summary, told(run, summary));
        this.redraw(name);
        this.total();
    }

    later(key, work, wait) {
        if (this.timers.has(key)) return;
        this.timers.set(key, setTimeout(() => {
            this.timers.delete(key);
            work();
        }, wait));
    }

    hear(name, data) {
        if (!data.run) return;  // it has no folder yet
        const run = this.run(data.run);
        if (!run) return this.later("", () => this.refresh(), 400);
        if (name === "started") {  // one that goes on begins where its last save was
            Object.assign(run, { status: "running", step: data.step, steps: data.steps, curve: run.curve.filter(([step]) => step <= data.step) });
        }
        if (name !== "progress") return this.later(data.run, () => this.renew(data.run), 400);
        Object.assign(run, { status: "running", phase: data.phase });
        if (data.phase === "train") {
            Object.assign(run, { step: data.step, steps: data.steps, eta_seconds: data.eta_seconds, loss: data.smoothed_loss });
            const curve = run.curve.length < POINTS ? run.curve : run.curve.filter((_, i) => i % 2);
            if (data.smoothed_loss !== null && data.step > (curve.at(-1)?.[0] ?? 0)) run.curve = [...curve, [data.step, data.smoothed_loss]];
        }
        this.redraw(data.run);
    }

    redraw(name) {  // however many events come, the page draws at its own pace
        if (!this.dirty.size) {
            requestAnimationFrame(() => {
                for (const dirty of this.dirty) {
                    const at = this.shown.findIndex((run) => run.name === dirty), card = this.grid.card(at);
                    if (card) this.fill(card, at, true, true);
                }
                this.dirty.clear();
            });
        }
        this.dirty.add(name);
    }

    show() {
        const w = words(), asked = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
        for (const name of this.chosen) if (!this.run(name)) this.chosen.delete(name);
        const text = (run) => [run.name, run.status, states()[run.status], run.family, run.model, run.lora, run.plan, run.error].join(" ").toLowerCase();
        this.shown = this.runs.filter((run) => asked.every((word) => text(run).includes(word))).sort(ORDERS[this.sort.value]);
        if (!this.shown.some((run) => run.name === this.current)) this.current = this.shown[0]?.name ?? "";
        this.empty.hidden = Boolean(this.shown.length) || !this.read;
        this.empty.textContent = this.failed ? w.failedToRead(this.failed) : this.runs.length ? w.noMatch : w.none;
        this.box.hidden = !this.shown.length;
        this.grid.setCount(this.shown.length);
        this.picked();
        this.total();
    }

    total() {
        const w = words(), files = [...new Map(this.shown.map((run) => [run.lora, run.lora_bytes])).values()].reduce((sum, bytes) => sum + bytes, 0);  // two runs may have given one file
        const bytes = size(this.shown.reduce((sum, run) => sum + run.bytes, 0)) + (files ? ` + ${w.loras(size(files))}` : "");
        this.used.textContent = this.shown.length === this.runs.length ? w.used(this.runs.length, bytes) : w.found(this.shown.length, this.runs.length, bytes);
        this.bin.hidden = !this.trash.length;
        this.bin.textContent = w.trashHolds(this.trash.length, size(this.trash.reduce((sum, run) => sum + run.bytes, 0)));
    }

    picked() {
        this.compare.textContent = words().compare(this.chosen.size);
        this.compare.disabled = this.chosen.size < 2;
        this.clear.hidden = !this.chosen.size;
    }

    fill(card, at, resting, anew) {
        const run = this.shown[at];
        if (run) fillCard(card, run, { chosen: this.chosen.has(run.name), current: run.name === this.current, resting, anew });
    }

    select(name) {
        if (!this.chosen.delete(name)) this.chosen.add(name);
        this.redraw(name);
        this.picked();
    }

    open(names) {
        openCompare(names, this);
    }

    // Below the list, until it is answered: {text, label, work}
    tell(text, label, work) {
        const w = words(), close = () => (this.notice.hidden = true);
        this.notice.replaceChildren(el("span", { textContent: text }), button(label, () => { close(); work(); }), iconButton("times", w.close, close));
        this.notice.hidden = false;
    }

    // The keys' place in the list: only its card is reached by Tab, and keeps its element when it is scrolled away.
    focused(card) {
        if (!card?.run) return;
        const before = this.current;
        this.current = card.run.name;
        this.grid.pinned = this.shown.indexOf(card.run);
        for (const name of [before, this.current]) this.redraw(name);
    }

    key(event) {
        const at = this.shown.findIndex((run) => run.name === this.current), by = MOVES[event.key]?.(this.grid), run = this.shown[at];
        if (event.ctrlKey || event.metaKey || event.altKey || !run) return;
        if (by !== undefined) this.focus(Math.min(this.shown.length - 1, Math.max(0, at + by)));
        else if (event.key === "Delete") act(this, run, "trash");
        else if (event.key === "F2") act(this, run, "rename");
        else return void (event.key === "Backspace" && event.stopPropagation());  // the page deletes nodes with it
        event.preventDefault();
        event.stopPropagation();
    }

    focus(place) {
        if (!this.shown[place]) return;
        this.grid.show(place);
        this.grid.card(place)?.parts.name.focus({ preventScroll: true });
    }
}
