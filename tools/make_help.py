"""Makes web/js/docs/LoRAConfig/*.md, the node's help: what each preset sets and why, from the presets' own files.

    python tools/make_help.py

The reasons are the comments beside the values; what holds for every preset stands in default.yaml.
"""
from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ROOT / "trainer" / "presets"
TARGET = ROOT / "web" / "js" / "docs" / "LoRAConfig"
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


def main() -> None:
    TARGET.mkdir(parents=True, exist_ok=True)
    for language in WORDS:
        (TARGET / f"{language}.md").write_text(page(language), encoding="utf-8")
        print(TARGET / f"{language}.md")


if __name__ == "__main__":
    main()
