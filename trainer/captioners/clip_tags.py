"""Tags by zero-shot CLIP: which of the user's own labels fit a picture (Radford et al. 2021, arXiv:2103.00020, section 3.1).

Models are open_clip's, from local safetensors only. open_clip's own `create_model` can reach for the network (text towers,
tokenizers and timm weights by name), so the network is built here from its configuration and nothing is looked up by name.
"""
from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import LoomError

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Averaging a few wordings steadies the ranking (section 3.1.4 of the paper).
TEMPLATES = ("a photo of {}", "a picture of {}", "an image with {}")
MAX_TAGS, THRESHOLD, BATCH = 8, 0.05, 16


@dataclass
class Tagger:
    """A loaded CLIP. `rank` and `tags` take PIL pictures of any size."""

    model: torch.nn.Module
    tokenizer: Any
    preprocess: Any
    device: torch.device
    name: str
    _texts: dict[tuple[str, ...], torch.Tensor] = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def label_features(self, labels: list[str]) -> torch.Tensor:
        """(labels, width), unit length, averaged over TEMPLATES; kept for the last list of labels."""
        wanted = tuple(labels)
        if wanted not in self._texts:
            rows = []
            for label in wanted:
                tokens = self.tokenizer([template.format(label) for template in TEMPLATES]).to(self.device)
                rows.append(torch.nn.functional.normalize(self.model.encode_text(tokens).float(), dim=-1).mean(0))
            self._texts.clear()
            self._texts[wanted] = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
        return self._texts[wanted]

    @torch.no_grad()
    def rank(self, images: list[Image.Image], labels: list[str]) -> torch.Tensor:
        """(images, labels) probabilities on the CPU, fp32: softmax over the labels of 100 times the cosine. Raises LoomError without labels."""
        if not labels:
            raise LoomError("labels is empty: CLIP chooses among the labels it is given; write at least two into AutoCaption.labels")
        texts = self.label_features(labels)
        rows = [torch.zeros(0, len(labels))]
        for start in range(0, len(images), BATCH):
            pixels = torch.stack([self.preprocess(image.convert("RGB")) for image in images[start:start + BATCH]]).to(self.device)
            features = torch.nn.functional.normalize(self.model.encode_image(pixels).float(), dim=-1)
            rows.append((100.0 * features @ texts.T).softmax(-1).cpu())
        return torch.cat(rows)

    def tags(self, image: Image.Image, labels: list[str], max_tags: int = MAX_TAGS, threshold: float = THRESHOLD) -> list[str]:
        """The most likely labels, best first, none with a probability below `threshold`: perhaps none at all."""
        probabilities, order = self.rank([image], labels)[0].sort(descending=True, stable=True)
        return [labels[i] for p, i in zip(probabilities.tolist()[:max_tags], order.tolist()) if p >= threshold]


def load(folder: str | Path, device: torch.device | str = "cpu") -> Tagger:
    """A Tagger from a folder with open_clip_config.json and open_clip_model.safetensors, or from a file <architecture>.safetensors.

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
    return Tagger(model, tokenizer, image_transform_v2(cfg, is_train=False), torch.device(device), folder.name)


def architectures() -> dict[str, Path]:
    """open_clip's architectures by name (what `open_clip.list_models()` tells), found without the seconds of importing it."""
    spec = importlib.util.find_spec("open_clip")
    homes = spec.submodule_search_locations if spec else None
    return {path.stem: path for home in homes or () for path in sorted(Path(home, "model_configs").glob("*.json"))}


def local_models(folders: list[Path]) -> list[str]:
    """Names of what `load` can open in these folders, up to two levels deep, relative to them and with posix slashes."""
    return sorted(_models(folders), key=str.casefold)


def model_path(name: str, folders: list[Path]) -> Path:
    """Where a name of `local_models` lies. Raises LoomError for any other, so that no path leads out of the folders."""
    models = _models(folders)
    if name not in models:
        where = ", ".join(str(folder) for folder in folders) or "no folder"
        raise LoomError(f"model {name!r} is not there: put an open_clip model (a folder with {CONFIG} and {WEIGHTS[0]}, or a file such as "
                        f"ViT-B-32.safetensors) into {where}; found: {', '.join(local_models(folders)) or 'none'}")
    return models[name]


def _models(folders: list[Path]) -> dict[str, Path]:
    known = architectures()
    found: dict[str, Path] = {}
    for folder in map(Path, folders):
        for pattern in ("*", "*/*"):
            for path in sorted(folder.glob(pattern)) if folder.is_dir() else ():
                usable = (path / CONFIG).is_file() and any((path / name).is_file() for name in WEIGHTS) if path.is_dir() else \
                    path.suffix == ".safetensors" and path.stem in known
                if usable:
                    found.setdefault(path.relative_to(folder).as_posix(), path)
    return found


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
