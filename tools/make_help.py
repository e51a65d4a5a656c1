"""Makes the nodes' help, web/js/docs/<node>/*.md: what each preset sets and why, and what AutoCaption's methods want, from the files that hold it.

    python tools/make_help.py

A preset's reasons are the comments beside its values; what holds for every preset stands in default.yaml.
"""
from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ROOT / "trainer" / "presets"
DOCS = ROOT / "web" / "js" / "docs"
TARGET = DOCS / "LoRAConfig"
LABELS = ROOT / "trainer" / "captioners" / "labels"
LISTS = ("medium", "style", "subject", "light", "palette", "composition")
WORDS = {
    "en": ("# LoRA Config", "What is trained and how. A preset fills the widgets; every widget can then be changed. Choose the model's `family` beside it, and the preset "
           "fills in what that family wants. *Save as preset…* in the node's menu keeps your own; a run's `config.yaml` dropped on the node fills it.",
           ("setting", "value", "why"), "For the family {}: "),
    "zh": ("# LoRA 设置", "训练什么、怎样训练。选择预设会填入各项设置，之后都可以修改；在旁边选择模型家族，预设会按该家族的习惯填写。节点菜单中的“保存为预设…”保存你自己的设置；"
           "把某次训练的 `config.yaml` 拖到节点上即可填入。", ("设置", "取值", "原因（英文）"), "{} 家族："),
}


def reasons(text: str) -> dict[str, str]:
    """{setting: the comment behind its value}"""
    return {name: why.strip() for name, why in re.findall(r"^    (\w+):[^#\n]*# ?(.*)$", text, re.MULTILINE)}


def page(language: str) -> str:
    title, about, head, family_words = WORDS[language]
    paths = sorted(PRESETS.glob("*.yaml"), key=lambda path: (path.stem != "default", path.stem))
    general, parts = reasons(paths[0].read_text(encoding="utf-8")), [title, about]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        tree, own = yaml.safe_load(text), reasons(text)
        rows = [f"| `{name}` | {value} | {own.get(name) or general.get(name, '')} |" for part in tree["values"].values() for name, value in part.items()]
        table = "\n".join([f"| {' | '.join(head)} |", "| --- | --- | --- |", *rows])
        parts += [f"## {tree['title'][language]} · `{path.stem.replace('_', ' ')}`", tree["description"][language], table]
        lines = []
        for family, values in (tree.get("families") or {}).items():
            why = re.search(rf"^  {family}: .*?#\s*(.*)$", text, re.MULTILINE)
            said = ", ".join(f"`{name}` {value}" for part in values.values() for name, value in part.items())
            lines.append(f"- {family_words.format(family)}{said}{f' ({why[1]})' if why else ''}")
        parts += ["\n".join(lines)] if lines else []
    return "\n\n".join(parts) + "\n"


# method: (folder under models/, what to look for on huggingface.co, {language: (what it writes, the files)})
METHODS = {
    "clip_tags": ("open_clip", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", {
        "en": ("the labels that fit best", "a folder with `open_clip_config.json` and `open_clip_model.safetensors`, or `ViT-B-32.safetensors`"),
        "zh": ("最符合的标签", "含 `open_clip_config.json` 和 `open_clip_model.safetensors` 的文件夹，或 `ViT-B-32.safetensors`")}),
    "coca": ("open_clip", "laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k", {
        "en": ("a short sentence", "as `clip_tags`, or `coca_ViT-L-14.safetensors`"), "zh": ("一个短句", "同 `clip_tags`，或 `coca_ViT-L-14.safetensors`")}),
    "wd14": ("captioners", "SmilingWolf/wd-vit-tagger-v3", {
        "en": ("Danbooru tags; raise `max_tags` to 20–40", "a folder with `selected_tags.csv` and either `model.safetensors` with `config.json`, or `model.onnx` "
               "(which needs `pip install onnxruntime`)"),
        "zh": ("Danbooru 标签；建议把 `max_tags` 调到 20–40", "含 `selected_tags.csv`，以及 `model.safetensors` 加 `config.json`，或 `model.onnx`（需要 `pip install onnxruntime`）的文件夹")}),
    "vision_llm": ("LLM", "florence-community/Florence-2-base · Qwen/Qwen2.5-VL-3B-Instruct · fancyfeast/llama-joycaption-beta-one-hf-llava · "
                   "Salesforce/blip-image-captioning-large", {
        "en": ("a text, as `instruction` says", "the whole folder, weights as safetensors, not quantized; or no model and a CLIP that reads pictures and writes text "
               "(Qwen3-VL, Gemma) connected to `clip`"),
        "zh": ("按 `instruction` 写的一段文字", "整个文件夹，权重为 safetensors，未量化；也可以不选模型，把能看图写字的 CLIP（Qwen3-VL、Gemma）接到 `clip`")}),
}
CAPTION = {
    "en": ("# Auto Caption", "Writes captions for the pictures of a dataset with a model from ComfyUI's `models` folder. Nothing is downloaded: put the files there, then "
           "refresh the page. The model is loaded when the node runs and unloaded afterwards; a cancel keeps the captions that are done (with `save_as`, in the folder).",
           ("method", "what it writes", "put into", "files", "for example, on huggingface.co"), "## Labels, for clip_tags",
           "A line is a group, and the words of a group compete with each other:", "`@name` stands for a list that comes along; a line of your own under the same name adds to it:",
           "## The words around", [
               "`existing`: keep captions that are there, replace them, or append to them. What is said already is not said again.",
               "`prefix` and `suffix` go around every caption; the dataset's trigger word is put in front of it when training, where it is missing.",
               "`replace`, one a line: `grey => gray`. Tags are replaced whole; in texts, words and phrases are.",
               "`ban`, with commas: these tags are left out (`*hair` stands for every tag that ends so). Of texts, whole sentences with these words are left out.",
               "`instruction`: Florence-2 knows `<CAPTION>`, `<DETAILED_CAPTION>` and `<MORE_DETAILED_CAPTION>`; BLIP takes the beginning of its caption; the others what you would ask a person."]),
    "zh": ("# 自动打标", "用 ComfyUI `models` 文件夹里的模型为数据集的图片写标注。不会下载任何东西：把文件放好，然后刷新页面。模型在节点运行时载入，之后卸载；取消时保留已写好的标注"
           "（选择了 `save_as` 时写在文件夹里）。",
           ("方法", "写出什么", "放在", "文件", "例如（huggingface.co）"), "## 标签（clip_tags）",
           "一行是一组，同组的词互相竞争：", "`@名称` 代表自带的列表；用同样的名称另写一行即可补充：", "## 前后的文字", [
               "`existing`：保留、替换或追加已有标注；已经写过的不会重复。",
               "`prefix` 和 `suffix` 加在每条标注前后；训练时若缺少数据集的触发词，会自动加在最前面。",
               "`replace`，每行一个：`grey => gray`。标签整个替换；文字中替换词和短语。",
               "`ban`，用逗号分隔：去掉这些标签（`*hair` 代表所有以此结尾的标签）。文字中含有这些词的整句会去掉。",
               "`instruction`：Florence-2 认识 `<CAPTION>`、`<DETAILED_CAPTION>` 和 `<MORE_DETAILED_CAPTION>`；BLIP 取标注的开头；其他模型按你的要求来写。"]),
}
EXAMPLE = """```
@medium max=1
@light
animal: cat, dog, bird
mood max=1 threshold=0.3: calm, tense, joyful
```"""


def caption_page(language: str) -> str:
    title, about, head, labels_title, groups, lists, words_title, words = CAPTION[language]
    rows = [f"| `{name}` | {says[language][0]} | `models/{folder}` | {says[language][1]} | {source} |" for name, (folder, source, says) in METHODS.items()]
    shipped = {name: [line for line in (LABELS / f"{name}.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")] for name in LISTS}
    return "\n\n".join([
        title, about, "\n".join([f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *rows]),
        labels_title, groups, EXAMPLE, lists, "\n".join(f"- `@{name}` ({len(labels)}): {', '.join(labels[:8])} …" for name, labels in shipped.items()),
        words_title, "\n".join(f"- {line}" for line in words)]) + "\n"


PAGES = {"LoRAConfig": page, "AutoCaption": caption_page}


def main() -> None:
    for node, make in PAGES.items():
        (DOCS / node).mkdir(parents=True, exist_ok=True)
        for language in WORDS:
            (DOCS / node / f"{language}.md").write_text(make(language), encoding="utf-8")
            print(DOCS / node / f"{language}.md")


if __name__ == "__main__":
    main()
