"""A frozen layer with its low-rank branch (Hu et al. 2021, arXiv:2106.09685) as one function: y = W x + b + s B A x.

It keeps A, B and what makes x, which other layers on the same x keep too: no result of the branch, no copy in another dtype, no weight. The branch is
added in place, and its inner product A x is computed again in backward.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F

from . import conv, product
from .frozen import own
from .recipes import recipe


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, down, up, layer, fetch, scale, source):
        ctx.layer, ctx.fetch, ctx.scale, ctx.make, ctx.inputs = layer, fetch, scale, source.make, x.shape
        ctx.save_for_backward(down, up, *source.tensors)
        a, b = down.to(x.dtype), up.to(x.dtype)
        with fetch(layer, x) as (weight, bias):
            y = product.linear(x, weight, bias)
        rows = y.reshape(-1, y.shape[-1])
        rows.addmm_(x.reshape(-1, x.shape[-1]) @ a.t(), b.t(), alpha=scale)
        return own(rows.view(y.shape))

    @staticmethod
    def backward(ctx, grad):
        down, up, *kept = ctx.saved_tensors
        a, b, need = down.to(grad.dtype), up.to(grad.dtype), ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        inner = (rows @ b).mul_(ctx.scale)
        to_x = to_down = to_up = None
        if need[1] or need[2]:
            x = ctx.make(*kept)
            x = x.reshape(-1, x.shape[-1])
            to_down = (inner.t() @ x).to(down.dtype)
            to_up = ((x @ a.t()).mul_(ctx.scale).t() @ rows).t().to(up.dtype)
        if need[0]:
            with ctx.fetch(ctx.layer, grad) as (weight, _):
                to_x = product.back(rows, weight).addmm_(inner, a).view(ctx.inputs)
        return to_x, to_down, to_up, None, None, None, None


class _Conv2d(torch.autograd.Function):
    """A is a convolution of the layer's own kernel and stride to r channels, B one of 1x1."""

    @staticmethod
    def forward(ctx, x, down, up, layer, fetch, scale, source):
        ctx.layer, ctx.fetch, ctx.scale, ctx.make, ctx.inputs = layer, fetch, scale, source.make, x.shape
        ctx.save_for_backward(down, up, *source.tensors)
        with fetch(layer, x) as (weight, bias):
            y = conv.conv2d(layer, x, weight, bias).contiguous()
        inner = _down(layer, x, down.to(x.dtype))
        y.flatten(2).baddbmm_(up.to(x.dtype).flatten(1).expand(len(x), -1, -1), inner.flatten(2), alpha=scale)
        return own(y)

    @staticmethod
    def backward(ctx, grad):
        down, up, *kept = ctx.saved_tensors
        layer, a, b, need = ctx.layer, down.to(grad.dtype), up.to(grad.dtype).flatten(1), ctx.needs_input_grad
        cells = grad.flatten(2)
        inner = (b.t() @ cells).mul_(ctx.scale).unflatten(2, grad.shape[2:])
        to_x = to_down = to_up = None
        settings = layer.stride, layer.padding, layer.dilation
        if need[1] or need[2]:
            x = ctx.make(*kept)
            to_down = torch.nn.grad.conv2d_weight(x, a.shape, inner, *settings).to(down.dtype)
            to_up = torch.einsum("boc,brc->or", cells, _down(layer, x, a).flatten(2)).mul_(ctx.scale).view(up.shape).to(up.dtype)
        if need[0]:
            with ctx.fetch(layer, grad) as (weight, _):
                to_x = conv.conv2d_input(layer, ctx.inputs, weight, grad)
            to_x += torch.nn.grad.conv2d_input(ctx.inputs, a, inner, *settings)
        return to_x, to_down, to_up, None, None, None, None


def _down(layer: torch.nn.Conv2d, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    if conv.wrong_in_torch(layer, x.shape, x):
        return conv.conv2d(layer, x, a, None)
    return F.conv2d(x, a, None, layer.stride, layer.padding, layer.dilation)


def low_rank(x: torch.Tensor, layer: torch.nn.Module, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """The layer's answer to x with the branch. A linear layer: x (…, in), down (r, in), up (out, r); a convolution without groups: x (B, in, H, W),
    down (r, in, kh, kw), up (out, r, 1, 1). The layer must be `fusible`."""
    kind = _Linear if isinstance(layer, torch.nn.Linear) else _Conv2d
    return kind.apply(x, down, up, layer, layer.loom_fetch, scale, recipe(x))


def fusible(layer: torch.nn.Module) -> bool:
    """Whether its weight is on demand (on_demand.py), nobody listens at it, and no compiler does this better."""
    if torch.compiler.is_compiling():  # it sees both as one anyway
        return False
    heard = getattr(layer, "_forward_hooks", None) or getattr(layer, "_forward_pre_hooks", None)
    return isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) and "loom_fetch" in layer.__dict__ and not heard and getattr(layer, "groups", 1) == 1
