// What TrainLoRA shows of its run: where it stands, its curves, its samples, buttons that reach into it, and what went wrong with the way out.
import { api } from "../../scripts/api.js";
import { Chart, Curve } from "./live_chart.mjs";
import { Film } from "./live_film.mjs";
import { giver, here, sameAs } from "./graph.mjs";
import { applyFix, fixedNow, fixText, mendable } from "./fix.mjs";
import { liveStyle } from "./live_style.mjs";
import { words } from "./live_words.mjs";
import { el } from "./modal.mjs";
import { control, curveOf, oneRun } from "./runs_api.mjs";
import { resumeRun } from "./runs_graph.mjs";
import { say } from "./settings.mjs";
import { translated } from "./translated.mjs";
import { duration, gigabytes, number, speed } from "./units.mjs";

export const HEIGHT = 400;  // pixels of the graph that the panel keeps, whatever it shows
const OVER = new Set(["finished", "stopped", "interrupted", "failed", "lost"]);

export class Panel {
    constructor(node) {
        liveStyle();
        const w = words();
        this.node = node;
        this.curve = new Curve();
        this.film = new Film();
        this.title = el("b");
        this.numbers = el("span", { className: "numbers" });
        this.facts = el("span", { className: "soft" });
        this.room = el("span", { className: "room", title: w.process });
        this.bar = el("i");
        this.place = el("div", { className: "chart empty" });
        this.place.dataset.hint = w.noCurve;
        this.buttons = Object.fromEntries(["stop", "save", "sample"].map((action) => [action, el("button", { type: "button", title: w[`${action}Tip`], textContent: w[action], onclick: () => this.press(action) })]));
        this.resume = el("button", { type: "button", title: w.resumeTip, textContent: w.resume, hidden: true, onclick: () => this.goOn() });
        this.fix = el("button", { type: "button", className: "strong", hidden: true, onclick: () => applyFix(this.node, this.way().fix) });
        this.says = el("div", { className: "says" });
        this.element = el("div", { className: "loom-live" }, el("div", { className: "inside" },
            el("div", { className: "head" }, el("div", {}, this.title, this.numbers), el("div", {}, this.facts, this.room)), el("div", { className: "done" }, this.bar),
            this.place, this.film.row, this.film.time, el("div", { className: "buttons" }, this.fix, ...Object.values(this.buttons), this.resume), this.says));
        this.element.style.setProperty("--loom-height", `${HEIGHT}px`);
        this.chart = new Chart(this.place);
        this.asks = 0;  // counts what may have changed the answer to what is known before a run
        this.before = { lines: [] };  // what is known before a run: lines of text, and what would mend the settings
        this.reset();
    }

    reset() {
        this.state = { status: "idle", run: "", step: 0, steps: 0, messages: [], warnings: [] };
        this.refusal = null;  // why the last training did not start; what the panel shows else is the run before it
        this.curve.clear();
        this.film.clear();
        this.render();
    }

    get run() { return this.state.run; }

    get over() { return OVER.has(this.state.status); }

    // Nothing is on its way here.
    get rests() { return this.state.status === "idle" || this.over; }

    // What is wrong with the settings as they are now, {error, fix}: a training was refused for them, or would be.
    way() {
        if (!this.rests) return {};
        if (this.refusal && sameAs(this.node, this.refusal.queued)) return this.refusal;
        if (this.before.fix) return this.before;
        return this.state.status === "failed" && this.stands() ? this.state : {};
    }

    // Whether what a failed run offers to change still is as the run had it.
    stands() {
        const had = Object.assign({}, ...Object.values(this.state.settings ?? {}));
        return Object.keys(this.state.fix ?? {}).every((name) => had[name] === undefined || String(had[name]) === String(fixedNow(this.node, name)));
    }

    // A run has failed of a setting that is another by now.
    get mended() { return this.state.status === "failed" && Object.keys(this.state.fix ?? {}).length > 0 && !this.stands(); }

    get continues() { return this.run && giver(here(this.node), "resume").widget?.value === this.run; }

    // A training ended before it had begun: `last` is the run that is shown again.
    async refuse(refusal, last) {
        this.reset();
        this.refusal = refusal;
        this.render();
        return last ? this.load(last) : true;
    }

    // A training that this server remembers: its state as it is now, and its curve and samples from disk.
    async take(state) {
        const other = state.run !== this.run || state.prompt_id !== this.state.prompt_id;
        if (other) this.reset();
        this.state = { ...this.state, ...state };
        this.render();
        if (state.run && !(await this.load(state.run)) && this.over && this.run === state.run) this.reset();  // it is gone
    }

    // A run as it lies on disk, which is right where no server trains it (`alone`). False where it is gone.
    async load(name, alone = false) {
        try {
            const [found, curve] = await Promise.all([oneRun(name), curveOf(name)]);
            if (this.run && this.run !== name) return true;  // another has begun meanwhile
            const { step, ...facts } = found, prompts = found.settings?.samples.sample_prompts ?? [];
            if (this.over && this.state.phase === "encode") this.state.step = 0;  // it counted pictures
            // what has ended is as its record says; what runs is as its events say
            this.state = alone || this.rests ? { ...this.state, smoothed_loss: undefined, ...facts } : { ...facts, ...this.state, started: found.started };
            this.state.step = Math.max(step, this.state.step);
            this.state.run = name;
            this.curve.load(curve);
            this.film.load(name, found.started, found.samples, this.state.prompts ?? prompts);
            this.render();
            return true;
        } catch (error) {
            return error.status !== 400;  // no answer says nothing
        }
    }

    // It has another name by now.
    renamed(from, to) {
        if (this.run !== from) return;
        this.state.run = to;
        if (this.rests) this.load(to);
        this.soon();
    }

    // An event of the training that this node shows.
    apply(name, data) {
        if (name === "preparing") {
            this.reset();
            this.state.status = "preparing";
        }
        const { points, files, ...facts } = data;
        if (name === "started") {
            if (!facts.step) this.curve.clear();
            this.state.started = Date.now() / 1000;
        }
        if (name === "sample") this.film.add(data.run, this.state.started, data.step, files, data.prompts);
        else if (["preparing", "warnings", "started", "progress", "ended"].includes(name)) this.state = { ...this.state, ...facts };
        else if (name === "saved") this.state.lora = data.lora;
        else if (name === "memory") this.state.needs = data;  // what is in use comes with the progress
        else if (name === "estimate") this.state.estimate = facts;
        else this.state.messages = [...this.state.messages, { id: name, ...facts }].slice(-50);
        if (points) this.curve.add(points);
        if (/^(sample|checkpoint)/.test(name) || this.over) this.asked = null;
        if (name === "ended" && this.state.phase === "encode") this.state.step = 0;  // it counted pictures
        if (name === "ended") this.asks += 1;
        if (name === "ended" && this.run) this.load(this.run);
        this.soon();
    }

    soon() {  // however many events come, the page draws at its own pace
        if (this.waiting) return;
        this.waiting = true;
        requestAnimationFrame(() => {
            this.waiting = false;
            this.render();
        });
    }

    // What the graph says of the panel may have changed.
    look() {
        if (this.sight !== this.seen) this.soon();
    }

    get sight() { return JSON.stringify([this.way().error, this.continues, this.mended]); }

    render() {
        const w = words(), s = this.state, train = s.phase === "train" || this.over, running = s.status === "running" || s.status === "preparing";
        this.seen = this.sight;
        const way = this.way(), refused = this.refusal !== null && way === this.refusal, status = refused ? "failed" : s.status;
        const wrong = s.status === "idle" && !refused && Boolean(this.before.wrong);
        Object.assign(this.element.dataset, { status, phase: s.phase ?? "" });
        this.element.classList.toggle("wrong", wrong);
        this.title.textContent = refused ? w.refused : (wrong ? w.wrong : s.status === "idle" ? w.idle : this.over ? w[s.status] : s.phase ? w[s.phase] : w.preparing) + (s.run ? ` · ${s.run}` : "");
        this.title.title = this.title.textContent;
        this.numbers.textContent = s.steps ? w.step(s.step, s.steps) : "";
        const facts = [];
        if (train && s.steps_per_epoch) facts.push(w.epoch((s.step / s.steps_per_epoch).toFixed(1)));
        if (running && s.steps_per_second) facts.push(speed(s.steps_per_second));
        if (running && train) facts.push(w.left(duration(s.eta_seconds ?? 0)));
        if (this.over && s.seconds) facts.push(w.took(duration(s.seconds)));
        if (s.smoothed_loss ?? s.loss) facts.push(`${w.loss} ${number(s.smoothed_loss ?? s.loss)}`);
        this.facts.textContent = this.facts.title = facts.join(" · ");
        this.room.textContent = running && s.memory ? `${w.device?.[s.memory.device] ?? s.memory.device} ${gigabytes(s.memory.used)} / ${gigabytes(s.memory.total)}` : "";
        this.bar.style.width = s.steps ? `${(100 * s.step) / s.steps}%` : "0";
        this.chart.draw(this.curve, s.phase === "encode" ? 0 : s.steps);
        for (const [action, button] of Object.entries(this.buttons)) {
            button.disabled = action === "stop" ? !running : !(s.status === "running" && s.phase === "train") || this.asked === action;
            button.textContent = this.asked === action ? w.asked : w[action];
        }
        const mends = mendable(this.node, way.fix), mended = this.mended && !mends;
        this.fix.hidden = !mends;
        [this.fix.textContent, this.fix.title] = mends ? fixText(this.node, way.fix) : ["", ""];
        this.resume.hidden = !(this.over && s.resumable) || mends || mended;  // it would go on with what it failed of
        this.resume.disabled = this.continues;
        this.resume.textContent = this.continues ? w.resumed : w.resume;
        for (const button of Object.values(this.buttons)) button.hidden = mends || !this.resume.hidden;
        this.tell(w, s, refused ? way.error : "", mended);
    }

    // Errors first, then what was said before and on the way, the newest first.
    tell(w, s, refused, mended) {
        const lines = mended && !refused ? [["", w.applied]] : [], known = translated(refused);
        if (refused) lines.push(["error", refused]);
        if (this.rests) lines.push(...this.before.lines.filter(([kind, text]) => text !== known && (s.status === "idle" || kind === "error")));
        if (refused && s.run) lines.push(["", w.above(s.run)]);
        if (s.status === "failed") lines.push(["error", s.error]);
        if (this.over && s.report) lines.push(["", s.report]);
        for (const message of [...(s.messages ?? [])].reverse()) {
            const said = w.messages[message.id]?.({ ...message, change: translated(message.change), reason: translated(message.reason) });
            if (said) lines.push([message.id === "checkpoint" ? "" : "warning", said]);
        }
        for (const warning of s.warnings ?? []) {
            const [, severity = "warning", text] = /^(?:(error|warning|note): )?(.*)$/s.exec(warning);
            lines.push([severity === "note" ? "" : severity, text]);
        }
        if (s.estimate && !this.over) lines.push(["", w.willTake(duration(s.estimate.seconds))]);
        if (s.needs?.step !== undefined) lines.push(["", w.needs(s.needs)]);
        if (s.plan) lines.push(["plan", s.plan]);
        const key = JSON.stringify(lines);
        if (key === this.told) return;  // a text that is being read or marked stays
        this.told = key;
        this.says.replaceChildren(...lines.map(([kind, text]) => el("p", { className: kind, textContent: translated(text) })));
    }

    async press(action) {
        const { run, phase } = this.state;
        this.asked = action;
        this.render();
        try {
            if (action === "stop" && (!run || phase !== "train")) await api.interrupt();  // nothing is learned yet
            else await control(run, action);
        } catch (error) {
            this.asked = null;
            say("error", error.message);
        }
        this.render();
    }

    async goOn() {
        await resumeRun(this.run, this.node).catch((error) => say("error", error.message));
        this.render();
    }
}
