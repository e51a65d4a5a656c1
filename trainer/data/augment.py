"""The same picture a little otherwise: mirrored, cut elsewhere, turned, in other light. Everything is drawn from the seed and
the picture's bytes, so that a variant can be encoded once and kept.
"""
from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageEnhance

from ..errors import LoomError
from .buckets import Sizes, Window, fit

LIMITS = {"flip": 1.0, "crop": 0.5, "rotation": 15.0, "brightness": 0.5, "contrast": 0.5, "hue": 180.0}


@dataclass(frozen=True)
class Augmentation:
    """How far a variant may go; 0 switches a kind off.

    flip: share of the variants that are mirrored. crop: up to this share of each side is cut away, anywhere. rotation: degrees to
    either side. brightness, contrast: a factor of 1 ± this. hue: degrees around the colour circle, to either side. variants: of
    each picture, the first of which is the picture as it is.
    """

    flip: float = 0.0
    crop: float = 0.0
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    hue: float = 0.0
    variants: int = 4
    seed: int = 0

    def check(self) -> Augmentation:
        """LoomError for a value out of its range; returns self."""
        for name, high in LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
                raise LoomError(f"{name} {value!r} is not between 0 and {high:g}: AugmentDataset.{name} takes 0 (off) to {high:g}")
        if isinstance(self.variants, bool) or not isinstance(self.variants, int) or not 1 <= self.variants <= 64:
            raise LoomError(f"variants {self.variants!r} is no whole number from 1 to 64: AugmentDataset.variants takes 1 to 64; each is encoded and kept")
        return self

    @property
    def active(self) -> bool:
        return self.variants > 1 and any(getattr(self, name) for name in LIMITS)

    def view(self, digest: str, number: int) -> View:
        """Variant `number` of the picture of that digest; 0 is the picture as it is."""
        if not number:
            return View()
        chance = random.Random(hashlib.sha256(f"{self.seed}:{digest}:{number}".encode()).digest())
        near = lambda reach: chance.uniform(-reach, reach)
        return View(chance.random() < self.flip, near(self.rotation), Window(1 - chance.uniform(0, self.crop), *(_inside(chance, self.crop) for _ in "xy")),
                    1 + near(self.brightness), 1 + near(self.contrast), near(self.hue))

    def words(self) -> str:
        """Strengths that are not off, for a report."""
        told = {"flip": f"flip {self.flip:g}", "crop": f"crop {self.crop:g}", "rotation": f"rotation {self.rotation:g}",
                "brightness": f"brightness {self.brightness:g}", "contrast": f"contrast {self.contrast:g}", "hue": f"hue {self.hue:g}"}
        return ", ".join(text for name, text in told.items() if getattr(self, name))


def _inside(chance: random.Random, crop: float) -> float:
    """Where the window lies; in the middle where nothing is cropped at random."""
    place = chance.random()
    return place if crop else 0.5


@dataclass(frozen=True)
class View:
    """One picture as it is trained on."""

    mirrored: bool = False
    angle: float = 0.0  # degrees
    window: Window = Window()
    brightness: float = 1.0
    contrast: float = 1.0
    hue: float = 0.0  # degrees

    def of(self, image: Image.Image, size: tuple[int, int], colours: bool = True) -> tuple[Image.Image, Sizes]:
        """The RGB picture at `size` = (width, height), and SDXL's six numbers. Without `colours` for what goes with it, such as a mask."""
        original = image.size
        fitted, numbers = fit(_turned(image, self.angle), size, self.window)
        if self.mirrored:
            fitted = fitted.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if colours:
            fitted = self._coloured(fitted)
        return fitted, (original[1], original[0], *numbers[2:])

    def _coloured(self, image: Image.Image) -> Image.Image:
        if self.brightness != 1:
            image = ImageEnhance.Brightness(image).enhance(self.brightness)
        if self.contrast != 1:
            image = ImageEnhance.Contrast(image).enhance(self.contrast)
        if self.hue:
            hue, saturation, value = image.convert("HSV").split()
            turn = round(self.hue / 360 * 256)
            image = Image.merge("HSV", (hue.point([(i + turn) % 256 for i in range(256)]), saturation, value)).convert("RGB")
        return image


def _turned(image: Image.Image, angle: float) -> Image.Image:
    """The picture turned about its middle, and the largest upright part of its own shape that has no empty corner."""
    if not angle:
        return image
    width, height = image.size
    sine, cosine = abs(math.sin(math.radians(angle))), abs(math.cos(math.radians(angle)))
    share = min(width / (width * cosine + height * sine), height / (width * sine + height * cosine))
    inner = max(1, math.floor(width * share) - 2), max(1, math.floor(height * share) - 2)  # what the filter mixes with the corners
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    return image.rotate(angle, Image.Resampling.BICUBIC).crop((left, top, left + inner[0], top + inner[1]))
