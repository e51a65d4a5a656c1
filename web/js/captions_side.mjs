// The caption editor's side: search and replace, tags of the selection, tags and how often they occur.
import { words } from "./captions_words.mjs";
import { el } from "./modal.mjs";

const MOST_TAGS = 250;  // shown at once; the filter finds the others

export function side(model, say) {
    const later = (work) => { let due = 0; return () => { cancelAnimationFrame(due); due = requestAnimationFrame(work); }; };
    const aside = el("aside", {}, replacing(model, say, later), tagging(model, say, later), tagList(model, later));
    return aside;
}

function scopes(onchange) {
    const w = words();
    return el("select", { "aria-label": w.scope, onchange }, ...[["all", w.inAll], ["shown", w.inShown], ["selected", w.inSelected]].map(([value, text]) => el("option", { value, textContent: text })));
}

function replacing(model, say, later) {
    const w = words(), look = later(() => preview());
    const find = el("input", { type: "text", placeholder: w.find, "aria-label": w.find, oninput: look }), by = el("input", { type: "text", placeholder: w.by, "aria-label": w.by, oninput: look });
    const regex = el("input", { type: "checkbox", onchange: look }), matchCase = el("input", { type: "checkbox", onchange: look }), scope = scopes(look);
    const said = el("span", { className: "soft", role: "status" }), button = el("button", { type: "submit", textContent: w.replaceNow, disabled: true });
    const found = () => model.replacement(find.value, by.value, scope.value, { regex: regex.checked, matchCase: matchCase.checked });
    const preview = () => {
        by.placeholder = by.title = regex.checked ? w.byRegex : w.by;
        said.className = "soft";
        button.disabled = true;
        try {
            const { places, captions } = found();
            said.textContent = find.value ? w.preview(places, captions.size) : "";
            button.disabled = !places;
        } catch (error) {
            if (!(error instanceof SyntaxError)) throw error;
            said.className = "wrong";
            said.textContent = error.message;
        }
    };
    for (const event of ["change", "move"]) model.addEventListener(event, look);
    const form = el("form", { onsubmit: (event) => { event.preventDefault(); if (!button.disabled) say(w.changed(model.change(found().captions))); } },
        el("section", {}, el("h3", { textContent: w.replace }), find, by,
            el("div", { className: "row" }, el("label", {}, regex, w.regex), el("label", {}, matchCase, w.matchCase)), el("div", { className: "row" }, scope, button), said));
    return form;
}

function tagging(model, say, later) {
    const w = words(), title = el("h3"), tag = el("input", { type: "text", placeholder: w.tag, "aria-label": w.tag, oninput: () => state() });
    const act = (work) => () => { say(w.changed(work(tag.value))); };
    const buttons = [[w.addFront, (value) => model.addTag(value, "selected", true)], [w.addEnd, (value) => model.addTag(value, "selected", false)],
        [w.remove, (value) => model.removeTag(value, "selected")]].map(([text, work]) => el("button", { textContent: text, onclick: act(work) }));
    const state = later(() => {
        title.textContent = w.tagging(model.selected.size);
        for (const button of buttons) button.disabled = !tag.value.trim() || !model.selected.size;
    });
    tag.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.isComposing && !buttons[1].disabled) buttons[1].click(); });
    for (const event of ["change", "move"]) model.addEventListener(event, state);
    state();
    return el("section", {}, title, tag, el("div", { className: "row" }, ...buttons));
}

function tagList(model, later) {
    const w = words(), list = el("div", { className: "tags" }), more = el("span", { className: "soft" }), clear = el("button", { className: "on", onclick: () => model.setFilter({ tag: "" }) });
    const filter = el("input", { type: "search", placeholder: w.tagFilter, "aria-label": w.tagFilter, oninput: () => draw() });
    const draw = later(() => {
        const wanted = filter.value.trim().toLocaleLowerCase(), all = model.tags("all"), tags = all.filter(([tag]) => tag.toLocaleLowerCase().includes(wanted));
        list.replaceChildren(...tags.slice(0, MOST_TAGS).map(([tag, count]) => el("button", { title: tag, className: tag.toLocaleLowerCase() === model.filter.tag.toLocaleLowerCase() ? "on" : "",
            onclick: () => model.setFilter({ tag: model.filter.tag === tag ? "" : tag }) }, tag, el("span", { textContent: count }))));
        more.textContent = all.length ? (tags.length > MOST_TAGS ? w.more(tags.length - MOST_TAGS) : "") : w.noTags;
        clear.hidden = !model.filter.tag;
        clear.textContent = w.clear(model.filter.tag);
    });
    model.addEventListener("change", draw);
    draw();
    return el("section", {}, el("h3", { textContent: w.tags }), filter, clear, list, more);
}
