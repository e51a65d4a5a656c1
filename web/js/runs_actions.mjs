// What can be done with one run, from the list and from the comparison. `panel` is the list, which is told what has become of the run.
import { renameRun, restoreRun, trashRun } from "./runs_api.mjs";
import { ACTIONS } from "./runs_card.mjs";
import { renamedInGraph, repeatRun, resumeRun, useLora } from "./runs_graph.mjs";
import { words } from "./runs_words.mjs";
import { ask, say } from "./settings.mjs";

const WORK = {
    use: (panel, run) => useLora(run.lora),
    resume: (panel, run) => resumeRun(run.name),
    repeat: (panel, run) => repeatRun(run.name),

    async rename(panel, run) {
        const from = run.name;
        let to = from, name = null;
        while (!name) {  // what was typed stays, to be mended
            to = (await ask(words().rename, words().renameTo, to))?.trim();
            if (!to || to === from) return false;
            name = await renameRun(from, to).then((answer) => answer.name, (error) => say("error", error.message));
        }
        if (panel.chosen.delete(from)) panel.chosen.add(name);
        if (panel.current === from) panel.current = name;
        run.name = name;
        await renamedInGraph(from, name);
        await panel.refresh();
        return true;
    },

    async trash(panel, run) {
        const place = panel.shown.indexOf(run), inside = panel.box.contains(document.activeElement), { name, trashed } = await trashRun(run.name);
        await panel.refresh();
        if (inside) panel.focus(Math.min(place, panel.shown.length - 1));
        panel.tell(words().trashed(name, run.lora), words().undo, () => restore(panel, trashed));
        return true;
    },
};

export async function restore(panel, trashed) {
    panel.notice.hidden = true;
    try {
        const { name } = await restoreRun(trashed);
        say("success", words().restored(name));
    } catch (error) {
        say("error", error.message);
    }
    await panel.refresh();
}

// True where it was done; what hinders it has been said.
export async function act(panel, run, id) {
    const why = ACTIONS.find((action) => action?.id === id).not(run, words());
    try {
        if (why) throw new Error(why);
        return await WORK[id](panel, run);
    } catch (error) {
        say("error", error.message);
        return false;
    }
}
