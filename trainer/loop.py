"""The training loop. It knows no node, no file and no model family: a model, batches and numbers come in, losses go out."""
from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch

from . import loss as losses
from . import optim
from .adapters import Adapter, disabled
from .backbones.protocol import Batch, TrainableModel
from .config import LoomConfig
from .errors import LoomError
from .hooks import Hooks, Progress


def train(model: TrainableModel, adapters: list[Adapter], batches: Iterator[Batch], config: LoomConfig, steps: int, hooks: Hooks, history: list[float]) -> None:
    """Run `steps` optimizer steps; append each step's loss to `history`, so that an interrupt loses none.

    Raises LoomError where the loss or the gradient is no finite number: the adapters stay as after the last good step.
    """
    optimizer, schedule = optim.build(adapters, config.optim, steps)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    alphas = model.alphas_cumprod.to(model.device)
    generator = torch.Generator().manual_seed(config.train.seed)
    accumulation = config.train.gradient_accumulation_steps
    started, smoothed = time.perf_counter(), None

    with optim.stepping(optimizer):
        for step in range(len(history), steps):
            total = 0.0
            for _ in range(accumulation):
                hooks.poll()
                batch = next(batches)
                latents = batch.latents.to(model.device)
                timesteps = torch.randint(len(alphas), (len(latents),), generator=generator).to(model.device)
                noise = _noise(latents, config.loss.noise_offset, generator)
                noisy = losses.add_noise(latents, noise, alphas, timesteps)
                conditioning = batch.conditioning if batch.conditioning is not None else model.encode_captions(batch.captions)
                predicted = model.predict(noisy, timesteps, batch, conditioning)
                wanted = losses.target(latents, noise, alphas, timesteps, model.prediction)
                weights = losses.min_snr_weights(alphas, timesteps, config.loss.min_snr_gamma, model.prediction)
                loss = losses.weighted_mse(predicted, wanted, weights) / accumulation
                if config.loss.preservation:
                    loss = loss + config.loss.preservation * _change(model, adapters, noisy, timesteps, batch) / accumulation
                loss.backward()
                total += loss.item()
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.optim.max_grad_norm or math.inf).item()
            if not (math.isfinite(total) and math.isfinite(norm)):
                raise LoomError(f"loss {total} and gradient norm {norm} at step {step + 1}: they must be finite numbers; lower the learning rate "
                                f"({config.optim.learning_rate:g}){'' if config.train.precision == 'fp32' else ', or use precision fp32'}")
            rate = optim.rate(optimizer, schedule)
            optimizer.step()
            for adapter in adapters:
                adapter.settle()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)

            history.append(total)
            smoothed = total if smoothed is None else 0.95 * smoothed + 0.05 * total
            speed = (step + 1) / max(time.perf_counter() - started, 1e-9)
            with optim.shown(optimizer):
                hooks.progress(Progress("train", step + 1, steps, total, smoothed, rate, norm, speed, (steps - step - 1) / speed))
            if hooks.should_stop():
                break


def _change(model: TrainableModel, adapters: list[Adapter], noisy: torch.Tensor, timesteps: torch.Tensor, batch: Batch) -> torch.Tensor:
    """How far the adapters change the answer to captions without the concept (ai-toolkit's differential output preservation)."""
    encoded = batch.preserved_conditioning
    with torch.no_grad(), disabled(adapters):
        wanted = model.predict(noisy, timesteps, batch, encoded if encoded is not None else model.encode_captions(batch.preserved))
    predicted = model.predict(noisy, timesteps, batch, encoded if encoded is not None else model.encode_captions(batch.preserved))
    return (predicted - wanted).square().mean()


def _noise(latents: torch.Tensor, offset: float, generator: torch.Generator) -> torch.Tensor:
    """Gaussian noise drawn on the CPU, so that every device sees the same; plus a per-channel offset (Guttenberg 2023)."""
    noise = torch.randn(latents.shape, generator=generator)
    if offset > 0:
        noise = noise + offset * torch.randn((*latents.shape[:2], 1, 1), generator=generator)
    return noise.to(latents)
