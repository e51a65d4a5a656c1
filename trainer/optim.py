"""Optimizer and learning-rate schedule, each from a kept library: torch, transformers, bitsandbytes, lion-pytorch …; diffusers.

An optimizer is a row of the table below. Those of optional packages say which one is missing.
"""
from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from .adapters import Adapter
from .config import OptimConfig
from .errors import LoomError


@dataclass(frozen=True)
class _Row:
    module: str  # where the class is
    name: str
    package: str  # what pip calls it; "" for torch's own
    options: Callable[[OptimConfig, bool], dict[str, Any]]  # for (configuration, whether torch has a fused step for all devices)
    kept: float = 8.0  # bytes a trained value, beside the value and its gradient


def _common(c: OptimConfig, fused: bool) -> dict[str, Any]:
    return {"betas": (c.beta1, c.beta2), "weight_decay": c.weight_decay}


OPTIMIZERS = {
    # Loshchilov & Hutter 2019, arXiv:1711.05101
    "adamw": _Row("torch.optim", "AdamW", "", lambda c, fused: {**_common(c, fused), "fused": fused}),
    # Dettmers et al. 2022, arXiv:2110.02861
    "adamw8bit": _Row("bitsandbytes.optim", "AdamW8bit", "bitsandbytes", _common, kept=2.1),
    "paged_adamw8bit": _Row("bitsandbytes.optim", "PagedAdamW8bit", "bitsandbytes", _common, kept=2.1),
    # Shazeer & Stern 2018, arXiv:1804.04235, at the rate that is given: torch scales its own by the weights, and B starts at 0
    "adafactor": _Row("transformers.optimization", "Adafactor", "transformers",
                      lambda c, fused: {"weight_decay": c.weight_decay, "scale_parameter": False, "relative_step": False}, kept=0.4),
    # Chen et al. 2023, arXiv:2302.06675; its own second beta is 0.99
    "lion": _Row("lion_pytorch", "Lion", "lion-pytorch", lambda c, fused: {"betas": (c.beta1, min(c.beta2, 0.99)), "weight_decay": c.weight_decay}, kept=4.0),
    # Mishchenko & Defazio 2023, arXiv:2306.06101, with its authors' advice for diffusion models
    "prodigy": _Row("prodigyopt", "Prodigy", "prodigyopt",
                    lambda c, fused: {**_common(c, fused), "use_bias_correction": True, "safeguard_warmup": True}, kept=14.0),
    # Defazio et al. 2024, arXiv:2405.15682; it warms up by itself
    "schedule_free_adamw": _Row("schedulefree", "AdamWScheduleFree", "schedulefree", lambda c, fused: {**_common(c, fused), "warmup_steps": c.warmup_steps}),
}


def kept_bytes(config: OptimConfig, values: int) -> int:
    """What the optimizer and the moving average keep beside `values` trained fp32 values and their gradients."""
    return round(values * (OPTIMIZERS[config.optimizer].kept + (4 if config.ema_decay else 0)))


def find(name: str) -> type[torch.optim.Optimizer]:
    """The optimizer's class; LoomError naming the package where it is missing."""
    row = OPTIMIZERS[name]
    try:
        return getattr(importlib.import_module(row.module), row.name)
    except (ImportError, AttributeError) as error:
        if not row.package:
            raise LoomError(f"optimizer {name!r} is not in torch {torch.__version__}: use adamw, or a newer torch") from error
        raise LoomError(f"optimizer {name!r} needs the package {row.package}, which cannot be imported ({error}): "
                        f"install it with `python -m pip install {row.package}`, or use adamw") from error


def build(adapters: list[Adapter], config: OptimConfig, total_steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimizer over the adapters, text encoders and patterns at their own rates, and the schedule over `total_steps` optimizer steps.

    Prodigy multiplies every rate by the step size that it finds, so text encoders get the general one there, or 0.
    """
    rates: dict[float, list[torch.nn.Parameter]] = {config.learning_rate: []}  # first, for its rate is the one that is shown
    for adapter in adapters:
        text = not adapter.key.startswith("lora_unet") and (config.optimizer != "prodigy" or config.text_encoder_lr == 0)
        general = config.text_encoder_lr if text else config.learning_rate
        rates.setdefault(general if adapter.learning_rate is None else adapter.learning_rate, []).extend(adapter.parameters())
    still = {"weight_decay": 0.0}  # Prodigy takes values back to 0 at the rate 0 too
    groups = [{"params": parameters, "lr": rate, **({} if rate else still)} for rate, parameters in rates.items() if parameters]
    row, kind = OPTIMIZERS[config.optimizer], find(config.optimizer)
    devices = {p.device for group in groups for p in group["params"]}
    fused = {device.type for device in devices} <= ({"cuda", "cpu"} if torch.__version__ >= (2, 4) else {"cuda"})
    if row.package == "bitsandbytes":
        for device in devices:
            _try(config.optimizer, kind, device)
    # diffusers' polynomial schedule reads the optimizer's own rate, not the groups'
    optimizer = kind(groups, lr=config.learning_rate, **row.options(config, fused))
    name, warmup = ("constant", 0) if config.optimizer == "schedule_free_adamw" else (config.scheduler, config.warmup_steps)
    return optimizer, get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps, num_cycles=config.cycles)


def _try(name: str, kind: type[torch.optim.Optimizer], device: torch.device) -> None:
    """LoomError where bitsandbytes has no code for that device: it may be built without, which shows at the first step alone."""
    value = torch.nn.Parameter(torch.zeros(64, 64, device=device))  # smaller ones are kept in 32 bits
    value.grad = torch.ones_like(value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # paged memory is CUDA's: elsewhere it is plain, and it says so
            kind([value]).step()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise LoomError(f"optimizer {name!r} does not work on {device.type} with this bitsandbytes ({error}): update bitsandbytes, or use adamw") from error


def rate(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> float:
    """The effective learning rate of the first group in its next step; Prodigy's is scaled by what it has found, the schedule-free one warms up by itself."""
    group = optimizer.param_groups[0]
    warmed = min(1.0, (group["k"] + 1) / group["warmup_steps"]) if group.get("warmup_steps") else 1.0
    return schedule.get_last_lr()[0] * group.get("d", 1.0) * warmed
