"""Values of the command line's YAML as they are written, turned into what the trainer takes, or refused with the rule.

Reads names and headers on disk, never weights or pictures. Messages leave out the key, which the caller puts in front.
"""
from __future__ import annotations

import difflib
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import presets
from .backbones.families import CONTEXT_WIDTHS, FAMILIES, LDM_CONTEXT, Family
from .config import TARGETS, coerce, parse_target
from .data.captions import SOURCES
from .data.masks import MASKS
from .devices import check_device
from .errors import LoomError

TOY_BASE = "toy_base"


def path_of(value: Any, folder: Path, kind: str) -> Path:
    text = coerce("it", value, "./pictures").strip()
    if any(ord(c) < 32 for c in text):
        raise LoomError("it holds a control character: in double quotes a backslash starts an escape; write / or use single quotes")
    path = _expanded(text, folder)
    if kind == "folder" and not path.is_dir():
        raise LoomError(f"{path} is not a folder: give one that exists; relative paths start at the YAML file's folder")
    if kind == "file" and path.suffix not in (".csv", ".jsonl"):
        raise LoomError("it does not end in .csv or .jsonl: give a metadata.csv (filename,prompt) or metadata.jsonl")
    if kind == "lora" and path.suffix.lower() != ".safetensors":
        raise LoomError("it does not end in .safetensors: give a LoRA file")
    if kind in ("file", "lora", "preset") and not path.is_file():
        raise LoomError(f"{path} is not a file: give one that exists; relative paths start at the YAML file's folder")
    return path


def _expanded(text: str, folder: Path) -> Path:
    """The path, relative ones from `folder`. LoomError where no such path can be."""
    try:
        path = folder / Path(text).expanduser()
        path.exists()
        return path
    except (OSError, RuntimeError, ValueError) as error:
        raise LoomError(f"{text[:80]!r} cannot be a path here ({getattr(error, 'strerror', None) or error}): give another") from None


def find_base_model(value: str, folder: Path) -> tuple[str, Family]:
    """(`toy_base` or an absolute path, its family), by names and headers alone. Raises LoomError where it cannot be trained on."""
    if value == TOY_BASE:
        return value, FAMILIES["toy"]
    path = _expanded(value, folder)
    if not path.exists():
        raise LoomError(f"base_model {value!r} is not found at {path}: nothing is downloaded; "
                        "give a local diffusers folder, a .safetensors file, or toy_base")
    if path.is_file() and path.suffix.lower() != ".safetensors":
        raise LoomError(f"base_model {value!r} ends in {path.suffix or 'nothing'}: only .safetensors files are read; convert it first")
    try:
        if path.is_file():
            family = _family_of_file(path)
        else:
            width = json.loads((path / "unet" / "config.json").read_text(encoding="utf-8"))["cross_attention_dim"]
            family = "sdxl" if (path / "text_encoder_2").is_dir() else "sd2" if width == 1024 else "sd15"
    except FileNotFoundError:
        raise LoomError(f"base_model {value!r} is a folder without unet/config.json: give the folder of a diffusers pipeline") from None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error) as error:
        raise LoomError(f"base_model {value!r} cannot be read ({error}): it may be cut off; copy it again") from None
    if family is None:
        raise LoomError(f"base_model {value!r} is none of SD1.5, SD2.x and SDXL: LoRA Loom trains on full checkpoints of these; give one")
    return str(path), FAMILIES[family]


def _family_of_file(path: Path) -> str | None:
    """By the width of the text that the UNet attends to, from the safetensors header: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > 100_000_000:  # the format's own limit
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
    return CONTEXT_WIDTHS.get(header.get(LDM_CONTEXT, {"shape": (0, 0)})["shape"][1])


def targets_of(value: Any) -> dict[str, Any]:
    """LoRAConfig's targets by name, or regular expressions; a plain name such as to_q means every layer that ends in it."""
    if value in TARGETS:
        return {"targets": value, "target_modules": ()}
    names = [value] if isinstance(value, str) else value if isinstance(value, list) else ()
    if not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise LoomError(f"it must be one of {', '.join(TARGETS)}, or a list such as [to_q, to_k, to_v]")
    if isinstance(value, list) and len(value) == 1 and value[0] in TARGETS:
        return {"targets": value[0], "target_modules": ()}
    for name in names:
        if name in TARGETS:
            raise LoomError(f"{name!r} is the name of a set of layers: give it alone, without a list")
        try:
            re.compile(parse_target(name).pattern)
        except re.error as error:
            raise LoomError(f"{name!r} is not a regular expression ({error}): give a layer's name such as to_q") from None
    return {"target_modules": tuple(re.sub(r"^[\w.]+(?= |$)", lambda n: rf"(^|\.){re.escape(n[0])}$", name) for name in names)}


def _precision(value: Any) -> Any:
    word = "no" if value is False else str(value).strip().lower()  # YAML reads a bare `no` as false
    if word in ("fp16", "float16", "half"):
        raise LoomError("fp16 overflows in training: use bf16, or auto, which takes what the device can do")
    return "fp32" if word in ("no", "float32") else word


def _one_of(*choices: str):
    def check(value: str) -> str:
        if value not in choices:
            near = difflib.get_close_matches(value, choices, 1, 0.4)
            raise LoomError(f"it is one of {', '.join(choices)}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return value
    return check


def _between(low: int, high: int):
    def check(value: int) -> int:
        if not low <= value <= high:
            raise LoomError(f"it takes {low} to {high}")
        return value
    return check


def _resolutions(values: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(_between(64, 4096)(coerce("it", value, 512)) for value in values)


def preset_of(name: str) -> str:
    try:
        if name:
            presets.load(name)
    except LoomError as error:
        raise LoomError(f"{error}; a preset of your own is given by its file's path, which ends in .yaml") from None
    return name


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


SPELLINGS: dict[str, Callable[[Any], Any]] = {  # lora-scripts and its kin write AdamW, Cosine, float, no
    "optimizer": _lower, "scheduler": _lower, "algorithm": _lower, "mixed_precision": _precision,
    "save_precision": lambda v: {"float": "fp32"}.get(_lower(v), _lower(v)),
}
CHECKS: dict[str, Callable[[Any], Any]] = {
    "resolution": _between(64, 4096), "min_size": _between(0, 65536), "repeats": _between(1, 1000),  # as list_dataset
    "more_resolutions": _resolutions,
    "caption_source": _one_of(*SOURCES), "masks": _one_of(*MASKS), "task_type": _one_of("text-to-image"), "device": check_device,
}
