"""A new folder of pictures and captions from files that someone sends: what is no picture and no caption text stays out, with a reason.

Knows no server: it is given files that lie in a work folder. The new folder appears whole or not at all.
"""
from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from ..errors import LoomError
from ..names import check_name
from .captions import KOHYA, METADATA, SIDECARS, listed
from .pictures import FORMATS, SUFFIXES, decode, reason
from .renamed import follow_renamed
from .unpack import MAX_FILE, MAX_FILES, MAX_TOTAL, is_litter, is_zip, unpack

MAX_TEXT = {suffix: 2**20 for suffix in SIDECARS} | {".csv": 32 * 2**20, ".jsonl": 32 * 2**20}  # bytes: a caption, a table of 10,000
MAX_PART, MAX_NAME, MAX_DEPTH = 200, 220, 5  # bytes of a name's part; characters, for Windows takes 260 with the folder before it; folders
KEPT_FREE = 2**30  # bytes of the disk that an upload leaves to others
WORK = ".lora_loom_upload_"
_SUFFIXES = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "WEBP": (".webp",), "BMP": (".bmp",), "DIB": (".bmp",),
             "GIF": (".gif",), "TIFF": (".tif", ".tiff"), "AVIF": (".avif",)}
_MARKUP = ((b"#!", "a script"), (b"@echo", "a script"), (b"<?php", "a script"), (b"<script", "a script"), (b"<?xml", "XML"), (b"<!doctype", "a web page"),
           (b"<svg", "SVG, which is a program more than a picture"), (b"<html", "a web page"), (b"%pdf", "a PDF"))
_BINARY = ((b"mz", "a program"), (b"\x7felf", "a program"), (b"\xca\xfe\xba\xbe", "a program"), (b"\xcf\xfa\xed\xfe", "a program"),
           (b"pk\3\4", "a zip inside a zip"), (b"rar!", "an archive: only .zip is unpacked"), (b"7z\xbc\xaf", "an archive: only .zip is unpacked"))


@dataclass(frozen=True)
class Uploaded:
    """What became of an upload. `folder` is None where nothing of it was fit; names are relative to it."""

    folder: Path | None
    files: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@contextlib.contextmanager
def work_folder(root: Path) -> Iterator[Path]:
    """A hidden folder below `root`, gone afterwards; and those are cleared away that a crash has left there for a day."""
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob(f"{WORK}*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > 86_400:
                shutil.rmtree(old)
    work = root / f"{WORK}{uuid.uuid4().hex}"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def make_folder(root: Path, name: str, work: Path, files: Iterable[tuple[str, Path]], poll: Callable[[], object] | None = None) -> Uploaded:
    """Make root/name (name_2 … where that is taken) of `files`: (the name that the sender gave, where the content lies).

    Zips are unpacked. `work` is a `work_folder` of the same root. `poll` is called before each file and may raise. Raises
    LoomError where nothing can be made at all: a bad folder name, too many files, too much for the limits or the disk.
    """
    check_folder_name(name)
    new = _New(work / "folder", poll)
    for given, path in files:
        if is_litter(given):
            continue
        if path.stat().st_size and is_zip(path):
            new.take_zip(given, path)
        elif path.stat().st_size > MAX_FILE:
            new.refused.append((_shown(given), f"{path.stat().st_size / 2**20:.0f} MB: up to {MAX_FILE / 2**20:.0f} are taken"))
        else:
            new.take(given, path.read_bytes())
    if not new.pictures:  # captions alone are no dataset
        return Uploaded(None, (), (*new.refused, *((text, "there is no picture beside it") for text in new.texts)), ())
    home = _inmost(new.home)
    inside = home.relative_to(new.home).as_posix()
    bare = lambda path: path if inside == "." else path.removeprefix(f"{inside}/")
    notes = [*follow_renamed(home, {bare(old): bare(now) for old, now in new.renamed.items()}), *new.notes()]
    names = tuple(sorted(bare(path) for path in (*new.pictures, *new.texts)))
    return Uploaded(_settle(home, root, name), names, tuple(new.refused), tuple(notes))


def check_folder_name(name: str) -> str:
    return check_name(name, "the new folder")


class _New:
    """The folder as it grows."""

    def __init__(self, home: Path, poll: Callable[[], object] | None) -> None:
        home.mkdir()
        self.home, self.poll = home, poll or (lambda: None)
        self.pictures: dict[str, str] = {}  # name -> sha256
        self.texts: list[str] = []
        self.renamed: dict[str, str] = {}
        self.refused: list[tuple[str, str]] = []
        self._spelled: dict[str, tuple[str, bool]] = {}  # name as file systems compare it -> (name, is it a folder?)
        self._seen, self._bytes = 0, 0

    def take_zip(self, given: str, path: Path) -> None:
        try:
            for name, data, why in unpack(path):
                if why:
                    self.refused.append((_shown(name), why))
                else:
                    self.take(name, data)
        except LoomError as error:
            if isinstance(error, _Full):
                raise
            self.refused.append((_shown(given), str(error)))

    def take(self, given: str, data: bytes) -> None:
        self.poll()
        self._count(len(data))
        try:
            asked, wanted = unicodedata.normalize("NFC", given), safe_path(given)
            name = _fit(wanted, data)
            self._claim(name, wanted)
            self._place(name, data)
        except LoomError as error:
            self.refused.append((_shown(given), str(error)))
            return
        if PurePosixPath(name).suffix.lower() in MAX_TEXT:
            self.texts.append(name)
        else:
            self.pictures[name] = hashlib.sha256(data).hexdigest()
        if name != asked.removeprefix("./"):
            self.renamed[asked.removeprefix("./")] = name

    def notes(self) -> list[str]:
        first: dict[str, str] = {}
        twice = [f"{name} (as {first[digest]})" for name, digest in self.pictures.items() if first.setdefault(digest, name) != name]
        changed = [f"{old} is now {name}" for old, name in self.renamed.items()]
        notes = [f"there more than once, byte for byte: {listed(twice)}"] if twice else []
        return notes + ([f"renamed to what they are: {listed(changed)}"] if changed else [])

    def _count(self, size: int) -> None:
        self._seen, self._bytes = self._seen + 1, self._bytes + size
        if self._seen > MAX_FILES:
            raise _Full(f"the upload holds more than {MAX_FILES} files: send it in parts")
        if self._bytes > MAX_TOTAL:
            raise _Full(f"the upload unpacks to more than {MAX_TOTAL / 2**30:.0f} GB: send it in parts")
        free = shutil.disk_usage(self.home).free
        if free < size + KEPT_FREE:
            raise _Full(f"the disk has {free / 2**30:.1f} GB free, of which {KEPT_FREE / 2**30:.0f} are left to others: free some space")

    def _claim(self, name: str, given: str) -> None:
        """Take the name, and those of its folders, or raise LoomError: file systems differ in which names are the same."""
        parts = PurePosixPath(name).parts
        wanted = [("/".join(parts[:n]), n < len(parts)) for n in range(1, len(parts) + 1)]
        for path, is_folder in wanted:
            before, was_folder = self._spelled.get(_compared(path), (path, is_folder))
            if (before, was_folder) != (path, is_folder):
                raise LoomError(f"its name differs from {before} only by case or accents, or is a file's and a folder's: rename one of them")
            if not is_folder and _compared(path) in self._spelled:
                renamed = f" (it is named {name} for what it is)" if name != given else ""
                raise LoomError(f"there is another {path}{renamed}: rename one of them")
        self._spelled.update((_compared(path), (path, is_folder)) for path, is_folder in wanted)

    def _place(self, name: str, data: bytes) -> None:
        path = self.home / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:
                file.write(data)
        except OSError as error:
            raise LoomError(f"it cannot be written here ({error.strerror}): rename it, or free some space") from error


class _Full(LoomError):
    """The upload as a whole goes too far."""


def safe_path(given: str) -> str:
    """The name, relative and with posix slashes, in composed characters, if no system can be led out of the folder by it; folders without the spaces and
    dots behind that Windows drops. Raises LoomError."""
    if given.startswith("/"):
        raise LoomError("its name is an absolute path: only names inside the folder are taken")
    parts = unicodedata.normalize("NFC", given).removeprefix("./").split("/")  # tar says ./cat.png
    if ".." in parts:
        raise LoomError("its name leads out of the folder: only names inside it are taken")
    if len(parts) > MAX_DEPTH + 1 or len(given) > MAX_NAME:
        raise LoomError(f"its name has {len(parts) - 1} folders and {len(given)} characters: up to {MAX_DEPTH} and {MAX_NAME} are taken")
    parts = [part if part == ".." else part.rstrip(" .") or part for part in parts[:-1]] + parts[-1:]
    for part in parts:
        check_name(part, "an uploaded file", MAX_PART)
    return "/".join(parts)


def _fit(name: str, data: bytes) -> str:
    """The name with the suffix of what the file really is. Raises LoomError for what is neither a picture nor caption text."""
    path = PurePosixPath(name)
    text = _text(data) if path.suffix.lower() in MAX_TEXT else None
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:16].lower()
    if text is not None:  # asked first, for "BMW" begins as a BMP does
        what = next((what for begins, what in _MARKUP if start.startswith(begins)), "")
        if what:
            raise LoomError(_refusal(what))
        return _fit_text(path, data)
    zeros = data.count(0)  # UTF-16 of Latin letters is half of them
    foreign = path.suffix.lower() in MAX_TEXT and not start.startswith(tuple(begins for begins, _ in _BINARY)) and (not zeros or zeros > len(data) / 3)
    damaged = path.suffix.lower() in (*SUFFIXES, ".zip")
    what = next((what for begins, what in _MARKUP + _BINARY if start.startswith(begins)),
                "damaged, or not what its name says" if damaged else "neither a picture nor caption text")
    try:
        decode(data)
        with Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN]) as image:
            right = _SUFFIXES[image.format]
    except Image.UnidentifiedImageError as error:
        avif = data[4:12] in (b"ftypavif", b"ftypavis")
        if foreign and not avif:
            raise LoomError("its characters are neither UTF-8 nor GBK, nor UTF-16 with its mark: save it as UTF-8") from error
        raise LoomError(reason("x.avif", error) if avif else _refusal(what)) from error
    except Exception as error:
        raise LoomError(reason(name, error)) from error
    return name if path.suffix.lower() in right else str(path.with_suffix(right[0]))


def _refusal(what: str) -> str:
    return f"{what}: pictures, .txt, .caption, metadata.csv and metadata.jsonl are taken"


def _fit_text(path: PurePosixPath, data: bytes) -> str:
    suffix = path.suffix.lower()
    if suffix not in SIDECARS and path.name.lower() not in METADATA:
        raise LoomError(_refusal("a table that nothing reads"))
    if len(data) > MAX_TEXT[suffix]:
        raise LoomError(f"{len(data) / 2**20:.1f} MB of text: up to {MAX_TEXT[suffix] / 2**20:.0f} are taken")
    return str(path)


def _text(data: bytes) -> str | None:
    """The bytes as text, as the reader of captions would have it; None where they are none."""
    for encoding in ["utf-16"] if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ["utf-8-sig", "gb18030"]:
        try:
            text = data.decode(encoding)
        except UnicodeError:
            continue
        return None if any(ord(c) < 32 and c not in "\t\n\r\f" for c in text) else text
    return None


def _compared(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _shown(name: str) -> str:
    return (name if len(name) <= 200 else f"{name[:200]}...").encode("utf-8", "backslashreplace").decode()


def _inmost(home: Path) -> Path:
    """A zip of a folder holds that folder alone: its content is meant. Not where its name is a caption (kohya's 10_black_cat)."""
    inside = list(home.iterdir())
    return _inmost(inside[0]) if len(inside) == 1 and inside[0].is_dir() and not KOHYA.fullmatch(inside[0].name) else home


def _settle(home: Path, root: Path, name: str) -> Path:
    """Rename `home` to root/name, or to the first of name_2, name_3 … that nobody has."""
    for number in range(1, 10_000):
        target = root / (name if number == 1 else f"{name}_{number}")
        if os.path.lexists(target):
            continue
        try:
            os.rename(home, target)
        except OSError:
            if os.path.lexists(target):  # someone else's, made meanwhile
                continue
            raise
        return target
    raise LoomError(f"folder {name!r} is there 9,999 times: choose another name")
