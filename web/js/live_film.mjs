// The samples of a run, one row for the step that the slider stands at. At its end the newest stay in sight.
import { el, openModal } from "./modal.mjs";
import { words } from "./live_words.mjs";
import { sampleUrl } from "./runs_api.mjs";

export class Film {
    constructor() {
        const w = words();
        this.row = el("div", { className: "film empty" });
        this.row.dataset.hint = w.noSamples;
        this.slider = el("input", { type: "range", min: 0, max: 0, value: 0, disabled: true, "aria-label": w.slider });
        this.label = el("span");
        this.time = el("div", { className: "time" }, this.slider, this.label);
        this.slider.addEventListener("input", () => this.show());
        for (const event of ["pointerdown", "pointermove", "keydown"]) this.slider.addEventListener(event, (happened) => happened.stopPropagation());
        this.clear();
    }

    clear() {
        [this.run, this.version, this.steps, this.prompts] = ["", "", new Map(), []];
        this.pictures = [];
        this.row.replaceChildren();
        this.row.classList.add("empty");
        Object.assign(this.slider, { max: 0, value: 0, disabled: true });
        this.label.textContent = "";
    }

    // files: [{file, step, number}]
    load(run, version, files, prompts) {
        if (run !== this.run) this.clear();
        Object.assign(this, { run, version: this.version || version, prompts: prompts ?? this.prompts });  // pictures in sight are not fetched again
        for (const { file, step, number } of files) {
            if (!this.steps.has(step)) this.steps.set(step, []);
            this.steps.get(step)[number - 1] = file;
        }
        this.order = [...this.steps.keys()].sort((a, b) => a - b);
        const newest = Number(this.slider.value) >= Number(this.slider.max);
        this.slider.max = Math.max(0, this.order.length - 1);
        this.slider.disabled = this.order.length < 2;
        if (newest) this.slider.value = this.slider.max;
        this.show();
    }

    // Of an event: the files of one step in the order of the prompts.
    add(run, version, step, files, prompts) {
        this.load(run, version, files.map((file, i) => ({ file, step, number: i + 1 })), prompts);
    }

    get at() { return this.order?.[Number(this.slider.value)]; }

    show() {
        const step = this.at, files = this.steps.get(step) ?? [];
        this.row.classList.toggle("empty", !files.length);
        this.label.textContent = step === undefined ? "" : words().sampleAt(step);
        while (this.pictures.length > files.length) this.pictures.pop().remove();
        files.forEach((file, i) => {
            if (!this.pictures[i]) {
                this.pictures[i] = el("button", { type: "button", onclick: () => this.large(i) }, el("img", { decoding: "async", draggable: false }));
                this.row.append(this.pictures[i]);
            }
            const picture = this.pictures[i].firstElementChild, url = sampleUrl(this.run, file, 384, this.version);
            this.pictures[i].title = picture.alt = this.prompts[i] ?? "";
            if (picture.getAttribute("src") !== url) picture.src = url;
        });
    }

    // Large, with arrows through time and the prompts.
    large(number) {
        const picture = el("img", { style: "max-width: 88vw; max-height: 74vh; min-width: 256px; min-height: 256px; object-fit: contain; image-rendering: auto; display: block; margin: auto" });
        const text = el("p", { style: "text-align: center; margin: .8em 0 0; max-width: 80vw" });
        const slider = el("input", { type: "range", min: 0, max: this.slider.max, value: this.slider.value, disabled: this.slider.disabled, style: "width: 100%; margin-top: .8em" });
        let step = () => this.order[Number(slider.value)];
        const show = () => {
            const files = this.steps.get(step()) ?? [], at = Math.min(number, files.length - 1);
            picture.src = sampleUrl(this.run, files[at], 0, this.version);
            text.textContent = `${words().sampleAt(step())} · ${this.prompts[at] ?? ""}`;
        };
        const { dialog } = openModal(words().sampleAt(""), "viewer");
        dialog.style.padding = "16px";
        dialog.append(picture, text, slider);
        slider.addEventListener("input", show);
        dialog.addEventListener("keydown", (event) => {
            const by = { ArrowUp: -1, ArrowDown: 1 }[event.key], files = this.steps.get(step()) ?? [];
            if (!by) return;
            event.preventDefault();
            number = (number + by + files.length) % files.length;
            show();
        });
        dialog.addEventListener("click", (event) => event.target === dialog && dialog.dispatchEvent(new Event("cancel", { cancelable: true })));
        slider.focus();
        show();
    }
}
