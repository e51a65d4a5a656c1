"""What the training loop asks of a model, and the little data that passes between them."""
from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch

from ..layers.compiled import Blocks
from ..layers.frozen import Fetch, Weights
from ..layers.recorded import Recorded
from .families import Family

__all__ = ["Batch", "Conditioning", "Fetch", "TextEncoder", "TrainableModel", "Weights", "is_linear", "join_contexts"]


@dataclass
class Conditioning:
    """One caption's embeddings: context (1, tokens, width), pooled (1, width) where the family has it."""

    context: torch.Tensor
    pooled: torch.Tensor | None = None
    extra: dict[str, torch.Tensor] = field(default_factory=dict)  # what else the text encoder gives, such as an attention mask


@dataclass
class Batch:
    """One micro-batch. latents (B, C, H/8, W/8); one Conditioning or one caption a row; sizes for SDXL's time ids."""

    latents: torch.Tensor
    captions: list[str]
    conditioning: list[Conditioning] | None = None  # None while text encoders are trained
    sizes: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)  # original h, w, crop top, left, target h, w
    preserved: list[str] = field(default_factory=list)  # the captions without the concept, where its neighbours are preserved
    preserved_conditioning: list[Conditioning] | None = None
    masks: torch.Tensor | None = None  # (B, 1, H/8, W/8) in 0..1: what counts fully

    def rows(self, part: slice) -> Batch:
        """Those rows alone."""
        return Batch(**{f.name: None if (value := getattr(self, f.name)) is None else value[part] for f in fields(self)})

    def neighbours(self) -> Batch:
        """The same pictures with the captions without the concept."""
        return replace(self, captions=self.preserved, conditioning=self.preserved_conditioning)

    def with_rows_of(self, other: Batch) -> Batch:
        """These rows and then the other's."""
        join = lambda mine, theirs: None if mine is None else torch.cat((mine, theirs)) if isinstance(mine, torch.Tensor) else mine + theirs
        return Batch(**{f.name: join(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


class TrainableModel(Protocol):
    """A base model that adapters can be trained on, behind ComfyUI or behind diffusers."""

    family: Family
    prediction: str  # "epsilon", "v_prediction" or "flow"
    alphas_cumprod: torch.Tensor | None  # (T,) fp32 on CPU; None for flow
    device: torch.device
    name: str  # of the checkpoint, as far as it is known
    can_offload: bool  # whether `training` knows offload

    def modules(self, text_encoders: bool) -> dict[str, torch.nn.Module]:
        """The networks to adapt by kohya prefix: {"lora_unet": …, "lora_te": …} (or lora_te1, lora_te2)."""

    def device_of(self, prefix: str) -> torch.device:
        """Where that network computes: a host may keep text encoders off the accelerator."""

    def fetch(self, layer: torch.nn.Module, like: torch.Tensor) -> AbstractContextManager[Weights]:
        """The base layer's weight and bias as they compute now, in `like`'s dtype on its device; valid inside the context."""

    def layer_names(self, prefix: str) -> dict[str, str]:
        """Own module path -> diffusers' module path, for every weight of that network that can be adapted."""

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in 0..1 -> latents (B, C, H/8, W/8) fp32 on CPU, scaled as the model expects them."""

    def encode_captions(self, captions: list[str]) -> list[Conditioning]:
        """One Conditioning a caption; keeps the graph where gradients are enabled."""

    def loras_digest(self) -> str:
        """Of the LoRAs that the host has put on the base model; "" where nobody can tell, and where the host puts none."""

    def encoder_digests(self) -> tuple[str, str]:
        """What `encode_images` and `encode_captions` give depends on this (and on what they are given); "" where nobody can tell."""

    def encode_prompts(self, prompts: list[str], as_captions: bool = False) -> list[Any]:
        """What `sample` takes for each: prompts as the host reads them, with its emphasis, or literally as captions are."""

    def sample(self, positive: Any, negative: Any, shape: tuple[int, ...], seed: int, cfg: float) -> torch.Tensor:
        """A picture (H, W, 3) in 0..1 on the CPU from latents of `shape` (C, H/8, W/8), by the host's own sampler on the model as it is now,
        inside `training`. cfg 0: the family's. It draws from torch's global random numbers, and brings the VAE in."""

    def release_encoders(self, text_encoders: bool) -> None:
        """Take the VAE (and, unless they are trained, the text encoders) off the device."""

    def training(self, precision: str, text_encoders: bool, checkpointing: int, largest: tuple[int, ...] = (),
                 offload: bool = False, plain: bool = False, in_nf4: bool = False, blocks: Blocks | None = None,
                 recorded: Recorded | None = None) -> AbstractContextManager[None]:
        """Everything that is changed for a run, undone on every way out; entered before there are adapters. `largest` is the
        shape (B, C, H/8, W/8) of the largest micro-batch, for hosts that make room for it; offload: they keep the base off the device;
        checkpointing, plain, in_nf4, blocks and recorded: see fitting.py, layers/on_demand.py, layers/nf4.py, layers/compiled.py and layers/recorded.py."""

    def memory(self) -> tuple[int, int | None]:
        """(bytes of the base model on `device`, bytes free there beside it; None where nobody knows), inside `training`."""

    def limited(self, most: int) -> AbstractContextManager[None]:
        """Inside, of what the host brings to the device on demand by itself no more than so many bytes stay there."""

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, batch: Batch, conditioning: list[Conditioning]) -> torch.Tensor:
        """The model's raw output (B, C, H/8, W/8) in fp32 for noisy latents and timesteps (B,): integers, or sigmas in 0..1 for flow."""


def is_linear(layer: torch.nn.Module) -> bool:
    """Whether the layer is a linear one, also of a quantized kind that is no torch.nn.Linear."""
    sides = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    weight = getattr(layer, "weight", None)
    return isinstance(layer, torch.nn.Linear) or None not in sides and weight is not None and len(weight.shape) == 2


def join_contexts(contexts: list[torch.Tensor]) -> torch.Tensor:
    """(B, tokens, width) from rows of (1, n·77, width): repeating a context leaves cross-attention unchanged."""
    length = math.lcm(*(c.shape[1] for c in contexts))
    return torch.cat([c.repeat(1, length // c.shape[1], 1) for c in contexts])


def ask_in_groups(ask: Callable[[torch.Tensor, torch.Tensor, list, list[Conditioning]], torch.Tensor],
                  noisy: torch.Tensor, timesteps: torch.Tensor, sizes: list, conditioning: list[Conditioning]) -> torch.Tensor:
    """What `ask` gives for all rows at once; for those of each context's length by themselves, in the rows' order, where only a context of more than
    four times the longest would do for all (5 and 7 windows: 35). Cutting one instead would change what the model answers."""
    lengths = [c.context.shape[1] for c in conditioning]
    if math.lcm(*lengths) <= 4 * max(lengths):
        return ask(noisy, timesteps, sizes, conditioning)
    groups = [[row for row, own in enumerate(lengths) if own == length] for length in sorted(set(lengths))]
    answers = torch.cat([ask(noisy[rows], timesteps[rows], [sizes[row] for row in rows] if sizes else [], [conditioning[row] for row in rows])
                         for rows in groups])
    return answers[torch.tensor(sum(groups, [])).argsort().to(answers.device)]


@dataclass(frozen=True)
class TextEncoder:
    """How a text encoder reads captions: `count` gives the tokens of each; `limit` of them are read at once. Longer captions are
    read in parts that do not see each other (`windows`), or whole, though longer than what the model was trained on."""

    name: str
    count: Callable[[list[str]], list[int]]
    limit: int
    windows: bool
