"""From local files to diffusers' modules: a folder, one .safetensors file, or the toy base. Nothing is downloaded."""
from __future__ import annotations

import inspect
import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..errors import LoomError
from ..toy import arch
from ..toy.tokens import clip_tokenizer
from .families import CONTEXT_WIDTHS, LDM_CONTEXT

_CONFIGS = Path(__file__).with_name("diffusers_configs.json")
_SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# diffusers 0.42 warns at every cast that nothing should be kept in float32: `There are modules in … kept in float32: []`
logging.getLogger("diffusers.models.modeling_utils").addFilter(lambda record: "kept in float32: []" not in record.getMessage())
_FORMS = "base_model takes a local diffusers folder, one .safetensors file, or the word toy_base"


@dataclass
class Parts:
    """A base model in pieces. One text encoder and tokenizer, or two for SDXL."""

    family: str
    name: str
    unet: UNet2DConditionModel
    vae: torch.nn.Module
    text_encoders: list[torch.nn.Module]
    tokenizers: list
    scheduler: DDPMScheduler


def load_parts(base_model: str, dtype: torch.dtype) -> Parts:
    """UNet and text encoders in `dtype`, the VAE in fp32. LoomError where the files are not what they must be."""
    if str(base_model) == arch.NAME:
        return _toy(dtype)
    path = Path(base_model).expanduser()
    if path.is_dir():
        return _folder(path, dtype)
    if not path.exists():
        raise LoomError(f"base_model {str(base_model)!r} is not there: {_FORMS}; check the path")
    if path.suffix.lower() != ".safetensors":
        raise LoomError(f"base_model {path.name!r} is a {path.suffix or 'nameless'} file: {_FORMS}; "
                        "pickled checkpoints can run code, convert it to safetensors")
    return _single_file(path, dtype)


def _text_encoder(cls, config: dict, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = cls(CLIPTextConfig(**config))
    if not hasattr(model, "text_model"):  # transformers 5 dropped the prefix
        tensors = {k.removeprefix("text_model."): v for k, v in tensors.items()}
    missing, _ = model.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    if [k for k in missing if not k.endswith("position_ids")]:
        raise LoomError(f"the text encoder lacks {missing[0]} and {len(missing) - 1} more tensors: the file is damaged or of another family")
    return model


def _toy(dtype: torch.dtype) -> Parts:
    weights = load_file(arch.WEIGHTS)
    part = lambda prefix: {k[len(prefix):]: v.float() for k, v in weights.items() if k.startswith(prefix)}
    unet, vae = UNet2DConditionModel(**arch.UNET), AutoencoderTiny(**arch.VAE)
    unet.load_state_dict(part("unet."))
    vae.load_state_dict(part("vae."))
    text = _text_encoder(CLIPTextModel, arch.TEXT, part("text_encoder."))
    scheduler = DDPMScheduler(**_SCHEDULE, prediction_type=arch.SCHEDULER["prediction_type"])
    if dtype != torch.float32:
        unet, text = unet.to(dtype), text.to(dtype)
    return Parts("toy", arch.NAME, unet, vae, [text], [clip_tokenizer()], scheduler)


def _folder(path: Path, dtype: torch.dtype) -> Parts:
    for needed in ("unet/config.json", "vae/config.json", "text_encoder/config.json"):
        if not (path / needed).is_file():
            raise LoomError(f"base_model folder {path.name!r} has no {needed}: {_FORMS}; a diffusers folder holds unet, vae, text_encoder and scheduler")
    def local(part: str) -> dict:
        """from_pretrained's options; many downloads hold the fp16 variant alone."""
        whole = [f for f in (path / part).glob("*.safetensors") if ".fp16" not in f.name]
        return {"local_files_only": True, "use_safetensors": True, **({} if whole else {"variant": "fp16"})}

    try:
        unet = UNet2DConditionModel.from_pretrained(path, subfolder="unet", torch_dtype=dtype, **local("unet"))
        kind = json.loads((path / "vae/config.json").read_text(encoding="utf-8")).get("_class_name")
        vae_class = AutoencoderTiny if kind == "AutoencoderTiny" else AutoencoderKL
        vae = vae_class.from_pretrained(path, subfolder="vae", torch_dtype=torch.float32, **local("vae"))
        texts = [CLIPTextModel.from_pretrained(path / "text_encoder", torch_dtype=dtype, **local("text_encoder"))]
        second = path / "text_encoder_2"
        if second.is_dir():
            texts.append(CLIPTextModelWithProjection.from_pretrained(second, torch_dtype=dtype, **local("text_encoder_2")))
    except (OSError, ValueError, KeyError) as error:
        raise LoomError(f"base_model folder {path.name!r} could not be loaded: {error}") from error
    config = path / "scheduler/scheduler_config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    used = {k: settings[k] for k in (*_SCHEDULE, "prediction_type", "rescale_betas_zero_snr") if settings.get(k) is not None}
    family = "sdxl" if len(texts) > 1 else "sd2" if unet.config.cross_attention_dim == 1024 else "sd15"
    return Parts(family, path.name, unet, vae, texts, folder_tokenizers(path, family), DDPMScheduler(**{**_SCHEDULE, **used}))


def folder_tokenizers(path: Path, family: str) -> list[CLIPTokenizer]:
    """A diffusers folder's own tokenizers, and CLIP's where it has none; also of a single file, which never has one."""
    tokenizers = []
    for i, folder in enumerate(["tokenizer", "tokenizer_2"][: 2 if family == "sdxl" else 1]):
        own = path / folder
        pads = "!" if family == "sd2" or i == 1 else "<|endoftext|>"
        tokenizers.append(CLIPTokenizer.from_pretrained(own, local_files_only=True) if (own / "vocab.json").is_file() else clip_tokenizer(pads))
    return tokenizers


def _family_of(keys: set[str], shape) -> str:
    """sd15, sd2 or sdxl by the keys of an original single-file checkpoint and the width of its context."""
    if LDM_CONTEXT not in keys:
        raise LoomError("base_model file has no SD1.5, SD2.x or SDXL UNet in the original (LDM) layout: load a full checkpoint of one of these")
    return CONTEXT_WIDTHS.get(shape(LDM_CONTEXT)[1], "unknown")


def _defaults(kind: type | None) -> dict[str, Any]:
    """What a diffusers model takes where its configuration is silent."""
    return {} if kind is None else {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items() if p.default is not p.empty}


def _single_file(path: Path, dtype: torch.dtype) -> Parts:
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    try:
        with safe_open(str(path), "pt") as file:
            keys = set(file.keys())
            family = _family_of(keys, lambda k: file.get_slice(k).get_shape())
            tell = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
            # ComfyUI's own rule: this bias spreads more widely in the 768-pixel v-prediction models.
            spread = file.get_tensor(tell).float().std(unbiased=False).item() if family == "sd2" and tell in keys else 0.0
    except LoomError:
        raise
    except Exception as error:
        raise LoomError(f"base_model {path.name!r} is no readable safetensors file ({error}): it may be cut off; copy it again") from error
    if family == "unknown":
        raise LoomError(f"base_model {path.name!r} is of a family that LoRA Loom cannot train yet: load SD1.5, SD2.x or SDXL")
    configs = json.loads(_CONFIGS.read_text(encoding="utf-8"))[family]
    v_prediction = spread > 0.09 or "v_pred" in keys
    with tempfile.TemporaryDirectory() as folder:
        for part, config in configs.items():
            Path(folder, part).mkdir()
            whole = {**_defaults({"unet": UNet2DConditionModel, "vae": AutoencoderKL}.get(part)), **config}  # its readers look settings up in the file alone
            Path(folder, part, "config.json").write_text(json.dumps(whole), encoding="utf-8")
        local = {"config": folder, "local_files_only": True}
        try:
            unet = UNet2DConditionModel.from_single_file(str(path), subfolder="unet", torch_dtype=dtype, **local)
            vae = AutoencoderKL.from_single_file(str(path), subfolder="vae", torch_dtype=torch.float32, **local)
            weights = load_file(path)
            classes = [("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)][: 2 if family == "sdxl" else 1]
            texts = [create_diffusers_clip_model_from_ldm(cls, weights, subfolder=part, torch_dtype=dtype, **local) for part, cls in classes]
        except Exception as error:
            raise LoomError(f"base_model {path.name!r} could not be read as {family} ({type(error).__name__}: {error})") from error
    tokenizers = [clip_tokenizer("!" if c.get("pad_token_id") == 0 else "<|endoftext|>") for name, c in configs.items() if name.startswith("text_encoder")]
    extra = {"prediction_type": "v_prediction"} if v_prediction else {}
    if "ztsnr" in keys:
        extra["rescale_betas_zero_snr"] = True
    return Parts(family, path.stem, unet, vae, texts, tokenizers, DDPMScheduler(**_SCHEDULE, **extra))
