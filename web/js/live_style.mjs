// The looks of the live panel.
import { el } from "./modal.mjs";
import { addStyle, FONT, STATES, THEME } from "./theme.mjs";

const STYLE = `
    .loom-live { ${THEME}
        --loom-loss: color-mix(in srgb, var(--strong) 45%, transparent); --loom-grid: color-mix(in srgb, var(--soft) 28%, transparent); --loom-rate: color-mix(in srgb, var(--soft) 80%, transparent);
        position: relative; box-sizing: border-box; height: 100%; min-height: var(--loom-height); font: 12px/1.4 ${FONT}; color: var(--text); }
    .loom-live .inside { container-type: inline-size; position: absolute; inset: 2px 0; display: flex; flex-direction: column; gap: 5px; min-height: 0; }
    .loom-live [hidden] { display: none !important; }
    .loom-live .head { flex: none; height: 36px; overflow: hidden; }
    .loom-live .head div { display: flex; gap: 8px; white-space: nowrap; height: 18px; }
    .loom-live .head b { font-weight: 600; overflow: hidden; text-overflow: ellipsis; }
    .loom-live .head b::before { content: ""; display: inline-block; width: 8px; height: 8px; border-radius: 50%; margin-right: 6px; background: var(--soft); }
    ${Object.entries(STATES).map(([status, color]) => `.loom-live[data-status=${status}] .head b::before { background: ${color}; }`).join("\n    ")}
    .loom-live.wrong .head b::before { background: var(--wrong); }
    .loom-live .numbers { margin-left: auto; font-variant-numeric: tabular-nums; }
    .loom-live .soft { color: var(--soft); font-variant-numeric: tabular-nums; overflow: hidden; text-overflow: ellipsis; }
    .loom-live .room { margin-left: auto; color: var(--soft); font-variant-numeric: tabular-nums; flex: none; }
    @container (max-width: 480px) {  /* what is known takes two lines */
        .loom-live .head { height: 54px; }
        .loom-live .head div + div { display: block; white-space: normal; height: 36px; }
        .loom-live .head .room:not(:empty)::before { content: " · "; }
    }
    .loom-live .done { flex: none; height: 3px; border-radius: 2px; background: var(--field); overflow: hidden; }
    .loom-live .done i { display: block; height: 100%; width: 0; background: var(--strong); }
    .loom-live .chart { flex: 3 1 0; min-height: 84px; position: relative; overflow: hidden; border-radius: 6px; background: var(--field); }
    .loom-live .chart .uplot { position: absolute; left: 0; top: 0; }
    .loom-live .chart.empty .uplot { visibility: hidden; }
    .loom-live .chart::after { content: attr(data-hint); position: absolute; inset: 0; display: none; align-items: center; justify-content: center; color: var(--soft); pointer-events: none; }
    .loom-live .chart.empty::after { display: flex; }
    .loom-live .reading { position: absolute; z-index: 1; top: 2px; left: 42px; right: 42px; font-size: 10px; color: var(--text); pointer-events: none; text-shadow: 0 0 3px var(--field), 0 0 3px var(--field);
        white-space: nowrap; overflow: hidden; text-overflow: ellipsis; text-align: right; }
    .loom-live .film { flex: 2 1 0; min-height: 76px; display: flex; gap: 4px; border-radius: 6px; background: var(--field); padding: 4px; position: relative; overflow: hidden; }
    .loom-live .film button { flex: 1 1 0; min-width: 0; padding: 0; border: 0; background: none; cursor: zoom-in; height: 100%; border-radius: 4px; }
    .loom-live .film img { width: 100%; height: 100%; object-fit: contain; display: block; border-radius: 4px; }
    .loom-live .film.empty::after { content: attr(data-hint); position: absolute; inset: 0; display: flex; align-items: center; justify-content: center; text-align: center; color: var(--soft); padding: 0 12px; }
    .loom-live .time { flex: none; height: 18px; display: flex; gap: 8px; align-items: center; }
    .loom-live .time input { flex: 1 1 0; min-width: 0; accent-color: var(--strong); margin: 0; }
    .loom-live .time span { flex: none; min-width: 5.5em; text-align: right; color: var(--soft); font-variant-numeric: tabular-nums; }
    .loom-live .buttons { flex: none; display: flex; gap: 6px; }
    .loom-live .buttons button { font: inherit; color: var(--text); background: var(--field); border: 0; border-radius: 8px; padding: 0 6px; min-height: 28px; cursor: pointer; flex: 1 1 auto; min-width: 0; overflow-wrap: anywhere; }
    .loom-live .buttons .strong { background: var(--strong); color: var(--strong-text); flex-grow: 2; }
    .loom-live button:hover:not(:disabled, .strong) { background: var(--hover); }
    .loom-live .strong:hover { filter: brightness(1.12); }
    .loom-live button:disabled { opacity: .45; cursor: default; }
    .loom-live :focus-visible { outline: 2px solid var(--strong); outline-offset: -2px; }
    .loom-live .says { flex: 0 0 58px; overflow-y: auto; scrollbar-width: thin; border-radius: 6px; padding: 3px 6px; box-sizing: border-box; background: var(--field); user-select: text; overflow-wrap: anywhere; }
    .loom-live .says p { margin: 0 0 3px; white-space: pre-line; padding-left: 10px; border-left: 2px solid var(--line); }
    .loom-live .says .warning { border-color: var(--warn); }
    .loom-live .says .error { border-color: var(--wrong); color: var(--text); }
    .loom-live[data-status=failed] .says { flex: 1 0 58px; }
    .loom-live[data-status=failed] .film.empty, .loom-live[data-status=failed] .film.empty + .time { display: none; }
`;

export function liveStyle() {
    addStyle("live", STYLE);
    if (!document.getElementById("loom-uplot")) document.head.append(el("link", { id: "loom-uplot", rel: "stylesheet", href: new URL("./lib/uplot.css", import.meta.url).href }));
}
