"""Whether an encoder is the one that it was: a digest that changes with its weights. It reads some values of every tensor, for
hashing ten gigabytes at each start would take longer than what is saved by it.
"""
from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch

_VALUES = 64  # of each tensor, spread evenly, and as many from its beginning


def digest(tensors: Iterable[tuple[str, torch.Tensor]], *facts: object) -> str:
    """Of names, shapes, dtypes and some values of the tensors, and of `facts` by their repr; "" where a tensor is of a kind that cannot be read."""
    found = hashlib.sha256(repr(facts).encode())
    try:
        for name, tensor in tensors:
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(_some(tensor))
    except (RuntimeError, TypeError, NotImplementedError, AttributeError):
        return ""
    return found.hexdigest()


def _some(tensor: torch.Tensor) -> bytes:
    with torch.no_grad():
        # quantized kinds hold their numbers in a plain tensor
        flat = getattr(tensor, "_qdata", tensor).detach().reshape(-1)
        chosen = torch.cat((flat[::max(1, len(flat) // _VALUES)][:_VALUES], flat[:_VALUES])).contiguous()
        return bytes(chosen.view(torch.uint8).cpu().tolist()) if len(chosen) else b""


def tensors_in(value: Any, name: str = "") -> Iterable[tuple[str, torch.Tensor]]:
    """Every tensor in nested tuples, lists, dicts, and objects that hold `weights`, as ComfyUI's patches do."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from tensors_in(value[key], f"{name}.{key}")
    elif isinstance(value, (tuple, list)):
        for number, part in enumerate(value):
            yield from tensors_in(part, f"{name}.{number}")
    elif hasattr(value, "weights"):
        yield from tensors_in(value.weights, f"{name}.{type(value).__name__}")
