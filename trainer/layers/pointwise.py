"""Activations that keep what makes their input rather than the input, where somebody keeps that anyway, and never their output."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from . import recipes
from .recipes import Recipe


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, source):
        ctx.make = source.make
        ctx.save_for_backward(*source.tensors)
        return F.silu(x)

    @staticmethod
    def backward(ctx, grad):
        return torch.ops.aten.silu_backward(grad, ctx.make(*ctx.saved_tensors)), None


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, source, approximate):
        ctx.make, ctx.approximate = source.make, approximate
        ctx.save_for_backward(*source.tensors)
        return F.gelu(x, approximate=approximate)

    @staticmethod
    def backward(ctx, grad):
        return torch.ops.aten.gelu_backward(grad, ctx.make(*ctx.saved_tensors), approximate=ctx.approximate), None, None


class _Geglu(torch.autograd.Function):
    """x * gelu(gate) of the halves of one tensor (Shazeer 2020, arXiv:2002.05202); torch keeps x, gate and gelu(gate), this the one tensor."""

    @staticmethod
    def forward(ctx, halves, source):
        ctx.make = source.make
        ctx.save_for_backward(*source.tensors)
        return _geglu(halves)

    @staticmethod
    def backward(ctx, grad):
        halves = ctx.make(*ctx.saved_tensors)
        x, gate = halves.chunk(2, dim=-1)
        found = torch.empty_like(halves)
        to_x, to_gate = found.chunk(2, dim=-1)
        torch.mul(grad, F.gelu(gate), out=to_x)
        to_gate.copy_(torch.ops.aten.gelu_backward(grad * x, gate))
        return found, None


def _geglu(halves: torch.Tensor) -> torch.Tensor:
    x, gate = halves.chunk(2, dim=-1)
    return x * F.gelu(gate)


def silu(x: torch.Tensor) -> torch.Tensor:
    """torch's own where x has no recipe: it keeps x too."""
    if torch.compiler.is_compiling():
        return F.silu(x)
    source = recipes.recipe(x)
    if source.tensors[0] is x:
        return F.silu(x)
    return recipes.note(_Silu.apply(x, source), recipes.then(source, F.silu))


def gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    if x.shape[-1] < 4 * recipes.WIDE or torch.compiler.is_compiling():
        return F.gelu(x, approximate=approximate)
    source = recipes.recipe(x)
    return recipes.note(_Gelu.apply(x, source, approximate), recipes.then(source, lambda made: F.gelu(made, approximate=approximate)))


def geglu(halves: torch.Tensor, source: Recipe | None = None) -> torch.Tensor:
    """(…, 2n) -> (…, n). source: what makes the halves, where that is known better than they tell."""
    if halves.shape[-1] < 4 * recipes.WIDE or torch.compiler.is_compiling():
        return _geglu(halves)
    source = source or recipes.recipe(halves)
    return recipes.note(_Geglu.apply(halves, source), recipes.then(source, _geglu))
