// The curves of several runs in one chart.
import uPlot from "./lib/uplot.mjs";
import { el } from "./modal.mjs";
import { words } from "./runs_words.mjs";
import { number, tick } from "./units.mjs";

export const COLUMNS = ["smoothed_loss", "loss", "validation", "learning_rate", "grad_norm"];

// What uPlot takes of one run: [steps, values].
function columnOf(curve, name) {
    if (name === "validation") return [curve.validation.map(([step]) => step), curve.validation.map(([, value]) => value)];
    return [curve.step, curve[name]];
}

export class Overlay {
    // runs: [{name, color, curve}]; read(run, text) is told what each run's curve says under the pointer, "" where it is elsewhere.
    constructor(runs, read) {
        Object.assign(this, { runs, read });
        this.none = el("div", { className: "none", textContent: words().noValues, hidden: true });
        this.element = el("div", { className: "plot" }, this.none);
        this.observer = new ResizeObserver(() => this.fit());
        this.observer.observe(this.element);
    }

    destroy() {
        this.observer.disconnect();
        this.plot?.destroy();
    }

    size() { return { width: Math.max(80, this.element.clientWidth), height: Math.max(80, this.element.clientHeight) }; }

    fit() {
        const { width, height } = this.size();
        if (this.plot && (this.plot.width !== width || this.plot.height !== height)) this.plot.setSize({ width, height });
    }

    // The runs' columns of that name, and which of them hold anything: [place, steps, values].
    take(column) {
        this.columns = this.runs.map((run) => columnOf(run.curve, column));
        return this.columns.map(([steps, values], i) => [i, steps, values]).filter(([, , values]) => values.some((value) => value !== null));
    }

    // The curves have grown. What is zoomed into stays in sight.
    follow() {
        const before = this.lines, full = this.take(this.column), { min, max } = this.plot?.scales.x ?? {}, steps = this.plot?.data[0];
        if (!this.plot || before !== full.map(([i]) => i).join()) return this.show(this.column);
        const whole = min <= steps[0] && max >= steps.at(-1);
        this.plot.setData(uPlot.join(full.map(([, x, y]) => [x, y])), whole);
        if (!whole) this.plot.setScale("x", { min, max });
    }

    show(column) {
        const full = this.take(column);
        this.column = column;
        this.lines = full.map(([i]) => i).join();
        this.plot?.destroy();
        this.plot = null;
        this.none.hidden = full.length > 0;
        if (!full.length) return;
        const style = getComputedStyle(this.element), css = (name) => style.getPropertyValue(name).trim() || "#888";
        const axis = { stroke: css("--soft"), font: "11px Inter, sans-serif", grid: { stroke: css("--line"), width: 0.5 }, ticks: { show: false } };
        const few = (values) => values.filter((value) => value !== null).length < 60;
        const line = ([i, , values]) => ({
            label: this.runs[i].name, stroke: this.runs[i].color, width: 1.8, dash: this.runs[i].dash, spanGaps: true,
            points: { show: column === "validation" && few(values), size: 5 },
        });
        this.plot = new uPlot({
            ...this.size(), padding: [12, 14, 0, 0], legend: { show: false }, scales: { x: { time: false } },
            axes: [{ ...axis, size: 26 }, { ...axis, size: 56, values: (u, ticks) => ticks.map((value) => tick(value, 3)) }], series: [{}, ...full.map(line)],
            cursor: { drag: { x: true, y: false }, points: { size: 6 } }, hooks: { setCursor: [(u) => this.tell(u)] },
        }, uPlot.join(full.map(([, steps, values]) => [steps, values])), this.element);
    }

    tell(plot) {
        const at = plot.cursor.idx, step = at === null || at === undefined ? null : plot.data[0][at];
        this.runs.forEach((run, i) => {
            const [steps, values] = this.columns[i];
            let last = -1;
            if (step !== null) for (let low = 0, high = steps.length - 1; low <= high;) {  // the last one that is not later
                const middle = (low + high) >> 1;
                if (steps[middle] <= step) [last, low] = [middle, middle + 1];
                else high = middle - 1;
            }
            this.read(run, last < 0 || values[last] === null || values[last] === undefined ? "" : `${words().atStep(steps[last])}: ${number(values[last])}`);
        });
    }
}
