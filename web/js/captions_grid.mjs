// A virtual grid: however many items there are, only those in sight have elements, and those are used again.
const OVERSCAN = 1;  // rows kept beyond each edge
const REST = 90;  // ms without scrolling until pictures never seen before are asked for

export class Grid {
    #cards = new Map();  // place -> element
    #spare = [];
    #rested = 0;
    columns = 1;
    pinned = -1;  // a place that keeps its element though it is out of sight

    // box scrolls; make() gives an element; fill(element, place, resting) shows an item in it. Sizes in CSS pixels, gap included.
    constructor(box, { make, fill, minWidth, height }) {
        Object.assign(this, { box, make, fill, minWidth, height, count: 0 });
        this.room = box.appendChild(document.createElement("div"));
        this.room.className = "room";
        box.addEventListener("scroll", () => this.#scrolled(), { passive: true });
        this.observer = new ResizeObserver(() => this.layout());
        this.observer.observe(box);
    }

    destroy() {
        this.observer.disconnect();
        clearTimeout(this.#rested);
    }

    setCount(count) {
        this.count = count;
        this.layout();
    }

    layout() {
        const width = this.room.clientWidth || this.box.clientWidth;
        this.columns = Math.max(1, Math.floor(width / this.minWidth));
        this.width = width / this.columns;
        this.room.style.height = `${Math.ceil(this.count / this.columns) * this.height}px`;
        this.draw(true);
    }

    #scrolled() {
        this.draw(false);
        clearTimeout(this.#rested);
        this.#rested = setTimeout(() => this.draw(true), REST);
    }

    draw(resting = true) {
        const first = Math.max(0, Math.floor(this.box.scrollTop / this.height) - OVERSCAN) * this.columns;
        const last = Math.min(this.count, (Math.ceil((this.box.scrollTop + this.box.clientHeight) / this.height) + OVERSCAN) * this.columns);
        for (const [place, card] of this.#cards) {
            if ((place >= first && place < last) || place === this.pinned) continue;
            this.#cards.delete(place);
            this.#spare.push(card);
        }
        for (let place = first; place < last; place += 1) {
            let card = this.#cards.get(place);
            if (!card) {
                card = this.#spare.pop() ?? this.room.appendChild(this.make());
                this.#cards.set(place, card);
            }
            card.hidden = false;
            card.style.width = `${this.width}px`;
            card.style.transform = `translate(${(place % this.columns) * this.width}px, ${Math.floor(place / this.columns) * this.height}px)`;
            this.fill(card, place, resting);
        }
        for (const card of this.#spare) card.hidden = true;
    }

    card(place) { return this.#cards.get(place); }
    get page() { return Math.max(1, Math.floor(this.box.clientHeight / this.height)) * this.columns; }

    show(place) {
        const top = Math.floor(place / this.columns) * this.height, below = top + this.height - this.box.clientHeight;
        if (top < this.box.scrollTop) this.box.scrollTop = top;
        else if (below > this.box.scrollTop) this.box.scrollTop = below;
        this.draw(true);
    }
}
