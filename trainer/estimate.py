"""What a run will take, before its first step: memory from the model itself, asked in small; disk from the shapes; time from its first steps.

Nothing of a run's random numbers is used, and no gradient is left behind.
"""
from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from . import optim
from .backbones.protocol import Batch
from .config import LoomConfig
from .data.batches import Encoded, Row
from .fitting import Fitting
from .hooks import Hooks, Progress
from .objective import Objective
from .state import State

MIB = 2**20
_TIMED = 3  # steps, of which the first warms up


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside held at once, forward and backward, on any device; scratch space of kernels is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if _gives_a_view(func):
            return made
        given = {id(t.untyped_storage()) for t in _tensors((args, *(kwargs or {}).values()))}
        for tensor in _tensors((made,)):
            storage = tensor.untyped_storage()
            if id(storage) not in given and storage not in self._known:
                size = storage.nbytes()
                self._known[storage] = size
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, size)
        return made

    def _freed(self, size: int) -> None:
        self.live -= size


def _tensors(values: Iterable) -> Iterator[torch.Tensor]:
    """Those that an operation takes or gives, in lists too: torch's own walk through trees takes longer than the operations."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


@functools.cache
def _gives_a_view(func) -> bool:
    """Whether all that the operation gives lies in its inputs' memory."""
    return all(part.alias_info for part in func._schema.returns)


@dataclass(frozen=True)
class Memory:
    """Bytes on the device: the base model's weights; the LoRA's; its gradients and what the optimizer keeps; the most that a micro-batch's part takes
    beside them; and what was free for the last two (None where nobody knows)."""

    base: int
    lora: int
    optimizer: int
    step: int
    free: int | None

    @property
    def fits(self) -> bool:
        return self.free is None or self.optimizer + self.step <= self.free

    @property
    def total(self) -> int:
        return self.base + self.lora + self.optimizer + self.step

    def within(self, budget: float) -> Memory:
        """The same where no more than that many bytes may be taken in all; 0: any."""
        left = max(0, round(budget) - self.base - self.lora)
        return self if not budget else replace(self, free=left if self.free is None else min(self.free, left))

    def __str__(self) -> str:
        parts = f"base model {self.base / MIB:,.0f}, LoRA {self.lora / MIB:,.0f}, optimizer {self.optimizer / MIB:,.0f}, a step {self.step / MIB:,.0f}"
        free = "" if self.free is None else f"; free for the last two: {self.free / MIB:,.0f}"
        return f"about {self.total / MIB:,.0f} MiB ({parts}{free})"


# What was asked of a network before, {how: {cells: bytes}}: a run like an earlier one begins at once.
_peaks: weakref.WeakKeyDictionary[torch.nn.Module, dict[Hashable, dict[int, int]]] = weakref.WeakKeyDictionary()


def memory(state: State, objective: Objective, encoded: Encoded, config: LoomConfig, fitting: Fitting) -> Memory:
    """Asked in two small sizes and drawn out to the largest, for what autograd keeps grows with the picture's area."""
    largest = max(encoded.rows, key=lambda row: row.shape[-2] * row.shape[-1])
    rows, area = -(-min(config.train.batch_size, len(encoded)) // fitting.split), largest.shape[-2] * largest.shape[-1]
    trained = sum(p.numel() * p.element_size() for p in state.parameters)
    optimizer, (base, free) = trained + optim.kept_bytes(config.optim, trained // 4), objective.model.memory()
    model, train = objective.model, config.train
    batch, known = _corner(encoded, largest, tuple(largest.shape[-2:])), _peaks.setdefault(model.modules(False)["lora_unet"], {})
    texts = [tuple(c.context.shape) for given in (batch.conditioning, batch.preserved_conditioning) for c in given or ()] or batch.captions
    key = (trained, replace(config.adapter, init_lora=""), train.precision, train.base_precision, train.plain_layers, fitting.checkpointing,
           fitting.offload, objective.together, tuple(largest.shape), batch.masks is None, *texts, len(batch.preserved or ()))
    found = dict(known.get(key, {}))
    try:
        for size in () if found else _smaller(tuple(largest.shape[-2:]), max(1, model.family.size_multiple // model.family.cell)):
            found[size[0] * size[1]] = peak(objective, _corner(encoded, largest, size), state)
    except torch.OutOfMemoryError:  # not even these fit
        return Memory(base, trained, optimizer, (free or 0) + 1, free or 0)
    if len(known) > 100:
        known.clear()
    known[key] = found
    (small, least), (large, most) = min(found.items()), max(found.items())
    slope = (most - least) / (large - small) if large > small else 0.0
    return Memory(base, trained, optimizer, rows * round(least + slope * (area - small)), free)


def disk(state: State, config: LoomConfig, file_bytes: int, sample_bytes: int) -> int:
    """Bytes that the run will write: LoRA files, the state to resume from (twice while it is replaced), `sample_bytes` each time that samples are drawn."""
    output, every = config.output, config.samples.sample_steps
    values = sum(p.numel() for p in state.parameters)
    saves = (state.steps - 1) // output.save_steps if output.save_steps else 0
    saves = min(saves, output.keep_checkpoints) if output.keep_checkpoints else saves
    drawn = 2 + (state.steps - 1) // every if every else 0
    return file_bytes * (2 + saves) + 2 * (4 * values + optim.kept_bytes(config.optim, values)) + drawn * sample_bytes


class Clock:
    """How long the run will take, from its first steps. `between(step, seconds of one)` gives what samples and validation will take after that step."""

    def __init__(self, hooks: Hooks, between: Callable[[int, float], float] = lambda step, seconds: 0.0) -> None:
        self.hooks, self.between = hooks, between
        self.started = self.left = time.monotonic()
        self.steps: list[float] = []  # seconds, without what came between

    def watching(self, then: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """The progress hook `then`, and the event "estimate" after the first steps."""

        def progress(now: Progress) -> None:
            if now.validation_loss is None:
                self.steps.append(time.monotonic() - self.left)
            then(now)
            if len(self.steps) == _TIMED and now.total > now.step and now.validation_loss is None:
                step = sum(self.steps[1:]) / (_TIMED - 1)
                seconds = time.monotonic() - self.started + step * (now.total - now.step) + self.between(now.step, step)
                self.hooks.event("estimate", {"step": now.step, "seconds_per_step": step, "seconds": seconds})
            self.left = time.monotonic()

        return progress


def _smaller(full: tuple[int, int], unit: int) -> list[tuple[int, int]]:
    """About a quarter and a half of the sides, in whole units; the full size where it is no larger."""
    fitted = lambda side, share: min(side, max(unit, round(side * share / unit) * unit))
    return sorted({tuple(fitted(side, share) for side in full) for share in (0.25, 0.5)})


def _corner(encoded: Encoded, row: Row, size: tuple[int, int]) -> Batch:
    preserved = None if encoded.preserved is None else [encoded.preserved[row.caption][0]]
    batch = encoded.batch([next(i for i, other in enumerate(encoded.rows) if other is row)], [row.caption], preserved)
    cut = lambda t: None if t is None else t[..., :size[0], :size[1]].contiguous()
    return replace(batch, latents=cut(batch.latents), masks=cut(batch.masks))


def peak(objective: Objective, batch: Batch, state: State) -> int:
    """Bytes that one micro-batch holds at most, forward and backward, gradients aside."""
    device = objective.model.device
    # shapes alone draw nothing, and may be asked for while another thread draws
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda, enabled=device.type != "meta"), torch.enable_grad():
        question = objective.draw(batch, torch.Generator().manual_seed(0))
        for parameter in state.parameters:  # gradients are counted elsewhere
            parameter.grad = torch.zeros_like(parameter)
        try:
            with Peak() as seen:
                objective(question).backward()
        finally:
            for parameter in state.parameters:
                parameter.grad = None
    return seen.peak
