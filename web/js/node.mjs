// What our extensions do to a node: what follows its hooks, what goes on for as long as it is in a graph, and its elements.

// `then` follows what was there; the answer is that of what was there.
export function after(object, method, then) {
    const before = object[method];
    object[method] = function (...values) {
        const answer = before?.apply(this, values);
        then.apply(this, values);
        return answer;
    };
}

// start() answers what stops it again. A node that is moved into a subgraph or back is removed and added.
export function living(node, start) {
    let stop = start();
    after(node, "onAdded", () => {
        stop?.();
        stop = start();
    });
    after(node, "onRemoved", () => {
        stop?.();
        stop = null;
    });
}

// `look` every so often, while the element is on the page.
export function watching(element, look, ms) {
    const timer = setInterval(() => element.isConnected && !document.hidden && look(), ms);
    return () => clearInterval(timer);
}

// An element below the node's widgets. It is last and not saved, for the page saves values by their place. `height` is in pixels of the graph, as are all sizes here.
export function addView(node, name, element, { width = 0, height, fixed = false, ...options }) {
    const room = { getMinHeight: () => height, ...(fixed ? { getMaxHeight: () => height } : {}) };
    const widget = node.addDOMWidget(name, name, element, { serialize: false, hideOnZoom: false, ...room, ...options });
    widget.serialize = false;
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], node.computeSize()[1])]);
    return widget;
}
