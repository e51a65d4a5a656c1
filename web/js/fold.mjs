// A node's rare settings on the classic canvas: folded away behind a button that counts those which differ from their defaults.
import { after } from "./node.mjs";
import { words } from "./settings.mjs";

// Values or the node's state may have changed: the button says how many of the folded ones are not as they come.
export function refold(node) {
    const { button, rare, defaults } = node.loomFold ?? {};
    if (!button) return;
    const open = Boolean(node.showAdvanced);
    const changed = rare.filter((w) => defaults[w.name] !== undefined && String(w.value) !== String(defaults[w.name])).length;
    // `hidden` of the widget is the canvas's alone: the new nodes read `options`. The canvas makes no room for what is hidden
    for (const widget of rare) {
        widget.hidden = !open;
        if (node.getLayoutWidgets) continue;
        if (open) delete widget.computeSize;  // a page of 2025 makes room for what is hidden
        else widget.computeSize = () => [0, -4];
    }
    button.label = open ? words().fewer : words().more(rare.length, changed);
    node.setDirtyCanvas?.(true, true);
}

export function fold(node) {
    const inputs = { ...node.constructor.nodeData?.input?.required, ...node.constructor.nodeData?.input?.optional };
    const rare = (node.widgets ?? []).filter((w) => w.options?.advanced);
    if (rare.length < 3) return;  // a button for one or two would take more room than it saves
    // last, for the page saves values by their place; canvasOnly, for the new nodes have a button of their own
    const button = node.addWidget("button", "lora_loom_fold", null, () => {
        node.showAdvanced = !node.showAdvanced;
        if (node.showAdvanced) node.loomFold.height = node.size[1];
        refold(node);
        // opened it grows where it must; closed it is as high as before
        node.setSize([node.size[0], Math.max(node.computeSize()[1], node.showAdvanced ? node.size[1] : node.loomFold.height ?? 0)]);
    }, { canvasOnly: true, serialize: false });
    button.serialize = false;
    const views = node.widgets.findIndex((w) => w !== button && w.name?.startsWith("lora_loom"));  // whichever extension comes first
    if (views >= 0) node.widgets.splice(views, 0, node.widgets.pop());
    node.loomFold = { button, rare, defaults: Object.fromEntries(rare.map((w) => [w.name, inputs[w.name]?.[1]?.default])) };
    for (const hook of ["onConfigure", "onWidgetChanged"]) after(node, hook, () => refold(node));
    refold(node);
    node.setSize([node.size[0], node.computeSize()[1]]);
}
