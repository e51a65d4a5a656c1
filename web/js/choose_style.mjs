// The looks of Choose Checkpoint's grid.
import { addStyle, FONT, THEME } from "./theme.mjs";

const STYLE = `
    .loom-choose { ${THEME}
        position: relative; box-sizing: border-box; height: 100%; min-height: var(--loom-height); font: 12px/1.4 ${FONT}; color: var(--text); }
    .loom-choose .inside { position: absolute; inset: 2px 0; display: flex; flex-direction: column; gap: 5px; min-height: 0; }
    .loom-choose [hidden] { display: none !important; }
    .loom-choose .head { flex: none; height: 18px; display: flex; gap: 8px; white-space: nowrap; overflow: hidden; }
    .loom-choose .head b { font-weight: 600; overflow: hidden; text-overflow: ellipsis; }
    .loom-choose .numbers { margin-left: auto; font-variant-numeric: tabular-nums; color: var(--soft); }
    .loom-choose .done { flex: none; height: 3px; border-radius: 2px; background: var(--field); overflow: hidden; }
    .loom-choose .done i { display: block; height: 100%; width: 0; background: var(--strong); }
    .loom-choose .board { flex: 1 1 0; min-height: 120px; overflow: auto; border-radius: 6px; background: var(--field); position: relative; overscroll-behavior: contain; scrollbar-width: thin; scrollbar-color: var(--line) transparent;
        scroll-padding: 40px 4px 4px 56px; }
    .loom-choose .board.empty::after { content: attr(data-hint); position: absolute; inset: 0; display: flex; align-items: center; justify-content: center; text-align: center; color: var(--soft); padding: 0 16px; }
    .loom-choose .cells { display: grid; grid-template-columns: 52px repeat(var(--columns), minmax(64px, 1fr)); gap: 4px; box-sizing: border-box; padding: 0 4px 4px 0;
        min-width: calc(56px + var(--columns) * 68px); max-width: calc(56px + var(--columns) * 264px); }
    .loom-choose .row { display: contents; }
    .loom-choose .across, .loom-choose .down { position: sticky; background: var(--field); z-index: 2; box-sizing: border-box; }
    .loom-choose .across { top: 0; padding: 3px 2px; text-align: center; font-variant-numeric: tabular-nums; max-height: 38px; min-height: 22px; min-width: 0; overflow: hidden; overflow-wrap: anywhere; line-height: 16px;
        display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical; }
    .loom-choose .down { left: 0; padding: 2px 4px; text-align: right; display: flex; flex-direction: column; justify-content: center; font-variant-numeric: tabular-nums; min-width: 0; }
    .loom-choose .down small { font-size: 10px; line-height: 13px; color: var(--soft); }
    .loom-choose .corner { left: 0; z-index: 3; color: var(--soft); font-size: 10px; text-align: right; padding-right: 4px; word-break: keep-all; overflow-wrap: normal; }
    .loom-choose .cell { position: relative; aspect-ratio: var(--aspect); border-radius: 4px; background: color-mix(in srgb, var(--text) 7%, transparent); min-width: 0; }
    .loom-choose .cell .pick { position: absolute; inset: 0; width: 100%; height: 100%; padding: 0; border: 0; background: none; border-radius: 4px; cursor: pointer; overflow: hidden; }
    .loom-choose .cell .pick[aria-disabled=true] { cursor: default; }
    .loom-choose .cell img { width: 100%; height: 100%; object-fit: contain; display: block; border-radius: 4px; }
    .loom-choose .cell::before { content: ""; position: absolute; inset: 0; z-index: 1; border-radius: 4px; pointer-events: none; }
    .loom-choose .cell.handed::before { box-shadow: inset 0 0 0 2px var(--soft), inset 0 0 0 3px var(--field); }
    .loom-choose .cell.chosen::before { box-shadow: inset 0 0 0 3px var(--strong), inset 0 0 0 4px var(--field); }
    .loom-choose .cell.chosen::after { content: "\\2713"; position: absolute; z-index: 1; left: 5px; bottom: 5px; width: 18px; height: 18px; line-height: 18px; text-align: center; border-radius: 50%; font-weight: 700; background: var(--strong);
        color: var(--strong-text); pointer-events: none; }
    .loom-choose .look { position: absolute; z-index: 1; top: 3px; right: 3px; width: 22px; height: 22px; padding: 3px; border: 0; border-radius: 5px; background: color-mix(in srgb, var(--panel) 85%, transparent); color: var(--text); cursor: zoom-in; opacity: 0; }
    .loom-choose .look svg { display: block; width: 16px; height: 16px; }
    .loom-choose .cell:hover .look, .loom-choose .cell:focus-within .look { opacity: 1; }
    .loom-choose .foot { flex: none; height: 46px; display: flex; gap: 8px; align-items: flex-start; }
    .loom-choose .says { flex: 1 1 0; min-width: 0; height: 100%; overflow-y: auto; scrollbar-width: thin; overflow-wrap: anywhere; user-select: text; }
    .loom-choose .says p { margin: 0 0 2px; }
    .loom-choose .says .soft { color: var(--soft); }
    .loom-choose .says .warning { padding-left: 8px; border-left: 2px solid var(--warn); }
    .loom-choose .says .error { padding-left: 8px; border-left: 2px solid var(--wrong); }
    .loom-choose .foot button { flex: none; font: inherit; color: var(--text); background: var(--field); border: 0; border-radius: 8px; padding: 0 10px; height: 28px; cursor: pointer; }
    .loom-choose .foot button:hover { background: var(--hover); }
    .loom-choose :focus-visible { outline: 2px solid var(--text); outline-offset: -2px; }
`;

export const chooseStyle = () => addStyle("choose", STYLE);
