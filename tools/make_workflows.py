"""Makes example_workflows/*.json, their thumbnails and subgraphs/*.json with ComfyUI's own page, so that they are what the page itself would save.

    python tools/make_workflows.py            # the workflows, and a thumbnail of each canvas as it opens
    python tools/make_workflows.py --run toy  # also runs the toy workflow for its thumbnail and assets/canvas.jpg

Needs a ComfyUI, the extra `test` and Chromium (CHROMIUM names one; else Playwright's own). The graphs below are prompts in
the API form: the tests queue the same ones, and check that the saved files still give them.
"""
from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import shutil
import sys
import tempfile
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "example_workflows"
SIZES = [(1024, 1024), (832, 1216), (1024, 1024), (1216, 832)]  # of the pictures that stand in for a user's own


def by_path(name: str, path: Path):
    """A file as a module: the tests load this one by its path, too."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


graphs = by_path("loom_workflow_graphs", ROOT / "tools" / "workflow_graphs.py")
blueprint = by_path("loom_workflow_blueprint", ROOT / "tools" / "workflow_blueprint.py")
SAMPLER, WORKFLOWS, caption, node, toy = graphs.SAMPLER, graphs.WORKFLOWS, graphs.caption, graphs.node, graphs.toy  # the tests queue them

# Runs in the page. Rows of columns, nodes below one another, a group around the columns from one title to the next.
BUILD = """
async ({prompt, name, id, layout}) => {
  const {app} = window.comfyAPI?.app ?? await import("/scripts/app.js");
  await app.loadApiJson(prompt, name);
  const graph = app.graph, gap = 50, title = 30;
  const byId = (id) => graph._nodes.find((n) => String(n.id) === id);
  const note = LiteGraph.createNode("MarkdownNote");
  graph.add(note);
  note.title = "Read me · 说明";
  note.widgets[0].value = layout.note;
  note.color = "#432"; note.bgcolor = "#653";
  let top = 130;
  for (const columns of layout.rows) {
    let x = 60, group = null;
    const groups = [];
    for (const [heading, column] of columns) {
      let y = top, widest = 0;
      if (heading) groups.push(group = {heading, left: x, right: x, bottom: y});
      for (const [id, width, height] of column) {
        const node = id === "note" ? note : byId(id), least = node.computeSize();
        node.setSize([Math.max(width, least[0]), Math.max(height, least[1], layout.heights[node.comfyClass] ?? 0)]);
        node.pos = [x, y];
        y += node.size[1] + title + gap;
        widest = Math.max(widest, node.size[0]);
        if (layout.title[id]) node.title = layout.title[id];
        if (layout.models[id]) node.properties.models = layout.models[id];
      }
      x += widest;
      group.right = x;
      group.bottom = Math.max(group.bottom, y - gap - title);
      x += gap + 20;
    }
    const bottom = Math.max(...groups.map((g) => g.bottom));  // groups of one row end at the same height
    for (const {heading, left, right} of groups) {
      const box = new LiteGraph.LGraphGroup(heading);
      graph.add(box);
      box.pos = [left - 25, top - 95];
      box.size = [right - left + 50, bottom - top + 125];
    }
    top = bottom + 160;
  }
  const edge = Math.max(...graph._groups.map((g) => g.pos[0] + g.size[0]));
  for (const box of graph._groups) {  // and the rows at the same width
    const last = !graph._groups.some((g) => g.pos[1] === box.pos[1] && g.pos[0] > box.pos[0]);
    if (last) box.size = [edge - box.pos[0], box.size[1]];
  }
  const colours = ["#3f789e", "#8A8", "#b58b2a", "#a1309b"];
  graph._groups.forEach((g, i) => { g.color = colours[i % colours.length]; });
  graph.setDirtyCanvas(true, true);
  for (const node of graph._nodes) {
    for (const widget of node.widgets ?? []) if (widget.name === "control_after_generate") widget.value = "fixed";
  }
  const saved = graph.serialize();
  saved.id = id;
  saved.extra = {ds: {scale: 0.8, offset: [60, 40]}};  // text is drawn from about 0.6 on
  return JSON.stringify(saved, null, 1);  // here, where what is undefined is left out
}
"""

FIT = """
async () => {
  const {app} = window.comfyAPI?.app ?? await import("/scripts/app.js");
  const boxes = app.graph._groups.map((g) => [g.pos[0], g.pos[1], g.pos[0] + g.size[0], g.pos[1] + g.size[1]]);
  const left = Math.min(...boxes.map((b) => b[0])), top = Math.min(...boxes.map((b) => b[1]));
  const right = Math.max(...boxes.map((b) => b[2])), bottom = Math.max(...boxes.map((b) => b[3]));
  const view = app.canvas.canvas.getBoundingClientRect(), room = {left: 70, top: 150, right: 20, bottom: 70};
  const scale = Math.min((view.width - room.left - room.right) / (right - left), (view.height - room.top - room.bottom) / (bottom - top));
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset[0] = room.left / scale - left + ((view.width - room.left - room.right) / scale - (right - left)) / 2;
  app.canvas.ds.offset[1] = room.top / scale - top;
  app.canvas.setDirty(true, true);
  return {left: (left + app.canvas.ds.offset[0]) * scale, top: (top + app.canvas.ds.offset[1]) * scale,
          width: (right - left) * scale, height: (bottom - top) * scale};
}
"""


def server_module():
    return by_path("loom_host_server", ROOT / "tests" / "host" / "server.py")


RUN = {"toy": "toy_base_train_and_generate", "choose": "choose_checkpoint"}


def settle(base: Path) -> None:
    """A user's settings that keep the page's greetings, tours and news away."""
    folder = base / "user" / "default"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comfy.settings.json").write_text(json.dumps({
        "Comfy.TutorialCompleted": True, "Comfy.Locale": "en", "Comfy.InstalledVersion": "1.27.10", "Comfy.Minimap.Visible": False,
        "Comfy.Release.Status": "what's new seen", "Comfy.Release.Version": "99.0.0", "Comfy.VueNodes.AutoScaleLayout": False,
        "Comfy.Workflow.ShowMissingModelsWarning": False, "Comfy.Notification.ShowVersionUpdates": False}))


def stand_in(base: Path) -> None:
    """Empty files of the names that the workflows ask for, and a folder of pictures, so that their canvas opens as it does for those who have them."""
    for folder, name in graphs.files():
        path = base / "models" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    from PIL import Image, ImageOps

    stars, mine = ROOT / "assets" / "lora_loom_stars", base / "input" / "my_pictures"
    mine.mkdir(parents=True, exist_ok=True)
    shutil.copy(stars / "metadata.csv", mine)
    for i, star in enumerate(sorted(stars.glob("*.png"))):
        large = Image.open(star).convert("RGB").resize((1216, 1216), Image.Resampling.BOX)
        ImageOps.fit(large, SIZES[i % len(SIZES)]).save(mine / star.name)


def open_page(playwright, url: str, size: tuple[int, int] = (1900, 2000)):
    """(browser, page) with the app loaded. The page sees no network but the server."""
    browser = playwright.chromium.launch(
        executable_path=os.environ.get("CHROMIUM") or ("/usr/bin/chromium" if Path("/usr/bin/chromium").exists() else None),
        args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"])
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.route("**/*", lambda route: route.continue_() if route.request.url.startswith((url, "data:", "blob:")) else route.abort())
    page.goto(url)
    loaded(page)
    return browser, page


def loaded(page) -> None:
    """Waits until the app, its buttons and our nodes are there."""
    page.wait_for_function("() => window.app?.graph && window.LiteGraph && window.app.extensionManager && document.querySelector('[data-testid=queue-button]')",
                           timeout=120_000)
    page.wait_for_function("() => window.LiteGraph.registered_node_types['TrainLoRA']", timeout=60_000)
    page.wait_for_timeout(1000)


def thumbnail(png: bytes, box: dict, target: Path, width: int, quality: int = 85) -> None:
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    crop = image.crop((int(box["left"]) - 4, int(box["top"]) - 4, int(box["left"] + box["width"]) + 4, int(box["top"] + box["height"]) + 4))
    crop.resize((width, round(width * crop.height / crop.width)), Image.Resampling.LANCZOS).save(target, quality=quality, optimize=True)


def identity(name: str) -> str:
    """The workflow's own id, the same each time it is made: by it a page finds the training that it queued."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="append", default=[], choices=list(RUN), help="run this workflow before its picture is taken")
    parser.add_argument("--only", help="one workflow's name, or the blueprint's")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tools"))
    import comfyui
    from playwright.sync_api import sync_playwright

    found = comfyui.find()
    if found is None:
        sys.exit(f"ComfyUI not found: {comfyui.HOW}")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        settle(Path(folder))
        stand_in(Path(folder))
        with server_module().Comfy(found, Path(folder)) as comfy:
            for name, layout in WORKFLOWS.items():
                if arguments.only and name != arguments.only:
                    continue
                browser, page = open_page(playwright, comfy.url)  # a page of its own: ComfyUI's keeps widgets' values by node number
                saved = page.evaluate(BUILD, {"prompt": layout["graph"](), "name": name, "id": identity(name),
                                              "layout": {"heights": graphs.HEIGHTS, "models": layout.get("models", {}), "note": graphs.note(name), "title": layout["title"], "rows": layout["rows"]}})
                (FOLDER / f"{name}.json").write_text(saved + "\n", encoding="utf-8")
                page.evaluate("(saved) => window.app.loadGraphData(JSON.parse(saved))", saved)
                page.wait_for_timeout(1500)
                if name in [RUN[which] for which in arguments.run]:
                    run(page)
                box = page.evaluate(FIT)
                page.wait_for_timeout(1500)
                picture = page.screenshot()
                thumbnail(picture, box, FOLDER / f"{name}.jpg", 800)
                if name == RUN["toy"] and "toy" in arguments.run:
                    thumbnail(picture, box, ROOT / "assets" / "canvas.jpg", 1600)
                print(FOLDER / f"{name}.json")
                browser.close()
            if arguments.only in (None, blueprint.NAME):
                browser, page = open_page(playwright, comfy.url)
                target = ROOT / "subgraphs" / f"{blueprint.NAME}.json"
                target.parent.mkdir(exist_ok=True)
                target.write_text(blueprint.build(page, graphs), encoding="utf-8")
                print(target)
                browser.close()


def run(page) -> None:
    """Press Run, and wait until the graph has run and its pictures are drawn."""
    page.evaluate("() => { window.loomDone = false; window.app.api.addEventListener('execution_success', () => { window.loomDone = true; }); }")
    page.click("[data-testid=queue-button]")
    page.wait_for_function("() => window.loomDone", timeout=1_500_000)
    page.wait_for_timeout(3000)


if __name__ == "__main__":
    main()
