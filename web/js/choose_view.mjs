// A cell of the grid, large: arrows go to its neighbours at the same place of the screen, so that the eye sees what changes.
import { el, openModal } from "./modal.mjs";
import { words } from "./choose_words.mjs";
import { cellUrl } from "./runs_api.mjs";

const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

// The next cell that way, [row, column], within the layout; null where the key is no arrow.
export function neighbour(layout, [row, column], key) {
    const by = ARROWS[key];
    if (!by) return null;
    const clamp = (n, length) => Math.max(0, Math.min(length - 1, n));
    return [clamp(row + by[0], layout.rows.length), clamp(column + by[1], layout.columns.length)];
}

// panel: layout, isChosen(row, column), choose(row, column), focusCell(row, column)
export function openView(panel, row, column) {
    const w = words(), { layout } = panel, ratio = layout.width / layout.height;
    const picture = el("img", { style: "width: 100%; height: 100%; object-fit: contain; display: block" });
    const waiting = el("span", { className: "soft", textContent: w.undrawn, style: "position: absolute; inset: 0; display: grid; place-items: center" });
    const box = el("div", { style: `position: relative; width: min(88vw, calc(70vh * ${ratio})); aspect-ratio: ${ratio}; margin: auto` }, waiting, picture);
    const title = el("b"), prompt = el("div", { className: "soft", style: "height: 1.4em; overflow: hidden; text-overflow: ellipsis; white-space: nowrap" });
    const choose = el("button", { type: "button", className: "strong", onclick: () => pick() });
    const moves = [["ArrowLeft", "←"], ["ArrowUp", "↑"], ["ArrowDown", "↓"], ["ArrowRight", "→"]].map(([key, sign]) => el("button", { type: "button", textContent: sign, onclick: () => move(key) }));
    const { dialog } = openModal(w.look, "viewer");
    Object.assign(dialog.style, { padding: "16px", outline: "none" });
    dialog.append(box, el("div", { style: "display: flex; gap: .5rem; align-items: center; margin: .8em auto 0; min-width: min(88vw, 26rem)" },
        el("div", { style: "flex: 1; min-width: 0" }, title, prompt), ...moves, choose), el("div", { className: "soft", textContent: w.keys, style: "font-size: .85em; margin-top: .5em" }));
    const show = () => {
        const drawn = layout.drawn[row][column], { strength, prompt: text } = layout.columns[column];
        picture.hidden = !drawn;
        waiting.hidden = drawn;
        if (drawn) picture.src = cellUrl(layout.run, layout.keys[row][column]);
        title.textContent = picture.alt = w.at(layout.rows[row].step, strength);
        prompt.textContent = prompt.title = text;
        choose.disabled = !drawn || panel.isChosen(row, column);
        choose.textContent = panel.isChosen(row, column) ? w.isChosen : w.chooseThis;
    };
    const move = (key) => {
        const next = neighbour(panel.layout, [row, column], key);
        if (!next) return false;
        [row, column] = next;
        show();
        return true;
    };
    const pick = async () => {
        if (!layout.drawn[row][column]) return;
        await panel.choose(row, column);
        show();
    };
    dialog.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && !event.composedPath().some((part) => part.localName === "button")) pick();
        else if (!move(event.key)) return;
        event.preventDefault();
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.dispatchEvent(new Event("cancel", { cancelable: true })));
    dialog.addEventListener("gone", () => panel.focusCell(row, column));
    show();
    dialog.focus();
    return { show };
}
