"""Whether an encoder is the one that it was: a digest of its weights and of what else it depends on.

Every byte counts, for a single row of a token table may have been changed. What was read once is remembered for as long as the
tensor lives and is not written to, so that only a process's first run pays for it.
"""
from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable
from typing import Any

import torch

_known: dict[int, tuple[weakref.ref, tuple[int, int], bytes]] = {}  # by a tensor's id: itself, where it lay and how often it was written to, its digest


def digest(parts: Iterable[tuple[str, Any]], *facts: object) -> str:
    """Of names with their tensors or plain values, and of `facts` by their repr; "" where a tensor is of a kind that cannot be read."""
    found = hashlib.sha256(repr(facts).encode())
    try:
        for name, part in parts:
            found.update(f"{name} ".encode())
            found.update(_of(part) if isinstance(part, torch.Tensor) else repr(part).encode())
    except (RuntimeError, TypeError, NotImplementedError, AttributeError):
        return ""
    return found.hexdigest()


def parts_in(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """(name, tensor or plain value) of everything in nested tuples, lists, dicts, and objects that hold `weights`, as ComfyUI's patches do."""
    if value is None or isinstance(value, (torch.Tensor, bool, int, float, str)):
        yield name, value
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from parts_in(value[key], f"{name}.{key}")
    elif isinstance(value, (tuple, list)):
        for number, part in enumerate(value):
            yield from parts_in(part, f"{name}.{number}")
    else:
        yield name, type(value).__name__
        yield from parts_in(getattr(value, "weights", None), f"{name}.weights")


def _of(tensor: torch.Tensor) -> bytes:
    version = -1 if tensor.is_inference() else tensor._version
    state, kept = (tensor.data_ptr(), version), _known.get(id(tensor))
    if kept is not None and kept[0]() is tensor and kept[1] == state:
        return kept[2]
    found = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    with torch.no_grad():
        # quantized kinds hold their numbers in a plain tensor, and scales beside it
        scales = getattr(getattr(tensor, "_params", None), "__dict__", {}).values()
        for part in (getattr(tensor, "_qdata", tensor), *(scale for scale in scales if isinstance(scale, torch.Tensor))):
            flat = part.detach().reshape(-1).contiguous()
            if len(flat):
                found.update(memoryview(flat.view(torch.uint8).cpu().numpy()))
    number = id(tensor)
    _known[number] = weakref.ref(tensor, lambda _: _known.pop(number, None)), state, found.digest()
    return found.digest()
