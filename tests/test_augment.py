"""Variants of pictures and of captions: seeded, within their strengths, nothing empty, nothing enlarged."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.trainer.config import DataConfig
from lora_loom.trainer.data.augment import LIMITS, Augmentation, View
from lora_loom.trainer.data.buckets import Window, bucket_for, fit, sizes_for
from lora_loom.trainer.data.wordings import wordings
from lora_loom.trainer.errors import LoomError
from PIL import Image
from skimage import data

ASTRONAUT = Image.fromarray(data.astronaut())
ALL = Augmentation(flip=0.5, crop=0.3, rotation=15, brightness=0.3, contrast=0.3, hue=40, variants=6, seed=4)


def test_variants_are_seeded_and_the_first_is_the_picture_as_it_is() -> None:
    views = [ALL.view("a" * 64, n) for n in range(6)]
    assert views[0] == View() and len(set(views)) == 6 and views == [ALL.view("a" * 64, n) for n in range(6)]
    assert ALL.view("b" * 64, 1) != views[1] != dataclasses.replace(ALL, seed=5).view("a" * 64, 1)
    many = [ALL.view("c" * 64, n) for n in range(1, 2000)]
    assert 0.45 < np.mean([v.mirrored for v in many]) < 0.55
    for values, low, high in (([v.angle for v in many], -15, 15), ([v.window.zoom for v in many], 0.7, 1), ([v.brightness for v in many], 0.7, 1.3),
                              ([v.contrast for v in many], 0.7, 1.3), ([v.hue for v in many], -40, 40), ([v.window.x for v in many], 0, 1)):
        assert low <= min(values) < low + 0.02 * (high - low) and high - 0.02 * (high - low) < max(values) <= high


def test_one_strength_changes_one_thing() -> None:
    for name, high in LIMITS.items():
        view = dataclasses.replace(Augmentation(**{name: high}), variants=99).view("a" * 64, 1)
        changed = {f.name for f in dataclasses.fields(View) if getattr(view, f.name) != getattr(View(), f.name)}
        assert changed <= {{"flip": "mirrored", "crop": "window", "rotation": "angle"}.get(name, name)} and (changed or name == "flip")


@pytest.mark.parametrize("angle", [-15.0, -3.0, 0.5, 10.0, 15.0])
@pytest.mark.parametrize("size", [(64, 64), (96, 48), (48, 96)])
def test_turning_leaves_no_empty_corner(angle: float, size: tuple[int, int]) -> None:
    white = Image.new("RGB", (300, 200), "white")
    turned, numbers = View(angle=angle).of(white, size)
    assert turned.size == size and np.asarray(turned).min() == 255
    assert numbers[:2] == (200, 300) and numbers[4:] == (size[1], size[0])


def test_turning_is_to_the_left_for_positive_angles_and_a_mask_goes_with_it() -> None:
    picture = Image.new("RGB", (200, 200), "black")
    picture.paste((255, 255, 255), (120, 90, 180, 110))  # to the right of the middle
    view = View(mirrored=True, angle=15.0, window=Window(0.8, 0.3, 0.6), brightness=0.5, hue=90)
    shown, _ = View(angle=15.0).of(picture, (64, 64))
    rows, columns = np.nonzero(np.asarray(shown)[..., 0] > 128)
    assert rows[columns.argmax()] < 30  # anticlockwise: its right end has come up
    mask, _ = view.of(picture, (64, 64), colours=False)
    image, _ = view.of(picture, (64, 64))
    inside = np.asarray(mask)[..., 0] > 250
    assert inside.any() and np.asarray(image).max(-1)[inside].min() > 100 and np.asarray(image).max(-1)[np.asarray(mask)[..., 0] < 5].max() < 30


def test_colours() -> None:
    red = Image.new("RGB", (32, 32), (200, 40, 40))
    of = lambda **values: np.asarray(View(**values).of(red, (32, 32))[0])[5, 5].tolist()
    assert of(brightness=0.5) == [100, 20, 20] and of() == [200, 40, 40]
    green = of(hue=120)
    assert green[1] > 190 and max(green[0], green[2]) < 50
    spread = np.asarray(View(contrast=0.5).of(ASTRONAUT, (64, 64))[0]).std() / np.asarray(View().of(ASTRONAUT, (64, 64))[0]).std()
    assert spread == pytest.approx(0.5, abs=0.02)


def test_a_window_takes_another_part_and_enlarges_nothing() -> None:
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (128, 1))).convert("RGB")  # twice as wide as high
    left, right = (np.asarray(fit(ramp, (64, 64), Window(1.0, x, 0.5))[0])[..., 0].mean() for x in (0.0, 1.0))
    assert left == pytest.approx(63.5, abs=2) and right == pytest.approx(191.5, abs=2)
    small, numbers = fit(ramp, (64, 64), Window(0.5, 0.5, 0.5))
    assert np.ptp(np.asarray(small)[..., 0]) == pytest.approx(64, abs=3) and numbers == (128, 256, 32, 96, 64, 64)
    tight, numbers = fit(ramp, (128, 128), Window(0.5, 0.5, 0.5))  # half of it would be 64 pixels enlarged to 128
    assert numbers == (128, 256, 0, 64, 128, 128)


@pytest.mark.parametrize("values,words", [
    ({"rotation": 16}, "rotation 16 is not between 0 and 15"), ({"flip": -0.1}, "flip -0.1"), ({"hue": True}, "hue True"),
    ({"variants": 0}, "variants 0"), ({"variants": 65}, "variants 65"), ({"crop": float("nan")}, "crop nan"),
])
def test_bad_strengths(values: dict, words: str) -> None:
    with pytest.raises(LoomError, match=words):
        Augmentation(**values).check()


# ---------------------------------------------------------------- sizes

sides = st.integers(1, 5000)
resolutions = st.lists(st.integers(64, 1536), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(sides, sides, resolutions, st.sampled_from([16, 32, 64]), st.booleans(), st.booleans())
def test_sizes_hold_their_rules(width: int, height: int, wanted: list[int], multiple: int, buckets: bool, upscale: bool) -> None:
    sizes = sizes_for(width, height, tuple(wanted), multiple, buckets, upscale)
    assert 1 <= len(sizes) <= len(set(wanted)) and len(set(sizes)) == len(sizes)  # no picture is dropped
    for size in sizes:
        side = max(max(multiple, int(r / multiple + 0.5) * multiple) for r in wanted)
        assert size[0] % multiple == size[1] % multiple == 0 and size[0] * size[1] <= side * side
        if not upscale:
            assert size == (multiple, multiple) or size[0] <= width and size[1] <= height
        assert buckets or size[0] == size[1]
    if upscale:
        assert sizes[0] == bucket_for(width * 5000, height * 5000, wanted[0], multiple, buckets)  # as if it were large enough


# ---------------------------------------------------------------- captions

tags = st.lists(st.text(st.characters(blacklist_characters=",", blacklist_categories=("Cs", "Zs", "Cc")), min_size=1, max_size=6), max_size=8)


@settings(max_examples=300, deadline=None)
@given(tags, st.booleans(), st.integers(0, 4), st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 12), st.integers(0, 5))
def test_wordings_keep_what_they_must(parts: list[str], shuffle: bool, keep: int, dropout: float, variants: int, seed: int) -> None:
    parts = [*dict.fromkeys(parts)]
    caption = ", ".join(parts[:1] + ["zxc mug"] + parts[1:])
    tags = caption.split(", ")
    config = DataConfig(shuffle_tags=shuffle, keep_tokens=keep, tag_dropout=dropout, caption_variants=variants)
    found = wordings(caption, "zxc", config, seed)
    assert found == wordings(caption, "zxc", config, seed)
    if len(tags) < 2 or not (shuffle or dropout):
        assert found == [caption]
        return
    assert len(found) == variants
    fixed = [tag for i, tag in enumerate(tags) if i < keep or "zxc" in tag]
    for wording in found:
        said = wording.split(", ")
        assert said[:len(fixed)] == fixed and sorted(said) == sorted(set(said) & set(tags)) and len(set(said)) == len(said)
        if dropout == 0:
            assert sorted(said) == sorted(tags)
        if dropout == 1:
            assert said == fixed
        if not shuffle:
            assert said[len(fixed):] == [t for t in tags if t in said and t not in fixed]


def test_shuffling_really_shuffles() -> None:
    config = DataConfig(shuffle_tags=True, keep_tokens=1, caption_variants=20)
    found = set(wordings("zxc, a, b, c, d, e", "zxc", config, 0))
    assert len(found) > 15 and all(w.startswith("zxc, ") for w in found) and len({w.split(", ")[1] for w in found}) == 5
    assert set(wordings("zxc, a, b, c, d, e", "zxc", config, 1)) != found
    assert {frozenset(w.split(", ")) for w in wordings("\u7532\uff0c\u4e59\u3001\u4e19", "", config, 0)} == {frozenset("\u7532\u4e59\u4e19")}


def test_tags_are_dropped_as_often_as_asked() -> None:
    found = wordings("zxc, a, b, c", "zxc", DataConfig(tag_dropout=0.1, caption_variants=100), 0)
    assert 0.05 < 1 - sum(len(w.split(", ")) - 1 for w in found) / 300 < 0.15 and len(set(found)) < 9
