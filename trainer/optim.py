"""Optimizer and learning-rate schedule by kept libraries: torch's AdamW, diffusers' schedules."""
from __future__ import annotations

import torch
from diffusers.optimization import get_scheduler

from .adapters import Adapter
from .config import OptimConfig


def build(adapters: list[Adapter], config: OptimConfig, total_steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW over the adapters, text encoders at their own rate, and the schedule over `total_steps` optimizer steps."""
    rates: dict[float, list[torch.nn.Parameter]] = {config.learning_rate: []}  # first, for its rate is the one that is shown
    for adapter in adapters:
        general = config.learning_rate if adapter.key.startswith("lora_unet") else config.text_encoder_lr
        rates.setdefault(general if adapter.learning_rate is None else adapter.learning_rate, []).extend(adapter.parameters())
    groups = [{"params": parameters, "lr": rate} for rate, parameters in rates.items() if parameters]
    fused = all(p.device.type == "cuda" for group in groups for p in group["params"])
    # diffusers' polynomial schedule reads the optimizer's own rate, not the groups'
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay, fused=fused)
    schedule = get_scheduler(config.scheduler, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=total_steps, num_cycles=config.cycles)
    return optimizer, schedule
