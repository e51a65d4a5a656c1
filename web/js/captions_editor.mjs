// The caption editor: a large dialog over one folder. Saves only onto the state of the folder that it shows, and loses no one's edits.
import * as server from "./captions_api.mjs";
import { Cards } from "./captions_cards.mjs";
import { Captions } from "./captions_model.mjs";
import { side } from "./captions_side.mjs";
import { words } from "./captions_words.mjs";
import { el, openModal } from "./modal.mjs";
import { translated } from "./translated.mjs";

const KEPT = ["metadata.csv", "sidecar .txt"];

// Resolves when the editor is closed: whether anything was saved. `at` is the name of the picture to begin with; `replaces` says that AutoCaption will write over it.
export function openEditor({ folder, source, at, replaces }) {
    return new Promise((resolve) => new Editor(folder, source, at, replaces, resolve));
}

class Editor {
    model = new Captions();
    fingerprint = "";
    anySaved = false;
    saving = false;

    constructor(folder, source, at, replaces, done) {
        Object.assign(this, { folder, source, replaces, w: words() });
        const { dialog, close } = openModal(this.w.title(folder), "editor", () => this.mayLeave());
        this.dialog = dialog;
        this.close = close;
        this.#build();
        dialog.addEventListener("keydown", (event) => this.#key(event));
        dialog.addEventListener("gone", () => {
            this.cards.grid.destroy();
            window.removeEventListener("beforeunload", this.#warn);
            done(this.anySaved);
        });
        window.addEventListener("beforeunload", this.#warn);
        for (const event of ["change", "move"]) this.model.addEventListener(event, () => this.#state());
        this.load(at);
    }

    #build() {
        const { w, model } = this, button = (text, onclick, className = "") => el("button", { textContent: text, onclick, className });
        this.counts = el("span", { className: "soft", textContent: w.loading });
        this.undoButton = button(w.undo, () => this.undo());
        this.redoButton = button(w.redo, () => this.redo());
        this.saveAs = el("select", { "aria-label": w.saveAs, title: w.saveAs }, ...KEPT.map((value) => el("option", { value, textContent: value })));
        this.saveButton = button(w.save, () => this.save(), "strong");
        const header = el("header", {}, el("h2", { textContent: w.title(this.folder) }), this.counts, this.undoButton, this.redoButton, this.saveAs, this.saveButton,
            el("button", { className: "bare", textContent: "✕", title: w.close, "aria-label": w.close, onclick: async () => (await this.mayLeave()) && this.close() }));
        this.search = el("input", { type: "search", placeholder: w.search, "aria-label": w.search, oninput: () => model.setFilter({ text: this.search.value.trim() }) });
        this.only = [["", w.all], ["missing", w.missing], ["edited", w.edited]].map(([only, text]) => el("button", { textContent: text, onclick: () => model.setFilter({ only }), value: only }));
        const grid = el("div", { className: "grid" });
        const toggle = button(w.toggle, () => { toggle.setAttribute("aria-expanded", this.dialog.classList.toggle("tools")); toggle.classList.toggle("on"); }, "toggle");
        this.status = el("span", { role: "status" });
        this.notices = el("div");
        this.dialog.append(header, el("div", { className: "main" },
            el("div", { className: "left" }, el("div", { className: "filters" }, this.search, ...this.only, toggle), grid), side(model, (text) => this.say(text))),
        this.notices, el("footer", {}, this.status, el("span", { className: "keys", textContent: w.keys })));
        this.cards = new Cards(grid, model, this.folder);
        grid.addEventListener("save", () => this.save());
        grid.focus();
    }

    #warn = (event) => { if (this.model.dirty) event.preventDefault(); };

    async load(at) {
        try {
            const whole = await server.listAll(this.folder, this.source, (first) => { this.model.load([...first.pictures]); });
            this.model.load(whole.pictures);
            this.fingerprint = whole.fingerprint;
            this.saveAs.value = whole.save_as;
            if (whole.warnings.length) this.say(whole.warnings.map(translated).join(" "));
            const made = await server.made(this.folder), unsaved = this.model.change(Object.entries(made).filter(([name]) => this.model.now.has(name)));
            if (unsaved) this.notice(this.w.made(unsaved));
            if (at) this.model.goTo(Math.max(0, this.model.shown.indexOf(at)), "only");
        } catch (error) {
            this.counts.textContent = "";
            this.notice(error.message, true);
        }
    }

    #state() {
        const { model, w } = this, edits = model.edits.size;
        this.counts.textContent = w.counts(model.shown.length, model.rows.length, model.selected.size);
        this.undoButton.disabled = !model.canUndo;
        this.redoButton.disabled = !model.canRedo;
        this.saveButton.disabled = this.saving || !edits || !this.fingerprint;
        this.saveButton.textContent = edits ? w.saveN(edits) : w.save;
        if (this.dialog.getRootNode().activeElement?.disabled) this.cards.box.focus();  // or keys would go nowhere
        for (const button of this.only) {
            button.classList.toggle("on", button.value === model.filter.only);
            button.setAttribute("aria-pressed", button.value === model.filter.only);
        }
    }

    #key(event) {
        const command = event.ctrlKey || event.metaKey, key = event.key.toLowerCase(), typing = event.target.matches?.("input[type=text], input[type=search], textarea");
        if (event.key === "Escape") {
            event.preventDefault();  // or a second Esc would close the dialog unasked
            if (this.model.filter.tag || this.model.filter.text || this.model.filter.only) {
                this.search.value = "";
                this.model.setFilter({ text: "", tag: "", only: "" });
                this.cards.box.focus();
            } else {
                this.mayLeave().then((may) => may && this.close());
            }
        } else if (command && key === "s") {
            event.preventDefault();
            this.save();
        } else if (command && key === "f") {
            event.preventDefault();
            this.search.focus();
        } else if (command && !typing && key === "z") {
            event.preventDefault();
            event.shiftKey ? this.redo() : this.undo();
        } else if (command && !typing && key === "y") {
            event.preventDefault();
            this.redo();
        }
    }

    undo() { const n = this.model.undo(); this.say(n ? this.w.changed(n) : this.w.nothingToUndo); }
    redo() { const n = this.model.redo(); this.say(n ? this.w.changed(n) : this.w.nothingToUndo); }
    say(text) { this.status.textContent = text; }

    // One notice at a time, above the last line. actions: [[text, what it does]]
    notice(text, bad = false, actions = []) {
        const notice = el("div", { className: `notice${bad ? " bad" : ""}`, role: "alert" }, el("span", { textContent: text }));
        for (const [label, work] of [...actions, ["✕", () => {}]]) notice.append(el("button", { textContent: label, "aria-label": label === "✕" ? this.w.close : label, onclick: () => { notice.remove(); work(); } }));
        this.notices.replaceChildren(notice);
    }

    async save() {
        const { model, w } = this, sent = model.edits;
        if (this.saving) return false;
        if (!sent.size || !this.fingerprint) { this.say(w.nothingToSave); return true; }
        this.saving = true;
        this.#state();
        try {
            const answer = await server.save(this.folder, this.source, this.fingerprint, this.saveAs.value, sent);
            this.fingerprint = answer.fingerprint;
            model.saved(sent);
            this.anySaved = true;
            this.notices.replaceChildren();
            const report = translated(answer.report).split("\n");
            this.say(report[0]);
            const warnings = [...report.slice(1), ...(this.replaces?.() ? [w.willReplace] : [])];
            if (warnings.length) this.notice(warnings.join("\n"));
            return true;
        } catch (error) {
            if (server.changed(error)) await this.#merge();
            else this.notice(error.message, true);
            return false;
        } finally {
            this.saving = false;
            this.#state();
        }
    }

    // Someone else has written: what we did not touch follows the disk, what we did stays ours unless told otherwise.
    async #merge() {
        try {
            const { model, w } = this, before = new Map(model.rows.map((row) => [row.name, row.caption])), whole = await server.listAll(this.folder, this.source);
            const { both, gone } = model.rebase(whole.pictures), theirs = whole.pictures.filter((row) => before.get(row.name) !== row.caption).length - both.length;
            this.fingerprint = whole.fingerprint;
            const onDisk = model.rows.filter((row) => both.includes(row.name)).map((row) => w.onDisk(row.name, row.caption));
            const lost = gone.map(([name, caption]) => w.goneWith(name, caption));
            this.notice([w.conflict(theirs, both.length), ...onDisk, ...lost].join("\n"), false, both.length ? [[w.takeTheirs(both.length), () => model.takeTheirs(both)]] : []);
        } catch (error) {
            this.notice(error.message, true);
        }
    }

    mayLeave() {
        this.cards.editing?.();
        if (!this.model.dirty) return Promise.resolve(true);
        return new Promise((resolve) => {
            const { w } = this;
            this.notice(w.unsaved(this.model.edits.size), false, [[w.saveN(this.model.edits.size), async () => resolve(await this.save())], [w.discard, () => resolve(true)], [w.stay, () => resolve(false)]]);
            this.notices.querySelector("button").focus();
        });
    }
}
