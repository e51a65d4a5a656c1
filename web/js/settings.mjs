// The page's settings, its messages and its dialogs, and what several of our extensions say, in the page's language.
import { app } from "../../scripts/app.js";
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
        replace: (name) => `预设“${name}”已存在，要替换吗？`, noLora: (name) => `ComfyUI 的 loras 文件夹中没有 ${name}，“起始 LoRA”没有填入。`,
        more: (n, changed) => `▸ 更多设置（${n} 项）${changed ? ` · 已改 ${changed} 项` : ""}`, fewer: "▾ 收起设置",
    },
};

export const setting = (name) => app.extensionManager?.setting?.get(name) ?? app.ui?.settings?.getSettingValue?.(name);

export const chinese = () => String(setting("Comfy.Locale") ?? "en").startsWith("zh");

export const words = () => WORDS[chinese() ? "zh" : "en"];

export function say(severity, detail) {
    app.extensionManager?.toast?.add({ severity, summary: words().failed, detail: translated(detail), life: severity === "error" ? 12000 : 4000 });
}

// What an answer to be waited for gives; where there is none, what is wrong has been said.
export const told = (answer) => answer.catch((error) => (say("error", error.message), null));

export async function ask(title, message, defaultValue = "") {
    const dialog = app.extensionManager?.dialog;
    return dialog?.prompt ? dialog.prompt({ title, message, defaultValue }) : window.prompt(message, defaultValue);
}

export async function sure(question) {
    const dialog = app.extensionManager?.dialog;
    return dialog?.confirm ? dialog.confirm({ title: words().failed, message: question }) : window.confirm(question);
}
