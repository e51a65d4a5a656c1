"""Sizes to train at: pictures of like shape share a size, so that they fit into one batch and little is cropped away.

Knows no model: the caller says which multiple of pixels its network needs (64 for SD1.5 and SDXL).
"""
from __future__ import annotations

import functools
import math
from dataclasses import dataclass

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


def bucket_for(width: int, height: int, resolution: int, multiple: int, buckets: bool, upscale: bool = False) -> tuple[int, int]:
    """The (width, height) to train a picture at: the nearest aspect ratio by its logarithm, or a square without `buckets`.

    A picture too small for that gets the largest smaller bucket that it covers without being enlarged, unless `upscale` asks for
    that. Only one that is smaller than a single multiple is enlarged in any case, to (multiple, multiple): no picture is dropped here.
    """
    aspect = math.log(width / height)
    for side in range(_side(resolution, multiple), 0, -multiple):
        sizes = _sizes(side, multiple) if buckets else ((side, side),)
        best = min(sizes, key=lambda size: (round(abs(math.log(size[0] / size[1]) - aspect), 9), -size[0] * size[1]))
        if upscale or best[0] <= width and best[1] <= height:
            return best
    return multiple, multiple


def sizes_for(width: int, height: int, resolutions: tuple[int, ...], multiple: int, buckets: bool, upscale: bool = False) -> list[tuple[int, int]]:
    """The bucket at each of the resolutions, each once: a picture too small for the larger ones has fewer."""
    return list(dict.fromkeys(bucket_for(width, height, resolution, multiple, buckets, upscale) for resolution in resolutions))


@dataclass(frozen=True)
class Window:
    """What is taken of a picture: `zoom` of the largest window of the bucket's shape (1: all of it), and where in the room that
    is left, 0 left or top to 1 right or bottom."""

    zoom: float = 1.0
    x: float = 0.5
    y: float = 0.5


def fit(image: Image.Image, size: tuple[int, int], window: Window = Window()) -> tuple[Image.Image, Sizes]:
    """(`image` scaled to cover `size` = (width, height) and cropped, by default to its centre; SDXL's six numbers for its time ids).

    These are original height and width, crop top and left in pixels of the scaled picture, target height and width
    (Podell et al. 2023, arXiv:2307.01952, section 2.2). `image` is RGB; Lanczos with antialiasing. A window is never so
    small that the picture would be enlarged for its sake.
    """
    width, height = size
    scale = max(width / image.width, height / image.height)
    scale = max(scale, min(1.0, scale / window.zoom))
    scaled_width, scaled_height = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = int((scaled_width - width) * window.x), int((scaled_height - height) * window.y)
    # Scaling only what stays gives the same pixels, and a 20x30000 picture does not fill the memory first.
    x, y = image.width / scaled_width, image.height / scaled_height
    box = (left * x, top * y, min(image.width, (left + width) * x), min(image.height, (top + height) * y))
    fitted = image.resize(size, Image.Resampling.LANCZOS, box=box)
    return fitted, (image.height, image.width, top, left, height, width)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB picture as float32 (3, H, W) in 0..1."""
    values = np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
