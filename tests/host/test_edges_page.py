"""Every view where it is tight: in a node of 300 pixels and at 200 % zoom. No text is cut or lies on another, and Tab reaches every control, which shows it.

The pictures in artefacts/ are for eyes: edges_<view>_<node kind>_<where>.png.
"""
from __future__ import annotations

import os
from pathlib import Path

import pytest
from lora_loom.trainer.runs import grid, saved
from PIL import Image, ImageFilter
from skimage import data

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")
pages = pytest.importorskip("loom_host_pages", reason="needs websocket-client, from the extra `test`")
pytest.importorskip("playwright.sync_api", reason="needs playwright, from the extra `test`")

pytestmark = pytest.mark.browser


workflows = pages.workflows
runs_page = host.by_path("loom_test_runs_page", Path(__file__).with_name("test_runs_page.py"))


def add_grid(run: Path) -> str:
    """Three saved steps at three strengths, drawn; one cell is missing."""
    rows = [saved.Saved(step, f"step{step}.safetensors", run / f"step{step}.safetensors", kind, str(step), step == 300) for step, kind in ((100, "saved"), (300, "best"), (400, "final"))]
    made = grid.plan(run, "strengths", rows, [0.6, 0.8, 1.0], list(runs_page.PROMPTS), 128, 128, None)
    made.keep()
    for row in range(3):
        for column in range(3 if row else 2):
            Image.fromarray(data.chelsea()).resize((128, 128)).rotate(90 * row).save(made.picture(row, column))
    return made.id


def add_pictures(folder: Path) -> None:
    """What a report has much to say of."""
    folder.mkdir(parents=True)
    for name in ("astronaut", "chelsea", "coffee", "camera"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a photo of {name}, " * (12 if name == "camera" else 1), encoding="utf-8")
    Image.open(folder / "astronaut.png").resize((400, 400)).save(folder / "astronaut again, in a file with a rather long name.jpg", quality=60)
    Image.open(folder / "coffee.png").filter(ImageFilter.GaussianBlur(5)).crop((50, 0, 450, 400)).save(folder / "soft.png")
    (folder / "broken.png").write_bytes(b"no picture")


@pytest.fixture(scope="module")
def comfy(comfy_path, tmp_path_factory: pytest.TempPathFactory):
    base = tmp_path_factory.mktemp("edges")
    workflows.settle(base)
    report = "Finished at step 400 of 400, smoothed loss 0.0612. Saved as toy_star.safetensors"
    run = runs_page.add_run(base, "toy_star", lora="toy_star.safetensors", samples=(0, 100, 200, 300, 400), best=300, ago=3600, slow=60.0, report=report)
    runs_page.add_run(base, "toy_star with a longer name, wide and slow", steps=600, step=350, status="stopped", resumable=True, samples=(0, 100, 200, 300), ago=7200, slow=140.0,
                      lora="wide.safetensors", config={"adapter": {"rank": 48, "alpha": 24.0}, "output": {"name": "wide"}})
    add_pictures(base / "input" / "problems")
    with host.Comfy(comfy_path, base) as server:
        server.grid = add_grid(run)
        yield server


BUILD = """async (grid) => {
    const {app} = window, made = {}, kinds = ["ToyBase", "LoadDataset", "AutoCaption", "LoRAConfig", "TrainLoRA", "ChooseCheckpoint"];
    const slot = (node, name) => node.inputs.findIndex((input) => input.name === name), widget = (node, name) => node.widgets.find((w) => w.name === name);
    await app.loadGraphData({nodes: [], links: [], last_node_id: 0, last_link_id: 0, version: 0.4});
    kinds.forEach((kind, i) => { const node = made[kind] = LiteGraph.createNode(kind); node.pos = [1000 * i, 0]; app.graph.add(node); });
    const {ToyBase: toy, LoadDataset: load, AutoCaption: caption, LoRAConfig: config, TrainLoRA: train, ChooseCheckpoint: choose} = made;
    for (const [i, name] of ["model", "clip", "vae"].entries()) toy.connect(i, train, slot(train, name));
    load.connect(0, caption, slot(caption, "dataset"));
    caption.connect(0, train, slot(train, "dataset"));
    config.connect(0, train, slot(train, "config"));
    for (const [name, value] of [["folder", "problems"], ["min_size", 64]]) widget(load, name).value = value;
    train.properties.lora_loom_run = "toy_star";
    choose.properties.lora_loom_grid = `toy_star/${grid}`;
    const graph = app.graph.serialize();
    await app.loadGraphData(graph);
}"""


@pytest.fixture(scope="module")
def browser_page(comfy):
    with pages.opened(comfy.url, (1500, 1000)) as page:
        page.set_default_timeout(20_000)
        yield page


HEAVY = bool(os.environ.get("LORA_LOOM_HEAVY"))


@pytest.fixture(scope="module", params=["classic", "vue", *(["chinese"] if HEAVY else [])])  # the last in the light theme
def page(request, comfy, browser_page):
    browser_page.evaluate("""async (kind) => { const {setting} = window.app.extensionManager, chinese = kind === "chinese";
        await setting.set("Comfy.VueNodes.Enabled", kind === "vue");
        await setting.set("Comfy.Locale", chinese ? "zh" : "en");
        await setting.set("Comfy.ColorPalette", chinese ? "light" : "dark"); }""", request.param)
    browser_page.evaluate(BUILD, comfy.grid)
    browser_page.renderer = request.param
    yield browser_page
    assert browser_page.problems == []


# What is wrong with a view, in words. `root` lies in the page or in a dialog's shadow.
WRONG = """(root) => {
    const said = [], short = (text) => text.trim().replace(/\\s+/g, " ").slice(0, 60), box = (e) => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
    const scale = root.getBoundingClientRect().width / root.offsetWidth || 1, slack = 1.5 * scale, shown = [];
    const meet = (a, b) => [Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])], empty = (r) => r[2] - r[0] <= slack || r[3] - r[1] <= slack;
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    for (let text; (text = walker.nextNode());) {
        const holder = text.parentElement;
        if (!text.data.trim() || ["STYLE", "OPTION"].includes(holder.tagName) || !holder.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
        const range = document.createRange();
        range.selectNodeContents(text);
        let whole = [...range.getClientRects()].map((r) => [r.left, r.top, r.right, r.bottom]), cut = false;
        for (let at = holder; at && whole.length; at = at.parentElement) {
            const style = getComputedStyle(at), clip = box(at), hides = [style.overflowX, style.overflowY].map((o) => o === "hidden" || o === "clip"), scrolls = [style.overflowX, style.overflowY].map((o) => o === "auto" || o === "scroll");
            whole = whole.map((r) => {
                const over = [r[0] < clip[0] - slack || r[2] > clip[2] + slack, r[1] < clip[1] - slack || r[3] > clip[3] + slack];
                cut ||= (hides[0] && over[0]) || (hides[1] && over[1]);
                const bounds = [hides[0] || scrolls[0] ? clip[0] : r[0], hides[1] || scrolls[1] ? clip[1] : r[1], hides[0] || scrolls[0] ? clip[2] : r[2], hides[1] || scrolls[1] ? clip[3] : r[3]];
                return meet(r, bounds);
            }).filter((r) => cut || !empty(r));
            if (at === root || cut) break;
        }
        const told = (e) => e && (e.title?.includes(text.data.trim()) || (e !== root && told(e.parentElement)));
        if (cut && !told(holder)) said.push(`cut: ${short(text.data)}`);
        whole.filter((r) => !empty(r)).forEach((r) => shown.push([r, text.data, holder]));
    }
    shown.forEach(([a, one, in_one], i) => shown.slice(i + 1).forEach(([b, other, in_other]) => {
        if (in_one !== in_other && !empty(meet(a, b)) && meet(a, b)[3] - meet(a, b)[1] > 3 * scale) said.push(`overlap: ${short(one)} / ${short(other)}`);
    }));
    return said;
}"""
# Controls that Tab has to reach: all that are enabled and in sight. In a list or a grid that arrows move in, one is enough.
CONTROLS = """(root) => {
    const all = [...root.querySelectorAll("button, input, select, textarea, summary, a[href], [tabindex]")].filter((e) => !e.disabled && e.checkVisibility({visibilityProperty: true}));
    const moved = (e) => { const box = e.closest("[role=grid], [role=listbox], [role=list]"); return box && (box.tabIndex === 0 || box.querySelector("[tabindex='0'], button:not([tabindex='-1'])")); };
    window.loomControls = all.filter((e) => e.tabIndex >= 0);
    return all.filter((e) => e.tabIndex < 0 && e.matches("button, input, select, textarea, summary") && !moved(e)).map((e) => `out of Tab's way: ${e.textContent.trim() || e.title || e.className}`);
}"""
FOCUSED = """async (root) => {
    let at = document.activeElement;
    while (at?.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
    const place = window.loomControls.indexOf(at), style = at && getComputedStyle(at), r = () => at.getBoundingClientRect();
    const inSight = () => at && r().right > 0 && r().bottom > 0 && r().left < innerWidth && r().top < innerHeight;
    for (let frames = 0; place >= 0 && frames < 60 && !inSight(); frames++) await new Promise(requestAnimationFrame);  // the canvas moves with its next frame
    const ring = style && ((style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1) || [...at.querySelectorAll(".current, .current > div")].some((e) => getComputedStyle(e).outlineStyle !== "none"));
    return [place, Boolean(ring), Boolean(inSight()), at ? `${at.tagName} ${at.className} ${at.textContent.trim().slice(0, 30)}` : ""];
}"""


def tabbed(page, root) -> list[str]:
    """What Tab does not reach, and what does not show that it has the keys."""
    wrong = root.evaluate(CONTROLS)
    count = page.evaluate("() => window.loomControls.length")
    if not count:
        return wrong
    page.evaluate("() => window.loomControls[0].focus({preventScroll: true})")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    reached = set()
    for _ in range(count + 3):
        place, ring, seen, what = root.evaluate(FOCUSED)
        if place >= 0:
            reached.add(place)
            wrong += [f"no ring: {what}"] if not ring else []
            wrong += [f"out of sight: {what}"] if not seen else []
        page.keyboard.press("Tab")
    names = page.evaluate("() => window.loomControls.map((e) => `${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 30) || e.title}`)")
    return wrong + [f"not reached: {names[i]}" for i in range(count) if i not in reached]


NODE = """([kind, scale, view]) => {
    const node = window.app.graph._nodes.find((n) => n.comfyClass === kind), ds = window.app.canvas.ds;
    node.setSize([300, Math.max(node.size[1], node.computeSize()[1])]);
    ds.scale = scale;
    const {y} = node.widgets.find((w) => w.element?.querySelector(view) || w.element?.matches(view));
    [ds.offset[0], ds.offset[1]] = [90 / scale - node.pos[0], 75 / scale - node.pos[1] - y];
    window.app.canvas.setDirty(true, true);
}"""
# view: (the node that it is in, its element, what has come when it is there)
IN_NODES = {
    "live": ("TrainLoRA", ".loom-live", ".loom-live .film img"),
    "estimate": ("LoRAConfig", ".loom-estimate", ".loom-estimate .bar"),
    "dataset": ("LoadDataset", ".lora-loom-zone", ".lora-loom-zone .thumbs img"),
    "report": ("LoadDataset", ".loom-report", ".loom-report summary"),
    "captions": ("AutoCaption", ".lora-loom-strip", ".lora-loom-strip .item img"),
    "choose": ("ChooseCheckpoint", ".loom-choose", ".loom-choose .cell img"),
}
WHERE = {"narrow": ((1500, 1000), 1), "zoomed": ((750, 500), 2)}  # at 200 % a window has half the pixels


def keep(page, view: str, where: str) -> None:
    host.KEPT.mkdir(exist_ok=True)
    page.screenshot(path=str(host.KEPT / f"edges_{view}_{page.renderer}_{where}.png"))


def settled(page, where: str) -> None:
    (width, height), _ = WHERE[where]
    page.set_viewport_size({"width": width, "height": height})
    page.wait_for_timeout(150)


@pytest.mark.parametrize("where", list(WHERE))
@pytest.mark.parametrize("view", list(IN_NODES))
def test_in_a_node(page, view, where):
    kind, element, there = IN_NODES[view]
    settled(page, where)
    page.evaluate(NODE, [kind, WHERE[where][1], element])
    page.locator(there).first.wait_for()
    page.wait_for_timeout(300)
    root = page.locator(element).first
    width = root.evaluate("(e) => e.offsetWidth")
    keep(page, view, where)
    wrong = root.evaluate(WRONG) + tabbed(page, root)
    assert not wrong, "\n".join(wrong)
    assert 220 <= width <= 300


DIALOGS = {
    "editor": "dialog.editor", "comparison": "dialog.runs", "sample": "dialog.viewer", "cell": "dialog.viewer",
}


def opened(page, view: str):
    """The dialog, opened as a user does."""
    if view == "comparison":
        runs = tab(page)
        for box in runs.locator(".run:visible input").all():
            box.check()
        runs.locator(".compare").click()
        page.locator("dialog.runs .plot canvas").wait_for()
        return page.locator("dialog.runs")
    kind, button = {"editor": ("AutoCaption", ".lora-loom-strip .buttons button"), "sample": ("TrainLoRA", ".loom-live .film button"),
                    "cell": ("ChooseCheckpoint", ".loom-choose .cell .look")}[view]
    page.evaluate(NODE, [kind, 1, button.split(" ")[0]])
    page.locator(button).first.wait_for(state="attached")
    page.locator(button).first.evaluate("(b) => b.click()")
    if view == "editor":
        page.locator("dialog.editor .card img").first.wait_for()
    return page.locator(DIALOGS[view])


def once(page) -> None:
    if page.renderer == "vue" and not HEAVY:
        pytest.skip("what is in no node is the same for both kinds of nodes: LORA_LOOM_HEAVY=1 runs it here too")


def tab(page):
    if not page.locator(".loom-runs").count():
        page.locator("[class*='lora_loom.runs-tab-button']").click()
    page.locator(".loom-runs .run:visible img").first.wait_for()
    return page.locator(".loom-runs")


@pytest.mark.parametrize("where", list(WHERE))
def test_the_tab(page, where):
    once(page)
    settled(page, where)
    runs = tab(page)
    page.wait_for_timeout(300)
    keep(page, "runs", where)
    wrong = runs.evaluate(WRONG) + tabbed(page, runs)
    page.locator("[class*='lora_loom.runs-tab-button']").click()
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("where", list(WHERE))
@pytest.mark.parametrize("view", list(DIALOGS))
def test_a_dialog(page, view, where):
    once(page)
    settled(page, where)
    dialog = opened(page, view)
    page.wait_for_timeout(400)
    keep(page, view, where)
    wrong = dialog.evaluate(WRONG) + tabbed(page, dialog)
    page.keyboard.press("Escape")
    page.locator(DIALOGS[view]).wait_for(state="detached")
    if page.locator(".loom-runs").count():
        page.locator("[class*='lora_loom.runs-tab-button']").click()
    assert not wrong, "\n".join(wrong)


RUNNING = """() => {
    const node = window.app.graph._nodes.find((n) => n.comfyClass === "TrainLoRA"), who = {node: String(node.id), prompt_id: "p", workflow: window.app.graph.id, name: "my_lora"};
    const send = (name, facts) => window.app.api.dispatchCustomEvent(`lora_loom.${name}`, {...who, run: "toy_star with a longer name, wide and slow", ...facts});
    window.app.api.dispatchCustomEvent("lora_loom.preparing", {...who});
    send("started", {status: "running", step: 0, steps: 12000, steps_per_epoch: 130});
    send("progress", {status: "running", phase: "train", step: 4321, steps: 12000, loss: 0.0812, smoothed_loss: 0.0734, steps_per_second: 12.34, eta_seconds: 4321,
        memory: {device: "GPU", used: 21.4 * 2 ** 30, total: 24 * 2 ** 30}, points: [[4320, 0.09, 0.08, 1e-4, 0.1], [4321, 0.0812, 0.0734, 1e-4, null]]});
}"""


@pytest.mark.parametrize("where", list(WHERE))
def test_a_run_that_trains(page, where):
    settled(page, where)
    page.evaluate(RUNNING)
    page.evaluate(NODE, ["TrainLoRA", WHERE[where][1], ".loom-live"])
    page.wait_for_timeout(300)
    root = page.locator(".loom-live").first
    keep(page, "running", where)
    wrong = root.evaluate(WRONG) + tabbed(page, root)
    assert not wrong, "\n".join(wrong)
    assert root.get_attribute("data-status") == "running"
