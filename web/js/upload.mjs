// Pictures, folders and zips from the user's disk into a new folder of ComfyUI's input folder, and what was left out of them.
import { words } from "./captions_words.mjs";
import { el, openModal } from "./modal.mjs";
import { urlOf } from "./server.mjs";
import { translated } from "./translated.mjs";
import { size } from "./units.mjs";

export const dragged = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");

// [{file, path}] of what was dropped, folders with all that is in them. What was dropped must be asked for before anything else is awaited.
export async function droppedFiles(transfer) {
    const items = [...transfer.items].filter((item) => item.kind === "file"), entries = items.map((item) => item.webkitGetAsEntry?.());
    if (entries.some((entry) => !entry)) return [...transfer.files].map((file) => ({ file, path: file.name }));
    const found = [];
    const walk = async (entry, inside) => {
        const path = inside + entry.name;
        if (entry.isFile) return found.push({ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), path });
        const reader = entry.createReader();
        for (let some; (some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))).length;) for (const one of some) await walk(one, `${path}/`);
    };
    for (const entry of entries) await walk(entry, "");
    return found;
}

export function pickFiles() {
    return new Promise((resolve) => {
        const input = el("input", { type: "file", multiple: true, accept: "image/*,.avif,.tif,.tiff,.zip,.txt,.caption,.csv,.jsonl" });
        input.onchange = () => resolve([...input.files].map((file) => ({ file, path: file.name })));
        input.oncancel = () => resolve([]);
        input.click();
    });
}

// A name to begin with: the zip's, the folder's, else one that says nothing.
function suggestion(files) {
    const top = new Set(files.map(({ path }) => (path.includes("/") ? path.split("/")[0] : "")));
    const zip = files.length === 1 && /\.zip$/i.test(files[0].path) ? files[0].path.replace(/\.zip$/i, "") : "";
    const name = zip || (top.size === 1 ? [...top][0] : "") || "pictures";
    return allowed(name).slice(0, 40) || "pictures";
}

// As a folder may be called on every system, as far as it is known here: the server has the rule (trainer/names.py).
const RESERVED = /^(con|prn|aux|nul|conin\$|conout\$|com[1-9]|lpt[1-9]) *(\.|$)/i;
const allowed = (name) => name.replace(/[\\/:*?"<>|\p{Cc}\p{Cs}\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu, "_").replace(/^[ .]+|[ .]+$/g, "").replace(RESERVED, "my_$&");

export function askName(files) {
    return new Promise((resolve) => {
        const w = words(), { dialog, close } = openModal(w.newFolder, "small"), total = files.reduce((sum, { file }) => sum + file.size, 0);
        const name = el("input", { type: "text", value: suggestion(files), required: true, maxLength: 100, "aria-label": w.folderName });
        const hint = el("div", { className: "soft", role: "status" });
        let answer = null;
        const submit = (event) => {
            event.preventDefault();
            const given = name.value.trim(), mended = allowed(given) || "pictures";
            if (given === mended) {
                answer = given;
                return close();
            }
            name.value = mended;  // to be looked at; nothing is sent under a name that would be refused
            hint.textContent = w.mended;
            name.select();
        };
        dialog.append(el("form", { onsubmit: submit }, el("h2", { textContent: w.newFolder }),
            el("div", { className: "soft", textContent: w.files(files.length, size(total)) }), name, hint,
            el("div", { className: "right" }, el("button", { type: "button", textContent: w.cancel, onclick: close }), el("button", { type: "submit", className: "strong", textContent: w.start }))));
        dialog.addEventListener("gone", () => resolve(answer));
        name.select();
    });
}

// Resolves to the server's {folder, files, refused, notes, error}, whatever came of it. progress(0…1); `signal` cancels.
export function send(files, name, progress, signal) {
    return new Promise((resolve) => {
        const form = new FormData(), request = new XMLHttpRequest();  // fetch tells nothing of how much has been sent
        for (const { file, path } of files) form.append("file", file, path);
        request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
        request.responseType = "json";
        request.onload = () => resolve(request.response ?? { error: `${request.status} ${request.statusText}` });
        request.onerror = () => resolve({ error: words().lost });
        request.onabort = () => resolve({ error: words().cancelled });
        signal.addEventListener("abort", () => request.abort());
        request.open("POST", urlOf("dataset/upload", { name }));
        request.send(form);
    });
}

// What was left out and why; nothing where there is nothing to say.
export function showRefused({ error, refused = [], notes = [] }) {
    if (!error && !refused.length && !notes.length) return;
    const w = words(), { dialog, close } = openModal(w.refusedTitle, "small");
    const title = error ? w.nothing : refused.length ? w.refusedTitle : w.notesTitle;
    const noted = notes.map((note) => el("div", { className: "soft", textContent: translated(note) }));
    dialog.append(el("div", { className: "body" }, el("h2", { textContent: title }),
        error ? el("div", { textContent: translated(error) }) : null, ...(refused.length ? [] : noted),
        el("ul", { className: "list" }, ...refused.slice(0, 500).map(([name, why]) => el("li", {}, el("b", { textContent: name }), el("span", { className: "soft", textContent: translated(why) }))),
            ...(refused.length > 500 ? [el("li", { textContent: w.more(refused.length - 500) })] : [])),
        ...(refused.length && noted.length ? [el("h2", { textContent: w.notesTitle }), ...noted] : []),
        el("div", { className: "right" }, el("button", { className: "strong", textContent: w.close, onclick: close }))));
    dialog.querySelector("button").focus();
}
