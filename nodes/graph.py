"""What the queued graph says of a node's inputs: which nodes they come from, and whether they are what they were."""
from __future__ import annotations

import hashlib
import json
import math
import os
from typing import Any

import folder_paths


def origins(prompt: dict | None, node_id: Any, names: tuple[str, ...] = ()) -> set[str]:
    """Ids of all nodes that the inputs `names` of the node, or all, depend on."""
    waiting = _linked(prompt, node_id, names)
    found: set[str] = set()
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += _linked(prompt, one)
    return found


def link(prompt: dict | None, node_id: Any, name: str) -> str | None:
    """Id of the node that the input comes from; None for a value."""
    return next(iter(_linked(prompt, node_id, (name,))), None)


def _linked(prompt: dict | None, node_id: Any, names: tuple[str, ...] = ()) -> list[str]:
    inputs = (prompt or {}).get(str(node_id), {}).get("inputs", {})
    return [str(value[0]) for name, value in inputs.items() if _is_link(value) and (not names or name in names)]


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int))


_LONG = 2_000  # characters: of a longer text (a picture may be one) nobody asks whether it is the same


def values(prompt: dict | None, node_id: Any) -> list[list[Any]]:
    """[[id, class, {input: value}]…] of the node and of all that lead to it, without what is linked and without long texts."""
    found = []
    for key in (str(node_id), *sorted(origins(prompt, node_id))):
        node = (prompt or {}).get(key, {})
        found.append([key, node.get("class_type", ""), {name: value for name, value in node.get("inputs", {}).items() if _fits_json(value)}])
    return found


def _fits_json(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONG or isinstance(value, int) or isinstance(value, float) and math.isfinite(value)


def signature(prompt: dict | None, node_id: Any, names: tuple[str, ...]) -> str:
    """Stands for what comes in at `names`: the kinds and values of all nodes before them, however they are numbered, and the state of the files
    that the values name. "" where the graph is unknown."""
    inputs = (prompt or {}).get(str(node_id), {}).get("inputs")
    if inputs is None:
        return ""
    known: dict[str, str] = {}
    return _digest([_told(prompt, inputs.get(name), known) for name in names])


def _told(prompt: dict, value: Any, known: dict[str, str]) -> Any:
    if not _is_link(value):
        return [value, _files(value)]
    key = str(value[0])
    if key not in known:
        known[key] = ""  # a graph that bites its tail is not ours to mend
        node = prompt.get(key, {})
        known[key] = _digest([node.get("class_type"), [[name, _told(prompt, given, known)] for name, given in sorted(node.get("inputs", {}).items())]])
    return [known[key], value[1]]


def _files(value: Any) -> list[list[int]]:
    """Size and time of the files of that name in ComfyUI's model folders and its input folder."""
    if not isinstance(value, str) or not value.strip() or "\n" in value or len(value) > 400:
        return []
    places = [folder_paths.get_full_path(kind, value) for kind in list(folder_paths.folder_names_and_paths)]
    places.append(os.path.join(folder_paths.get_input_directory(), value.removesuffix(" [input]")))
    found = []
    for place in dict.fromkeys(filter(None, places)):
        try:
            stat = os.stat(place)
        except (OSError, ValueError):
            continue
        found.append([stat.st_size, stat.st_mtime_ns])
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]
