"""The one description of a training run: frozen dataclasses that round-trip through plain dicts and YAML.

Knows nothing of models, nodes or files: every choice is checked here, before anything is loaded or allocated.
"""
from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from typing import Any

import yaml

from .errors import LoomError
from .names import check_name

ALGORITHMS = ("lora", "dora", "rslora", "loha", "lokr", "oft")
TARGETS = ("attention", "attention+ff", "all linear", "all linear+conv")
OPTIMIZERS = ("adamw", "adamw8bit", "paged_adamw8bit", "adafactor", "lion", "prodigy", "schedule_free_adamw")
SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
WEIGHTINGS = ("min_snr", "debiased", "p2", "none")
LOSS_TYPES = ("mse", "huber")
HUBER_SCHEDULES = ("snr", "exponential", "constant")
TIMESTEP_SAMPLINGS = ("auto", "uniform", "logit_normal", "mode")
TIMESTEP_SHIFTS = ("auto", "none", "constant", "resolution")
PRECISIONS = ("auto", "fp32", "bf16")
BASE_PRECISIONS = ("as loaded", "nf4")
COMPILE = ("auto", "never", "always")
SAVE_DTYPES = ("fp16", "bf16", "fp32")


def _limit(owner: str, name: str, value: Any, low: float, high: float) -> None:
    """Raise LoomError unless low <= value <= high (and value is a finite number)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise LoomError(f"{owner}.{name} is {value!r}, which is not a number: it takes {low:.9g} to {high:.9g}")
    nearest = lambda bound: {name: bound} if owner != "target_modules" and (bound == 0 or bound >= 1e-3) else {}  # no button for a rate of 1e-08
    if value < low:
        raise LoomError(f"{name} {value:.9g} is below {low:.9g}: {owner}.{name} takes {low:.9g} to {high:.9g}", nearest(low))
    if value > high:
        raise LoomError(f"{name} {value:.9g} is above {high:.9g}: {owner}.{name} takes {low:.9g} to {high:.9g}", nearest(high))


def _choice(owner: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value).lower(), choices, 1, 0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise LoomError(f"{name} {value!r} is unknown: {owner}.{name} is one of {', '.join(choices)}{hint}")


@dataclass(frozen=True)
class Target:
    """One pattern of target_modules, with what it sets for the layers that it finds."""

    pattern: str
    rank: int | None = None
    alpha: float | None = None
    learning_rate: float | None = None


def parse_target(text: str) -> Target:
    """"attn2\\.to_k$ rank=32 alpha=16 learning_rate=5e-5" as a Target. LoomError for another word or an impossible value."""
    pattern, *settings = text.split()
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in ("rank", "alpha", "learning_rate"):
            raise LoomError(f"target_modules has {setting!r} behind {pattern!r}: a pattern takes rank=, alpha= and learning_rate=, "
                            "for example attn2\\.to_k$ rank=32 learning_rate=5e-5")
        values[name] = coerce(f"{name} of the pattern {pattern!r}", value, 1 if name == "rank" else 1.0)
    target = Target(pattern, **values)
    for name, low, high in (("rank", 1, 512), ("alpha", 0.001, 4096), ("learning_rate", 1e-8, 1.0)):
        if getattr(target, name) is not None:
            _limit("target_modules", name, getattr(target, name), low, high)
    return target


@dataclass(frozen=True)
class AdapterConfig:
    """What is added to the base model. `alpha / rank` scales the adapters' output (Hu et al. 2021, arXiv:2106.09685);
    rslora scales by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732)."""

    algorithm: str = "lora"
    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    module_dropout: float = 0.0  # the share of passes that leave a whole adapter out
    targets: str = "attention"
    target_modules: tuple[str, ...] = ()  # regular expressions over diffusers' layer names, see parse_target; they replace `targets`
    train_text_encoder: bool = False
    init_lora: str = ""  # a LoRA to go on from; the caller finds the file

    def validate(self) -> None:
        _choice("LoRAConfig", "algorithm", self.algorithm, ALGORITHMS)
        _limit("LoRAConfig", "rank", self.rank, 1, 512)
        _limit("LoRAConfig", "alpha", self.alpha, 0.001, 4096)
        _limit("LoRAConfig", "dropout", self.dropout, 0, 0.9)
        _limit("LoRAConfig", "module_dropout", self.module_dropout, 0, 0.9)
        if self.algorithm == "oft" and self.dropout:
            raise LoomError(f"dropout {self.dropout:g} with oft: a rotation cannot lose single values; set dropout to 0, or use module_dropout")
        for text in self.target_modules:
            if not text.strip():
                raise LoomError("target_modules holds an empty pattern: remove it")
        for rank in (self.rank, *(parse_target(text).rank for text in self.target_modules)):
            if self.algorithm in ("dora", "oft") and rank == 1:
                raise LoomError(f"rank 1 with {self.algorithm}: its directions need a plane to turn in; set rank to 2 or more, or use lora")
        _choice("LoRAConfig", "targets", self.targets, TARGETS)
        if not isinstance(self.init_lora, str):
            raise LoomError(f"init_lora is {self.init_lora!r}: it must be a file's name, or empty for a new LoRA")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) and a diffusers learning-rate schedule."""

    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    text_encoder_lr: float = 1e-5
    scheduler: str = "constant_with_warmup"
    warmup_steps: int = 0
    cycles: int = 1
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    max_grad_norm: float = 1.0  # 0 switches clipping off
    ema_decay: float = 0.0  # exponential moving average of the adapters, which is what is saved then; 0 switches it off

    def validate(self) -> None:
        _choice("LoRAConfig", "optimizer", self.optimizer, OPTIMIZERS)
        _choice("LoRAConfig", "scheduler", self.scheduler, SCHEDULERS)
        _limit("TrainLoRA", "learning_rate", self.learning_rate, 1e-8, 1.0)
        if self.scheduler == "polynomial" and self.learning_rate <= 1e-7:
            raise LoomError(f"learning_rate {self.learning_rate:g} is not above 1e-07, where the polynomial schedule ends: "
                            "raise it or choose another scheduler")
        _limit("LoRAConfig", "text_encoder_lr", self.text_encoder_lr, 0, 1.0)
        _limit("LoRAConfig", "warmup_steps", self.warmup_steps, 0, 1_000_000)
        _limit("LoRAConfig", "cycles", self.cycles, 1, 1000)
        _limit("LoRAConfig", "weight_decay", self.weight_decay, 0, 10)
        _limit("LoRAConfig", "beta1", self.beta1, 0, 0.9999)
        _limit("LoRAConfig", "beta2", self.beta2, 0, 0.999999)
        _limit("LoRAConfig", "max_grad_norm", self.max_grad_norm, 0, 1e6)
        _limit("LoRAConfig", "ema_decay", self.ema_decay, 0, 0.99999)
        if self.ema_decay and self.optimizer == "schedule_free_adamw":
            raise LoomError(f"ema_decay {self.ema_decay:g} with schedule_free_adamw, which averages by itself: set ema_decay to 0, or choose adamw")


@dataclass(frozen=True)
class LossConfig:
    """Loss in the model's own target space; formulas and sources are in loss.py. Weights are for epsilon and v, times for flow too."""

    weighting: str = "min_snr"
    min_snr_gamma: float = 5.0  # 0 switches the weighting off
    p2_gamma: float = 1.0
    loss_type: str = "mse"
    huber_c: float = 0.1
    huber_schedule: str = "snr"
    noise_offset: float = 0.0
    multires_noise_discount: float = 0.0  # 0 switches it off
    multires_noise_iterations: int = 6
    input_perturbation: float = 0.0
    timestep_sampling: str = "auto"  # the family's own
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    timestep_shift: str = "auto"
    shift: float = 3.0  # for timestep_shift constant
    unmasked_weight: float = 0.1  # of what a mask leaves out, where there are masks
    caption_dropout: float = 0.05  # the share of captions replaced by the empty one
    preservation: float = 0.0  # weight of the base model's own answer to captions without the trigger word; 0 switches it off
    preservation_words: tuple[str, ...] = ()  # what stands for the trigger word there; empty: it is left out

    def validate(self) -> None:
        _limit("LoRAConfig", "preservation", self.preservation, 0, 100)
        if not all(isinstance(word, str) and word.strip() for word in self.preservation_words):
            raise LoomError(f"preservation_words is {self.preservation_words!r}: it takes words such as person, or nothing")
        _choice("LoRAConfig", "weighting", self.weighting, WEIGHTINGS)
        _choice("LoRAConfig", "loss_type", self.loss_type, LOSS_TYPES)
        _choice("LoRAConfig", "huber_schedule", self.huber_schedule, HUBER_SCHEDULES)
        _choice("LoRAConfig", "timestep_sampling", self.timestep_sampling, TIMESTEP_SAMPLINGS)
        _choice("LoRAConfig", "timestep_shift", self.timestep_shift, TIMESTEP_SHIFTS)
        for name, low, high in (("min_snr_gamma", 0, 100), ("p2_gamma", 0, 10), ("huber_c", 1e-4, 10), ("noise_offset", 0, 1),
                                ("multires_noise_discount", 0, 0.99), ("multires_noise_iterations", 1, 10), ("input_perturbation", 0, 1),
                                ("logit_mean", -5, 5), ("logit_std", 0.01, 5), ("mode_scale", -1, 1.75), ("shift", 0.01, 100), ("unmasked_weight", 0, 1)):
            _limit("LoRAConfig", name, getattr(self, name), low, high)
        _limit("LoRAConfig", "caption_dropout", self.caption_dropout, 0, 1)


@dataclass(frozen=True)
class DataConfig:
    """What becomes of pictures and captions on their way to a batch, beside what the dataset itself says."""

    shuffle_tags: bool = False
    keep_tokens: int = 1  # tags at a caption's beginning that stay there; those with the trigger word always do
    tag_dropout: float = 0.0  # the share of the other tags that is left out
    caption_variants: int = 10  # how many wordings of a caption there are where tags are shuffled or dropped: each is encoded once
    cache: bool = True  # keep what the encoders have made, for the next run on the same pictures

    def validate(self) -> None:
        _limit("LoRAConfig", "keep_tokens", self.keep_tokens, 0, 100)
        _limit("LoRAConfig", "tag_dropout", self.tag_dropout, 0, 1)
        _limit("LoRAConfig", "caption_variants", self.caption_variants, 1, 100)


@dataclass(frozen=True)
class TrainConfig:
    """How long, how large, in which precision. `steps` counts optimizer steps; `epochs` is used where steps is 0."""

    steps: int = 1000
    epochs: int = 0
    batch_size: int = 1
    gradient_accumulation_steps: int = 1
    precision: str = "auto"
    base_precision: str = "as loaded"  # of the frozen weights in the base model's blocks; nf4: layers/nf4.py
    gradient_checkpointing: bool = False
    memory_budget: float = 0.0  # GB that a run may take on the device, the base model included; 0: what is free
    plain_layers: bool = False  # torch's and PEFT's own layers, which are slower and keep more: to compare with
    compile: str = "auto"  # torch.compile for the base model's blocks, compiling.py, and CUDA graphs, recording.py
    seed: int = 0
    validation_steps: int = 0  # validation loss every so many steps; 0 switches it off
    validation_split: float = 0.1  # the share of pictures held out for it; 0: on the training pictures
    pictures: tuple[int, int] = (10, 20)  # how many these settings are made for, from and to: the report compares; 0, 0: any

    def validate(self) -> None:
        _limit("TrainLoRA", "steps", self.steps, 0, 1_000_000)
        _limit("TrainLoRA", "epochs", self.epochs, 0, 100_000)
        if self.steps == 0 and self.epochs == 0:
            raise LoomError("steps 0 and epochs 0 leave nothing to train: set TrainLoRA.steps to 1 or more, or set epochs instead",
                            {"steps": type(self).steps})
        _limit("TrainLoRA", "batch_size", self.batch_size, 1, 256)
        _limit("LoRAConfig", "gradient_accumulation_steps", self.gradient_accumulation_steps, 1, 1024)
        _choice("LoRAConfig", "precision", self.precision, PRECISIONS)
        _choice("LoRAConfig", "base_precision", self.base_precision, BASE_PRECISIONS)
        _choice("LoRAConfig", "compile", self.compile, COMPILE)
        _limit("TrainLoRA", "seed", self.seed, 0, 2**64 - 1)
        _limit("LoRAConfig", "memory_budget", self.memory_budget, 0, 1024)
        _limit("LoRAConfig", "validation_steps", self.validation_steps, 0, 1_000_000)
        _limit("LoRAConfig", "validation_split", self.validation_split, 0, 0.5)
        if len(self.pictures) != 2 or not 0 <= self.pictures[0] <= self.pictures[1]:
            raise LoomError(f"pictures is {list(self.pictures)}: it takes how many pictures the settings are made for, from and to, such as [10, 20]")

    @property
    def in_nf4(self) -> bool:
        return self.base_precision == "nf4"


@dataclass(frozen=True)
class OutputConfig:
    """The result's name and how often it is saved on the way (0: only at the end)."""

    name: str = "my_lora"
    save_steps: int = 0
    keep_checkpoints: int = 0  # how many of them stay beside the best; 0: all
    save_minutes: float = 10.0  # one file, written over: what a crash can cost at most
    save_dtype: str = "fp16"

    def validate(self) -> None:
        check_name(self.name)
        _limit("LoRAConfig", "save_steps", self.save_steps, 0, 1_000_000)
        _limit("LoRAConfig", "keep_checkpoints", self.keep_checkpoints, 0, 10_000)
        _limit("LoRAConfig", "save_minutes", self.save_minutes, 0, 100_000)
        _choice("LoRAConfig", "save_dtype", self.save_dtype, SAVE_DTYPES)


@dataclass(frozen=True)
class SampleConfig:
    """Pictures drawn on the way, for the eye alone: they change nothing of what is learned."""

    sample_steps: int = 0  # every so many steps; 0 switches them off
    sample_prompts: tuple[str, ...] = ()  # empty: the captions of the first two pictures
    sample_negative: str = ""
    sample_seed: int = 0
    sample_cfg: float = 0.0  # 0: the family's own

    def validate(self) -> None:
        _limit("TrainLoRA", "sample_steps", self.sample_steps, 0, 1_000_000)
        if not all(isinstance(p, str) and p.strip() for p in self.sample_prompts):
            raise LoomError(f"sample_prompts is {self.sample_prompts!r}: it takes one prompt a line, or nothing")
        if len(self.sample_prompts) > 16:
            raise LoomError(f"sample_prompts has {len(self.sample_prompts)} lines: TrainLoRA.sample_prompts takes up to 16; leave some out")
        if not isinstance(self.sample_negative, str):
            raise LoomError(f"sample_negative is {self.sample_negative!r}: it must be text, or empty")
        _limit("TrainLoRA", "sample_seed", self.sample_seed, 0, 2**63 - 1)
        _limit("TrainLoRA", "sample_cfg", self.sample_cfg, 0, 100)


@dataclass(frozen=True)
class LoomConfig:
    """A whole run except its model and its pictures, which the caller hands in."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)

    def validate(self) -> LoomConfig:
        """Raise LoomError for the first impossible value; return self so that it can be chained."""
        for part in dataclasses.fields(self):
            getattr(self, part.name).validate()
        return self

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain lists, numbers and strings, fit for YAML and JSON."""
        tree = dataclasses.asdict(self)
        tree["adapter"]["target_modules"] = list(self.adapter.target_modules)
        tree["train"]["pictures"] = list(self.train.pictures)
        tree["loss"]["preservation_words"] = list(self.loss.preservation_words)
        tree["samples"]["sample_prompts"] = list(self.samples.sample_prompts)
        return tree

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> LoomConfig:
        """Inverse of `to_dict`. Unknown keys raise LoomError naming the nearest valid one."""
        parts = {f.name: f.default_factory for f in dataclasses.fields(cls)}
        _known(tree, tuple(parts), "a run's configuration")
        return cls(**{name: _build(part, tree.get(name) or {}, name) for name, part in parts.items()})

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str) -> LoomConfig:
        return cls.from_dict(yaml.safe_load(text) or {})

    def replace(self, **parts: dict[str, Any]) -> LoomConfig:
        """A copy with single values changed: `config.replace(train={"steps": 5})`."""
        return dataclasses.replace(self, **{name: dataclasses.replace(getattr(self, name), **values) for name, values in parts.items()})


def _known(given: dict, valid: tuple[str, ...], where: str) -> None:
    if not isinstance(given, dict):
        raise LoomError(f"{where} is {given!r}: it must be a mapping of names to values")
    for key in given:
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, 1, 0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise LoomError(f"key {key!r} in {where} is unknown: {hint}Valid keys are {', '.join(valid)}")


def _build(part: type, values: dict[str, Any], where: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(part)}
    _known(values, tuple(fields), where)
    default = part()
    return part(**{name: coerce(f"{where}.{name}", value, getattr(default, name)) for name, value in values.items()})


def coerce(name: str, value: Any, like: Any) -> Any:
    """`value` as the type of the default `like`; YAML reads 1e-4 as text, so numbers in text are taken."""
    try:
        if isinstance(like, bool):
            if isinstance(value, str) and value.strip().lower() in ("true", "false", "yes", "no", "on", "off", "1", "0"):
                return value.strip().lower() in ("true", "yes", "on", "1")
            if isinstance(value, bool) or value in (0, 1):
                return bool(value)
            raise ValueError
        if isinstance(like, int):
            number = float(value)
            if isinstance(value, bool) or number != int(number):
                raise ValueError
            return int(value) if isinstance(value, int) else int(number)
        if isinstance(like, float):
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        if isinstance(like, tuple):
            if isinstance(value, dict) or not isinstance(value, str) and any(v is None or isinstance(v, (bool, dict, list)) for v in value):
                raise ValueError
            return (value,) if isinstance(value, str) else tuple(coerce(name, v, like[0]) if like else str(v) for v in value)
        if value is None or isinstance(value, (bool, dict, list)):  # YAML reads a bare yes as true
            raise ValueError
        return str(value)
    except (TypeError, ValueError, OverflowError):
        kind = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a list of text"}.get(type(like), "text")
        raise LoomError(f"{name} is {value!r}: it must be {kind}, for example {like!r}") from None
