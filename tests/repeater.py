"""A recorder for the CPU (layers/recorded.py): it keeps what a recording promises, memory that is written anew at every repetition."""
from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lora_loom.trainer import attempts, recording
from lora_loom.trainer.layers.recorded import Recorded
from lora_loom.trainer.recording import ROOM, Recording


class Repeater:
    """why: what `warm` says. spoil: changes what a repetition gives, by its number. stale: the answer stays what it was when it was recorded."""

    def __init__(self, why: str = "", spoil: Callable[[int, tuple], None] = lambda number, tensors: None, stale: bool = False) -> None:
        self.why, self.spoil, self.stale, self.warmed = why, spoil, stale, 0

    def warm(self, function: Callable[[], object]) -> str:
        self.warmed += 1
        function()
        return self.why

    def record(self, forward: Callable, backward: Callable) -> SimpleNamespace:
        """Everything that a device would have written into fixed places lies in fixed places here; what was kept for an earlier answer is gone."""
        live = [forward()]
        gradients = tuple(None if g is None else g.clone() for g in backward(live[0]))
        answer, count = live[0].detach().clone(), [0]

        @torch.enable_grad()
        def again() -> None:
            if self.stale:
                return
            live[0] = forward()
            answer.copy_(live[0].detach())

        def back() -> None:
            count[0] += 1
            with torch.enable_grad():
                found = backward(live[0] if not self.stale else forward())
            for place, value in zip(gradients, found):
                if place is not None:
                    place.copy_(value)
            self.spoil(count[0], gradients)

        return SimpleNamespace(answer=answer, gradients=gradients, forward=again, backward=back)


def records_on_the_cpu(monkeypatch: pytest.MonkeyPatch, few: int = recording.FEW) -> list[Recording]:
    """Runs record on the CPU after so many steps, and take their steps for faster then; what decided it in each run."""
    made: list[Recording] = []

    class Here(Recording):
        def __init__(self, recorded: Recorded, *args: Any) -> None:
            recorded._recorder = lambda device: Repeater()
            super().__init__(recorded, *args)
            made.append(self)

        def begin(self, room: float | None) -> None:
            super().begin(ROOM)

    own = attempts.Attempts._recording

    def on_the_cpu(self: attempts.Attempts) -> Recording | None:
        self.unrecorded = None
        return own(self)

    monkeypatch.setattr(attempts, "Recording", Here)
    monkeypatch.setattr(attempts.Attempts, "_recording", on_the_cpu)
    for name, value in (("LEAST", 1), ("FASTER", 100.0), ("FEW", few)):
        monkeypatch.setattr(recording, name, value)
    return made
