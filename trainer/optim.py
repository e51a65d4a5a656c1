"""Optimizer and learning-rate schedule by kept libraries: torch's AdamW, diffusers' schedules."""
from __future__ import annotations

import torch
from diffusers.optimization import get_scheduler

from .adapters import Adapter
from .config import OptimConfig


def build(adapters: list[Adapter], config: OptimConfig, total_steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW over the adapters, text encoders at their own rate, and the schedule over `total_steps` optimizer steps."""
    unet = [p for a in adapters if a.key.startswith("lora_unet") for p in a.parameters()]
    text = [p for a in adapters if not a.key.startswith("lora_unet") for p in a.parameters()]
    groups = [{"params": unet, "lr": config.learning_rate}]
    if text:
        groups.append({"params": text, "lr": config.text_encoder_lr})
    fused = all(p.device.type == "cuda" for p in [*unet, *text])
    # diffusers' polynomial schedule reads the optimizer's own rate, not the groups'
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay, fused=fused)
    schedule = get_scheduler(config.scheduler, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=total_steps, num_cycles=config.cycles)
    return optimizer, schedule
