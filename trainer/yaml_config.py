"""The flat YAML of the command line (lora-scripts' keys): from a file to what is to be run.

One table says which key means what; adding a key is adding a row. No weights and no pictures are read: `load_job` checks
everything that can be known without them, so that a mistake costs a second.
"""
from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from . import presets
from .backbones.families import Family
from .config import TARGETS, LoomConfig, coerce
from .data.augment import Augmentation
from .errors import LoomError
from .yaml_text import mapping, text_of
from .yaml_values import CHECKS, SPELLINGS, find_base_model, path_of, preset_of, targets_of


@dataclass(frozen=True)
class Key:
    """One YAML key: `where` is a path into LoomConfig (`adapter.rank`), `dataset.…` (read_dataset) or `run.…` (this Job)."""

    name: str
    where: str
    help: str
    default: Any = None  # for dataset and run keys; the rest take LoomConfig's own default
    kind: str = "value"  # value · preset · folder · file · lora · path: all but the first are resolved against the YAML file's folder


KEYS = (
    Key("train_data_dir", "run.data", "folder with the pictures (required)", "", "folder"),
    Key("metadata_path", "run.metadata", "captions elsewhere: a metadata.csv or metadata.jsonl", "", "file"),
    Key("base_model", "run.base_model", "a diffusers folder, a .safetensors file, or toy_base (required)", ""),
    Key("preset", "run.preset", "values to start from, as the base model's family wants them, or a file of them; keys given beside it win", "", "preset"),
    Key("lora_rank", "adapter.rank", "size of the adapters"),
    Key("lora_alpha", "adapter.alpha", "alpha / rank scales the adapters' output"),
    Key("lora_dropout", "adapter.dropout", "share of the adapters' inputs dropped"),
    Key("module_dropout", "adapter.module_dropout", "share of passes that leave a whole layer's adapter out"),
    Key("algorithm", "adapter.algorithm", "lora, dora, rslora, loha, lokr or oft"),
    Key("lora_target_modules", "adapter.target_modules", f"{', '.join(TARGETS)}; or a list of layer names or regular expressions (attention)"),
    Key("init_lora", "adapter.init_lora", "a LoRA of any common format to go on from", "", "lora"),
    Key("train_text_encoder", "adapter.train_text_encoder", "train the text encoders too"),
    Key("learning_rate", "optim.learning_rate", "for the UNet"),
    Key("text_encoder_lr", "optim.text_encoder_lr", "for the text encoders, where they are trained"),
    Key("optimizer", "optim.optimizer", "adamw, adamw8bit, paged_adamw8bit, adafactor, lion, prodigy or schedule_free_adamw"),
    Key("scheduler", "optim.scheduler", "learning-rate schedule, as diffusers names it"),
    Key("lr_warmup_steps", "optim.warmup_steps", "optimizer steps until the full learning rate"),
    Key("lr_num_cycles", "optim.cycles", "restarts of cosine_with_restarts"),
    Key("weight_decay", "optim.weight_decay", "AdamW's"),
    Key("adam_beta1", "optim.beta1", "how slowly the mean of the gradients moves"),
    Key("adam_beta2", "optim.beta2", "how slowly the mean of their squares moves"),
    Key("max_grad_norm", "optim.max_grad_norm", "gradient clipping; 0 switches it off"),
    Key("ema_decay", "optim.ema_decay", "moving average of the adapters, which is what is saved then; 0.99 is usual, 0 switches it off"),
    Key("loss_weighting", "loss.weighting", "min_snr, debiased, p2 or none"),
    Key("min_snr_gamma", "loss.min_snr_gamma", "for min_snr; 0 switches it off"),
    Key("p2_gamma", "loss.p2_gamma", "for p2"),
    Key("loss_type", "loss.loss_type", "mse or huber, which minds outliers less"),
    Key("huber_c", "loss.huber_c", "where huber turns from square to straight"),
    Key("huber_schedule", "loss.huber_schedule", "how huber_c moves with the noise: snr, exponential or constant"),
    Key("noise_offset", "loss.noise_offset", "helps very dark and very bright pictures"),
    Key("multires_noise_discount", "loss.multires_noise_discount", "noise of coarser grids on top: 0.3 is usual, 0 switches it off"),
    Key("multires_noise_iterations", "loss.multires_noise_iterations", "how many coarser grids"),
    Key("input_perturbation", "loss.input_perturbation", "more noise in the input than the model is to find: 0.1 is usual, 0 switches it off"),
    Key("timestep_sampling", "loss.timestep_sampling", "auto (the family's own), uniform, logit_normal or mode"),
    Key("logit_mean", "loss.logit_mean", "for logit_normal"),
    Key("logit_std", "loss.logit_std", "for logit_normal"),
    Key("mode_scale", "loss.mode_scale", "for mode"),
    Key("timestep_shift", "loss.timestep_shift", "auto (the family's own), none, constant (by shift) or resolution"),
    Key("shift", "loss.shift", "more of the noisy timesteps above 1"),
    Key("unmasked_weight", "loss.unmasked_weight", "what counts of a picture outside its mask"),
    Key("caption_dropout", "loss.caption_dropout", "share of captions replaced by the empty one"),
    Key("preservation", "loss.preservation", "weight of the base model's own answer without the trigger word; 0 switches it off"),
    Key("preservation_words", "loss.preservation_words", "a list: what stands for the trigger word there, such as [person]"),
    Key("max_train_steps", "train.steps", "optimizer steps"),
    Key("epochs", "train.epochs", "passes over the pictures; used where max_train_steps is not given"),
    Key("batch_size", "train.batch_size", "pictures a micro-batch"),
    Key("gradient_accumulation_steps", "train.gradient_accumulation_steps", "micro-batches an optimizer step"),
    Key("gradient_checkpointing", "train.gradient_checkpointing", "far less memory for more time"),
    Key("memory_budget", "train.memory_budget", "GB that the run may take on the device, base model included; 0: what is free"),
    Key("base_precision", "train.base_precision", "as loaded, or nf4: the base model's blocks in 4 bits, by bitsandbytes"),
    Key("compile", "train.compile", "CUDA graphs, and torch.compile for the base model's blocks: auto, never or always"),
    Key("plain_layers", "train.plain_layers", "torch's and PEFT's own layers, slower and with more memory: to compare with"),
    Key("mixed_precision", "train.precision", "auto, bf16, fp32 or no"),
    Key("validation_steps", "train.validation_steps", "validation loss every so many steps; 0 switches it off"),
    Key("validation_split", "train.validation_split", "share of the pictures held out for it; 0: on the training pictures"),
    Key("seed", "train.seed", "the same seed gives the same LoRA"),
    Key("resolution", "dataset.resolution", "side of the square with a bucket's area, in pixels; SDXL's default is 1024", 512),
    Key("min_size", "dataset.min_size", "smaller pictures are left out; the smaller of 512 and the resolution", 512),
    Key("caption_source", "dataset.caption_source", "auto, metadata, sidecar, folder name or none", "auto"),
    Key("trigger_word", "dataset.trigger_word", "put before every caption", ""),
    Key("repeats", "dataset.repeats", "how often a picture counts in an epoch", 1),
    Key("flip", "dataset.flip", "train on the mirror images too", False),
    Key("buckets", "dataset.buckets", "keep aspect ratios", True),
    Key("more_resolutions", "dataset.more_resolutions", "a list of further resolutions, at which large enough pictures are trained too", ()),
    Key("upscale", "dataset.upscale", "enlarge pictures that are smaller than their bucket", False),
    Key("augment_flip", "augment.flip", "share of a picture's variants that are mirrored", 0.0),
    Key("random_crop", "augment.crop", "up to this share of each side is cut away, anywhere; at most 0.5", 0.0),
    Key("rotation", "augment.rotation", "degrees to either side, at most 15", 0.0),
    Key("brightness", "augment.brightness", "a factor of 1 plus or minus this", 0.0),
    Key("contrast", "augment.contrast", "a factor of 1 plus or minus this", 0.0),
    Key("hue", "augment.hue", "degrees around the colour circle to either side", 0.0),
    Key("augment_variants", "augment.variants", "of each picture, where anything of the six is not 0; the first is the picture as it is", 4),
    Key("augment_seed", "augment.seed", "of the variants", 0),
    Key("shuffle_tags", "data.shuffle_tags", "shuffle what commas part in captions"),
    Key("keep_tokens", "data.keep_tokens", "so many tags at the beginning stay in their place"),
    Key("tag_dropout", "data.tag_dropout", "share of the other tags left out"),
    Key("caption_variants", "data.caption_variants", "wordings of each caption, where tags are shuffled or dropped"),
    Key("cache", "data.cache", "keep encoded pictures and captions for the next run"),
    Key("masks", "dataset.masks", "train on the subject alone: alpha (transparency), files (cat-masklabel.png, masks/cat.png) or none", "none"),
    Key("sample_steps", "samples.sample_steps", "draw sample pictures every so many steps into the run's folder; 0 switches them off"),
    Key("sample_prompts", "samples.sample_prompts", "a list of prompts for them; the captions of the first two pictures where not given"),
    Key("sample_negative_prompt", "samples.sample_negative", "what they should not show"),
    Key("sample_seed", "samples.sample_seed", "their noise"),
    Key("sample_cfg", "samples.sample_cfg", "their guidance scale; 0: the family's own"),
    Key("output_dir", "run.output_dir", "where the LoRA file goes", "output", "path"),
    Key("output_name", "output.name", "the LoRA's file name without its ending"),
    Key("save_steps", "output.save_steps", "save every so many steps; 0 for the end only"),
    Key("keep_checkpoints", "output.keep_checkpoints", "how many saved steps stay, the best one aside; 0: all"),
    Key("save_minutes", "output.save_minutes", "save every so many minutes, over the file before; 0 switches it off"),
    Key("save_precision", "output.save_dtype", "fp16, bf16 or fp32"),
    Key("resume", "run.resume", "a run's name below output_dir/lora_loom that was stopped: it goes on", ""),
    Key("log_dir", "run.log_dir", "TensorBoard events; the run's own folder where not given", "", "path"),
    Key("device", "run.device", "auto, cpu, cuda, or cuda:1 for the second card", "auto"),
    Key("task_type", "run.task_type", "text-to-image, the only task here", "text-to-image"),
)
ALIASES = {"shuffle_caption": "shuffle_tags", "caption_tag_dropout_rate": "tag_dropout", "cache_latents_to_disk": "cache",
           "lr_scheduler": "scheduler", "sample_every_n_steps": "sample_steps"}
_TABLE = {key.name: key for key in KEYS}


@dataclass(frozen=True)
class Job:
    """What the YAML asks for, with every default filled in and every path absolute."""

    base_model: str  # an absolute path, or toy_base
    family: Family
    data: Path
    dataset: dict[str, Any]  # keyword arguments of `read_dataset`
    config: LoomConfig
    output_dir: Path
    log_dir: Path | None = None
    device: str = "auto"
    metadata: Path | None = None
    preset: str | Path = ""
    resume: str = ""
    notes: tuple[str, ...] = field(default=(), compare=False)  # what was understood differently from how it was written


def load_job(path: str | Path) -> Job:
    """The job that a YAML file describes. Raises LoomError naming the key, the value, the rule and the remedy."""
    path = Path(path).expanduser()
    given = _canonical(mapping(text_of(path), path.name, "lines such as `lora_rank: 16`"), path.name)
    table = dict(_TABLE)
    if given.get("resume"):  # the run's state holds all of the file, which may be gone
        table["init_lora"] = replace(table["init_lora"], kind="path")
    values = {name: _value(table[name], value, path.absolute().parent) for name, value in given.items()}
    for name in ("train_data_dir", "base_model"):
        if not values.get(name):
            raise LoomError(f"{name} is missing in {path.name}: {_TABLE[name].help}")
    run = {k.where.split(".")[1]: values.get(k.name, k.default) for k in KEYS if k.where.startswith("run.")}
    base_model, family = find_base_model(run["base_model"], path.absolute().parent)
    config, notes = _config(values, run["preset"], family)
    return Job(
        base_model=base_model, family=family, data=run["data"], dataset=_dataset(values, family), config=config, device=run["device"],
        output_dir=run["output_dir"] if "output_dir" in values else path.absolute().parent / "output",
        log_dir=run["log_dir"] or None, metadata=run["metadata"] or None, preset=run["preset"], resume=run["resume"], notes=notes,
    )


def describe(job: Job) -> str:
    """Every value of the job as flat YAML, the defaults too: it can be saved and gives the same job again."""
    run = {**vars(job), "task_type": "text-to-image"}
    tree = job.config.to_dict()
    lines = {}
    for key in KEYS:
        owner, name = key.where.split(".")
        owners = {"dataset": job.dataset, "augment": vars(job.dataset["augment"] or Augmentation()), "run": run}
        value = (owners.get(owner) or tree[owner])[name]
        if value in (None, "") and (owner == "run" or key.kind == "lora") or value == 0 and name in ("steps", "epochs"):
            continue
        lines[key.name] = str(value) if isinstance(value, Path) else value
    lines["lora_target_modules"] = tree["adapter"]["target_modules"] or tree["adapter"]["targets"]
    notes = "".join(f"# {note}\n" for note in job.notes)
    return notes + yaml.safe_dump(lines, sort_keys=False, allow_unicode=True, width=1000)


# ---------------------------------------------------------------- reading

def _canonical(tree: dict, source: str) -> dict[str, Any]:
    """The given keys under their own names; empty values mean the default."""
    if {"adapter", "optim"} <= set(tree):
        raise LoomError(f"{source} is a run's own config.yaml, which says nothing of pictures and base model: write a file with train_data_dir, base_model "
                        f"and `preset: path/to/{source}`")
    result: dict[str, Any] = {}
    for written, value in tree.items():
        name = ALIASES.get(written, written)
        if name not in _TABLE:
            near = difflib.get_close_matches(str(name), [*_TABLE, *ALIASES], 1, 0.6)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise LoomError(f"key {written!r} in {source} is unknown: {hint}`lora-loom train --keys` lists the valid ones")
        if name in result:
            raise LoomError(f"{written} is another name of {name}, and both are given in {source}: keep one")
        if value is not None:
            result[name] = value
    return result


# ---------------------------------------------------------------- values

def _value(key: Key, written: Any, folder: Path) -> Any:
    """One value, converted and checked by itself, so that the message can name the key as it is written."""
    value = written
    try:
        if key.kind == "preset" and not str(value).lower().endswith((".yaml", ".yml")):
            return preset_of(coerce(key.name, value, ""))
        if key.kind != "value":
            path = path_of(value, folder, key.kind)
            return path if key.where.startswith("run.") else str(path)
        owner, name = key.where.split(".")
        if owner == "augment":
            value = coerce(key.name, value, key.default)
            Augmentation(**{name: value}).check()
            return value
        if owner in ("run", "dataset"):
            return CHECKS.get(key.name, lambda v: v)(coerce(key.name, value, key.default))
        if key.name == "lora_target_modules":
            return targets_of(value)
        value = SPELLINGS.get(key.name, lambda v: v)(value)
        default = LoomConfig()
        value = coerce(key.name, value, getattr(getattr(default, owner), name))
        part = {name: value} | ({"epochs": 1} if name == "steps" else {})
        getattr(default.replace(**{owner: part}), owner).validate()
        return value
    except LoomError as error:
        said = in_keys(str(error))
        raise LoomError(said if said.startswith(f"{key.name} ") else f"{key.name} {written!r}: {said}") from None


def in_keys(message: str) -> str:
    """The trainer's message with the keys of the YAML where it names the canvas's inputs."""
    inputs = {where.split(".")[1]: name for name, where in ((k.name, k.where) for k in KEYS)} | {"targets": "lora_target_modules"}
    message = re.sub(r"^(\w+)(?= )", lambda word: inputs.get(word[0], word[0]), message)
    return re.sub(r"\b(?:LoadDataset|AugmentDataset|LoRAConfig|TrainLoRA)\.(\w+)", lambda place: inputs.get(place[1], place[1]), message)


def keys_table() -> str:
    """Every key with its default and what it is, a line each."""
    tree = LoomConfig().to_dict()
    rows = [(k.name, (tree[k.where.split(".")[0]][k.where.split(".")[1]] if k.where.split(".")[0] in tree else k.default), k.help) for k in KEYS]
    wide = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:<{wide}}  {help}{'' if default in ('', None, []) else f' ({_word(default)})'}" for name, default, help in rows)


def _word(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _dataset(values: dict[str, Any], family: Family) -> dict[str, Any]:
    options, augment = ({k.where.split(".")[1]: values.get(k.name, k.default) for k in KEYS if k.where.startswith(owner)}
                        for owner in ("dataset.", "augment."))
    options["augment"] = Augmentation(**augment) if augment != vars(Augmentation()) else None
    if "resolution" not in values:
        options["resolution"] = family.resolution
    if "min_size" not in values:
        options["min_size"] = min(512, options["resolution"])
    return options


def _preset_values(preset: str | Path, family: Family) -> presets.Values:
    if isinstance(preset, Path):
        return presets.parse(text_of(preset), f"preset {preset.name!r}", family.id)
    return presets.load(preset, family.id) if preset else {}


def _config(values: dict[str, Any], preset: str | Path, family: Family) -> tuple[LoomConfig, tuple[str, ...]]:
    """The preset's values, overridden by the given ones; steps decide over epochs."""
    tree: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        owner, field_name = _TABLE[name].where.split(".")
        if owner not in ("run", "dataset", "augment"):
            tree.setdefault(owner, {}).update(value if name == "lora_target_modules" else {field_name: value})
    train, notes = tree.get("train", {}), []
    if train.get("epochs"):
        if train.get("steps"):
            notes.append(f"epochs {train['epochs']} is not used: max_train_steps {train['steps']} decides")
            train["epochs"] = 0
        else:
            train["steps"] = 0
    config = presets.merge(_preset_values(preset, family), tree)
    rank, alpha = config.adapter.rank, config.adapter.alpha
    if "lora_rank" in values and "lora_alpha" not in values and rank != alpha:
        notes.append(f"lora_alpha is {alpha:g}, not {rank}: the adapters count {alpha / rank:g}-fold; give lora_alpha to choose")
    return config, tuple(notes)
