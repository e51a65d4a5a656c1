// What the server has said, in the page's language: its messages, reports and plans are English, and messages.zh.json has the Chinese of each.
import { api } from "../../scripts/api.js";
import { translator } from "./messages.mjs";
import { chinese } from "./settings.mjs";

let chineseOf = null, loading = null, shown = {};

// The table, and the names that the canvas shows for nodes and inputs; once, and only where the page is Chinese.
export function loadMessages() {
    loading ??= Promise.all([
        fetch(new URL("messages.zh.json", import.meta.url)).then((answer) => answer.json()),
        api.fetchApi("/i18n").then((answer) => answer.json()).then((found) => found.zh?.nodeDefs).catch(() => ({})),
    ]).then(([table, names = {}]) => { [chineseOf, shown] = [translator(table, names), names]; }).catch((error) => console.warn("LoRA Loom: messages stay English", error));
    return loading;
}

// Nodes and inputs by the titles that the canvas shows: "set Train LoRA's steps" for "set TrainLoRA.steps". Names of files and runs stay as they are.
const ID = /(?<![\w'"/\\.-])([A-Z][a-z]+[A-Z]\w*)(?:\.([a-z]\w*))?(?![\w/\\-])/g;

function titled(text) {
    return text.replace(ID, (all, id, input) => {
        const kind = window.LiteGraph?.registered_node_types?.[id], { required, optional } = kind?.nodeData?.input ?? {};
        if (kind?.nodeData?.category !== "LoRA Loom" || (input && !required?.[input] && !optional?.[input])) return all;
        return input ? `${kind.title}'s ${input}` : kind.title;
    });
}

// What a Chinese canvas calls a setting of a run; "" where it has no name of its own.
export function settingName(name) {
    if (!chinese()) return "";
    loadMessages();
    return ["LoRAConfig", "TrainLoRA", "LoadDataset", "AugmentDataset"].map((node) => shown[node]?.inputs?.[name]?.name).find((label) => label && label !== name) ?? "";
}

// The text as it is where nothing is known of it, and until the Chinese table is there.
export function translated(text) {
    if (!text) return text;
    if (!chinese()) return typeof text === "string" ? titled(text) : text;
    if (!chineseOf) loadMessages();
    return chineseOf?.(text) ?? text;
}
