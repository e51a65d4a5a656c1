// The curves of a run: loss as it is and smoothed, validation, learning rate. However long a run, only so many points are held.
import uPlot from "./lib/uplot.mjs";
import { words } from "./live_words.mjs";
import { number, tick } from "./units.mjs";

const MOST = 1600;  // points; when there are more, neighbours are joined
const FINE = 2;  // it is drawn this much larger and shown in small, so that it stays sharp where the canvas is zoomed in

// Columns of numbers by step: [steps, loss, smoothed, rate], and the validations among them.
export class Curve {
    constructor() { this.clear(); }

    clear() {
        this.columns = [[], [], [], []];
        this.validation = [];
        this.width = 1;  // steps that a point stands for
        this.open = [];  // of the point that is not full yet
    }

    get last() { return this.open.at(-1)?.[0] ?? this.columns[0].at(-1) ?? 0; }

    // As GET /lora_loom/run/curve answers.
    load(found) {
        this.clear();
        found.step.forEach((step, i) => this.put([step, found.loss[i], found.smoothed_loss[i], found.learning_rate[i]]));
        this.validation = found.validation.map((pair) => [...pair]);
    }

    // Points of an event: [step, loss, smoothed, rate, validation or null]. Steps that are there already change nothing.
    add(points) {
        for (const [step, loss, smoothed, rate, validation] of points) {
            if (step <= this.last) continue;
            this.put([step, loss, smoothed, rate]);
            if (validation !== null && validation !== undefined) this.validation.push([step, validation]);
        }
        if (this.validation.length > MOST) this.validation = this.validation.filter((_, i) => i % 2 === 1);
    }

    put(point) {
        this.open.push(point);
        if (this.open.length < this.width) return;
        const [step, , smoothed, rate] = this.open.at(-1), losses = this.open.map((p) => p[1]).filter((v) => v !== null);
        [step, losses.length ? losses.reduce((a, b) => a + b) / losses.length : null, smoothed, rate].forEach((value, i) => this.columns[i].push(value));
        this.open = [];
        if (this.columns[0].length >= MOST) this.halve();
    }

    halve() {
        const [steps, losses, smoothed, rates] = this.columns, odd = (column) => column.filter((_, i) => i % 2 === 1);
        this.columns = [odd(steps), odd(losses.map((v, i) => (i && v !== null && losses[i - 1] !== null ? (v + losses[i - 1]) / 2 : v))), odd(smoothed), odd(rates)];
        this.width *= 2;
    }

    // For uPlot: one x for all.
    data() {
        const [steps, losses, smoothed, rates] = this.columns, checked = new Map(this.validation);
        if (!checked.size) return [steps, losses, smoothed, steps.map(() => null), rates];
        const all = [...new Set([...steps, ...checked.keys()])].sort((a, b) => a - b), at = new Map(steps.map((step, i) => [step, i]));
        const of = (column) => all.map((step) => (at.has(step) ? column[at.get(step)] : undefined));
        return [all, of(losses), of(smoothed), all.map((step) => checked.get(step) ?? undefined), of(rates)];
    }
}

// The chart in its place, whose size it takes on. `total` is the run's last step.
export class Chart {
    constructor(place) {
        this.place = place;
        this.total = 0;
        this.says = Object.assign(document.createElement("div"), { className: "reading" });
        place.append(this.says);
        new ResizeObserver(() => this.fit()).observe(place);
    }

    css(name) { return this.style.getPropertyValue(name).trim() || "#888"; }

    make() {
        this.style = getComputedStyle(this.place);
        const css = (name) => () => this.css(name), font = `${10 * FINE}px Inter, sans-serif`, grid = { stroke: css("--loom-grid"), width: FINE / 2 }, axis = { stroke: css("--soft"), font, grid, ticks: { show: false } };
        const line = (label, color, width, more = {}) => ({ label, stroke: css(color), width: width * FINE, points: { show: false }, spanGaps: true, ...more });
        const w = words();
        this.plot = new uPlot({
            ...this.size(), padding: [6 * FINE, 0, 0, 0], legend: { show: false },
            scales: { x: { time: false, range: (u, low, high) => [0, Math.max(this.total, high ?? 0, 1)] }, y: { range: (u, low, high) => range(low, high) }, rate: { range: (u, low, high) => [0, (high || 1) * 1.08] } },
            axes: [{ ...axis, size: 18 * FINE, gap: 2, space: 50 * FINE }, { ...axis, size: 38 * FINE, gap: 3 * FINE, space: 26 * FINE, values: (u, ticks) => ticks.map((value) => tick(value, 2)) }, { ...axis, scale: "rate", side: 1, size: 40 * FINE, gap: 3 * FINE, space: 30 * FINE, grid: { show: false }, values: (u, ticks) => ticks.map((v) => (v ? v.toExponential(Number.isInteger(Number(v.toExponential(4).split("e")[0])) ? 0 : 1) : "")) }],
            series: [{}, line(w.loss, "--loom-loss", 1), line(w.smoothed_loss, "--strong", 2), line(w.validation, "--warn", 1.5, { points: { show: true, size: 5 * FINE, fill: css("--warn") } }), line(w.learning_rate, "--loom-rate", 1, { scale: "rate", dash: [4 * FINE, 3 * FINE] })],
            cursor: {
                y: false, drag: { x: false, y: false }, points: { size: 5 * FINE },
                move: (u, left, top) => {  // the page draws its nodes scaled
                    const box = u.over.getBoundingClientRect(), scale = box.width / u.over.offsetWidth || 1;
                    return [left < 0 ? left : left / scale, top < 0 ? top : top / scale];
                },
            },
            hooks: { setCursor: [(u) => this.read(u)] },
        }, [[], [], [], [], []], this.place);
        Object.assign(this.plot.root.style, { transform: `scale(${1 / FINE})`, transformOrigin: "0 0" });
    }

    size() { return { width: FINE * Math.max(40, this.place.clientWidth), height: FINE * Math.max(40, this.place.clientHeight) }; }

    fit() {
        if (!this.place.clientWidth || !this.curve) return;
        if (!this.plot) return this.draw(this.curve, this.total);  // it was out of sight until now
        const { width, height } = this.size();
        if (this.plot.width !== width || this.plot.height !== height) this.plot.setSize({ width, height });
    }

    draw(curve, total) {
        Object.assign(this, { curve, total });
        if (!this.place.clientWidth) return;
        if (!this.plot) this.make();
        this.shown = curve.data();
        this.plot.setData(this.shown);
        this.place.classList.toggle("empty", !this.shown[0].length);
    }

    read(plot) {
        const i = plot.cursor.idx, w = words();
        if (i === null || i === undefined || !this.shown?.[0].length) return (this.says.textContent = "");
        const [steps, losses, smoothed, validation, rates] = this.shown.map((column) => column[i]);
        const parts = [[w.loss, losses], [w.smoothed_loss, smoothed], [w.validation, validation], [w.learning_rate, rates]].filter(([, value]) => value !== null && value !== undefined);
        this.says.textContent = `${w.step(steps, this.total)} · ${parts.map(([name, value]) => `${name} ${number(value)}`).join(" · ")}`;
    }
}

function range(low, high) {
    if (low === null || low === undefined || !Number.isFinite(low)) return [0, 1];
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    return [Math.max(0, low - room), high + room];
}
