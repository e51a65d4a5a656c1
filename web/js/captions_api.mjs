// What the caption editor asks the server for. Errors are thrown with the server's own words.
import { api } from "../../scripts/api.js";
import { translated } from "./translated.mjs";

export class Changed extends Error {}

async function answerOf(route, options) {
    const response = await api.fetchApi(route, options);
    const answer = await response.json().catch(() => ({ error: `${response.status} ${response.statusText}` }));
    if (response.status === 409) throw new Changed(answer.error);
    if (!response.ok) throw new Error(translated(answer.error));
    return answer;
}

const query = (values) => new URLSearchParams(values).toString();

// The whole folder at one moment: {pictures, fingerprint, save_as, warnings}. `first` is called with the first page, which comes at once.
export async function listAll(folder, source, first) {
    for (let tries = 0; ; tries += 1) {
        try {
            const whole = await answerOf(`/lora_loom/dataset?${query({ folder, source })}`);
            first?.(whole);
            while (whole.pictures.length < whole.total) {
                const page = await answerOf(`/lora_loom/dataset?${query({ folder, source, offset: whole.pictures.length, fingerprint: whole.fingerprint })}`);
                if (!page.pictures.length) break;
                whole.pictures.push(...page.pictures);
            }
            return whole;
        } catch (error) {
            if (!(error instanceof Changed) || tries > 3) throw error;  // else it changed while it was read: from the start
        }
    }
}

export const listSome = (folder, source, limit) => answerOf(`/lora_loom/dataset?${query({ folder, source, limit })}`);

export const made = async (folder) => (await answerOf(`/lora_loom/dataset/made?${query({ folder })}`)).captions;

export function save(folder, source, fingerprint, saveAs, captions) {
    const body = JSON.stringify({ folder, source, fingerprint, save_as: saveAs, captions: Object.fromEntries(captions) });
    return answerOf("/lora_loom/dataset/captions", { method: "POST", body });
}

export function thumbnailUrl(folder, row, side) {
    const size = side * (window.devicePixelRatio || 1) > 220 ? 384 : 192;
    return api.apiURL(`/lora_loom/dataset/thumbnail?${query({ folder, name: row.name, size, v: row.version })}`);
}
export const lookUrl = (folder, row) => api.apiURL(`/lora_loom/dataset/thumbnail?${query({ folder, name: row.name, size: 768, v: row.version })}`);

// The folder that a node works on: {folder, source, dataset: LoadDataset's node}; null where no Load Dataset is in front of it.
export function folderOf(node) {
    const seen = new Set();
    for (let at = node; at && !seen.has(at);) {
        seen.add(at);
        if (at.comfyClass === "LoadDataset") {
            const given = (name) => at.getInputNode?.(at.inputs?.findIndex((input) => input.name === name) ?? -1)?.widgets?.[0]?.value;  // by a primitive
            const value = (name) => given(name) ?? at.widgets?.find((w) => w.name === name)?.value;
            return { folder: value("folder"), source: value("caption_source") ?? "auto", dataset: at };
        }
        const slot = Math.max(0, at.inputs?.findIndex((input) => input.name === "dataset") ?? 0);
        at = at.getInputNode?.(slot) ?? null;
    }
    return null;
}
