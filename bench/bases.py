"""ComfyUI in this process, and the base models that both trainers get: SD1.5 and SDXL at full size with random weights, and the toy base."""
from __future__ import annotations

import contextlib
import logging
import math
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Base:
    """MODEL, CLIP and VAE as a loader node hands them."""

    name: str
    model: object
    clip: object
    vae: object
    source: str  # what diffusers loads it from
    theirs: torch.nn.Module | None = None

    def in_diffusers(self, precision: str) -> torch.nn.Module:
        """The UNet a second time, as diffusers' own, on the CPU."""
        from lora_loom.trainer.backbones.diffusers_load import load_parts

        if self.theirs is None:
            with torch.inference_mode(False):
                self.theirs = load_parts(self.source, DTYPES[precision]).unet
        return self.theirs


def start_comfyui(folder: Path, *options: str, device: str = "cpu") -> str:
    """ComfyUI's modules in this process, with `folder` for whatever it writes. Returns its version."""
    sys.path.insert(0, str(ROOT / "tools"))
    import comfyui

    found = comfyui.find()
    if found is None:
        sys.exit(f"ComfyUI not found: {comfyui.HOW}")
    sys.path.insert(0, str(found))
    sys.argv = [sys.argv[0], *(["--cpu"] if device == "cpu" else []), "--base-directory", str(folder), *options]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.utils
    import comfyui_version

    logging.getLogger().setLevel(logging.WARNING)
    comfy.utils.set_progress_bar_enabled(False)
    with contextlib.suppress(ImportError):
        import comfy_extras.nodes_train

        if hasattr(comfy_extras.nodes_train, "find_modules_at_depth"):
            return comfyui_version.__version__
    sys.exit(f"ComfyUI {comfyui_version.__version__} is too old: its TrainLoraNode has no bypass_mode; set COMFYUI_PATH to a newer one")


_UNETS = {  # ComfyUI's class, and what its detection finds in a file of the family
    "sd15": ("SD15", {"num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_middle": 1,
                      "transformer_depth_output": [1] * 9 + [0] * 3}),
    "sd2": ("SD20", {"num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_middle": 1,
                     "transformer_depth_output": [1] * 9 + [0] * 3}),
    "sdxl": ("SDXL", {"num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "transformer_depth_middle": 10,
                      "transformer_depth_output": [0] * 3 + [2] * 3 + [10] * 3, "num_heads": -1, "num_head_channels": 64, "num_classes": "sequential"}),
}
_AUTOENCODER = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
                "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}


def write_random(path: Path, family: str, dtype: torch.dtype = torch.float32, v_prediction: bool = False) -> None:
    """A checkpoint of sd15's, sd2's or sdxl's shapes and key names (SD1.5: 4.3 GB in fp32). Random, scaled so that nothing overflows or becomes denormal."""
    import comfy.ldm.models.autoencoder
    import comfy.ldm.modules.diffusionmodules.openaimodel as unet
    import comfy.ops
    import comfy.supported_models
    from safetensors.torch import save_file

    name, shapes = _UNETS[family]
    kind, no_init = getattr(comfy.supported_models, name), comfy.ops.disable_weight_init
    config = {**kind.unet_config, **kind.unet_extra_config, "image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True,
              "legacy": False, **shapes}
    config.pop("attn_precision", None)
    family_config = kind({**config})
    with torch.device("meta"):
        clip = family_config.clip_target().clip(device="meta", dtype=torch.float32)
        parts = {"model.diffusion_model.": unet.UNetModel(**config, dtype=torch.float32, device="meta", operations=no_init),
                 "first_stage_model.": comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=_AUTOENCODER, embed_dim=4)}
    shaped = {prefix + key: like for prefix, part in parts.items() for key, like in part.state_dict().items()}
    pool, start = torch.randn(2**24, generator=torch.Generator().manual_seed(0)), 0  # one pool for all: drawing billions takes minutes

    def random_like(key: str, like: torch.Tensor) -> torch.Tensor:
        nonlocal start
        count = like.numel()
        start = (start + 999_983) % len(pool)
        value = pool.repeat((start + count) // len(pool) + 1)[start: start + count].reshape(like.shape)
        if like.ndim >= 2:
            return (value / math.sqrt(like[0].numel())).to(dtype)
        return (value * 0.02 + float(key.endswith("weight"))).to(dtype)  # norms around 1, biases around 0

    texts = {key: random_like(key, like) for key, like in clip.state_dict().items() if "logit_scale" not in key}
    tensors = {key: random_like(key, like) for key, like in shaped.items()} | family_config.process_clip_state_dict_for_saving(texts)
    if v_prediction and family == "sd2":  # how v-prediction models of SD2.x are known
        tensors["model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"] *= 10
    elif v_prediction:
        tensors["v_pred"] = torch.zeros(0)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def load_random(folder: Path, family: str = "sd15", precision: str = "fp32") -> Base:
    """As CheckpointLoaderSimple loads it; ComfyUI's trainer reads the file again for its own copy of the weights."""
    import comfy.sd

    path = folder / f"random_{family}.safetensors"
    write_random(path, family, DTYPES[precision])
    title = {"sd15": "SD1.5 (random weights)", "sdxl": "SDXL (random weights)"}[family]
    return Base(title, *comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)[:3], str(path))


class _Text:
    """Stands for Flux's text encoders, of which a training keeps nothing but what they say: as many and as wide tokens, drawn from the caption."""

    def __init__(self, device: torch.device) -> None:
        self.cond_stage_model, self.patcher = torch.nn.Module(), SimpleNamespace(injections={}, load_device=device, clone_base_uuid="")

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens(self, text: str, return_pooled: bool, return_dict: bool) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        return {"cond": torch.randn(1, 256, 4096, generator=generator), "pooled_output": torch.randn(1, 768, generator=generator)}


class _Pixels:
    """Stands for Flux's VAE in the same way: 16 channels, an eighth of the sides."""

    def __init__(self) -> None:
        self.first_stage_model, self.latent_dim, self.patcher = torch.nn.Module(), 2, SimpleNamespace(clone_base_uuid="")

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(pixels.movedim(-1, 1), (pixels.shape[1] // 8, pixels.shape[2] // 8))
        return small.mean(1, keepdim=True).repeat(1, 16, 1, 1)


def load_flux(precision: str, small: bool = False) -> Base:
    """Flux.1's transformer with random weights, 12 billion values, made where ComfyUI keeps what is not on its device; small: two blocks of it."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.Flux({
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072,
        "mlp_ratio": 4.0, "num_heads": 24, "depth": 1 if small else 19, "depth_single_blocks": 1 if small else 38, "axes_dim": [16, 56, 56], "theta": 10000,
        "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []})
    config.set_inference_dtype(DTYPES[precision], None)
    manage, pool = comfy.model_management, torch.randn(2**24, generator=torch.Generator().manual_seed(0)).to(DTYPES[precision])
    model = config.get_model({}, "", device=torch.device("cpu"))
    for name, parameter in model.diffusion_model.named_parameters():
        flat = parameter.data.view(-1)
        for start in range(0, len(flat), len(pool)):
            flat[start:start + len(pool)] = pool[:len(flat) - start]
        if parameter.ndim > 1:
            parameter.data /= math.sqrt(parameter.shape[1])
        else:
            parameter.data.mul_(0.02).add_(float("scale" in name))  # norms around 1, biases around 0
    device = manage.get_torch_device()
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))
    return Base(f"Flux.1 ({'two blocks, ' if small else ''}random weights)", patcher, _Text(device), _Pixels(), "")


def load_toy() -> Base:
    from lora_loom.trainer.backbones import comfy_toy

    model, clip, vae = comfy_toy.load()
    # ComfyUI's trainer loads its own copy of the model: every loader node registers how.
    model.cached_patcher_init = (lambda disable_dynamic=False: comfy_toy.load()[0], ())
    return Base("toy base", model, clip, vae, "toy_base")
