// What Choose Checkpoint shows: its run's saved steps as rows, strengths or prompts as columns, each cell as soon as it is drawn. A click chooses.
import { app } from "../../scripts/app.js";
import { chooseStyle } from "./choose_style.mjs";
import { neighbour, openView } from "./choose_view.mjs";
import { words } from "./choose_words.mjs";
import { here, valueOf } from "./graph.mjs";
import { el } from "./modal.mjs";
import { refusals } from "./node.mjs";
import { cellUrl, gridOf, keepCheckpoint } from "./runs_api.mjs";
import { say } from "./settings.mjs";
import { translated } from "./translated.mjs";
import { setValue, widgetOf } from "./widgets.mjs";

export const HEIGHT = 320;  // pixels of the graph that the grid keeps, whatever it shows
const LOOK = '<svg viewBox="0 0 16 16" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round"><circle cx="7" cy="7" r="4.5"/><path d="m10.5 10.5 4 4"/></svg>';

// "run/file @ strength", as nodes/choose.py reads it.
function readChoice(text) {
    const found = /^([^/]+)\/(.+)@([^@]+)$/.exec(text ?? "");
    return found && { run: found[1].trim(), file: found[2].trim(), strength: Number(found[3]) };
}

// So that a choice can be undone, and is there after a reload.
function noteChange() {
    const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
    (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

export class GridPanel {
    constructor(node) {
        chooseStyle();
        const w = words();
        this.node = node;
        this.title = el("b");
        this.numbers = el("span", { className: "numbers" });
        this.bar = el("i");
        this.cells = el("div", { className: "cells", role: "grid", "aria-label": w.choose });
        this.board = el("div", { className: "board empty" }, this.cells);
        this.board.dataset.hint = w.empty;
        this.board.dataset.captureWheel = "true";
        this.says = el("div", { className: "says" });
        this.clear = el("button", { type: "button", textContent: w.clear, title: w.clearTip, hidden: true, onclick: () => this.setChoice("") });
        this.element = el("div", { className: "loom-choose" }, el("div", { className: "inside" }, el("div", { className: "head" }, this.title, this.numbers), el("div", { className: "done" }, this.bar),
            this.board, el("div", { className: "foot" }, this.says, this.clear)));
        this.element.style.setProperty("--loom-height", `${HEIGHT}px`);
        this.board.addEventListener("keydown", (event) => this.key(event));
        this.layout = null;
        this.state = {};
        this.at = [0, 0];  // where the keys are
        this.asked = "";  // what the texts depend on
        this.render();
    }

    get widget() { return widgetOf(this.node, "choice"); }

    get chosen() { return valueOf(here(this.node), "choice") ?? ""; }

    get choice() { return readChoice(this.chosen); }

    // What the server says of a drawing: as an event, or asked for later. True where the layout has to be fetched.
    take(state) {
        const { layout, ...facts } = state;
        this.state = facts;
        if (layout) this.lay(layout);
        this.render();
        return this.layout?.id !== state.grid || this.layout.run !== state.run;
    }

    // What the node's widgets say may have changed.
    look() {
        const at = here(this.node), asked = JSON.stringify([["choice", "compare", "prompts"].map((name) => valueOf(at, name)), refusals(this.node)]), run = widgetOf(this.node, "run");
        if (run) run.disabled = this.node.inputs?.find((input) => input.name === "path")?.link != null;
        if (asked !== this.asked) this.render();
        this.asked = asked;
    }

    recovered() {
        if (!this.state.error) return;
        this.state = { ...this.state, status: "finished", error: "" };
        this.render();
    }

    // A grid as it lies on disk, the newest of the run without an id. False where it is gone.
    async load(run, id) {
        try {
            const found = await gridOf(run, id);
            if (this.state.grid && this.state.grid !== found.id) return true;  // another has begun meanwhile
            this.lay(found);
            this.render();
            return true;
        } catch (error) {
            return error.status !== 400;  // no answer says nothing
        }
    }

    renamed(from, to) {
        if (this.state.run === from) this.state = { ...this.state, run: to, handed: this.state.handed && { ...this.state.handed, run: to } };
        if (this.layout?.run === from) this.layout.run = to;
        this.render();
    }

    drawn({ row, column, done, total }) {
        Object.assign(this.state, { done, total });
        this.layout.drawn[row][column] = true;
        this.show(row, column);
        this.render();
    }

    lay(layout) {
        const same = JSON.stringify([this.layout?.run, this.layout?.keys]) === JSON.stringify([layout.run, layout.keys]);
        if (same) layout.drawn = layout.drawn.map((row, r) => row.map((drawn, c) => drawn || this.layout.drawn[r][c]));  // a cell may have come while it was asked for
        this.layout = layout;
        if (!same) this.build();
        layout.rows.forEach((_, row) => layout.columns.forEach((_, column) => this.show(row, column)));
    }

    build() {
        const w = words(), { rows, columns, compare, width, height } = this.layout;
        this.at = [rows.length - 1, columns.length - 1];
        this.cells.style.setProperty("--columns", columns.length);
        this.cells.style.setProperty("--aspect", width / height);
        const head = el("div", { className: "row", role: "row" }, el("div", { className: "across corner", role: "columnheader", textContent: `${w.step} \\ ${compare === "prompts" ? w.prompt : w.strength}` }),
            ...columns.map((column) => el("div", { className: "across", role: "columnheader", textContent: compare === "prompts" ? column.prompt : column.strength, title: `${column.prompt} · ${w.strength} ${column.strength}` })));
        this.places = rows.map((row, r) => columns.map((column, c) => {
            const pick = el("button", { type: "button", className: "pick", tabIndex: -1, onclick: () => this.choose(r, c), onfocus: () => this.move(r, c) });
            const look = el("button", { type: "button", className: "look", tabIndex: -1, title: w.lookTip, "aria-label": w.look, onclick: () => this.enlarge(r, c) });
            look.innerHTML = LOOK;
            return el("div", { className: "cell", role: "gridcell" }, pick, look);
        }));
        const down = (row) => {
            const marks = [[row.kind === "final", "final"], [row.best, "best"]].filter(([is]) => is).map(([, kind]) => el("small", { textContent: w.kinds[kind], title: w[`${kind}Tip`] }));
            return el("div", { className: "down", role: "rowheader", title: row.file }, el("span", { textContent: row.step }), ...marks);
        };
        this.cells.replaceChildren(head, ...rows.map((row, r) => el("div", { className: "row", role: "row" }, down(row), ...this.places[r])));
        this.board.classList.remove("empty");
        this.move(...this.at);
    }

    show(row, column) {
        const [pick, look] = this.places[row][column].children, drawn = this.layout.drawn[row][column], w = words();
        const { strength, prompt } = this.layout.columns[column], url = cellUrl(this.layout.run, this.layout.keys[row][column]);
        pick.title = `${w.at(this.layout.rows[row].step, strength)} · ${prompt}`;
        pick.setAttribute("aria-label", drawn ? pick.title : `${pick.title}, ${w.undrawn}`);
        pick.setAttribute("aria-disabled", String(!drawn));
        look.hidden = !drawn;
        if (drawn && !pick.firstElementChild) pick.append(el("img", { src: url, alt: "", decoding: "async", draggable: false }));
    }

    is(choice, row, column) {
        const { rows, columns, run } = this.layout;
        return Boolean(choice) && choice.run === run && choice.file === rows[row].file && choice.strength === columns[column].strength;
    }

    isChosen(row, column) { return this.is(this.choice, row, column); }

    render() {
        const w = words(), s = this.state, { layout, choice } = this;
        const done = layout ? layout.drawn.flat().filter(Boolean).length : 0, total = layout ? layout.drawn.flat().length : 0;
        this.element.dataset.status = s.status ?? "";
        this.title.textContent = (layout ? w[s.status] ?? w.finished : w.choose) + (layout ? ` · ${layout.run}` : "");
        this.title.title = this.title.textContent;
        this.numbers.textContent = total ? `${done} / ${total}` : "";
        this.bar.style.width = total ? `${(100 * done) / total}%` : "0";
        const handed = s.handed && !s.chosen ? s.handed : null;
        this.places?.forEach((row, r) => row.forEach((cell, c) => {
            cell.classList.toggle("chosen", this.isChosen(r, c));
            cell.classList.toggle("handed", !choice && this.is(handed, r, c));
            cell.setAttribute("aria-selected", String(this.isChosen(r, c)));
        }));
        this.clear.hidden = !this.chosen;
        this.tell(w, s, layout, choice);
    }

    tell(w, s, layout, choice) {
        const stepOf = (file) => layout?.rows.find((row) => row.file === file)?.step, lines = [];
        for (const refused of refusals(this.node)) lines.push(["error", refused]);
        if (s.error) lines.push(["error", s.error]);
        if (choice && layout && choice.run === layout.run && stepOf(choice.file) !== undefined) {
            const goesOn = s.chosen && s.handed && s.handed.file === choice.file && s.handed.strength === choice.strength;
            const outside = layout.compare === "strengths" && !layout.columns.some((column) => column.strength === choice.strength) ? ` (${w.notDrawn})` : "";
            lines.push(["", `${w.chosen(w.at(stepOf(choice.file), choice.strength))}${outside} · ${goesOn ? w.goesOn : w.pressRun}`]);
        } else if (this.chosen) lines.push(["warning", w.elsewhere(this.chosen)]);
        else if (s.chosen) lines.push(["soft", w.cleared]);
        else if (s.handed && stepOf(s.handed.file) !== undefined) lines.push(["soft", w.none(w.at(stepOf(s.handed.file), s.handed.strength))]);
        const compare = valueOf(here(this.node), "compare"), prompts = new Set((valueOf(here(this.node), "prompts") ?? "").split("\n").map((line) => line.trim()).filter(Boolean)).size;
        if (layout && s.status !== "drawing" && compare && layout.compare !== compare) lines.push(["soft", w.other(compare)]);
        else if (layout && compare === "strengths" && prompts > 1) lines.push(["soft", w.first(prompts)]);
        if (layout?.compare === "prompts" && (valueOf(here(this.node), "strengths") ?? "").split(/[,，、;；\s]+/).filter(Boolean).length > 1) lines.push(["soft", w.drawnAt(layout.columns[0].strength)]);
        for (const note of s.notes ?? []) lines.push(["warning", w.notes[note.id]?.(note) ?? note.text]);
        const key = JSON.stringify(lines);
        if (key === this.told) return;  // a text that is being read or marked stays
        this.told = key;
        this.says.replaceChildren(...lines.map(([kind, text]) => el("p", { className: kind, textContent: translated(text) })));
    }

    setChoice(text) {
        if (!setValue(this.node, "choice", text).there) return;
        noteChange();
        this.render();
    }

    // The cell's LoRA becomes the run's result, and the node's at the cell's strength from the next run on.
    async choose(row, column) {
        const { layout } = this;
        this.move(row, column);
        if (!layout.drawn[row][column] || this.isChosen(row, column)) return;
        const { file } = layout.rows[row], before = this.chosen;
        this.setChoice(`${layout.run}/${file} @ ${layout.columns[column].strength}`);
        const set = this.chosen;
        try {
            say("success", words().kept((await keepCheckpoint(layout.run, file)).lora));
        } catch (error) {
            if (this.chosen === set) this.setChoice(before);
            say("error", error.message);
        }
    }

    enlarge(row, column) {
        this.move(row, column);
        openView(this, row, column);
    }

    move(row, column) {  // one cell at a time is on the way of Tab
        const [r, c] = this.at;
        if (this.places[r]?.[c]) this.places[r][c].firstElementChild.tabIndex = -1;
        this.at = [row, column];
        this.places[row][column].firstElementChild.tabIndex = 0;
    }

    focusCell(row, column) {
        if (!this.places?.[row]?.[column]) return;
        this.move(row, column);
        this.places[row][column].firstElementChild.focus({ preventScroll: true });
        this.places[row][column].scrollIntoView({ block: "nearest", inline: "nearest" });
    }

    key(event) {
        if (!this.layout) return;
        const next = neighbour(this.layout, this.at, event.key);
        if (next) this.focusCell(...next);
        else if (event.key === " ") this.enlarge(...this.at);
        else if (event.key !== "Enter" || event.ctrlKey) return;  // Enter is the button's own
        if (next || event.key === " ") event.preventDefault();
        event.stopPropagation();  // the canvas has its own use for them
    }
}
