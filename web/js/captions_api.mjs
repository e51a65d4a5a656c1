// What the caption editor asks the server for. Errors are thrown with the server's own words.
import { get, post, urlOf } from "./server.mjs";

export const changed = (error) => error.status === 409;  // the folder is another than the one that was asked about

// The whole folder at one moment: {pictures, fingerprint, save_as, warnings}. `first` is called with the first page, which comes at once.
export async function listAll(folder, source, first) {
    for (let tries = 0; ; tries += 1) {
        try {
            const whole = await get("dataset", { folder, source });
            first?.(whole);
            while (whole.pictures.length < whole.total) {
                const page = await get("dataset", { folder, source, offset: whole.pictures.length, fingerprint: whole.fingerprint });
                if (!page.pictures.length) break;
                whole.pictures.push(...page.pictures);
            }
            return whole;
        } catch (error) {
            if (!changed(error) || tries > 3) throw error;  // else it changed while it was read: from the start
        }
    }
}

export const listSome = (folder, source, limit) => get("dataset", { folder, source, limit });

export const made = async (folder) => (await get("dataset/made", { folder })).captions;

export const save = (folder, source, fingerprint, saveAs, captions) =>
    post("dataset/captions", { folder, source, fingerprint, save_as: saveAs, captions: Object.fromEntries(captions) });

const picture = (folder, row, size) => urlOf("dataset/thumbnail", { folder, name: row.name, size, v: row.version });

export const thumbnailUrl = (folder, row, side) => picture(folder, row, side * (window.devicePixelRatio || 1) > 220 ? 384 : 192);
export const lookUrl = (folder, row) => picture(folder, row, 768);
