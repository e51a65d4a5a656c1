"""The training loop. It knows no node, no file and no model family: an objective, micro-batches and a state go in, the state moves on."""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch

from . import optim
from .backbones.protocol import Batch
from .config import LoomConfig
from .errors import LoomError
from .hooks import Hooks, Progress
from .objective import Objective
from .state import State

EXPLODED = 50  # times the smoothed loss; single timesteps differ by less than 10
PATIENCE = 3  # bad steps in a row


def train(state: State, objective: Objective, source: Callable[[int], Iterator[Batch]], config: LoomConfig, hooks: Hooks,
          validate: Callable[[], float] | None = None, split: int = 1) -> None:
    """Optimizer steps until `state.steps`. `source(n)` gives micro-batches from the n-th on; each is computed in `split` parts.

    A step whose loss or gradient is no finite number, or explodes, is skipped: its pictures are drawn anew later. Raises LoomError
    after three in a row; the adapters are as after the last good step.
    """
    batches, accumulation = source(state.drawn), config.train.gradient_accumulation_steps
    started, first = time.perf_counter(), state.step
    while state.step < state.steps:
        losses = []
        for _ in range(accumulation):
            hooks.poll()
            question = objective.draw(next(batches), state.generator)
            state.drawn += 1
            for part, share in question.parts(split):
                loss = objective(part) * (share / accumulation)
                loss.backward()
                losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(state.parameters, config.optim.max_grad_norm or math.inf)
        *losses, norm = torch.stack([*(loss.to(norm) for loss in losses), norm]).tolist()  # a GPU is waited for once a step
        total = sum(losses)
        if _bad(total, norm, state):
            hooks.event("step skipped", {"step": state.step + 1, "loss": str(total), "grad_norm": str(norm)})
            if state.skip() == PATIENCE:
                raise LoomError(_remedy(total, norm, state, config), {"learning_rate": float(f"{config.optim.learning_rate / 4:.1g}")})
            continue
        rate = optim.rate(state.optimizer, state.schedule)
        state.advance(total)

        checked = validate() if validate and (state.step % config.train.validation_steps == 0 or state.step == state.steps) else None
        speed = (state.step - first) / max(time.perf_counter() - started, 1e-9)
        hooks.progress(Progress("train", state.step, state.steps, total, state.smoothed, rate, norm, speed, (state.steps - state.step) / speed, checked))
        if hooks.should_stop():
            break


def _bad(total: float, norm: float, state: State) -> bool:
    if not (math.isfinite(total) and math.isfinite(norm)):
        return True
    return state.step >= 10 and total > EXPLODED * state.smoothed


def _remedy(total: float, norm: float, state: State, config: LoomConfig) -> str:
    fp32 = "" if config.train.precision == "fp32" else ", or use precision fp32"
    return (f"loss {total:g} and gradient norm {norm:g} at step {state.step + 1}, {PATIENCE} times in a row: they must be finite numbers, and the loss no "
            f"more than {EXPLODED} times what it was; lower the learning rate ({config.optim.learning_rate:g}){fp32}")
