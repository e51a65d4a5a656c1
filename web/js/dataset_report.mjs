// The report on what Load Dataset holds, drawn in the node: before anything runs as the server answers for its settings, then as the run says.
import { applyFix, fixText, mendable } from "./fix.mjs";
import { computed, here, trainersOf, valuesOf } from "./graph.mjs";
import { living, watching } from "./node.mjs";
import { draw, tell } from "./report.mjs";
import { addPlace, whenRun } from "./report_place.mjs";
import { words } from "./report_words.mjs";
import { get } from "./server.mjs";
import { widgetOf } from "./widgets.mjs";

const LOOK = 300, REST = 500, AGAIN = 10_000;  // ms; a refusal is asked about again, for a server may be gone for a moment
const MANY = 1000;  // pictures that are measured without being asked to; more where a training is to come of them
const REPORT = ["folder", "resolution", "min_size", "caption_source", "trigger_word", "repeats", "flip", "buckets", "masks", "more_resolutions", "upscale"];

export const ask = (values, batch = 1, signal = undefined) => get("report", { ...values, batch_size: batch }, signal);

// What of a Load Dataset's place the report depends on and nobody knows before a run.
export const unknown = (place) => REPORT.filter((name) => computed(place, name));

// All else that it depends on; null where it is not to be made.
export function reportSettings(place) {
    const open = unknown(place);
    return valuesOf(place, ["check_pictures"]).check_pictures === false ? null : valuesOf(place, REPORT.filter((name) => !open.includes(name)));
}

const shown = new WeakMap();  // node -> {report, and of which settings and which state of the folder}

// What a node shows, where that is of its settings and its folder as they are.
function standing(node, values) {
    const now = shown.get(node);
    return now && now.of === JSON.stringify(values) && now.fingerprint === node.loomListing?.fingerprint ? now : null;
}

// Whether a run's report is on what its node is set to now: a workflow that is opened again brings old ones along, and settings change while it runs.
const isOf = (made, values) => Object.entries(values).every(([name, value]) => String(value) === String(made[name]));

export const reportOf = (node, values) => standing(node, values)?.report ?? null;

// Whether the node will say it by itself, soon: it is on the page with these settings, and has nothing to show yet.
export const awaited = (node, values) => Boolean(node.loomReport?.isConnected) && !standing(node, values) && JSON.stringify(reportSettings(here(node))) === JSON.stringify(values);

export function addReport(node) {
    const element = (node.loomReport = addPlace(node));
    let seen = "", since = 0, asking = null, wanted = "", offered = false, folder = null, wrong = 0, refused = "";
    const show = (report, values, ...inside) => {
        const at = values?.folder === undefined ? undefined : report?.of?.fingerprint;  // a folder that is computed is not the one that is listed
        shown.set(node, { of: JSON.stringify(values), fingerprint: at ?? node.loomListing?.fingerprint, report });
        [offered, wrong, refused] = [false, 0, ""];
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
        const open = unknown(place);
        if (open.length) return show(null, values, words().computed(open.map((name) => widgetOf(node, name)?.label || name)));
        if (listing?.folder !== chosen || listing.source !== source || Date.now() - since < REST) return;
        if (listing.error) return show(null, values);  // which stands above already
        if (many) return offer(chosen, values, listing.total);
        const mine = (asking = new AbortController());
        if (folder !== chosen) tell(element, words().checking);
        else if (!again) element.classList.add("loom-old");  // what is drawn is of other settings
        const [report, error] = await ask(values, 1, mine.signal).then((answer) => [answer, null], (refused) => [null, refused]);
        if (asking !== mine) return;
        [asking, folder] = [null, chosen];
        const way = error?.fix, button = mendable(node, way) ? [fixText(node, way)[0], () => applyFix(node, way)] : null;
        const why = error ? JSON.stringify([error.message, button?.[0]]) : "";
        if (!why || why !== refused || !again) show(report, values, error?.message, { error: true, button });  // else it stands there, and the button may have the focus
        [wrong, refused] = [error ? Date.now() : 0, why];
    };
    whenRun(node, (report) => {
        const values = reportSettings(here(node));
        if (!values || !isOf(report.of ?? {}, values)) return;
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
