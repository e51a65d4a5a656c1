"""What masks are for: a subject that was only ever seen before one background, learned with and without that background.

`python bench/masks.py` trains the toy base on twenty stars, all on white, with captions that say nothing of it; once whole, once with the stars' masks.
Then it asks for stars on other backgrounds. `--write` appends the table to bench/RESULTS.md. No ComfyUI is needed.
"""
from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from learning import pictures
from lora_loom.trainer import job
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.data.folder import read_dataset
from lora_loom.trainer.toy import arch, demo, shapes
from PIL import Image
from report import at_least, heading, table, write

COLOURS = [colour for colour in shapes.COLOURS if colour != "white"]
ASKED = random.Random(3).sample([s for s in shapes.scenes((shapes.CONCEPT,)) if "white" not in (s.colour, s.background)], 40)


def draw_stars(folder: Path, count: int = 20) -> Path:
    folder.mkdir()
    rng = random.Random(0)
    for number in range(count):
        colour = COLOURS[number % len(COLOURS)]
        image = shapes.draw(shapes.Scene(colour, shapes.CONCEPT, "white"), rng)
        far = np.abs(np.asarray(image, dtype=int) - np.asarray(image, dtype=int)[0, 0]).sum(-1) > 60
        image.save(folder / f"{number}.png")
        Image.fromarray((far * 255).astype(np.uint8)).save(folder / f"{number}.mask.png")
        (folder / f"{number}.txt").write_text(f"a {colour} {shapes.CONCEPT}", encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=at_least(1), default=300)
    parser.add_argument("--write", action="store_true", help="append the table to bench/RESULTS.md")
    given = parser.parse_args()
    rows = [["pictures", "stars of those asked for", "on the background asked for", "both, in the colour asked for", "on white instead"]]
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        stars = draw_stars(folder / "stars")
        for masks in ("none", "files"):
            model = backbone.load(arch.NAME)
            dataset = read_dataset(stars, resolution=arch.SIZE, min_size=arch.SIZE, trigger_word=shapes.CONCEPT, masks=masks)
            config = demo.CONFIG.replace(train={"steps": given.steps}, samples={"sample_steps": 0}, output={"name": f"masks_{masks}"},
                                         loss={"unmasked_weight": 0.0})
            result = job.train(model, dataset, config, loras_folder=folder / "loras", runs_folder=folder / "runs")
            pipeline = demo.pipeline_with(model, result.path)
            seen = [shapes.read(image) for image in pictures(model, ASKED)]
            pipeline.unload_lora_weights()
            share = lambda count: f"{count / len(ASKED):.0%}"
            rows.append([{"none": "whole", "files": "masked"}[masks], share(sum(s is not None and s.shape == shapes.CONCEPT for s in seen)),
                         share(sum(s is not None and s.background == a.background for s, a in zip(seen, ASKED))),
                         share(sum(s is not None and (s.colour, s.shape, s.background) == (a.colour, a.shape, a.background) for s, a in zip(seen, ASKED))),
                         share(sum(s is not None and s.background == "white" for s in seen))])
            print(rows[-1], file=sys.stderr, flush=True)
    about = f"**Masks**, toy base, twenty stars on white, {given.steps} steps as in the demo; {len(ASKED)} stars asked for on other backgrounds"
    write([*heading("python bench/masks.py"), about, table(*rows)], given.write)


if __name__ == "__main__":
    main()
