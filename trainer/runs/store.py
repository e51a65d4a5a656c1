"""A run's folder, and files in it: writes are whole or absent."""
from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import LoomError
from ..files import temporary


def write_new(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    """Write `data` as stem + suffix, or stem_2, stem_3 … : a file that exists is never overwritten. Returns the path."""
    with temporary(folder, data) as written:
        for name in _numbered(stem):
            path = folder / f"{name}{suffix}"
            try:
                os.link(written, path)  # fails where the name is taken, also by a run beside ours
            except FileExistsError:
                continue
            except OSError:  # a file system without hard links
                if path.exists():
                    continue
                os.rename(written, path)
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
    """Remove a new run that ended before its first step: one without a line in metrics.jsonl and without a LoRA of its way. Samples may be there,
    of the model as it was."""
    with contextlib.suppress(OSError):
        if not any((run / "checkpoints").glob("*")) and not (run / "metrics.jsonl").stat().st_size:
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
