// LoRAConfig says what the training behind it will take, as its widgets change: nothing is run for it.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { estimate } from "./estimate_api.mjs";
import { requestFor } from "./estimate_graph.mjs";
import { HEIGHT, Strip } from "./estimate_strip.mjs";
import { words } from "./estimate_words.mjs";
import { trainersOf } from "./graph.mjs";
import { addView, living, watching } from "./node.mjs";

const LOOK = 250, REST = 250;  // ms: how often the graph is looked at, and how long it must have stayed as it is

// The graph is looked at, for widgets change in more ways than they tell of: presets, undo, another node's widget, a link. It costs little.
function follow(node, strip) {
    let seen = "", since = 0, asked = "", busy = false;
    const anew = () => { asked = ""; };
    api.addEventListener("lora_loom.units", anew);
    const stop = watching(strip.element, async () => {
        if (!node.graph) return;
        const [trainer] = trainersOf(node), question = trainer && requestFor(trainer);
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
    }, LOOK);
    return () => {
        stop();
        api.removeEventListener("lora_loom.units", anew);
    };
}

app.registerExtension({
    name: "lora_loom.estimate",
    nodeCreated(node) {
        if (node.comfyClass !== "LoRAConfig" || !node.addDOMWidget) return;
        const strip = new Strip();
        addView(node, "lora_loom_estimate", strip.element, { width: 360, height: HEIGHT, fixed: true });
        living(node, () => follow(node, strip));
    },
});
