"""Drawn shapes with captions, and the plain pixel check that judges generated ones.

The toy base is trained on these pictures and scored by `read`, which knows nothing of any model: it names the
background, the colour and the shape it sees from the pixels alone.
"""
from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64  # pixels, the side of every toy picture
COLOURS = {
    "red": (215, 35, 35), "green": (35, 150, 55), "blue": (35, 65, 215), "yellow": (250, 220, 45),
    "orange": (245, 135, 20), "purple": (125, 40, 165), "cyan": (55, 205, 220), "pink": (250, 150, 195),
    "black": (20, 20, 20), "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
CONCEPT = "star"  # never drawn for the base: what the demo teaches
SIZES = {"small": (13, 16), "": (17, 20), "large": (22, 25)}  # half the side, in pixels


@dataclass(frozen=True)
class Scene:
    """One picture in words: what is drawn, in which colour, on which background, how large."""

    colour: str
    shape: str
    background: str
    size: str = ""

    @property
    def caption(self) -> str:
        noun = " ".join(word for word in (self.size, self.colour, self.shape) if word)
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun} on {'an' if self.background[0] in 'aeiou' else 'a'} {self.background} background"


def scenes(shapes: tuple[str, ...] = SHAPES) -> list[Scene]:
    """Every colour, shape and background that can be told apart, in a fixed order."""
    return [Scene(c, s, b) for c, s, b in itertools.product(COLOURS, shapes, COLOURS) if c != b]


def split(held_out: int = 200, seed: int = 7) -> tuple[list[Scene], list[Scene]]:
    """(trained, held out): the held-out triples are never drawn for the base, in any size."""
    everything = scenes()
    random.Random(seed).shuffle(everything)
    return everything[held_out:], everything[:held_out]


def _outline(shape: str, cx: float, cy: float, r: float) -> list[tuple[float, float]]:
    if shape == "square":
        corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    elif shape == "triangle":
        corners = [(0, -1), (1, 1), (-1, 1)]
    elif shape == "diamond":
        corners = [(0, -1), (1, 0), (0, 1), (-1, 0)]
    elif shape == "cross":
        a = 0.36
        corners = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
    elif shape == "star":
        corners = []
        for i in range(10):
            radius = 1.12 if i % 2 == 0 else 0.45
            angle = -math.pi / 2 + i * math.pi / 5
            corners.append((radius * math.cos(angle), radius * math.sin(angle) + 0.1))
    else:
        raise ValueError(f"shape {shape!r} is unknown: it is one of {', '.join((*SHAPES, CONCEPT))}")
    return [(cx + x * r, cy + y * r) for x, y in corners]


def _mask(shape: str, cx: float, cy: float, r: float, size: int = SIZE, supersample: int = 4) -> np.ndarray:
    """Coverage (size, size) in 0..1 of the shape of half-side r around (cx, cy), all in pixels."""
    k = supersample
    image = Image.new("L", (size * k, size * k), 0)
    draw = ImageDraw.Draw(image)
    box = [(cx - r) * k, (cy - r) * k, (cx + r) * k, (cy + r) * k]
    if shape in ("circle", "ring"):
        draw.ellipse(box, fill=255)
        if shape == "ring":
            hole = 0.5 * r
            draw.ellipse([(cx - hole) * k, (cy - hole) * k, (cx + hole) * k, (cy + hole) * k], fill=0)
    else:
        draw.polygon([(x * k, y * k) for x, y in _outline(shape, cx, cy, r)], fill=255)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255.0


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """The scene as an RGB picture of SIZE², with a little freedom in place, size and tint."""
    r = rng.uniform(*SIZES[scene.size])
    room = SIZE / 2 - r - 2
    cx, cy = (SIZE / 2 + rng.uniform(-1, 1) * min(5, room) for _ in "xy")
    tint = lambda name: np.clip([c + rng.gauss(0, 5) for c in COLOURS[name]], 0, 255)  # noqa: E731
    alpha = _mask(scene.shape, cx, cy, r)[..., None]
    pixels = alpha * tint(scene.colour) + (1 - alpha) * tint(scene.background)
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def _name(rgb: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: float(np.square(np.asarray(COLOURS[name], dtype=np.float32) - rgb).sum()))


def _fits(mask: np.ndarray) -> dict[str, float]:
    """Intersection over union of the mask with each shape drawn into the mask's own bounding box."""
    ys, xs = np.nonzero(mask)
    box = Image.fromarray((mask * 255).astype(np.uint8)).crop((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    seen = np.asarray(box.resize((48, 48), Image.Resampling.BOX), dtype=np.float32) > 127
    fits = {}
    for shape in SHAPES:
        ideal = _mask(shape, 32, 32, 22) > 0.5
        iy, ix = np.nonzero(ideal)
        crop = Image.fromarray((ideal[iy.min():iy.max() + 1, ix.min():ix.max() + 1] * 255).astype(np.uint8))
        ideal = np.asarray(crop.resize((48, 48), Image.Resampling.BOX), dtype=np.float32) > 127
        fits[shape] = float((seen & ideal).sum() / (seen | ideal).sum())
    return fits


def _points(mask: np.ndarray, sectors: int = 72) -> dict[int, float]:
    """How strongly the outline has 3, 4, 5, 6 points: harmonics of its radius around the centre, over the mean radius."""
    ys, xs = np.nonzero(mask)
    dy, dx = ys - ys.mean(), xs - xs.mean()
    sector = ((np.arctan2(dy, dx) + np.pi) / (2 * np.pi) * sectors).astype(int) % sectors
    radius = np.zeros(sectors)
    np.maximum.at(radius, sector, np.hypot(dy, dx))
    found = np.abs(np.fft.rfft(radius)) * 2 / sectors / radius.mean()
    return {points: float(found[points]) for points in (3, 4, 5, 6)}


def read(image: Image.Image, at_least: float = 0.72) -> Scene | None:
    """What the picture shows by its pixels, or None where no shape fits its silhouette by `at_least` (IoU).

    Background: the median colour of the 4-pixel border. Foreground: the pixels nearer to the strongest other
    colour than to the background. Shape: a star where the outline has five points above all (a drawn one has
    0.4, the other shapes at most 0.05), else the best intersection over union in the silhouette's own box.
    """
    pixels = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
    border = np.concatenate([pixels[:4].reshape(-1, 3), pixels[-4:].reshape(-1, 3), pixels[:, :4].reshape(-1, 3), pixels[:, -4:].reshape(-1, 3)])
    back = np.median(border, axis=0)
    distance = np.sqrt(np.square(pixels - back).sum(-1))
    if (distance > 60).sum() < 80:
        return None
    front = np.median(pixels[distance > 0.7 * np.percentile(distance, 98)], axis=0)
    mask = np.square(pixels - front).sum(-1) < np.square(pixels - back).sum(-1)
    points = _points(mask)
    if points[5] >= 0.15 and points[5] == max(points.values()):
        return Scene(_name(front), CONCEPT, _name(back))
    fits = _fits(mask)
    shape = max(fits, key=fits.get)
    return Scene(_name(front), shape, _name(back)) if fits[shape] >= at_least else None


def right(image: Image.Image, scene: Scene) -> bool:
    """Whether the picture shows the scene's colour, shape and background (its size is left free)."""
    seen = read(image)
    return seen is not None and (seen.colour, seen.shape, seen.background) == (scene.colour, scene.shape, scene.background)
