"""Convolutions of small pictures on the CPU as one matrix product.

torch's own (oneDNN) brings a weight into a layout of its own at every call: where the weight is large and the picture small that takes longer than
the convolution. A product takes the weight as it lies. Of SD1.5's convolutions at 256x256 those of 8x8 cells and below, and the largest weights' of
16x16: up to 5 times as fast in fp32, up to 8 in bf16.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F

from . import product

MOST_CELLS = 256  # of the output, over the batch: above it oneDNN is as fast or faster
LEAST_WEIGHT = 2**18  # values: below it nothing is gained
FEW_CELLS, LARGE_WEIGHT = 64, 2**25  # above so many cells only weights of more bytes: a copy of a smaller one comes out of memory that the process has
LEAST_IN_BF16 = 2**16  # values of the weight for each cell, where windows are gathered: that gains nothing by bf16, oneDNN's convolution much


def as_product(layer: torch.nn.Conv2d, shape: torch.Size, like: torch.Tensor) -> bool:
    """Whether that layer, on demand and not plain (on_demand.py), is faster as a matrix product on an input of that shape (B, C, H, W)."""
    if "loom_fetch" not in layer.__dict__ or like.device.type != "cpu" or not like.is_floating_point() or like.dtype == torch.float16 or len(shape) != 4:
        return False
    if layer.groups != 1 or layer.dilation != (1, 1):
        return False
    if wrong_in_torch(layer, shape, like):
        return True
    if layer.weight.numel() < LEAST_WEIGHT:
        return False
    rows, columns = _sides(layer, shape)
    cells = shape[0] * rows * columns
    if not (0 < cells <= MOST_CELLS and rows > 0):
        return False
    if layer.kernel_size == (1, 1):  # no windows are gathered
        return True
    if like.dtype == torch.bfloat16:
        return layer.weight.numel() >= LEAST_IN_BF16 * cells
    return cells <= FEW_CELLS or layer.weight.numel() * like.dtype.itemsize > LARGE_WEIGHT


def wrong_in_torch(layer: torch.nn.Conv2d, shape: torch.Size, like: torch.Tensor) -> bool:
    """Whether torch's own convolution gives something else: its steps are wider than one cell, the output is one cell wide, and oneDNN takes the CPU's
    AMX instructions for bf16 (seen in torch 2.11): SD1.5's last one on pictures 64 pixels wide."""
    if like.device.type != "cpu" or like.dtype != torch.bfloat16 or layer.stride[1] == 1 or len(shape) != 4:
        return False
    rows, columns = _sides(layer, shape)
    return rows > 0 and columns == 1


def _sides(layer: torch.nn.Conv2d, shape: torch.Size) -> tuple[int, int]:
    """(height, width) of the output."""
    return tuple((shape[2 + i] + 2 * layer.padding[i] - layer.kernel_size[i]) // layer.stride[i] + 1 for i in (0, 1))


def conv2d(layer: torch.nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """F.conv2d with that layer's settings."""
    if not as_product(layer, x.shape, x):
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    (b, c), (h, w), (kh, kw), (up, left) = x.shape[:2], _sides(layer, x.shape), layer.kernel_size, layer.padding
    x = F.pad(x, (left, left, up, up)) if up or left else x
    sb, sc, sy, sx = x.stride()
    windows = x.as_strided((b, h, w, c, kh, kw), (sb, sy * layer.stride[0], sx * layer.stride[1], sc, sy, sx)).reshape(b * h * w, c * kh * kw)
    return product.linear(windows, weight.flatten(1), bias).view(b, h, w, -1).permute(0, 3, 1, 2).contiguous()


def conv2d_input(layer: torch.nn.Conv2d, shape: torch.Size, weight: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """The gradient with respect to the input of that shape (torch.nn.grad.conv2d_input)."""
    if not as_product(layer, shape, grad):
        return torch.nn.grad.conv2d_input(shape, weight.to(grad.dtype), grad, layer.stride, layer.padding, layer.dilation, layer.groups)
    b, c, height, width = shape
    (h, w), (kh, kw), (sy, sx), (up, left) = grad.shape[2:], layer.kernel_size, layer.stride, layer.padding
    windows = product.back(grad.permute(0, 2, 3, 1).reshape(b * h * w, -1), weight.flatten(1), wide=True)
    windows = windows.view(b, h, w, c, kh, kw).permute(4, 5, 0, 1, 2, 3).contiguous()
    padded = windows.new_zeros(b, height + 2 * up, width + 2 * left, c, dtype=torch.promote_types(grad.dtype, torch.float32))  # sums of kh * kw
    for i in range(kh):
        for j in range(kw):
            padded[:, i:i + sy * h:sy, j:j + sx * w:sx] += windows[i, j]
    return padded[:, up:up + height, left:left + width].permute(0, 3, 1, 2).to(grad.dtype, memory_format=torch.contiguous_format)
