"""Whether compiled blocks (layers/compiled.py) pay within a run: tried where they may, and kept where the steps become faster."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointError

from .hooks import Hooks, Progress
from .layers.compiled import GONE, SHAPES, Blocks, in_short, of_the_compiler

SAVED = 0.12  # of a step, at the least: others measured 14 to 35 % on GPUs
MORE = 1.6  # times as much as a step holds otherwise: SD1.5 kept 285 MiB for backward instead of 185 (bench/RESULTS.md)
EACH = 15.0  # seconds that a compilation takes, forward and backward
FASTER = 0.98  # of a step as it was: a gain below that is chance
MEMORY = "blocks are no longer compiled: memory ran out"
FAILED = "blocks are no longer compiled: the compiler failed"
SLOWER = "blocks are no longer compiled: steps did not become faster"
TOO_LONG = "blocks are no longer compiled: compiling takes longer than it can save"
PARTLY = "some blocks are not compiled: the compiler failed"
NOT_READY = "No block was compiled: their weights do not lie on the device"
FEW, MANY = 6, 200  # steps that are compared on each side


def pays(step: float, left: int, kinds: dict[str, int], sizes: int) -> bool:
    """Whether `left` steps of so many seconds save twice what compiling takes: each kind of block so many times, for so many sizes."""
    return max(kinds.values(), default=0) * sizes <= SHAPES and step * left * SAVED > 2 * sum(kinds.values()) * sizes * EACH


class Compiling:
    """Switches a run's blocks on and off. wanted: "auto" tries them where they may pay, "always" has them from the first step."""

    def __init__(self, blocks: Blocks, wanted: str, sizes: int, epoch: int, hooks: Hooks, may: Callable[[], bool] = lambda: True) -> None:
        """sizes: how many shapes micro-batches and their captions have; each is compiled by itself. epoch: steps, over which all of them come.
        may: whether steps are as they are otherwise, so that they can be compared."""
        self.blocks, self.wanted, self.sizes, self.hooks, self.may = blocks, wanted, sizes, hooks, may
        self.timed = 1 + (FEW if sizes == 1 else min(max(FEW, epoch), MANY))  # the first is slowed by the change itself
        self.before: list[float] = []  # seconds a step, as blocks are and compiled
        self.after: list[float] = []
        self.taken = 0.0  # seconds, for compiling
        self._left, self._known, self._judged, self._over, self._fits = time.monotonic(), 0, wanted != "auto", False, True
        self._saves, self._told = 0.0, 0  # seconds that were hoped for; kinds of blocks whose failure was told

    def begin(self, room: float | None) -> None:
        """Before the first step of an attempt. room: how many times what a step takes is free; None where nobody knows."""
        self.blocks.on = self.wanted == "always" and self.blocks.usable
        self._fits = room is None or room >= MORE
        self.before.clear()
        self.after.clear()
        self._left = time.monotonic()

    def watching(self, then: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """The progress hook `then`, and a look at how long the step took."""

        def progress(now: Progress) -> None:
            seconds, compiled = time.monotonic() - self._left, self.blocks.compilations
            if compiled > self._known:
                self.taken += seconds
            elif now.validation_loss is None and self.may():
                (self.after if self.blocks.on else self.before).append(seconds)
            self._known = compiled
            then(now)
            self._decide(now)
            self._left = time.monotonic()

        return progress

    def broke_off(self, error: BaseException, step: int) -> bool:
        """Whether it was compiled blocks that broke off that step: their compiler, memory that ran out with them, or a checkpoint around one that
        was compiled in forward and failed in backward. They are off then, and the step can be tried again."""
        memory, blocks = isinstance(error, torch.OutOfMemoryError), self.blocks
        if self._over or not (blocks.on and (memory or of_the_compiler(error)) or blocks.failed and isinstance(error, CheckpointError)):
            return False
        self._over = True
        blocks.stop(in_short(error))
        self._say(step, MEMORY if memory else FAILED)
        return True

    def notes(self) -> list[str]:
        """What the report says of it."""
        if self.blocks.failed and self.wanted == "always":
            return [f"Blocks could not be compiled: {'; '.join(f'{kind}, {why}' for kind, why in sorted(self.blocks.failed.items()))}"]
        if self.wanted == "always" and not self.blocks.compilations:
            return [NOT_READY]
        if not self.blocks.on or min(len(self.before), len(self.after)) < self.timed:
            return []
        return [f"Compiled blocks made a step {self._step(self.before) / self._step(self.after):.2f} times as fast, after {self.taken:.0f} s of compiling"]

    def _decide(self, now: Progress) -> None:
        blocks = self.blocks
        if len(blocks.failed) > self._told and not self._over:
            self._say(now.step, MEMORY if GONE in blocks.failed.values() else PARTLY if blocks.usable else FAILED)
        self._told = len(blocks.failed)
        if self._judged:
            return
        if not blocks.on:
            if len(self.before) >= self.timed:
                step, left = self._step(self.before), now.total - now.step
                self._saves = step * left * SAVED
                blocks.on = blocks.usable and self._fits and pays(step, left, blocks.kinds, self.sizes)
                self._judged = not blocks.on
                if blocks.on:
                    self._say(now.step, "blocks are compiled from here on")
        elif self.taken > self._saves:
            self._stop(now.step, TOO_LONG)
        elif len(self.after) >= self.timed:
            self._judged = True
            if self._step(self.after) > FASTER * self._step(self.before):
                self._stop(now.step, SLOWER)

    def _stop(self, step: int, why: str) -> None:
        self._judged = True
        self.blocks.stop(why)
        self._told = len(self.blocks.failed)
        self._say(step, why)

    def _step(self, seconds: list[float]) -> float:
        """Of all steps but the first: in the median, or on an average where pictures of several sizes make them long and short."""
        return statistics.median(seconds[1:]) if self.sizes == 1 else statistics.fmean(seconds[1:self.timed])

    def _say(self, step: int, change: str) -> None:
        facts: dict[str, Any] = {"step": step, "change": change}
        self.hooks.event("compiling", facts)

