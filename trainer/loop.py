"""The training loop. It knows no node, no file and no model family: an objective, micro-batches and a state go in, the state moves on."""
from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator

import torch

from . import optim
from .backbones.protocol import Batch
from .config import LoomConfig
from .errors import LoomError
from .hooks import Hooks, Progress
from .objective import Objective
from .state import Random, State

EXPLODED = 50  # times the smoothed loss; single timesteps differ by less than 10
TRUSTED = 10  # steps, after which the smoothed loss tells what a loss should be
PATIENCE = 3  # bad steps in a row


def train(state: State, objective: Objective, source: Callable[[int], Iterator[Batch]], config: LoomConfig, hooks: Hooks,
          validate: Callable[[], float] | None = None, split: int = 1, ahead: bool | None = None) -> None:
    """Optimizer steps until `state.steps`. `source(n)` gives micro-batches from the n-th on; each is computed in `split` parts.

    A step whose loss or gradient is no finite number, or explodes, is skipped: its pictures are drawn anew later. Raises LoomError
    after three in a row; the adapters are as after the last good step.

    ahead: the device is given a step before anybody has read what came of the one before, so that it never waits for the host; None: where that
    can be. What is learned is the same.
    """
    steps = _Steps(state, objective, source(state.drawn), config, hooks, validate, split)
    if state.skips_by_itself if ahead is None else ahead:
        _one_ahead(steps)
    else:
        _one_by_one(steps)


def _one_by_one(steps: _Steps) -> None:
    state, over = steps.state, False
    while state.step < state.steps and not over:
        *losses, norm = steps.computed().tolist()  # the device is waited for
        bad, rate = steps.bad(sum(losses), norm), steps.rate()
        if bad:
            state.drop()
        else:
            state.take()
        over = steps.concluded(sum(losses), norm, bad, rate, state.random())


def _one_ahead(steps: _Steps) -> None:
    """The device itself leaves out a bad step. What the host does after a step comes while the device computes the next one's gradients, which need
    nothing of it; the next is taken afterwards."""
    state, waiting, over = steps.state, None, False
    while state.step < state.steps and not over:
        random = found = error = None
        try:
            random = state.random()
            if waiting is None or not steps.looked_at(state.step + 1):
                found = steps.computed()
        except BaseException as raised:  # whatever ended that one, the one before is done
            error = raised
            traceback.clear_frames(error.__traceback__)  # they hold what memory may have run out for
        if waiting is not None:
            numbers, rate = waiting
            try:
                *losses, norm, bad = numbers()
            except BaseException as raised:
                error = error or raised
                *losses, norm, bad = numbers()
            waiting = None
            over = steps.concluded(sum(losses), norm, bool(bad), rate, random)
        if error is not None and not (over and steps.needless(error)):
            raise error
        if over or found is None:
            state.drop()
            continue
        bad = steps.bad_there(found)
        waiting = _Numbers(torch.cat([found, bad[None]])), steps.rate()
        state.take(unless=bad)


class _Steps:
    """What one step is made of."""

    def __init__(self, state: State, objective: Objective, batches: Iterator[Batch], config: LoomConfig, hooks: Hooks,
                 validate: Callable[[], float] | None, split: int) -> None:
        self.state, self.objective, self.batches, self.config, self.hooks, self.validate, self.split = \
            state, objective, batches, config, hooks, validate, split
        self.started, self.first = time.perf_counter(), state.step

    def computed(self) -> torch.Tensor:
        """Clipped gradients; the losses of the step's parts and the norm that the gradients had, on the device."""
        state, losses = self.state, []
        accumulation = self.config.train.gradient_accumulation_steps
        for _ in range(accumulation):
            self.hooks.poll()
            question = self.objective.draw(next(self.batches), state.generator)
            state.drawn += 1
            for part, share in question.parts(self.split):
                loss = self.objective(part) * (share / accumulation)
                loss.backward()
                losses.append(loss.detach())
                del loss  # and its graph, which must not live on into the next part
        norm = torch.nn.utils.clip_grad_norm_(state.parameters, self.config.optim.max_grad_norm or math.inf)
        return torch.stack([*(loss.to(norm) for loss in losses), norm])

    def rate(self) -> float:
        return optim.rate(self.state.optimizer, self.state.schedule)

    def bad(self, total: float, norm: float) -> bool:
        return not (math.isfinite(total) and math.isfinite(norm)) or self.state.step >= TRUSTED and total > EXPLODED * self.state.smoothed

    def bad_there(self, found: torch.Tensor) -> torch.Tensor:
        """The same, of what `computed` gave: 0 or 1, on its device."""
        total = found[:-1].sum()
        bad = ~(total.isfinite() & found[-1].isfinite())
        if self.state.step >= TRUSTED:
            bad = bad | (total > EXPLODED * self.state.smoothed)
        return bad.to(found)

    def validated(self, step: int) -> bool:
        """Whether there is a validation after that step."""
        return self.validate is not None and (step >= self.state.steps or step % self.config.train.validation_steps == 0)

    def looked_at(self, step: int) -> bool:
        """Whether something that takes time or memory comes after that step: nothing else should be under way then."""
        every = self.config.samples.sample_steps, self.config.output.save_steps
        return step >= self.state.steps or self.validated(step) or any(n and step % n == 0 for n in every)

    def needless(self, error: BaseException) -> bool:
        """Whether that error is of no account where the run stops anyway: any but the host's own and what ends a process."""
        return isinstance(error, Exception) and not isinstance(error, self.hooks.interrupts)

    def concluded(self, total: float, norm: float, bad: bool, rate: float, random: Random) -> bool:
        """A step that was taken, or left out as bad, is made known; `random` as it was after the step. Whether the run shall stop here."""
        state, config, hooks = self.state, self.config, self.hooks
        if bad:
            hooks.event("step skipped", {"step": state.step + 1, "loss": str(total), "grad_norm": str(norm)})
            if state.skip(random) == PATIENCE:
                raise LoomError(_remedy(total, norm, state, config), {"learning_rate": float(f"{config.optim.learning_rate / 4:.1g}")})
            return False
        state.advance(total, random)
        checked = self.validate() if self.validated(state.step) else None
        speed = (state.step - self.first) / max(time.perf_counter() - self.started, 1e-9)
        hooks.progress(Progress("train", state.step, state.steps, total, state.smoothed, rate, norm, speed, (state.steps - state.step) / speed, checked))
        return hooks.should_stop()


class _Numbers:
    """Values on their way from the device; called, they are waited for."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.there = values, None
        if values.device.type == "cuda":
            self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            self.there = torch.cuda.current_stream(values.device).record_event()

    def __call__(self) -> list[float]:
        if self.there is not None:
            self.there.synchronize()
        return self.values.tolist()


def _remedy(total: float, norm: float, state: State, config: LoomConfig) -> str:
    fp32 = "" if config.train.precision == "fp32" else ", or use precision fp32"
    return (f"loss {total:g} and gradient norm {norm:g} at step {state.step + 1}, {PATIENCE} times in a row: they must be finite numbers, and the loss no "
            f"more than {EXPLODED} times what it was; lower the learning rate ({config.optim.learning_rate:g}){fp32}")
