// The looks of our dialogs, and of what LoadDataset and AutoCaption show.
import { addStyle, FONT, THEME } from "./theme.mjs";

const CONTROLS = `
    button, input, select, textarea { font: inherit; color: inherit; box-sizing: border-box; }
    button { background: var(--button); border: 1px solid transparent; border-radius: .5em; padding: .4em .8em; cursor: pointer; line-height: 1.25; }
    button:hover:not(:disabled) { background: var(--hover); }
    button:disabled { opacity: .45; cursor: default; }
    button.strong { background: var(--strong); color: var(--strong-text); }
    button.strong:hover:not(:disabled) { filter: brightness(1.12); }
    button.bare { background: none; padding: .4em; }
    button.bare:hover { background: var(--hover); }
    button.on { border-color: var(--strong); background: var(--hover); }
    input[type=text], input[type=search], select, textarea { background: var(--field); border: 1px solid var(--line); border-radius: .5em; padding: .4em .6em; min-width: 0; }
    :focus-visible { outline: 2px solid var(--strong); outline-offset: 1px; }
    label { display: inline-flex; gap: .4em; align-items: center; }
    input[type=checkbox] { accent-color: var(--strong); margin: 0; width: 1.1em; height: 1.1em; }
    svg { width: 1.1em; height: 1.1em; vertical-align: -.18em; flex: none; }`;

export const STYLE = `
    dialog { ${THEME}
        font: .875rem/1.4 ${FONT}; color: var(--text); background: var(--panel);
        border: 1px solid var(--line); border-radius: .75rem; padding: 0; box-shadow: 0 1rem 4rem #000a; overflow: hidden; }
    dialog::backdrop { background: #0009; }
    dialog, dialog * { scrollbar-width: thin; scrollbar-color: var(--line) transparent; }
    ${CONTROLS}
    [hidden] { display: none !important; }
    dialog.small { width: min(32rem, 94vw); max-height: 90vh; }
    .small > form, .small > .body { display: flex; flex-direction: column; gap: .9rem; padding: 1.25rem; overflow-wrap: anywhere; }
    h2 { font-size: 1.05rem; font-weight: 600; margin: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
    .soft { color: var(--soft); }
    .right { display: flex; gap: .5rem; justify-content: flex-end; flex-wrap: wrap; }
    .list { overflow: auto; max-height: 55vh; margin: 0; padding: 0; list-style: none; }
    .list li { padding: .5rem .1rem; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
    .list b { display: block; font-weight: 500; }

    dialog.editor { width: 96vw; height: 94vh; max-width: 120rem; max-height: none; }
    dialog.editor[open] { display: flex; flex-direction: column; }
    header { display: flex; align-items: center; gap: .5rem; padding: .75rem 1rem; border-bottom: 1px solid var(--line); flex-wrap: wrap; }
    header h2 { flex: 0 1 auto; }
    header .soft { flex: 1 1 8rem; white-space: nowrap; }
    .main { flex: 1; min-height: 0; display: flex; }
    .left { flex: 1; min-width: 0; min-height: 0; display: flex; flex-direction: column; }
    .filters { display: flex; gap: .5rem; padding: .6rem 1rem; flex-wrap: wrap; }
    .filters input { flex: 1 1 12rem; }
    .filters .toggle { display: none; }
    .grid { flex: 1; min-height: 0; overflow-y: auto; overflow-x: hidden; padding: 0 .6rem .6rem; outline: none; position: relative; }
    .grid > .room { position: relative; }
    .empty { padding: 3rem 1rem; text-align: center; color: var(--soft); }
    .card { position: absolute; top: 0; left: 0; height: 17rem; padding: .35rem; box-sizing: border-box; contain: strict; }
    .card > div { height: 100%; display: flex; flex-direction: column; background: var(--field); border: 1px solid transparent; border-radius: .6rem; overflow: hidden; position: relative; cursor: default; }
    .card:hover > div { background: var(--hover); }
    .card.selected > div { border-color: var(--strong); box-shadow: inset 0 0 0 1px var(--strong); }
    .grid:focus-visible .card.current > div, .grid:focus .card.current > div { outline: 2px solid var(--text); outline-offset: -4px; }
    .card .picture { height: 9.4rem; background: color-mix(in srgb, var(--panel) 60%, #0000); display: flex; align-items: center; justify-content: center; flex: none; color: var(--soft); }
    .card img { max-width: 100%; max-height: 100%; width: 100%; height: 100%; object-fit: contain; }
    .card .mark { position: absolute; top: .4rem; left: .4rem; opacity: 0; background: var(--panel); border-radius: .35em; padding: .25rem; display: flex; }
    .card:hover .mark, .card.selected .mark { opacity: 1; }
    .card .look { position: absolute; top: .4rem; right: .4rem; opacity: 0; background: var(--panel); padding: .25rem .35rem; }
    .card:hover .look { opacity: 1; }
    .card .caption { flex: 1; min-height: 0; padding: .3rem .6rem 0; overflow: hidden; display: -webkit-box; -webkit-line-clamp: 4; -webkit-box-orient: vertical; overflow-wrap: anywhere; cursor: text; }
    .card .caption.none { color: var(--soft); font-style: italic; }
    .card .name { padding: .3rem .6rem .4rem; font-size: .8em; color: var(--soft); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; flex: none; }
    .card.edited .name::before { content: "● "; color: var(--warn); }
    .card textarea { position: absolute; left: .25rem; right: .25rem; --top: 9.4rem; top: var(--top); height: calc(100% - var(--top) - .25rem); width: calc(100% - .5rem); resize: none; background: var(--panel); border-color: var(--strong); outline: none; z-index: 1; }

    .card textarea.long { --top: 20%; }  /* the picture gives way only where the text needs it */
    aside { width: 21rem; flex: none; overflow-y: auto; border-left: 1px solid var(--line); padding: .25rem 1rem 1rem; }
    aside section { padding: .75rem 0; border-bottom: 1px solid var(--line); display: flex; flex-direction: column; gap: .5rem; }
    aside > section:last-child { border: 0; }
    aside h3 { margin: 0; font-size: .85rem; font-weight: 600; color: var(--soft); }
    .row { display: flex; gap: .5rem; flex-wrap: wrap; align-items: center; }
    .row > button { flex: 1 1 auto; }
    .wrong { color: var(--wrong); }
    .tags { display: flex; flex-wrap: wrap; gap: .3rem; }
    .tags button { padding: .2em .6em; border-radius: 1em; max-width: 100%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-size: .9em; }
    .tags button span { color: var(--soft); margin-left: .4em; }
    .notice { display: flex; gap: .75rem; align-items: center; padding: .6rem 1rem; border-top: 1px solid var(--line); background: color-mix(in srgb, var(--warn) 16%, var(--panel)); flex-wrap: wrap; }
    .notice > span { flex: 1 1 16rem; white-space: pre-line; max-height: 9em; overflow-y: auto; overflow-wrap: anywhere; }
    .notice.bad { background: color-mix(in srgb, var(--wrong) 18%, var(--panel)); }
    footer { padding: .45rem 1rem; border-top: 1px solid var(--line); display: flex; gap: 1rem; font-size: .85em; color: var(--soft); justify-content: space-between; flex-wrap: wrap; }
    .near { position: absolute; inset: 0; background: color-mix(in srgb, var(--panel) 92%, #0000); display: flex; flex-direction: column; align-items: center; justify-content: center; gap: .75rem; padding: 1rem; z-index: 2; }
    .near img { width: 100%; min-height: 0; height: 85%; object-fit: contain; }
    .left { position: relative; }
    @media (max-width: 52rem) {
        .main { flex-direction: column; }
        aside { width: auto; border-left: 0; display: none; }  /* one or the other: there is no room for both */
        .tools aside { display: block; flex: 1; } .tools .grid, .tools .filters > :not(.toggle) { display: none; } .tools .left { flex: none; }
        .filters .toggle { display: block; }
        header { padding: .4rem .75rem; } header h2 { flex: 1 1 100%; } .filters { padding: .4rem .75rem; }
        dialog.editor { width: 100vw; height: 100vh; max-width: none; border-radius: 0; border: 0; }
        footer .keys { display: none; }
    }
    @media (max-height: 34rem) { .card { height: 13rem; } .card .picture { height: 6.6rem; } .card .caption { -webkit-line-clamp: 3; } .card textarea { --top: 6.4rem; } }
    @media (prefers-reduced-motion: no-preference) { .mark, .look { transition: opacity .1s; } }`;

const NODE_STYLE = `
    .lora-loom-zone, .lora-loom-strip { ${THEME}
        font: 12px/1.4 ${FONT}; color: var(--text); box-sizing: border-box; display: flex; flex-direction: column; gap: 6px; }
    .lora-loom-zone [hidden], .lora-loom-strip [hidden] { display: none !important; }
    .lora-loom-zone button, .lora-loom-strip button { font: inherit; color: var(--text); background: var(--field); border: 0; border-radius: 8px; padding: 0 10px; height: 30px; cursor: pointer;
        flex: 1 1 0; min-width: 0; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
    .lora-loom-zone button:hover, .lora-loom-strip button:hover { background: var(--hover); }
    .lora-loom-zone :focus-visible, .lora-loom-strip :focus-visible { outline: 2px solid var(--strong); outline-offset: -2px; }
    .lora-loom-zone .buttons, .lora-loom-strip .buttons { display: flex; gap: 6px; flex: none; }
    .lora-loom-zone .drop { flex: 1 1 auto; min-height: 30px; border: 1px dashed color-mix(in srgb, var(--soft) 70%, transparent); border-radius: 8px; display: flex; align-items: center; justify-content: center; gap: 8px; color: var(--soft);
        padding: 2px 8px; position: relative; overflow: hidden; text-align: center; }
    .lora-loom-zone.over .drop { border-color: var(--strong); color: var(--text); background: color-mix(in srgb, var(--strong) 18%, transparent); }
    .lora-loom-zone .bar { position: absolute; inset: 0 auto 0 0; background: color-mix(in srgb, var(--strong) 35%, transparent); transition: width .15s; }
    .lora-loom-zone .drop > :not(.bar) { position: relative; }
    .lora-loom-zone .drop button { flex: none; height: 22px; background: transparent; text-decoration: underline; padding: 0 4px; color: inherit; }
    .lora-loom-zone .thumbs { flex: none; height: 74px; display: flex; flex-direction: column; gap: 3px; }
    .lora-loom-zone .thumbs .row { flex: none; height: 54px; display: flex; gap: 3px; overflow-x: auto; overflow-y: hidden; scrollbar-width: none; border-radius: 8px; background: var(--field); }
    .lora-loom-zone .thumbs button { flex: none; width: 54px; height: 54px; padding: 0; position: relative; background: none; border-radius: 6px; }
    .lora-loom-zone .thumbs img { width: 54px; height: 54px; object-fit: cover; border-radius: 6px; display: block; }
    .lora-loom-zone .thumbs [data-severity]::after { content: ""; position: absolute; top: 3px; right: 3px; width: 9px; height: 9px; border-radius: 50%; border: 1.5px solid var(--panel); background: var(--soft); }
    .lora-loom-zone .thumbs [data-severity=""]::after { display: none; }
    .lora-loom-zone .thumbs [data-severity=warning]::after { background: var(--warn); }
    .lora-loom-zone .thumbs [data-severity=error]::after { background: var(--wrong); }
    .lora-loom-zone .thumbs .broken img { visibility: hidden; }
    .lora-loom-zone .thumbs .broken::before { content: "?"; position: absolute; inset: 0; display: grid; place-items: center; font-size: 20px; color: var(--soft); }
    .lora-loom-zone .counts { color: var(--soft); font-size: 11px; line-height: 16px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
    .lora-loom-zone .counts.wrong { color: var(--text); border-left: 2px solid var(--wrong); padding-left: 8px; white-space: normal; overflow-y: auto; user-select: text; }
    .lora-loom-zone .thumbs:has(.wrong) .row { display: none; }
    .lora-loom-strip .refused { flex: none; max-height: 64px; overflow-y: auto; scrollbar-width: thin; scrollbar-color: var(--line) transparent; color: var(--text); border-left: 2px solid var(--wrong); padding-left: 8px; font-size: 11px; line-height: 16px; user-select: text; white-space: pre-line; }
    .lora-loom-strip .scroll { flex: 1 1 0; min-height: 104px; overflow-y: auto; overflow-x: hidden; border-radius: 8px; background: var(--field); scrollbar-width: thin; scrollbar-color: var(--line) transparent; }
    .lora-loom-strip .room { position: relative; }
    .lora-loom-strip .item { position: absolute; top: 0; left: 0; height: 52px; display: flex; gap: 8px; align-items: center; padding: 3px 6px; box-sizing: border-box; cursor: pointer; contain: strict; border-radius: 6px; }
    .lora-loom-strip .item:hover { background: var(--hover); }
    .lora-loom-strip .scroll:focus-visible .current { outline: 2px solid var(--text); outline-offset: -3px; }
    .lora-loom-strip .item img { width: 46px; height: 46px; object-fit: cover; border-radius: 4px; flex: none; background: var(--panel); }
    .lora-loom-strip .item span { display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical; overflow: hidden; overflow-wrap: anywhere; }
    .lora-loom-strip .buttons button { flex: 1 0 auto; }
    .lora-loom-strip .counts { align-self: center; color: var(--soft); font-size: 11px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
    .lora-loom-strip .counts:empty { display: none; }
    .lora-loom-strip .item::after { content: ""; position: absolute; top: 5px; left: 43px; width: 7px; height: 7px; border-radius: 50%; border: 1.5px solid var(--panel); background: var(--soft); }
    .lora-loom-strip .item[data-severity=""]::after { display: none; }
    .lora-loom-strip .item[data-severity=warning]::after { background: var(--warn); }
    .lora-loom-strip .item[data-severity=error]::after { background: var(--wrong); }
    .lora-loom-strip .none { color: var(--soft); font-style: italic; }
    .lora-loom-strip .hint { color: var(--soft); text-align: center; padding: 16px 10px; }`;

export const nodeStyle = () => addStyle("dataset", NODE_STYLE);
