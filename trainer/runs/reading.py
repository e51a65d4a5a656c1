"""Runs as they lie on disk, for whoever lists and compares them: nothing is asked of the process that made them, and links are not followed out of a run."""
from __future__ import annotations

import contextlib
import json
import math
import os
import re
import threading
from array import array
from collections import OrderedDict
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import LoomError
from . import checkpoint, record

CONFIG = "config.yaml"
CURVES = ("loss", "smoothed_loss", "learning_rate", "grad_norm")
MOST_POINTS = 5_000
_SAMPLE = re.compile(r"step(\d+)_(\d+)\.png")
_CHECKPOINT = re.compile(r".*_(?:(step|saved)(\d+)|(best|latest))\.safetensors")


class Metrics:
    """The columns of one metrics.jsonl, read on from where it was left; a line that is only half there waits for the next time."""

    def __init__(self, path: Path) -> None:
        self.path, self._inode, self._at = path, None, 0
        self._clear()

    def _clear(self) -> None:
        self.steps, self.columns = array("l"), {name: array("d") for name in CURVES}
        self.validation: list[tuple[int, float]] = []

    def refresh(self) -> Metrics:
        if self.path.is_symlink():
            return self
        try:
            with open(self.path, "rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self._inode or stat.st_size < self._at:  # a resumed run writes the file anew
                    self._inode, self._at = stat.st_ino, 0
                    self._clear()
                file.seek(self._at)
                data = file.read()
        except OSError:
            return self
        end = data.rfind(b"\n") + 1
        self._at += end
        for line in data[:end].splitlines():
            self._take(line)
        return self

    def _take(self, line: bytes) -> None:
        try:
            found = json.loads(line)
            step, values = int(found["step"]), [float(found.get(name, math.nan)) for name in CURVES]
            checked = found.get("validation_loss")
            checked = math.nan if checked is None else float(checked)
            self.steps.append(step)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return  # cut short by a crash, or of another hand
        for column, value in zip(self.columns.values(), values):
            column.append(value)
        if math.isfinite(checked):
            self.validation.append((step, checked))

    def curve(self, points: int, after: int = 0) -> dict[str, Any]:
        """{step: [...], loss: [...], …, validation: [[step, loss]]}: steps after `after` in at most `points` groups of neighbours, each the mean of
        its losses and gradient norms, the last of the rest. What is no finite number is None."""
        first = next((i for i, step in enumerate(self.steps) if step > after), len(self.steps)) if after else 0
        count = len(self.steps) - first
        width = max(1, -(-count // points))
        groups = [(i, min(i + width, first + count)) for i in range(first, first + count, width)]
        mean = lambda column, a, b: sum(column[a:b]) / (b - a)
        last = lambda column, a, b: column[b - 1]
        how = {"loss": mean, "grad_norm": mean}
        found: dict[str, Any] = {"step": [self.steps[b - 1] for _, b in groups]}
        for name, column in self.columns.items():
            found[name] = [_finite(how.get(name, last)(column, a, b)) for a, b in groups]
        checked = [list(pair) for pair in self.validation if pair[0] > after]
        found["validation"] = checked[:: max(1, -(-len(checked) // points))]
        return found


_open: OrderedDict[Path, Metrics] = OrderedDict()
_turn = threading.Lock()


def curve(run: Path, points: int, after: int = 0) -> dict[str, Any]:
    """`Metrics.curve` of the run as it is now; what was read for the last few runs is remembered."""
    with _turn:
        found = _open.setdefault(run, Metrics(run / "metrics.jsonl"))
        _open.move_to_end(run)
        while len(_open) > 8:
            _open.popitem(last=False)
        return found.refresh().curve(points, after)


def in_small(run: Path) -> dict[str, Any]:
    """{curve: [[step, smoothed loss]] in few points, best_step: where the validation loss was lowest, None without one}"""
    metrics = Metrics(run / "metrics.jsonl").refresh()
    found = metrics.curve(record.POINTS)
    curve = [[step, loss] for step, loss in zip(found["step"], found["smoothed_loss"]) if loss is not None]
    checked = [(loss, step) for step, loss in metrics.validation]
    return {"curve": curve, "best_step": min(checked)[1] if checked else None}


def is_run(path: Path) -> bool:
    """Whether a run lies there itself: no hidden folder, no link, and with a configuration that is none either."""
    config = path / CONFIG
    return not path.name.startswith(".") and not path.is_symlink() and config.is_file() and not config.is_symlink()


def names(runs_folder: Path) -> list[str]:
    """Every run, the newest first; what else lies in the folder is none."""
    found = []
    for path in runs_folder.iterdir() if runs_folder.is_dir() else ():
        with contextlib.suppress(OSError):  # removed meanwhile
            if is_run(path):
                found.append((path.stat().st_mtime, path.name))
    return [name for _, name in sorted(found, reverse=True)]


def summary(run: Path) -> dict[str, Any]:
    """What a list shows of a run: its record, `resumable`, `bytes` on disk, `curve` [[step, smoothed loss]], `sample` (the newest file, or None),
    `best_sample` (the one drawn nearest to `best_step`, or None).

    A run whose record says "running" may have been killed: the host knows which one really runs.
    """
    facts = {name: value for name, value in record.read(run).items() if value is not None and name != "dataset"}
    resumable = (run / checkpoint.FILE).is_file()
    found = {"name": run.name, "status": "stopped" if resumable else "finished", "started": run.stat().st_mtime, "ended": None, **facts}
    found["name"] = run.name  # it may have been renamed by hand
    small = found if found.get("curve") else in_small(run)
    curve, best = small["curve"], small.get("best_step")
    files = [sample for sample in samples(run) if sample["number"] == 1]
    nearest = min(files, key=lambda sample: abs(sample["step"] - best))["file"] if files and best is not None else None
    last, ended = curve[-1] if curve else (0, None), found.get("step")
    return {**found, "curve": curve, "best_step": best, "step": max(ended, last[0]) if isinstance(ended, int) else last[0], "loss": last[1],
            "resumable": resumable, "bytes": size(run), "sample": files[-1]["file"] if files else None, "best_sample": nearest}


def samples(run: Path) -> list[dict[str, Any]]:
    """[{file, step, number}] in the order they were drawn; number is the prompt's, from 1."""
    found = [(match, match[0]) for match in map(_SAMPLE.fullmatch, _files(run / "samples")) if match]
    return sorted(({"file": file, "step": int(match[1]), "number": int(match[2])} for match, file in found), key=lambda s: (s["step"], s["number"]))


def prompts(run: Path) -> list[str]:
    """What the newest samples were drawn from, by their number; "" where the picture does not say."""
    newest = {sample["number"]: sample["file"] for sample in samples(run)}
    return [_prompt(run / "samples" / newest[number]) if number in newest else "" for number in range(1, max(newest, default=0) + 1)]


def _prompt(path: Path) -> str:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return str(image.info.get("lora_loom", "")).rpartition("\n")[0]
    except (OSError, ValueError, SyntaxError):
        return ""


def checkpoints(run: Path) -> list[dict[str, Any]]:
    """[{file, step, kind, bytes}] of the LoRA files on the way, by step; kind is step, saved, best or latest; the last two know no step (None)."""
    found, folder = [], run / "checkpoints"
    for name in _files(folder):
        match = _CHECKPOINT.fullmatch(name)
        if match:
            with contextlib.suppress(OSError):  # an older one may have made room for a newer one
                size_ = (folder / name).stat().st_size
                found.append({"file": name, "step": int(match[2]) if match[2] else None, "kind": match[1] or match[3], "bytes": size_})
    return sorted(found, key=lambda c: (c["step"] is None, c["step"] or 0, c["file"]))


def _files(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() and not folder.is_symlink() else []


def config_text(run: Path) -> str:
    try:
        return (run / CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoomError(f"run {run.name!r} has no readable config.yaml ({error}): its settings cannot be shown") from error


def size(folder: Path) -> int:
    """Bytes on disk; what is removed meanwhile counts nothing."""
    total = 0
    for here, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.path.getsize(os.path.join(here, name))
    return total


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
