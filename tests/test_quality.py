"""What is measured of a picture equals the references, survives what copies go through, and is remembered safely."""
from __future__ import annotations

import dataclasses
import io
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_loom.trainer.data import measured, quality
from lora_loom.trainer.data.duplicates import HAMMING, find_copies
from lora_loom.trainer.data.folder import read_dataset
from lora_loom.trainer.data.measured import measure_all
from lora_loom.trainer.data.pictures import open_picture
from lora_loom.trainer.data.quality import Measures, measure, perceptual_hash
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import fft
from skimage import data
from skimage.measure import blur_effect

NAMES = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "hubble_deep_field", "page", "text", "immunohistochemistry", "retina", "moon",
         "grass", "brick", "gravel")
PHOTOS = {name: Image.fromarray(getattr(data, name)()).convert("RGB") for name in NAMES}
for photo in PHOTOS.values():
    photo.thumbnail((640, 640))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def photos() -> dict[str, Measures]:
    return {name: measure(encoded(image), 512) for name, image in PHOTOS.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "图 set"
    home.mkdir()
    for name in ("astronaut", "chelsea", "coffee", "camera"):
        PHOTOS[name].save(home / f"{name}.png")
    return home


def luma(name: str) -> np.ndarray:
    return np.asarray(PHOTOS[name].convert("L"), dtype=np.float32)


# ---------------------------------------------------------------- references

@pytest.mark.parametrize("name", NAMES)
def test_blur_equals_scikit_image_on_a_single_tile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_TILES", 1)
    assert quality.blur(luma(name)) == pytest.approx(blur_effect(luma(name).astype(np.float64), h_size=11), abs=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_hash_is_that_of_scipy_s_cosines(name: str) -> None:
    gray = PHOTOS[name].convert("L")
    small = np.asarray(gray.resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    for image, found in zip((small, small[:, ::-1]), perceptual_hash(gray)):
        low = fft.dct(fft.dct(image, axis=0), axis=1)[:8, :8]
        assert found == int("".join(str(int(bit)) for bit in (low > np.median(low)).ravel()), 2)


def test_exposure_is_that_of_the_pixels(photos: dict[str, Measures]) -> None:
    pixels = np.asarray(PHOTOS["astronaut"])  # 512x512: nothing is scaled
    found = photos["astronaut"]
    assert found.dark == np.percentile(pixels, 1, method="inverted_cdf") and found.bright == np.percentile(pixels, 99, method="inverted_cdf")
    assert found.contrast == max(np.percentile(c, 99, method="inverted_cdf") - np.percentile(c, 1, method="inverted_cdf") for c in np.moveaxis(pixels, 2, 0))
    gray = np.asarray(PHOTOS["astronaut"].convert("L"))
    assert found.black == pytest.approx((gray <= 2).mean(), abs=1e-4) and found.white == pytest.approx((gray >= 253).mean(), abs=1e-4)


# ---------------------------------------------------------------- blur

def test_sharp_pictures_are_sharp_and_blurred_ones_are_not(photos: dict[str, Measures]) -> None:
    from lora_loom.trainer.data.picture_checks import BLURRED

    assert max(found.blur for found in photos.values()) < BLURRED
    assert measure(encoded(Image.fromarray(data.clock())), 512).blur > BLURRED  # a clock that moved while it was photographed
    for name, image in PHOTOS.items():
        assert quality.blur(np.asarray(quality.reduced(encoded(image), 512).filter(ImageFilter.GaussianBlur(3)).convert("L"), np.float32)) > BLURRED, name


def test_a_soft_background_is_no_blur() -> None:
    soft, sharp = PHOTOS["coffee"].filter(ImageFilter.GaussianBlur(8)), PHOTOS["coffee"]
    soft.paste(sharp.crop((200, 100, 400, 300)), (200, 100))
    assert measure(encoded(soft), 512).blur < 0.45 < measure(encoded(sharp.filter(ImageFilter.GaussianBlur(8))), 512).blur


def test_what_is_large_enough_is_judged_as_it_is_trained() -> None:
    """Soft at 2048 pixels is sharp at 512."""
    large = PHOTOS["astronaut"].resize((2048, 2048), Image.Resampling.BICUBIC)
    assert measure(encoded(large, "JPEG", quality=92), 512).blur < 0.45 < 0.55 < measure(encoded(large, "JPEG", quality=92), 2048).blur


@pytest.mark.parametrize("image", [Image.new("RGB", (64, 64), "red"), Image.new("L", (1, 1)), Image.new("RGB", (3, 900), "white"), Image.new("I;16", (40, 40), 999)])
def test_where_there_is_nothing_to_see_there_is_no_blur(image: Image.Image) -> None:
    found = measure(encoded(image), 512)
    assert found.blur is None and found.contrast == 0


# ---------------------------------------------------------------- reading

def test_reduced_is_what_the_trainer_reads(tmp_path: Path) -> None:
    turned = Image.fromarray(data.chelsea()).convert("RGB")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    clear = Image.fromarray(np.dstack([data.astronaut(), np.full((512, 512), 128, np.uint8)]))
    clear.save(tmp_path / "clear.png")
    for name in ("turned.jpg", "clear.png"):
        whole = open_picture(tmp_path / name)
        found = quality.reduced((tmp_path / name).read_bytes(), 200)
        assert abs(found.width / found.height - whole.width / whole.height) < 0.02 and found.mode == "RGB"
        assert abs(found.width * found.height - 200 * 200) < 600
        difference = np.abs(np.asarray(found, int) - np.asarray(whole.resize(found.size, Image.Resampling.LANCZOS), int))
        assert difference.mean() < 2.5
    assert quality.reduced(encoded(turned), 4000).size == turned.size  # never enlarged


# ---------------------------------------------------------------- copies

CHANGES = {
    "half": lambda i: i.resize((i.width // 2, i.height // 2), Image.Resampling.BICUBIC),
    "jpeg": lambda i: Image.open(io.BytesIO(encoded(i, "JPEG", quality=40))),
    "webp": lambda i: Image.open(io.BytesIO(encoded(i, "WEBP", quality=60))),
    "brighter": lambda i: ImageEnhance.Brightness(i).enhance(1.2),
    "softer": lambda i: i.filter(ImageFilter.GaussianBlur(2)),
    "stretched": lambda i: i.resize((300, 300)),
    "cropped": lambda i: i.crop((i.width // 50, i.height // 50, i.width * 49 // 50, i.height * 49 // 50)),
}


FINE = {"hubble_deep_field", "grass", "brick", "gravel"}  # of grain alone, which a crop puts elsewhere


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mirror", [False, True])
def test_copies_are_found_and_nothing_else(photos: dict[str, Measures], change: str, mirror: bool) -> None:
    rows = list(photos.values())
    made = [measure(encoded(CHANGES[change](ImageOps.mirror(image) if mirror else image).convert("RGB")), 512) for image in PHOTOS.values()]
    found = find_copies(rows + made)
    assert all(copy.index - len(rows) == copy.of for copy in found)
    missed = set(photos) - {NAMES[copy.of] for copy in found}
    assert missed <= (FINE if change == "cropped" else set())
    mirrored = [copy.mirrored for copy in found]
    assert all(mirrored) if mirror else not any(mirrored)


def test_shapes_alike_in_other_colours_are_no_copies() -> None:
    """The twenty stars of the example: the same few lines in gray, other colours."""
    stars = sorted((Path(quality.__file__).parents[2] / "assets" / "lora_loom_stars").glob("*.png"))
    rows = [measure(path.read_bytes(), 512) for path in stars]
    assert len(rows) == 20 and find_copies(rows) == []
    near = [(a.look ^ b.look).bit_count() for i, a in enumerate(rows) for b in rows[:i]]
    assert min(near) <= HAMMING  # by their hashes alone they would be


def test_plain_pictures_are_told_apart_by_their_colour() -> None:
    colours = ["black", "white", "red", "blue", "gray"]
    rows = [measure(encoded(Image.new("RGB", (80, 60), colour)), 512) for colour in [*colours, "white"]]
    assert [(copy.index, copy.of) for copy in find_copies(rows)] == [(5, 1)]


def test_the_best_is_kept_and_no_chain_is_followed() -> None:
    """a is like b and b like c, but a is not like c: c stays."""
    base = measure(encoded(PHOTOS["coffee"]), 512)
    turned = lambda bits: dataclasses.replace(base, look=base.look ^ ((1 << bits) - 1), mirrored=(1 << 64) - 1 - base.look)
    rows = [turned(0), turned(HAMMING), turned(2 * HAMMING)]
    assert [(copy.index, copy.of) for copy in find_copies(rows)] == [(1, 0)]
    assert [(copy.index, copy.of) for copy in find_copies(rows, order=[1, 0, 2])] == [(0, 1), (2, 1)]


def random_measures(count: int, seed: int) -> list[Measures]:
    draw = np.random.default_rng(seed)
    whole = lambda: int(draw.integers(0, 2**64, dtype=np.uint64))
    return [Measures(0.3, 0, 255, 255, 0.0, 0.0, whole(), whole(), draw.bytes(192).hex()) for _ in range(count)]


def test_ten_thousand_are_grouped_quickly() -> None:
    rows = random_measures(9_900, 0)
    rows += [dataclasses.replace(rows[7 * i], look=rows[7 * i].look ^ 0b1011) for i in range(100)]
    before = time.process_time()
    found = find_copies(rows)
    assert time.process_time() - before < 20  # 0.7 s on a quiet machine
    assert {(copy.index, copy.of) for copy in found} == {(9_900 + i, 7 * i) for i in range(100)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**64 - 1)), min_size=0, max_size=12), st.randoms())
def test_whoever_is_left_out_looks_like_one_who_stays(rows, random) -> None:
    """And those who stay do not look like each other; whatever the order."""
    looks = random_measures(4, 1)
    measures = [dataclasses.replace(looks[kind], look=looks[kind].look ^ (noise & noise >> 7 & noise >> 13 & noise >> 29)) for kind, noise in rows]
    order = list(range(len(measures)))
    random.shuffle(order)
    found = find_copies(measures, order)
    left = {copy.index for copy in found}
    assert len(left) == len(found) and not left & {copy.of for copy in found}
    near = lambda a, b: (a.look ^ b.look).bit_count() <= HAMMING and a.thumbnail == b.thumbnail
    assert all(near(measures[copy.index], measures[copy.of]) for copy in found)
    kept = [i for i in order if i not in left]
    assert not any(near(measures[a], measures[b]) for n, a in enumerate(kept) for b in kept[:n])


# ---------------------------------------------------------------- the pass, and what it remembers

def test_one_pass_measures_each_once_and_remembers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, seen, calls = read_dataset(folder, min_size=64), [], []
    real = measured.measure
    monkeypatch.setattr(measured, "measure", lambda data, side: calls.append(side) or real(data, side))
    first = measure_all(dataset, 512, tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    assert calls == [512] * 4 and seen == [(i, 4) for i in (1, 2, 3, 4)] and list(first) == [p.name for p in dataset.pictures]
    assert measure_all(dataset, 512, tmp_path / "cache") == first and len(calls) == 4
    measure_all(dataset, 1024, tmp_path / "cache")  # another side is another measure
    assert len(calls) == 8
    Image.fromarray(data.rocket()).save(folder / "coffee.png")  # one of them changes: one is measured
    again = measure_all(read_dataset(folder, min_size=64), 512, tmp_path / "cache")
    assert len(calls) == 9 and again["coffee.png"] != first["coffee.png"] and again["camera.png"] == first["camera.png"]
    monkeypatch.setattr(measured, "VERSION", quality.VERSION + 1)
    measure_all(dataset, 512, tmp_path / "cache")
    assert len(calls) == 13


def test_pictures_that_have_not_been_read_whole_get_their_digest(folder: Path) -> None:
    dataset = read_dataset(folder, min_size=64)
    bare = dataclasses.replace(dataset, pictures=tuple(dataclasses.replace(p, digest="") for p in dataset.pictures))
    assert measure_all(bare, 512) == measure_all(dataset, 512)


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff\xfe\x00", b'{"version": 1}', b'{"version": 1, "pictures": [1]}', b'{"version": 1, "pictures": {"x": {}}}'])
def test_a_damaged_memory_is_made_anew(folder: Path, tmp_path: Path, damage: bytes) -> None:
    dataset = read_dataset(folder, min_size=64)
    found = measure_all(dataset, 512, tmp_path)
    [file] = tmp_path.glob("*.json")
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert measure_all(dataset, 512, tmp_path) == found and json.loads(file.read_bytes()) == json.loads(whole)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_no_row_that_makes_no_sense_is_believed(draw) -> None:
    tree = random_measures(1, 2)[0].to_dict()
    name = draw.draw(st.sampled_from(sorted(tree)))
    tree[name] = draw.draw(st.one_of(st.none(), st.text(max_size=5), st.integers(-5, -1), st.integers(2**64, 2**70), st.lists(st.integers(), max_size=2)))
    if name == "blur" and tree[name] is None:
        assert Measures.from_dict(tree).blur is None
    else:
        with pytest.raises((TypeError, ValueError)):
            Measures.from_dict(tree)


def test_a_file_that_broke_meanwhile_is_named_and_the_rest_goes_on(folder: Path) -> None:
    dataset = read_dataset(folder, min_size=64)
    dataset = dataclasses.replace(dataset, pictures=tuple(dataclasses.replace(p, digest="") for p in dataset.pictures))
    (folder / "camera.png").write_bytes((folder / "camera.png").read_bytes()[:2000])
    (folder / "coffee.png").unlink()
    found = measure_all(dataset, 512)
    assert "broken" in found["camera.png"].error and found["coffee.png"].error and found["chelsea.png"].measures is not None


def test_an_interrupt_keeps_what_was_measured(folder: Path, tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    calls = []

    def poll() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stop

    with pytest.raises(Stop):
        measure_all(read_dataset(folder, min_size=64), 512, tmp_path, poll=poll)
    [file] = tmp_path.glob("*.json")
    assert len(json.loads(file.read_bytes())["pictures"]) == 2
    assert not any(thread.name.startswith("lora_loom.measure") for thread in threading.enumerate())


def test_a_folder_that_cannot_be_written_costs_time_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert len(measure_all(read_dataset(folder, min_size=64), 512, tmp_path / "file")) == 4
