// A large dialog in the page's own colours. It lives in a shadow root: the page's styles and key bindings stay out of it, and ours out of the page.
import { STYLE } from "./captions_style.mjs";

export function el(tag, values = {}, ...children) {
    const found = document.createElement(tag);
    for (const [name, value] of Object.entries(values)) {
        if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
        else if (name in found && name !== "list") found[name] = value;
        else found.setAttribute(name, value);
    }
    found.append(...children.filter((child) => child !== null && child !== undefined));
    return found;
}

// {dialog, close}. `leave` is asked before it closes by Esc or the cross, and answers whether it may.
export function openModal(label, kind, leave = () => true) {
    const host = document.createElement("div");
    host.className = "lora-loom-modal";
    host.type = "textarea";  // the page undoes the graph on Ctrl+Z wherever the focus is in no text field, and so takes us for one
    const root = host.attachShadow({ mode: "open" }), before = document.activeElement;
    const dialog = el("dialog", { className: kind, tabIndex: -1, "aria-label": label });
    root.append(el("style", { textContent: STYLE }), dialog);
    for (const event of ["keydown", "keyup", "keypress", "paste", "copy", "cut", "wheel", "contextmenu", "pointerdown", "dragover", "drop"]) {
        host.addEventListener(event, (happened) => happened.stopPropagation());
    }
    // A button that is disabled under the finger leaves the focus nowhere: keys are the dialog's all the same.
    const lost = (event) => {
        if (event.composedPath().includes(host) || document.body.lastElementChild !== host) return;
        event.stopImmediatePropagation();
        dialog.focus();
        if (!dialog.dispatchEvent(new KeyboardEvent(event.type, { key: event.key, ctrlKey: event.ctrlKey, metaKey: event.metaKey, shiftKey: event.shiftKey, bubbles: true, cancelable: true }))) event.preventDefault();
    };
    window.addEventListener("keydown", lost, true);
    const close = () => {
        window.removeEventListener("keydown", lost, true);
        dialog.close();
        host.remove();
        before?.focus?.({ preventScroll: true });
        dialog.dispatchEvent(new Event("gone"));
    };
    const ask = async () => (await leave()) && close();
    dialog.addEventListener("cancel", (event) => {
        event.preventDefault();
        ask();
    });
    dialog.addEventListener("close", () => {  // browsers let a second Esc through without asking
        if (!host.isConnected) return;
        dialog.showModal();
        ask();
    });
    document.body.append(host);
    dialog.showModal();
    return { dialog, close };
}
