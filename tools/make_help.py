"""Keeps the nodes' help, web/js/docs/<node>/<language>.md, true: fills in what other files hold, and takes the nodes' pictures.

    python tools/make_help.py              # the lists of presets, captioning methods and labels
    python tools/make_help.py --pictures   # also a picture of each node as it is on the canvas; needs what make_workflows.py needs

The pages are written by hand. What stands between <!-- name --> and <!-- /name --> comes from the files that hold it: a preset's
reasons are the comments beside its values, which reasons.zh.json has in Chinese; what holds for every preset stands in default.yaml.
"""
from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ROOT / "trainer" / "presets"
REASONS = ROOT / "tools" / "reasons.zh.json"
NAMES = ROOT / "locales" / "zh" / "nodeDefs.json"
UNNAMED = {"pictures": "适合的图片数"}  # no widget has it
DOCS = ROOT / "web" / "js" / "docs"
LABELS = ROOT / "trainer" / "captioners" / "labels"
LISTS = ("medium", "style", "subject", "light", "palette", "composition")
LANGUAGES = ("en", "zh")
PRESET_WORDS = {
    "en": ("## The presets", ": ", ", ", "For the family {}: ", " ({})"),
    "zh": ("## 预设", "：", "，", "{} 家族：", "（{}）"),
}


def reasons(text: str) -> dict[str, str]:
    """{setting: the comment behind its value}"""
    return {name: why.strip() for name, why in re.findall(r"^    (\w+):[^#\n]*# ?(.*)$", text, re.MULTILINE)}


def said(why: str, language: str) -> str:
    return why if not why or language == "en" else json.loads(REASONS.read_text(encoding="utf-8"))[why]


def called(name: str, language: str) -> str:
    """The setting as its widget is called on a canvas of that language, too."""
    if language == "en":
        return f"`{name}`"
    nodes = json.loads(NAMES.read_text(encoding="utf-8"))
    shown = UNNAMED.get(name) or next((nodes[node]["inputs"][name]["name"] for node in ("LoRAConfig", "TrainLoRA") if name in nodes[node]["inputs"]), name)
    return f"`{name}`" + (f" {shown}" if shown != name else "")


def presets(language: str) -> str:
    title, colon, comma, family_words, brackets = PRESET_WORDS[language]
    paths = sorted(PRESETS.glob("*.yaml"), key=lambda path: (path.stem != "default", path.stem))
    general, parts = reasons(paths[0].read_text(encoding="utf-8")), [title]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        tree, own = yaml.safe_load(text), reasons(text)
        rows = [f"- {called(name, language)} **{value}**{colon}{said(own.get(name) or general.get(name, ''), language)}".rstrip(": ：") for part in tree["values"].values() for name, value in part.items()]
        parts += [f"### {tree['title'][language]} · `{path.stem.replace('_', ' ')}`", tree["description"][language], "\n".join(rows)]
        lines = []
        for family, values in (tree.get("families") or {}).items():
            why = re.search(rf"^  {family}: .*?#\s*(.*)$", text, re.MULTILINE)
            changed = comma.join(f"{called(name, language)} {value}" for part in values.values() for name, value in part.items())
            lines.append(f"- {family_words.format(family)}{changed}{brackets.format(said(why[1], language)) if why else ''}")
        parts += ["\n".join(lines)] if lines else []
    return "\n\n".join(parts)


# method: (folder under models/, what to look for on huggingface.co, {language: (what it writes, the files)})
METHODS = {
    "clip_tags": ("open_clip", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", {
        "en": ("the labels that fit best", "a folder with *open_clip_config.json* and *open_clip_model.safetensors*, or *ViT-B-32.safetensors*"),
        "zh": ("最符合的标签", "含 *open_clip_config.json* 和 *open_clip_model.safetensors* 的文件夹，或 *ViT-B-32.safetensors*")}),
    "coca": ("open_clip", "laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k", {
        "en": ("a short sentence", "as `clip_tags`, or *coca_ViT-L-14.safetensors*"), "zh": ("一个短句", "同 `clip_tags`，或 *coca_ViT-L-14.safetensors*")}),
    "wd14": ("captioners", "SmilingWolf/wd-vit-tagger-v3", {
        "en": ("Danbooru tags; raise `max_tags` to 20–40", "a folder with *selected_tags.csv* and either *model.safetensors* with *config.json*, or *model.onnx* "
               "(which needs `pip install onnxruntime`)"),
        "zh": ("Danbooru 标签；建议把“最多标签数”调到 20–40", "含 *selected_tags.csv*，以及 *model.safetensors* 加 *config.json*，或 *model.onnx*（需要 `pip install onnxruntime`）的文件夹")}),
    "vision_llm": ("LLM", "florence-community/Florence-2-base · Qwen/Qwen2.5-VL-3B-Instruct · fancyfeast/llama-joycaption-beta-one-hf-llava · "
                   "Salesforce/blip-image-captioning-large", {
        "en": ("a text, as `instruction` says", "the whole folder, weights as safetensors, not quantized; or no model and a CLIP that reads pictures and writes text "
               "(Qwen3-VL, Gemma) connected to `clip`"),
        "zh": ("按“指令”写的一段文字", "整个文件夹，权重为 safetensors，未量化；也可以不选模型，把能看图写字的 CLIP（Qwen3-VL、Gemma）接到“CLIP”")}),
}
METHOD_WORDS = {
    "en": ("- `{}`: {}\n  - into *models/{}*: {}\n  - on huggingface.co, for example: {}", ", "),
    "zh": ("- `{}`：{}\n  - 放进 *models/{}*：{}\n  - 可从 huggingface.co 获取，例如 {}", "、"),
}
LABEL_WORDS = {
    "en": ("## How labels are written", "For `clip_tags`. A line is a group, and the words of a group compete with each other:",
           "`@name` stands for a list that comes along; a line of your own under the same name adds to it:"),
    "zh": ("## 候选标签的写法", "用于 `clip_tags`。一行是一组，同组的词互相竞争：", "`@名称` 代表自带的列表；用同样的名称另写一行即可补充："),
}
EXAMPLE = """```
@medium max=1
@light
animal: cat, dog, bird
mood max=1 threshold=0.3: calm, tense, joyful
```"""


def methods(language: str) -> str:
    """A list, its files in italics: a table is several times as wide as the panel that shows the page, and long names as code are wider than it."""
    item, between = METHOD_WORDS[language]
    return "\n".join(item.format(name, says[language][0], folder, says[language][1], source.replace(" · ", between)) for name, (folder, source, says) in METHODS.items())


def labels(language: str) -> str:
    title, groups, lists = LABEL_WORDS[language]
    shipped = {name: [line for line in (LABELS / f"{name}.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")] for name in LISTS}
    return "\n\n".join([title, groups, EXAMPLE, lists, "\n".join(f"- `@{name}` ({len(found)}): {', '.join(found[:8])} …" for name, found in shipped.items())])


PARTS = {"presets": presets, "methods": methods, "labels": labels}


def filled(text: str, language: str) -> str:
    """The page with what the other files hold in its place."""
    for name, make in PARTS.items():
        text = re.sub(f"<!-- {name} -->.*<!-- /{name} -->", lambda _, name=name, make=make: f"<!-- {name} -->\n\n{make(language)}\n\n<!-- /{name} -->", text, flags=re.DOTALL)
    return text


# ---------------------------------------------------------------- pictures

ALONE = """
async ([kind, width, values]) => {
  const {app} = window.comfyAPI?.app ?? await import("/scripts/app.js");
  for (const other of [...app.graph._nodes]) app.graph.remove(other);  // not clear(): the page keeps widgets' values by node number
  const node = LiteGraph.createNode(kind);
  app.graph.add(node);
  for (const widget of node.widgets ?? []) if (widget.name in values) widget.value = values[widget.name];
  const least = node.computeSize();
  node.setSize([Math.max(width, least[0]), Math.max(node.size[1], least[1])]);
  node.pos = [0, 0];
  await new Promise((done) => setTimeout(done, 1200));  // what the node draws by itself is there
  const view = app.canvas.canvas.getBoundingClientRect(), scale = Math.min(1.5, (view.height - 260) / (node.size[1] + 30));
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset[0] = 300 / scale;
  app.canvas.ds.offset[1] = 170 / scale + 30;
  app.canvas.deselectAll?.();
  app.canvas.setDirty(true, true);
  return {left: 300 - 8, top: 170 - 8, width: node.size[0] * scale + 16, height: (node.size[1] + 30) * scale + 16};
}
"""
WIDTHS = {"TrainLoRA": 440, "AutoCaption": 400, "PreviewSample": 360, "LoadDataset": 360}
VALUES = {"LoadDataset": {"folder": "lora_loom_stars", "resolution": 64, "min_size": 64}}  # else the first folder of that ComfyUI


def pictures(wanted: list[str]) -> None:
    """node.webp beside the pages of each node, from ComfyUI's own page: nodes as they come, on an empty canvas."""
    from PIL import Image

    sys.path.insert(0, str(ROOT / "tools"))
    import comfyui
    import make_workflows as page_of
    from playwright.sync_api import sync_playwright

    found = comfyui.find()
    if found is None:
        sys.exit(f"ComfyUI not found: {comfyui.HOW}")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_of.settle(Path(folder))
        page_of.stand_in(Path(folder))
        with page_of.server_module().Comfy(found, Path(folder)) as comfy:
            browser, page = page_of.open_page(playwright, comfy.url, (1400, 1500))
            page.evaluate("() => { window.app.canvas.show_info = false; window.app.canvas.render_canvas_border = false; }")
            for node in wanted:
                box = page.evaluate(ALONE, [node, WIDTHS.get(node, 330), VALUES.get(node, {})])
                page.wait_for_timeout(1000)
                shot = Image.open(io.BytesIO(page.screenshot(clip={"x": box["left"], "y": box["top"], "width": box["width"], "height": box["height"]})))
                target = DOCS / node / "node.webp"
                shot.convert("RGB").save(target, quality=80, method=6)
                print(target, shot.size, target.stat().st_size)
            browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", nargs="*", metavar="NODE", help="take the pictures of these nodes, of all where none is named")
    arguments = parser.parse_args()
    for path in sorted(DOCS.glob("*/*.md")):
        path.write_text(filled(path.read_text(encoding="utf-8"), path.stem), encoding="utf-8", newline="\n")
        print(path)
    if arguments.pictures is not None:
        pictures(arguments.pictures or sorted(path.name for path in DOCS.iterdir()))


if __name__ == "__main__":
    main()
