"""Frozen layers that keep nothing: their weight is asked for in forward and again in backward.

Works wherever the weight lives (resident, offloaded, paged, quantized) as long as `fetch(layer, like)` can yield it in
`like`'s dtype (linear layers and convolutions: or in a wider one, see product.py) on `like`'s device. Only inputs of norms are kept; no cast
copy of a weight ever enters the graph.
"""
from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from . import conv, product

Weights = tuple[torch.Tensor | None, torch.Tensor | None]  # a layer's weight and bias
Fetch = Callable[[torch.nn.Module, torch.Tensor], AbstractContextManager[Weights]]


def _wide(t: torch.Tensor) -> torch.Tensor:
    return t.float() if t.dtype.itemsize < 4 else t


def own(y: torch.Tensor) -> torch.Tensor:
    """`y` as no view: what a Function returns as one may not be changed in place, which ComfyUI's blocks do."""
    return torch.ops.aten._unsafe_view(y._base, y.shape) if y._is_view() and y._base.numel() == y.numel() and y.is_contiguous() else y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer, fetch):
        ctx.layer, ctx.fetch = layer, fetch
        with fetch(layer, x) as (weight, bias):
            return own(product.linear(x, weight, bias))

    @staticmethod
    def backward(ctx, grad):
        with ctx.fetch(ctx.layer, grad) as (weight, _):
            return product.back(grad, weight), None, None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer, fetch):
        ctx.layer, ctx.fetch, ctx.shape = layer, fetch, x.shape
        with fetch(layer, x) as (weight, bias):
            return own(conv.conv2d(layer, x, weight, bias))

    @staticmethod
    def backward(ctx, grad):
        with ctx.fetch(ctx.layer, grad) as (weight, _):
            return conv.conv2d_input(ctx.layer, ctx.shape, weight, grad), None, None


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer, fetch):
        x = x.contiguous()
        n, c = x.shape[:2]
        with fetch(layer, x) as (weight, bias):
            y, mean, rstd = torch.native_group_norm(x, weight, bias, n, c, x[0, 0].numel(), layer.num_groups, layer.eps)
        ctx.layer, ctx.fetch = layer, fetch
        ctx.save_for_backward(x, mean, rstd)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, mean, rstd = ctx.saved_tensors
        n, c = x.shape[:2]
        with ctx.fetch(ctx.layer, x) as (weight, _):
            arguments = (grad.contiguous(), x, mean, rstd, weight, n, c, x[0, 0].numel(), ctx.layer.num_groups, [True, False, False])
            return torch.ops.aten.native_group_norm_backward(*arguments)[0], None, None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer, fetch):
        with fetch(layer, x) as (weight, bias):
            y, mean, rstd = torch.native_layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
        ctx.layer, ctx.fetch = layer, fetch
        # ComfyUI's CLIP adds to its residual stream in place, which would spoil a saved input.
        ctx.save_for_backward(x.clone() if layer.__dict__.get("loom_inplace_input") else x, mean, rstd)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, mean, rstd = ctx.saved_tensors
        with ctx.fetch(ctx.layer, x) as (weight, bias):
            arguments = (grad.contiguous(), x, ctx.layer.normalized_shape, mean, rstd, weight, bias, [True, False, False])
            return torch.ops.aten.native_layer_norm_backward(*arguments)[0], None, None


class _PlainLayerNorm(torch.autograd.Function):
    """LayerNorm without weights, as transformers of the flow kind have it: keeps its output, which the modulation behind it keeps anyway.
    Its input is their residual stream, to which ComfyUI's blocks add in place."""

    @staticmethod
    def forward(ctx, x, layer, fetch):
        y, _, rstd = torch.native_layer_norm(x, layer.normalized_shape, None, None, layer.eps)
        ctx.dims = tuple(range(-len(layer.normalized_shape), 0))
        ctx.save_for_backward(y, rstd)
        return y

    @staticmethod
    def backward(ctx, grad):
        y, rstd = ctx.saved_tensors
        wide, y = _wide(grad), _wide(y)
        inner = wide - wide.mean(ctx.dims, keepdim=True) - y * (wide * y).mean(ctx.dims, keepdim=True)
        return (_wide(rstd) * inner).to(grad.dtype), None, None


class RMSNorm(torch.autograd.Function):
    """y = x·r·w with r = 1/sqrt(mean(x²) + eps) (Zhang & Sennrich 2019, arXiv:1910.07467); keeps x alone."""

    @staticmethod
    def forward(ctx, x, layer, fetch):
        ctx.layer, ctx.fetch = layer, fetch
        ctx.save_for_backward(x)
        with fetch(layer, x) as (weight, _):
            return F.rms_norm(x, layer.normalized_shape, weight, layer.eps)

    @staticmethod
    def backward(ctx, grad):
        layer, x = ctx.layer, ctx.saved_tensors[0]
        dims = tuple(range(-len(layer.normalized_shape), 0))
        eps = torch.finfo(x.dtype).eps if layer.eps is None else layer.eps
        with ctx.fetch(layer, x) as (weight, _):
            grad = _wide(grad) if weight is None else _wide(grad) * _wide(weight)
        wide = _wide(x)
        r = (wide.square().mean(dims, keepdim=True) + eps).rsqrt()
        return (r * grad - wide * r ** 3 * (grad * wide).mean(dims, keepdim=True)).to(x.dtype), None, None


def _as(t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return t.to(dtype)


def as_it_lies(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the layer's function computes, in operations that torch's compiler knows, with the weight where it lies. A weight in another dtype is cast
    again in backward: the compiler would keep the copy."""
    cast = lambda t: t if t is None or t.dtype == x.dtype else checkpoint(_as, t, x.dtype, use_reentrant=False, preserve_rng_state=False)
    weight, bias = cast(layer.weight), cast(getattr(layer, "bias", None))
    if isinstance(layer, torch.nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(layer, torch.nn.Conv2d):
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    if isinstance(layer, torch.nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
    if isinstance(layer, torch.nn.LayerNorm):
        x = x if layer.elementwise_affine else x.clone()  # see _PlainLayerNorm; the compiler makes no copy of it
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    return F.rms_norm(x, layer.normalized_shape, weight, layer.eps)


def function_for(layer: torch.nn.Module) -> type[torch.autograd.Function] | None:
    """The frozen function that equals this layer's forward, or None where only its own forward will do."""
    if isinstance(layer, torch.nn.Linear):
        return _Linear
    if isinstance(layer, torch.nn.Conv2d):
        return _Conv2d if layer.padding_mode == "zeros" and not isinstance(layer.padding, str) else None
    if isinstance(layer, torch.nn.GroupNorm):
        return _GroupNorm
    if isinstance(layer, torch.nn.LayerNorm):
        return _LayerNorm if layer.elementwise_affine else _PlainLayerNorm
    if isinstance(layer, torch.nn.RMSNorm):
        return RMSNorm
    return None
