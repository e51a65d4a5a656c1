"""The toy base as ComfyUI's MODEL, CLIP and VAE. Builds the small family directly and registers nothing globally."""
from __future__ import annotations

from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch

from ..errors import LoomError
from ..toy import arch

_LEVELS = len(arch.UNET["block_out_channels"])
_BLOCKS = arch.UNET["layers_per_block"]
_ATTENTION = [int("CrossAttn" in kind) for kind in arch.UNET["down_block_types"]]


class ToyBase(comfy.supported_models.SD15):
    """SD1.5's own code with a small UNet. `loom_family` tells our backbone which family it is."""

    loom_family = "toy"
    unet_config = {
        "use_checkpoint": False, "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False, "num_classes": None,
        "adm_in_channels": None, "in_channels": 4, "model_channels": arch.UNET["block_out_channels"][0],
        "channel_mult": [c // arch.UNET["block_out_channels"][0] for c in arch.UNET["block_out_channels"]],
        "num_res_blocks": [_BLOCKS] * _LEVELS, "transformer_depth": [a for a in _ATTENTION for _ in range(_BLOCKS)],
        "transformer_depth_output": [a for a in _ATTENTION for _ in range(_BLOCKS + 1)], "transformer_depth_middle": 1,
        "use_linear_in_transformer": False, "context_dim": arch.UNET["cross_attention_dim"], "use_temporal_attention": False,
    }
    unet_extra_config = {"num_heads": arch.UNET["attention_head_dim"], "num_head_channels": -1}


def _part(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k[len(prefix):]: v.float() for k, v in weights.items() if k.startswith(prefix)}


def load(path: Path = arch.WEIGHTS, embedding_directory=None):
    """(MODEL, CLIP, VAE) in fp32. LoomError where the weights' file is missing or damaged."""
    try:
        weights = comfy.utils.load_torch_file(str(path), safe_load=True)
    except Exception as error:
        raise LoomError(f"{path.name} could not be read ({error}): ToyBase needs the file that comes with LoRA Loom; install the pack again") from error
    manage = comfy.model_management
    config = ToyBase(ToyBase.unet_config)
    config.set_inference_dtype(torch.float32, None)
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    unet = {"model.diffusion_model." + names[k]: v for k, v in _part(weights, "unet.").items() if k in names}
    offload = manage.unet_offload_device()
    model = config.get_model(unet, "model.diffusion_model.", device=offload)
    model.load_model_weights(unet, "model.diffusion_model.")
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=manage.get_torch_device(), offload_device=offload)

    text = {"clip_l.transformer." + k: v for k, v in _part(weights, "text_encoder.").items()}
    text["clip_l.transformer.text_projection.weight"] = torch.eye(arch.TEXT["hidden_size"])
    target = config.clip_target()
    clip = comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(target.tokenizer, target.clip), embedding_directory=embedding_directory,
                         parameters=sum(v.numel() for v in text.values()), model_options={"dtype": torch.float32, "clip_l_model_config": arch.TEXT})
    clip.load_sd(text, full_model=True)

    # TAESD in ComfyUI counts a clamp as the decoder's first layer; diffusers does not.
    vae = {"taesd_encoder." + k: v for k, v in _part(weights, "vae.encoder.layers.").items()}
    for key, value in _part(weights, "vae.decoder.layers.").items():
        index, rest = key.split(".", 1)
        vae[f"taesd_decoder.{int(index) + 1}.{rest}"] = value
    vae["vae_scale"] = torch.tensor(config.latent_format.scale_factor)  # SD1.5's latent format is undone: the toy's latents have unit variance
    vae["vae_shift"] = torch.tensor(0.0)
    return patcher, clip, comfy.sd.VAE(sd=vae, dtype=torch.float32)
