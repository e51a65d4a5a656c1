// From a report, as trainer/data/report.py gives it, to elements. Names come from users' files: they are set as text, never as HTML.
import { el } from "./modal.mjs";
import { found, said, words } from "./report_words.mjs";
import { chinese } from "./settings.mjs";
import { addStyle, FONT, THEME } from "./theme.mjs";
import { translated } from "./translated.mjs";

const STYLE = `
.loom-place { position: relative; height: 100%; min-height: 260px; }
.loom-report { ${THEME}
    position: absolute; inset: 4px 0 0; box-sizing: border-box; overflow-y: auto; padding: 8px 10px; border: 1px solid var(--line); border-radius: 8px;
    background: var(--field); color: var(--text); font: 12px/1.45 ${FONT}; scrollbar-width: thin; user-select: text; }
.loom-report :focus-visible { outline: 2px solid var(--strong); outline-offset: -2px; border-radius: 4px; }
.loom-report .loom-head { display: flex; flex-wrap: wrap; gap: 2px 9px; align-items: baseline; margin-bottom: 6px; font-size: 11px; }
.loom-report .loom-head b { font-weight: 600; font-size: 12px; margin-right: auto; }
.loom-report .loom-head span::before { margin-right: 4px !important; }
.loom-report .loom-error::before, .loom-report .loom-warning::before, .loom-report .loom-note::before {
    content: ""; display: inline-block; flex: none; width: 7px; height: 7px; border-radius: 50%; margin-right: 6px; background: var(--soft); }
.loom-report .loom-error::before { background: var(--wrong); }
.loom-report .loom-warning::before { background: var(--warn); }
.loom-report .loom-buckets { display: grid; grid-template-columns: auto 1fr auto auto; gap: 2px 8px; align-items: center; margin: 0 0 8px;
    font-variant-numeric: tabular-nums; font-size: 11px; }
.loom-report .loom-buckets i { height: 8px; border-radius: 2px; min-width: 2px; background: var(--strong); opacity: .75; }
.loom-report .loom-buckets span:nth-child(4n + 3) { text-align: right; }
.loom-report .loom-muted { color: var(--soft); }
.loom-report details { border-top: 1px solid var(--line); }
.loom-report summary { display: flex; align-items: center; padding: 4px 0; cursor: pointer; list-style: none; }
.loom-report summary::-webkit-details-marker { display: none; }
.loom-report summary span:first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; margin-right: auto; }
.loom-report summary::after { content: "\\203a"; margin-left: 8px; color: var(--soft); transition: transform .1s; }
.loom-report details[open] > summary::after { transform: rotate(90deg); }
.loom-report details p { margin: 0 0 6px 13px; }
.loom-report details ul { margin: 0 0 6px 13px; padding: 0; list-style: none; font-size: 11px; }
.loom-report details li { overflow-wrap: anywhere; }
.loom-old .loom-report { opacity: .5; }
.loom-report > p { margin: 2px 0 8px; overflow-wrap: anywhere; }
.loom-report > button { padding: 3px 10px; border: 1px solid var(--line); border-radius: 5px; background: transparent; color: inherit; font: inherit; cursor: pointer; }
.loom-report > button:hover { border-color: var(--strong); }
`;

const MOST = 100;  // pictures that a finding names: elements cost, also folded ones

const element = (kind, className, ...inside) => el(kind, { className }, ...inside);

const percent = (share) => `${Math.round(share * 100)} %`;

function head(report) {
    const counts = ["error", "warning", "note"].filter((severity) => report.counts[severity])
        .map((severity) => element("span", `loom-${severity}`, words()[severity](report.counts[severity])));
    return element("div", "loom-head", element("b", "", words().pictures(report.pictures)), ...(counts.length ? counts : [element("span", "loom-muted", words().good)]));
}

function buckets(report) {
    const most = Math.max(...report.buckets.map((bucket) => bucket.pictures));
    const chart = element("div", "loom-buckets");
    for (const bucket of report.buckets) {
        const bar = element("i", "");
        bar.style.width = `${(100 * bucket.pictures) / most}%`;
        const cut = element("span", "loom-muted", bucket.cropped >= 0.005 ? `−${percent(bucket.cropped)}` : "");
        const tip = words().bucket(bucket.pictures, percent(bucket.cropped), percent(bucket.most_cropped));
        const row = [element("span", "loom-muted", `${bucket.width}×${bucket.height}`), bar, element("span", "", String(bucket.pictures)), cut];
        for (const cell of row) cell.title = tip;
        chart.append(...row);
    }
    return chart;
}

function finding(one) {
    const count = one.count ? element("span", "loom-muted", String(one.count)) : "";
    const names = one.pictures.slice(0, MOST).map(({ name, detail }) => element("li", "", name, detail ? element("span", "loom-muted", ` · ${translated(detail)}`) : ""));
    if (one.count > names.length) names.push(element("li", "loom-muted", words().more(one.count - names.length)));
    const text = (chinese() && said(one)) || one.text;
    const summary = element("summary", `loom-${one.severity}`, element("span", "", found(one.id)), count);
    const details = element("details", "", summary, element("p", "", text), ...(names.length ? [element("ul", "", ...names)] : []));
    details.addEventListener("toggle", () => {
        const list = details.parentElement, room = list.clientHeight;
        if (details.open) list.scrollTop = Math.max(list.scrollTop, details.offsetTop + Math.min(details.offsetHeight, room) - room);
    });
    return details;
}

function put(place, ...inside) {
    addStyle("report", STYLE);
    place.className = "loom-place";
    place.replaceChildren(element("div", "loom-report", ...inside));
}

// Draws the report into its place, which keeps its height: the new nodes would grow with every sentence that is unfolded.
export const draw = (place, report) => put(place, head(report), ...(report.buckets.length ? [buckets(report)] : []), ...report.findings.map(finding));

// Why there is no report: words, an error, and perhaps [a button's label, what it does].
export const tell = (place, text = "", { error = false, button = null } = {}) => put(place, element("p", error ? "loom-error" : "loom-muted", text),
    ...(button ? [el("button", { type: "button", textContent: button[0], onclick: button[1] })] : []));

const WORSE = ["note", "warning", "error"];

// {name: [severity, titles]} of the pictures that a report names, but for the findings that are `left` out.
export function problems(report, left = []) {
    const marked = new Map();
    for (const { id, severity, pictures } of (report?.findings ?? []).filter((one) => !left.includes(one.id))) {
        for (const { name } of pictures) {
            const [before, titles] = marked.get(name) ?? ["note", []];
            marked.set(name, [WORSE.indexOf(severity) > WORSE.indexOf(before) ? severity : before, [...titles, found(id)]]);
        }
    }
    return marked;
}
