"""From a micro-batch to its loss: draws noise and times, asks the model, judges the answer.

Knows configuration and model; what a step does with the loss is the loop's affair.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from . import loss as losses
from .adapters import Adapter, disabled
from .backbones.families import Family
from .backbones.protocol import Batch, TrainableModel
from .config import LossConfig
from .devices import onto


@dataclass
class Question:
    """One micro-batch, made noisy: everything that was drawn at random, so that it can be asked in parts or again."""

    batch: Batch
    noisy: torch.Tensor
    times: torch.Tensor
    target: torch.Tensor

    def rows(self, part: slice) -> Question:
        return Question(self.batch.rows(part), self.noisy[part], self.times[part], self.target[part])

    def neighbours(self) -> Question:
        """The same with captions without the concept."""
        return replace(self, batch=self.batch.neighbours())

    def with_rows_of(self, other: Question) -> Question:
        """These rows and then the other's."""
        return Question(self.batch.with_rows_of(other.batch), *(torch.cat(pair) for pair in (
            (self.noisy, other.noisy), (self.times, other.times), (self.target, other.target))))

    def parts(self, count: int) -> Iterator[tuple[Question, float]]:
        """(part, its share of the rows): `count` parts, or one a row where there are fewer."""
        total = len(self.noisy)
        count = min(count, total)
        bounds = [round(total * i / count) for i in range(count + 1)]
        for start, end in zip(bounds, bounds[1:]):
            yield self.rows(slice(start, end)), (end - start) / total


class Objective:
    """The loss of a model with these adapters under this configuration."""

    def __init__(self, model: TrainableModel, adapters: list[Adapter], config: LossConfig, together: bool = True) -> None:
        """together: see fitting.py."""
        self.together = together
        self.model, self.adapters, self.config = model, adapters, config
        self.process = process_of(model)

    def draw(self, batch: Batch, generator: torch.Generator, u: torch.Tensor | None = None) -> Question:
        """Noise and times for the batch, from `generator` alone. `u` (B,) in 0..1 sets the times instead of drawing them."""
        config = self.config
        latents = onto(batch.latents, self.model.device)
        if u is None:
            sampling, shift = noise_levels(config, self.model.family)
            if shift == "resolution":
                shift = losses.resolution_shift(latents.shape[-2] * latents.shape[-1] // self.model.family.patch ** 2)
            u = losses.shifted(losses.density(len(latents), config, sampling, generator), shift)
        times = self.process.times(u)
        noise = losses.draw_noise(latents, config, generator)
        inside = noise
        if config.input_perturbation > 0:  # Ning et al. 2023, arXiv:2301.11706
            inside = noise + config.input_perturbation * onto(torch.randn(noise.shape, generator=generator), noise.device, noise.dtype)
        return Question(batch, self.process.add_noise(latents, inside, times), times, self.process.target(latents, noise, times))

    def __call__(self, question: Question) -> torch.Tensor:
        """The scalar loss, with the graph where gradients are enabled."""
        config, batch, count, wanted = self.config, question.batch, len(question.noisy), None
        if config.preservation:  # the answer to the same without the concept is to stay (ai-toolkit's differential output preservation)
            neighbours = question.neighbours()
            with torch.no_grad(), disabled(self.adapters):
                wanted = self._ask(neighbours)
        if wanted is None:
            predicted = self._ask(question)
        elif self.together:
            predicted = self._ask(question.with_rows_of(neighbours))
        else:
            predicted = torch.cat([self._ask(question), self._ask(neighbours)])
        c = losses.huber_c(question.times, self.process, config)
        values = losses.distance(predicted[:count], question.target, config, c)
        mask = None if batch.masks is None else self._mask(onto(batch.masks, values.device, values.dtype), values.ndim)
        loss = losses.weighted_mean(values, self.process.weights(question.times, config), mask)
        return loss if wanted is None else loss + config.preservation * (predicted[count:] - wanted).square().mean()

    def _ask(self, question: Question) -> torch.Tensor:
        batch = question.batch
        conditioning = batch.conditioning if batch.conditioning is not None else self.model.encode_captions(batch.captions)
        return self.model.predict(question.noisy, question.times, batch, conditioning)

    def _mask(self, masks: torch.Tensor, ndim: int) -> torch.Tensor:
        """(B, 1, H, W) in 0..1 as weights: what is masked out keeps `unmasked_weight`; each picture's mean is 1, so that small subjects count as much."""
        weights = self.config.unmasked_weight + (1 - self.config.unmasked_weight) * masks
        weights = weights / weights.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
        return weights.view(len(weights), *[1] * (ndim - 3), *weights.shape[-2:])  # single frames have a time axis


def noise_levels(config: LossConfig, family: Family) -> tuple[str, float | str]:
    """(how noise levels are drawn, their shift: a number, or "resolution"), the family's own where the configuration says auto."""
    sampling = family.timestep_sampling if config.timestep_sampling == "auto" else config.timestep_sampling
    kind, shift = (family.timestep_shift, family.shift) if config.timestep_shift == "auto" else (config.timestep_shift, config.shift)
    return sampling, {"none": 1.0, "constant": shift}.get(kind, kind)


def process_of(model: TrainableModel) -> losses.Diffusion | losses.Flow:
    if model.prediction == "flow":
        return losses.Flow(model.device)
    return losses.Diffusion(model.alphas_cumprod.to(model.device), model.prediction)
