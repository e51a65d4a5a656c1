"""Whether recorded steps (layers/recorded.py) are faster: tried once a few steps have been timed, and kept where they are."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from .hooks import Hooks, Progress
from .layers.compiled import GONE
from .layers.recorded import Recorded

ROOM = 2.5  # times what a step takes: a recording holds that much for itself, between steps too
FASTER = 0.98  # of a step as it was: a gain below that is chance
FEW, MANY = 6, 200  # steps that are compared on each side
LEAST = 25  # steps to go for each shape, below which it is not worth the trouble
HERE = "steps are recorded as CUDA graphs from here on"
FAILED = "steps are not recorded as CUDA graphs: recording failed"
SLOWER = "steps are no longer recorded: they did not become faster"
MEMORY = "steps are no longer recorded: memory ran out"


class Recording:
    """Switches a run's recording on, and off again."""

    def __init__(self, recorded: Recorded, sizes: int, epoch: int, hooks: Hooks) -> None:
        """sizes: how many shapes micro-batches and their captions have; each is recorded by itself. epoch: steps, over which all of them come."""
        self.recorded, self.sizes, self.hooks = recorded, sizes, hooks
        self.timed = 1 + (FEW if sizes == 1 else min(max(FEW, epoch), MANY))  # the first is slowed by the change itself
        self.before: list[float] = []  # seconds a step, as it was and recorded
        self.after: list[float] = []
        self.settled = False  # whether the steps are as they will be
        self._left, self._known, self._fits, self._over = time.monotonic(), 0, False, False

    def begin(self, room: float | None) -> None:
        """Before the first step of an attempt. room: how many times what a step takes is free; None where nobody knows."""
        self.recorded.on = False
        self._fits = room is not None and room >= ROOM
        self.settled = not (self.recorded.usable and self._fits)
        self.before.clear()
        self.after.clear()
        self._left = time.monotonic()

    def watching(self, then: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """The progress hook `then`, and a look at how long the step took."""

        def progress(now: Progress) -> None:
            seconds, recordings = time.monotonic() - self._left, self.recorded.recordings
            if recordings == self._known and now.validation_loss is None and not self.settled:
                (self.after if self.recorded.on else self.before).append(seconds)
            self._known = recordings
            then(now)
            self._decide(now)
            self._left = time.monotonic()

        return progress

    def broke_off(self, error: BaseException, step: int) -> bool:
        """Whether memory ran out beside a recording, which is dropped then: the step can be tried again."""
        if not (self.recorded.on and isinstance(error, torch.OutOfMemoryError)):
            return False
        self._stop(step, MEMORY)
        return True

    def notes(self) -> list[str]:
        """What the report says of it."""
        if not self.recorded.on or len(self.after) < self.timed:
            return []
        return [f"CUDA graphs made a step {self._step(self.before) / self._step(self.after):.2f} times as fast"]

    def _decide(self, now: Progress) -> None:
        if self.recorded.failed and not self._over:
            self._stop(now.step, MEMORY if self.recorded.failed == GONE else FAILED)
        elif self.settled:
            return
        elif not self.recorded.on:
            if len(self.before) >= self.timed:
                self.recorded.on = now.total - now.step >= LEAST * self.sizes
                self.settled = not self.recorded.on
                if self.recorded.on:
                    self._say(now.step, HERE)
        elif len(self.after) >= self.timed:
            self.settled = True
            if self._step(self.after) > FASTER * self._step(self.before):
                self._stop(now.step, SLOWER)

    def _stop(self, step: int, why: str) -> None:
        self.settled = self._over = True
        self.recorded.stop(self.recorded.failed or why)
        self._say(step, why)

    def _say(self, step: int, change: str) -> None:
        facts: dict[str, Any] = {"step": step, "change": change}
        self.hooks.event("compiling", facts)

    def _step(self, seconds: list[float]) -> float:
        """Of all steps but the first: in the median, or on an average where pictures of several sizes make them long and short."""
        return statistics.median(seconds[1:]) if self.sizes == 1 else statistics.fmean(seconds[1:self.timed])
