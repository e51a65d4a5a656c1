"""Transformers of the flow kind behind ComfyUI's own model classes: what differs between them is a row in families.py.

ComfyUI's `extra_conds` says what each of them is told besides the picture, so that no code here knows a family.
"""
from __future__ import annotations

import comfy.samplers
import torch

from ..devices import onto
from ..errors import LoomError
from .comfy import ComfyModel, literal
from .families import FAMILIES, Family
from .protocol import Batch, Conditioning

# ComfyUI's class of a model's configuration -> our family
CLASSES = {
    "SD3": "sd3", "Flux": "flux", "Chroma": "chroma", "Flux2": "flux2", "QwenImage": "qwen_image", "Lumina2": "lumina2", "ZImage": "z_image",
    "WAN21_T2V": "wan", "WAN22_T2V": "wan",
}


def family_of(model) -> Family | None:
    return FAMILIES.get(CLASSES.get(type(model.model.model_config).__name__, ""))


class ComfyFlow(ComfyModel):
    """MODEL, CLIP and VAE of a flow transformer. Text encoders are not trained."""

    def modules(self, text_encoders: bool) -> dict[str, torch.nn.Module]:
        if text_encoders:
            raise LoomError(f"train_text_encoder is on, and {self.family.title} has text encoders that are not trained: turn it off")
        return {"lora_unet": self.unet}

    def layer_names(self, prefix: str) -> dict[str, str]:
        return {name: name for name, module in self.unet.named_modules() if name and getattr(module, "weight", None) is not None}

    def _encode(self, captions: list[str]) -> list[Conditioning]:
        found = []
        for caption in captions:
            encoded = dict(self.clip.encode_from_tokens(self.clip.tokenize(literal(caption)), return_pooled=True, return_dict=True))
            context, pooled = encoded.pop("cond").float(), encoded.pop("pooled_output")
            extra = {name: value.cpu() for name, value in encoded.items() if isinstance(value, torch.Tensor)}
            found.append(Conditioning(context.cpu(), None if pooled is None else pooled.float().cpu(), extra))
        return found

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, batch: Batch, conditioning: list[Conditioning]) -> torch.Tensor:
        told = [self._told(noisy[i:i + 1], c) for i, c in enumerate(conditioning)]
        if all(mine[name].can_concat(first) for mine in told[1:] for name, first in told[0].items() if name in mine) and len({*map(frozenset, told)}) == 1:
            return self._forward(noisy, timesteps, told)
        rows = [self._forward(noisy[i:i + 1], timesteps[i:i + 1], [one]) for i, one in enumerate(told)]  # captions of different lengths
        return torch.cat(rows)

    def _told(self, noisy: torch.Tensor, conditioning: Conditioning) -> dict:
        """ComfyUI's own conditions of one picture."""
        extra = {name: onto(value, self.device) for name, value in conditioning.extra.items()}
        pooled = None if conditioning.pooled is None else onto(conditioning.pooled, self.device)
        height, width = noisy.shape[-2:]
        if self.family.guidance is not None:
            extra["guidance"] = self.family.guidance
        told = self.patcher.model.extra_conds(cross_attn=onto(conditioning.context, self.device), pooled_output=pooled, noise=noisy, device=self.device,
                                              width=width * 8, height=height * 8, prompt_type="positive", **extra)
        return {name: cond.process_cond(batch_size=1, device=self.device, area=None) for name, cond in told.items()}

    def _forward(self, noisy: torch.Tensor, sigmas: torch.Tensor, told: list[dict]) -> torch.Tensor:
        base = self.patcher.model
        given = {name: self._cast(value) for name, value in comfy.samplers.cond_cat(told).items()}
        context = given.pop("c_crossattn", None)
        sampling = self.patcher.get_model_object("model_sampling")
        times = sampling.timestep(sigmas).float()
        if hasattr(base, "process_timestep"):  # newer than 0.3.64
            times = base.process_timestep(times, x=noisy, **given)
        options = {"optimized_attention_override": self.attention, "cond_or_uncond": [0] * len(noisy), "sigmas": sigmas}
        return self.unet(noisy.to(self._dtype), times, context=context, control=None, transformer_options=options, **given).float()

    def _cast(self, value):
        if isinstance(value, list):
            return [self._cast(one) for one in value]
        return onto(value, self.device, self._dtype if value.is_floating_point() else value.dtype) if isinstance(value, torch.Tensor) else value
