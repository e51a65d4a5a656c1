"""Danbooru tags by a WD14 tagger (SmilingWolf's wd-*-tagger models): selected_tags.csv with model.onnx, or with timm's model.safetensors.

Both forms want a picture padded to a square on white, in BGR, as their author's own demo prepares it.
"""
from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.captions import read_text
from ..errors import LoomError
from .options import CaptionOptions

TAGS = "selected_tags.csv"
GENERAL, CHARACTER, RATING = "0", "4", "9"  # Danbooru's categories
# Faces whose underscores are eyes or mouths; in every other tag they stand for spaces.
KAOMOJI = frozenset("0_0 (o)_(o) +_+ +_- ._. <o>_<o> <|>_<|> =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o u_u x_x |_| ||_||".split())


@dataclass
class Tagger:
    """`predict` maps a square RGB picture to (tags,) probabilities; `names` and `categories` are selected_tags.csv's columns."""

    predict: Callable[[Image.Image], np.ndarray] | None
    names: list[str]
    categories: list[str]
    options: CaptionOptions
    model: torch.nn.Module | None = None

    def probabilities(self, image: Image.Image) -> np.ndarray:
        """(tags,) fp32, in the order of `names`."""
        return self.predict(_square(image.convert("RGB")))

    def caption(self, image: Image.Image, poll: Any = None) -> list[tuple[str, float]]:
        """(tag, probability): characters, then general tags, each likeliest first, then the one likeliest rating; as the options ask for them."""
        rows: dict[str, list[tuple[str, float]]] = {}
        for name, category, value in zip(self.names, self.categories, self.probabilities(image).tolist()):
            rows.setdefault(category, []).append((name, value))
        best = {category: sorted(found, key=lambda row: -row[1]) for category, found in rows.items()}
        found = [row for row in best.get(CHARACTER, []) if self.options.character_tags and row[1] >= self.options.character_threshold]
        found += [row for row in best.get(GENERAL, []) if row[1] >= self.options.general_threshold]
        return found + (best.get(RATING, [])[:1] if self.options.rating_tags else [])

    def close(self) -> None:
        if self.model is not None:
            self.model.to("meta")
        self.predict = None


def fits(path: Path) -> bool:
    """A folder with selected_tags.csv and the model, or a file name.onnx with name.csv beside it."""
    if path.is_dir():
        return (path / TAGS).is_file() and ((path / "model.onnx").is_file() or (path / "model.safetensors").is_file() and (path / "config.json").is_file())
    return path.suffix == ".onnx" and path.with_suffix(".csv").is_file()


def load(path: str | Path, device: torch.device | str = "cpu", options: CaptionOptions | None = None) -> Tagger:
    """A Tagger from what `fits`; of both forms in one folder the safetensors. Raises LoomError for anything else."""
    path, options = Path(path), options or CaptionOptions()
    if not fits(path):
        raise LoomError(f"model {path.name!r} is no WD14 tagger: choose a folder with {TAGS} and model.onnx, or with {TAGS}, model.safetensors and config.json")
    names, categories = _tags(path / TAGS if path.is_dir() else path.with_suffix(".csv"))
    if path.is_dir() and (path / "model.safetensors").is_file() and (path / "config.json").is_file():
        model, predict = _timm(path, len(names), torch.device(device))
        return Tagger(predict, names, categories, options, model)
    return Tagger(_onnx(path / "model.onnx" if path.is_dir() else path, len(names), torch.device(device)), names, categories, options)


def _tags(path: Path) -> tuple[list[str], list[str]]:
    rows = list(csv.DictReader(read_text(path, path.name)[0].splitlines()))
    if not rows or not {"name", "category"} <= set(rows[0]) or not all(row["name"] and row["category"] for row in rows):
        raise LoomError(f"{path.name} is no WD14 tag table (rows under tag_id,name,category,count): copy it again from where the model came from")
    return [row["name"] if row["name"] in KAOMOJI else row["name"].replace("_", " ") for row in rows], [row["category"] for row in rows]


def _square(image: Image.Image) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _counted(found: int, tags: int, name: str) -> None:
    if found != tags:
        raise LoomError(f"model {name!r} knows {found} tags, but its {TAGS} lists {tags}: copy both from the same place")


def _onnx(path: Path, tags: int, device: torch.device) -> Callable[[Image.Image], np.ndarray]:
    try:
        import onnxruntime
    except ImportError:
        raise LoomError(f"model {path.name!r} needs onnxruntime, which is not installed: install it (pip install onnxruntime, or onnxruntime-gpu), or take "
                        "the same tagger as model.safetensors with config.json") from None
    cuda = device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    try:
        session = onnxruntime.InferenceSession(str(path), providers=[*(["CUDAExecutionProvider"] if cuda else []), "CPUExecutionProvider"])
    except Exception as error:
        raise LoomError(f"model {path.name!r} cannot be read ({' '.join(str(error).split())[:200]}): the file is broken, copy it again") from error
    entry, exit_ = session.get_inputs()[0], session.get_outputs()[0]
    if len(entry.shape) != 4 or entry.shape[3] != 3 or not isinstance(entry.shape[1], int):
        raise LoomError(f"model {path.name!r} takes input of shape {entry.shape}, where a WD14 tagger takes (batch, height, width, 3): "
                        "it is a tagger of another kind, take one such as wd-vit-tagger-v3")
    if isinstance(exit_.shape[-1], int):
        _counted(exit_.shape[-1], tags, path.name)

    def predict(square: Image.Image) -> np.ndarray:
        resized = square.resize((entry.shape[2], entry.shape[1]), Image.Resampling.BICUBIC)
        pixels = np.ascontiguousarray(np.asarray(resized, np.float32)[None, :, :, ::-1])  # BGR in 0..255
        return session.run([exit_.name], {entry.name: pixels})[0][0].astype(np.float32)

    return predict


def _timm(folder: Path, tags: int, device: torch.device) -> tuple[torch.nn.Module, Callable[[Image.Image], np.ndarray]]:
    import timm  # comes with open_clip
    from safetensors.torch import load_file
    from timm.data import create_transform, resolve_data_config

    try:
        tree = json.loads((folder / "config.json").read_text("utf-8-sig"))
        name, settings, arguments = tree["architecture"], dict(tree.get("pretrained_cfg") or {}), tree.get("model_args") or {}
        settings["num_classes"] = tree.get("num_classes", settings.get("num_classes", tags))
        if not timm.is_model(name):  # a name such as hf-hub:name would be looked for on the network
            raise ValueError(f"{name!r} is no architecture of this timm")
        model = timm.create_model(name, pretrained=False, pretrained_cfg=settings, **arguments)
        _counted(model.num_classes, tags, folder.name)
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    except LoomError:
        raise
    except Exception as error:
        raise LoomError(f"model {folder.name!r} cannot be built ({' '.join(str(error).split())[:200]}): copy config.json and model.safetensors again "
                        "from where they came from, or update timm") from error
    model = model.to(device).eval().requires_grad_(False)
    transform = create_transform(**resolve_data_config(model.pretrained_cfg, model=model))

    @torch.no_grad()
    def predict(square: Image.Image) -> np.ndarray:
        return model(transform(square)[[2, 1, 0]][None].to(device))[0].float().sigmoid().cpu().numpy()

    return model, predict
