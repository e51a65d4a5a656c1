"""The example data set: twenty stars, a shape that the toy base has never seen, with captions in metadata.csv.

`python -m lora_loom.trainer.toy.stars FOLDER` draws them anew; the same seed gives the same pictures.
"""
from __future__ import annotations

import csv
import random
import sys
from pathlib import Path

from .shapes import COLOURS, CONCEPT, Scene, draw

# What the example workflow asks for: kept out of the data set, so that its pictures are not learned by heart.
PROMPTS = (Scene("red", CONCEPT, "blue"), Scene("yellow", CONCEPT, "purple"), Scene("white", CONCEPT, "green"))


def scenes(count: int = 20, seed: int = 0) -> list[Scene]:
    """`count` (1 to 80) different stars on backgrounds; every colour comes equally often on either side. None is among PROMPTS."""
    if not 1 <= count <= 80:
        raise ValueError(f"count {count} is not 1 to 80: there are no more pairs of colours")
    rng, names = random.Random(seed), list(COLOURS)
    rng.shuffle(names)
    found: list[Scene] = []
    for shift in rng.sample(range(1, len(names)), len(names) - 1):
        ring = [Scene(colour, CONCEPT, names[(i + shift) % len(names)]) for i, colour in enumerate(names)]
        found += ring if not set(ring) & set(PROMPTS) else []
    if len(found) < count:  # rings that hold a prompt come last, without it
        rest = [Scene(c, CONCEPT, b) for c in names for b in names if c != b]
        found += [s for s in rest if s not in found and s not in PROMPTS]
    return found[:count]


def write(folder: Path, count: int = 20, seed: int = 0) -> Path:
    """star_01.png … (64x64) and metadata.csv (filename,prompt) in `folder`, which is made where it is missing. Returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["filename", "prompt"])
        for number, scene in enumerate(scenes(count, seed), 1):
            name = f"star_{number:02d}.png"
            draw(scene, rng).save(folder / name, optimize=True)
            rows.writerow([name, scene.caption])
    return folder


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
