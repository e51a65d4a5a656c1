"""From a dataset to micro-batches: encoding once before step 1, then a seeded order that never repeats a draw."""
from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..backbones.protocol import Batch, Conditioning
from .cache import Stored

Sizes = tuple[int, int, int, int, int, int]
T = TypeVar("T")


@dataclass
class Row:
    """One picture at one size: its variants, of which each time one is drawn."""

    latents: list[Stored]  # {"latents": (C, H/8, W/8) fp32}
    sizes: list[Sizes]  # one a variant, for SDXL's time ids
    caption: str
    repeats: int
    masks: list[torch.Tensor] | None = None  # one a variant: (1, H/8, W/8) in 0..1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.latents[0].shapes["latents"]


@dataclass
class Encoded:
    """Everything the loop needs, on the CPU or on disk."""

    rows: list[Row]
    conditioning: dict[str, Stored] | None  # by caption; None while text encoders are trained
    wordings: dict[str, list[str]]  # caption -> what stands for it in training; itself where it is not there
    preserved: dict[str, list[str]] | None = None  # caption -> the same without the concept; None where nothing is preserved

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def on_disk(self) -> bool:
        return any(v.on_disk for row in self.rows for v in row.latents) or any(c.on_disk for c in (self.conditioning or {}).values())

    def batch(self, rows: list[int], captions: list[str], preserved: list[str] | None = None, variants: list[int] | None = None) -> Batch:
        """The pictures of those numbers, all of one shape, with these captions; `preserved` are the captions without the concept."""
        chosen = [(self.rows[i], v) for i, v in zip(rows, variants or [0] * len(rows))]
        latents = torch.stack([row.latents[v].load()["latents"] for row, v in chosen])
        masked = any(row.masks for row, _ in chosen)
        masks = torch.stack([row.masks[v] if row.masks else torch.ones(1, *row.shape[-2:]) for row, v in chosen]) if masked else None
        return Batch(latents, captions, self._encoded(captions), [row.sizes[v] for row, v in chosen],
                     preserved or [], self._encoded(preserved) if preserved else None, masks)

    def _encoded(self, captions: list[str]) -> list[Conditioning] | None:
        return None if self.conditioning is None else [conditioning(self.conditioning[text].load()) for text in captions]


def conditioning(tensors: dict[str, torch.Tensor]) -> Conditioning:
    """From an entry of the cache; `entry` is the other way."""
    extra = {name.removeprefix("extra."): tensor for name, tensor in tensors.items() if name.startswith("extra.")}
    return Conditioning(tensors["context"], tensors.get("pooled"), extra)


def entry(found: Conditioning) -> dict[str, torch.Tensor]:
    pooled = {} if found.pooled is None else {"pooled": found.pooled}
    return {"context": found.context, **pooled, **{f"extra.{name}": tensor for name, tensor in found.extra.items()}}


def epoch_length(repeats: list[int], shapes: list[tuple[int, ...]], batch_size: int) -> int:
    """Micro-batches an epoch: every picture as often as it counts, batches of one shape, the last of a shape may be smaller."""
    counts: dict[tuple[int, ...], int] = {}
    for shape, times in zip(shapes, repeats):
        counts[shape] = counts.get(shape, 0) + times
    return sum(-(-n // batch_size) for n in counts.values())


def order(shapes: list[tuple[int, ...]], repeats: list[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The epoch's micro-batches as indices, shuffled by (seed, epoch) alone, so that any position can be found again."""
    digest = hashlib.sha256(f"{seed}:order:{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    turns = [index for index, times in enumerate(repeats) for _ in range(times)]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place in torch.randperm(len(turns), generator=generator).tolist():
        by_shape.setdefault(shapes[turns[place]], []).append(turns[place])
    batches = [rows[i:i + batch_size] for rows in by_shape.values() for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def batches(encoded: Encoded, repeats: int, batch_size: int, seed: int, caption_dropout: float, skip: int = 0) -> Iterator[Batch]:
    """Micro-batches without end, from the one numbered `skip` on. Dropped captions become the empty one, drawn from the same seed.

    What lies on disk is read one batch ahead, beside the step."""
    drawn = _drawn(encoded, repeats, batch_size, seed, caption_dropout, skip)
    made = (encoded.batch(*parts) for parts in drawn)
    return _ahead(made) if encoded.on_disk else made


def _drawn(encoded: Encoded, repeats: int, batch_size: int, seed: int, caption_dropout: float, skip: int) -> Iterator[tuple]:
    """What `Encoded.batch` takes, for each micro-batch."""
    shapes, times = [row.shape for row in encoded.rows], [repeats * row.repeats for row in encoded.rows]
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        for rows in order(shapes, times, batch_size, seed, epoch):
            kept = (torch.rand(len(rows), generator=generator) >= caption_dropout).tolist()
            captions = [_one_of(encoded.wordings.get(encoded.rows[i].caption, [encoded.rows[i].caption]), generator) for i in rows]
            others = None if encoded.preserved is None else [_one_of(encoded.preserved[caption], generator) for caption in captions]
            variants = [_one_of(range(len(encoded.rows[i].latents)), generator) for i in rows]
            if skip:
                skip -= 1
                continue
            yield rows, [caption if keep else "" for caption, keep in zip(captions, kept)], others, variants
        epoch += 1


def _one_of(choices: Sequence[T], generator: torch.Generator) -> T:
    return choices[0] if len(choices) == 1 else choices[int(torch.randint(len(choices), (), generator=generator))]


def _ahead(source: Iterator[Batch]) -> Iterator[Batch]:
    """The same, the next one being made while this one is used."""
    with ThreadPoolExecutor(1, "lora_loom_batches") as pool:
        coming = pool.submit(next, source)
        while True:
            batch = coming.result()
            coming = pool.submit(next, source)
            yield batch
