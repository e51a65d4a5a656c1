"""A run's saved steps: the LoRA files of its way and the one that it ended with, as somebody who chooses among them sees them."""
from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import LoomError
from . import reading, record

_UNREADABLE = (OSError, SafetensorError, ValueError)
_ORDER = ("final", "step", "saved", "best", "latest")  # of the files of one step the first of these stands for it


@dataclass(frozen=True)
class Saved:
    """A LoRA of the run's way, or the one that it ended with. mark: changes with the file."""

    step: int
    file: str
    path: Path
    kind: str
    mark: str
    best: bool = False  # by validation loss


def final_lora(run: Path) -> str:
    """Name of the file that the training ended with, also after a checkpoint was made the run's result; "" for none."""
    facts = record.read(run)
    found = facts["final"] if "final" in facts else facts.get("lora")
    return found if isinstance(found, str) and Path(found).name == found else ""


def saved_steps(run: Path, loras: Path) -> tuple[list[Saved], list[str]]:
    """(one file for each step, by step; files that cannot be read). loras: the folder that finished LoRAs go to."""
    files = [(run / "checkpoints" / c["file"], c["kind"], c["step"]) for c in reading.checkpoints(run)]
    files = [file for file in files if not file[0].is_symlink()]
    final = final_lora(run)
    if final and (loras / final).is_file():
        files.append((loras / final, "final", None))
    found: dict[int, Saved] = {}
    damaged, best = [], None
    for path, kind, step in sorted(files, key=lambda f: _ORDER.index(f[1])):
        try:
            one = _saved(path, kind, step)
        except _UNREADABLE:
            damaged.append(path.name)
            continue
        best = one.step if kind == "best" else best
        found.setdefault(one.step, one)
    return [replace(found[step], best=step == best) for step in sorted(found)], damaged


def _saved(path: Path, kind: str, step: int | None) -> Saved:
    stat = path.stat()
    with safe_open(str(path), "pt") as file:
        facts = file.metadata() or {}
    return Saved(int(facts.get("ss_steps", 0)) if step is None else step, path.name, path, kind,
                 facts.get("sshs_model_hash") or f"{stat.st_size} {stat.st_mtime_ns}")


def readable(path: Path) -> bool:
    """Whether it is a whole safetensors file."""
    try:
        _saved(path, "", 0)
    except _UNREADABLE:
        return False
    return True


def evenly(saved: list[Saved], most: int) -> list[Saved]:
    """At most `most` of them, evenly chosen, the first and the last among them; of one alone the last."""
    if len(saved) <= most:
        return saved
    if most == 1:
        return saved[-1:]
    return [saved[round(i * (len(saved) - 1) / (most - 1))] for i in range(most)]


def newest(runs_folder: Path, loras: Path) -> Path:
    """The run that began last and has saved something."""
    for run in _by_start(runs_folder):
        if saved_steps(run, loras)[0]:
            return run
    raise LoomError("no run has saved a LoRA yet: train one with TrainLoRA, with LoRAConfig.save_steps above 0 to have steps to choose from")


def run_of(runs_folder: Path, path: str) -> Path:
    """The run whose result TrainLoRA.path names."""
    name = re.split(r"[\\/]", path)[-1]
    for run in _by_start(runs_folder):
        facts = record.read(run)
        if name and name in (facts.get("final"), facts.get("lora")):
            return run
    raise LoomError(f"path {path[-80:]!r} is the LoRA of no run here: connect TrainLoRA.path, or disconnect it and choose the run in ChooseCheckpoint.run")


def _by_start(runs_folder: Path) -> list[Path]:
    runs = [runs_folder / name for name in reading.names(runs_folder)]
    return sorted(runs, key=lambda run: -(record.read(run).get("started") or run.stat().st_mtime))


def fingerprint(run: Path, loras: Path) -> str:
    """Changes with the run's saved steps."""
    return " ".join([run.name, *(f"{saved.step} {saved.mark}" for saved in saved_steps(run, loras)[0])])
