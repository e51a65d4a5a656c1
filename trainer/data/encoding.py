"""Pictures and captions through a model's encoders, once, before the first step; what is in the cache is not encoded again."""
from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from PIL import Image

from ..backbones.protocol import TrainableModel
from ..config import DataConfig
from ..errors import LoomError
from .augment import View
from .batches import Encoded, Row, Sizes, entry
from .buckets import to_tensor
from .cache import Cache, Stored, key
from .dataset import Dataset, Picture, word_pattern
from .pictures import open_mask, open_picture
from .wordings import wordings


@dataclass
class _Wanted:
    """One variant of a row: what is encoded, and where in the row it goes."""

    row: Row
    number: int
    picture: Picture
    view: View
    size: tuple[int, int]

    def key(self, encoder: str) -> str:
        return key(picture=self.picture.digest, size=self.size, view=dataclasses.asdict(self.view), vae=encoder)


def without_concept(caption: str, trigger_word: str, words: tuple[str, ...]) -> list[str]:
    """The caption with each of `words` for the trigger word, or with the trigger word left out."""
    found = word_pattern(trigger_word)
    return [re.sub(r"\s+", " ", found.sub(lambda _, word=word: word, caption)).strip(" ,") for word in words or ("",)]


def encode(model: TrainableModel, dataset: Dataset, train_text_encoder: bool, progress: Callable[[int, int], None],
           preserve: tuple[str, ...] | None = None, data: DataConfig | None = None, seed: int = 0, cache: Cache | None = None) -> Encoded:
    """Latents of every picture in its buckets, embeddings of every caption and of the empty one. Polls through `progress`.

    preserve: the words that stand for the trigger word in captions of what is to stay as it is; None where nothing is preserved.
    cache: where entries are looked for and kept; None keeps them in memory. LoomError where the VAE overflows.
    """
    cache, data = cache or Cache(None), data or DataConfig()
    rows, wanted = _rows(dataset, model.family.size_multiple)
    found = Encoded(rows, None, {})
    for caption in {row.caption for row in rows}:
        choices = wordings(caption, dataset.trigger_word, data, seed)
        if choices != [caption]:
            found.wordings[caption] = choices
    captions = {"", *(row.caption for row in rows), *(text for choices in found.wordings.values() for text in choices)}
    if preserve is not None:
        found.preserved = {caption: without_concept(caption, dataset.trigger_word, preserve) for caption in captions}
        captions |= {other for others in found.preserved.values() for other in others}
    vae, text = model.encoder_digests() if cache.folder else ("", "")
    done, total = 0, len(wanted) + (0 if train_text_encoder else len(captions))
    with torch.no_grad():
        for part in _encode_pictures(model, wanted, vae, cache):
            done += part
            progress(done, total)
        if not train_text_encoder:
            found.conditioning = {}
            for caption in sorted(captions):
                found.conditioning[caption] = _encode_caption(model, caption, text, cache)
                done += 1
                progress(done, total)
    return found


def _rows(dataset: Dataset, multiple: int) -> tuple[list[Row], list[_Wanted]]:
    """A row for each picture, size and, where all are mirrored, side; and what is to be encoded for them."""
    rows, wanted = [], []
    for picture in dataset.pictures:
        for size in dataset.sizes(picture, multiple):
            for mirrored in (False, True)[: 1 + dataset.flip]:
                row = Row([], [], dataset.caption(picture), picture.repeats)
                varied = dataset.augment if dataset.augment and dataset.augment.active else None
                views = [varied.view(picture.digest, n) for n in range(varied.variants)] if varied else [View()]
                wanted += [_Wanted(row, n, picture, dataclasses.replace(view, mirrored=view.mirrored != mirrored), size) for n, view in enumerate(views)]
                rows.append(row)
    return rows, wanted


def _encode_pictures(model: TrainableModel, wanted: list[_Wanted], encoder: str, cache: Cache) -> Iterator[int]:
    """Fills the rows; yields after every few how many. Pictures of one size go through the VAE together where that is faster."""
    together = 4 if model.device.type == "cuda" else 1  # on a CPU it is not, and one alone gives the same bits whatever is in the cache
    waiting: dict[tuple[int, int], list[tuple[_Wanted, torch.Tensor, Sizes]]] = {}
    for one in wanted:
        one.row.latents.append(None)
        one.row.sizes.append(None)
        if one.picture.mask is not None:
            one.row.masks = one.row.masks or []
            one.row.masks.append(None)
    for one in wanted:
        stored = cache.get(one.key(encoder), "latents", "sizes") if encoder and one.picture.digest else None
        if stored is not None:
            _place(one, stored, tuple(stored.load()["sizes"].tolist()))
            yield 1
            continue
        image, sizes = one.view.of(_as_listed(one.picture), one.size)
        group = waiting.setdefault(one.size, [])
        group.append((one, to_tensor(image), sizes))
        if len(group) == together:
            yield _encode_group(model, waiting.pop(one.size), encoder, cache)
    for group in waiting.values():
        yield _encode_group(model, group, encoder, cache)


def _as_listed(picture: Picture) -> Image.Image:
    """LoomError where the file is another by now: what the cache keeps would go by the old one's name."""
    image = open_picture(picture.path)
    if picture.digest and hashlib.sha256(picture.path.read_bytes()).hexdigest() != picture.digest:
        raise LoomError(f"picture {picture.name} has changed since the folder was read: run again, LoadDataset will read it anew")
    return image


def _encode_group(model: TrainableModel, group: list[tuple[_Wanted, torch.Tensor, Sizes]], encoder: str, cache: Cache) -> int:
    latents = model.encode_images(torch.stack([pixels for _, pixels, _ in group]))
    for (one, _, sizes), made in zip(group, latents):
        if not made.isfinite().all():
            raise LoomError(f"vae gives latents that are no numbers for {one.picture.name}: it overflows in fp16; "
                            "load another VAE (SDXL: the one with the fp16 fix), or start ComfyUI with --fp32-vae or --bf16-vae")
        tensors = {"latents": made, "sizes": torch.tensor(sizes)}
        keep = encoder and one.picture.digest
        _place(one, cache.put(one.key(encoder), tensors) if keep else Stored(tensors), sizes)
    return len(group)


def _place(one: _Wanted, stored: Stored, sizes: Sizes) -> None:
    one.row.latents[one.number], one.row.sizes[one.number] = stored, sizes
    if one.row.masks is not None:
        one.row.masks[one.number] = latent_mask(one.picture, one.view, one.size, stored.shapes["latents"][-2:])


def latent_mask(picture: Picture, view: View, size: tuple[int, int], cells: tuple[int, ...]) -> torch.Tensor:
    """(1, *cells) in 0..1: how much of each latent cell counts. Ones where the picture has no mask."""
    if picture.mask is None:
        return torch.ones(1, *cells)
    try:
        same = not picture.mask_digest or hashlib.sha256(picture.mask.read_bytes()).hexdigest() == picture.mask_digest
        mask = open_mask(picture.mask, alpha=picture.mask == picture.path) if same else None
    except OSError:
        same, mask = False, None
    if not same:
        raise LoomError(f"mask {picture.mask.name} has changed or gone since the folder was read: run again, LoadDataset will read it anew")
    if mask is None:
        return torch.ones(1, *cells)
    fitted, _ = view.of(mask.resize((picture.width, picture.height)), size, colours=False)
    return torch.nn.functional.adaptive_avg_pool2d(to_tensor(fitted)[:1], cells)


def _encode_caption(model: TrainableModel, caption: str, encoder: str, cache: Cache) -> Stored:
    if not encoder or "embedding:" in caption:  # which stands for a file that nobody has looked at here
        return Stored(entry(model.encode_captions([caption])[0]))
    name = key(caption=caption, text=encoder)
    return cache.get(name, "context") or cache.put(name, entry(model.encode_captions([caption])[0]))
