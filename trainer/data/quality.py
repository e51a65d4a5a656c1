"""What can be measured of one picture: how sharp, how exposed, and what it looks like, so that copies of it are found.

Knows neither folders nor thresholds: `report.py` judges, and `measured.py` goes through a whole dataset.
"""
from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from . import pictures

VERSION = 1  # of what is measured and how: older measurements are made anew
_HASH, _DCT, _THUMB = 8, 32, 8  # sides: of the hash's coefficients, of the picture they are from, of the thumbnail
_TILES, _TILE = 4, 96  # at most so many a side, of at least so many pixels
_CONTRAST = 8.0  # a tile whose luma spreads less (standard deviation, of 255) holds nothing that could be sharp
_BOX = 11  # pixels of the second blur; Crete et al. found 9 to 11 to tell best


@dataclass(frozen=True)
class Measures:
    """blur: 0 sharp to 1 blurred, of the picture's sharpest part; None where there is nothing to see. dark, bright: below which value
    (0 to 255) 1 and 99 % of all red, green and blue are; contrast: how far these are apart in the channel where it is most. black,
    white: shares of pixels without any detail left. look, mirrored: 64-bit perceptual hashes of the picture and of its mirror image.
    thumbnail: 8x8 RGB bytes as hex."""

    blur: float | None
    dark: int
    bright: int
    contrast: int
    black: float
    white: float
    look: int
    mirrored: int
    thumbnail: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Any) -> Measures:
        """Inverse of `to_dict`. Raises TypeError or ValueError for anything else."""
        found = cls(**tree)
        if not (found.blur is None or isinstance(found.blur, float)) or len(bytes.fromhex(found.thumbnail)) != _THUMB * _THUMB * 3:
            raise ValueError("no measures")
        numbers = (found.dark, found.bright, found.contrast, found.black, found.white, found.look, found.mirrored)
        if not all(isinstance(n, (int, float)) and 0 <= n < 2**64 for n in numbers) or not all(isinstance(n, int) for n in numbers[-2:]):
            raise ValueError("no measures")
        return found


def measure(data: bytes, side: int) -> Measures:
    """Measures of a picture file's bytes, as it looks at an area of `side` x `side` pixels. Raises whatever Pillow raises."""
    image = reduced(data, side)
    luma = image.convert("L")
    levels = np.array(image.histogram()).reshape(3, 256)
    dark, bright = _percentiles(levels.sum(0))
    contrast = max(high - low for low, high in map(_percentiles, levels))
    shades = np.array(luma.histogram()) / (luma.width * luma.height)
    look, mirrored = perceptual_hash(luma)
    return Measures(blur(np.asarray(luma, dtype=np.float32)), dark, bright, contrast,
                    round(float(shades[:3].sum()), 4), round(float(shades[253:].sum()), 4), look, mirrored,
                    image.resize((_THUMB, _THUMB), Image.Resampling.BOX).tobytes().hex())


def _percentiles(levels: np.ndarray) -> tuple[int, int]:
    """The values below which 1 and 99 % of a histogram are."""
    low, high = np.searchsorted(levels.cumsum(), np.array([0.01, 0.99]) * levels.sum())
    return int(low), int(high)


def reduced(data: bytes, side: int) -> Image.Image:
    """The picture upright as RGB, at most of the area of `side` x `side`, never enlarged. JPEG is decoded at a fraction of its size where that does."""
    Image.init()
    with Image.open(io.BytesIO(data), formats=[f for f in pictures.FORMATS if f in Image.OPEN]) as image:
        if image.width * image.height > pictures.MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width}x{image.height} is above {pictures.MAX_PIXELS} pixels: make it smaller")
        enough = side / (image.width * image.height) ** 0.5
        image.draft(None, tuple(max(1, math.ceil(length * enough)) for length in image.size))
        image.load()
        try:
            image = ImageOps.exif_transpose(image)
        except Exception:  # a damaged EXIF block says nothing about the pixels
            image = image.copy()
    image, scale = pictures.as_rgb(image), min(1.0, side / (image.width * image.height) ** 0.5)
    size = tuple(max(1, round(length * scale)) for length in image.size)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def perceptual_hash(luma: Image.Image) -> tuple[int, int]:
    """(hash, hash of the mirror image), 64 bits each: which of the lowest 8x8 cosines of the picture in 32x32 are above their median.

    Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions"; the same bits as the library imagehash's phash.
    """
    small = np.asarray(luma.resize((_DCT, _DCT), Image.Resampling.LANCZOS), dtype=np.float64)
    low = (_COSINES @ small @ _COSINES.T).round(6)  # of a plain picture they are nothing but rounding
    mirrored = low * np.where(np.arange(_HASH) % 2, -1, 1)  # mirroring turns the sign of every odd cosine
    return tuple(int.from_bytes(np.packbits(one > np.median(one)).tobytes(), "big") for one in (low, mirrored))


def _cosines() -> np.ndarray:
    """The first 8 rows of the DCT-II of length 32."""
    return 2 * np.cos(np.pi * np.arange(_HASH)[:, None] * (2 * np.arange(_DCT) + 1) / (2 * _DCT))


_COSINES = _cosines()


def blur(luma: np.ndarray) -> float | None:
    """How blurred the sharpest part of a picture (H, W) is: 0 sharp to 1; None where no part has contrast.

    Crete et al. 2007, "The blur effect": a second blur takes much from a sharp edge and little from a blurred one. Unlike the
    variance of the Laplacian it hardly depends on what is shown. By tiles, for a soft background is no fault: the least counts.
    """
    if min(luma.shape) < _BOX:
        return None
    inner = (slice(2, -1), slice(2, -1))  # as scikit-image, for the border is half made up
    across, down = ([part[inner] for part in one] for one in (_lost(luma), [part.T for part in _lost(np.ascontiguousarray(luma.T))]))
    luma = luma[inner]
    height, width = luma.shape
    rows, columns = (np.linspace(0, n, min(_TILES, max(1, n // _TILE)) + 1).astype(int)[:-1] for n in (height, width))
    total = lambda values: np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1).astype(np.float64)
    pixels, sums = total(np.ones_like(luma)), total(luma)
    spread = np.sqrt(np.maximum(0, total(luma * luma) / pixels - (sums / pixels) ** 2))
    strength, gone = ([total(part) for part in parts] for parts in zip(across, down))
    kept = np.maximum(*(1 - lost / np.maximum(edges, 1e-9) for edges, lost in zip(strength, gone)))
    edges = np.where(spread >= _CONTRAST, sum(strength) / pixels, 0)
    found = kept[(edges > 0) & (edges >= edges.max() / 2)]  # in weaker ones there may be nothing but grain
    return round(float(found.min()), 4) if found.size else None


def _lost(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(strength of the edges from left to right, how much of it a blur in that direction takes), each (H, W)."""
    edges = np.abs(_sobel(luma))
    return edges, np.maximum(0, edges - np.abs(_sobel(_box(luma))))


def _box(luma: np.ndarray) -> np.ndarray:
    """Each pixel's mean with its five neighbours to the left and to the right; beyond its edge the picture goes on mirrored."""
    sums = np.pad(luma, ((0, 0), (_BOX // 2 + 1, _BOX // 2)), mode="symmetric").cumsum(axis=1, dtype=np.float64)
    return ((sums[:, _BOX:] - sums[:, :-_BOX]) / _BOX).astype(np.float32)


def _sobel(luma: np.ndarray) -> np.ndarray:
    """Differences from left to right, smoothed from top to bottom."""
    padded = np.pad(luma, 1, mode="symmetric")
    along = padded[:, 2:] - padded[:, :-2]
    return along[:-2] + 2 * along[1:-1] + along[2:]
