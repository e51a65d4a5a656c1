// What the server has said, in the page's language: its messages, reports and plans are English, and messages.zh.json has the Chinese of each.
import { api } from "../../scripts/api.js";
import { translator } from "./messages.mjs";
import { chinese } from "./settings.mjs";

let chineseOf = null, loading = null;

// The table, and the names that the canvas shows for nodes and inputs; once, and only where the page is Chinese.
export function loadMessages() {
    loading ??= Promise.all([
        fetch(new URL("messages.zh.json", import.meta.url)).then((answer) => answer.json()),
        api.fetchApi("/i18n").then((answer) => answer.json()).then((found) => found.zh?.nodeDefs).catch(() => ({})),
    ]).then(([table, names]) => { chineseOf = translator(table, names); }).catch((error) => console.warn("LoRA Loom: messages stay English", error));
    return loading;
}

// The text as it is where the page is not Chinese, where nothing is known of it, and until the table is there.
export function translated(text) {
    if (!text || !chinese()) return text;
    if (!chineseOf) loadMessages();
    return chineseOf?.(text) ?? text;
}
