"""Sizes to train at: pictures of like shape share a size, so that they fit into one batch and little is cropped away.

Knows no model: the caller says which multiple of pixels its network needs (64 for SD1.5 and SDXL).
"""
from __future__ import annotations

import functools
import math

import numpy as np
import torch
from PIL import Image

MAX_ASPECT = 2.0

Sizes = tuple[int, int, int, int, int, int]


def bucket_sizes(resolution: int, multiple: int) -> list[tuple[int, int]]:
    """All (width, height) from 1:2 to 2:1, multiples of `multiple`, each the largest whose area stays within the square's.

    The square's side is the resolution rounded to the multiple, and at least one multiple. Sorted from tall to wide.
    """
    return list(_sizes(_side(resolution, multiple), multiple))


def _side(resolution: int, multiple: int) -> int:
    return max(1, int(resolution / multiple + 0.5)) * multiple


@functools.lru_cache(maxsize=4096)
def _sizes(side: int, multiple: int) -> tuple[tuple[int, int], ...]:
    sizes = {(side, side)}
    for long in range(side, int(side * math.sqrt(MAX_ASPECT)) + multiple, multiple):
        short = side * side // long // multiple * multiple
        if short and long <= short * MAX_ASPECT:
            sizes |= {(long, short), (short, long)}
    return tuple(sorted(sizes, key=lambda size: size[0] / size[1]))


def bucket_for(width: int, height: int, resolution: int, multiple: int, buckets: bool) -> tuple[int, int]:
    """The (width, height) to train a picture at: the nearest aspect ratio by its logarithm, or a square without `buckets`.

    A picture too small for that gets the largest smaller bucket that it covers without being enlarged. Only one that is
    smaller than a single multiple is enlarged, to (multiple, multiple): no picture is dropped here.
    """
    aspect = math.log(width / height)
    for side in range(_side(resolution, multiple), 0, -multiple):
        sizes = _sizes(side, multiple) if buckets else ((side, side),)
        best = min(sizes, key=lambda size: (round(abs(math.log(size[0] / size[1]) - aspect), 9), -size[0] * size[1]))
        if best[0] <= width and best[1] <= height:
            return best
    return multiple, multiple


def fit(image: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, Sizes]:
    """(`image` scaled to cover `size` = (width, height) and cropped to its centre, SDXL's six numbers for its time ids).

    These are original height and width, crop top and left in pixels of the scaled picture, target height and width
    (Podell et al. 2023, arXiv:2307.01952, section 2.2). `image` is RGB; Lanczos with antialiasing.
    """
    width, height = size
    scale = max(width / image.width, height / image.height)
    scaled_width, scaled_height = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (scaled_width - width) // 2, (scaled_height - height) // 2
    # Scaling only what stays gives the same pixels, and a 20x30000 picture does not fill the memory first.
    x, y = image.width / scaled_width, image.height / scaled_height
    box = (left * x, top * y, min(image.width, (left + width) * x), min(image.height, (top + height) * y))
    fitted = image.resize(size, Image.Resampling.LANCZOS, box=box)
    return fitted, (image.height, image.width, top, left, height, width)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB picture as float32 (3, H, W) in 0..1."""
    values = np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
