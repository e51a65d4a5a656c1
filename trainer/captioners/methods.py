"""The captioning methods by name: which local models each can open, and how one is held in memory no longer than it is used."""
from __future__ import annotations

import contextlib
import gc
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import LoomError
from . import clip_tags, coca, open_clip_files, vision_llm, wd14
from .captioning import Captioner


@dataclass(frozen=True)
class Method:
    """`wants` names the files, `home` the folder under ComfyUI's models, `source` where people get one."""

    load: Callable[..., Captioner]
    fits: Callable[[Path], bool]
    wants: str
    home: str
    source: str


_OPEN_CLIP = f"a folder with {open_clip_files.CONFIG} and {open_clip_files.WEIGHTS[0]}, or a file such as"
METHODS = {
    "clip_tags": Method(clip_tags.load, open_clip_files.fits, f"an open_clip model ({_OPEN_CLIP} ViT-B-32.safetensors)", "open_clip",
                        "huggingface.co/laion, for example CLIP-ViT-B-32-laion2B-s34B-b79K"),
    "coca": Method(coca.load, coca.fits, f"an open_clip CoCa ({_OPEN_CLIP} coca_ViT-L-14.safetensors)", "open_clip",
                   "huggingface.co/laion, for example mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k"),
    "wd14": Method(wd14.load, wd14.fits, f"a tagger's folder ({wd14.TAGS} with model.onnx, or with model.safetensors and config.json)", "captioners",
                   "huggingface.co/SmilingWolf, for example wd-vit-tagger-v3"),
    "vision_llm": Method(vision_llm.load, vision_llm.fits,
                         "a model's folder (config.json, model.safetensors, and the files of its tokenizer and processor)", "LLM",
                         "huggingface.co, for example florence-community/Florence-2-base, Qwen/Qwen2.5-VL-3B-Instruct, "
                         "fancyfeast/llama-joycaption-beta-one-hf-llava or Salesforce/blip-image-captioning-large"),
}


def method(name: str) -> Method:
    if name not in METHODS:
        raise LoomError(f"method {name!r} is unknown: AutoCaption.method is one of {', '.join(METHODS)}")
    return METHODS[name]


def models(name: str, folders: list[Path]) -> dict[str, Path]:
    """{name: path} of what the method can open in these folders, up to two levels deep; names are relative, with posix slashes."""
    found: dict[str, Path] = {}
    for folder in map(Path, folders):
        for pattern in ("*", "*/*"):
            for path in sorted(folder.glob(pattern)) if folder.is_dir() else ():
                if METHODS[name].fits(path):
                    found.setdefault(path.relative_to(folder).as_posix(), path)
    return found


def local_models(folders: list[Path]) -> list[str]:
    """Names of what any method can open."""
    return sorted({model for name in METHODS for model in models(name, folders)}, key=str.casefold)


def model_path(name: str, model: str, folders: list[Path]) -> Path:
    """Where the method's model of that name lies. Raises LoomError for any other, so that no path leads out of the folders."""
    wanted, fitting = method(name), models(name, folders)
    if model in fitting:
        return fitting[model]
    others = [other for other in METHODS if other != name and model in models(other, folders)]
    problem = f"model {model!r} is for {', '.join(others)}, not for {name}" if others else f"model {model!r} is not there"
    where = next((str(folder) for folder in folders if Path(folder).name == wanted.home), ", ".join(map(str, folders)) or "no folder")
    raise LoomError(f"{problem}: {name} takes {wanted.wants}. Put one into {where} (from {wanted.source}) and refresh the page; "
                    f"found for {name}: {', '.join(sorted(fitting, key=str.casefold)) or 'none'}")


def size(path: Path) -> int:
    """Bytes of the weights at that path."""
    files = [path] if path.is_file() else [file for suffix in ("*.safetensors", "*.onnx") for file in path.glob(suffix)]
    return sum(file.stat().st_size for file in files)


@contextlib.contextmanager
def opened(load: Callable[[], Captioner]) -> Iterator[Any]:
    """The captioner, for the length of the block; afterwards nothing of it is left on its device, also after an error or a cancel."""
    captioner = None
    try:
        captioner = load()
        yield captioner
    except BaseException as error:
        _forget(error)
        raise
    finally:
        if captioner is not None:
            captioner.close()
        del captioner
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _forget(error: BaseException | None) -> None:
    """Clears the locals of the frames that an error has ended: they hold the model and its activations for as long as anyone keeps the error."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
