"""Weights that ComfyUI pages in on demand (dynamic VRAM), held on the device for the length of a run where they fit there.

ComfyUI's layers ask for each weight at every use, which takes the host longer than a small layer takes the device, and moves weights from page to page
that no compiler may take for granted. What is held is ComfyUI's own page, pinned by its own call and given back by its own: no copy, and nothing is changed.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import comfy.ops
import torch

KINDS = "weight", "bias"


class Resident:
    """The layers below `root`, which hold their weights on the device as if they had been loaded there, from `hold` to `release`. What ComfyUI cannot keep
    there, what it computes at every use (functions on weights) and what is quantized stays on demand.

    For use after the model was loaded, and before there is anything of ours in its tree."""

    def __init__(self, root: torch.nn.Module, device: torch.device, first: Callable[[], None] = lambda: None) -> None:
        """first: lets all of the model's pages in again. Where any had to give way, ComfyUI keeps that and all behind it out until then."""
        self.device, self.count, self._first = device, 0, first
        self._layers = list(root.modules())
        self._held = ExitStack()

    def hold(self, poll: Callable[[], None] = lambda: None) -> int:
        """How many layers hold their weights now. `poll` is called between them; whatever it raises leaves none."""
        with ExitStack() as stack, torch.inference_mode(False):
            self.count = sum(_held(stack, layer, self.device, poll) for layer in self._layers)
            self._held = stack.pop_all()
        return self.count

    def release(self) -> None:
        """All is as it was, and ComfyUI may take the memory for something else."""
        self._held.close()

    @contextmanager
    def given_back(self, missed: Callable[[], None]) -> Iterator[None]:
        """Released inside, and held again afterwards, in the same place; `missed` is called where not all can be."""
        before, now = self.count, 0
        self._first()  # what is kept out as it is released is gone
        self.release()
        try:
            yield
        finally:
            try:
                self._first()
                now = self.hold()
            finally:
                if now < before:
                    missed()


def _held(stack: ExitStack, layer: torch.nn.Module, device: torch.device, poll: Callable[[], None]) -> bool:
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    if weight is None or not getattr(layer, "comfy_cast_weights", False) or any(getattr(layer, f"{kind}_function", None) for kind in KINDS):
        return False
    if type(weight) is not torch.nn.Parameter or hasattr(layer, "cast_bias_weight"):  # quantized; another pack's
        return False
    if getattr(layer, "_v", None) is not None:
        poll()
        pages = _paged(stack, layer, weight, bias, device)
        if pages is None:
            return False
        for kind, page in zip(KINDS, pages):
            if page is not None:
                stack.callback(layer._parameters.__setitem__, kind, layer._parameters[kind])
                layer._parameters[kind] = torch.nn.Parameter(_normal(page), requires_grad=False)
    elif any(p is not None and p.device != torch.empty(0, device=device).device for p in (weight, bias)):  # which has a number
        return False
    stack.callback(setattr, layer, "comfy_cast_weights", layer.comfy_cast_weights)
    layer.comfy_cast_weights = False
    return True


def _paged(stack: ExitStack, layer: torch.nn.Module, weight: torch.Tensor, bias: torch.Tensor | None,
           device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """The pages of the layer's weight and bias, pinned until the stack ends; None where ComfyUI has no room for them."""
    dtype, bias_dtype = (None if p is None else getattr(p, "_model_dtype", None) or p.dtype for p in (weight, bias))

    def ask():
        return comfy.ops.cast_bias_weight(layer, dtype=dtype, device=device, bias_dtype=bias_dtype, offloadable=True)

    comfy.ops.uncast_bias_weight(layer, *ask())  # pages it in, with the LoRAs that are stacked on it
    got = ask()
    pinned = isinstance(got[2], tuple) and isinstance(got[2][1], torch.device)
    if not pinned or got[0] is not getattr(layer, "_v_weight", None) or got[1] is not getattr(layer, "_v_bias", None):
        comfy.ops.uncast_bias_weight(layer, *got)
        return None
    stack.callback(comfy.ops.uncast_bias_weight, layer, *got)
    return got[:2]


def _normal(page: torch.Tensor) -> torch.Tensor:
    """A normal tensor on the same memory: the page may have been brought in by a node, in inference mode."""
    return torch.empty(0, dtype=page.dtype, device=page.device).set_(page.untyped_storage(), page.storage_offset(), page.size(), page.stride())
