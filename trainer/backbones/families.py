"""Model families as data. A new family is a new row here, no code."""
from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

# Regular expressions over diffusers' names of UNet layers.
_ATTENTION = r"\.attn[12]\.to_(q|k|v|out\.0)$"
_FEED_FORWARD = r"\.ff\.net\.(0\.proj|2)$"
_PROJECTIONS = r"attentions\.\d+\.proj_(in|out)$"
_TIME = r"resnets\.\d+\.time_emb_proj$"
_CONVOLUTIONS = r"(resnets\.\d+\.(conv1|conv2|conv_shortcut)|(down|up)samplers\.0\.conv)$"

_UNET_TARGETS = {
    "attention": (_ATTENTION,),
    "attention+ff": (_ATTENTION, _FEED_FORWARD),
    "all linear": (_ATTENTION, _FEED_FORWARD, _PROJECTIONS, _TIME),
    "all linear+conv": (_ATTENTION, _FEED_FORWARD, _PROJECTIONS, _TIME, _CONVOLUTIONS),
}
# What tells the families apart in an original (LDM) checkpoint: the width of the text that this layer attends to.
LDM_CONTEXT = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
CONTEXT_WIDTHS = {768: "sd15", 1024: "sd2", 2048: "sdxl"}
TEXT_TARGETS = (r"self_attn\.(q|k|v|out)_proj$", r"mlp\.fc[12]$")


def _layers(attention: str, feed_forward: str, rest: str = "") -> dict[str, tuple[str, ...]]:
    """Targets of a transformer by its own names; it has no convolutions to add."""
    whole = (attention, feed_forward, *([rest] if rest else []))
    return {"attention": (attention,), "attention+ff": (attention, feed_forward), "all linear": whole, "all linear+conv": whole}


# In single blocks one matrix holds attention and feed-forward together.
_FLUX = _layers(r"double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)$|single_blocks\.\d+\.linear[12]$", r"double_blocks\.\d+\.(img|txt)_mlp\.[02]$",
                r"(_mod|modulation|modulation_(img|txt))\.lin$")
_SD3 = _layers(r"joint_blocks\.\d+\.\w+\.attn2?\.(qkv|proj)$", r"joint_blocks\.\d+\.\w+\.mlp\.fc[12]$", r"joint_blocks\.\d+\.\w+\.adaLN_modulation\.1$")
_QWEN = _layers(r"\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$", r"(img|txt)_mlp\.net\.(0\.proj|2)$", r"(img|txt)_mod\.1$")
_BLOCK = r"(layers|refiner)\.\d+\."
_LUMINA = _layers(_BLOCK + r"attention\.(qkv|out)$", _BLOCK + r"feed_forward\.w[123]$", _BLOCK + r"adaLN_modulation\.\d$")
_WAN = _layers(r"blocks\.\d+\.(self|cross)_attn\.[qkvo]$", r"blocks\.\d+\.ffn\.[02]$")

@dataclass(frozen=True)
class Named:
    """How diffusers names a transformer's layers that fit a pattern: as several where it holds the rows of one matrix apart."""

    own: str  # a pattern
    theirs: tuple[str, ...] = (r"\g<0>",)  # in the order of the rows
    shares: tuple[int, ...] = (1,)  # of the rows
    last_swapped: bool = False  # of the last block, whose rows are twice its columns, the halves stand the other way round
    apart: bool = False  # diffusers takes it under its own names alone, and not as ComfyUI has it: a second file is left for it


def _qkv(own: str, theirs: str, *shares: int) -> Named:
    return Named(own, tuple(theirs.replace("*", part) for part in "qkv"), shares or (1, 1, 1))


def _as(own: str, theirs: str, last_swapped: bool = False, apart: bool = False) -> Named:
    return Named(own, (theirs,), last_swapped=last_swapped, apart=apart)


def _embedders(prefix: str, **layers: str) -> tuple[Named, ...]:
    """Of two linear layers each: {theirs: pattern of ours, with the first one's name and the second one's after it}."""
    return tuple(_as(rf"{own}\.{layer}", f"{prefix}.{theirs}.linear_{n}") for theirs, written in layers.items()
                 for own, *pair in [written.split()] for n, layer in enumerate(pair, 1))


# Beside the blocks; the last norm's halves of scale and shift stand the other way round.
_LAST = (_as(r"final_layer\.adaLN_modulation\.1", "norm_out.linear", last_swapped=True), _as(r"final_layer\.linear", "proj_out"))
_DOUBLE, _SINGLE = r"double_blocks\.(\d+)\.", r"single_blocks\.(\d+)\."
_DOUBLE_NAMES: tuple[Named, ...] = (
    _qkv(_DOUBLE + r"img_attn\.qkv", r"transformer_blocks.\1.attn.to_*"), _as(_DOUBLE + r"img_attn\.proj", r"transformer_blocks.\1.attn.to_out.0"),
    _qkv(_DOUBLE + r"txt_attn\.qkv", r"transformer_blocks.\1.attn.add_*_proj"), _as(_DOUBLE + r"txt_attn\.proj", r"transformer_blocks.\1.attn.to_add_out"),
)
_FLUX_NAMES: tuple[Named, ...] = (
    *_DOUBLE_NAMES,
    _as(_DOUBLE + r"img_mlp\.0", r"transformer_blocks.\1.ff.net.0.proj"), _as(_DOUBLE + r"img_mlp\.2", r"transformer_blocks.\1.ff.net.2"),
    _as(_DOUBLE + r"txt_mlp\.0", r"transformer_blocks.\1.ff_context.net.0.proj"), _as(_DOUBLE + r"txt_mlp\.2", r"transformer_blocks.\1.ff_context.net.2"),
    _as(_DOUBLE + r"img_mod\.lin", r"transformer_blocks.\1.norm1.linear"), _as(_DOUBLE + r"txt_mod\.lin", r"transformer_blocks.\1.norm1_context.linear"),
    Named(_SINGLE + r"linear1", tuple(rf"single_transformer_blocks.\1.{n}" for n in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")), (1, 1, 1, 4)),
    _as(_SINGLE + r"linear2", r"single_transformer_blocks.\1.proj_out"), _as(_SINGLE + r"modulation\.lin", r"single_transformer_blocks.\1.norm.linear"),
    _as("img_in", "x_embedder"), _as("txt_in", "context_embedder"), *_LAST,
    *_embedders("time_text_embed", timestep_embedder="time_in in_layer out_layer", text_embedder="vector_in in_layer out_layer",
                guidance_embedder="guidance_in in_layer out_layer"),
)
_CHROMA_NAMES: tuple[Named, ...] = (
    *_FLUX_NAMES, Named(r"distilled_guidance_layer\.(in|out)_proj", apart=True),  # its reader of LoRAs knows none of these
    *(_as(rf"(distilled_guidance_layer\.layers\.\d+)\.{own}", rf"\1.{theirs}", apart=True)
      for own, theirs in (("in_layer", "linear_1"), ("out_layer", "linear_2"))),
)
_FLUX2_NAMES: tuple[Named, ...] = (
    *_DOUBLE_NAMES,
    _as(_DOUBLE + r"img_mlp\.0", r"transformer_blocks.\1.ff.linear_in"), _as(_DOUBLE + r"img_mlp\.2", r"transformer_blocks.\1.ff.linear_out"),
    _as(_DOUBLE + r"txt_mlp\.0", r"transformer_blocks.\1.ff_context.linear_in"), _as(_DOUBLE + r"txt_mlp\.2", r"transformer_blocks.\1.ff_context.linear_out"),
    _as(_SINGLE + r"linear1", r"single_transformer_blocks.\1.attn.to_qkv_mlp_proj"), _as(_SINGLE + r"linear2", r"single_transformer_blocks.\1.attn.to_out"),
    _as(r"((?:single|double)_stream_modulation(?:_img|_txt)?)\.lin", r"\1.linear"),
    _as("img_in", "x_embedder"), _as("txt_in", "context_embedder"),
    replace(_LAST[0], apart=True), _LAST[1],  # its reader of LoRAs, unlike that of checkpoints, leaves the halves as they are
    *_embedders("time_guidance_embed", timestep_embedder="time_in in_layer out_layer", guidance_embedder="guidance_in in_layer out_layer"),
)
_JOINT = r"joint_blocks\.(\d+)\."
_SD3_NAMES: tuple[Named, ...] = (
    _qkv(_JOINT + r"x_block\.attn(2?)\.qkv", r"transformer_blocks.\1.attn\2.to_*"),
    _as(_JOINT + r"x_block\.attn(2?)\.proj", r"transformer_blocks.\1.attn\2.to_out.0"),
    _qkv(_JOINT + r"context_block\.attn\.qkv", r"transformer_blocks.\1.attn.add_*_proj"),
    _as(_JOINT + r"context_block\.attn\.proj", r"transformer_blocks.\1.attn.to_add_out"),
    _as(_JOINT + r"x_block\.mlp\.fc1", r"transformer_blocks.\1.ff.net.0.proj"), _as(_JOINT + r"x_block\.mlp\.fc2", r"transformer_blocks.\1.ff.net.2"),
    _as(_JOINT + r"context_block\.mlp\.fc1", r"transformer_blocks.\1.ff_context.net.0.proj"),
    _as(_JOINT + r"context_block\.mlp\.fc2", r"transformer_blocks.\1.ff_context.net.2"),
    _as(_JOINT + r"x_block\.adaLN_modulation\.1", r"transformer_blocks.\1.norm1.linear"),
    _as(_JOINT + r"context_block\.adaLN_modulation\.1", r"transformer_blocks.\1.norm1_context.linear", last_swapped=True),
    Named("context_embedder"), *_LAST, *_embedders("time_text_embed", timestep_embedder=r"t_embedder\.mlp 0 2", text_embedder=r"y_embedder\.mlp 0 2"),
)
# diffusers' reader wants every layer of every block, and none beside them.
_LUMINA2_NAMES: tuple[Named, ...] = tuple(replace(named, apart=True) for named in (
    _qkv(r"(.*)\.attention\.qkv", r"\1.attn.to_*", 3, 1, 1), _as(r"(.*)\.attention\.out", r"\1.attn.to_out.0"),
    _as(r"(.*)\.feed_forward\.w([123])", r"\1.feed_forward.linear_\2"), _as(r"(\w+\.\d+)\.adaLN_modulation\.1", r"\1.norm1.linear"),
    Named("x_embedder"), _as(r"cap_embedder\.1", "time_caption_embed.caption_embedder.1"),
    *_embedders("time_caption_embed", timestep_embedder=r"t_embedder\.mlp 0 2"),
    _as(r"final_layer\.adaLN_modulation\.1", "norm_out.linear_1"), _as(r"final_layer\.linear", "norm_out.linear_2"),
))
_Z_IMAGE_NAMES: tuple[Named, ...] = (
    _qkv(r"(.*\.attention)\.qkv", r"\1.to_*"), _as(r"(.*\.attention)\.out", r"\1.to_out.0"), Named(r".*\.feed_forward\.w[123]"),
    Named(r"(layers|noise_refiner)\.\d+\.adaLN_modulation\.0"), Named(r"cap_embedder\.1|t_embedder\.mlp\.\d"),
    _as(r"final_layer\.(.*)", r"all_final_layer.2-1.\1"), _as("x_embedder", "all_x_embedder.2-1"),
)
_WAN_NAMES: tuple[Named, ...] = (
    _as(r"(blocks\.\d+)\.self_attn\.([qkv])", r"\1.attn1.to_\2"), _as(r"(blocks\.\d+)\.self_attn\.o", r"\1.attn1.to_out.0"),
    _as(r"(blocks\.\d+)\.cross_attn\.([qkv])", r"\1.attn2.to_\2"), _as(r"(blocks\.\d+)\.cross_attn\.o", r"\1.attn2.to_out.0"),
    _as(r"(blocks\.\d+)\.ffn\.0", r"\1.ffn.net.0.proj"), _as(r"(blocks\.\d+)\.ffn\.2", r"\1.ffn.net.2"),
    *_embedders("condition_embedder", time_embedder="time_embedding 0 2", text_embedder="text_embedding 0 2"),
    _as(r"time_projection\.1", "condition_embedder.time_proj"), _as(r"head\.head", "proj_out"),
)


@dataclass(frozen=True)
class Family:
    """What differs between families: names, sizes, targets, defaults (sources: rivals' shipped defaults)."""

    id: str
    title: str
    architecture: str  # ModelSpec's modelspec.architecture
    base_model_version: str  # kohya's ss_base_model_version
    text_prefixes: tuple[str, ...]  # kohya prefixes of the text encoders, in their order
    resolution: int
    size_multiple: int = 64
    time_ids: bool = False  # SDXL's original size, crop and target size
    channels: int = 4  # of latents
    cell: int = 8  # pixels on the side of a latent's cell
    keys: str = "kohya"  # how files name layers, so that ComfyUI and diffusers read them: kohya's lora_unet_…, diffusion_model.…, or diffusers' transformer.…
    names: tuple[Named, ...] = (Named(".*"),)  # diffusers' names of a transformer's layers
    cpu_threads: int = 0  # where it trains on a CPU; 0: torch's own choice
    cpu_bf16: bool = True  # whether it pays there, on CPUs that have bf16 instructions
    guidance: float | None = None  # the guidance embedding's value in training, where the model has one
    targets: dict[str, tuple[str, ...]] = field(default_factory=lambda: _UNET_TARGETS)
    flow: bool = False  # rectified flow: sigmas for timesteps
    timestep_sampling: str = "uniform"  # how the noise levels of a run are drawn, see loss.py
    timestep_shift: str = "none"
    shift: float = 1.0
    cfg: float = 7.0  # of samples while training
    sampler: tuple[str, str, int] = ("euler", "normal", 20)  # theirs: sampler, scheduler, steps
    patch: int = 1  # latent cells on the side of an image token
    checkpointed: tuple[str, ...] = ("BasicTransformerBlock", "ResBlock", "ResnetBlock2D")  # class names

    def in_diffusers(self, own: str, name: str, prefix: str = "lora_unet") -> Named | None:
        """The layer of that own path as a pipeline of diffusers has it, its part of the pipeline in front; None where it is not known.

        `name`: what it is called in a text encoder or a UNet of diffusers, and whatever it is called in a transformer."""
        if prefix != "lora_unet":
            return Named(own, (f"{('text_encoder', 'text_encoder_2')[self.text_prefixes.index(prefix)]}.{name}",))
        if not self.flow:
            return Named(own, (f"unet.{name}",))
        for row in self.names:
            if found := re.fullmatch(row.own, own):
                return replace(row, own=own, theirs=tuple(f"transformer.{found.expand(part)}" for part in row.theirs))
        return None


def _transformer(id: str, title: str, targets: dict[str, tuple[str, ...]], blocks: tuple[str, ...], **values: Any) -> Family:
    return Family(id, title, f"{id.replace('_', '-')}/lora", id, (), **{"resolution": 1024, "size_multiple": 32, "channels": 16, "patch": 2, **values},
                  targets=targets, checkpointed=blocks, flow=True, timestep_sampling="logit_normal", sampler=("euler", "simple", 20))


FAMILIES = {
    family.id: family
    for family in (
        Family("toy", "Toy base", "stable-diffusion-v1/lora", "sd_v1", ("lora_te",), 64, size_multiple=16, cpu_threads=1, cpu_bf16=False, cfg=3.0),
        Family("sd15", "Stable Diffusion 1.5", "stable-diffusion-v1/lora", "sd_v1", ("lora_te",), 512),
        Family("sd2", "Stable Diffusion 2.x", "stable-diffusion-v2/lora", "sd_v2", ("lora_te",), 512),
        Family("sdxl", "SDXL", "stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0", ("lora_te1", "lora_te2"), 1024, time_ids=True),
        _transformer("sd3", "Stable Diffusion 3.x", _SD3, ("JointBlock",), cfg=4.5, keys="transformer", names=_SD3_NAMES),
        _transformer("flux", "Flux.1", _FLUX, ("DoubleStreamBlock", "SingleStreamBlock"), timestep_shift="resolution", guidance=1.0, cfg=1.0,
                     names=_FLUX_NAMES),
        _transformer("chroma", "Chroma", _FLUX, ("DoubleStreamBlock", "SingleStreamBlock"), timestep_shift="resolution", cfg=4.0, names=_CHROMA_NAMES),
        _transformer("flux2", "Flux.2", _FLUX, ("DoubleStreamBlock", "SingleStreamBlock"), timestep_shift="resolution", guidance=1.0, cfg=1.0,
                     channels=128, cell=16, patch=1, keys="diffusion_model", names=_FLUX2_NAMES),
        _transformer("qwen_image", "Qwen-Image", _QWEN, ("QwenImageTransformerBlock",), timestep_shift="constant", shift=2.2, keys="diffusion_model", cfg=2.5),
        _transformer("lumina2", "Lumina 2", _LUMINA, ("JointTransformerBlock",), timestep_shift="resolution", keys="diffusion_model", cfg=4.0,
                     names=_LUMINA2_NAMES),
        _transformer("z_image", "Z-Image", _LUMINA, ("JointTransformerBlock",), timestep_shift="constant", shift=2.0, keys="transformer", cfg=4.0,
                     names=_Z_IMAGE_NAMES),
        _transformer("wan", "Wan", _WAN, ("WanAttentionBlock",), timestep_shift="constant", shift=3.0, keys="diffusion_model", resolution=512, cfg=5.0,
                     names=_WAN_NAMES),
    )
}
