"""What a training is, from config to LoRA file: the one door for canvas, command line and cluster.

A model comes in from the caller; nothing here knows which backbone is behind it.
"""
from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from . import loop, optim
from .adapters import Adapter, adapted, select, size
from .backbones.families import Family
from .backbones.protocol import TrainableModel
from .config import LoomConfig, parse_target
from .data.batches import Encoded, batches, encode, epoch_length
from .data.buckets import bucket_for
from .data.folder import Dataset
from .errors import LoomError
from .hooks import Hooks, Progress
from .runs import export, lora_names, store

__all__ = ["Hooks", "Progress", "Result", "check", "plan", "total_steps", "train"]


@dataclass
class Result:
    """What a run leaves: the file, its tensors, one loss a step, and the report that the node shows."""

    path: Path
    lora: dict[str, torch.Tensor]
    losses: list[float]
    steps: int
    stopped: bool
    run_folder: Path
    report: str


def buckets(dataset: Dataset, family: Family) -> dict[tuple[int, int], int]:
    """{(width, height) in pixels: pictures}, largest first."""
    counts: dict[tuple[int, int], int] = {}
    for picture in dataset.pictures:
        size = bucket_for(picture.width, picture.height, dataset.resolution, family.size_multiple, dataset.buckets)
        counts[size] = counts.get(size, 0) + (2 if dataset.flip else 1)
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def steps_per_epoch(dataset: Dataset, config: LoomConfig, family: Family) -> int:
    shapes = [size for size, count in buckets(dataset, family).items() for _ in range(count)]
    micro = epoch_length(len(shapes), dataset.repeats, shapes, config.train.batch_size)
    return max(1, -(-micro // config.train.gradient_accumulation_steps))


def total_steps(dataset: Dataset, config: LoomConfig, family: Family) -> int:
    """Optimizer steps: `steps` where given, else `epochs` times the steps of one."""
    return config.train.steps or config.train.epochs * steps_per_epoch(dataset, config, family)


def check(dataset: Dataset, config: LoomConfig) -> None:
    """LoomError for what can be known to fail before a model is there."""
    config.validate()
    if not dataset.pictures:
        raise LoomError("dataset holds no picture: LoadDataset.folder needs at least one; add pictures or lower min_size")
    if not any(dataset.caption(p) for p in dataset.pictures):
        raise LoomError(f"captions are missing: none of the {len(dataset.pictures)} pictures has one and trigger_word is empty, so that no prompt could "
                        "call what is learned; set LoadDataset.trigger_word, put .txt files beside the pictures, or let AutoCaption write them")
    optim.find(config.optim.optimizer)
    if config.optim.optimizer == "prodigy" and config.optim.learning_rate < 0.1:
        raise LoomError(f"learning_rate {config.optim.learning_rate:g} with prodigy: it finds the rate itself and multiplies it by this one; "
                        "set TrainLoRA.learning_rate to 1")
    if config.optim.optimizer == "prodigy" and any(parse_target(t).learning_rate for t in config.adapter.target_modules):
        raise LoomError("learning_rate in target_modules with prodigy: it has one rate for all; leave it out there, or use adamw")
    if config.loss.preservation and not dataset.trigger_word:
        raise LoomError(f"preservation {config.loss.preservation:g} without a trigger word: it keeps the model's answer to captions without that word; "
                        "set LoadDataset.trigger_word to the word that all captions share, or preservation to 0")


def plan(family: Family, dataset: Dataset, config: LoomConfig) -> str:
    """What will run, in words, before anything is loaded."""
    each, total = steps_per_epoch(dataset, config, family), total_steps(dataset, config, family)
    seen = total * config.train.batch_size * config.train.gradient_accumulation_steps / max(1, len(dataset.pictures))
    unused = [f"epochs {config.train.epochs} is not used: steps {config.train.steps} decides, set it to 0 to count by epochs"]
    return "\n".join([
        f"{family.title}: {config.adapter.algorithm} rank {config.adapter.rank} alpha {config.adapter.alpha:g} on "
        f"{', '.join(config.adapter.target_modules) or config.adapter.targets}{' and text encoders' if config.adapter.train_text_encoder else ''}",
        f"{len(dataset.pictures)} pictures x {dataset.repeats} repeats{' + mirrored' if dataset.flip else ''} in buckets "
        + ", ".join(f"{w}x{h}: {n}" for (w, h), n in buckets(dataset, family).items()),
        f"{total} steps of {config.train.batch_size} x {config.train.gradient_accumulation_steps} pictures, {each} steps an epoch, "
        f"{total / each:.1f} epochs: each picture is seen about {seen:.0f} times",
        f"{config.optim.optimizer} at {config.optim.learning_rate:g}, {config.optim.scheduler} with {config.optim.warmup_steps} warm-up steps, "
        f"min-SNR gamma {config.loss.min_snr_gamma:g}, captions dropped {config.loss.caption_dropout:.0%}, seed {config.train.seed}",
        *(unused if config.train.epochs and config.train.steps else []),
    ])


def train(model: TrainableModel, dataset: Dataset, config: LoomConfig, *, loras_folder: Path, runs_folder: Path,
          hooks: Hooks | None = None, log_dir: Path | None = None, init_lora: Path | None = None) -> Result:
    """Train and write the LoRA. On an interrupt or an error what was learned is written before it goes on its way.

    Raises LoomError for bad input before anything is computed, and for a loss that is no number.
    """
    hooks = hooks or Hooks()
    check(dataset, config)
    first = _going_on(model, config, init_lora)
    steps = total_steps(dataset, config, model.family)
    reserve = store.Reservation(Path(loras_folder), _file_size(model, config))
    log = None
    try:
        run = store.new_run(Path(runs_folder), config.output.name)
        (run / "checkpoints").mkdir()
        store.write_whole(run / "config.yaml", config.to_yaml().encode("utf-8"))
        store.write_whole(run / "dataset.txt", f"{dataset.report()}\n\n{plan(model.family, dataset, config)}\n".encode())
        log = store.Log(run, log_dir)
        hooks.event("started", {"run": run.name, "steps": steps, "plan": plan(model.family, dataset, config)})
        return _train(model, dataset, config, steps, Path(loras_folder), run, reserve, log, hooks, first)
    except OSError as error:
        raise LoomError(f"output folder of the run {config.output.name!r} failed ({error.strerror or error}): "
                        "free some space, or choose a folder that may be written to") from error
    finally:
        reserve.release()
        if log is not None:
            log.close()
            store.drop_if_empty(run)


def _train(model, dataset, config: LoomConfig, steps: int, loras_folder: Path, run: Path, reserve: store.Reservation, log: store.Log, hooks: Hooks,
           first: dict[str, dict[str, torch.Tensor]]) -> Result:
    with torch.inference_mode(False), torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(config.train.seed)

        def encoding(done: int, total: int) -> None:
            hooks.poll()
            hooks.progress(Progress("encode", done, total))

        encoded = encode(model, dataset, config.adapter.train_text_encoder, encoding,
                         preserve=config.loss.preservation_words if config.loss.preservation else None)
        model.release_encoders(text_encoders=not config.adapter.train_text_encoder)
        source = batches(encoded, dataset.repeats, config.train.batch_size, config.train.seed, config.loss.caption_dropout)
        history: list[float] = []
        saver = _Saver(model, dataset, config, loras_folder, run, reserve, hooks)
        try:
            settings = (config.train.precision, config.adapter.train_text_encoder, config.train.gradient_checkpointing)
            # a host brings its model in as it is, before there is anything of ours in its tree
            with model.training(*settings, largest=_largest(encoded, config.train.batch_size)), adapted(model, config.adapter, config.train.seed) as adapters:
                with saver.at_the_end(adapters, history), torch.enable_grad():
                    for adapter in adapters:
                        if adapter.key in first:
                            adapter.load(first[adapter.key])
                    watched = Hooks(saver.watching(adapters, log), hooks.poll, hooks.should_stop, hooks.event)
                    loop.train(model, adapters, source, config, steps, watched, history)
        except LoomError as error:
            if saver.path is not None:
                raise LoomError(f"{error}. What was learned in {len(history)} steps is saved as {saver.path.name}") from error
            raise
        except torch.cuda.OutOfMemoryError as error:
            kept = f" What was learned in {len(history)} steps is saved as {saver.path.name}" if saver.path else ""
            raise LoomError(f"the GPU ran out of memory at batch_size {config.train.batch_size}: lower it (gradient_accumulation_steps makes up for it), "
                            f"turn on gradient_checkpointing, or lower the resolution ({dataset.resolution}).{kept}") from error
    stopped = len(history) < steps
    recent = history[-50:]
    report = (f"{'Stopped' if stopped else 'Finished'} at step {len(history)} of {steps}, loss {sum(recent) / max(1, len(recent)):.4f}. "
              f"Saved as {saver.path.name}")
    if config.train.epochs and config.train.steps:
        report += f". epochs {config.train.epochs} was not used: steps decides"
    return Result(saver.path, saver.lora, history, len(history), stopped, run, report)


def _going_on(model: TrainableModel, config: LoomConfig, path: Path | None) -> dict[str, dict[str, torch.Tensor]]:
    """{adapter's key: tensors} of the LoRA that the run goes on from. LoomError where a part of it would be lost."""
    chosen = {key for layers in select(model, config.adapter).values() for key in layers.values()}
    if path is None:
        return {}
    first = lora_names.read(path, model.layer_names("lora_unet"), model.family.text_prefixes)
    left = sorted(set(first) - chosen)
    if left:
        remedy = "choose wider targets" if left[-1].startswith("lora_unet") else "turn on train_text_encoder (text_encoder_lr 0 keeps it as it is)"
        raise LoomError(f"init_lora {path.name!r} has {len(left)} layers that this run would lose, such as {left[-1]}: {remedy}, or train without it")
    return first


def _largest(encoded: Encoded, batch_size: int) -> tuple[int, ...]:
    """(B, C, H/8, W/8) of the largest micro-batch that can come."""
    return (min(batch_size, len(encoded)), *max((tuple(z.shape) for z in encoded.latents), key=math.prod))


@dataclass
class _Saver:
    """Writes the run's LoRA files: on the way where `save_steps` and `save_minutes` ask for it, and at the end on every way out."""

    model: TrainableModel
    dataset: Dataset
    config: LoomConfig
    loras_folder: Path
    run: Path
    reserve: store.Reservation
    hooks: Hooks
    path: Path | None = None
    lora: dict[str, torch.Tensor] | None = None

    @contextlib.contextmanager
    def at_the_end(self, adapters: list[Adapter], history: list[float]) -> Iterator[None]:
        """Whatever was learned is written when the block ends, interrupts and errors included."""
        try:
            yield
        finally:
            if history:
                self.lora, data = self._bytes(adapters, len(history))
                self.reserve.release()
                self.path = _write(self.loras_folder, self.run, self.config.output.name, data)
                self._latest.unlink(missing_ok=True)
                self.hooks.event("saved", {"path": str(self.path), "steps": len(history)})

    def watching(self, adapters: list[Adapter], log: store.Log) -> Callable[[Progress], None]:
        """The progress hook with logs and checkpoints in front of the host's own."""

        output, saved = self.config.output, time.monotonic()

        def progress(now: Progress) -> None:
            nonlocal saved
            log.step(now)
            if output.save_steps and now.step % output.save_steps == 0 and now.step < now.total:
                self._checkpoint(adapters, now.step, self.run / "checkpoints" / f"{output.name}_step{now.step:06d}.safetensors")
            if output.save_minutes and time.monotonic() - saved >= 60 * output.save_minutes and now.step < now.total:
                self._checkpoint(adapters, now.step, self._latest)
                saved = time.monotonic()
            self.hooks.progress(now)

        return progress

    @property
    def _latest(self) -> Path:
        return self.run / "checkpoints" / f"{self.config.output.name}_latest.safetensors"

    def _checkpoint(self, adapters: list[Adapter], step: int, path: Path) -> None:
        try:
            store.write_whole(path, self._bytes(adapters, step)[1])
            self.hooks.event("checkpoint", {"step": step})
        except OSError as error:  # the result's own space is reserved: go on
            self.hooks.event("checkpoint failed", {"step": step, "reason": error.strerror or str(error)})

    def _bytes(self, adapters: list[Adapter], steps: int) -> tuple[dict[str, torch.Tensor], bytes]:
        tensors = export.state_dict(adapters, self.config)
        return tensors, export.to_bytes(tensors, export.metadata(self.model, self.dataset, self.config, steps))


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


def _file_size(model: TrainableModel, config: LoomConfig) -> int:
    """Bytes the LoRA file will need, with room for its header and the run's small files."""
    layers, values = size(model, config.adapter)
    if config.adapter.algorithm == "dora":
        values += values // config.adapter.rank  # its magnitudes are fp32, at most one for `rank` other values
    return values * export.DTYPES[config.output.save_dtype].itemsize + layers * 1024 + 262_144
