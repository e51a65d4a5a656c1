"""How fast are pictures listed, read whole, encoded and loaded, and does memory stay flat? Ten thousand of them, on the toy base.

`python bench/data.py` makes the pictures itself (photographs of scikit-image at 512 pixels, each with bytes of its own). `--pictures 1000` is
quicker, `--write` appends the tables to bench/RESULTS.md. No ComfyUI is needed.
"""
from __future__ import annotations

import argparse
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from lora_loom.trainer import loop
from lora_loom.trainer.adapters import adapted
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.data.batches import Encoded, batches
from lora_loom.trainer.data.cache import Cache
from lora_loom.trainer.data.encoding import encode
from lora_loom.trainer.data.folder import Dataset, list_dataset, read_dataset
from lora_loom.trainer.hooks import Hooks
from lora_loom.trainer.objective import Objective
from lora_loom.trainer.state import State
from lora_loom.trainer.toy import arch, demo
from meters import Peak
from PIL import Image
from report import at_least, heading, table, write
from skimage import data

SETTINGS = {"resolution": arch.SIZE, "min_size": arch.SIZE, "trigger_word": "zxc"}


def pictures(folder: Path, count: int) -> None:
    """JPEG files of 512x384, with a caption each; bytes behind the end of the picture make each file another."""
    folder.mkdir()
    photos = [Image.fromarray(p).convert("RGB").resize((512, 384)) for p in (data.astronaut(), data.chelsea(), data.coffee(), data.rocket())]
    bodies = []
    for number in range(40):
        file = io.BytesIO()
        photos[number % 4].rotate(number).save(file, "JPEG", quality=88)
        bodies.append(file.getvalue())
    for number in range(count):
        (folder / f"{number:05d}.jpg").write_bytes(bodies[number % 40] + str(number).encode())
        (folder / f"{number:05d}.txt").write_text(f"a photo, number {number % 100}")


def timed(what: str, count: int, work: Callable[[], object], rows: list[list[str]]) -> object:
    with Peak() as peak:
        started = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - started
    rows.append([what, f"{seconds:.1f}", f"{count / seconds:,.0f}", f"{peak.bytes / 2**20:,.0f}"])
    return found


def steps(encoded: Encoded, model: backbone.DiffusersModel, count: int) -> list[float]:
    """Seconds of each of so many steps, in milliseconds."""
    config, marks = demo.CONFIG.replace(train={"steps": count}, loss={"preservation": 0.0}), [time.perf_counter()]
    with model.training("fp32", False, False), adapted(model, config.adapter, 0) as adapters, torch.enable_grad():
        state, objective = State(adapters, config, count, model.device), Objective(model, adapters, config.loss)
        loop.train(state, objective, lambda skip: batches(encoded, 1, 4, 0, 0.05, skip), config, Hooks(progress=lambda now: marks.append(time.perf_counter())))
    return [1000 * (b - a) for a, b in zip(marks[5:], marks[6:])]


def loaded(encoded: Encoded, count: int) -> Iterator[None]:
    return [None for _ in itertools.islice(batches(encoded, 1, 4, 0, 0.0), count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=at_least(1), default=10_000)
    parser.add_argument("--steps", type=at_least(7), default=60, help="of each round of training")
    parser.add_argument("--write", action="store_true", help="append the tables to bench/RESULTS.md")
    given = parser.parse_args()
    count, rows = given.pictures, []
    with tempfile.TemporaryDirectory() as home:
        folder, index, kept = Path(home) / "pictures", Path(home) / "index", Path(home) / "cache"
        pictures(folder, count)
        model = backbone.load(arch.NAME)
        timed("listed by headers, with captions", count, lambda: list_dataset(folder, **SETTINGS), rows)
        timed("read whole: hashed and decoded", count, lambda: read_dataset(folder, index=index, **SETTINGS), rows)
        dataset: Dataset = timed("read again, nothing changed", count, lambda: read_dataset(folder, index=index, **SETTINGS), rows)
        into = lambda room: encode(model, dataset, False, lambda done, total: None, cache=Cache(kept, room))
        timed("encoded at 64 pixels, into the cache", count, lambda: into(0), rows)
        disk = timed("found in the cache again", count, lambda: into(0), rows)
        memory = into(2**40)
        timed("loaded from disk in batches of 4, two epochs", 2 * count, lambda: loaded(disk, count // 2), rows)
        loading = 4 / float(rows[-1][2].replace(",", ""))  # seconds a batch
        timed("loaded from memory", 2 * count, lambda: loaded(memory, count // 2), rows)
        found: dict[str, list[float]] = {"memory": [], "disk": []}
        for turn in range(6):
            for name, encoded in (("memory", memory), ("disk", disk))[::1 if turn % 2 else -1]:
                found[name].append(statistics.median(steps(encoded, model, given.steps)))
    ratios = [b / a for a, b in zip(found["memory"], found["disk"])]
    about = f"**Data**, {count:,} JPEG pictures of 512x384 with a caption each; peak is memory above what the process held before"
    held, read = (statistics.median(found[name]) for name in ("memory", "disk"))
    costs = (f"A step of the toy base at batch 4: {held:.1f} ms with everything in memory, {read:.1f} ms read from disk one batch ahead; ratio "
             f"{statistics.median(ratios):.3f} (of six interleaved rounds: {min(ratios):.3f} to {max(ratios):.3f}). Loading a batch from disk takes "
             f"{1000 * loading:.2f} ms, {100_000 * loading / held:.1f} % of such a step even where nothing of it goes on beside the step")
    write([*heading("python bench/data.py"), about, table(["what", "seconds", "pictures a second", "peak, MiB"], *rows), costs], given.write)


if __name__ == "__main__":
    main()
