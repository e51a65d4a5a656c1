"""A run's folder: config.yaml, metrics.jsonl, TensorBoard events, checkpoints/. Writes are whole or absent."""
from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import LoomError
from ..hooks import Progress

_log = logging.getLogger("lora_loom")


@contextlib.contextmanager
def _written(folder: Path, data: bytes) -> Iterator[str]:
    """The name of a temporary file in `folder` that holds `data`, synced; gone after it unless it was renamed."""
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".partial", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def write_whole(path: Path, data: bytes) -> None:
    """Write to a temporary name beside `path`, sync, rename: a crash leaves the old file or the new one, never half."""
    with _written(path.parent, data) as temporary:
        os.replace(temporary, path)


def write_new(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    """Write `data` as stem + suffix, or stem_2, stem_3 … : a file that exists is never overwritten. Returns the path."""
    with _written(folder, data) as temporary:
        for name in _numbered(stem):
            path = folder / f"{name}{suffix}"
            try:
                os.link(temporary, path)  # fails where the name is taken, also by a run beside ours
            except FileExistsError:
                continue
            except OSError:  # a file system without hard links
                if path.exists():
                    continue
                os.rename(temporary, path)
            return path


def _numbered(name: str) -> Iterator[str]:
    """name, name_2, name_3 …; LoomError where even the last is taken."""
    yield name
    yield from (f"{name}_{number}" for number in range(2, 100_000))
    raise LoomError(f"name {name!r} is taken 99,999 times: choose another TrainLoRA.name")


def new_run(runs_folder: Path, name: str) -> Path:
    """An empty folder `name`, `name_2` … below `runs_folder`."""
    _make(runs_folder)
    for numbered in _numbered(name):
        with contextlib.suppress(FileExistsError):
            (runs_folder / numbered).mkdir()
            return runs_folder / numbered


def drop_if_empty(run: Path) -> None:
    """Remove a run that ended before its first step."""
    with contextlib.suppress(OSError):
        if not (run / "metrics.jsonl").stat().st_size:
            shutil.rmtree(run)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoomError(f"folder {folder} cannot be made ({error.strerror}): choose another output folder or free the path") from error


class Reservation:
    """Disk space held from the start, so that a disk that fills up meanwhile cannot cost the result."""

    def __init__(self, folder: Path, size: int) -> None:
        self.size = size
        _make(folder)
        free = shutil.disk_usage(folder).free
        if free < size:
            raise LoomError(f"disk has {free / 1e6:.1f} MB free in {folder.name}, this run needs {size / 1e6:.1f} MB: "
                            "free some space or choose another output folder")
        self._file = None
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # without a name, or gone with the process: a kill leaves nothing behind
            block = bytes(1 << 20)
            for start in range(0, size, len(block)):
                self._file.write(block[: min(len(block), size - start)])
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self.release()
            raise LoomError(f"folder {folder} cannot take the {size / 1e6:.1f} MB this run needs ({error.strerror}): free some space, "
                            "check that it may be written to, or choose another output folder") from error

    def release(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def _step(line: str) -> float:
    """The line's step; one that a crash has cut short counts as none."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Log:
    """metrics.jsonl, one line a step, and TensorBoard events where the package is installed. A full disk stops no run."""

    def __init__(self, run: Path, log_dir: Path | None = None, steps: int = 0) -> None:
        """`steps`: how many of the run's steps count; lines of later ones were written after its last save."""
        path = run / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= steps]
            write_whole(path, "".join(f"{line}\n" for line in kept).encode())
        self._file = open(path, "a", encoding="utf-8")
        self._board = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(log_dir / run.name if log_dir else run / "tensorboard"), purge_step=steps + 1 if steps else None)
        except Exception as error:  # also a TensorBoard that does not fit its own packages: logs are no reason to stop
            if not isinstance(error, ImportError):
                _log.warning("no TensorBoard events: %s", error)

    def step(self, progress: Progress) -> None:
        line = {k: v for k, v in asdict(progress).items() if k not in ("phase", "total", "eta_seconds")}
        with contextlib.suppress(OSError):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            if self._board is not None:
                for name in ("loss", "smoothed_loss", "learning_rate", "grad_norm", "validation_loss"):
                    if line[name] is not None:
                        self._board.add_scalar(f"train/{name}", line[name], progress.step)

    def picture(self, name: str, pixels: Any, step: int) -> None:
        """pixels: a tensor (H, W, 3) in 0..1."""
        with contextlib.suppress(OSError):
            if self._board is not None:
                self._board.add_image(name, pixels.float().clamp(0, 1).cpu(), step, dataformats="HWC")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
            if self._board is not None:
                self._board.close()
