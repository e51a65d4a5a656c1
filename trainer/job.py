"""What a training is, from config to LoRA file: the one door for canvas, command line and cluster.

A model comes in from the caller; nothing here knows which backbone is behind it.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from . import optim
from .adapters import select, size
from .attempts import Attempts
from .backbones.families import Family
from .backbones.protocol import TrainableModel
from .config import LoomConfig, LossConfig, parse_target
from .data.batches import epoch_length
from .data.checked import read_whole
from .data.dataset import Dataset
from .devices import slow_in_bf16, threads
from .errors import LoomError
from .files import write_whole
from .hooks import Hooks, Progress
from .layers import nf4
from .names import check_name
from .objective import noise_levels
from .runs import checkpoint, export, logs, lora_names, reading, record, store
from .runs.held import Hold
from .runs.saver import Saver
from .state import State, Written, adapters_in
from .validation import divided

MOST_AN_EPOCH = 2_000_000  # with repeats: an epoch is shuffled as a whole

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
    samples: list[Path]  # the newest, one a prompt; empty where none were asked for


def _rows(dataset: Dataset, family: Family) -> tuple[list[tuple[int, int]], list[int]]:
    """((width, height), repeats) of every picture at every size that it is trained at, mirrored ones too."""
    rows = [(size, dataset.repeats * p.repeats) for p in dataset.pictures for size in dataset.sizes(p, family.size_multiple) for _ in range(1 + dataset.flip)]
    return [size for size, _ in rows], [repeats for _, repeats in rows]


def buckets(dataset: Dataset, family: Family) -> dict[tuple[int, int], int]:
    """{(width, height) in pixels: pictures}, largest first."""
    return dict(Counter(_rows(dataset, family)[0]).most_common())


def steps_per_epoch(dataset: Dataset, config: LoomConfig, family: Family) -> int:
    shapes, repeats = _rows(dataset, family)
    micro = epoch_length(repeats, shapes, config.train.batch_size)
    return max(1, -(-micro // config.train.gradient_accumulation_steps))


def total_steps(dataset: Dataset, config: LoomConfig, family: Family) -> int:
    """Optimizer steps: `steps` where given, else `epochs` times the steps of one."""
    return config.train.steps or config.train.epochs * steps_per_epoch(dataset, config, family)


def check(dataset: Dataset, config: LoomConfig) -> None:
    """LoomError for what can be known to fail before a model is there."""
    config.validate()
    if not dataset.pictures:
        raise LoomError("dataset holds no picture: LoadDataset.folder needs at least one; add pictures or lower min_size")
    if dataset.per_epoch > MOST_AN_EPOCH:
        raise LoomError(f"repeats make {dataset.per_epoch:,} pictures an epoch, which takes up to {MOST_AN_EPOCH:,}: lower LoadDataset.repeats, or the numbers "
                        "in front of the folders' names")
    if not any(dataset.caption(p) for p in dataset.pictures):
        raise LoomError(f"captions are missing: none of the {len(dataset.pictures)} pictures has one and trigger_word is empty, so that no prompt could "
                        "call what is learned; set LoadDataset.trigger_word, put .txt files beside the pictures, or let AutoCaption write them")
    optim.find(config.optim.optimizer)
    if config.train.in_nf4:
        nf4.find()
    if config.optim.optimizer == "prodigy" and config.optim.learning_rate < 0.1:
        raise LoomError(f"learning_rate {config.optim.learning_rate:g} with prodigy: it finds the rate itself and multiplies it by this one; "
                        "set TrainLoRA.learning_rate to 1", {"learning_rate": 1.0})
    if config.optim.optimizer == "prodigy" and any(parse_target(t).learning_rate for t in config.adapter.target_modules):
        raise LoomError("learning_rate in target_modules with prodigy: it has one rate for all; leave it out there, or use adamw")
    if config.loss.preservation and not dataset.trigger_word:
        raise LoomError(f"preservation {config.loss.preservation:g} without a trigger word: it keeps the model's answer to captions without that word; "
                        "set LoadDataset.trigger_word to the word that all captions share, or preservation to 0", {"preservation": 0.0})


def plan(family: Family, dataset: Dataset, config: LoomConfig, device: torch.device | str = "") -> str:
    """What will run, in words, before anything is loaded."""
    whole = dataset
    dataset, held = _divided(whole, config)
    each, total = steps_per_epoch(dataset, config, family), total_steps(dataset, config, family)
    seen = total * config.train.batch_size * config.train.gradient_accumulation_steps / max(1, len(dataset.pictures))
    often = f"{seen:.0f}" if seen >= 10 else f"{seen:.1f}"
    remarks = remarks_on(config, total, device)
    unused = [f"epochs {config.train.epochs} is not used: steps {config.train.steps} decides, set it to 0 to count by epochs"]
    return "\n".join([
        f"{family.title}: {config.adapter.algorithm} rank {config.adapter.rank} alpha {config.adapter.alpha:g} on "
        f"{', '.join(config.adapter.target_modules) or config.adapter.targets}{' and text encoders' if config.adapter.train_text_encoder else ''}",
        f"{len(dataset.pictures)} pictures, {dataset.per_epoch} with repeats{' + mirrored' if dataset.flip else ''}, in buckets "
        + ", ".join(f"{w}x{h}: {n}" for (w, h), n in buckets(dataset, family).items()),
        f"{total} steps of {config.train.batch_size} x {config.train.gradient_accumulation_steps} pictures, {each} steps an epoch, "
        f"{total / each:.1f} epochs: each picture is seen about {often} times",
        f"{config.optim.optimizer} at {config.optim.learning_rate:g}, {config.optim.scheduler} with {config.optim.warmup_steps} warm-up steps, "
        f"{_loss_in_words(config.loss, family)}, captions dropped {config.loss.caption_dropout:.0%}, seed {config.train.seed}",
        *([f"validation every {config.train.validation_steps} steps on {f'{len(held.pictures)} pictures held out' if held else 'the training pictures'}"]
          if config.train.validation_steps else []),
        *remarks,
        *(unused if config.train.epochs and config.train.steps else []),
    ])


def remarks_on(config: LoomConfig, total: int, device: torch.device | str) -> list[str]:
    """What the user may not have meant, though it can run."""
    remarks = []
    own = config.optim.optimizer == "schedule_free_adamw"  # it warms up by itself
    if own and config.optim.scheduler not in ("constant", "constant_with_warmup"):
        remarks.append(f"scheduler {config.optim.scheduler} is not used: schedule_free_adamw needs none, it averages instead")
    if config.optim.warmup_steps and config.optim.scheduler == "constant" and not own:
        remarks.append(f"warmup_steps {config.optim.warmup_steps} is not used: scheduler constant has no warm-up; choose constant_with_warmup")
    elif config.optim.warmup_steps >= total:
        remarks.append(f"warm-up of {config.optim.warmup_steps} steps is no shorter than the run of {total}: the full learning rate is never reached; lower it")
    if config.train.in_nf4 and config.adapter.algorithm == "dora":
        remarks.append("dora asks for the whole weights at every step, which base_precision nf4 keeps off the device: it is much slower; use lora")
    if config.train.precision == "bf16" and slow_in_bf16(device):
        remarks.append("bf16 on this CPU takes several times as long as fp32, for it has no such instructions; set precision to auto or fp32")
    return remarks


def _divided(dataset: Dataset, config: LoomConfig) -> tuple[Dataset, Dataset | None]:
    return divided(dataset, config.train.validation_split if config.train.validation_steps else 0, config.train.seed)


def _loss_in_words(config: LossConfig, family: Family) -> str:
    weights = {"min_snr": f"min-SNR gamma {config.min_snr_gamma:g}", "p2": f"p2 gamma {config.p2_gamma:g}"}.get(config.weighting, f"weights {config.weighting}")
    if family.flow:
        weights = "{} timesteps, shift {}".format(*noise_levels(config, family))
    return f"{config.loss_type} loss, {weights}"


def train(model: TrainableModel, dataset: Dataset, config: LoomConfig, *, loras_folder: Path, runs_folder: Path,
          hooks: Hooks | None = None, log_dir: Path | None = None, init_lora: Path | None = None, resume: str = "") -> Result:
    """Train and write the LoRA. On an interrupt or an error what was learned is written before it goes on its way.

    `resume` names a run below `runs_folder` that is not over: it goes on where its last save left it, and asks for no `init_lora`. Raises LoomError for bad
    input before anything is computed, and for a loss that stays no number.
    """
    hooks = hooks or Hooks()
    check(dataset, config)
    if not all(picture.digest for picture in dataset.pictures):  # listed alone: what is broken must not be met in the middle
        dataset = read_whole(dataset, hooks.poll)
    first = _going_on(model, config, None if resume else init_lora)
    training, held = _divided(dataset, config)
    steps = total_steps(training, config, model.family)
    facts = _facts(dataset, model, config)
    try:
        with ExitStack() as stack:
            if resume:
                run = Path(runs_folder) / check_name(resume, "TrainLoRA.resume", 240)
                if run.is_dir():  # before its state is read: another process may be about to write one
                    stack.callback(Hold(run).release)
                written = _resumed(run, config, dataset, facts, steps)
                # its state holds all of the file that it began from
                config = config.replace(adapter={"init_lora": checkpoint.configured(run).adapter.init_lora})
                first = adapters_in(written)
            else:
                run = written = None
            reserve = store.Reservation(Path(loras_folder), _file_size(model, config, first))
            stack.callback(reserve.release)
            if run is None:
                run = store.new_run(Path(runs_folder), config.output.name)
                hold = Hold(run)
                stack.callback(store.drop_if_empty, run)
                stack.callback(hold.release)
            (run / "checkpoints").mkdir(exist_ok=True)
            words, begun = plan(model.family, dataset, config, model.device), len(written[1]["history"]) if written else 0
            write_whole(run / "config.yaml", config.to_yaml().encode("utf-8"))
            write_whole(run / "dataset.txt", f"{dataset.report()}\n\n{words}\n".encode())
            log = logs.Log(run, log_dir, begun)
            stack.callback(log.close)
            begins = {"steps": steps, "steps_per_epoch": steps_per_epoch(training, config, model.family), "plan": words}
            hooks.event("started", {"run": run.name, "step": begun, **begins})
            kept = record.Record(run, **begins, family=model.family.id, model=model.name, pictures=len(training.pictures), dataset=dataset.settings(),
                                 host=hooks.about)
            saver = Saver(model, dataset, config, Path(loras_folder), run, reserve, hooks, facts, kept)
            own = threads(model.family.cpu_threads if model.device.type == "cpu" else 0)
            with own, torch.inference_mode(False), torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
                torch.manual_seed(config.train.seed)
                return _trained(kept, saver, partial(Attempts, model, training, held, config, steps, saver, log, hooks, first, written))
    except OSError as error:
        raise LoomError(f"output folder of the run {config.output.name!r} failed ({error.strerror or error}): "
                        "free some space, or choose a folder that may be written to") from error


def _trained(kept: record.Record, saver: Saver, begin: Callable[[], Attempts]) -> Result:
    """The run from encoding to its report; its record says how it ended."""
    config = saver.config
    with record.ending(kept, saver.hooks.interrupts) as end:
        try:
            attempts = begin()
            state = attempts.train()
            end.update(step=state.step)  # a full disk may have cost the curve its last points
        finally:
            name = saver.path.name if saver.path else kept.facts.get("lora", "")
            end.update(lora=name, best=saver.best, **({"final": name} if saver.path else {}), **reading.in_small(saver.run))
        report = _report(state, config, saver, [*attempts.notes(), *remarks_on(config, state.steps, saver.model.device)])
        end.update(stopped=state.step < state.steps, report=report)
    return Result(saver.path, saver.lora, state.history, state.step, state.step < state.steps, saver.run, report, attempts.pictures.newest)


def _report(state: State, config: LoomConfig, saver: Saver, notes: list[str]) -> str:
    lines = [f"{'Stopped' if state.step < state.steps else 'Finished'} at step {state.step} of {state.steps}, smoothed loss {state.smoothed:.4f}",
             f"Saved as {saver.path.name}"]
    if saver.best is not None:
        lines.append(f"Best validation loss {saver.best:.4f}, kept in the run's folder")
    missed, why = saver.unsaved
    if missed:
        lines.append(f"{missed} checkpoint{'s' if missed > 1 else ''} could not be saved: {why}")
    if saver.unresumable and state.step < state.steps:
        lines.append(f"The state to resume from could not be saved: {saver.unresumable}")
    if state.dropped:
        lines.append(f"{state.dropped} steps were skipped, for their loss was no number or far too large")
    lines += notes
    if config.train.epochs and config.train.steps:
        lines.append(f"epochs {config.train.epochs} was not used: steps decides")
    return ". ".join(lines)


def _facts(dataset: Dataset, model: TrainableModel, config: LoomConfig) -> dict[str, str]:
    """What must be the same when a run is taken up, by the name that messages give it. Encoders are only read whole where the cache does so too."""
    vae, text = model.encoder_digests() if config.data.cache else ("", "")
    return {"dataset": dataset.digest(), "model": f"{model.family.id} {model.name} {model.prediction}", "loras": model.loras_digest(),
            "vae": vae, "text encoder": text}


def _resumed(run: Path, config: LoomConfig, dataset: Dataset, now: dict[str, str], steps: int) -> Written:
    """The state that the run goes on from. LoomError where it has none, or where something else has changed."""
    name = run.name
    tensors, facts = checkpoint.read(run)
    changed = facts["dataset"] != now["dataset"]
    checkpoint.check_same(run, config, dataset.settings() if changed else {})
    if changed:
        raise LoomError(f"resume {name!r} with other pictures or captions than it began with: put them back, "
                        "or start a new run and set LoRAConfig.init_lora")
    if facts["model"] != now["model"]:
        raise LoomError(f"resume {name!r} on {now['model']!r}, but it began on {facts['model']!r}: load that checkpoint, or start a new run")
    if facts.get("loras") and now["loras"] and facts["loras"] != now["loras"]:
        raise LoomError(f"resume {name!r} with other LoRAs on the model than it began with: connect the model that it had, with the same LoRAs at the "
                        "same strengths, or start a new run")
    for encoder in ("vae", "text encoder"):
        if facts.get(encoder) and now[encoder] and facts[encoder] != now[encoder]:
            raise LoomError(f"resume {name!r} with another {encoder} than it began with: connect the one that it had, with the same LoRAs on it "
                            "and at the same precision, or start a new run and set LoRAConfig.init_lora")
    if len(facts["history"]) >= steps:
        raise LoomError(f"resume {name!r} is at step {len(facts['history'])} and steps is {steps}: set TrainLoRA.steps higher",
                        {"steps": len(facts["history"]) + steps})
    return tensors, facts


def _going_on(model: TrainableModel, config: LoomConfig, path: Path | None) -> dict[str, dict[str, torch.Tensor]]:
    """{adapter's key: tensors} of the LoRA that the run goes on from. LoomError where a part of it would be lost."""
    chosen = {key for layers in select(model, config.adapter).values() for key in layers.values()}
    if path is None:
        return {}
    first = lora_names.read(path, model.layer_names("lora_unet"), model.family)
    left = sorted(set(first) - chosen)
    if left:
        wider = left[-1].startswith("lora_unet")
        remedy = "choose wider targets" if wider else "turn on train_text_encoder (text_encoder_lr 0 keeps it as it is)"
        raise LoomError(f"init_lora {path.name!r} has {len(left)} layers that this run would lose, such as {left[-1]}: {remedy}, or train without it",
                        {"targets": "all linear+conv"} if wider else {"train_text_encoder": True})
    return first


def _file_size(model: TrainableModel, config: LoomConfig, first: dict[str, dict[str, torch.Tensor]]) -> int:
    """Bytes the LoRA file will need, with room for its header and the run's small files."""
    layers, values = size(model, config.adapter, first)
    if config.adapter.algorithm == "dora":
        values += values // config.adapter.rank  # its magnitudes are fp32, at most one for `rank` other values
    if model.family.keys == "transformer":
        values *= 2  # parts of one matrix in layers of their own share its input's side
    return values * export.DTYPES[config.output.save_dtype].itemsize + layers * 1024 + 262_144
