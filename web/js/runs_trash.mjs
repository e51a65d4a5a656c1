// What lies in the trash: back among the runs, or gone for good after a question.
import { el, openModal } from "./modal.mjs";
import { restore } from "./runs_actions.mjs";
import { emptyTrash } from "./runs_api.mjs";
import { words } from "./runs_words.mjs";
import { say, sure } from "./settings.mjs";
import { size } from "./units.mjs";

export function openTrash(panel) {
    const w = words(), { dialog, close } = openModal(w.trashTitle, "small"), list = el("ul", { className: "list" });
    const draw = () => {
        list.replaceChildren(...panel.trash.map((run) => el("li", {}, el("b", { textContent: run.name }), el("div", { className: "row" },
            el("span", { className: "soft", textContent: size(run.bytes), style: "flex: 1" }),
            el("button", { textContent: w.restore, style: "flex: none", onclick: () => back(run.name) })))));
        if (!panel.trash.length) close();
    };
    const back = async (name) => {
        await restore(panel, name);
        draw();
    };
    const empty = async () => {
        const bytes = panel.trash.reduce((sum, run) => sum + run.bytes, 0), count = panel.trash.length;
        close();  // the page asks in a dialog of its own, which would lie below
        if (!(await sure(w.sureEmpty(count, size(bytes))))) return;
        await emptyTrash().then(() => say("success", w.emptied), (error) => say("error", error.message));
        panel.notice.hidden = true;
        await panel.refresh();
    };
    dialog.append(el("div", { className: "body" }, el("h2", { textContent: w.trashTitle }), list,
        el("div", { className: "right" },
            el("button", { textContent: w.empty, onclick: empty }), el("button", { className: "strong", textContent: w.close, onclick: close }))));
    draw();
}
