// A strip that says what a run will take: parameters, the file's size, and a bar of memory. It keeps its height whatever it says.
import { el } from "./modal.mjs";
import { words } from "./estimate_words.mjs";
import { addStyle, FONT, THEME } from "./theme.mjs";
import { size } from "./units.mjs";

export const HEIGHT = 60;  // pixels of the graph, with the margins that a node leaves around an element

const STYLE = `
    .loom-estimate { ${THEME}
        --base: color-mix(in srgb, var(--soft) 65%, var(--field)); --lora: #8b7cf6; --step: var(--strong);
        position: relative; box-sizing: border-box; height: 100%; min-height: ${HEIGHT - 12}px; font: 12px/18px ${FONT}; color: var(--text); }
    .loom-estimate .inside { container-type: inline-size; position: absolute; inset: 0; display: flex; flex-direction: column; justify-content: center; gap: 4px; padding: 0 2px; overflow: hidden; }
    .loom-estimate [hidden] { display: none !important; }
    .loom-estimate .line { display: flex; gap: 8px; height: 18px; white-space: nowrap; font-variant-numeric: tabular-nums; }
    .loom-estimate .line b { font-weight: 600; }
    .loom-estimate .line .soft { color: var(--soft); overflow: hidden; text-overflow: ellipsis; min-width: 0; }
    .loom-estimate .line .room { margin-left: auto; flex: none; }
    .loom-estimate .brief { display: none; }
    @container (max-width: 320px) { .loom-estimate .full { display: none; } .loom-estimate .brief { display: inline; } .loom-estimate .line { font-size: 11px; gap: 6px; } }
    .loom-estimate .room.over { color: var(--warn); }
    .loom-estimate .bar { flex: none; position: relative; display: flex; height: 10px; border-radius: 5px; background: var(--field); box-shadow: inset 0 0 0 1px var(--line); overflow: hidden; }
    .loom-estimate .bar i { flex: none; height: 100%; transition: width .15s ease-out; }
    .loom-estimate .bar .base { background: var(--base); } .loom-estimate .bar .lora { background: var(--lora); } .loom-estimate .bar .step { background: var(--step); }
    .loom-estimate .bar.over .step { background: var(--warn); }
    .loom-estimate .bar u { position: absolute; top: 0; bottom: 0; width: 2px; background: var(--text); opacity: .75; }
    .loom-estimate .legend { display: flex; gap: 10px; height: 14px; font-size: 10px; line-height: 14px; color: var(--soft); white-space: nowrap; overflow: hidden; }
    .loom-estimate .legend > span::before { content: ""; display: inline-block; width: 7px; height: 7px; border-radius: 2px; margin-right: 4px; background: var(--mark); }
    .loom-estimate .hint { color: var(--soft); font-size: 11px; line-height: 15px; display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical; overflow: hidden; overflow-wrap: anywhere; }
    .loom-estimate .hint.wrong { border-left: 2px solid var(--wrong); padding-left: 8px; color: var(--text); }
    .loom-estimate.asking .shown { opacity: .55; }
`;

// Two ways to say it: the brief one is for narrow nodes.
const say = (place, full, brief) => place.replaceChildren(el("span", { className: "full", textContent: full }), el("span", { className: "brief", textContent: brief }));

export class Strip {
    constructor() {
        addStyle("estimate", STYLE);
        this.parameters = el("b");
        this.file = el("span", { className: "soft" });
        this.room = el("span", { className: "room" });
        this.parts = Object.fromEntries(["base", "lora", "step"].map((part) => [part, el("i", { className: part })]));
        this.free = el("u");
        this.bar = el("div", { className: "bar" }, ...Object.values(this.parts), this.free);
        this.legend = el("div", { className: "legend" });
        this.shown = el("div", { className: "shown" }, el("div", { className: "line" }, this.parameters, this.file, this.room), this.bar, this.legend);
        this.hint = el("div", { className: "hint" });
        this.element = el("div", { className: "loom-estimate" }, el("div", { className: "inside" }, this.shown, this.hint));
        this.say(words().noTrainer);
    }

    say(text, wrong = false) {
        this.element.classList.remove("asking");
        this.shown.hidden = true;
        this.hint.hidden = false;
        this.hint.textContent = this.element.title = text;
        this.hint.classList.toggle("wrong", wrong);
    }

    ask() {
        if (this.shown.hidden) this.say(words().asking);
        else this.element.classList.add("asking");
    }

    show(found) {
        const w = words(), m = found.memory;
        if (found.parameters === null) return this.say(found.notes.join(" "));
        this.element.classList.remove("asking");
        this.shown.hidden = false;
        this.hint.hidden = true;
        say(this.parameters, w.parameters(found.parameters), w.brief(found.parameters));
        this.file.textContent = `· ${w.file(found.file_bytes)}`;
        const over = m && m.free !== null && m.needed > m.free, all = m && Math.max(m.total ?? 0, m.needed);
        say(this.room, m ? w.needs(m.needed, m.total, m.device) : "", m ? w.needs(m.needed, null, m.device) : "");  // the bar says of how much
        this.room.classList.toggle("over", Boolean(over));
        this.bar.classList.toggle("over", Boolean(over));
        const bytes = m ? { base: m.base, lora: m.lora + m.optimizer, step: m.step } : {};
        for (const [part, bar] of Object.entries(this.parts)) bar.style.width = m ? `${(100 * bytes[part]) / all}%` : "0";
        this.free.hidden = !m || m.free === null || m.free >= all;
        if (m) this.free.style.left = `calc(${(100 * m.free) / all}% - 1px)`;
        this.legend.replaceChildren(...(m ? Object.entries(bytes).map(([part, n]) => {
            const span = el("span"), [full, brief] = w[part].map((name) => `${name} ${size(n)}`);
            say(span, full, brief);
            span.style.setProperty("--mark", `var(--${part === "step" && over ? "warn" : part})`);
            return span;
        }) : []));
        this.element.title = [w.layers(found.layers), m && w.tip(m), found.checkpointing && w.checkpointing(m), ...(found.checkpointing ? [] : found.notes)].filter(Boolean).join("\n");
    }
}
