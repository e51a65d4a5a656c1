// What our extensions say, ask and fill in: words in the page's language, its dialogs, the server's routes, widgets.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { translated } from "./translated.mjs";

const WORDS = {
    en: {
        savePreset: "Save as preset…", presetName: "The preset's name", loadSettings: "Load settings from config.yaml…",
        saved: (name) => `Preset “${name}” is saved.`, loaded: (name) => `Settings from ${name} are filled in.`, failed: "LoRA Loom",
        replace: (name) => `A preset “${name}” exists. Replace it?`, noLora: (name) => `init_lora ${name} is not in ComfyUI's loras folders: it is left out.`,
        more: (n, changed) => `▸ ${n} more settings${changed ? ` · ${changed} changed` : ""}`, fewer: "▾ Fewer settings",
    },
    zh: {
        savePreset: "保存为预设…", presetName: "预设名称", loadSettings: "从 config.yaml 载入设置…",
        saved: (name) => `预设“${name}”已保存。`, loaded: (name) => `已填入 ${name} 中的设置。`, failed: "LoRA Loom",
        replace: (name) => `预设“${name}”已存在，要替换吗？`, noLora: (name) => `ComfyUI 的 loras 文件夹中没有 ${name}（init_lora），已略去。`,
        more: (n, changed) => `▸ 更多设置（${n} 项）${changed ? ` · 已改 ${changed} 项` : ""}`, fewer: "▾ 收起设置",
    },
};

export const setting = (name) => app.extensionManager?.setting?.get(name) ?? app.ui?.settings?.getSettingValue?.(name);

export const chinese = () => String(setting("Comfy.Locale") ?? "en").startsWith("zh");

export const words = () => WORDS[chinese() ? "zh" : "en"];

export function say(severity, detail) {
    app.extensionManager?.toast?.add({ severity, summary: words().failed, detail: translated(detail), life: severity === "error" ? 12000 : 4000 });
}

async function answerOf(request) {
    const response = await request;
    const answer = await response.json().catch(() => ({ error: `${response.status} ${response.statusText}` }));
    if (response.ok) return answer;
    say("error", answer.error);
    return null;
}

export async function ask(title, message, defaultValue = "") {
    const dialog = app.extensionManager?.dialog;
    return dialog?.prompt ? dialog.prompt({ title, message, defaultValue }) : window.prompt(message, defaultValue);
}

// Asked anew each time: presets are files that their owner may edit.
export const allPresets = async () => (await answerOf(api.fetchApi("/lora_loom/presets"))) ?? {};

export const readConfig = (text) => answerOf(api.fetchApi("/lora_loom/config", { method: "POST", body: text }));

export async function sure(question) {
    const dialog = app.extensionManager?.dialog;
    return dialog?.confirm ? dialog.confirm({ title: words().failed, message: question }) : window.confirm(question);
}

export function savePreset(name, node, replace = false) {
    const values = Object.fromEntries(node.widgets.filter((w) => w.serialize !== false).map((w) => [w.name, w.value]));
    return answerOf(api.fetchApi("/lora_loom/presets", { method: "POST", body: JSON.stringify({ name, values, replace }) }));
}

export function fill(node, values) {
    for (const widget of node.widgets) {
        if (widget.name in values) widget.value = values[widget.name];
    }
    node.setDirtyCanvas?.(true, true);
}

// The Train LoRA nodes that this node's config goes to.
export function trainers(node) {
    const links = node.outputs?.[0]?.links ?? [];
    return links.map((id) => node.graph.getNodeById((node.graph.getLink?.(id) ?? node.graph.links[id])?.target_id)).filter((n) => n?.comfyClass === "TrainLoRA");
}

// Of a graph and its subgraphs.
export function everyNode(graph) {
    return (graph?._nodes ?? []).flatMap((node) => [node, ...(node.subgraph ? everyNode(node.subgraph) : [])]);
}
