// The report on what Load Dataset holds, drawn in the node: before anything runs as the server answers for its settings, then as the run says.
import { applyFix, fixText, mendable } from "./fix.mjs";
import { here, trainersOf, valuesOf } from "./graph.mjs";
import { living, watching } from "./node.mjs";
import { draw, tell } from "./report.mjs";
import { addPlace, whenRun } from "./report_place.mjs";
import { words } from "./report_words.mjs";
import { get } from "./server.mjs";

const LOOK = 300, REST = 500, AGAIN = 10_000;  // ms; a refusal is asked about again, for a server may be gone for a moment
const MANY = 1000;  // pictures that are measured without being asked to; more where a training is to come of them
const REPORT = ["folder", "resolution", "min_size", "caption_source", "trigger_word", "repeats", "flip", "buckets", "masks", "more_resolutions", "upscale"];

export const ask = (values, batch = 1, signal = undefined) => get("report", { ...values, batch_size: batch }, signal);

// What the report depends on, of a Load Dataset's place; null where it is not to be made.
export const reportSettings = (place) => (valuesOf(place, ["check_pictures"]).check_pictures === false ? null : valuesOf(place, REPORT));

const ofRuns = new WeakMap();  // a run's report -> the settings when it came; a workflow that is opened again brings it along
const shown = new WeakMap();  // node -> {report, and of which settings and which state of the folder}

// What a node shows, where that is of its settings and its folder as they are.
function standing(node, values) {
    const now = shown.get(node), fingerprint = node.loomListing?.fingerprint;
    if (now?.of !== JSON.stringify(values)) return null;
    now.fingerprint ??= fingerprint;  // a run's report may be there before the folder is listed
    return now.fingerprint === fingerprint ? now : null;
}

export const reportOf = (node, values) => standing(node, values)?.report ?? null;

export function addReport(node) {
    const element = (node.loomReport = addPlace(node));
    let seen = "", since = 0, asking = null, wanted = "", offered = false, folder = null, wrong = 0;
    const show = (report, values, ...inside) => {
        shown.set(node, { of: JSON.stringify(values), fingerprint: node.loomListing?.fingerprint, report });
        [offered, wrong] = [false, 0];
        element.classList.remove("loom-old");
        if (report) draw(element, report);
        else tell(element, ...inside);
        node.loomMark?.(report);
    };
    const drop = () => {
        asking?.abort();  // nobody waits for it any more
        asking = null;
    };
    const offer = (chosen, values, total) => {
        const check = () => {
            wanted = chosen;
            look();
        };
        show(null, values, words().many(total), { button: [words().check, check] });
        offered = true;
    };
    const look = async () => {
        const place = here(node), values = reportSettings(place), { folder: chosen, caption_source: source = "auto" } = valuesOf(place, ["folder", "caption_source"]);
        const listing = node.loomListing, state = JSON.stringify([values, listing?.fingerprint]);
        if (state !== seen) {
            drop();
            [seen, since] = [state, Date.now()];
        }
        const many = listing?.total > MANY && wanted !== chosen && !trainersOf(node, "dataset").length;
        const again = offered ? !many : wrong && Date.now() - wrong > AGAIN;
        if (asking || (standing(node, values) && !again)) return;
        if (!values) return show(null, values, words().unchecked);
        if (!chosen) return show(null, values, words().none);
        if (listing?.folder !== chosen || listing.source !== source || Date.now() - since < REST) return;
        if (listing.error) return show(null, values);  // which stands above already
        if (many) return offer(chosen, values, listing.total);
        const mine = (asking = new AbortController());
        if (folder !== chosen) tell(element, words().checking);
        else element.classList.add("loom-old");  // what is drawn is of other settings
        const [report, error] = await ask(values, 1, mine.signal).then((answer) => [answer, null], (refused) => [null, refused]);
        if (asking !== mine) return;
        [asking, folder] = [null, chosen];
        const way = error?.fix, button = mendable(node, way) ? [fixText(node, way)[0], () => applyFix(node, way)] : null;
        show(report, values, error?.message, { error: true, button });
        wrong = error ? Date.now() : 0;
    };
    whenRun(node, (report) => {
        const values = reportSettings(here(node)), now = JSON.stringify(values);
        if (!ofRuns.has(report)) ofRuns.set(report, now);
        if (ofRuns.get(report) !== now || values?.folder?.split("/").at(-1) !== report.folder || values.resolution !== report.resolution) return;
        drop();
        folder = values.folder;
        show(report, values);
    });
    living(node, () => {
        const stop = watching(element, () => node.graph && look(), LOOK);
        return () => {
            stop();
            drop();
        };
    });
}
