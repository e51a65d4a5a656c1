"""open_clip models from local safetensors: found, read, built.

open_clip's own `create_model` can reach for the network (text towers, tokenizers and timm weights by name), so the network is
built here from its configuration and nothing is looked up by name.
"""
from __future__ import annotations

import functools
import importlib.util
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..errors import LoomError

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass
class OpenClip:
    """A model as open_clip builds it, with what turns words and PIL pictures into its inputs."""

    model: torch.nn.Module
    tokenizer: Any
    preprocess: Any
    config: dict


def load(folder: str | Path, device: torch.device | str = "cpu") -> OpenClip:
    """From a folder with open_clip_config.json and open_clip_model.safetensors, or from a file <architecture>.safetensors.

    Raises LoomError for anything else: pickles, text towers or tokenizers that would have to be downloaded, weights that do not fit.
    """
    import open_clip  # takes seconds, and only those who caption need it
    from open_clip.transform import PreprocessCfg, image_transform_v2

    folder = Path(folder)
    config, preprocess, weights = _find(folder)
    # A file is named by itself, and must not take the tokenizer of some other model that lies beside it.
    tokenizer = _tokenizer(open_clip, config, folder if folder.is_dir() else None, folder.name)
    model = _build(open_clip, config, folder.name)
    _load_weights(model, weights)
    size = getattr(model.visual, "image_size", None)
    known = {setting.name for setting in fields(PreprocessCfg)}
    settings = {name: value for name, value in preprocess.items() if name in known and value is not None}
    cfg = PreprocessCfg(**(settings | ({"size": size} if size else {})))
    model = model.to(device).eval().requires_grad_(False)
    return OpenClip(model, tokenizer, image_transform_v2(cfg, is_train=False), config)


def fits(path: Path) -> bool:
    """Whether `load` can open it, by its names alone."""
    if path.is_dir():
        return (path / CONFIG).is_file() and any((path / name).is_file() for name in WEIGHTS)
    return path.suffix == ".safetensors" and path.stem in architectures()


def configuration(path: Path) -> dict:
    """The model_cfg of a model that `fits`. Raises LoomError where it cannot be read."""
    return _find(path)[0]


@functools.cache
def architectures() -> dict[str, Path]:
    """open_clip's architectures by name (what `open_clip.list_models()` tells), found without the seconds of importing it."""
    spec = importlib.util.find_spec("open_clip")
    homes = spec.submodule_search_locations if spec else None
    return {path.stem: path for home in homes or () for path in sorted(Path(home, "model_configs").glob("*.json"))}


def _find(folder: Path) -> tuple[dict, dict, Path]:
    """(model_cfg, preprocess_cfg, weights file)"""
    if folder.suffix.lower() in PICKLES:
        raise LoomError(f"model {folder.name!r} is a pickle, which can run code when it is opened: take the .safetensors file of the same model")
    if folder.is_file():
        known = architectures()
        if folder.suffix != ".safetensors" or folder.stem not in known:
            raise LoomError(f"model {folder.name!r} tells no architecture: name the file after one of open_clip's, such as ViT-B-32.safetensors, "
                            f"or keep it as {WEIGHTS[0]} in a folder with its {CONFIG}")
        return json.loads(known[folder.stem].read_text("utf-8")), {}, folder
    if not folder.is_dir():
        raise LoomError(f"model {folder.name!r} does not exist: choose a folder with {CONFIG} and {WEIGHTS[0]}")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES)
        found = f"holds only {', '.join(pickles)}, a pickle, which can run code when it is opened" if pickles else f"has no {WEIGHTS[0]}"
        raise LoomError(f"model {folder.name!r} {found}: take {WEIGHTS[0]} of the same model")
    try:
        tree = json.loads((folder / CONFIG).read_text("utf-8-sig"))
        config, preprocess = tree["model_cfg"], tree.get("preprocess_cfg") or {}
        if not all(isinstance(config[part], dict) for part in ("vision_cfg", "text_cfg")) or not isinstance(preprocess, dict):
            raise TypeError
    except OSError:
        raise LoomError(f"model {folder.name!r} has no {CONFIG}: copy it from where the weights came from") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LoomError(f"{CONFIG} of model {folder.name!r} is no open_clip configuration (JSON with model_cfg holding vision_cfg and text_cfg): "
                        "copy it again from where the weights came from") from None
    return config, preprocess, weights


def _tokenizer(open_clip: Any, config: dict, folder: Path | None, name: str) -> Any:
    text = config["text_cfg"]
    wanted = {key: value for key, value in (text.get("tokenizer_kwargs") or {}).items() if key != "reduction_mask"}  # that drops words, for training
    length = text.get("context_length", 77)
    if not text.get("hf_tokenizer_name"):
        return open_clip.SimpleTokenizer(context_length=length, **wanted)
    if folder is None or not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        raise LoomError(f"model {name!r} needs the tokenizer {text['hf_tokenizer_name']!r}, and nothing is downloaded here: keep the model "
                        "as a folder that also holds its tokenizer.json, or take a model with CLIP's own tokenizer, such as ViT-B-32")
    if text.get("tokenizer_mode"):
        wanted["tokenizer_mode"] = text["tokenizer_mode"]
    try:
        return open_clip.tokenizer.HFTokenizer(str(folder), context_length=length, **wanted)
    except Exception as error:
        raise LoomError(f"the tokenizer beside model {name!r} cannot be read ({' '.join(str(error).split())[:200]}): "
                        "copy tokenizer.json and tokenizer_config.json again from where the weights came from") from error


def _build(open_clip: Any, config: dict, name: str) -> torch.nn.Module:
    config = json.loads(json.dumps(config))
    vision, text = config["vision_cfg"], config["text_cfg"]
    if text.get("hf_model_name"):
        raise LoomError(f"model {name!r} takes its text tower {text['hf_model_name']!r} from a model hub, and nothing is downloaded here: "
                        "take a model with CLIP's own text tower, such as ViT-B-32")
    if ":" in str(vision.get("timm_model_name") or ""):
        raise LoomError(f"model {name!r} takes its vision tower {vision['timm_model_name']!r} from a model hub, and nothing is downloaded here: "
                        "take a model with an own vision tower, such as ViT-B-32")
    vision["timm_model_pretrained"] = False
    custom = config.pop("custom_text", False)
    kind = (open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP) if custom else open_clip.CLIP
    try:
        return kind(**config)
    except Exception as error:
        raise LoomError(f"model {name!r} cannot be built from its configuration ({error}): open_clip_torch may be too old for it; "
                        "update it or take another model") from error


def _load_weights(model: torch.nn.Module, weights: Path) -> None:
    from open_clip.model import convert_to_custom_text_state_dict
    from safetensors.torch import load_file

    try:
        state = load_file(weights)
    except Exception as error:
        raise LoomError(f"weights {weights.name!r} cannot be read ({error}): the file is broken, copy it again") from error
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)  # an older layout, without a text tower of its own
    for name in ("logit_scale", "logit_bias"):
        own = getattr(model, name, None)
        if name in state and own is not None:
            state[name] = state[name].reshape(own.shape)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise LoomError(f"weights {weights.name!r} do not fit the architecture ({first}): check that the file belongs to this model") from None
