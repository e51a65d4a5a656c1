"""Ten thousand damaged files through every reader of what people bring: no crash but our own words, no hang, nothing written outside."""
from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lora_loom.trainer.data.captions import read_metadata, read_text
from lora_loom.trainer.data.embedded import prompt_of
from lora_loom.trainer.data.folder import list_dataset, read_dataset
from lora_loom.trainer.data.pictures import decode, header, reason
from lora_loom.trainer.errors import LoomError
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from skimage import data

CAT = Image.fromarray(data.chelsea()).resize((48, 32))


def mutated(whole: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Bits turned, pieces cut out, doubled, filled with one value, and endings missing."""
    chance = random.Random(seed)
    for _ in range(count):
        found = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 5, 30))):
            at, length = chance.randrange(len(found) + 1), chance.choice((1, 1, 2, 4, 16, 200))
            kind = chance.randrange(5)
            if kind == 0 and at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                del found[at:at + length]
            elif kind == 2:
                found[at:at] = found[at:at + length]
            elif kind == 3:
                found[at:at + length] = bytes([chance.choice((0, 1, 127, 128, 255))]) * len(found[at:at + length])
            else:
                del found[max(at, 1):]
        yield bytes(found)


def pictures() -> dict[str, bytes]:
    found = {}
    info = PngInfo()
    info.add_text("prompt", json.dumps({"1": {"class_type": "KSampler", "inputs": {"positive": ["2", 0]}}, "2": {"inputs": {"text": "a cat"}}}))
    info.add_text("parameters", "a cat\nSteps: 3")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.init()
    for kind, options in {"PNG": {"pnginfo": info, "exif": exif}, "JPEG": {"exif": exif.tobytes()}, "WEBP": {"lossless": True, "exif": exif.tobytes()}, "BMP": {},
                          "GIF": {"save_all": True, "append_images": [CAT.rotate(90)]}, "TIFF": {"compression": "tiff_lzw"}, "AVIF": {}}.items():
        if kind in Image.SAVE:
            file = io.BytesIO()
            CAT.save(file, kind, **options)
            found[kind] = file.getvalue()
    return found


@pytest.mark.parametrize("kind,whole", pictures().items(), ids=list(pictures()))
def test_pictures(tmp_path: Path, kind: str, whole: bytes) -> None:
    path, good = tmp_path / f"a.{kind.lower()}", 0
    for number, damaged in enumerate(mutated(whole, 1000, 1)):
        if number % 5 == 0:
            path.write_bytes(damaged)
            try:
                width, height, info = header(path)
                assert width * height <= 89_478_485 and isinstance(prompt_of(info), str)
            except Exception as error:  # whatever Pillow raises
                assert reason(path.name, error)
        try:
            image = decode(damaged)
            good += 1
            assert image.mode == "RGB" and image.width * image.height <= 89_478_485
        except Exception as error:
            assert reason(path.name, error)
    assert good < 1000 and decode(whole).size in ((48, 32), (32, 48))


CSV = 'filename,prompt\na.png,"a cat, sitting"\nb.png,"two\nlines"\nc.png,一只猫\n'.encode()
JSONL = b'{"file_name": "a.png", "text": "a cat"}\n{"file_name": "b.png", "prompt": "\\u4e00"}\n'


@pytest.mark.parametrize("name,whole", [("metadata.csv", CSV), ("metadata.csv", "filename,prompt\na.png,一只猫\n".encode("gbk")), ("metadata.jsonl", JSONL)])
def test_metadata(tmp_path: Path, name: str, whole: bytes) -> None:
    path = tmp_path / name
    for damaged in mutated(whole, 700, 2):
        path.write_bytes(damaged)
        try:
            captions, _ = read_metadata(path)
            assert all(isinstance(k, str) and isinstance(v, str) for k, v in captions.items())
            json.dumps(captions, ensure_ascii=False).encode()  # what goes into files later
        except LoomError as error:
            assert name in str(error)


def test_sidecars(tmp_path: Path) -> None:
    for whole in ("a cat, 一只猫".encode(), "一只橘猫".encode("gbk"), "a cup".encode("utf-16")):
        for damaged in mutated(whole, 200, 3):
            (tmp_path / "a.txt").write_bytes(damaged)
            try:
                text, _ = read_text(tmp_path / "a.txt", "a.txt")
                text.encode()
            except LoomError as error:
                assert "a.txt" in str(error)


def test_whole_folders(tmp_path: Path) -> None:
    """Damaged pictures, captions and tables together: a dataset or a message, and not a file more than before."""
    kinds, home = list(pictures().items()), tmp_path / "set"
    home.mkdir()
    for number in range(60):
        for old in home.iterdir():
            old.unlink()
        for i, (kind, whole) in enumerate(kinds):
            [damaged] = mutated(whole, 1, 100 * number + i)
            (home / f"{i}.{kind.lower()}").write_bytes(damaged if i % 2 else whole)
            [(home / f"{i}.txt").write_bytes(text) for text in mutated(b"a cat on a mat", 1, number)]
        if number % 3 == 0:
            [(home / "metadata.csv").write_bytes(text) for text in mutated(CSV, 1, number)]
        before = {path.name: path.read_bytes() for path in home.iterdir()}
        for read in (list_dataset, read_dataset):
            _no_crash(lambda read=read: read(home, resolution=64, min_size=16).report())
        assert {path.name: path.read_bytes() for path in home.iterdir()} == before and [p.name for p in tmp_path.iterdir()] == ["set"]


def _no_crash(work: Callable[[], str]) -> None:
    try:
        assert work()
    except LoomError as error:
        assert str(error)
