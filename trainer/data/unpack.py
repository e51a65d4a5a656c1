"""What lies in a zip, read as if it were made to do harm. Knows nothing of pictures, and writes nothing."""
from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import LoomError
from .pictures import MAX_PIXELS

MAX_FILE = 3 * MAX_PIXELS  # bytes: the largest picture that is decoded at all, with nothing packed
MAX_FILES = 20_000  # 10,000 pictures, each with its caption
MAX_TOTAL = 8 * 2**30  # bytes, of one upload as it comes and again unpacked: 10,000 photos of a phone are less
_MAX_LIST = 16 * 2**20  # bytes of a zip's own list of files, which is read whole before anything in it can be counted
_RATIO, _RATIO_FROM = 200, 16 * 2**20  # Deflate reaches 1032; photos reach 2, drawings in BMP 50
_UTF8, _ENCRYPTED, _HIDDEN_NAMES = 0x800, 0x1, 0x2000  # flags of an entry, APPNOTE.TXT 4.4.4
_REPARSE = 0x400  # the attribute of links made by Windows
_LITTER = {".ds_store", "thumbs.db", "desktop.ini"}


def is_zip(path: Path) -> bool:
    """By content: the name says nothing."""
    with open(path, "rb") as file:
        return file.read(4) in (b"PK\3\4", b"PK\5\6")


def is_litter(name: str) -> bool:
    """What file managers leave in folders: passed over without a word."""
    parts = name.replace("\\", "/").split("/")
    return "__MACOSX" in parts or parts[-1].casefold() in _LITTER or parts[-1].startswith("._")


def unpack(path: Path) -> Iterator[tuple[str, bytes, str]]:
    """(name, content, "") of every file in the zip, or (name, b"", why it is refused). One file at a time is in memory.

    Raises LoomError for a zip that is refused whole: damaged, too many files, too large.
    """
    try:
        archive = zipfile.ZipFile(_Sparing(path))
    except LoomError:
        raise
    except Exception as error:  # zipfile raises nearly every kind there is
        raise LoomError(f"the zip is damaged ({str(error) or type(error).__name__}): make it again") from error
    with archive:
        entries = [info for info in archive.infolist() if not entry_name(info).endswith("/")]
        total = sum(info.file_size for info in entries)
        if len(entries) > MAX_FILES:
            raise LoomError(f"the zip holds {len(entries)} files: up to {MAX_FILES} are taken; divide it")
        if total > MAX_TOTAL:
            raise LoomError(f"the zip unpacks to {total / 2**30:.1f} GB: up to {MAX_TOTAL / 2**30:.0f} are taken; divide it")
        for info in entries:
            name, data, why = entry_name(info), b"", _refused(info)
            if is_litter(name):
                continue
            try:
                data = b"" if why else _read(archive, info)
            except Exception as error:
                why = f"damaged in the zip ({str(error) or type(error).__name__})"
            yield name, data, why


def entry_name(info: zipfile.ZipInfo) -> str:
    """The name as its maker meant it: zips made by Windows in Chinese hold GBK and do not say so, some made by macOS UTF-8, and
    PowerShell 5 parts folders by backslashes."""
    name = info.orig_filename  # `filename` has been tidied: what looks like a trick is to be seen as one
    if not info.flag_bits & _UTF8:
        for encoding in ("utf-8", "gb18030"):
            try:
                name = name.encode("cp437").decode(encoding)
                break
            except UnicodeError:
                pass
    return name.replace("\\", "/")  # after decoding, for a second byte of GBK may be a backslash's


class _Sparing(io.FileIO):
    """A zip's file that refuses to be read in larger pieces than an honest zip needs."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _MAX_LIST:
            raise LoomError(f"the zip's own list of files has {size / 2**20:.0f} MB: up to {_MAX_LIST / 2**20:.0f} are read; divide it")
        return super().read(_MAX_LIST if size is None or size < 0 else size)


def _refused(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.flag_bits & (_ENCRYPTED | _HIDDEN_NAMES):
        return "it is encrypted: make the zip without a password"
    if kind == stat.S_IFLNK or info.external_attr & _REPARSE:
        return "a link: put the file itself into the zip"
    if kind not in (0, stat.S_IFREG):
        return "no plain file, but a device or the like"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others unpack in pieces of any size
        return f"packed by method {info.compress_type}: make the zip with the usual one, Deflate"
    if info.file_size > MAX_FILE:
        return f"{info.file_size / 2**20:.0f} MB unpacked: up to {MAX_FILE / 2**20:.0f} are taken"
    if info.file_size > _RATIO_FROM and info.file_size > _RATIO * max(1, info.compress_size):
        return f"it unpacks to {info.file_size // max(1, info.compress_size)} times its size, as bombs do: save the picture as PNG"
    return ""


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:  # never gives more than the entry's list says, and checks its CRC
        data = file.read(MAX_FILE + 1)
    if len(data) != info.file_size:
        raise zipfile.BadZipFile(f"{len(data)} bytes instead of {info.file_size}")
    return data
