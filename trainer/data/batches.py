"""From a dataset to micro-batches: encoding once before step 1, then a seeded order that never repeats a draw."""
from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..backbones.protocol import Batch, Conditioning, TrainableModel
from ..errors import LoomError
from .buckets import bucket_for, fit, to_tensor
from .folder import Dataset, Picture, open_picture, word_pattern
from .pictures import open_mask


@dataclass
class Encoded:
    """Everything the loop needs, on the CPU: one entry a picture (and one more for its mirror image)."""

    latents: list[torch.Tensor]  # (C, H/8, W/8) fp32
    captions: list[str]
    sizes: list[tuple[int, int, int, int, int, int]]
    conditioning: dict[str, Conditioning] | None  # by caption; None while text encoders are trained
    preserved: dict[str, list[str]] | None = None  # caption -> the same without the concept; None where nothing is preserved
    masks: list[torch.Tensor] | None = None  # (1, H/8, W/8) in 0..1; None where there are none

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, rows: list[int], captions: list[str], preserved: list[str] | None = None) -> Batch:
        """The pictures of those numbers, all of one shape, with these captions; `preserved` are the captions without the concept."""
        encoded = lambda texts: None if self.conditioning is None else [self.conditioning[text] for text in texts]
        return Batch(torch.stack([self.latents[i] for i in rows]), captions, encoded(captions), [self.sizes[i] for i in rows],
                     preserved or [], encoded(preserved) if preserved else None, None if self.masks is None else torch.stack([self.masks[i] for i in rows]))


def without_concept(caption: str, trigger_word: str, words: tuple[str, ...]) -> list[str]:
    """The caption with each of `words` for the trigger word, or with the trigger word left out."""
    found = word_pattern(trigger_word)
    return [re.sub(r"\s+", " ", found.sub(lambda _, word=word: word, caption)).strip(" ,") for word in words or ("",)]


def encode(model: TrainableModel, dataset: Dataset, train_text_encoder: bool, progress: Callable[[int, int], None], batch_size: int = 4,
           preserve: tuple[str, ...] | None = None) -> Encoded:
    """Latents of every picture in its bucket, embeddings of every caption and of the empty one. Polls through `progress`.

    preserve: the words that stand for the trigger word in captions of what is to stay as it is; None where nothing is preserved.
    """
    multiple = model.family.size_multiple
    groups: dict[tuple[int, int], list] = {}
    for picture in dataset.pictures:
        size = bucket_for(picture.width, picture.height, dataset.resolution, multiple, dataset.buckets)
        groups.setdefault(size, []).append(picture)
    captions = sorted({dataset.caption(p) for p in dataset.pictures} | {""})
    preserved = None
    if preserve is not None:
        preserved = {caption: without_concept(caption, dataset.trigger_word, preserve) for caption in captions}
        captions = sorted({*captions, *(other for others in preserved.values() for other in others)})
    done, total = 0, len(dataset.pictures) + len(captions)
    found = Encoded([], [], [], None, preserved, None if all(p.mask is None for p in dataset.pictures) else [])
    with torch.no_grad():
        for size, pictures in groups.items():
            for start in range(0, len(pictures), batch_size):
                part = pictures[start:start + batch_size]
                fitted = [fit(open_picture(p.path), size) for p in part]
                pixels = torch.stack([to_tensor(image) for image, _ in fitted])
                for views in [pixels, pixels.flip(-1)][: 1 + dataset.flip]:
                    found.latents += _finite(model.encode_images(views), part)
                    found.captions += [dataset.caption(p) for p in part]
                    found.sizes += [time_ids for _, time_ids in fitted]
                if found.masks is not None:
                    masks = torch.stack([_mask(p, size, tuple(found.latents[-1].shape[-2:])) for p in part])
                    for views in [masks, masks.flip(-1)][: 1 + dataset.flip]:
                        found.masks += list(views)
                done += len(part)
                progress(done, total)
        if not train_text_encoder:
            found.conditioning = {}
            for caption in captions:
                found.conditioning[caption] = model.encode_captions([caption])[0]
                done += 1
                progress(done, total)
    return found


def _finite(latents: torch.Tensor, pictures: list[Picture]) -> list[torch.Tensor]:
    """One a picture; LoomError where the VAE has overflowed."""
    for picture, one in zip(pictures, latents):
        if not one.isfinite().all():
            raise LoomError(f"vae gives latents that are no numbers for {picture.name}: it overflows in fp16; "
                            "load another VAE (SDXL: the one with the fp16 fix), or start ComfyUI with --fp32-vae or --bf16-vae")
    return list(latents)


def _mask(picture: Picture, size: tuple[int, int], cells: tuple[int, int]) -> torch.Tensor:
    """(1, *cells) in 0..1: how much of each latent cell counts. Ones where the picture has no mask."""
    mask = None if picture.mask is None else open_mask(picture.mask, alpha=picture.mask == picture.path)
    if mask is None:
        return torch.ones(1, *cells)
    fitted, _ = fit(mask.resize((picture.width, picture.height)), size)
    return torch.nn.functional.adaptive_avg_pool2d(to_tensor(fitted)[:1], cells)


def epoch_length(encoded_count: int, repeats: int, shapes: list[tuple[int, ...]], batch_size: int) -> int:
    """Micro-batches an epoch: every picture `repeats` times, batches of one shape, the last of a shape may be smaller."""
    counts: dict[tuple[int, ...], int] = {}
    for shape in shapes:
        counts[shape] = counts.get(shape, 0) + repeats
    return sum(-(-n // batch_size) for n in counts.values())


def order(shapes: list[tuple[int, ...]], repeats: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The epoch's micro-batches as indices, shuffled by (seed, epoch) alone, so that any position can be found again."""
    digest = hashlib.sha256(f"{seed}:order:{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index in torch.randperm(len(shapes) * repeats, generator=generator).tolist():
        by_shape.setdefault(shapes[index % len(shapes)], []).append(index % len(shapes))
    batches = [rows[i:i + batch_size] for rows in by_shape.values() for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def batches(encoded: Encoded, repeats: int, batch_size: int, seed: int, caption_dropout: float, skip: int = 0) -> Iterator[Batch]:
    """Micro-batches without end, from the one numbered `skip` on. Dropped captions become the empty one, drawn from the same seed."""
    shapes = [tuple(z.shape) for z in encoded.latents]
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        for rows in order(shapes, repeats, batch_size, seed, epoch):
            kept = (torch.rand(len(rows), generator=generator) >= caption_dropout).tolist()
            others = None
            if encoded.preserved is not None:
                choices = [encoded.preserved[encoded.captions[i]] for i in rows]
                others = [c[int(torch.randint(len(c), (), generator=generator))] for c in choices]
            if skip:
                skip -= 1
                continue
            yield encoded.batch(rows, [encoded.captions[i] if keep else "" for i, keep in zip(rows, kept)], others)
        epoch += 1
