// Sizes, times, rates and numbers as all views write them; the first as the user's settings want them.
import { chinese, setting } from "./settings.mjs";

export const SPEED = "LoraLoom.Speed", SIZES = "LoraLoom.Sizes";
export const SPEEDS = ["auto", "it/s", "s/it"];
export const UNITS = {  // the first as graphics cards are sold
    "GB": [1024, ["B", "KB", "MB", "GB"]], "GiB": [1024, ["B", "KiB", "MiB", "GiB"]], "GB (1000)": [1000, ["B", "kB", "MB", "GB"]],
};

// perSecond: steps a second.
export function speed(perSecond) {
    const wanted = setting(SPEED) ?? "auto", [each, every] = chinese() ? ["步/秒", "秒/步"] : ["it/s", "s/it"];
    const fast = !perSecond || (wanted === "auto" ? perSecond >= 1 : wanted === "it/s");
    const shown = fast ? perSecond : 1 / perSecond;
    return `${shown.toFixed(2)} ${fast ? each : every}`;
}

const units = () => UNITS[setting(SIZES)] ?? UNITS.GB;

// In the largest unit that there is at least one of: gigabytes with a digit, smaller ones where they are below ten.
export function size(bytes) {
    const [base, names] = units(), power = [3, 2, 1].find((n) => bytes >= base ** n) ?? 0, shown = bytes / base ** power;
    return `${shown.toFixed(power && (power === 3 || shown < 10) ? 1 : 0)} ${names[power]}`;
}

// Of what changes while it is looked at: always in gigabytes.
export function gigabytes(bytes) {
    const [base, names] = units();
    return `${(bytes / base ** 3).toFixed(1)} ${names[3]}`;
}

// Seconds as 12 s, 3:07 or 1:02:09.
export function duration(seconds) {
    const whole = Math.max(0, Math.round(seconds)), two = (n) => String(n).padStart(2, "0");
    if (whole < 60) return chinese() ? `${whole} 秒` : `${whole} s`;
    const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
    return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

const language = () => (chinese() ? "zh" : "en");

export const moment = (seconds) => new Intl.DateTimeFormat(language(), { dateStyle: "medium", timeStyle: "short" }).format(seconds * 1000);

// How long ago, in the largest unit that fits.
export function ago(seconds) {
    const past = seconds - Date.now() / 1000, lengths = [["year", 31_536_000], ["month", 2_592_000], ["day", 86_400], ["hour", 3600], ["minute", 60]];
    const [unit, length] = lengths.find(([, least]) => Math.abs(past) >= least) ?? ["minute", 60];
    return new Intl.RelativeTimeFormat(language(), { numeric: "auto", style: "narrow" }).format(Math.trunc(past / length), unit);
}

export const count = (n) => (n >= 1e9 ? `${(n / 1e9).toFixed(2)} B` : n >= 1e6 ? `${(n / 1e6).toFixed(1)} M` : n >= 1e3 ? `${(n / 1e3).toFixed(0)} k` : `${n}`);

// A loss or a rate.
export const number = (value) => (value === null || value === undefined ? "" : value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(2) : value.toFixed(4));

// At an axis, with so many digits.
export const tick = (value, digits) => (value && (Math.abs(value) < 0.001 || Math.abs(value) >= 10000) ? value.toExponential(0) : String(Number(value.toPrecision(digits))));
