"""What the caption editor lists and saves, and the thumbnails it shows."""
from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from lora_loom.trainer.data import edits, thumbnails
from lora_loom.trainer.data.edits import Changed, list_rows, save_edits
from lora_loom.trainer.data.folder import fingerprint, read_dataset
from lora_loom.trainer.errors import LoomError
from PIL import Image
from skimage import data


@pytest.fixture
def home(tmp_path: Path) -> Path:
    found = tmp_path / "set"
    (found / "子").mkdir(parents=True)
    Image.fromarray(data.astronaut()).save(found / "astronaut.png")
    Image.fromarray(data.chelsea()).save(found / "chelsea.jpg")
    Image.fromarray(data.coffee()).save(found / "子" / "咖啡.png")
    (found / "chelsea.txt").write_text("a tabby cat")
    return found


def captions(home: Path, source: str = "auto") -> dict[str, str]:
    """As a training reads them."""
    return {p.name: p.caption for p in read_dataset(home, min_size=64, caption_source=source).pictures}


def save(home: Path, new: dict[str, str], save_as: str, source: str = "auto"):
    return save_edits(home, new, listed_as=list_rows(home, source).fingerprint, save_as=save_as, caption_source=source)


def test_rows_are_what_a_training_reads(home):
    (home / "metadata.csv").write_text("filename,prompt\n子/咖啡.png,a cup\nastronaut.png,\n")
    listing = list_rows(home)
    assert [(row.name, row.caption, row.source) for row in listing.rows] == [
        ("astronaut.png", "", ""), ("chelsea.jpg", "a tabby cat", "sidecar"), ("子/咖啡.png", "a cup", "metadata.csv")]
    assert {row.name: row.caption for row in listing.rows} == captions(home) and listing.fingerprint == fingerprint(home)
    assert listing.save_as == "metadata.csv"
    (home / "metadata.csv").unlink()
    assert list_rows(home).save_as == "sidecar .txt"
    (home / "chelsea.txt").unlink()
    assert list_rows(home).save_as == "metadata.csv" and list_rows(home, "metadata").rows[0].caption == ""
    (home / "metadata.csv").write_text("nonsense\n")
    for source in ("auto", "metadata"):
        with pytest.raises(LoomError, match="metadata.csv, line 1"):
            list_rows(home, source)


@pytest.mark.parametrize("save_as", edits.SAVE_AS)
def test_edits_are_read_again_and_nothing_is_lost(home, save_as):
    new = {"astronaut.png": "“Eileen”, \"a, b\"", "子/咖啡.png": "一杯咖啡"}
    after, report = save(home, new, save_as)
    assert captions(home) == {**new, "chelsea.jpg": "a tabby cat"} and "saved 2 captions" in report and "warning" not in report
    assert after.fingerprint == fingerprint(home)
    again, _ = save_edits(home, {"chelsea.jpg": "a cat"}, listed_as=after.fingerprint, save_as=save_as)  # on what the first answer said
    assert captions(home) == {**new, "chelsea.jpg": "a cat"} and again.fingerprint != after.fingerprint
    kept = "metadata.csv.bak" if save_as == "metadata.csv" else "chelsea.txt.bak"
    assert "tabby" in (home / kept).read_text() or "Eileen" in (home / kept).read_text()
    assert not [p for p in home.rglob("*") if p.name.endswith(".tmp")]


@pytest.mark.parametrize("save_as", edits.SAVE_AS)
@pytest.mark.parametrize("suffix", [".txt", ".caption"])
def test_an_emptied_caption_stays_empty(home, save_as, suffix):
    os.rename(home / "chelsea.txt", home / f"chelsea{suffix}")
    save(home, {"astronaut.png": "x"}, save_as)
    _, report = save(home, {"chelsea.jpg": "", "astronaut.png": " "}, save_as)
    assert set(captions(home).values()) == {""} and "2 emptied" in report
    kept = home / ("chelsea.txt.bak" if suffix == ".txt" else "chelsea.caption")
    assert kept.read_text().strip() == "a tabby cat"


def test_a_table_keeps_its_further_columns(home):
    (home / "metadata.csv").write_text("score,File_Name,seed,text,note\n0.5,./Astronaut.png,7,one,\"a, b\"\n,chelsea.jpg,,a cat,\n1,gone.png,8,still here,\n")
    save(home, {"astronaut.png": "two", "chelsea.jpg": "", "子/咖啡.png": "a cup"}, "metadata.csv")
    assert list(csv.reader((home / "metadata.csv").open(encoding="utf-8"))) == [
        ["score", "File_Name", "seed", "text", "note"], ["0.5", "astronaut.png", "7", "two", "a, b"], ["", "子/咖啡.png", "", "a cup", ""],
        ["1", "gone.png", "8", "still here", ""]]
    save(home, {"astronaut.png": ""}, "metadata.csv")
    assert captions(home)["astronaut.png"] == "" and "0.5,astronaut.png,7,," in (home / "metadata.csv").read_text(encoding="utf-8")


def test_a_table_keeps_its_rows_for_pictures_that_are_elsewhere(home):
    (home / "metadata.csv").write_text("filename,prompt\ngone.png,still here\nastronaut.png,one\n")
    save(home, {"astronaut.png": "two"}, "metadata.csv")
    assert (home / "metadata.csv").read_text() == "filename,prompt\nastronaut.png,two\ngone.png,still here\n"  # chelsea's text stays beside it
    assert captions(home)["chelsea.jpg"] == "a tabby cat"


def test_a_folder_that_changed_is_not_written(home):
    listed = list_rows(home).fingerprint
    (home / "chelsea.txt").write_text("someone else's")
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
    for save_as in edits.SAVE_AS:
        with pytest.raises(Changed, match="has changed on disk"):
            save_edits(home, {"chelsea.jpg": "mine"}, listed_as=listed, save_as=save_as)
    assert before == {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
    Image.fromarray(data.camera()).save(home / "new.png")
    with pytest.raises(Changed):
        save_edits(home, {}, listed_as=listed, save_as="metadata.csv")


def test_where_nobody_reads_them_is_said(home):
    _, report = save(home, {"chelsea.jpg": "in the table"}, "metadata.csv", "sidecar")
    assert "warning: LoadDataset reads other captions for chelsea.jpg: caption_source 'sidecar'" in report


@pytest.mark.parametrize(("caption", "save_as"), [("only the png", "sidecar .txt"), ("", "metadata.csv"), ("", "sidecar .txt")])
def test_another_picture_s_caption_does_not_change_with_it(home, caption, save_as):
    Image.fromarray(data.chelsea()).save(home / "chelsea.png")  # shares chelsea.txt
    with pytest.raises(LoomError, match="would share the caption file chelsea.txt"):
        save(home, {"chelsea.png": caption}, save_as)
    assert captions(home)["chelsea.jpg"] == "a tabby cat"
    save(home, {"chelsea.png": "the png"}, "metadata.csv")
    assert captions(home)["chelsea.jpg"] == "a tabby cat" and captions(home)["chelsea.png"] == "the png"


def test_captions_are_one_line(home):
    save(home, {"chelsea.jpg": " a\r\n cat\u2028\0 and 👩\u200d🚀\ud800 "}, "sidecar .txt")
    assert (home / "chelsea.txt").read_text("utf-8") == "a cat and 👩\u200d🚀\n"


@pytest.mark.parametrize("new,save_as,said", [({"no.png": "x"}, "metadata.csv", "name no.png"), ({"../x.png": "x"}, "sidecar .txt", "name ../x.png"),
                                              ({"chelsea.jpg": "x" * 20_001}, "metadata.csv", "20001 characters"), ({}, "nothing", "save_as 'nothing'")])
def test_edits_that_cannot_be(home, new, save_as, said):
    before = fingerprint(home)
    with pytest.raises(LoomError, match=said):
        save(home, new, save_as)
    assert fingerprint(home) == before


def test_thumbnails_are_made_once(home, tmp_path, monkeypatch):
    kept, path = tmp_path / "kept", home / "chelsea.jpg"
    small = thumbnails.thumbnail(path, 192, kept)
    with Image.open(io.BytesIO(small)) as image:
        assert image.format == thumbnails.FORMAT and max(image.size) == 192
        assert abs(image.width / image.height - 451 / 300) < 0.02
    monkeypatch.setattr(thumbnails, "open_picture", None)  # now it can only come from the disk
    assert thumbnails.thumbnail(path, 192, kept) == small and len(list(kept.iterdir())) == 1
    monkeypatch.undo()
    key = thumbnails.thumbnail_key(path, 192)
    Image.fromarray(data.coffee()).save(path)
    assert thumbnails.thumbnail_key(path, 192) != key and thumbnails.thumbnail(path, 192, kept) != small
    assert thumbnails.thumbnail(path, 192, home / "chelsea.jpg" / "no folder")  # a cache that cannot be written costs speed alone
    for wrong, side in ((home / "gone.png", 192), (path, 200)):
        with pytest.raises(LoomError):
            thumbnails.thumbnail(wrong, side, kept)
    (home / "broken.png").write_bytes(b"no picture")
    with pytest.raises(LoomError, match="no picture"):
        thumbnails.thumbnail(home / "broken.png", 192, kept)
