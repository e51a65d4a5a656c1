// LoRAConfig says what the training behind it will take, as its widgets change: nothing is run for it.
import { app } from "../../scripts/app.js";
import { estimate } from "./estimate_api.mjs";
import { requestFor, trainerOf } from "./estimate_graph.mjs";
import { HEIGHT, Strip } from "./estimate_strip.mjs";
import { words } from "./estimate_words.mjs";

const LOOK = 250, REST = 250;  // ms: how often the graph is looked at, and how long it must have stayed as it is

// The graph is looked at, for widgets change in more ways than they tell of: presets, undo, another node's widget, a link. It costs microseconds.
function follow(node, strip) {
    let seen = "", since = 0, asked = "", busy = false;
    const look = async () => {
        if (!node.graph || !strip.element.isConnected || document.hidden) return;
        const trainer = trainerOf(node), question = trainer && requestFor(trainer, node);
        const text = question ? JSON.stringify(question) : trainer ? "no model" : "no trainer";
        if (text !== seen) [seen, since] = [text, Date.now()];
        if (text === asked || busy || Date.now() - since < REST) return;
        asked = text;
        if (!question) return strip.say(trainer ? words().noModel : words().noTrainer);
        busy = true;
        strip.ask();
        const found = await estimate(question);
        busy = false;
        if (found.error) strip.say(found.error, true);
        else strip.show(found);
    };
    return setInterval(look, LOOK);
}

app.registerExtension({
    name: "lora_loom.estimate",
    nodeCreated(node) {
        if (node.comfyClass !== "LoRAConfig" || !node.addDOMWidget) return;
        const strip = new Strip();
        const widget = node.addDOMWidget("lora_loom_estimate", "lora_loom_estimate", strip.element, { serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT });
        widget.serialize = false;
        node.setSize([Math.max(node.size[0], 340), Math.max(node.size[1], node.computeSize()[1])]);
        let timer = follow(node, strip);
        const removed = node.onRemoved, added = node.onAdded;
        node.onAdded = function (...values) {
            clearInterval(timer);
            timer = follow(node, strip);
            return added?.apply(this, values);
        };
        node.onRemoved = function (...values) {
            clearInterval(timer);
            return removed?.apply(this, values);
        };
    },
});
