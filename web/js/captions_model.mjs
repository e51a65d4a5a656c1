// The captions of one folder as they are edited: what was on disk, what is now, undo, selection, filters, tags. Knows no page and no server.

export const tagsOf = (caption) => caption.split(/[,，、]/).map((tag) => tag.trim()).filter(Boolean);
const same = (one, other) => one.toLocaleLowerCase() === other.toLocaleLowerCase();
const oneLine = (text) => text.replace(/\s+/g, " ").trim();

// A finder of plain text or of a regular expression; throws SyntaxError for one that cannot be.
export function finder(search, { regex = false, matchCase = false } = {}) {
    return new RegExp(regex ? search : search.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), matchCase ? "g" : "gi");
}

export class Captions extends EventTarget {
    rows = [];  // {name, caption: as on disk, source, width, height, bytes, version}, in the folder's order
    now = new Map();  // name -> caption as edited
    selected = new Set();
    shown = [];  // the names that the filters leave, in order
    cursor = 0;  // a place in `shown`
    filter = { text: "", tag: "", only: "" };  // only: "" · missing · edited
    #undo = [];
    #redo = [];
    #anchor = 0;

    load(rows) {
        this.rows = rows;
        this.now = new Map(rows.map((row) => [row.name, row.caption]));
        this.#undo = [];
        this.#redo = [];
        this.selected.clear();
        this.refilter();
    }

    get names() { return this.rows.map((row) => row.name); }
    get edits() { return new Map(this.rows.filter((row) => this.now.get(row.name) !== row.caption).map((row) => [row.name, this.now.get(row.name)])); }
    get dirty() { return this.rows.some((row) => this.now.get(row.name) !== row.caption); }
    get canUndo() { return this.#undo.length > 0; }
    get canRedo() { return this.#redo.length > 0; }
    get current() { return this.shown[this.cursor]; }

    // One step that undo takes back whole. Returns how many captions it changed.
    change(captions) {
        const after = new Map([...captions].map(([name, text]) => [name, oneLine(text)]).filter(([name, text]) => this.now.get(name) !== text));
        if (!after.size) return 0;
        this.#undo.push({ before: new Map([...after.keys()].map((name) => [name, this.now.get(name)])), after });
        this.#redo = [];
        this.#put(after);
        return after.size;
    }

    undo() { return this.#step(this.#undo, this.#redo, "before"); }
    redo() { return this.#step(this.#redo, this.#undo, "after"); }

    #step(from, to, which) {
        const step = from.pop();
        if (!step) return 0;
        to.push(step);
        this.#put(step[which]);
        const first = this.shown.findIndex((name) => step.after.has(name));
        if (first >= 0) this.goTo(first, "none");
        return step.after.size;
    }

    #put(captions) {
        for (const [name, text] of captions) if (this.now.has(name)) this.now.set(name, text);
        this.refilter();
    }

    // The captions went to disk as they were when they were sent.
    saved(sent) {
        for (const row of this.rows) if (sent.has(row.name)) row.caption = sent.get(row.name);
        this.refilter();
    }

    // The folder as it is on disk now. What nobody edited here follows it. {both: names that both have changed, theirs are in `rows`; gone: [name, caption] of edits whose picture is gone}
    rebase(rows) {
        const before = new Map(this.rows.map((row) => [row.name, row.caption])), edits = this.edits;
        this.rows = rows;
        this.now = new Map(rows.map((row) => [row.name, edits.get(row.name) ?? row.caption]));
        this.selected = new Set([...this.selected].filter((name) => this.now.has(name)));
        this.refilter();
        const both = rows.filter((row) => edits.has(row.name) && before.get(row.name) !== row.caption && edits.get(row.name) !== row.caption).map((row) => row.name);
        return { both, gone: [...edits].filter(([name]) => !this.now.has(name)) };
    }

    takeTheirs(names) {
        return this.change(this.rows.filter((row) => names.includes(row.name)).map((row) => [row.name, row.caption]));
    }

    setFilter(changes) {
        Object.assign(this.filter, changes);
        const current = this.current;
        this.refilter();
        this.goTo(Math.max(0, this.shown.indexOf(current)), "none");
    }

    refilter() {
        const { text, tag, only } = this.filter, wanted = text.toLocaleLowerCase();
        this.shown = this.rows.filter((row) => {
            const caption = this.now.get(row.name);
            if (only === "missing" && caption) return false;
            if (only === "edited" && caption === row.caption) return false;
            if (tag && !tagsOf(caption).some((one) => same(one, tag))) return false;
            return !wanted || caption.toLocaleLowerCase().includes(wanted) || row.name.toLocaleLowerCase().includes(wanted);
        }).map((row) => row.name);
        this.cursor = Math.min(this.cursor, Math.max(0, this.shown.length - 1));
        this.dispatchEvent(new Event("change"));
    }

    // how: only (select it alone) · toggle · range (from where the last one was) · none (move, and leave the selection)
    goTo(place, how = "only") {
        this.cursor = Math.max(0, Math.min(place, this.shown.length - 1));
        const name = this.current;
        if (name === undefined) return;
        if (how === "only") this.selected = new Set([name]);
        if (how === "toggle") this.selected.has(name) ? this.selected.delete(name) : this.selected.add(name);
        if (how === "range") {
            const [first, last] = [this.#anchor, this.cursor].sort((a, b) => a - b);
            this.selected = new Set(this.shown.slice(first, last + 1));
        } else {
            this.#anchor = this.cursor;
        }
        this.dispatchEvent(new Event("move"));
    }

    select(names) {
        this.selected = new Set(names);
        this.dispatchEvent(new Event("move"));
    }

    // where: selected · shown · all
    scope(where) {
        return where === "selected" ? this.names.filter((name) => this.selected.has(name)) : where === "shown" ? this.shown : this.names;
    }

    // {places, captions: Map of the names that would change}. In a regular expression's replacement $1 and $& stand for what was found.
    replacement(search, by, where, options) {
        const captions = new Map();
        let places = 0;
        if (!search) return { places, captions };
        const wanted = finder(search, options);
        for (const name of this.scope(where)) {
            const text = this.now.get(name), found = text.match(wanted)?.length ?? 0;
            if (!found) continue;
            places += found;
            captions.set(name, text.replace(wanted, options.regex ? by : () => by));
        }
        return { places, captions };
    }

    addTag(tag, where, atFront) {
        const added = tagsOf(tag), captions = new Map();
        for (const name of this.scope(where)) {
            const text = this.now.get(name), has = tagsOf(text), fresh = added.filter((one) => !has.some((other) => same(one, other)));
            if (fresh.length) captions.set(name, (atFront ? [...fresh, text] : [text.replace(/[\s,，、]+$/, ""), ...fresh]).filter(Boolean).join(", "));
        }
        return this.change(captions);
    }

    removeTag(tag, where) {
        const gone = tagsOf(tag), captions = new Map();
        for (const name of this.scope(where)) {
            const has = tagsOf(this.now.get(name)), left = has.filter((one) => !gone.some((other) => same(one, other)));
            if (left.length < has.length) captions.set(name, left.join(", "));
        }
        return this.change(captions);
    }

    // [[tag as it is first spelled, in how many captions]], the commonest first
    tags(where) {
        const counts = new Map();
        for (const name of this.scope(where)) {
            for (const key of new Map(tagsOf(this.now.get(name)).map((tag) => [tag.toLocaleLowerCase(), tag]))) {
                const [small, tag] = key, count = counts.get(small) ?? [tag, 0];
                count[1] += 1;
                counts.set(small, count);
            }
        }
        return [...counts.values()].sort((one, other) => other[1] - one[1] || one[0].localeCompare(other[0]));
    }
}
