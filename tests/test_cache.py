"""What encoders made is found again, only where nothing has changed; what is damaged is made anew."""
from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.backbones.identity import digest, parts_in
from lora_loom.trainer.config import DataConfig
from lora_loom.trainer.data.augment import Augmentation
from lora_loom.trainer.data.batches import Encoded, batches, epoch_length, order
from lora_loom.trainer.data.cache import Cache, key
from lora_loom.trainer.data.encoding import encode
from lora_loom.trainer.data.folder import Dataset, read_dataset
from lora_loom.trainer.errors import LoomError
from PIL import Image

COLOURS = ("red", "blue", "green", "purple", "yellow")


@pytest.fixture
def model() -> backbone.DiffusersModel:
    return backbone.load("toy_base", "cpu", "fp32")


@pytest.fixture
def pictures(circles: Callable[..., Path]) -> Path:
    return circles("a {} circle, round, flat", COLOURS)


def read(folder: Path, **values: object) -> Dataset:
    return read_dataset(folder, resolution=64, min_size=32, **values)


def encoded(model: backbone.DiffusersModel, dataset: Dataset, cache: Cache, **values: object) -> Encoded:
    return encode(model, dataset, False, lambda done, total: None, cache=cache, **values)


def same(one: Encoded, other: Encoded, **values: object) -> bool:
    pairs = zip(range(12), batches(one, 1, 2, 7, 0.2), batches(other, 1, 2, 7, 0.2))
    return all(torch.equal(a.latents, b.latents) and a.captions == b.captions and a.sizes == b.sizes
               and all(torch.equal(c.context, d.context) for c, d in zip(a.conditioning, b.conditioning)) for _, a, b in pairs)


@pytest.mark.parametrize("kept", [2**30, 0], ids=["in memory", "on disk"])
def test_a_second_run_encodes_nothing_and_sees_the_same(model: backbone.DiffusersModel, pictures: Path, tmp_path: Path, monkeypatch, kept: int) -> None:
    dataset, first = read(pictures, flip=True), Cache(tmp_path / "cache", kept)
    one = encoded(model, dataset, first)
    assert (first.made, first.found) == (16, 0) and one.on_disk == (kept == 0)  # five pictures and their mirror images, five captions and the empty one
    plain = encoded(model, dataset, Cache(None))
    for name in ("encode_images", "encode_captions"):
        monkeypatch.setattr(model, name, None)
    second = Cache(tmp_path / "cache", kept)
    two = encoded(model, dataset, second)
    assert (second.made, second.found) == (0, 16) and same(one, two) and same(one, plain)


def test_one_picture_edited_is_one_picture_encoded(model: backbone.DiffusersModel, pictures: Path, tmp_path: Path) -> None:
    encoded(model, read(pictures), Cache(tmp_path / "cache"))
    path = sorted(pictures.glob("*.png"))[2]
    image = Image.open(path).convert("RGB")
    image.putpixel((0, 0), (1, 2, 3))
    image.save(path)
    sorted(pictures.glob("*.txt"))[1].write_text("something else")
    again = Cache(tmp_path / "cache")
    found = encoded(model, read(pictures), again)
    assert (again.made, again.found) == (2, 9) and same(found, encoded(model, read(pictures), Cache(None)))


def test_other_processing_or_another_encoder_is_another_entry(model: backbone.DiffusersModel, pictures: Path, tmp_path: Path) -> None:
    def made(dataset: Dataset, **values: object) -> int:
        cache = Cache(tmp_path / "cache")
        encoded(model, dataset, cache, **values)
        return cache.made

    assert made(read(pictures)) == 11 and made(read(pictures)) == 0
    assert made(replace(read(pictures), resolution=48)) == 5 and made(read(pictures, flip=True)) == 5
    assert made(read(pictures, augment=Augmentation(rotation=5.0, variants=3))) == 10  # the first variant is the picture as it is
    assert made(read(pictures, augment=Augmentation(rotation=6.0, variants=3))) == 10
    assert made(read(pictures), data=DataConfig(shuffle_tags=True, keep_tokens=0, caption_variants=4)) > 5
    with torch.no_grad():
        next(iter(model.vae.parameters())).add_(0.01)
    assert made(read(pictures)) == 5
    with torch.no_grad():
        list(model.text_encoders[0].parameters())[-1].mul_(1.01)
    assert made(read(pictures)) == 6


def test_damaged_entries_are_made_again(model: backbone.DiffusersModel, pictures: Path, tmp_path: Path) -> None:
    one = encoded(model, read(pictures), Cache(tmp_path / "cache"))
    files = sorted((tmp_path / "cache").glob("*/*.safetensors"))
    whole = [path.read_bytes() for path in files]
    files[0].write_bytes(whole[0][:-7])
    files[1].write_bytes(whole[1][:40] + bytes([whole[1][40] ^ 1]) + whole[1][41:])
    files[2].write_bytes(b"")
    files[3].write_bytes(whole[3][:-3] + bytes([whole[3][-3] ^ 64]) + whole[3][-2:])
    files[4].unlink()
    files[4].mkdir()
    again = Cache(tmp_path / "cache")
    two = encoded(model, read(pictures), again)
    assert (again.made, again.found) == (5, 6) and same(one, two)
    assert [path.read_bytes() for path in files[:4]] == whole[:4]


def test_an_entry_under_another_key_is_none(model: backbone.DiffusersModel, pictures: Path, tmp_path: Path) -> None:
    """Swapped by hand or by a broken copy."""
    one = encoded(model, read(pictures), Cache(tmp_path / "cache"))
    files = sorted((tmp_path / "cache").glob("*/*.safetensors"))
    for a, b in zip(files[::2], files[1::2]):
        whole = a.read_bytes(), b.read_bytes()
        a.write_bytes(whole[1])
        b.write_bytes(whole[0])
    again = Cache(tmp_path / "cache")
    assert same(one, encoded(model, read(pictures), again)) and again.made == 10


def test_a_full_disk_costs_nothing_but_the_cache(model: backbone.DiffusersModel, pictures: Path, tmp_path: Path, monkeypatch) -> None:
    def full(path: Path, data: bytes, synced: bool = True) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lora_loom.trainer.data.cache.write_whole", full)
    one = encoded(model, read(pictures), Cache(tmp_path / "cache", 0))
    assert not one.on_disk and same(one, encoded(model, read(pictures), Cache(None)))


def test_variants_are_drawn_in_turn(model: backbone.DiffusersModel, pictures: Path) -> None:
    """Each picture once an epoch, each time one of its variants; captions in one of their wordings."""
    for path in pictures.glob("*.png"):  # larger than they are trained at, so that there is something to crop
        Image.open(path).resize((128, 128)).save(path)
    dataset = read(pictures, augment=Augmentation(crop=0.5, variants=3))
    found = encoded(model, dataset, Cache(None), data=DataConfig(tag_dropout=0.5, keep_tokens=1, caption_variants=20))
    assert len(found) == 5 and all(len(row.latents) == len(row.sizes) == 3 for row in found.rows)
    source, seen, said = batches(found, 1, 1, 3, 0.0), {}, set()
    for _ in range(40):
        epoch = [next(source) for _ in range(5)]
        assert sorted(b.captions[0].split(",")[0] for b in epoch) == sorted(f"a {c} circle" for c in COLOURS)
        for batch in epoch:
            seen.setdefault(batch.captions[0].split(",")[0], set()).add(batch.latents.sum().item())
            said.add(batch.captions[0])
    assert {colour: len(values) for colour, values in seen.items()} == {f"a {c} circle": 3 for c in COLOURS}
    assert len(said) == 5 * 4  # with and without each of two tags


def test_several_resolutions(model: backbone.DiffusersModel, pictures: Path) -> None:
    """Each picture at each of them that it is large enough for; a batch never mixes them."""
    for path in pictures.glob("*.png"):
        Image.open(path).resize((128, 128)).save(path)
    Image.new("RGB", (96, 96), "black").save(pictures / "small.png")
    dataset = read_dataset(pictures, resolution=128, min_size=32, more_resolutions=(96, 64))
    found = encoded(model, dataset, Cache(None))
    assert len(found) == 5 * 3 + 2 and {row.shape[-1] for row in found.rows} == {16, 12, 8}
    shapes = [tuple(b.latents.shape[1:]) for b, _ in zip(batches(found, 1, 4, 0, 0.0), range(epoch_length([1] * 17, [r.shape for r in found.rows], 4)))]
    assert len(shapes) == 2 + 2 + 2 and len(set(shapes)) == 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), min_size=1, max_size=20), st.integers(1, 5), st.integers(0, 9))
def test_an_epoch_shows_each_as_often_as_it_counts(rows: list[tuple[str, int]], batch_size: int, seed: int) -> None:
    shapes, repeats = [(shape,) for shape, _ in rows], [count for _, count in rows]
    found = order(shapes, repeats, batch_size, seed, 1)
    assert sorted(i for batch in found for i in batch) == sorted(i for i, count in enumerate(repeats) for _ in range(count))
    assert all(len({shapes[i] for i in batch}) == 1 and 1 <= len(batch) <= batch_size for batch in found)
    assert len(found) == epoch_length(repeats, shapes, batch_size) and found == order(shapes, repeats, batch_size, seed, 1)


# ---------------------------------------------------------------- the file

tensors = st.dictionaries(st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=5), st.tuples(
    st.lists(st.integers(0, 5), max_size=3), st.sampled_from(["fp32", "half", "bf16", "int"])), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(tensors, st.integers(0, 10**9))
def test_entries_come_back_as_they_were_or_not_at_all(tmp_path_factory: pytest.TempPathFactory, shapes: dict, seed: int) -> None:
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    make = {"fp32": lambda t: t, "half": lambda t: t.half().float(), "bf16": lambda t: t.bfloat16().float(), "int": lambda t: (t * 99).long()}
    given_ = {name: make[kind](torch.randn(shape, generator=generator)) for name, (shape, kind) in shapes.items()}
    home = tmp_path_factory.mktemp("cache")
    Cache(home).put(key(a=1), given_)
    for kept in (0, 2**20):
        back = Cache(home, kept).get(key(a=1)).load()
        assert back.keys() == given_.keys() and all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in given_.items())
    [path] = home.glob("*/*.safetensors")
    whole = path.read_bytes()
    for _ in range(10):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged[:chance.choice([len(whole), chance.randrange(len(whole))])])
        found = Cache(home).get(key(a=1))
        assert found is None or all(torch.equal(found.load()[k], v) for k, v in given_.items())
    assert Cache(home).get(key(a=2)) is None and key(a=1) != key(a=2) != key(b=2)


def test_a_picture_that_changes_between_reading_and_encoding_is_named(model: backbone.DiffusersModel, pictures: Path, tmp_path: Path) -> None:
    dataset = read(pictures)
    Image.new("RGB", (64, 64), "black").save(dataset.pictures[1].path)
    with pytest.raises(LoomError, match=f"{dataset.pictures[1].name} has changed since"):
        encoded(model, dataset, Cache(tmp_path / "cache"))


def test_an_entry_that_goes_away_is_named(tmp_path: Path) -> None:
    stored = Cache(tmp_path, 0).put(key(n=1), {"x": torch.zeros(2)})
    next(tmp_path.glob("*/*")).unlink()
    with pytest.raises(LoomError, match="removed while the run needs it"):
        stored.load()


def test_what_nobody_asks_for_goes(tmp_path: Path) -> None:
    import os
    import time

    cache = Cache(tmp_path)
    for number in range(3):
        cache.put(key(n=number), {"x": torch.zeros(2)})
    paths = {number: cache._path(key(n=number)) for number in range(3)}
    os.utime(paths[0], (1, time.time() - 61 * 86_400))
    os.utime(paths[1], (1, time.time() - 61 * 86_400))
    (paths[2].parent / ".x.partial").write_bytes(b"half")
    os.utime(paths[2].parent / ".x.partial", (1, time.time() - 2 * 86_400))
    assert cache.get(key(n=1)) is not None  # asked for again
    cache.tidy()
    assert sorted(p for p in tmp_path.glob("*/*")) == sorted([paths[1], paths[2]])


def test_an_encoder_is_known_by_its_weights() -> None:
    layer = torch.nn.Linear(300, 200)
    before = digest(layer.state_dict().items(), "a")
    assert digest(layer.state_dict().items(), "a") == before != digest(layer.state_dict().items(), "b")
    assert digest(layer.half().state_dict().items(), "a") != before
    layer.float()
    parts = lambda: layer.state_dict(keep_vars=True).items()
    for name, place in (("weight", (123, 77)), ("bias", (150,))):  # a single value
        old = digest(parts())
        assert digest(parts()) == old
        with torch.no_grad():
            getattr(layer, name)[place] += 0.1
        assert digest(parts()) != old
    patch = lambda alpha: {"key": [(1.0, ("lora", (torch.ones(2), alpha)), 1.0, None, None)]}
    assert digest(parts_in(patch(1.0))) == digest(parts_in(patch(1.0))) != digest(parts_in(patch(8.0)))
    assert json.dumps(before) and len(before) == 64
