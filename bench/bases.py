"""ComfyUI in this process, and the base models that both trainers get: SD1.5 at full size with random weights, and the toy base."""
from __future__ import annotations

import contextlib
import logging
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Base:
    """MODEL, CLIP and VAE as a loader node hands them."""

    name: str
    model: object
    clip: object
    vae: object


def start_comfyui(folder: Path) -> str:
    """ComfyUI's modules in this process, on the CPU, with `folder` for whatever it writes. Returns its version."""
    sys.path.insert(0, str(ROOT / "tools"))
    import comfyui

    found = comfyui.find()
    if found is None:
        sys.exit(f"ComfyUI not found: {comfyui.HOW}")
    sys.path.insert(0, str(found))
    sys.argv = [sys.argv[0], "--cpu", "--base-directory", str(folder)]
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


def write_random_sd15(path: Path, dtype: torch.dtype = torch.float32) -> None:
    """A checkpoint of SD1.5's shapes and key names (4.3 GB in fp32). Random, scaled so that nothing overflows or becomes denormal."""
    import comfy.clip_model
    import comfy.ldm.models.autoencoder
    import comfy.ldm.modules.diffusionmodules.openaimodel as unet
    import comfy.ops
    import comfy.sd1_clip
    import comfy.supported_models
    from safetensors.torch import save_file

    family, no_init = comfy.supported_models.SD15, comfy.ops.disable_weight_init
    config = {**family.unet_config, **family.unet_extra_config, "image_size": 32, "in_channels": 4, "out_channels": 4, "num_res_blocks": [2] * 4,
              "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_middle": 1,
              "transformer_depth_output": [1] * 9 + [0] * 3, "use_spatial_transformer": True, "legacy": False}
    autoencoder = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
                   "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    with torch.device("meta"):
        parts = {
            "model.diffusion_model.": unet.UNetModel(**config, dtype=torch.float32, device="meta", operations=no_init),
            "cond_stage_model.": comfy.sd1_clip.SDClipModel(device="meta", dtype=torch.float32),
            "first_stage_model.": comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=autoencoder, embed_dim=4),
        }
    generator, tensors = torch.Generator().manual_seed(0), {}
    for prefix, part in parts.items():
        for key, like in part.state_dict().items():
            if "logit_scale" in key or "text_projection" in key:  # not in SD1.5's own file
                continue
            value = torch.randn(like.shape, generator=generator)
            if like.ndim >= 2:
                value /= math.sqrt(like[0].numel())
            else:
                value = value * 0.02 + float(key.endswith("weight"))  # norms around 1, biases around 0
            tensors[prefix + key] = value.to(dtype)
    save_file(tensors, path)


def load_sd15(folder: Path) -> Base:
    """As CheckpointLoaderSimple loads it; ComfyUI's trainer reads the file again for its own copy of the weights."""
    import comfy.sd

    path = folder / "random_sd15.safetensors"
    write_random_sd15(path)
    return Base("SD1.5 (random weights)", *comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)[:3])


def load_toy() -> Base:
    from lora_loom.trainer.backbones import comfy_toy

    model, clip, vae = comfy_toy.load()
    # ComfyUI's trainer loads its own copy of the model: every loader node registers how.
    model.cached_patcher_init = (lambda disable_dynamic=False: comfy_toy.load()[0], ())
    return Base("toy base", model, clip, vae)
