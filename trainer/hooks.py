"""What a host may hang on a run: progress, a stop, an interrupt, events. Every one is optional."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Where the run is. `phase` is "encode" or "train"; the rest is filled while training."""

    phase: str
    step: int
    total: int
    loss: float = 0.0
    smoothed_loss: float = 0.0
    learning_rate: float = 0.0
    grad_norm: float = 0.0
    steps_per_second: float = 0.0
    eta_seconds: float = 0.0
    validation_loss: float | None = None  # where it was computed after this step

    def line(self) -> str:
        """One line fit for a terminal or a node's text."""
        if self.phase == "encode":
            return f"encoding pictures and captions {self.step}/{self.total}"
        minutes, seconds = divmod(int(self.eta_seconds + 0.5), 60)
        checked = "" if self.validation_loss is None else f"  validation {self.validation_loss:.4f}"
        return (f"step {self.step}/{self.total}  loss {self.smoothed_loss:.4f}{checked}  lr {self.learning_rate:.2e}  "
                f"{self.steps_per_second:.2f} it/s  {minutes:d}:{seconds:02d} left")


@dataclass
class Hooks:
    """poll: called at least once a micro-step, may raise (also a BaseException) to interrupt; what was learned is kept.
    should_stop: asked after every step, True ends the run well. wanted: asked after every step for "save" and "sample", True gets one at once.
    event: named facts, such as "saved". about: what of the host goes into the run's record, fit for JSON."""

    progress: Callable[[Progress], None] = field(default=lambda progress: None)
    poll: Callable[[], None] = field(default=lambda: None)
    should_stop: Callable[[], bool] = field(default=lambda: False)
    wanted: Callable[[str], bool] = field(default=lambda what: False)
    event: Callable[[str, dict[str, Any]], None] = field(default=lambda name, data: None)
    interrupts: tuple[type[BaseException], ...] = ()  # the host's own, where they are Exceptions: they always go through
    about: dict[str, Any] = field(default_factory=dict)
