// The looks of the list of runs, and of the dialog that compares them.
import { addStyle, FONT, STATES, THEME } from "./theme.mjs";

export const HEIGHT = 166;  // of a run in the list, its gap included
export const COLORS = ["#3b8eea", "#e8833a", "#2fae86", "#d65db1", "#b8941f", "#8b78f2", "#e05263", "#3aa6b9"];  // seen on dark and on light

const states = (inside) => Object.entries(STATES).reduce(
    (css, [status, color]) => `${css}
    ${inside} [data-status=${status}] .state::before { background: ${color}; }`, `
    ${inside} .state { flex: none; display: inline-flex; align-items: center; gap: 5px; color: var(--soft); white-space: nowrap; }
    ${inside} .state::before { content: ""; width: 8px; height: 8px; border-radius: 50%; background: var(--soft); flex: none; }`);

const LIST = `
    .loom-runs { ${THEME}
        height: 100%; min-height: 0; display: flex; flex-direction: column; box-sizing: border-box; font: 12px/1.4 ${FONT}; color: var(--text); }
    .loom-runs [hidden] { display: none !important; }
    .loom-runs button, .loom-runs input, .loom-runs select { font: inherit; color: inherit; box-sizing: border-box; margin: 0; }
    .loom-runs button { background: var(--field); border: 0; border-radius: 8px; padding: 0 10px; min-height: 28px; cursor: pointer; }
    .loom-runs button:hover:not(:disabled) { background: var(--hover); }
    .loom-runs button:disabled { opacity: .35; cursor: default; }
    .loom-runs button.strong:not(:disabled) { background: var(--strong); color: var(--strong-text); }
    .loom-runs :focus-visible { outline: 2px solid var(--strong); outline-offset: -2px; }
    .loom-runs .top { flex: none; display: flex; flex-direction: column; gap: 6px; padding: 10px 10px 8px; }
    .loom-runs .top > div { display: flex; gap: 6px; align-items: center; flex-wrap: wrap; }
    .loom-runs .top b { flex: 1; font-size: 14px; font-weight: 600; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
    .loom-runs .top input { flex: 1 1 120px; min-width: 0; } .loom-runs .top select { flex: 0 1 auto; min-width: 0; }
    .loom-runs .top input, .loom-runs .top select { height: 30px; background: var(--field); border: 1px solid var(--line); border-radius: 8px; padding: 0 8px; }
    .loom-runs .top option { background: var(--panel); color: var(--text); }
    .loom-runs .compare { flex: 1; }
    .loom-runs .grid { flex: 1; min-height: 0; overflow-y: auto; overflow-x: hidden; position: relative; padding: 0 6px; scrollbar-width: thin; scrollbar-color: var(--line) transparent; }
    .loom-runs .room { position: relative; }
    .loom-runs .empty { padding: 32px 16px; text-align: center; color: var(--soft); white-space: pre-line; }
    .loom-runs .run { position: absolute; top: 0; left: 0; height: ${HEIGHT}px; padding: 4px; box-sizing: border-box; contain: strict; }
    .loom-runs .run > div { height: 100%; box-sizing: border-box; display: flex; flex-direction: column; gap: 3px; padding: 6px 8px; border-radius: 10px; background: color-mix(in srgb, var(--field) 55%, transparent); border: 1px solid color-mix(in srgb, var(--line) 40%, transparent); }
    .loom-runs .run:hover > div { background: var(--field); }
    .loom-runs .run.chosen > div { border-color: var(--strong); }
    .loom-runs .head { display: flex; gap: 6px; align-items: center; height: 22px; flex: none; }
    .loom-runs .head input { width: 15px; height: 15px; accent-color: var(--strong); flex: none; }
    .loom-runs .run button { background: none; }
    .loom-runs .run button.name { flex: 1; min-width: 0; min-height: 22px; padding: 0 3px; text-align: left; font-weight: 600; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; border-radius: 4px; }
    .loom-runs .facts { flex: none; height: 17px; color: var(--soft); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; font-variant-numeric: tabular-nums; }
    .loom-runs .seen { flex: 1; min-height: 0; display: flex; gap: 5px; }
    .loom-runs .curve { flex: 1; min-width: 0; position: relative; border-radius: 6px; background: var(--field); display: flex; align-items: center; justify-content: center; color: var(--soft); }
    .loom-runs .run:hover .curve { background: color-mix(in srgb, var(--panel) 55%, transparent); }
    .loom-runs .curve svg { position: absolute; inset: 4px 5px; width: calc(100% - 10px); height: calc(100% - 8px); overflow: visible; }
    .loom-runs .curve path { fill: none; stroke: var(--strong); stroke-width: 1.5; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
    .loom-runs .run button.picture { flex: none; padding: 0; height: 100%; aspect-ratio: 1; max-width: 40%; position: relative; border-radius: 6px; overflow: hidden; background: var(--field); min-height: 0; }
    .loom-runs .picture img { width: 100%; height: 100%; object-fit: cover; display: block; }
    .loom-runs .picture span { position: absolute; left: 0; right: 0; bottom: 0; padding: 7px 3px 1px; font-size: 10px; color: #fff; background: linear-gradient(transparent, #000b); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
    .loom-runs .done { flex: none; height: 2px; border-radius: 1px; overflow: hidden; } .loom-runs .done i { display: block; height: 100%; width: 0; background: var(--strong); }
    .loom-runs .acts { flex: none; display: flex; gap: 2px; height: 26px; margin: 0 -4px -2px; }
    .loom-runs .acts button { padding: 0; width: 32px; min-height: 26px; color: var(--soft); flex: 0 1 32px; min-width: 0; }
    .loom-runs .acts button:hover:not(:disabled), .loom-runs .acts button:focus-visible { color: var(--text); }
    .loom-runs .acts .gap { flex: 1; }
    .loom-runs .notice { flex: none; display: flex; gap: 6px; align-items: center; padding: 6px 10px; border-top: 1px solid var(--line); background: color-mix(in srgb, var(--strong) 14%, transparent); }
    .loom-runs .notice span { flex: 1; min-width: 0; overflow-wrap: anywhere; }
    .loom-runs .foot { flex: none; display: flex; gap: 8px; justify-content: space-between; align-items: center; flex-wrap: wrap; padding: 5px 10px; border-top: 1px solid var(--line); color: var(--soft); font-variant-numeric: tabular-nums; min-height: 30px; }
    .loom-runs .foot button { min-height: 24px; padding: 0 8px; background: none; text-decoration: underline; text-underline-offset: 2px; }
    ${states(".loom-runs")}`;

export const COMPARE = `
    dialog.runs { width: 96vw; height: 94vh; max-width: 120rem; max-height: none; }
    dialog.runs[open] { display: flex; flex-direction: column; }
    .runs header h2 { flex: 1; }
    .runs .all { flex: 1; min-height: 0; overflow: auto; padding: 0 1rem 1rem; outline: none; }
    .runs .empty { padding: 3rem 1rem; text-align: center; color: var(--soft); }
    .who { display: flex; flex-wrap: wrap; gap: .6rem; padding: .8rem 0; }
    .who > div { flex: 1 1 14rem; min-width: min(14rem, 100%); max-width: 34rem; background: var(--field); border-radius: .6rem; border-top: 3px solid var(--color); padding: .5rem .7rem; display: flex; flex-direction: column; gap: .35rem; box-sizing: border-box; }
    .who .head { display: flex; gap: .5rem; align-items: center; } .who b { flex: 1; min-width: 0; font-weight: 600; overflow-wrap: anywhere; }
    .who .value { font-variant-numeric: tabular-nums; min-height: 1.4em; } .who .report { color: var(--soft); font-size: .9em; max-height: 4.2em; overflow: auto; overflow-wrap: anywhere; }
    .who .row button { padding: .3em .6em; font-size: .93em; background: var(--panel); } .who .row button:hover:not(:disabled) { background: var(--hover); }
    .runs h3 { display: flex; flex-wrap: wrap; gap: .4rem .8rem; align-items: center; margin: 1rem 0 .5rem; font-size: .95rem; font-weight: 600; min-height: 2.1rem; }
    .runs h3 > span { color: var(--soft); } .runs h3 > .end { margin-left: auto; } .runs h3 > :not(b) { font-size: .875rem; font-weight: 400; }
    .runs h3 input[type=range] { flex: 1 1 10rem; max-width: 40rem; min-width: 6rem; accent-color: var(--strong); }
    .runs option { background: var(--panel); color: var(--text); }
    .plot { height: clamp(13rem, 38vh, 30rem); background: var(--field); border-radius: .6rem; position: relative; overflow: hidden; }
    .plot .uplot { position: absolute; inset: 0; } .plot .none { position: absolute; inset: 0; display: flex; align-items: center; justify-content: center; color: var(--soft); }
    .table { overflow-x: auto; border-radius: .6rem; }
    .runs table { border-collapse: separate; border-spacing: 0; width: 100%; }
    .runs th, .runs td { text-align: left; padding: .3rem .6rem; vertical-align: top; border-bottom: 1px solid color-mix(in srgb, var(--line) 60%, transparent); overflow-wrap: anywhere; font-weight: 400; }
    .runs th[scope=row] { color: var(--soft); width: 12rem; min-width: 7rem; position: sticky; left: 0; background: var(--panel); z-index: 1; }
    .runs thead th { font-weight: 600; border-bottom: 2px solid var(--color, var(--line)); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; max-width: 20rem; }
    .runs tr.part th { color: var(--text); font-weight: 600; padding-top: .8rem; } .runs tr.differs td { background: color-mix(in srgb, var(--strong) 12%, transparent); }
    .samples td { min-width: 9rem; } .samples td button { padding: 0; border-radius: .5rem; background: var(--field); display: block; width: 100%; max-width: 17rem; overflow: hidden; cursor: zoom-in; }
    .samples img { width: 100%; aspect-ratio: 1; object-fit: contain; display: block; } .samples .at { display: flex; gap: .5em; padding: .2rem 0 0; color: var(--soft); font-variant-numeric: tabular-nums; font-size: .9em; }
    .samples .at b { color: var(--text); font-weight: 600; } .samples.steps td { min-width: 0; width: 8.5rem; } .samples.steps td > div { width: 8.5rem; } .samples.steps .who-is { border-left: 3px solid var(--color); }
    .runs pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--field); border-radius: .6rem; padding: .6rem; margin: 0 0 .6rem; font-size: .85em; }
    ${states(".runs")}
    @media (max-width: 52rem) { dialog.runs { width: 100vw; height: 100vh; max-width: none; border-radius: 0; border: 0; } .runs .all { padding: 0 .6rem .6rem; } .runs th[scope=row] { width: auto; min-width: 5rem; } }`;

export const listStyle = () => addStyle("runs", LIST);
