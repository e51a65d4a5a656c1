"""Makes example_workflows/*.json and their thumbnails with ComfyUI's own page, so that they are what the page itself would save.

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
import sys
import tempfile
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "example_workflows"
SAMPLER = {"sampler_name": "euler", "scheduler": "normal"}


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def train_and_generate(loader: dict, dataset: dict, config: dict, train: dict, preview: dict, sampler: dict, size: int) -> dict:
    """Both train-and-generate graphs: they differ only in their loader and their numbers."""
    model, clip, vae = ["1", 0], ["1", 1], ["1", 2]
    first = preview["prompt"].splitlines()[0]
    graph = {
        "1": loader,
        "2": node("LoadDataset", **{"caption_source": "auto", "trigger_word": "", "repeats": 1, "flip": False, "buckets": True, **dataset}),
        "3": node("PreviewImage", images=["2", 1]),
        "4": node("LoRAConfig", **config),
        "5": node("TrainLoRA", model=model, clip=clip, vae=vae, dataset=["2", 0], config=["4", 0], **{"epochs": 0, "seed": 0, **train}),
        "6": node("LossGraphNode", loss=["5", 3], filename_prefix="loss_graph"),
        "7": node("PreviewSample", model=["5", 0], clip=["5", 1], vae=vae, base_model=model, width=size, height=size, **SAMPLER, **preview),
        "8": node("CLIPTextEncode", clip=["5", 1], text=first),
        "9": node("CLIPTextEncode", clip=["5", 1], text=preview["negative"]),
        "10": node("EmptyLatentImage", width=size, height=size, batch_size=1),
        "11": node("KSampler", model=["5", 0], positive=["8", 0], negative=["9", 0], latent_image=["10", 0], denoise=1.0, **SAMPLER, **sampler),
        "12": node("VAEDecode", samples=["11", 0], vae=vae),
        "13": node("PreviewImage", images=["12", 0]),
    }
    if size < 256:  # small pictures are shown enlarged
        graph["13"] = node("PreviewImage", images=["14", 0])
        graph["14"] = node("ImageScaleBy", image=["12", 0], upscale_method="nearest-exact", scale_by=5.0)
        graph["15"] = node("ImageScaleBy", image=["7", 0], upscale_method="nearest-exact", scale_by=3.0)
        graph["16"] = node("PreviewImage", images=["15", 0])
    return graph


def toy() -> dict:
    return train_and_generate(
        node("ToyBase"), {"folder": "lora_loom_stars", "resolution": 64, "min_size": 64, "trigger_word": "star"},
        {"preset": "default", "rank": 16, "alpha": 16.0, "targets": "all linear+conv", "scheduler": "cosine", "warmup_steps": 20, "caption_dropout": 0.0,
         "preservation": 1.0, "preservation_words": "circle, square, triangle, cross, ring, diamond"},
        {"steps": 400, "learning_rate": 0.002, "batch_size": 4, "name": "toy_star", "sample_steps": 100,
         "sample_prompts": "a red star on a blue background\na red circle on a blue background"},
        {"prompt": "a red star on a blue background\na yellow star on a purple background\na white star on a green background\n"
                   "a red circle on a blue background", "negative": "", "seed": 1, "steps": 20, "cfg": 3.0},
        {"seed": 7, "steps": 20, "cfg": 3.0}, 64)


CHECKPOINT = {"name": "v1-5-pruned-emaonly-fp16.safetensors", "directory": "checkpoints",
              "url": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors"}


def sd15() -> dict:
    return train_and_generate(
        node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT["name"]),
        {"folder": "my_pictures", "resolution": 512, "min_size": 384, "trigger_word": "zxmug"},
        {"preset": "default"},
        {"steps": 1500, "learning_rate": 0.0001, "batch_size": 1, "name": "my_lora", "sample_steps": 250,
         "sample_prompts": "zxmug, on a wooden table, daylight\nzxmug, in the snow"},
        {"prompt": "zxmug, on a wooden table, daylight\nzxmug, in the snow", "negative": "blurry, low quality", "seed": 1, "steps": 20, "cfg": 7.0},
        {"seed": 7, "steps": 20, "cfg": 7.0}, 512)


def caption() -> dict:
    return {
        "1": node("LoadDataset", folder="my_pictures", resolution=512, min_size=64, caption_source="auto", trigger_word="", repeats=1, flip=False, buckets=True),
        "2": node("PreviewImage", images=["1", 1]),
        "3": node("AutoCaption", dataset=["1", 0], method="clip_tags", model="ViT-B-32.safetensors", max_tags=8, prefix="", suffix="",
                  existing="keep", save_as="metadata.csv"),
        "4": node("PreviewAny", source=["3", 2]),
    }


WORKFLOWS = {
    "toy_base_train_and_generate": {
        "graph": toy, "title": {"3": "Its twenty pictures", "13": "A picture with the LoRA", "8": "Prompt", "9": "Negative prompt", "16": "Before | after"},
        "rows": [
            [("1 · Pictures", [("note", 400, 480), ("1", 400, 0)]), ("", [("2", 340, 720), ("3", 340, 310)]),
             ("2 · Training", [("4", 370, 0)]), ("", [("5", 370, 720), ("6", 370, 330)])],
            [("3 · Before and after", [("7", 400, 760), ("15", 400, 0)]), ("", [("16", 440, 940)]),
             ("4 · Generate with it", [("8", 330, 130), ("9", 330, 110), ("10", 330, 0), ("12", 330, 0), ("14", 330, 0)]),
             ("", [("11", 370, 0), ("13", 370, 430)])]],
        "note": """## Train a LoRA, then generate with it

Press **Run**. Nothing to download: *Toy Base* is a tiny model that comes with the pack and draws coloured shapes, but it has never seen a star. From the twenty pictures in `input/lora_loom_stars` it learns one, in about three minutes on a CPU; `preservation` in *LoRA Config* keeps the other shapes as they were.

*Preview Sample* shows each prompt **before | after**. The file is in `output/loras`, and every LoRA loader can choose it.

## 训练一个 LoRA，并立即用它生成图片

点击 **运行**。无需下载任何模型：*Toy Base* 是随包附带的微型模型，会画彩色图形，但从未见过星形。它用 `input/lora_loom_stars` 中的二十张图片学会画星形，CPU 上约三分钟；*LoRA Config* 中的 `preservation` 让其他图形保持原样。

*Preview Sample* 按 **训练前 | 训练后** 并排显示每条提示词。LoRA 文件保存在 `output/loras`，可在任何 LoRA 加载器中选择。
"""},
    "sd15_train_and_generate": {
        "graph": sd15, "title": {"3": "Your pictures", "13": "A picture with the LoRA", "8": "Prompt", "9": "Negative prompt"},
        "rows": [
            [("1 · Pictures and model", [("note", 400, 530), ("1", 400, 0)]), ("", [("2", 340, 720), ("3", 340, 330)]),
             ("2 · Training", [("4", 370, 0)]), ("", [("5", 370, 720), ("6", 370, 330)])],
            [("3 · Before and after", [("7", 890, 820)]), ("4 · Generate with it", [("8", 330, 150), ("9", 330, 130), ("10", 330, 0), ("12", 330, 0)]),
             ("", [("11", 370, 0), ("13", 370, 430)])]],
        "note": """## Train a LoRA on Stable Diffusion 1.5

1. Drop 10 to 30 pictures, or a zip of them, on *Load Dataset*; captions in `metadata.csv` or a `.txt` beside each picture, if you have them. They go into a new folder in ComfyUI's `input`, which is chosen.
2. Choose your SD1.5 checkpoint.
3. Replace the trigger word `zxmug`, in *Load Dataset* and in the prompts, by a rare word of your own.
4. Press **Run**. Cancel at any time: what was learned is saved in `output/loras`.

## 在 Stable Diffusion 1.5 上训练 LoRA

1. 把 10 到 30 张图片或 zip 拖到 *Load Dataset* 上；若有标注，可写在 `metadata.csv` 或每张图片旁的 `.txt` 中。它们会存入 ComfyUI `input` 下的新文件夹，并自动选中。
2. 选择你的 SD1.5 模型。
3. 把 *Load Dataset* 和提示词中的触发词 `zxmug` 换成你自己的生僻词。
4. 点击 **运行**。可随时取消：已学到的内容会保存在 `output/loras`。
"""},
    "caption_only": {
        "graph": caption, "title": {"2": "The pictures", "4": "What was captioned"},
        "rows": [[("Pictures", [("note", 400, 560)]), ("", [("1", 340, 720), ("2", 340, 430)]),
                  ("Captions", [("3", 420, 740)]), ("", [("4", 400, 400)])]],
        "note": """## Captions for a folder of pictures

1. Drop your pictures, or a zip of them, on *Load Dataset*: they go into a new folder, which is chosen.
2. Put an open_clip model into `models/open_clip`, for example `ViT-B-32.safetensors`, and choose it in *Auto Caption*.
3. `labels` names the lists that CLIP picks from; add your own words, a group a line: `animal: cat, dog, bird`.
4. Press **Run**. The captions go to `metadata.csv` in the folder; captions that are there already are kept. *Edit captions…* is where you look through them.

## 为一个文件夹的图片生成标注

1. 把图片或 zip 拖到 *Load Dataset* 上：它们会存入新文件夹，并自动选中。
2. 把 open_clip 模型（例如 `ViT-B-32.safetensors`）放入 `models/open_clip`，并在 *Auto Caption* 中选择它。
3. `labels` 列出 CLIP 挑选的词表；自己的词一行一组：`动物: 猫, 狗, 鸟`。
4. 点击 **运行**。标注写入该文件夹的 `metadata.csv`；已有的标注会保留。点“编辑标注…”逐张检查。
"""},
}

# Runs in the page. Rows of columns, nodes below one another, a group around the columns from one title to the next.
BUILD = """
async ({prompt, name, id, layout, checkpoint}) => {
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
        node.setSize([Math.max(width, least[0]), Math.max(height, least[1])]);
        node.pos = [x, y];
        y += node.size[1] + title + gap;
        widest = Math.max(widest, node.size[0]);
        if (layout.title[id]) node.title = layout.title[id];
        if (node.type === "CheckpointLoaderSimple" && checkpoint) node.properties.models = [checkpoint];
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
    spec = importlib.util.spec_from_file_location("loom_host_server", ROOT / "tests" / "host" / "server.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settle(base: Path) -> None:
    """A user's settings that keep the page's greetings, tours and news away."""
    folder = base / "user" / "default"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comfy.settings.json").write_text(json.dumps({
        "Comfy.TutorialCompleted": True, "Comfy.Locale": "en", "Comfy.InstalledVersion": "1.27.10", "Comfy.Minimap.Visible": False,
        "Comfy.Release.Status": "what's new seen", "Comfy.Release.Version": "99.0.0", "Comfy.VueNodes.AutoScaleLayout": False,
        "Comfy.Workflow.ShowMissingModelsWarning": False, "Comfy.Notification.ShowVersionUpdates": False}))


def stand_in(base: Path) -> None:
    """Empty files of the names that the other workflows ask for, so that their canvas opens as it does for those who have them."""
    for name in (f"models/checkpoints/{CHECKPOINT['name']}", "models/open_clip/ViT-B-32.safetensors", "input/my_pictures/1.png"):
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def open_page(playwright, url: str, size: tuple[int, int] = (1900, 2000)):
    """(browser, page) with the app loaded. The page sees no network but the server."""
    browser = playwright.chromium.launch(
        executable_path=os.environ.get("CHROMIUM") or ("/usr/bin/chromium" if Path("/usr/bin/chromium").exists() else None),
        args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"])
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.route("**/*", lambda route: route.continue_() if route.request.url.startswith((url, "data:", "blob:")) else route.abort())
    page.goto(url)
    page.wait_for_function("() => window.app?.graph && window.LiteGraph && window.app.extensionManager && document.querySelector('[data-testid=queue-button]')",
                           timeout=120_000)
    page.wait_for_function("() => window.LiteGraph.registered_node_types['TrainLoRA']", timeout=60_000)
    page.wait_for_timeout(1000)
    return browser, page


def thumbnail(png: bytes, box: dict, target: Path, width: int, quality: int = 85) -> None:
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    crop = image.crop((int(box["left"]) - 4, int(box["top"]) - 4, int(box["left"] + box["width"]) + 4, int(box["top"] + box["height"]) + 4))
    crop.resize((width, round(width * crop.height / crop.width)), Image.Resampling.LANCZOS).save(target, quality=quality, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="append", default=[], choices=["toy"], help="run this workflow before its picture is taken")
    parser.add_argument("--only", help="one workflow's name")
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
                saved = page.evaluate(BUILD, {"prompt": layout["graph"](), "name": name, "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
                                              "layout": {k: layout[k] for k in ("note", "title", "rows")},
                                              "checkpoint": CHECKPOINT if name.startswith("sd15") else None})
                (FOLDER / f"{name}.json").write_text(saved + "\n", encoding="utf-8")
                page.evaluate("(saved) => window.app.loadGraphData(JSON.parse(saved))", saved)
                page.wait_for_timeout(1500)
                if "toy" in arguments.run and name.startswith("toy"):
                    run(page)
                box = page.evaluate(FIT)
                page.wait_for_timeout(1500)
                picture = page.screenshot()
                thumbnail(picture, box, FOLDER / f"{name}.jpg", 800)
                if "toy" in arguments.run and name.startswith("toy"):
                    thumbnail(picture, box, ROOT / "assets" / "canvas.jpg", 1600)
                print(FOLDER / f"{name}.json")
                browser.close()


def run(page) -> None:
    """Press Run, and wait until the graph has run and its pictures are drawn."""
    page.evaluate("() => { window.loomDone = false; window.app.api.addEventListener('execution_success', () => { window.loomDone = true; }); }")
    page.click("[data-testid=queue-button]")
    page.wait_for_function("() => window.loomDone", timeout=1_500_000)
    page.wait_for_timeout(3000)


if __name__ == "__main__":
    main()
