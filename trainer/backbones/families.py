"""Model families as data. A new family is a new row here, no code."""
from __future__ import annotations

from dataclasses import dataclass, field

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
    targets: dict[str, tuple[str, ...]] = field(default_factory=lambda: _UNET_TARGETS)
    flow: bool = False  # rectified flow: sigmas for timesteps
    timestep_sampling: str = "uniform"  # how the noise levels of a run are drawn, see loss.py
    timestep_shift: str = "none"
    shift: float = 1.0
    patch: int = 1  # latent cells on the side of an image token
    checkpointed: tuple[str, ...] = ("BasicTransformerBlock", "ResBlock", "ResnetBlock2D")  # class names


FAMILIES = {
    family.id: family
    for family in (
        Family("toy", "Toy base", "stable-diffusion-v1/lora", "sd_v1", ("lora_te",), 64, size_multiple=16),
        Family("sd15", "Stable Diffusion 1.5", "stable-diffusion-v1/lora", "sd_v1", ("lora_te",), 512),
        Family("sd2", "Stable Diffusion 2.x", "stable-diffusion-v2/lora", "sd_v2", ("lora_te",), 512),
        Family("sdxl", "SDXL", "stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0", ("lora_te1", "lora_te2"), 1024, time_ids=True),
    )
}
