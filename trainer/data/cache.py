"""What encoders have made of pictures and captions, kept on disk: one small safetensors file an entry, found by a key of all that
it depends on. A damaged entry is none.
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from ..errors import LoomError
from ..files import write_whole

Tensors = dict[str, torch.Tensor]
FOLDER = ".cache"  # below the folder of the runs, none of which can be called so
KEPT = 2**30  # bytes of entries that one run holds in memory; the rest is read when it is needed
UNUSED = 60 * 86_400  # seconds after which an entry that no run has asked for goes
LEFT_FREE = 2**30  # bytes of disk that the cache leaves alone
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64, "I64": torch.int64, "I32": torch.int32,
           "U8": torch.uint8, "BOOL": torch.bool}
_FORMAT = 2  # of the entries, and of how pictures are processed


def key(**facts: object) -> str:
    """sha256 of everything that the entry depends on, plain data."""
    return hashlib.sha256(json.dumps([_FORMAT, facts], sort_keys=True, ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Place:
    """Where an entry lies on disk: the checksum of the whole file, and (dtype, shape, first byte, last byte + 1) by name."""

    path: Path
    crc: int
    layout: dict[str, tuple[torch.dtype, tuple[int, ...], int, int]]

    def load(self) -> Tensors | None:
        """None where the file is no longer what it was."""
        try:
            with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return self.taken(data) if zlib.crc32(data) == self.crc else None
        except (OSError, ValueError):
            return None

    def taken(self, data: mmap.mmap) -> Tensors:
        """Copies: not views of a file that others may cut short."""
        return {name: torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).reshape(shape) if end > begin else torch.empty(shape, dtype=dtype)
                for name, (dtype, shape, begin, end) in self.layout.items()}


class Stored:
    """One entry: in memory, or where it lies. `shapes` are known without reading it."""

    __slots__ = ("shapes", "_tensors", "_place")

    def __init__(self, tensors: Tensors, place: _Place | None = None) -> None:
        """place: where it can be read again, so that it is not held; None holds it."""
        self.shapes = {name: tuple(t.shape) for name, t in tensors.items()}
        self._place, self._tensors = place, tensors if place is None else None

    @property
    def on_disk(self) -> bool:
        return self._place is not None

    def load(self) -> Tensors:
        """fp32 as it was encoded; integers as they are."""
        tensors = self._tensors if self._place is None else self._place.load()
        if tensors is None:
            raise LoomError(f"cache entry {self._place.path} can no longer be read: it was changed or removed while the run needs it; "
                            "run again, and it is made anew")
        return {name: _whole(t) for name, t in tensors.items()}


class Cache:
    """`folder` None keeps nothing on disk. One run's view of it: it holds up to `kept` bytes in memory."""

    def __init__(self, folder: Path | None, kept: int = KEPT) -> None:
        self.folder, self._room = folder, kept
        self.found = self.made = 0
        self.written = 0  # bytes onto the disk

    def get(self, name: str, *wanted: str) -> Stored | None:
        """The entry of that key; None where there is none, or a damaged one, or one without the tensors `wanted`."""
        if self.folder is None:
            return None
        path = self._path(name)
        tensors, place = _read(path, name) or (None, None)
        if tensors is None or not set(wanted) <= set(tensors) or any(t.is_floating_point() and not t.isfinite().all() for t in tensors.values()):
            return None
        self.found += 1
        with contextlib.suppress(OSError):
            os.utime(path)
        return self._stored(tensors, place)

    def put(self, name: str, tensors: Tensors) -> Stored:
        """Keep fp32 tensors, without loss in half the bytes where they came from half precision, and others as they are."""
        self.made += 1
        tensors = {k: _small(t) for k, t in tensors.items()}
        if self.folder is None:
            return Stored(tensors)
        path = self._path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < LEFT_FREE:  # the run's own files need room too
                return Stored(tensors)
            data = _bytes(tensors, name)
            write_whole(path, data, synced=False)
            self.written += len(data)
        except OSError:  # a full disk: it is held in memory, as without a cache
            return Stored(tensors)
        return self._stored(tensors, _place(path, data, _header(data)))

    def tidy(self) -> None:
        """Entries that no run has asked for in a long time go, and so do files that a crash left half written."""
        if self.folder is None:
            return
        old = time.time() - UNUSED
        for path in (*self.folder.glob("??/*.safetensors"), *self.folder.glob("*/.*.partial")):
            with contextlib.suppress(OSError):
                changed = path.stat().st_mtime
                if changed < old or path.suffix == ".partial" and changed < time.time() - 86_400:
                    path.unlink()

    def _stored(self, tensors: Tensors, place: _Place) -> Stored:
        self._room -= sum(t.nbytes for t in tensors.values())
        return Stored(tensors, None if self._room >= 0 else place)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name[2:]}.safetensors"


def _small(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.float32:
        for dtype in (torch.float16, torch.bfloat16):
            half = tensor.to(dtype)
            if torch.equal(half.float(), tensor):
                return half
    return tensor


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _bytes(tensors: Tensors, key: str) -> bytes:
    """A safetensors file with a checksum of its key, its body, and what its header says of it."""
    raw = safetensors.torch.save(tensors)
    header = _header(raw)
    return safetensors.torch.save(tensors, {"crc32": str(_checksum(header, raw, key))})


def _header(data: bytes | mmap.mmap) -> dict:
    """The header, and under "" where the body begins."""
    size = struct.unpack("<Q", data[:8])[0]
    return {**json.loads(data[8:8 + size]), "": 8 + size}


def _checksum(header: dict, data: bytes | mmap.mmap, key: str) -> int:
    told = {name: entry for name, entry in header.items() if name not in ("", "__metadata__")}
    return zlib.crc32(data[header[""]:], zlib.crc32(json.dumps([key, told], sort_keys=True).encode()))


def _place(path: Path, data: bytes | mmap.mmap, header: dict) -> _Place:
    start, layout = header[""], {}
    for name, entry in header.items():
        if name not in ("", "__metadata__"):
            begin, end = entry["data_offsets"]
            layout[name] = _DTYPES[entry["dtype"]], tuple(entry["shape"]), start + begin, start + end
    return _Place(path, zlib.crc32(data), layout)


def _read(path: Path, key: str) -> tuple[Tensors, _Place] | None:
    """The tensors, where every byte is as it was written under that key."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _header(data)
            if _checksum(header, data, key) != int(header["__metadata__"]["crc32"]):
                return None
            place = _place(path, data, header)
            return place.taken(data), place
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError, struct.error):
        return None
