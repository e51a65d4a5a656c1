"""What a run writes down step by step: metrics.jsonl always, TensorBoard where it is installed, Weights & Biases where the user has set it up.

Logs are no reason to stop: what fails is said once in the host's log, and left out.
"""
from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from ..files import write_whole
from ..hooks import Progress

_log = logging.getLogger("lora_loom")
_CURVES = ("loss", "smoothed_loss", "learning_rate", "grad_norm", "validation_loss")


class Board(Protocol):
    """Curves and pictures (H, W, 3) in 0..1 by name and step."""

    def curves(self, values: dict[str, float], step: int) -> None: ...
    def picture(self, name: str, pixels: torch.Tensor, step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's folder, or below `log_dir`. A resumed run purges what was written after its last save."""

    def __init__(self, run: Path, log_dir: Path | None, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(log_dir / run.name if log_dir else run / "tensorboard"), purge_step=steps + 1 if steps else None)

    def curves(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, pixels: torch.Tensor, step: int) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Only for those who have named a project in WANDB_PROJECT; everything else is W&B's own configuration."""

    def __init__(self, run: Path, log_dir: Path | None, steps: int) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(project=os.environ["WANDB_PROJECT"], name=run.name, id=run.name, resume="allow", dir=str(run))

    def curves(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def picture(self, name: str, pixels: torch.Tensor, step: int) -> None:
        self._run.log({name: self._wandb.Image((pixels * 255).round().to(torch.uint8).numpy())}, step=step)

    def close(self) -> None:
        self._run.finish()


class Log:
    """One step a line in metrics.jsonl, and every board that is there. A full disk stops no run."""

    def __init__(self, run: Path, log_dir: Path | None = None, steps: int = 0) -> None:
        """`steps`: how many of the run's steps count; lines of later ones were written after its last save."""
        path = run / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if _step(line) <= steps]
            write_whole(path, "".join(f"{line}\n" for line in kept).encode())
        self._file = open(path, "a", encoding="utf-8")
        self._boards: list[Board] = []
        for kind in (TensorBoard, *([WeightsAndBiases] if os.environ.get("WANDB_PROJECT") else [])):
            try:
                self._boards.append(kind(run, log_dir, steps))
            except Exception as error:  # not installed, or installed and not fit for its own packages
                level = logging.DEBUG if kind is TensorBoard and isinstance(error, ImportError) else logging.WARNING
                _log.log(level, "no %s logs: %s", kind.__name__, error)

    def step(self, progress: Progress) -> None:
        line = {k: v for k, v in asdict(progress).items() if k not in ("phase", "total", "eta_seconds")}
        with contextlib.suppress(OSError):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        values = {f"train/{name}": line[name] for name in _CURVES if line[name] is not None}
        self._tell(lambda board: board.curves(values, progress.step))

    def picture(self, name: str, pixels: torch.Tensor, step: int) -> None:
        """pixels (H, W, 3) in 0..1."""
        pixels = pixels.float().clamp(0, 1).cpu()
        self._tell(lambda board: board.picture(name, pixels, step))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self._tell(lambda board: board.close())

    def _tell(self, tell: Callable[[Any], None]) -> None:
        for board in list(self._boards):
            try:
                tell(board)
            except Exception as error:
                _log.warning("no more %s logs: %s", type(board).__name__, error)
                self._boards.remove(board)


def _step(line: str) -> float:
    """The line's step; one that a crash has cut short counts as none."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
