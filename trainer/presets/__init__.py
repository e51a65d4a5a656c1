"""Presets as YAML files: named for what people want. A new preset is a new file here, or in a folder of the user's, no code.

A file holds `title` and `description` in English and Chinese, `values`: a part of LoomConfig's tree, and `families`: what a
family wants otherwise. A user's own file needs `values` alone; a run's config.yaml is taken as one too.
"""
from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from ..backbones.families import FAMILIES
from ..config import LoomConfig
from ..errors import LoomError
from ..names import check_name

FOLDER = Path(__file__).parent
FIRST = "default"
LANGUAGES = ("en", "zh")
Values = dict[str, dict[str, Any]]  # a part of LoomConfig's tree

_own: list[Path] = []  # folders of the user's own presets


def add_folder(folder: Path) -> None:
    """A folder whose presets are the user's own; the host says where it is."""
    if folder not in _own:
        _own.append(folder)


def names() -> list[str]:
    """The presets' names, `default` first, then ours, then the user's own. The file quick_look.yaml is the preset `quick look`."""
    ours = sorted(_name(path) for path in FOLDER.glob("*.yaml"))
    own = sorted({_name(path) for folder in _own for path in folder.glob("*.yaml")} - set(ours))
    return [FIRST, *(name for name in ours if name != FIRST), *own]


def load(name: str, family: str = "") -> Values:
    """A preset's part of LoomConfig's tree, as that family wants it, checked. Raises LoomError for a name that no file has."""
    tree = _read(name)
    values = _over(tree["values"] or {}, (tree.get("families") or {}).get(family) or {})
    merge(values, {})
    return values


def about(name: str, language: str = "en") -> tuple[str, str]:
    """(title, description) of a preset in `en` or `zh`; English where the language is another. A user's own is called as its file."""
    tree = _read(name)
    language = language if language in LANGUAGES else "en"
    return tuple((tree.get(part) or {}).get(language) or default for part, default in (("title", name), ("description", "")))


def merge(preset: Values, values: Values) -> LoomConfig:
    """LoomConfig's defaults, overridden by the preset, overridden by the given values; validated.

    >>> merge(load("low vram"), {"adapter": {"rank": 4}}).adapter.rank
    4
    """
    return LoomConfig.from_dict(_over(preset, values)).validate()


def save(name: str, values: Values) -> Path:
    """Write the user's own preset into the first of their folders. LoomError for a name of ours, or for values that cannot be."""
    name = _name(Path(check_name(name.strip(), "a preset's name") + ".yaml"))
    if not _own:
        raise LoomError(f"preset {name!r} has no folder to go to: presets are saved from ComfyUI")
    if name.lower() in {_name(path).lower() for path in FOLDER.glob("*.yaml")}:
        raise LoomError(f"preset {name!r} is one of LoRA Loom's own: save yours under another name")
    merge(values, {})
    path = _own[0] / f"{name.replace(' ', '_')}.yaml"
    from ..runs.store import write_whole

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump({"values": values}, sort_keys=False, allow_unicode=True).encode())
    return path


def parse(text: str, called: str, family: str = "") -> Values:
    """A preset's file or a run's config.yaml as part of LoomConfig's tree, checked. LoomError where it is neither."""
    tree = _parse(text, called)
    values = _over(_values_of(tree, called), (tree.get("families") or {}).get(family) or {})
    merge(values, {})
    return values


class _Plain(yaml.SafeLoader):
    """SafeLoader without aliases: a few lines of them can stand for gigabytes, and presets are shared."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken")
        return super().compose_node(parent, index)


def _values_of(tree: dict[str, Any], called: str) -> Values:
    values = tree["values"] or {} if "values" in tree else tree
    if not isinstance(values, dict) or not all(isinstance(part, dict) for part in values.values()):
        raise LoomError(f"{called} is no preset: it takes `values:` with a part of a run's configuration, or a run's whole config.yaml")
    merge(values, {})
    return values


def _over(below: Values, above: Values) -> Values:
    return {part: {**(below.get(part) or {}), **(above.get(part) or {})} for part in {**below, **above}}


def _name(path: Path) -> str:
    return path.stem.replace("_", " ")


def _parse(text: str, called: str) -> dict[str, Any]:
    try:
        tree = yaml.load(text, _Plain)
    except yaml.YAMLError as error:
        raise LoomError(f"{called} is not YAML ({getattr(error, 'problem', None) or error}): give a preset or a run's config.yaml") from None
    if not isinstance(tree, dict):
        raise LoomError(f"{called} holds {str(tree)[:80]!r}: give a preset or a run's config.yaml")
    return tree


def _read(name: str) -> dict[str, Any]:
    path = _file(name)
    try:
        tree = _parse(path.read_text(encoding="utf-8-sig"), f"preset {name!r}")
    except (OSError, UnicodeDecodeError) as error:
        raise LoomError(f"preset {name!r} cannot be read ({error}): save it again as UTF-8, or choose another") from error
    if path.parent != FOLDER:
        return {**tree, "values": _values_of(tree, f"preset {name!r}")}
    for part in ("title", "description"):
        missing = [language for language in LANGUAGES if not (tree.get(part) or {}).get(language)]
        if missing:
            raise LoomError(f"preset {name!r} has no {part} in {', '.join(missing)}: give {part} in {' and '.join(LANGUAGES)}")
    if "values" not in tree:
        raise LoomError(f"preset {name!r} has no values: give a part of a run's configuration under `values:`")
    unknown = sorted(set(tree.get("families") or {}) - set(FAMILIES))
    if unknown:
        raise LoomError(f"preset {name!r} has values for the family {unknown[0]!r}: families are {', '.join(FAMILIES)}")
    return tree


def _file(name: str) -> Path:
    """The preset's file, ours or the user's own."""
    for folder in (FOLDER, *_own):
        for path in folder.glob("*.yaml"):
            if _name(path) == name:
                return path
    near = difflib.get_close_matches(str(name), names(), 1, 0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise LoomError(f"preset {name!r} is unknown: LoRAConfig.preset is one of {', '.join(names())}{hint}")
