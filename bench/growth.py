"""Does the cost grow as the work grows? Seconds a step against batch, pixels and pictures, and memory over a long run, on the toy base.

`python bench/growth.py` needs no ComfyUI. `--only long --steps 10000` is the long run by itself, `--write` appends the tables to bench/RESULTS.md.
"""
from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from lora_loom.trainer import job
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.data.folder import read_dataset
from lora_loom.trainer.toy import arch, shapes
from meters import private_bytes, trim
from report import at_least, heading, table, write

WARM = 5  # steps that are not counted


def pictures(folder: Path, count: int, side: int) -> Path:
    rng, scenes = random.Random(0), shapes.scenes()
    folder.mkdir(parents=True)
    for number in range(count):
        scene = scenes[number % len(scenes)]
        shapes.draw(scene, rng).resize((side, side)).save(folder / f"{number:05d}.png")
        (folder / f"{number:05d}.txt").write_text(scene.caption, encoding="utf-8")
    return folder


def run(model: backbone.DiffusersModel, home: Path, steps: int, count: int = 20, side: int = 64, batch: int = 1, watch=None) -> list[float]:
    """Seconds of each step but the first few."""
    folder = home / f"{count}_{side}"
    dataset = read_dataset(folder if folder.is_dir() else pictures(folder, count, side), resolution=side, min_size=32)
    config = LoomConfig().replace(adapter={"rank": 16, "targets": "all linear+conv"}, loss={"caption_dropout": 0.0},
                                  train={"steps": steps + WARM, "batch_size": batch, "precision": "fp32"}, output={"name": "growth"})
    times: list[float] = []

    def progress(now: job.Progress) -> None:
        if now.phase == "train":
            times.append(time.perf_counter())
            if watch:
                watch(now.step)

    with tempfile.TemporaryDirectory() as out:
        job.train(model, dataset, config, loras_folder=Path(out) / "loras", runs_folder=Path(out) / "runs", hooks=job.Hooks(progress=progress))
    return [after - before for before, after in zip(times[WARM - 1:], times[WARM:])]


def compared(model: backbone.DiffusersModel, home: Path, cases: dict[str, tuple[float, dict]], steps: int, rounds: int) -> list[str]:
    """A table of {name: (how much work, arguments)}: cases in turns, medians, and how seconds grow beside the work."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        order = list(cases)
        for name in order[number % len(order):] + order[:number % len(order)]:
            found[name] += run(model, home, steps, **cases[name][1])
            print(f"{name}: {statistics.median(found[name]) * 1000:.1f} ms", file=sys.stderr, flush=True)
    first = next(iter(cases))
    base, work = statistics.median(found[first]), cases[first][0]
    rows = [["case", "ms a step: median (10 %–90 %)", "work", "seconds"]]
    for name, seconds in found.items():
        ordered = sorted(seconds)
        low, high = ordered[len(ordered) // 10], ordered[9 * len(ordered) // 10]
        rows.append([name, f"{statistics.median(seconds) * 1000:.1f} ({low * 1000:.1f}–{high * 1000:.1f})", f"{cases[name][0] / work:g}",
                     f"{statistics.median(seconds) / base:.2f}"])
    return table(*rows)


def long(model: backbone.DiffusersModel, home: Path, steps: int) -> str:
    """Resident memory and seconds a step along one run."""
    rows = [["step", "resident memory, MiB", "ms a step since the row before"]]
    marks = {100, steps // 10, steps // 4, steps // 2, 3 * steps // 4, steps}
    last = [0, time.perf_counter()]

    def watch(step: int) -> None:
        if step in marks:
            now = time.perf_counter()
            trim()
            rows.append([f"{step:,}", f"{private_bytes() / 2**20:.0f}", f"{1000 * (now - last[1]) / (step - last[0]):.1f}"])
            print(rows[-1], file=sys.stderr, flush=True)
            last[:] = step, time.perf_counter()

    run(model, home, steps, batch=1, watch=watch)
    return table(*rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=["batch", "pixels", "pictures", "long"], default=["batch", "pixels", "pictures", "long"])
    parser.add_argument("--steps", type=at_least(1), default=10_000, help="of the long run")
    parser.add_argument("--timed", type=at_least(1), default=30, help="timed steps a case and round")
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--write", action="store_true", help="append the tables to bench/RESULTS.md")
    given = parser.parse_args()
    report, model = heading("python bench/growth.py"), backbone.load(arch.NAME, "cpu", "fp32")
    cases = {
        "batch": ("Batch, 64x64", {f"batch {n}": (n, {"batch": n}) for n in (1, 2, 4, 8)}),
        "pixels": ("Pixels, batch 1", {f"{side}x{side}": ((side / 128) ** 2, {"side": side}) for side in (128, 192, 256, 384)}),
        "pictures": ("Pictures in the dataset, 64x64, batch 1; their work is the same", {f"{n} pictures": (1, {"count": n}) for n in (20, 200, 2000)}),
    }
    with tempfile.TemporaryDirectory() as home, torch.no_grad():
        for part in given.only:
            if part == "long":
                report += [f"**A long run**, {given.steps:,} steps of 64x64, batch 1", long(model, Path(home), given.steps)]
            else:
                title, what = cases[part]
                report += [f"**{title}**, toy base, all linear+conv rank 16, fp32", compared(model, Path(home), what, given.timed, given.rounds)]
    write(report, given.write)


if __name__ == "__main__":
    main()
