"""A base model's blocks in 4 bits for the length of a run (QLoRA: Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes.

A weight is packed once, as the host's own `fetch` gives it, and unpacked when a layer asks for it, in forward and again in backward: what is
trained is what a model with the unpacked weights would train. The host's weights stay as and where they are.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch

from ..errors import LoomError
from .frozen import Fetch

LEAST = 4096  # values: smaller weights stay as they are
BLOCK = 64  # values that share a scale; scales are 8-bit numbers, 256 of which share one of their own
FIX = {"base_precision": "as loaded"}


def packed_bytes(values: int) -> int:
    """What so many values of a weight take, scales included."""
    return -(-values // 2) + -(-values // BLOCK) + 4 * -(-values // (BLOCK * 256))


def packable(blocks: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """The layers below them whose weights are packed: linear ones and convolutions, no embeddings, no norms."""
    kinds = torch.nn.Linear, torch.nn.Conv2d
    layers = {id(m): m for block in blocks for m in block.modules()
              if isinstance(m, kinds) and m.weight.numel() >= LEAST and m.weight.shape[1:].numel() % 2 == 0}  # bitsandbytes' CPU code takes pairs
    return list(layers.values())


def find():
    """bitsandbytes' functions; LoomError where they are missing."""
    try:
        import bitsandbytes.functional as functions
    except ImportError as error:
        raise LoomError(f"base_precision 'nf4' needs the package bitsandbytes, which cannot be imported ({error}): "
                        "install it with `python -m pip install bitsandbytes`, or set base_precision to 'as loaded'", FIX) from error
    return functions


class Packed:
    """The weights of those layers in 4 bits, on `device`. `poll` is called between them."""

    def __init__(self, layers: list[torch.nn.Module], fetch: Fetch, device: torch.device, dtype: torch.dtype, poll: Callable[[], None] = lambda: None) -> None:
        functions, like = find(), torch.empty(0, dtype=dtype, device=device)
        self._fetch, self._unpack, self._held = fetch, functions.dequantize_4bit, {}
        for layer in layers:
            poll()
            with fetch(layer, like) as (weight, bias):
                try:
                    found = functions.quantize_4bit(weight.detach().flatten(1).contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    raise LoomError(f"base_precision 'nf4' does not work on {device.type} with this bitsandbytes ({error}): update bitsandbytes, "
                                    "or set base_precision to 'as loaded'", FIX) from error
                self._held[layer] = *found, weight.shape, None if bias is None else bias.detach().clone()

    @property
    def bytes(self) -> int:
        return sum(packed_bytes(layer.weight.numel()) + (0 if bias is None else bias.numel() * bias.element_size())
                   for layer, (*_, bias) in self._held.items())

    def fetch(self, layer: torch.nn.Module, like: torch.Tensor):
        """As the host's, unpacked where it is packed."""
        found = self._held.get(layer)
        if found is None:
            return self._fetch(layer, like)
        packed, state, shape, bias = found
        return nullcontext((self._unpack(packed, state).view(shape).to(like.dtype), None if bias is None else bias.to(like.dtype)))
