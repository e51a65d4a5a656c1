// What runs were, and their settings side by side: those that differ, or all.
import { words as states } from "./live_words.mjs";
import { el } from "./modal.mjs";
import { words } from "./runs_words.mjs";
import { settingName, translated } from "./translated.mjs";
import { duration, moment, number, size } from "./units.mjs";

function shown(value) {
    const w = words();
    if (value === null || value === undefined) return "";
    if (typeof value === "boolean") return value ? w.yes : w.no;
    if (Array.isArray(value)) return value.map(shown).join("\n") || w.nothing;
    return value === "" ? w.nothing : String(value);
}

const FACTS = {
    status: (run) => states()[run.status] ?? run.status, started: (run) => moment(run.started), seconds: (run) => (run.seconds ? duration(run.seconds) : ""),
    step: (run) => (run.steps ? `${run.step} / ${run.steps}` : run.step), loss: (run) => number(run.loss), best: (run) => number(run.best),
    model: (run) => run.model, family: (run) => run.family, pictures: (run) => run.pictures, lora: (run) => run.lora, bytes: (run, w) => size(run.bytes) + (run.lora_bytes ? ` + ${w.loras(size(run.lora_bytes))}` : ""),
};

// [{part, name, values, differs}] of all settings that any of the runs has.
function compared(runs) {
    const parts = new Map(), readable = runs.filter((run) => run.settings);
    for (const { settings } of readable) {
        for (const [part, values] of Object.entries(settings)) parts.set(part, new Set([...(parts.get(part) ?? []), ...Object.keys(values)]));
    }
    return [...parts].flatMap(([part, names]) => [...names].map((name) => {
        const values = runs.map((run) => (Object.hasOwn(run.settings?.[part] ?? {}, name) ? run.settings[part][name] : undefined)), told = values.filter((value) => value !== undefined).map((value) => JSON.stringify(value));  // an older run may not have said
        return { part, name, values, differs: new Set(told).size > 1 };
    }));
}

export function settingsOf(runs) {
    const w = words(), all = compared(runs), differ = all.filter((row) => row.differs).length, one = runs.length === 1;
    const whole = el("input", { type: "checkbox", checked: one, onchange: () => draw() });
    const body = el("tbody"), none = el("p", { className: "soft", textContent: w.same });
    const cell = (value) => el("td", { textContent: value, style: "white-space: pre-line" });
    const line = (name, values, className = "") => el("tr", { className }, el("th", { scope: "row", textContent: name }), ...values.map(cell));
    const draw = () => {
        const rows = all.filter((row) => row.differs || whole.checked);
        const facts = Object.entries(FACTS).map(([name, of]) => [w.fact[name], runs.map((run) => of(run, w) ?? "")]);
        const lines = facts.filter(([, values]) => values.some((value) => value !== "")).map(([name, values]) => line(name, values));
        let part = "";
        for (const row of rows) {
            if (row.part !== part) lines.push(el("tr", { className: "part" }, el("th", { scope: "rowgroup", colSpan: runs.length + 1, textContent: w.parts?.[row.part] ?? row.part })));
            part = row.part;
            lines.push(line([settingName(row.name) || w.names?.[row.name], row.name].filter(Boolean).join(" · "), row.values.map(row.name === "augment" ? translated : shown), row.differs && whole.checked && !one ? "differs" : ""));
        }
        body.replaceChildren(...lines);
        none.hidden = one || differ > 0 || whole.checked || !all.length;
    };
    draw();
    const more = one ? [] : [el("span", { textContent: w.differ(differ, all.length) }), el("label", { className: "end" }, whole, w.all)];
    const foreign = runs.filter((run) => !run.settings)
        .flatMap((run) => [el("p", { className: "soft", textContent: `${run.name}: ${w.foreign}` }), el("pre", { textContent: run.config })]);
    const heads = runs.map((run) => el("th", { scope: "col", textContent: run.name, title: run.name, style: `--color: ${run.color}` }));
    const table = el("table", {}, el("thead", {}, el("tr", {}, el("th"), ...heads)), body);
    return el("section", {}, el("h3", {}, el("b", { textContent: w.settings }), ...more), el("div", { className: "table" }, table), none, ...foreign);
}
