// Speeds and sizes as the user's settings want them.
import { setting } from "./settings.mjs";

export const SPEED = "LoraLoom.Speed", SIZES = "LoraLoom.Sizes";
export const SPEEDS = ["auto", "it/s", "s/it"];
export const UNITS = { "GB": [2 ** 30, "GB"], "GiB": [2 ** 30, "GiB"], "GB (1000)": [1e9, "GB"] };  // the first as graphics cards are sold

// perSecond: steps a second; each and every: what a language calls it/s and s/it.
export function speed(perSecond, each, every) {
    const wanted = setting(SPEED) ?? "auto";
    const fast = !perSecond || (wanted === "auto" ? perSecond >= 1 : wanted === "it/s");
    const shown = fast ? perSecond : 1 / perSecond;
    return `${shown.toFixed(2)} ${fast ? each : every}`;
}

export function gigabytes(bytes) {
    const [one, name] = UNITS[setting(SIZES)] ?? UNITS.GB;
    return `${(bytes / one).toFixed(1)} ${name}`;
}
