"""Presets as YAML files: named for what people want. A new preset is a new file here, no code.

A file holds `title` and `description` in English and Chinese, and `values`: a part of LoomConfig's tree.
"""
from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from ..config import LoomConfig
from ..errors import LoomError

FOLDER = Path(__file__).parent
FIRST = "default"
LANGUAGES = ("en", "zh")


def names() -> list[str]:
    """The presets' names, `default` first. The file quick_look.yaml is the preset `quick look`."""
    found = sorted(path.stem.replace("_", " ") for path in FOLDER.glob("*.yaml"))
    return [FIRST, *(name for name in found if name != FIRST)]


def load(name: str) -> dict[str, dict[str, Any]]:
    """A preset's part of LoomConfig's tree, checked. Raises LoomError for a name that no file has."""
    values = _read(name)["values"] or {}
    merge(values, {})
    return values


def about(name: str, language: str = "en") -> tuple[str, str]:
    """(title, description) of a preset in `en` or `zh`; English where the language is another."""
    tree = _read(name)
    language = language if language in LANGUAGES else "en"
    return tree["title"][language], tree["description"][language]


def merge(preset: dict[str, dict[str, Any]], values: dict[str, dict[str, Any]]) -> LoomConfig:
    """LoomConfig's defaults, overridden by the preset, overridden by the given values; validated.

    >>> merge(load("low vram"), {"adapter": {"rank": 4}}).adapter.rank
    4
    """
    parts = {**preset, **values}
    return LoomConfig.from_dict({part: {**(preset.get(part) or {}), **(values.get(part) or {})} for part in parts}).validate()


def _read(name: str) -> dict[str, Any]:
    if name not in names():
        near = difflib.get_close_matches(str(name), names(), 1, 0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise LoomError(f"preset {name!r} is unknown: LoRAConfig.preset is one of {', '.join(names())}{hint}")
    tree = yaml.safe_load((FOLDER / f"{name.replace(' ', '_')}.yaml").read_text(encoding="utf-8"))
    for part in ("title", "description"):
        missing = [language for language in LANGUAGES if not (tree.get(part) or {}).get(language)]
        if missing:
            raise LoomError(f"preset {name!r} has no {part} in {', '.join(missing)}: give {part} in {' and '.join(LANGUAGES)}")
    if "values" not in tree:
        raise LoomError(f"preset {name!r} has no values: give a part of a run's configuration under `values:`")
    return tree
