"""Uploads: what goes in, what stays out and why, and that nothing is ever written but the one new folder."""
from __future__ import annotations

import io
import os
import struct
import sys
import unicodedata
import warnings
import zipfile
from pathlib import Path

import pytest
from lora_loom.trainer.data import unpack, upload
from lora_loom.trainer.data.folder import read_dataset
from lora_loom.trainer.errors import LoomError
from PIL import Image
from skimage import data


def picture(kind: str = "PNG", number: int = 0, image=None) -> bytes:
    """A small real picture; another number, other bytes."""
    found = Image.fromarray(data.chelsea() if image is None else image).resize((90, 60 + number))
    out = io.BytesIO()
    found.save(out, kind)
    return out.getvalue()


PNG, JPEG = picture(), picture("JPEG")


def zipped(entries: dict[str, bytes] | list[tuple], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", compression) as archive:
        warnings.simplefilter("ignore")  # names that are there twice
        for name, content in entries.items() if isinstance(entries, dict) else entries:
            archive.writestr(name, content)
    return out.getvalue()


@pytest.fixture
def send(tmp_path: Path):
    """send({name: bytes}, folder) -> Uploaded; afterwards nothing but the new folder lies in the root, and nothing at all beside it."""
    root = tmp_path / "around" / "input"

    def put(files: dict[str, bytes] | list[tuple[str, bytes]], name: str = "cats") -> upload.Uploaded:
        root.mkdir(parents=True, exist_ok=True)
        before = {p.relative_to(tmp_path) for p in tmp_path.rglob("*")}
        with upload.work_folder(root) as work:
            given = []
            for number, (label, content) in enumerate(files.items() if isinstance(files, dict) else files):
                (work / str(number)).write_bytes(content)
                given.append((label, work / str(number)))
            done = upload.make_folder(root, name, work, given)
        new = {p.relative_to(tmp_path) for p in tmp_path.rglob("*")} - before
        if done.folder is None:
            assert not new
        else:
            assert all((tmp_path / path).is_relative_to(done.folder) for path in new)
            lie = {p.relative_to(done.folder).as_posix() for p in done.folder.rglob("*") if p.is_file()}
            assert lie == set(done.files) and not any(p.is_symlink() for p in done.folder.rglob("*"))
        return done

    put.root = root
    return put


def reasons(done: upload.Uploaded) -> dict[str, str]:
    return dict(done.refused)


def test_pictures_and_captions_become_a_dataset(send):
    done = send({"猫 1.png": PNG, "b.jpg": JPEG, "猫 1.txt": "一只猫".encode(), "b.caption": "黑猫和狗".encode("gbk"), "c.webp": picture("WEBP"), "d.gif": picture("GIF"),
                 "e.tif": picture("TIFF"), "f.bmp": picture("BMP"), "Thumbs.db": b"\0", ".DS_Store": b"\0"})
    assert done.folder == send.root / "cats" and done.refused == () and done.notes == ()
    found = read_dataset(done.folder, min_size=32)
    assert {p.name: p.caption for p in found.pictures} == {"b.jpg": "黑猫和狗", "c.webp": "", "d.gif": "", "e.tif": "", "f.bmp": "", "猫 1.png": "一只猫"}
    assert (done.folder / "b.jpg").read_bytes() == JPEG  # not made anew
    assert os.stat(done.folder).st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_a_folder_that_is_there_is_left_alone(send):
    (send.root / "cats").mkdir(parents=True)
    (send.root / "cats" / "mine.png").write_bytes(PNG)
    (send.root / "cats_2").mkdir()  # even an empty one
    assert send({"a.png": PNG}).folder.name == "cats_3"
    assert [p.name for p in (send.root / "cats").iterdir()] == ["mine.png"] and not list((send.root / "cats_2").iterdir())


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a\\b", "C:x", "con", "x.", " x", "a\0b", "x" * 130, "‮x", "."])
def test_bad_folder_names(send, name):
    with pytest.raises(LoomError, match="name"):
        send({"a.png": PNG}, name)


def test_what_is_no_picture_stays_out(send):
    cut = PNG[: len(PNG) // 2]
    wrong = {"page.html": (b"<!DOCTYPE html><script>alert(1)</script>", "a web page"), "a.svg": (b"<svg onload=alert(1)>", "SVG"), "b.png": (b"<svg/>", "SVG"),
             "run.sh": (b"#!/bin/sh\nrm -rf /", "a script"), "run.py": (b"import os", "neither"), "x.txt": (b"#!/bin/sh\n", "a script"),
             "y.txt": (b"\xef\xbb\xbf <html><body>", "a web page"), "prog.exe": (b"MZ\x90\0\3\0", "a program"), "prog.png": (b"\x7fELF\2\1\1\0", "a program"),
             "prog.txt": (b"MZ\x90\0\3\0", "a program"), "cut.png": (cut, "broken"), "movie.mp4": (b"\0\0\0\x18ftypmp42", "neither"), "empty.png": (b"", "damaged"),
             "list.csv": (b"a,b\n", "a table that nothing reads"), "big.txt": (b"x" * (2**20 + 1), "1.0 MB of text"), "zero.txt": (b"a\0b", "neither"),
             "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "damaged"), "r.rar": (b"Rar!\x1a\7\0", "only .zip"), "new.avif": (b"\0\0\0\x1cftypavif\0\0\0\0", "")}
    done = send({"good.png": PNG, **{name: content for name, (content, _) in wrong.items()}})
    assert done.files == ("good.png",)
    found = reasons(done)
    assert found.keys() == wrong.keys()
    for name, (_, said) in wrong.items():
        assert said in found[name], (name, found[name])


def test_captions_that_only_look_odd_go_in(send):
    """"BMW" begins as a BMP does, "MZ" as a program does, and "<lora" as markup does."""
    texts = {"a.txt": "BMW on a road", "b.txt": "MZ, a car", "c.txt": "<lora:x:1>", "d.txt": "rar! 7z", "e.txt": "", "f.txt": "é\r\n\tü"}
    done = send({"a.png": PNG, **{name: text.encode() for name, text in texts.items()}})
    assert done.refused == () and set(texts) < set(done.files)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-16-be", "cp1251"])
def test_a_caption_in_an_unknown_encoding_is_told_to_be_one(send, encoding):
    text = "это кот" if encoding == "cp1251" else "un café noir"
    done = send({"a.png": PNG, "a.txt": text.encode(encoding)})
    assert "save it as UTF-8" in reasons(done)["a.txt"] and done.files == ("a.png",)


def test_names_that_systems_make_are_taken(send):
    """A screenshot of macOS has a narrow space before PM, emoji are joined, tar begins with ./ and old Windows folders end with a space."""
    names = ["Screenshot 2024-05-01 at 3.45.10\u202fPM.png", "a\u00a0b.png", "\U0001f469\u200d\U0001f469\u200d\U0001f467.png", "گربه\u200cها.png"]
    loose = send({name: picture("PNG", number) for number, name in enumerate(names)})
    assert loose.refused == () and set(loose.files) == set(names)
    assert len(read_dataset(loose.folder, min_size=32).pictures) == len(names)
    table = "file_name,text\nmy pics /c.png,a cat\n./a.png,a dog\n"
    packed = send({"x.zip": zipped({"./a.png": picture("PNG", 7), "./a.txt": b"a star", "my pics /c.png": picture("PNG", 8), "metadata.csv": table.encode()})})
    assert packed.refused == () and set(packed.files) == {"a.png", "a.txt", "my pics/c.png", "metadata.csv"}
    assert "my pics/c.png,a cat" in (packed.folder / "metadata.csv").read_text()
    assert send({f"{hidden}.png": PNG for hidden in ("a\u202eb", "a\u2028b")}).folder is None


def test_a_file_gets_the_suffix_of_what_it_is(send):
    table = "stars,file_name,text\n5,one.png,\"a cat, red\"\n4,two.webp,b\n"
    lines = '{"file_name": "one.png", "text": "一", "n": 1}\n'
    done = send({"one.png": JPEG, "two.webp": picture("WEBP"), "three.txt": picture("PNG", 3), "four": picture("GIF"), "five.jfif": picture("JPEG", 5), "six.exe": picture("BMP"),
                 "metadata.csv": table.encode(), "metadata.jsonl": lines.encode()})
    assert done.files == ("five.jpg", "four.gif", "metadata.csv", "metadata.jsonl", "one.jpg", "six.bmp", "three.png", "two.webp")
    assert (done.folder / "metadata.csv").read_text() == table.replace("one.png", "one.jpg")  # every other cell stays
    assert '"one.jpg"' in (done.folder / "metadata.jsonl").read_text("utf-8") and '"n": 1' in (done.folder / "metadata.jsonl").read_text("utf-8")
    assert "one.png is now one.jpg" in done.notes[0] and "renamed" in done.notes[0]
    assert {p.name: p.caption for p in read_dataset(done.folder, min_size=32).pictures}["one.jpg"] == "a cat, red"


def test_a_table_that_nobody_can_read_is_said(send):
    done = send({"a.png": PNG, "metadata.csv": b"file,words\na.png,x\n"})
    assert "metadata.csv" in done.files and "the first line must name the columns" in done.notes[0]


def test_duplicates_are_said_and_names_that_are_the_same_are_refused(send):
    other = picture("PNG", 7)
    composed, apart = "é.png", unicodedata.normalize("NFD", "é.png")
    done = send([("a.png", PNG), ("b.png", PNG), ("A.PNG", other), (composed, other), (apart, picture("PNG", 8)), ("sub/x.png", picture("PNG", 9)),
                 ("Sub/y.png", picture("PNG", 10)), ("a.png/z.png", picture("PNG", 11)), ("c.jpg", picture("PNG", 12)), ("c.png", picture("PNG", 13)), ("a.png", other)])
    assert done.files == ("a.png", "b.png", "c.png", "sub/x.png", composed)
    assert "there more than once, byte for byte: b.png (as a.png)" in done.notes[0]
    refused = [why for _, why in done.refused]
    assert len(refused) == 6 and all("differs from" in why or "there is another" in why for why in refused), refused


EVIL = ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:\\evil.png", "C:/evil.png", "..\\evil.png", "\\\\host\\share\\evil.png", "a\\b.png", "con.png", "a/NUL/b.png", "aux",
        "e\0.png", "e\n.png", "e\x1b[2J.png", "‮gnp.exe", "e .png ", "e.png.", ".hidden.png", "a/./b.png", "a//b.png", "x" * 201 + ".png", "/".join("abcdefgh") + ".png",
        "y" * 100 + "/" + "z" * 130 + ".png", "a:stream.png", "e?.png", "e*.png", 'e".png', "e|.png", "<e>.png"]


@pytest.mark.parametrize("how", ["loose", "zip"])
def test_path_tricks(send, how):
    files = [(name, picture("PNG", n)) for n, name in enumerate(EVIL)]
    done = send([("good.png", PNG), *files] if how == "loose" else {"all.zip": _raw_zip([("good.png", PNG), *files])})
    taken = ("a/b.png", "good.png") if how == "zip" else ("good.png",)  # PowerShell 5 parts the folders of a zip by backslashes
    assert done.files == taken, done.files
    assert len(done.refused) == len(EVIL) + 1 - len(taken) and all("name" in why for _, why in done.refused), done.refused


def _raw_zip(files: list[tuple[str | bytes, bytes]]) -> bytes:
    """Names exactly as they are, for Python's own writer tidies them: text is said to be UTF-8, of bytes nothing is said."""
    body, table = b"", b""
    for name, content in files:
        raw, flags = (name, 0) if isinstance(name, bytes) else (name.encode("utf-8", "surrogatepass"), 0x800)
        common = struct.pack("<HHHHHIIIHH", 20, flags, 0, 0, 0x21, zipfile.crc32(content), len(content), len(content), len(raw), 0)
        table += b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, len(body)) + raw
        body += b"PK\3\4" + common + raw + content
    return body + table + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, len(files), len(files), len(table), len(body), 0)


def test_a_zip_of_a_folder_is_that_folder(send):
    done = send({"x.zip": zipped({"mine/": b"", "mine/a.png": PNG, "mine/metadata.csv": b"filename,prompt\na.png,cat\n", "__MACOSX/mine/._a.png": b"\0", "mine/sub/b.png": JPEG})})
    assert done.files == ("a.png", "metadata.csv", "sub/b.jpg") and done.refused == ()
    done = send({"x.zip": zipped({"10_black_cat/a.png": PNG})})  # where the folder's name is a caption it stays
    assert done.files == ("10_black_cat/a.png",)
    assert read_dataset(done.folder, min_size=32).pictures[0].caption == "black cat"


def test_a_zip_made_by_powershell(send):
    files = [("photos\\", b""), ("photos\\10_cat\\a.png", PNG), ("photos\\10_cat\\a.txt", b"a cat"), ("photos\\5_狗\\b.jpg".encode("gbk"), JPEG),
             ("photos\\Thumbs.db", b"\0")]
    done = send({"x.zip": _raw_zip(files)})
    assert done.files == ("10_cat/a.png", "10_cat/a.txt", "5_狗/b.jpg") and done.refused == ()
    assert sorted(p.repeats for p in read_dataset(done.folder, min_size=32).pictures) == [5, 10]


def test_chinese_names_in_zips(send):
    """Windows in Chinese writes GBK without the flag that says UTF-8; macOS writes UTF-8 without it. A second byte of GBK may be a backslash's."""
    names = ["猫和狗.png", "誠.png"]  # 誠 is 0xD5 0x5C
    done = send({"gbk.zip": _raw_zip([(name.encode("gbk"), picture("PNG", n)) for n, name in enumerate(names)])})
    assert set(done.files) == set(names) and done.refused == ()
    assert send({"mac.zip": _raw_zip([("猫和狗.png".encode(), PNG)])}).files == ("猫和狗.png",)
    done = send({"flag.zip": zipped({"猫和狗.png": PNG, "café.png": JPEG})})
    assert done.files == ("café.jpg", "猫和狗.png")


def _entry(name: str, **values) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


def test_links_devices_and_nested_zips(send):
    link, pipe, windows = _entry("link.png", create_system=3, external_attr=0o120777 << 16), _entry("pipe.png", create_system=3, external_attr=0o010644 << 16), _entry("w.png", external_attr=0x400)
    done = send({"x.zip": zipped([("good.png", PNG), (link, "/etc/passwd"), (pipe, b""), (windows, b"x"), ("inner.zip", zipped({"a.png": PNG})), ("inner.png", zipped({"a.png": PNG}))])})
    assert done.files == ("good.png",)
    assert {name: why[:20] for name, why in done.refused} == {"link.png": "a link: put the file", "pipe.png": "no plain file, but a", "w.png": "a link: put the file",
                                                             "inner.zip": "a zip inside a zip: ", "inner.png": "a zip inside a zip: "}


def test_encrypted_and_oddly_packed_entries(send):
    locked = zipped({"a.png": PNG})
    at = locked.index(b"PK\1\2") + 8
    locked = locked[:6] + b"\1" + locked[7:at] + b"\1" + locked[at + 1:]
    assert "encrypted" in reasons(send({"x.zip": locked}))["a.png"]
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert "usual one, Deflate" in reasons(send({"x.zip": zipped({"a.png": PNG}, method)}))["a.png"]


def test_bombs(send, monkeypatch):
    out = io.BytesIO()
    Image.new("1", (12_000, 9_000)).save(out, "PNG")  # 108 million pixels in a few kB
    done = send({"good.png": PNG, "pixels.png": out.getvalue(), "ratio.zip": zipped({"a.bmp": bytes(40 * 2**20)})})
    assert "too large (12000x9000" in reasons(done)["pixels.png"] and "as bombs do" in reasons(done)["a.bmp"]
    monkeypatch.setattr(unpack, "MAX_TOTAL", 10_000)
    assert "unpacks to" in reasons(send({"good.png": PNG, "x.zip": zipped({"a.png": bytes(6000), "b.png": bytes(6000)})}))["x.zip"]
    monkeypatch.setattr(unpack, "MAX_FILES", 3)
    assert "holds 4 files" in reasons(send({"good.png": PNG, "x.zip": zipped({f"{n}.png": b"" for n in range(4)})}))["x.zip"]
    monkeypatch.setattr(unpack, "_MAX_LIST", 2000)
    assert "own list of files" in reasons(send({"good.png": PNG, "x.zip": zipped({f"{n}{'x' * 100}.png": b"" for n in range(30)})}))["x.zip"]


def test_a_lying_list_gives_no_more_than_it_says(send):
    """The list says 10 bytes, the entry unpacks to a megabyte."""
    whole = zipped({"a.png": bytes(2**20)})
    for at, offset in ((whole.index(b"PK\3\4"), 22), (whole.index(b"PK\1\2"), 24)):
        whole = whole[:at + offset] + struct.pack("<I", 10) + whole[at + offset + 4:]
    assert "damaged in the zip" in reasons(send({"good.png": PNG, "x.zip": whole}))["a.png"]


def test_the_whole_is_refused_where_it_goes_too_far(send, monkeypatch):
    monkeypatch.setattr(upload, "MAX_FILES", 2)
    with pytest.raises(LoomError, match="more than 2 files"):
        send({f"{n}.png": picture("PNG", n) for n in range(3)})
    with pytest.raises(LoomError, match="more than 2 files"):
        send({"x.zip": zipped({f"{n}.png": picture("PNG", n) for n in range(3)})})
    assert list(send.root.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr(upload, "KEPT_FREE", 2**60)
    with pytest.raises(LoomError, match="free some space"):
        send({"a.png": PNG})
    assert list(send.root.iterdir()) == []


def test_nothing_fit_makes_no_folder(send):
    done = send({"a.txt": b"a cat", "b.html": b"<html>"})
    assert done.folder is None and reasons(done).keys() == {"a.txt", "b.html"} and list(send.root.iterdir()) == []


def test_damaged_zips_never_crash(send):
    """Every byte of a small zip broken in turn, and every length: refused or taken, nothing outside, no crash."""
    whole = zipped({"a.png": PNG[:300], "猫.txt": b"cat"}, zipfile.ZIP_STORED)
    for n in range(0, len(whole), 3):
        send({"good.png": PNG, "x.zip": whole[:n] + bytes([whole[n] ^ 0xFF]) + whole[n + 1:]}, f"byte {n}")
    for n in range(4, len(whole), 23):
        done = send({"good.png": PNG, "x.zip": whole[:n]}, f"cut {n}")
        assert "x.zip" in reasons(done) and "damaged" in reasons(done)["x.zip"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_link_in_the_way_is_not_followed(send, tmp_path):
    send.root.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (send.root / "cats").symlink_to(tmp_path / "elsewhere")
    assert send({"a.png": PNG}).folder.name == "cats_2" and not list((tmp_path / "elsewhere").iterdir())


def test_leftovers_of_a_crash_are_cleared_after_a_day(tmp_path):
    old, new = tmp_path / f"{upload.WORK}old", tmp_path / f"{upload.WORK}new"
    old.mkdir()
    new.mkdir()
    os.utime(old, (0, 0))
    with upload.work_folder(tmp_path) as work:
        assert work.is_dir() and not old.exists() and new.exists()
    assert not work.exists()


hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis, from the extra `test`")
st = hypothesis.strategies


@hypothesis.given(st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "a", "con", "b.png", " ", "\\", "C:", "é", ""]), max_size=7).map("/".join))
@hypothesis.settings(max_examples=1500, deadline=None)
def test_no_name_leads_out(name):
    try:
        safe = upload.safe_path(name)
    except LoomError as error:
        assert len(str(error)) > 20
        return
    root = os.path.realpath("/somewhere/input")
    assert os.path.realpath(os.path.join(root, safe)).startswith(root + os.sep)
    assert "\\" not in safe and ":" not in safe and safe == unicodedata.normalize("NFC", safe) and upload.safe_path(safe) == safe
