"""Convolutions of small pictures on the CPU as one matrix product.

torch's own (oneDNN) brings a weight into a layout of its own at every call: where the weight is large and the picture small that takes longer than
the convolution. A product takes the weight as it lies. Of SD1.5's convolutions at 256x256 those of 16x16 cells and below: 1.3 to 5 times as fast.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F

MOST_CELLS = 256  # of the output, over the batch: above it oneDNN is as fast or faster
LEAST_WEIGHT = 2**18  # values: below it nothing is gained


def as_product(layer: torch.nn.Conv2d, shape: torch.Size, like: torch.Tensor) -> bool:
    """Whether that layer, on demand and not plain (on_demand.py), is faster as a matrix product on an input of that shape (B, C, H, W)."""
    if "loom_fetch" not in layer.__dict__ or like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64) or len(shape) != 4:
        return False
    if layer.groups != 1 or layer.dilation != (1, 1) or layer.kernel_size == (1, 1) or layer.weight.numel() < LEAST_WEIGHT:
        return False
    rows, columns = _sides(layer, shape)
    return 0 < shape[0] * rows * columns <= MOST_CELLS and rows > 0


def _sides(layer: torch.nn.Conv2d, shape: torch.Size) -> tuple[int, int]:
    """(height, width) of the output."""
    return tuple((shape[2 + i] + 2 * layer.padding[i] - layer.kernel_size[i]) // layer.stride[i] + 1 for i in (0, 1))


def conv2d(layer: torch.nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """F.conv2d with that layer's settings."""
    if not as_product(layer, x.shape, x):
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    (b, c), (h, w), (kh, kw), (up, left) = x.shape[:2], _sides(layer, x.shape), layer.kernel_size, layer.padding
    x = F.pad(x, (left, left, up, up)) if up or left else x
    sb, sc, sy, sx = x.stride()
    windows = x.as_strided((c, kh, kw, b, h, w), (sc, sy, sx, sb, sy * layer.stride[0], sx * layer.stride[1])).reshape(c * kh * kw, b * h * w)
    flat = weight.reshape(len(weight), -1)
    y = flat @ windows if bias is None else torch.addmm(bias[:, None], flat, windows)
    return y.view(-1, b, h, w).transpose(0, 1).contiguous()


def conv2d_input(layer: torch.nn.Conv2d, shape: torch.Size, weight: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """The gradient with respect to the input of that shape (torch.nn.grad.conv2d_input)."""
    if not as_product(layer, shape, grad):
        return torch.nn.grad.conv2d_input(shape, weight, grad, layer.stride, layer.padding, layer.dilation, layer.groups)
    b, c, height, width = shape
    (h, w), (kh, kw), (sy, sx), (up, left) = grad.shape[2:], layer.kernel_size, layer.stride, layer.padding
    windows = weight.reshape(len(weight), -1).t() @ grad.transpose(0, 1).reshape(len(weight), -1)
    windows = windows.view(c, kh, kw, b, h, w)
    padded = grad.new_zeros(c, b, height + 2 * up, width + 2 * left)
    for i in range(kh):
        for j in range(kw):
            padded[:, :, i:i + sy * h:sy, j:j + sx * w:sx] += windows[:, i, j]
    return padded[:, :, up:up + height, left:left + width].transpose(0, 1).contiguous()
