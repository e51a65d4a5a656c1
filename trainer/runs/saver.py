"""What a run leaves on disk on its way: LoRA files, the best of them, and the state to resume from."""
from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..backbones.protocol import TrainableModel
from ..config import LoomConfig
from ..data.dataset import Dataset
from ..errors import LoomError
from ..files import digest_of, write_whole
from ..hooks import Hooks, Progress
from ..state import State
from . import checkpoint, export, logs, record, store


@dataclass
class Saver:
    """Writes where `save_steps`, `save_minutes`, a better validation loss and the host ask for it, and at the end on every way out. A run that was
    taken up again writes its own file anew.

    `facts` go into the state beside its own: whatever must be the same when it is taken up.
    """

    model: TrainableModel
    dataset: Dataset
    config: LoomConfig
    loras_folder: Path
    run: Path
    reserve: store.Reservation
    hooks: Hooks
    facts: dict[str, str]
    kept: record.Record
    best: float | None = None
    unsaved: tuple[int, str] = 0, ""  # how many checkpoints could not be written, and why the last one
    unresumable: str = ""  # why the newest state to resume from could not be written
    path: Path | None = None
    lora: dict[str, torch.Tensor] | None = None
    _saved: float = field(default_factory=time.monotonic)

    def watching(self, state: State, log: logs.Log) -> Callable[[Progress], None]:
        """The progress hook with logs and checkpoints in front of the host's own."""

        def progress(now: Progress) -> None:
            log.step(now)
            output, last = self.config.output, now.step >= now.total
            if now.validation_loss is not None and (self.best is None or now.validation_loss < self.best):
                self.best = now.validation_loss
                self._save(state, "best", resume=False)
            if output.save_steps and now.step % output.save_steps == 0 and not last:
                self._save(state, f"step{now.step:06d}")
                self._prune()
            elif output.save_minutes and time.monotonic() - self._saved >= 60 * output.save_minutes and not last:
                self._save(state, "latest")
            if self.hooks.wanted("save") and not last:
                self._save(state, f"saved{now.step:06d}")
            self.hooks.progress(now)

        return progress

    def finish(self, state: State) -> None:
        """The result, whatever has been learned; and, where the run is not over, the state to go on from."""
        if not state.step:
            return
        if state.step < state.steps:
            self._resumable(state)
        data, self.lora = self._bytes(state), self._tensors(state, "diffusion_model")
        self.reserve.release()
        self.path = self._result(data)
        self._file("latest").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._write_for_diffusers(state)
        if state.step >= state.steps:  # last: a kill before this costs no more than the steps since the last save
            with contextlib.suppress(OSError):
                checkpoint.remove(self.run)
        self.hooks.event("saved", {"path": str(self.path), "steps": state.step})

    def _result(self, data: bytes) -> Path:
        """The LoRA in ComfyUI's folder: in place of the one that this run left there, where it did; else under a name that is free."""
        earlier = self._earlier()
        self.kept.writes(hashlib.sha256(data).hexdigest())
        if earlier is not None:
            with contextlib.suppress(OSError):  # such as on Windows, where something reads it
                write_whole(earlier, data)
                return earlier
        return _write(self.loras_folder, self.run, self.config.output.name, data)

    def _earlier(self) -> Path | None:
        """The file that this run has left under its name, as long as it is what the run wrote: another's may have come in its place."""
        facts, name = self.kept.facts, self.config.output.name
        known = str(facts.get("final") or facts.get("lora") or f"{name}.safetensors")  # a crash may have come before the record
        path = self.loras_folder / known
        named = re.fullmatch(rf"{re.escape(name)}(_\d+)?\.safetensors", known)
        return path if named and not path.is_symlink() and digest_of(path) in self.kept.digests else None

    def take_up(self, state: State, written: tuple) -> None:
        state.take_up(written)
        self.best = written[1].get("best", self.best)  # what memory ran out of holds none

    def _save(self, state: State, kind: str, resume: bool = True) -> None:
        if resume:
            self._saved = time.monotonic()  # also where it fails: a full disk is tried again after save_minutes, not at every step
        try:
            write_whole(self._file(kind), self._bytes(state))
        except OSError as error:  # the result's own space is reserved: go on
            self.unsaved = self.unsaved[0] + 1, error.strerror or str(error)
            self.hooks.event("checkpoint failed", {"step": state.step, "reason": self.unsaved[1]})
            return
        if resume:
            self._resumable(state)
            self.kept.write("running")  # how long it took so far, should it be killed
        self.hooks.event("checkpoint", {"step": state.step, "kind": kind.rstrip("0123456789")})

    def _resumable(self, state: State) -> None:
        """The state to go on from; what stood there before stays where there is no room for it."""
        tensors, facts = state.written()
        try:
            checkpoint.write(self.run, tensors, {**facts, **self.facts, "best": self.best})
            self.unresumable = ""
        except OSError as error:
            self.unresumable = error.strerror or str(error)
            self.hooks.event("state failed", {"step": state.step, "reason": self.unresumable})

    def _prune(self) -> None:
        """The oldest go where only so many are to stay; the best one is a file of its own."""
        keep = self.config.output.keep_checkpoints
        found = sorted(self._file("x").parent.glob(f"{_escaped(self.config.output.name)}_step*.safetensors"))
        for path in found[:-keep] if keep else []:
            path.unlink(missing_ok=True)

    def _file(self, kind: str) -> Path:
        return self.run / "checkpoints" / f"{self.config.output.name}_{kind}.safetensors"

    def _tensors(self, state: State, keys: str) -> dict[str, torch.Tensor]:
        with state.shown():
            return export.state_dict(state.adapters, self.config, keys)

    def _bytes(self, state: State) -> bytes:
        return export.to_bytes(self._tensors(state, self.model.family.keys), self._facts(state))

    def _facts(self, state: State) -> dict[str, str]:
        return export.metadata(self.model, self.dataset, self.config, state.step)

    def _write_for_diffusers(self, state: State) -> None:
        """The second file of what diffusers cannot read in the first, in a folder and under a name that its load_lora_weights takes as it is."""
        with state.shown():
            tensors = export.for_diffusers(state.adapters, self.config)
        if tensors:
            path = self.run / "diffusers" / "pytorch_lora_weights.safetensors"
            path.parent.mkdir(exist_ok=True)
            write_whole(path, export.to_bytes(tensors, self._facts(state)))


def _escaped(name: str) -> str:
    return name.replace("[", "[[]")  # * and ? are no part of names


def _write(loras_folder: Path, run: Path, name: str, data: bytes) -> Path:
    """The LoRA in ComfyUI's folder; where that fails, in the run's folder or the system's temporary one, and LoomError says so."""
    try:
        return store.write_new(loras_folder, name, ".safetensors", data)
    except OSError as error:
        for folder in (run, Path(tempfile.gettempdir())):
            with contextlib.suppress(OSError):
                path = store.write_new(folder, name, ".safetensors", data)
                raise LoomError(f"{name}.safetensors could not be written to {loras_folder} ({error.strerror or error}), so it was saved as {path}: "
                                "free some space and move it into a loras folder") from error
        raise
