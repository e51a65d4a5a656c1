"""Takes the README's pictures of what the nodes show, in ComfyUI's own page, from trainings on the toy base that are run for them.

    python tools/make_pictures.py

Needs what make_workflows.py needs, and some minutes. assets/canvas.jpg is made there.
"""
from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import make_workflows as workflows

ASSETS = workflows.ROOT / "assets"
WIDTH = 900  # pixels; the README shows them smaller
LOAD = "(saved) => window.app.loadGraphData(saved)"
SET = "([kind, name, value]) => { window.app.graph._nodes.find((n) => n.comfyClass === kind).widgets.find((w) => w.name === name).value = value; }"
NODE = """(kind) => {
  const {canvas, graph} = window.app, node = graph._nodes.find((n) => n.comfyClass === kind), scale = 1.4;
  canvas.ds.scale = scale;
  canvas.ds.offset[0] = 300 / scale - node.pos[0];
  canvas.ds.offset[1] = 170 / scale - node.pos[1];
  canvas.deselectAll?.();
  canvas.setDirty(true, true);
  return {left: 300, top: 170 - 30 * scale, width: node.size[0] * scale, height: (node.size[1] + 30) * scale};
}"""


def node(page, kind: str, target: Path) -> None:
    box = page.evaluate(NODE, kind)
    page.wait_for_timeout(1500)
    workflows.thumbnail(page.screenshot(), box, target, WIDTH, 80)


def load(page, name: str) -> None:
    page.evaluate(LOAD, json.loads((workflows.FOLDER / f"{name}.json").read_text(encoding="utf-8")))
    page.wait_for_timeout(1500)


def trained(page) -> None:
    """Two runs that differ in the learning rate, each with samples; the first one's panel is taken on its way."""
    load(page, workflows.RUN["toy"])
    for name, value in (("sample_steps", 50), ("name", "toy_star")):
        page.evaluate(SET, ["TrainLoRA", name, value])
    page.evaluate("() => { window.app.queuePrompt(0); }")
    page.wait_for_function("() => { const panel = document.querySelector('.loom-live'); return panel?.dataset.phase === 'train' && "
                           "Number((panel.querySelector('.numbers').textContent.match(/\\d+/) ?? [0])[0]) > 310; }", timeout=900_000)
    node(page, "TrainLoRA", ASSETS / "train.jpg")
    page.wait_for_function("() => document.querySelector('.loom-live').dataset.status === 'finished'", timeout=900_000)
    page.evaluate(SET, ["TrainLoRA", "learning_rate", 5e-4])
    page.evaluate(SET, ["TrainLoRA", "name", "toy_star_slow"])
    page.evaluate("() => { window.app.queuePrompt(0); }")
    page.wait_for_function("() => document.querySelector('.loom-live .head b').textContent === 'Finished · toy_star_slow'", timeout=900_000)


def compared(page) -> None:
    page.set_viewport_size({"width": 1500, "height": 1250})
    page.locator("[class*='lora_loom.runs-tab-button']").click()
    page.locator(".loom-runs .run:visible").nth(1).wait_for()
    for at in (0, 1):
        page.locator(".loom-runs .run:visible").nth(at).locator("input[type=checkbox]").check()
    page.locator(".loom-runs .compare").click()
    dialog = page.locator("dialog[open]").last
    dialog.locator("img").first.wait_for()
    page.wait_for_timeout(2000)
    box = dialog.bounding_box()
    workflows.thumbnail(page.screenshot(), {"left": box["x"], "top": box["y"], **box}, ASSETS / "runs.jpg", WIDTH, 80)


def main() -> None:
    sys.path.insert(0, str(workflows.ROOT / "tools"))
    import comfyui
    from playwright.sync_api import sync_playwright

    found = comfyui.find()
    if found is None:
        sys.exit(f"ComfyUI not found: {comfyui.HOW}")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        workflows.settle(Path(folder))
        with workflows.server_module().Comfy(found, Path(folder)) as comfy:
            browser, page = workflows.open_page(playwright, comfy.url)
            trained(page)
            compared(page)
            browser.close()


if __name__ == "__main__":
    main()
