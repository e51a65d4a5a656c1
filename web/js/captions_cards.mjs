// The pictures of the caption editor: one card each, edited in place. The grid holds the focus; cards say who they are by aria-activedescendant.
import { lookUrl, thumbnailUrl } from "./captions_api.mjs";
import { Grid } from "./captions_grid.mjs";
import { words } from "./captions_words.mjs";
import { el } from "./modal.mjs";

const MIN_WIDTH = 13.5;  // rem of a card; its height is the style's
const MAGNIFIER = `<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round"><circle cx="11" cy="11" r="7"/><path d="m20 20-4-4"/></svg>`;
const seen = new Set();  // addresses that have been shown: they come from the browser's cache at once

export class Cards {
    constructor(box, model, folder) {
        Object.assign(this, { box, model, folder, byName: new Map() });
        Object.assign(box, { tabIndex: 0, role: "listbox" });
        box.setAttribute("aria-multiselectable", "true");
        box.setAttribute("aria-label", words().title(folder));
        const rem = parseFloat(getComputedStyle(document.documentElement).fontSize) || 16;
        this.empty = box.appendChild(el("div", { className: "empty", hidden: true }));
        this.grid = new Grid(box, { make: () => this.#make(), fill: (card, place, resting) => this.#fill(card, place, resting), minWidth: MIN_WIDTH * rem,
            height: (window.matchMedia("(max-height: 34rem)").matches ? 13 : 17) * rem });
        model.addEventListener("change", () => this.refresh());
        model.addEventListener("move", () => this.#moved());
        box.addEventListener("keydown", (event) => this.#key(event));
        box.addEventListener("mousedown", (event) => this.#pressed(event));
        box.addEventListener("dblclick", (event) => event.target.closest(".card") && !event.target.closest("button, label, textarea") && this.edit());
    }

    refresh() {
        this.byName = new Map(this.model.rows.map((row) => [row.name, row]));
        this.empty.hidden = this.model.shown.length > 0;
        this.empty.textContent = words().none;
        this.grid.setCount(this.model.shown.length);
        this.#active();
    }

    #make() {
        const card = el("div", { className: "card", role: "option" });
        card.picture = el("img", { alt: "", decoding: "async", draggable: false });
        card.picture.onload = () => { seen.add(card.picture.src); card.problem.hidden = true; };
        card.picture.onerror = () => { card.picture.hidden = true; card.problem.hidden = false; };
        card.problem = el("span", { textContent: words().broken, hidden: true });
        card.box = el("input", { type: "checkbox", tabIndex: -1 });
        const look = el("button", { className: "look", tabIndex: -1, title: words().look, innerHTML: MAGNIFIER, onclick: () => this.look(card.place) });
        card.caption = el("div", { className: "caption" });
        card.label = el("div", { className: "name" });
        card.append(el("div", {}, el("div", { className: "picture" }, card.picture, card.problem), el("label", { className: "mark" }, card.box), look, card.caption, card.label));
        return card;
    }

    #fill(card, place, resting) {
        const { model } = this, row = this.byName.get(model.shown[place]), caption = model.now.get(row.name), selected = model.selected.has(row.name);
        card.place = place;
        card.id = `card${place}`;
        card.className = `card${selected ? " selected" : ""}${place === model.cursor ? " current" : ""}${caption === row.caption ? "" : " edited"}`;
        card.setAttribute("aria-selected", selected);
        card.setAttribute("aria-label", `${row.name}: ${caption || words().noCaption}`);
        card.setAttribute("aria-posinset", place + 1);
        card.setAttribute("aria-setsize", model.shown.length);
        card.box.checked = selected;
        card.caption.textContent = caption || words().noCaption;
        card.caption.title = caption;
        card.caption.classList.toggle("none", !caption);
        card.label.textContent = `${row.name}${row.width ? ` · ${row.width}×${row.height}` : ""}`;
        card.label.title = [card.label.textContent, row.source].filter(Boolean).join("\n");
        const url = thumbnailUrl(this.folder, row, 200), whole = new URL(url, location.href).href;
        if (card.picture.src === whole) return;
        if (!resting && !seen.has(whole)) return card.picture.removeAttribute("src");  // flown past: not worth the server's while
        card.picture.hidden = false;
        card.problem.hidden = true;
        card.picture.src = url;
    }

    #moved() {
        this.grid.show(this.model.cursor);
        this.#active();
    }

    #active() {
        this.box.setAttribute("aria-activedescendant", this.model.shown.length ? `card${this.model.cursor}` : "");
    }

    #pressed(event) {
        const card = event.target.closest(".card");
        if (!card || event.button !== 0 || event.target.closest("textarea, button")) return;
        event.preventDefault();  // the focus stays with the grid
        this.box.focus({ preventScroll: true });
        const many = event.ctrlKey || event.metaKey || event.target.closest("label");
        this.model.goTo(card.place, event.shiftKey ? "range" : many ? "toggle" : "only");
        if (event.target.closest("label")) card.box.addEventListener("click", (clicked) => clicked.preventDefault(), { once: true });
    }

    #key(event) {
        if (event.target !== this.box) return;
        const { model, grid } = this, at = model.cursor, how = event.shiftKey ? "range" : event.ctrlKey || event.metaKey ? "none" : "only";
        const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - grid.columns, ArrowDown: at + grid.columns, Home: 0, End: model.shown.length - 1,
            PageUp: at - grid.page, PageDown: at + grid.page }[event.key];
        if (to !== undefined) model.goTo(to, how);
        else if (event.key === " ") model.goTo(at, "toggle");
        else if (event.key === "Enter" || event.key === "F2") this.edit();
        else if (event.key.toLowerCase() === "l" && how !== "none" && model.current !== undefined) this.look(at);
        else if (event.key.toLowerCase() === "a" && (event.ctrlKey || event.metaKey)) model.select(model.selected.size === model.shown.length ? [] : model.shown);
        else return;
        event.preventDefault();
    }

    // Edit the current picture's caption where it stands. Enter keeps it, Tab goes on to the next, Esc leaves it as it was.
    edit() {
        const { model } = this, name = model.current;
        if (name === undefined) return;
        this.grid.show(model.cursor);
        const card = this.grid.card(model.cursor), text = el("textarea", { value: model.now.get(name), spellcheck: true, "aria-label": name });
        let over = false;
        const end = (keep, move = 0) => {
            if (over) return;
            over = true;
            const place = model.cursor, focused = text.matches(":focus");
            text.remove();
            this.grid.pinned = -1;
            if (keep) model.change([[name, text.value]]);
            if (focused || move) this.box.focus({ preventScroll: true });
            // what no longer fits the filter has gone from its place, and the next has come there
            const next = model.shown[place] === name ? place + move : move > 0 ? place : place + move;
            if (move && next >= 0 && next < model.shown.length) {
                model.goTo(next, "only");
                this.edit();
            }
        };
        text.addEventListener("keydown", (event) => {
            event.stopPropagation();
            if (event.isComposing) return;  // Enter that chooses among Chinese characters
            const move = event.key === "Tab" ? (event.shiftKey ? -1 : 1) : 0, saves = event.key.toLowerCase() === "s" && (event.ctrlKey || event.metaKey);
            if (!move && !saves && event.key !== "Enter" && event.key !== "Escape") return;
            event.preventDefault();
            end(event.key !== "Escape", move);
            if (saves) this.box.dispatchEvent(new Event("save"));
        });
        text.addEventListener("blur", () => end(true));
        text.addEventListener("input", () => text.scrollHeight > text.clientHeight && text.classList.add("long"));
        card.firstChild.append(text);
        this.grid.pinned = model.cursor;
        this.editing = () => end(true);
        text.dispatchEvent(new Event("input"));
        text.focus({ preventScroll: true });
        text.setSelectionRange(text.value.length, text.value.length);
    }

    look(place) {
        const row = this.byName.get(this.model.shown[place]), near = el("div", { className: "near", tabIndex: -1 });
        const close = () => { near.remove(); this.box.focus({ preventScroll: true }); };
        near.append(el("img", { src: lookUrl(this.folder, row), alt: row.name }), el("div", { textContent: this.model.now.get(row.name) }));
        near.addEventListener("click", close);
        near.addEventListener("keydown", (event) => { event.stopPropagation(); event.preventDefault(); close(); });
        this.box.parentElement.append(near);
        near.focus();
    }
}
