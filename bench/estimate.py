"""What was said before the start against what then came: memory of a step, and the time of a run.

`python bench/estimate.py` counts the bytes that tensors really hold in one step of SD1.5 at full size (random weights), with and without
checkpointing, and times whole runs of the toy base. `--only` does one of the two. Needs a ComfyUI for SD1.5's random checkpoint alone.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from bases import start_comfyui, write_random
from PIL import Image
from report import heading, table, write

CASES = [  # (pixels, batch, checkpointing, targets)
    (256, 1, False, "attention"), (512, 1, False, "attention"), (512, 1, True, "attention"), (384, 2, False, "all linear+conv"),
]


class Counted(Exception):
    """One step was looked at; there is no need for more."""


def memory(checkpoint: Path, folder: Path) -> str:
    from lora_loom.trainer import estimate, job, loop
    from lora_loom.trainer.backbones import diffusers as backbone
    from lora_loom.trainer.config import LoomConfig
    from lora_loom.trainer.data.folder import read_dataset
    from skimage import data

    pictures = folder / "pictures"
    pictures.mkdir()
    for number, pixels in enumerate((data.astronaut(), data.chelsea(), data.coffee(), data.rocket())):
        Image.fromarray(pixels).resize((512, 512)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text("a photo")
    whole, rows = loop.train, [["pixels", "batch", "checkpointing", "targets", "said, MiB", "held, MiB", "said / held", "asking took, s"]]
    for size, batch, checkpointing, targets in CASES:
        said, held = {}, []

        def one_step(state, objective, source, *_, held=held) -> None:
            held.append(estimate.peak(objective, next(source(0)), state))
            raise Counted

        asked, ask = [], estimate.memory

        def timed(*given, asked=asked, ask=ask):
            started = time.monotonic()
            answer = ask(*given)
            asked.append(time.monotonic() - started)
            return answer

        loop.train, estimate.memory = one_step, timed
        train = {"steps": 1, "batch_size": batch, "precision": "fp32", "gradient_checkpointing": checkpointing}
        config = LoomConfig().replace(adapter={"targets": targets}, train=train)
        hooks = job.Hooks(event=lambda name, data, said=said: said.update({name: data}))
        try:
            job.train(backbone.load(str(checkpoint), "cpu", "fp32"), read_dataset(pictures, resolution=size, min_size=64), config,
                      loras_folder=folder / "loras", runs_folder=folder / "runs", hooks=hooks)
        except Counted:
            pass
        finally:
            loop.train, estimate.memory = whole, ask
        step = said["memory"]["step"]
        rows.append([str(size), str(batch), "on" if checkpointing else "off", targets, f"{step / 2**20:.0f}", f"{held[0] / 2**20:.0f}",
                     f"{step / held[0]:.3f}", f"{asked[0]:.1f}"])
        print(rows[-1], file=sys.stderr, flush=True)
    return table(*rows)


def seconds(folder: Path, steps: int, rounds: int) -> str:
    from lora_loom.trainer import job
    from lora_loom.trainer.backbones import diffusers as backbone
    from lora_loom.trainer.data.folder import read_dataset
    from lora_loom.trainer.toy import arch, demo, stars

    rows = [["run", "said after three steps, s", "took, s", "said / took"]]
    dataset = read_dataset(stars.write(folder / "stars"), resolution=arch.SIZE, min_size=arch.SIZE, trigger_word="star")
    for number in range(rounds):
        said, started = {}, time.monotonic()
        config = demo.CONFIG.replace(train={"steps": steps}, samples={"sample_steps": 0})
        job.train(backbone.load(arch.NAME), dataset, config, loras_folder=folder / "loras", runs_folder=folder / "runs",
                  hooks=job.Hooks(event=lambda name, data, said=said: said.update({name: (time.monotonic(), data)})))
        took = said["saved"][0] - (said["memory"][0])
        expected = said["estimate"][1]["seconds"]
        rows.append([f"toy base, {steps} steps, {number + 1}", f"{expected:.1f}", f"{took:.1f}", f"{expected / took:.3f}"])
        print(rows[-1], f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return table(*rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="of the timed runs")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs")
    parser.add_argument("--write", action="store_true", help="append the tables to bench/RESULTS.md")
    parser.add_argument("--only", choices=("time", "memory"), help="one of the two")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, checkpoint = Path(name), Path(name) / "random_sd15.safetensors"
        report = heading("python bench/estimate.py", *([] if given.only == "time" else [f"ComfyUI {start_comfyui(folder / 'comfyui')}"]))
        if given.only != "memory":
            report += ["**Time**: said after the third step, against the run from its first step to its file", seconds(folder, given.steps, given.rounds)]
        if given.only != "time":
            write_random(checkpoint, "sd15", torch.float16)
            report += ["**Memory of a step**, SD1.5 at full size, random weights, fp32: said before the first step, against the most that its tensors held",
                       memory(checkpoint, folder)]
    write(report, given.write)


if __name__ == "__main__":
    main()
