"""A folder becomes a dataset: captions from every source, every kind of bad file named, nothing dropped in silence."""
from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from lora_loom.trainer.data import folder as folders
from lora_loom.trainer.data.folder import fingerprint, open_picture, read_dataset
from lora_loom.trainer.errors import LoomError
from PIL import Image, ImageFile
from skimage import data

SMALL = {"min_size": 64}


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    """astronaut 512x512, chelsea 451x300, coffee 600x400; the last in a sub-folder."""
    home = tmp_path / "数据 set"
    (home / "sub").mkdir(parents=True)
    Image.fromarray(data.astronaut()).save(home / "astronaut.png")
    Image.fromarray(data.chelsea()).save(home / "chelsea.jpg")
    Image.fromarray(data.coffee()).save(home / "sub" / "coffee.webp")
    return home


def picture(path: Path, size: tuple[int, int] = (96, 80), **save: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 20, 30)).save(path, **save)
    return path


def captions(dataset: folders.Dataset) -> dict[str, str]:
    return {p.name: p.caption for p in dataset.pictures}


def test_real_pictures(cats: Path) -> None:
    polls = []
    dataset = read_dataset(cats, min_size=300, poll=lambda: polls.append(1))
    found = [(p.name, p.width, p.height) for p in dataset.pictures]
    assert found == [("astronaut.png", 512, 512), ("chelsea.jpg", 451, 300), ("sub/coffee.webp", 600, 400)]
    assert len(polls) == 3 and dataset.caption_source == "none" and dataset.left_out == ()
    assert dataset.pictures[0].digest == hashlib.sha256((cats / "astronaut.png").read_bytes()).hexdigest()
    assert len(dataset.warnings) == 1 and "3 of 3" in dataset.warnings[0] and "chelsea.jpg" in dataset.warnings[0]
    assert np.array_equal(np.asarray(open_picture(dataset.pictures[0].path)), data.astronaut())


def test_order_is_natural_and_hidden_files_are_ignored(tmp_path: Path) -> None:
    for name in ("10.png", "9.png", "B.png", "a.png", ".hidden.png", "__MACOSX/x.png", ".git/y.png", "猫é.png"):
        picture(tmp_path / name)
    assert [p.name for p in read_dataset(tmp_path, **SMALL).pictures] == ["9.png", "10.png", "a.png", "B.png", "猫é.png"]


@pytest.mark.parametrize("suffix", folders.SUFFIXES)
def test_formats(tmp_path: Path, suffix: str) -> None:
    Image.init()
    if suffix == ".avif" and "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    picture(tmp_path / f"x{suffix.upper()}")
    assert read_dataset(tmp_path, **SMALL).pictures[0].width == 96


def test_min_size_leaves_out_and_reports(cats: Path) -> None:
    dataset = read_dataset(cats, min_size=400)
    assert [p.name for p in dataset.pictures] == ["astronaut.png", "sub/coffee.webp"]
    assert dataset.left_out == (("chelsea.jpg", "451x300 is below min_size 400"),)
    assert "chelsea.jpg: 451x300 is below min_size 400" in dataset.report() and "2 pictures x 1 repeats = 2 per epoch" in dataset.report()


def test_broken_pictures_are_skipped_and_named(cats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (cats / "astronaut.png").read_bytes()
    (cats / "cut.png").write_bytes(whole[: len(whole) // 2])
    jpeg = (cats / "chelsea.jpg").read_bytes()
    (cats / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (cats / "empty.png").write_bytes(b"")
    (cats / "text.jpg").write_text("not a picture")
    (cats / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 600 600\n")
    Image.new("1", (10_000, 9_000)).save(cats / "bomb.png")
    # What other extensions do to Pillow must not let half pictures in.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    dataset = read_dataset(cats, **SMALL)
    assert len(dataset.pictures) == 3 and ImageFile.LOAD_TRUNCATED_IMAGES is True
    reasons = dict(dataset.left_out)
    assert set(reasons) == {"cut.png", "cut.jpg", "empty.png", "text.jpg", "script.png", "bomb.png"}
    assert "too large (10000x9000" in reasons["bomb.png"] and "no picture" in reasons["script.png"] and "broken" in reasons["cut.jpg"]
    assert all(name in dataset.report() for name in reasons)


def test_report_names_twenty_and_counts_the_rest(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    for number in range(25):
        (tmp_path / f"bad{number}.png").write_bytes(b"x")
    report = read_dataset(tmp_path, **SMALL).report()
    assert "left out: 25" in report and "bad19.png" in report and "bad20.png" not in report and "and 5 more" in report


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="links need rights on Windows")
def test_links_never_lead_out_and_circles_end(tmp_path: Path) -> None:
    home = tmp_path / "set"
    picture(home / "in.png")
    picture(tmp_path / "outside" / "secret.png")
    (tmp_path / "outside" / "in.txt").write_text("secret")
    (home / "link.png").symlink_to(tmp_path / "outside" / "secret.png")
    (home / "dir").symlink_to(tmp_path / "outside", target_is_directory=True)
    (home / "in.txt").symlink_to(tmp_path / "outside" / "in.txt")
    (home / "loop").symlink_to(home, target_is_directory=True)
    (home / "gone.png").symlink_to(home / "nowhere.png")
    dataset = read_dataset(home, **SMALL)
    assert captions(dataset) == {"in.png": ""}
    assert [name for name, reason in dataset.left_out if "outside" in reason] == ["dir", "in.txt", "link.png"]
    assert ("gone.png", "a link that leads nowhere") in dataset.left_out
    (tmp_path / "alias").symlink_to(home, target_is_directory=True)
    assert captions(read_dataset(tmp_path / "alias", **SMALL)) == {"in.png": ""}


def test_exif_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    pixels = np.zeros((80, 160, 3), np.uint8)
    pixels[:, :80] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    shown = read_dataset(tmp_path, **SMALL).pictures[0]
    assert (shown.width, shown.height) == (80, 160)
    upright = np.asarray(open_picture(shown.path))
    assert upright.shape == (160, 80, 3) and upright[0, 0, 0] == 255 and upright[-1, 0, 0] == 0


@pytest.mark.parametrize("compression", ["raw", "jpeg"])
def test_tiff_rotation(tmp_path: Path, compression: str) -> None:
    """Newer Pillows give a TIFF's size turned already, and its header must not be turned twice."""
    pixels = np.zeros((80, 160, 3), np.uint8)
    pixels[:, :80] = 255
    Image.fromarray(pixels).save(tmp_path / "x.tif", tiffinfo={274: 6}, compression=compression)
    shown = read_dataset(tmp_path, **SMALL).pictures[0]
    upright = np.asarray(open_picture(shown.path))
    assert (shown.width, shown.height) == (80, 160) and upright.shape == (160, 80, 3) and upright[0, 40, 0] > 200 and upright[-1, 40, 0] < 50


def test_transparency_falls_on_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    rgba.paste((0, 0, 255, 255), (0, 0, 32, 64))
    rgba.putpixel((63, 63), (0, 0, 0, 128))
    rgba.save(tmp_path / "rgba.png")
    rgba.convert("LA").save(tmp_path / "la.png")
    palette = Image.new("P", (64, 64), 0)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.paste(1, (0, 0, 32, 64))
    palette.save(tmp_path / "palette.png", transparency=0)
    palette.save(tmp_path / "gif.gif", transparency=0, save_all=True, append_images=[Image.new("P", (64, 64), 1)])
    for name, left in {"rgba.png": (0, 0, 255), "la.png": (29, 29, 29), "palette.png": (0, 0, 255), "gif.gif": (0, 0, 255)}.items():
        image = open_picture(tmp_path / name)
        assert image.mode == "RGB" and image.getpixel((0, 0)) == left and image.getpixel((40, 5)) == (255, 255, 255), name
    assert open_picture(tmp_path / "rgba.png").getpixel((63, 63)) == (127, 127, 127)


def test_sixteen_bits_and_cmyk(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray(ramp).save(tmp_path / "deep.tif")
    for name in ("deep.png", "deep.tif"):
        assert np.abs(np.asarray(open_picture(tmp_path / name))[..., 0] - ramp / 257.0).max() <= 0.5
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    red, green, blue = open_picture(tmp_path / "cmyk.jpg").getpixel((5, 5))
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("name,text", [
    ("metadata.csv", 'filename,prompt\nastronaut.png,"a woman, smiling"\nchelsea.jpg,a cat\nsub/coffee.webp,a cup\n'),
    ("Metadata.CSV", 'filename,prompt\nastronaut.png,"a woman, smiling"\nchelsea.jpg,a cat\nsub/coffee.webp,a cup\n'),
    ("metadata.csv", '\ufeffid,Text ,file_name\n1, "a woman, smiling",./astronaut.png,,\n\n2,a cat,CHELSEA.JPG\n3,a cup,sub\\coffee.webp\n'),
    ("metadata.jsonl", '{"file_name": "astronaut.png", "text": "a woman, smiling"}\n\n{"file_name": "chelsea.jpg", "prompt": "a cat"}\n'
                       '{"file_name": "sub/coffee.webp", "caption": " a cup ", "more": 1}\n'),
])
def test_metadata(cats: Path, name: str, text: str) -> None:
    (cats / name).write_text(text, encoding="utf-8")
    for source in ("auto", "metadata"):
        dataset = read_dataset(cats, caption_source=source, **SMALL)
        assert captions(dataset) == {"astronaut.png": "a woman, smiling", "chelsea.jpg": "a cat", "sub/coffee.webp": "a cup"}
        assert dataset.caption_source == name and dataset.warnings == ()
    assert set(captions(read_dataset(cats, caption_source="none", **SMALL)).values()) == {""}


def test_metadata_missing_pictures_and_sidecar_fallback(cats: Path) -> None:
    (cats / "metadata.csv").write_text("filename,prompt\nastronaut.png,a woman\ngone.png,nothing\n")
    (cats / "metadata.jsonl").write_text("broken, and not read where a csv is there")
    (cats / "chelsea.txt").write_text("a cat\n")
    (cats / "astronaut.txt").write_text("not read")
    dataset = read_dataset(cats, **SMALL)
    assert captions(dataset) == {"astronaut.png": "a woman", "chelsea.jpg": "a cat", "sub/coffee.webp": ""}
    assert dataset.caption_source == "mixed"
    assert any("gone.png" in w for w in dataset.warnings) and any("1 of 3" in w and "sub/coffee.webp" in w for w in dataset.warnings)
    assert captions(read_dataset(cats, caption_source="metadata", **SMALL))["chelsea.jpg"] == ""


def test_sidecars_and_encodings(cats: Path) -> None:
    (cats / "astronaut.TXT").write_bytes("\ufeff一位宇航员".encode())
    (cats / "chelsea.txt").write_bytes("一只橘猫".encode("gbk"))
    (cats / "chelsea.caption").write_text("not read: .txt comes first")
    (cats / "sub" / "coffee.caption").write_bytes("a cup".encode("utf-16"))
    dataset = read_dataset(cats, **SMALL)
    assert captions(dataset) == {"astronaut.png": "一位宇航员", "chelsea.jpg": "一只橘猫", "sub/coffee.webp": "a cup"}
    assert dataset.caption_source == "sidecar"
    assert len(dataset.warnings) == 1 and "chelsea.txt" in dataset.warnings[0] and "GBK" in dataset.warnings[0]


@pytest.mark.parametrize("text", ["一只猫", "1girl, 一只猫", "猫和一只狗"])
def test_gbk_that_happens_to_be_utf8(tmp_path: Path, text: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(text.encode("gbk"))
    dataset = read_dataset(tmp_path, **SMALL)
    assert captions(dataset) == {"a.png": text} and "GBK" in dataset.warnings[0]


@pytest.mark.parametrize("text", ["«été» à côté", "он на боку", "naïve café, 5 µm²", "ελλα", "nº 5, é", "un émeu, øre", "שלום", "一只猫", "Ａ中"])
def test_what_is_utf8_stays_so(tmp_path: Path, text: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    dataset = read_dataset(tmp_path, **SMALL)
    assert captions(dataset) == {"a.png": text} and not dataset.warnings


def test_folder_names(tmp_path: Path) -> None:
    picture(tmp_path / "10_black_cat" / "a.png")
    picture(tmp_path / "plain_dog" / "b.png")
    auto = read_dataset(tmp_path, **SMALL)
    assert captions(auto) == {"10_black_cat/a.png": "black cat", "plain_dog/b.png": ""} and auto.caption_source == "folder name"
    assert [p.repeats for p in auto.pictures] == [10, 1] and "2 pictures x 1 repeats x those of their folders = 11 per epoch" in auto.report()
    assert [p.repeats for p in read_dataset(tmp_path, caption_source="none", **SMALL).pictures] == [1, 1]
    assert captions(read_dataset(tmp_path, caption_source="folder name", **SMALL))["plain_dog/b.png"] == "plain dog"
    assert captions(read_dataset(tmp_path / "10_black_cat", **SMALL)) == {"a.png": "black cat"}


@pytest.mark.parametrize("name,text,line,remedy", [
    ("metadata.csv", "filename,prompt\na.png,one\nb.png,two, three\n", "line 3", "double quotes"),
    ("metadata.csv", 'filename,prompt\na.png,"two\nlines"\nb.png,two, three\n', "line 4", "double quotes"),
    ("metadata.csv", "filename,prompt\na.png\n", "line 2", "1 fields"),
    ("metadata.csv", 'filename,prompt\na.png,"never closed\n', "line 2", "close every double quote"),
    ("metadata.csv", "filename;prompt\na.png;one\n", "line 1", "separated by commas"),
    ("metadata.csv", "a.png,one\n", "line 1", "filename,prompt"),
    ("metadata.csv", "", "line 1", "filename,prompt"),
    ("metadata.csv", "filename,prompt\n,one\n", "line 2", "file name"),
    ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}\n{oops\n', "line 2", "no valid JSON"),
    ("metadata.jsonl", '["a.png", "x"]\n', "line 1", "not an object"),
    ("metadata.jsonl", '{"text": "x"}\n', "line 1", "file_name"),
    ("metadata.jsonl", '{"file_name": "a.png"}\n', "line 1", "text, prompt or caption"),
    ("metadata.jsonl", '{"file_name": "a.png", "text": 3}\n', "line 1", "not text"),
])
def test_malformed_metadata_names_the_line(tmp_path: Path, name: str, text: str, line: str, remedy: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(LoomError) as error:
        read_dataset(tmp_path, **SMALL)
    assert name in str(error.value) and line in str(error.value) and remedy in str(error.value)


@pytest.mark.parametrize("change,words", [
    ({"resolution": 63}, "resolution 63 is below 64"), ({"resolution": 4097}, "resolution 4097 is above 4096"),
    ({"resolution": 512.5}, "no whole number"), ({"repeats": 0}, "repeats 0 is below 1"), ({"repeats": 1001}, "repeats 1001 is above 1000"),
    ({"repeats": True}, "no whole number"), ({"min_size": -1}, "min_size -1 is below 0"), ({"caption_source": "txt"}, "'txt' is unknown"),
    ({"caption_source": "metadata"}, "neither metadata.csv nor metadata.jsonl"),
    ({"min_size": 600}, "the largest shorter side is 512; lower LoadDataset.min_size to 512"),
])
def test_bad_settings(cats: Path, change: dict, words: str) -> None:
    with pytest.raises(LoomError, match=words):
        read_dataset(cats, **{"min_size": 64, **change})


@pytest.mark.parametrize("change", [{"resolution": 99}, {"resolution": 5000}, {"repeats": 0}, {"more_resolutions": (768, 99999)}, {"more_resolutions": (8,)}])
def test_a_setting_out_of_its_range_has_the_nearest_as_its_remedy(cats: Path, change: dict) -> None:
    [name] = change
    try:
        read_dataset(cats, **{"min_size": 64, **change})
    except LoomError as error:
        assert error.fix == {name: {"resolution": 4096, "repeats": 1, "more_resolutions": "768, 4096" if len(str(change)) > 30 else "64"}[name]}
    else:
        assert change == {"resolution": 99}


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(LoomError, match="does not exist"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(LoomError, match="'' does not exist"):
        read_dataset("")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(LoomError, match="is a file"):
        read_dataset(tmp_path / "notes.txt")
    with pytest.raises(LoomError, match="holds no pictures, only 1 other files"):
        read_dataset(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    with pytest.raises(LoomError, match=r"none of the 1 pictures.*bad\.png"):
        read_dataset(tmp_path)


def test_poll_interrupts(cats: Path) -> None:
    class Interrupt(BaseException):
        pass

    def poll() -> None:
        raise Interrupt

    with pytest.raises(Interrupt):
        read_dataset(cats, poll=poll)


@pytest.mark.parametrize("trigger,caption,taught", [
    ("sks", "a cat", "sks, a cat"), ("sks", "", "sks"), ("", "a cat", "a cat"), ("sks", "a SKS cat", "a SKS cat"), ("sks", "sks, cat", "sks, cat"),
    ("cat", "catalogue", "cat, catalogue"), ("cat", "my_cat", "cat, my_cat"), ("my cat", "this is My Cat.", "this is My Cat."),
    ("c++", "in c++ style", "in c++ style"),
    ("小橘", "一只小橘在睡觉", "一只小橘在睡觉"), ("sks", "一只sks猫", "一只sks猫"), ("小橘", "一只猫", "小橘, 一只猫"),
])
def test_trigger_word(tmp_path: Path, trigger: str, caption: str, taught: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(caption, encoding="utf-8")
    dataset = read_dataset(tmp_path, trigger_word=f" {trigger} ", **SMALL)
    assert dataset.caption(dataset.pictures[0]) == taught and dataset.pictures[0].caption == caption


def test_digest_follows_what_changes_training(cats: Path) -> None:
    plain = read_dataset(cats, **SMALL)
    assert plain.digest() == read_dataset(cats, **SMALL).digest() == read_dataset(cats, min_size=65).digest()
    others = [read_dataset(cats, **SMALL, **change).digest()
              for change in ({"resolution": 256}, {"repeats": 2}, {"flip": True}, {"buckets": False}, {"trigger_word": "x"})]
    others += [plain.with_captions({"chelsea.jpg": "a cat"}).digest(), read_dataset(cats, min_size=400).digest()]
    assert len({plain.digest(), *others}) == 8


def test_with_captions(cats: Path) -> None:
    plain = read_dataset(cats, **SMALL)
    some = plain.with_captions({"chelsea.jpg": "a cat"})
    assert captions(some)["chelsea.jpg"] == "a cat" and captions(plain)["chelsea.jpg"] == "" and some.caption_source == "given"
    assert len(some.warnings) == 1 and "2 of 3" in some.warnings[0]
    every = some.with_captions({"astronaut.png": "b", "sub/coffee.webp": "c"})
    assert every.warnings == () and every.caption_source == "mixed" and "3 of 3 pictures, source: mixed" in every.report()
    with pytest.raises(LoomError, match="gone.png"):
        plain.with_captions({"gone.png": "x"})


def test_fingerprint(cats: Path) -> None:
    seen = [fingerprint(cats)]
    assert fingerprint(cats) == seen[0]
    (cats / "notes.md").write_text("neither picture nor caption")
    assert fingerprint(cats) == seen[0]

    def changed() -> None:
        now = fingerprint(cats)
        assert now not in seen
        seen.append(now)

    (cats / "chelsea.txt").write_text("a cat")
    changed()
    stat = (cats / "chelsea.txt").stat()
    (cats / "chelsea.txt").write_text("a dog")  # as long as before, and dated back: the bytes tell
    os.utime(cats / "chelsea.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed()
    (cats / "metadata.csv").write_text("filename,prompt\n")
    changed()
    picture(cats / "sub" / "coffee.webp")
    changed()
    (cats / "chelsea.jpg").unlink()
    changed()
    assert fingerprint(cats / "nowhere") == fingerprint("") == fingerprint("a\0b") == fingerprint(None)


# ---------------------------------------------------------------- masks

def test_masks_from_files_and_from_transparency(tmp_path: Path) -> None:
    from lora_loom.trainer.data.augment import View
    from lora_loom.trainer.data.encoding import latent_mask

    for name in ("a", "b", "c"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.png")
    left = np.zeros((64, 64), np.uint8)
    left[:, :32] = 255
    Image.fromarray(left).save(tmp_path / "a-masklabel.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(left.T.copy()).resize((32, 32)).save(tmp_path / "masks" / "b.png")  # of another size
    seen = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    seen.paste((255, 0, 0, 255), (0, 0, 64, 16))
    seen.save(tmp_path / "d.png")

    files = read_dataset(tmp_path, masks="files", resolution=64, min_size=32)
    assert [p.name for p in files.pictures] == ["a.png", "b.png", "c.png", "d.png"]  # masks are no pictures
    weights = {p.name: latent_mask(p, View(), (64, 64), (8, 8))[0] for p in files.pictures}
    assert weights["a.png"][:, :4].min() > 0.95 and weights["a.png"][:, 4:].max() < 0.05
    assert weights["b.png"][:3].min() > 0.9 and weights["b.png"][5:].max() < 0.1
    assert weights["c.png"].min() == weights["d.png"].min() == 1
    assert any("2 of 4 pictures have no mask and count whole: c.png, d.png" in w for w in files.warnings)

    alpha = read_dataset(tmp_path, masks="alpha", resolution=64, min_size=32)
    shown = {p.name: latent_mask(p, View(), (64, 64), (8, 8))[0] for p in alpha.pictures}
    assert shown["d.png"][:1].min() > 0.9 and shown["d.png"][3:].max() < 0.05 and shown["a.png"].min() == 1
    plain = read_dataset(tmp_path, resolution=64, min_size=32)
    assert any("2 masks are there and not used" in w for w in plain.warnings)
    assert len({files.digest(), alpha.digest(), plain.digest()}) == 3
    with pytest.raises(LoomError, match="masks 'yes' is unknown: LoadDataset.masks is one of none, alpha, files"):
        read_dataset(tmp_path, masks="yes", resolution=64, min_size=32)


def test_a_broken_mask_is_named_and_its_picture_stays(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "a-masklabel.png").write_bytes(b"no picture")
    found = read_dataset(tmp_path, masks="files", resolution=64, min_size=32)
    assert [p.mask for p in found.pictures] == [None] and any(name == "a-masklabel.png" and "as a mask" in why for name, why in found.left_out)


def test_a_number_of_repeats_beyond_all_bounds(tmp_path: Path) -> None:
    for name in ("000000001099999999_cat", "2000_dog", "0_bird", "007_fish"):
        picture(tmp_path / name / "a.png")
    found = read_dataset(tmp_path, **SMALL)
    assert {p.name.split("/")[0]: p.repeats for p in found.pictures} == {"000000001099999999_cat": 1, "2000_dog": 1, "0_bird": 1, "007_fish": 7}
    assert any("is not between 1 and 1000" in w for w in found.warnings)


def test_a_mask_that_changes_or_goes_is_named(tmp_path: Path) -> None:
    from lora_loom.trainer.data.augment import View
    from lora_loom.trainer.data.encoding import latent_mask

    picture(tmp_path / "a.png")
    Image.new("L", (96, 80), 255).save(tmp_path / "a-masklabel.png")
    [found] = read_dataset(tmp_path, masks="files", **SMALL).pictures
    for change in (lambda: Image.new("L", (96, 80), 9).save(found.mask), lambda: found.mask.write_bytes(b"x"), found.mask.unlink):
        change()
        with pytest.raises(LoomError, match="mask a-masklabel.png has changed or gone"):
            latent_mask(found, View(), (64, 64), (8, 8))
