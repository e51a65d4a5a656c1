"""Products with a frozen weight that may be held wider than what is computed in.

A CPU with bf16 instructions multiplies fp32 matrices in bf16, if it is told to (`torch.set_float32_matmul_precision`): a weight that the host
holds in fp32 is then read once, where a cast copy is read, written and read again, at every step, forward and backward: up to 4 times as fast.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

FEW, LARGE = (8, 48), 2**20  # rows; values of a weight
_taking = False  # inside `in_bf16`


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x (…, in) W^T + b, in x's dtype; W (out, in) and b (out,) of that dtype or of a wider one."""
    weight = _narrowed(weight, x)
    if weight.dtype == x.dtype:
        return _few(x, weight, bias) if _is_few(x, weight) else F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    with _narrow_products():
        found = F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))
    return found.to(x.dtype)


def back(grad: torch.Tensor, weight: torch.Tensor, wide: bool = False) -> torch.Tensor:
    """grad (…, out) W (out, in) in grad's dtype; wide: in fp32 if that comes by itself, for whoever adds it up."""
    weight = _narrowed(weight, grad)
    if weight.dtype == grad.dtype:
        return grad @ weight
    with _narrow_products():
        found = grad.to(weight.dtype) @ weight
    return found if wide else found.to(grad.dtype)


def _is_few(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the rows are so few, and the weight so large, that reading it takes longest. The libraries for CPUs read it faster as the product's first
    factor then: by a quarter to a half in fp32."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and weight.numel() >= LARGE and FEW[0] <= x.numel() // max(x.shape[-1], 1) <= FEW[1]


def _few(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1]).t()
    found = weight @ rows if bias is None else torch.addmm(bias.to(x.dtype)[:, None], weight, rows)
    return found.t().contiguous().view(*x.shape[:-1], -1)


def _narrowed(weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The weight in the rows' dtype where it is smaller than what would be widened in its stead."""
    if weight.dtype == rows.dtype or weight.numel() > rows.numel() // rows.shape[-1] * sum(weight.shape):
        return weight
    return weight.to(rows.dtype)


@contextmanager
def _narrow_products() -> Iterator[None]:
    """For one product alone: adapters that turn and scale compute in fp32 beside it, and need it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def can_take(weight: torch.Tensor, like: torch.Tensor) -> bool:
    """Whether `linear` and `back` take that weight as it lies, for `like`, inside `in_bf16`."""
    return _taking and weight.dtype == torch.float32 and like.dtype == torch.bfloat16 and weight.device.type == like.device.type == "cpu"


@contextmanager
def in_bf16(wanted: bool) -> Iterator[None]:
    """Inside, weights on the CPU that are held in fp32 may be multiplied with in bf16, with fp32 sums."""
    global _taking
    before = _taking
    try:
        torch.get_float32_matmul_precision()
    except RuntimeError:  # somebody has set it for one backend by itself, which this would undo
        wanted = False
    _taking = wanted
    try:
        yield
    finally:
        _taking = before
