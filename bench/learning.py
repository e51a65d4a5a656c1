"""Does every optimizer, adapter and loss learn? Steps until the toy base draws stars and still draws the rest, in one table.

`python bench/learning.py` trains each case as `lora-loom demo` does, scores it every so many steps by the demo's own marks, and stops it where
they are met. No ComfyUI is needed. `--only lora dora` picks cases, `--write` appends the table to bench/RESULTS.md.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lora_loom.trainer import attempts, job, samples
from lora_loom.trainer.adapters import evaluating
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.data.folder import read_dataset
from lora_loom.trainer.toy import arch, demo, shapes, stars
from lora_loom.trainer.toy.make_base import sample
from report import at_least, heading, table, write

PRESENT, STILL = 0.8, 0.9  # the demo's marks


def case(**parts: dict[str, Any]) -> LoomConfig:
    """The demo's own configuration at a constant rate, with these changes: a schedule that ends would hide when a case is ready."""
    plain = demo.CONFIG.replace(optim={"scheduler": "constant_with_warmup"}, samples={"sample_prompts": ("a red star on a blue background",)})
    return plain.replace(**parts)


CASES: dict[str, LoomConfig] = {
    "the demo": case(),
    # of rank 64: it keeps smaller tensors in 32 bits
    "adamw8bit, rank 64": case(adapter={"rank": 64, "alpha": 64.0}, optim={"optimizer": "adamw8bit", "learning_rate": 1e-3}),
    "adafactor": case(optim={"optimizer": "adafactor"}),
    "lion": case(optim={"optimizer": "lion", "learning_rate": 3e-4}),
    "prodigy": case(optim={"optimizer": "prodigy", "learning_rate": 1.0, "scheduler": "constant", "warmup_steps": 0}),
    "schedule_free_adamw": case(optim={"optimizer": "schedule_free_adamw", "learning_rate": 5e-3, "scheduler": "constant"}),
    "dora": case(adapter={"algorithm": "dora"}),
    "rslora": case(adapter={"algorithm": "rslora"}, optim={"learning_rate": 1e-3}),
    "loha": case(adapter={"algorithm": "loha"}, optim={"learning_rate": 4e-3}),
    "lokr": case(adapter={"algorithm": "lokr"}, optim={"learning_rate": 4e-3}),
    "oft": case(adapter={"algorithm": "oft"}, optim={"learning_rate": 3e-4}),
    "attention alone": case(adapter={"targets": "attention"}),
    "text encoder too": case(adapter={"train_text_encoder": True}, optim={"text_encoder_lr": 5e-4}),
    "moving average": case(optim={"ema_decay": 0.98}),
    "no weighting": case(loss={"weighting": "none"}),
    "debiased": case(loss={"weighting": "debiased"}, optim={"learning_rate": 1e-3}),
    "p2": case(loss={"weighting": "p2"}),
    "huber": case(loss={"loss_type": "huber"}),
    "noise offset": case(loss={"noise_offset": 0.05}),
    "multires noise": case(loss={"multires_noise_discount": 0.3}),
    "input perturbation": case(loss={"input_perturbation": 0.1}),
}


class Scored(samples.Samples):
    """In place of pictures, the demo's scores."""

    scores: list[tuple[int, float, float]] = []
    known: list[shapes.Scene] = []

    def draw(self, state) -> None:
        if not state.step:
            return
        concept, _ = demo.prompts()
        with torch.random.fork_rng(), torch.no_grad(), evaluating(state.adapters), state.shown():
            drawn = [pictures(self.model, scenes) for scenes in (concept, self.known)]
        self.model.release_encoders(text_encoders=False)
        present = sum(demo._is_star(image) for image in drawn[0]) / len(concept)
        still = sum(shapes.right(image, scene) for image, scene in zip(drawn[1], self.known)) / len(self.known)
        self.scores.append((state.step, present, still))


def pictures(model: backbone.DiffusersModel, scenes: list[shapes.Scene]) -> list:
    return sample(model.unet, model.text_encoders[0], model.vae.to(model.device), [s.caption for s in scenes],
                  steps=demo.SAMPLING_STEPS, cfg=demo.CFG, seed=demo.SEED)


def run(name: str, folder: Path, every: int, most: int) -> list[str]:
    """A row of the table: what was trained, steps until the marks were met, the scores there, seconds."""
    Scored.scores, started = [], time.monotonic()
    config = CASES[name].replace(train={"steps": most}, samples={"sample_steps": every})
    model = backbone.load(arch.NAME)
    dataset = read_dataset(stars.write(folder / "stars"), resolution=arch.SIZE, min_size=arch.SIZE, trigger_word=shapes.CONCEPT)
    met = lambda: bool(Scored.scores) and Scored.scores[-1][1] >= PRESENT and Scored.scores[-1][2] >= STILL
    result = job.train(model, dataset, config, loras_folder=folder / "loras", runs_folder=folder / "runs",
                       hooks=job.Hooks(should_stop=met))
    step, present, still = Scored.scores[-1] if met() else max(Scored.scores, key=lambda s: min(s[1] / PRESENT, s[2] / STILL))
    reached = str(step) if met() else f"not in {most} (best at {step})"
    print(f"{name}: {reached}, stars {present:.0%}, others {still:.0%}; {Scored.scores}", file=sys.stderr, flush=True)
    size = result.path.stat().st_size / 1024
    return [name, f"{config.optim.learning_rate:g}", reached, f"{present:.0%}", f"{still:.0%}", f"{size:.0f}", f"{time.monotonic() - started:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--every", type=at_least(1), default=50, help="steps between two scores")
    parser.add_argument("--steps", type=at_least(1), default=600, help="at most")
    parser.add_argument("--write", action="store_true", help="append the table to bench/RESULTS.md")
    given = parser.parse_args()
    attempts.Samples = Scored
    base = backbone.load(arch.NAME)
    with torch.no_grad():
        others = demo.prompts()[1]
        Scored.known = [scene for image, scene in zip(pictures(base, others), others) if shapes.right(image, scene)]
    with tempfile.TemporaryDirectory() as folder:
        rows = [run(name, Path(folder) / str(number), given.every, given.steps) for number, name in enumerate(given.only)]
    head = ["case", "learning rate", "steps until the marks are met", "stars drawn as stars", "other captions still right", "file, KiB", "seconds in all"]
    about = (f"**Learning**, toy base, twenty stars, batch 4 with preservation; marks: at least {PRESENT:.0%} of {demo.CONCEPTS} stars in new colours, "
             f"and {STILL:.0%} of {len(Scored.known)} other captions, scored every {given.every} steps")
    write([*heading("python bench/learning.py"), about, table(head, *rows)], given.write)


if __name__ == "__main__":
    main()
