"""Presets as YAML files: named for what people want. A new preset is a new file here, or in a folder of the user's, no code.

A file holds `title` and `description` in English and Chinese, `values`: a part of LoomConfig's tree, and `families`: what a
family wants otherwise. A user's own file needs `values` alone; a run's config.yaml is taken as one too.
"""
from __future__ import annotations

import difflib
import unicodedata
from pathlib import Path
from typing import Any

import yaml

from ..backbones.families import FAMILIES
from ..config import LoomConfig
from ..errors import LoomError
from ..files import write_whole
from ..names import check_name
from ..yaml_text import mapping, text_of

FOLDER = Path(__file__).parent
FIRST = "default"
LANGUAGES = ("en", "zh")
WANTED = "a preset, or the configuration that a run has left as config.yaml"
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
    return Preset(name).values(family)


class Preset:
    """One preset's file, read once and checked."""

    def __init__(self, name: str) -> None:
        self.name, self._tree = name, _read(name)

    def values(self, family: str = "") -> Values:
        return _for_family(self._tree, family)

    def about(self, language: str = "en") -> tuple[str, str]:
        """(title, description) in `en` or `zh`; English where the language is another. A user's own is called as its file."""
        language = language if language in LANGUAGES else "en"
        title, description = ((self._tree.get(part) or {}).get(language) for part in ("title", "description"))
        return title or self.name, description or ""


def merge(preset: Values, values: Values) -> LoomConfig:
    """LoomConfig's defaults, overridden by the preset, overridden by the given values; validated.

    >>> merge(load("low vram"), {"adapter": {"rank": 4}}).adapter.rank
    4
    """
    return LoomConfig.from_dict(_over(preset, values)).validate()


def save(name: str, values: Values, replace: bool = False) -> Path | None:
    """Write the user's own preset into the first of their folders; None where there is one of that name, which is not to be replaced.
    LoomError for a name of ours, for values that cannot be, and where it cannot be written."""
    name = " ".join(_name(Path(unicodedata.normalize("NFC", check_name(name.strip(), "a preset's name")) + ".yaml")).split())
    if not _own:
        raise LoomError(f"preset {name!r} has no folder to go to: presets are saved from ComfyUI")
    if name.lower() in {_name(path).lower() for path in FOLDER.glob("*.yaml")}:
        raise LoomError(f"preset {name!r} is one of LoRA Loom's own: save yours under another name")
    merge(values, {})
    path = _own[0] / f"{name.replace(' ', '_')}.yaml"
    if name in names() and not replace:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, yaml.safe_dump({"values": values}, sort_keys=False, allow_unicode=True).encode())
    except OSError as error:
        raise LoomError(f"preset {name!r} cannot be written to {path.parent} ({error.strerror or error}): free the place, and try again") from error
    return path


def parse(text: str, called: str, family: str = "") -> Values:
    """A preset's file or a run's config.yaml as part of LoomConfig's tree, checked. LoomError where it is neither."""
    return _for_family(_checked(mapping(text, called, WANTED), called), family)


def _checked(tree: dict[str, Any], called: str) -> dict[str, Any]:
    """The tree with `values`, and everything in it of the kind that it must be; a run's config.yaml is all values."""
    if "values" not in tree:
        tree = {"values": tree}
    if isinstance(tree["values"], dict) and "train_data_dir" in tree["values"]:
        raise LoomError(f"{called} is a configuration of the command line: here goes a preset, or the config.yaml that a run has left in its folder")
    values, families = tree["values"] or {}, tree.get("families") or {}
    if not _parts(values):
        raise LoomError(f"{called} is no preset: it takes `values:` with a part of a run's configuration, or a run's whole config.yaml")
    if not isinstance(families, dict) or not all(_parts(own or {}) for own in families.values()):
        raise LoomError(f"{called} has families {str(families)[:80]}: `families:` takes a family's name and a part of a run's configuration for each")
    unknown = sorted(map(str, set(families) - set(FAMILIES)))
    if unknown:
        raise LoomError(f"{called} has values for the family {unknown[0]!r}: families are {', '.join(FAMILIES)}")
    for part in ("title", "description"):
        words = tree.get(part) or {}
        if isinstance(words, str):
            words = tree[part] = {"en": words}
        if not isinstance(words, dict) or not all(isinstance(word, str) for word in words.values()):
            raise LoomError(f"{called} has the {part} {str(words)[:80]}: it takes text, or text in {' and '.join(LANGUAGES)}")
    tree = {**tree, "values": values, "families": families}
    for family in ("", *families):
        try:
            _for_family(tree, family)
        except LoomError as error:
            raise LoomError(f"{called}{f' for the family {family!r}' if family else ''}: {error}", error.fix) from error
    return tree


def _parts(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(part, dict) or part is None for part in values.values())


def _for_family(tree: dict[str, Any], family: str) -> Values:
    values = _over(tree["values"], tree["families"].get(family) or {})
    merge(values, {})
    return values


def _over(below: Values, above: Values) -> Values:
    return {part: {**(below.get(part) or {}), **(above.get(part) or {})} for part in {**below, **above}}


def _name(path: Path) -> str:
    return path.stem.replace("_", " ")


def _read(name: str) -> dict[str, Any]:
    path = _file(name)
    called = f"preset {name!r}" + ("" if path.parent == FOLDER else f" ({path.name})")
    tree = mapping(text_of(path, called), called, WANTED)
    if path.parent == FOLDER:
        for part in ("title", "description"):
            missing = [language for language in LANGUAGES if not (tree.get(part) or {}).get(language)]
            if missing:
                raise LoomError(f"preset {name!r} has no {part} in {', '.join(missing)}: give {part} in {' and '.join(LANGUAGES)}")
        if "values" not in tree:
            raise LoomError(f"preset {name!r} has no values: give a part of a run's configuration under `values:`")
    return _checked(tree, called)


def _file(name: str) -> Path:
    """The preset's file, ours or the user's own."""
    for folder in (FOLDER, *_own):
        for path in folder.glob("*.yaml"):
            if _name(path) == name:
                return path
    near = difflib.get_close_matches(str(name), names(), 1, 0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise LoomError(f"preset {name!r} is unknown: LoRAConfig.preset is one of {', '.join(names())}{hint}")
