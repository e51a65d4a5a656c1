// Choosing a preset in LoRAConfig writes its values into the widgets: what is shown is what runs. Settings can be saved as a
// preset of one's own, and a run's config.yaml or a preset's file that is dropped on the node fills it, and the Train LoRA behind it.
import { app } from "../../scripts/app.js";
import { at, fillConfig, settle } from "./config_fill.mjs";
import { everyNode, here, root, trainersOf, valuesOf } from "./graph.mjs";
import { after, changing } from "./node.mjs";
import { allPresets, savePreset } from "./presets_api.mjs";
import { ask, say, sure, words } from "./settings.mjs";
import { fill, list, widgetOf } from "./widgets.mjs";

// What a preset says for a family, of this node and of the Train LoRA behind it.
function says(preset, family) {
    return { ...preset.values, ...preset.train, ...preset.families[family] };
}

let loading = false;  // an API file, whose own values count

// A preset fills everything in. Another family changes what is still as the preset had it: what was set by hand stays.
async function choose(node) {
    const { preset: was, family: wasFamily } = node.loomChosen, chosen = at(node, "preset"), family = at(node, "family"), byFamily = chosen === was;
    if (loading || (byFamily && family === wasFamily)) return settle(node);
    return changing(async () => take(node, { was, wasFamily, chosen, family, byFamily }));  // the name and its values
}

async function take(node, { was, wasFamily, chosen, family, byFamily }) {
    const presets = await allPresets(), preset = presets[chosen];
    if (node.graph?.getNodeById(node.id) !== node) return;  // another graph has been opened meanwhile
    if (at(node, "preset") !== chosen || at(node, "family") !== family) return;  // another choice has been made
    if (preset?.error) say("error", preset.error);
    if (!preset?.values) {  // what is shown is what the values are from
        return fill(node, { preset: was, family: wasFamily });
    }
    settle(node);
    const values = says(preset, family), before = says(preset, wasFamily);
    for (const one of [node, ...trainersOf(node)]) {
        const stays = (w) => byFamily && String(w.value) !== String(before[w.name]);
        fill(one, Object.fromEntries(one.widgets.filter((w) => w.name in values && !stays(w)).map((w) => [w.name, values[w.name]])));
    }
}

async function save(node) {
    const name = (await ask(words().savePreset, words().presetName))?.trim();
    if (!name) return;
    const values = valuesOf(here(node));
    let answer = await savePreset(name, values);
    if (answer?.exists && (await sure(words().replace(name)))) answer = await savePreset(name, values, true);
    if (!answer?.name) return;
    for (const other of everyNode(root())) if (other.comfyClass === "LoRAConfig") list(widgetOf(other, "preset"), answer.name);
    fill(node, { preset: answer.name });
    settle(node);
    say("success", words().saved(answer.name));
}

async function load(node, file) {
    const text = await file.text();
    if (await changing(() => fillConfig(node, text))) say("success", words().loaded(file.name));
}

function pick(node) {
    const input = Object.assign(document.createElement("input"), { type: "file", accept: ".yaml,.yml" });
    input.onchange = () => input.files[0] && load(node, input.files[0]);
    input.click();
}

const yamlOf = (event) => [...(event.dataTransfer?.files ?? [])].find((file) => /\.ya?ml$/i.test(file.name));
const dragged = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");

app.registerExtension({
    name: "lora_loom.presets",
    setup() {
        const load = app.loadApiJson;
        if (!load) return;
        app.loadApiJson = async function (...given) {
            loading = true;
            try {
                return await load.apply(this, given);
            } finally {
                loading = false;
            }
        };
    },
    async nodeCreated(node) {
        if (node.comfyClass !== "LoRAConfig") return;
        for (const name of ["preset", "family"]) {
            const chooser = node.widgets?.find((w) => w.name === name);
            if (!chooser) continue;
            const before = chooser.callback;
            chooser.callback = async function (...values) {
                before?.apply(this, values);
                await choose(node);
            };
        }
        settle(node);
        after(node, "onConfigure", () => settle(node));
        const menu = node.getExtraMenuOptions;
        node.getExtraMenuOptions = function (canvas, options) {
            const more = menu?.apply(this, [canvas, options]) ?? [];
            options.push({ content: words().savePreset, callback: () => save(node) }, { content: words().loadSettings, callback: () => pick(node) });
            return more;
        };
        const over = node.onDragOver, drop = node.onDragDrop;
        node.onDragOver = function (event) { return dragged(event) || Boolean(over?.call(this, event)); };
        node.onDragDrop = function (event) {
            const file = yamlOf(event);
            if (!file) return drop?.call(this, event) ?? false;
            load(node, file);
            return true;
        };
    },
});
