"""Validation loss: the same pictures, noise and times each time, so that learning by heart shows as a rising curve."""
from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from .adapters import evaluating
from .backbones.protocol import Batch
from .config import LossConfig
from .data.batches import Encoded
from .data.dataset import Dataset
from .objective import Objective

TIMES = 4  # of each picture, spread evenly over the noise levels


def divided(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """(pictures to train on, pictures held out or None), chosen by the pictures' bytes and the seed. One picture at least is trained on."""
    count = min(len(dataset.pictures) - 1, max(1, round(share * len(dataset.pictures)))) if share else 0
    if count < 1:
        return dataset, None
    shuffled = sorted(range(len(dataset.pictures)), key=lambda i: hashlib.sha256(f"{seed}:{dataset.pictures[i].digest}:{i}".encode()).digest())
    held = set(shuffled[:count])
    parts = [tuple(p for i, p in enumerate(dataset.pictures) if (i in held) == out) for out in (False, True)]
    return replace(dataset, pictures=parts[0]), replace(dataset, pictures=parts[1], flip=False, augment=None)


class Validation:
    """Call it for the mean squared error in the model's own target space, unweighted; nothing of the training's random numbers is used."""

    def __init__(self, objective: Objective, encoded: Encoded, batch_size: int, seed: int) -> None:
        config = LossConfig(weighting="none", unmasked_weight=objective.config.unmasked_weight)
        self.objective = Objective(objective.model, objective.adapters, config)
        self.encoded, self.batch_size, self.seed = encoded, batch_size, seed

    def __call__(self) -> float:
        total, generator = 0.0, torch.Generator().manual_seed(self.seed)
        with torch.no_grad(), evaluating(self.objective.adapters):
            for batch, u in self._batches():
                total += self.objective(self.objective.draw(batch, generator, u)).item() * len(u)
        return total / (TIMES * len(self.encoded))

    def _batches(self) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Every picture TIMES times, with its times u (B,) in 0..1."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, row in enumerate(self.encoded.rows):
            groups.setdefault(row.shape, []).append(index)
        for rows in groups.values():
            for start in range(0, len(rows), self.batch_size):
                part = rows[start:start + self.batch_size]
                batch = self.encoded.batch(part, [self.encoded.rows[i].caption for i in part])
                for number in range(TIMES):
                    yield batch, torch.tensor([(number + (i + 0.5) / len(self.encoded)) / TIMES for i in part])
