"""One run's attempts: trained as it is, and again in a cheaper way for as long as memory does not suffice."""
from __future__ import annotations

import gc
import logging
import math
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import torch

from . import estimate, loop
from .adapters import Adapter, adapted
from .backbones.protocol import TrainableModel
from .compiling import Compiling
from .config import LoomConfig
from .data.batches import batches, epoch_length
from .data.cache import FOLDER, Cache
from .data.dataset import Dataset
from .data.encoding import encode
from .devices import capped, compiles_by_itself, out_of_memory, why_not_recorded
from .errors import LoomError
from .fitting import Fitting
from .hooks import Hooks, Progress
from .layers.compiled import Blocks
from .layers.recorded import SHAPES, Recorded
from .objective import Objective
from .recording import Recording
from .runs import logs
from .runs.saver import Saver
from .samples import Samples
from .state import State, Written
from .validation import TIMES, Validation

NEITHER = "Nothing was compiled or recorded: plain_layers and a base model in nf4 run as they are"
_log = logging.getLogger("lora_loom")


class Attempts:
    """A run on its way, from encoding to its last save. `state` is where it is; `changes` what made it fit, in words."""

    def __init__(self, model: TrainableModel, dataset: Dataset, held: Dataset | None, config: LoomConfig, steps: int, saver: Saver, log: logs.Log,
                 hooks: Hooks, first: dict[str, dict[str, torch.Tensor]], written: Written | None) -> None:
        """Encodes everything and lets the encoders go. first: the tensors to begin with, by adapter; written: the state to go on from instead."""
        self.model, self.config, self.steps, self.saver, self.log, self.hooks = model, config, steps, saver, log, hooks
        self.first, self.written, self.dataset = first, written, dataset
        self.state: State | None = None
        self.changes: list[str] = []
        live_text = config.adapter.train_text_encoder
        words = config.loss.preservation_words if config.loss.preservation else None
        cache = Cache(saver.run.parent / FOLDER if config.data.cache else None)
        self.encoded = encode(model, dataset, live_text, self._encoding, words, config.data, config.train.seed, cache)
        self.checked = encode(model, held, live_text, self._encoding, cache=cache) if held else self.encoded
        cache.tidy()
        self._cached = cache.written
        _log.info("%d pictures and captions encoded, %d taken from the cache", cache.made, cache.found)
        self.pictures = Samples(model, dataset, config.samples, saver.run, log, hooks, live_text).shaped(self.encoded)
        model.release_encoders(text_encoders=not live_text)
        self.sizes, self.epoch = self._sizes()
        self.unrecorded = why_not_recorded(model.device)
        self.recording = self._recording()
        self.compiling = self._compiling()

    def train(self) -> State:
        """The state that the run ended with. What was learned is saved on every way out."""
        fitting: Fitting | None = Fitting(int(self.config.train.gradient_checkpointing))
        while fitting is not None:
            try:
                # a host brings its model in as it is, before there is anything of ours in its tree
                with self.model.training(self.config.train.precision, self.config.adapter.train_text_encoder, fitting.checkpointing,
                                         largest=self._largest(fitting), offload=fitting.offload,
                                         plain=self.config.train.plain_layers, in_nf4=self.config.train.in_nf4,
                                         blocks=self.compiling and self.compiling.blocks, recorded=self._recorded(fitting)), \
                        adapted(self.model, self.config.adapter, self.config.train.seed, self.first) as adapters:
                    fitting = self._attempt(adapters, fitting)
            except LoomError as error:
                if self.saver.path is not None:
                    raise LoomError(f"{error}.{self._kept()}", error.fix) from error
                raise
            except Exception as error:
                if not out_of_memory(error):
                    raise
                config, pixels = self.config, self.dataset.resolution
                within = f" within memory_budget {config.train.memory_budget:g} GB" if config.train.memory_budget else ""
                raise LoomError(f"the GPU ran out of memory{within} at batch_size {config.train.batch_size}, "
                                f"{'after ' + ', '.join(self.changes) if self.changes else 'as it is'}: lower the resolution ({pixels}) "
                                f"or the rank ({config.adapter.rank}), or choose smaller targets.{self._kept()}",
                                {"batch_size": 1, "gradient_checkpointing": True, "resolution": max(64, pixels * 3 // 4 // 64 * 64)}) from error
            if fitting is not None:
                gc.collect()
                if self.model.device.type == "cuda":
                    torch.cuda.empty_cache()
        return self.state

    def notes(self) -> list[str]:
        """What the report says beside the state."""
        notes = [f"So that it fits into memory, these were changed: {', '.join(self.changes)}"] if self.changes else []
        notes += [note for faster in (self.recording, self.compiling) if faster for note in faster.notes()]
        if self.config.train.compile == "always":
            notes += [NEITHER] if self.compiling is None else [self.unrecorded] if self.unrecorded else []
        return notes + ([f"Samples ended early: {self.pictures.failure}"] if self.pictures.failure else [])

    def _sizes(self) -> tuple[int, int]:
        """How many shapes micro-batches and their captions have, and the steps over which all of them come."""
        rows, batch_size, turns = Counter(), self.config.train.batch_size, [self.dataset.repeats * row.repeats for row in self.encoded.rows]
        for row, times in zip(self.encoded.rows, turns):
            rows[row.shape] += times
        shapes = sum(1 + (count > batch_size and count % batch_size > 0) for count in rows.values())  # the last batch of a shape may be smaller
        lengths = {text.shapes["context"] for text in (self.encoded.conditioning or {}).values()}
        epoch = epoch_length(turns, [row.shape for row in self.encoded.rows], batch_size) // self.config.train.gradient_accumulation_steps
        return shapes * max(1, len(lengths)), epoch

    def _recording(self) -> Recording | None:
        """Where the device does the same at every step: few shapes, and nothing that is drawn within the network."""
        train, adapter = self.config.train, self.config.adapter
        if self.unrecorded is not None or train.compile == "never" or train.plain_layers or train.in_nf4 or self.sizes > SHAPES \
                or adapter.dropout or adapter.module_dropout or adapter.train_text_encoder:
            return None
        recorded = Recorded(train.gradient_accumulation_steps > 1, lambda: bool(self.compiling and self.compiling.blocks.on))
        return Recording(recorded, self.sizes, self.epoch, self.hooks)

    def _recorded(self, fitting: Fitting) -> Recorded | None:
        return self.recording.recorded if self.recording is not None and fitting == Fitting() else None

    def _compiling(self) -> Compiling | None:
        train = self.config.train
        if train.compile == "never" or train.plain_layers or train.in_nf4 or train.compile == "auto" and not compiles_by_itself(self.model.device):
            return None
        return Compiling(Blocks(), train.compile, self.sizes, self.epoch, self.hooks, lambda: self.recording is None or self.recording.settled)

    def _attempt(self, adapters: list[Adapter], fitting: Fitting) -> Fitting | None:
        """Train to the end; or the cheaper way to be tried next, because memory will not or did not suffice."""
        state = self.state = State(adapters, self.config, self.steps, self.model.device)
        self._begin(adapters)
        objective = Objective(self.model, adapters, self.config.loss, together=fitting.together)
        needs = self._needs(objective, fitting)
        cheaper = fitting.cheaper(self.config.train.batch_size, self.model.can_offload and not self.config.train.in_nf4)  # which is off it already
        if needs is not None and not needs.fits and cheaper is not None:
            return self._instead("will not fit", cheaper, fitting, needs)
        self._check_budget(needs)
        disk = estimate.disk(state, self.config, self.saver.reserve.size, self.pictures.bytes)
        self.hooks.event("memory", {**({"text": "unknown"} if needs is None else {"text": str(needs), **vars(needs)}), "disk": disk + self._cached})
        room = None if needs is None or needs.free is None else (needs.free - needs.optimizer) / max(needs.step, 1)
        for faster in (self.recording, self.compiling):
            if faster is not None:
                faster.begin(room)
        try:
            with capped(self.model.device, self._cap(needs)), self._paged(needs):
                self._loop(objective, fitting)
        except BaseException as error:
            again = self._after(torch.OutOfMemoryError(str(error)) if out_of_memory(error) else error, cheaper, fitting, needs)
            if again is None:
                self.saver.finish(state)
                raise
            self.written = state.written()  # as after the last whole step
            return again
        self.saver.finish(state)
        return None

    def _loop(self, objective: Objective, fitting: Fitting) -> None:
        """The training itself, with everything that watches it."""
        state, config, pictures = self.state, self.config, self.pictures
        validation = Validation(objective, self.checked, config.train.batch_size, config.train.seed)

        def validate() -> float:
            with state.shown():  # what would be saved, for the best of it is kept
                return validation()

        watch = self.saver.watching(state, self.log)
        watch = pictures.watching(state, watch)
        for faster in (self.recording, self.compiling):
            if faster is not None:
                watch = faster.watching(watch)
        watch = estimate.Clock(self.hooks, partial(_between, config, self.steps, pictures, len(self.checked))).watching(watch)
        if config.samples.sample_steps and not state.step:
            pictures.draw(state)
        source = partial(batches, self.encoded, self.dataset.repeats, config.train.batch_size, config.train.seed, config.loss.caption_dropout)
        with torch.enable_grad():
            loop.train(state, objective, lambda skip: source(skip=skip), config, replace(self.hooks, progress=watch),
                       validate if config.train.validation_steps else None, fitting.split)

    def _after(self, error: BaseException, cheaper: Fitting | None, fitting: Fitting, needs: estimate.Memory | None) -> Fitting | None:
        """The way in which the run goes on after that error; None where it ends with it."""
        memory = isinstance(error, torch.OutOfMemoryError)
        if any(faster is not None and faster.broke_off(error, self.state.step + 1) for faster in (self.recording, self.compiling)):
            return fitting
        return self._instead("out of memory", cheaper, fitting, needs) if memory and cheaper is not None else None

    def _begin(self, adapters: list[Adapter]) -> None:
        """A new run's start, or where it was."""
        if self.written is not None:
            self.saver.take_up(self.state, self.written)
        else:
            for adapter in adapters:
                if adapter.key in self.first:
                    adapter.load(self.first[adapter.key])
        self.state.mark()

    def _instead(self, why: str, cheaper: Fitting, fitting: Fitting, needs: estimate.Memory | None) -> Fitting:
        self.changes.append(cheaper.difference(fitting))
        self.hooks.event(why, {"step": self.state.step + 1, "change": self.changes[-1], "needed": str(needs)})
        return cheaper

    def _needs(self, objective: Objective, fitting: Fitting) -> estimate.Memory | None:
        """What is known of the memory that a step will take; None where asking failed, which ends no run."""
        try:
            return estimate.memory(self.state, objective, self.encoded, self.config, fitting).within(self.config.train.memory_budget * 2**30)
        except self.hooks.interrupts:
            raise
        except Exception as error:
            _log.info("no estimate of the memory: %s", error)
            return None

    def _check_budget(self, needs: estimate.Memory | None) -> None:
        """LoomError where not even the cheapest way stays within it."""
        budget, config = self.config.train.memory_budget, self.config
        if not budget or needs is None or needs.total <= budget * 2**30:
            return
        share = min(0.1, 10 ** (math.floor(math.log10(needs.total / 2**30)) - 1))
        enough, after = round(math.ceil(needs.total / 2**30 / share) * share, 9), f" after {', '.join(self.changes)}" if self.changes else ""
        raise LoomError(f"memory_budget {budget:g} GB is below the {enough:g} GB that this run takes{after}: raise it, or lower the resolution "
                        f"({self.dataset.resolution}), the rank ({config.adapter.rank}) or the batch_size ({config.train.batch_size})",
                        {"memory_budget": max(enough, 0.1)})

    def _cap(self, needs: estimate.Memory | None) -> int:
        """Bytes that torch may reserve so that the run stays within its budget beside what others hold on the device; 0: no budget.

        Where the host keeps the base model outside torch's memory, less than that is torch's; never less than the step that was found to fit."""
        budget, device = self.config.train.memory_budget, self.model.device
        if not budget or needs is None or device.type != "cuda":
            return 0
        held = torch.cuda.memory_allocated(device)
        return max(round(budget * 2**30) + held - needs.base - needs.lora, held + needs.optimizer + needs.step)

    def _paged(self, needs: estimate.Memory | None) -> AbstractContextManager[None]:
        """What the budget leaves to weights that come and go outside torch's memory."""
        budget = self.config.train.memory_budget
        return self.model.limited(max(0, round(budget * 2**30) - needs.lora - needs.optimizer - needs.step)) if budget and needs else nullcontext()

    def _largest(self, fitting: Fitting) -> tuple[int, ...]:
        """(B, C, H/8, W/8) of the largest part of a micro-batch that can come."""
        rows = -(-min(self.config.train.batch_size, len(self.encoded)) // fitting.split)
        if self.config.loss.preservation and fitting.together:
            rows *= 2
        return (rows, *max((row.shape for row in self.encoded.rows), key=math.prod))

    def _kept(self) -> str:
        return f" What was learned in {self.state.step} steps is saved as {self.saver.path.name}" if self.saver.path else ""

    def _encoding(self, done: int, total: int) -> None:
        self.hooks.poll()
        self.hooks.progress(Progress("encode", done, total))


def _between(config: LoomConfig, total: int, pictures: Samples, checked: int, step: int, seconds: float) -> float:
    """Seconds that samples and validation will take after that step. A validation asks each picture several times, forward alone: a third of a step."""
    found = pictures.to_come(step, total)
    every = config.train.validation_steps
    if every:
        left = total // every - step // every + bool(total % every)
        found += left * TIMES * -(-checked // config.train.batch_size) * seconds / 3 / config.train.gradient_accumulation_steps
    return found
