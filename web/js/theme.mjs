// What all that we show has in common: ComfyUI's own theme, by its variables of 2026, else those of 2025.
export const FONT = 'Inter, ui-sans-serif, system-ui, "Noto Sans SC", "Microsoft YaHei", sans-serif';

// Of a run's states: the list has them as the live panel does.
export const STATES = { running: "var(--strong)", preparing: "var(--strong)", finished: "#2fae86", failed: "var(--wrong)", lost: "var(--warn)", interrupted: "var(--warn)" };

export const THEME = `
    --panel: var(--interface-panel-surface, var(--comfy-menu-bg, #202020));
    --field: var(--component-node-widget-background, var(--comfy-input-bg, #2b2b2b));
    --line: var(--border-default, var(--border-color, #4e4e4e));
    --text: var(--base-foreground, var(--input-text, #ddd));
    --soft: var(--muted-foreground, var(--descrip-text, #999));
    --hover: var(--secondary-background-hover, var(--content-hover-bg, #3a3a3a));
    --button: var(--secondary-background, var(--comfy-input-bg, #333));
    --strong: var(--primary-background, var(--p-primary-color, #0b8ce9));
    --strong-text: var(--loom-on-strong, #fff);
    --warn: var(--warning-background, var(--p-orange-400, #fd9903));
    --wrong: var(--destructive-background, var(--error-text, #ff4444));`;

// Styles of the page, each once.
export function addStyle(name, text) {
    const id = `loom-${name}-style`;
    if (!document.getElementById(id)) document.head.append(Object.assign(document.createElement("style"), { id, textContent: text }));
}
