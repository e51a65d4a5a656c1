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
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ..errors import LoomError
from ..files import write_whole

Tensors = dict[str, torch.Tensor]
FOLDER = ".cache"  # below the folder of the runs, none of which can be called so
KEPT = 2**30  # bytes of entries that one run holds in memory; the rest is read when it is needed
UNUSED = 60 * 86_400  # seconds after which an entry that no run has asked for goes
LEFT_FREE = 2**30  # bytes of disk that the cache leaves alone
_FORMAT = 2  # of the entries, and of how pictures are processed


def key(**facts: object) -> str:
    """sha256 of everything that the entry depends on, plain data."""
    return hashlib.sha256(json.dumps([_FORMAT, facts], sort_keys=True, ensure_ascii=True).encode()).hexdigest()


class Stored:
    """One entry: in memory, or where it lies. `shapes` are known without reading it."""

    __slots__ = ("shapes", "_tensors", "_path", "_key")

    def __init__(self, tensors: Tensors, path: Path | None = None, key: str = "") -> None:
        """path and key: where it can be read again, so that it is not held; None holds it."""
        self.shapes = {name: tuple(t.shape) for name, t in tensors.items()}
        self._path, self._key, self._tensors = path, key, tensors if path is None else None

    @property
    def on_disk(self) -> bool:
        return self._path is not None

    def load(self) -> Tensors:
        """fp32 as it was encoded; integers as they are."""
        if self._tensors is not None:
            return {name: _whole(t) for name, t in self._tensors.items()}
        tensors = _read(self._path, self._key)
        if tensors is None:
            raise LoomError(f"cache entry {self._path} can no longer be read: it was changed or removed while the run needs it; "
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
        tensors = _read(path, name)
        if tensors is None or not set(wanted) <= set(tensors) or any(t.is_floating_point() and not t.isfinite().all() for t in tensors.values()):
            return None
        self.found += 1
        with contextlib.suppress(OSError):
            os.utime(path)
        return self._stored(tensors, path, name)

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
        return self._stored(tensors, path, name)

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

    def _stored(self, tensors: Tensors, path: Path, name: str) -> Stored:
        self._room -= sum(t.nbytes for t in tensors.values())
        return Stored(tensors) if self._room >= 0 else Stored(tensors, path, name)

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
    size = struct.unpack("<Q", raw[:8])[0]
    return safetensors.torch.save(tensors, {"crc32": str(_checksum(json.loads(raw[8:8 + size]), memoryview(raw)[8 + size:], key))})


def _checksum(header: dict, body: memoryview, key: str) -> int:
    told = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return zlib.crc32(body, zlib.crc32(json.dumps([key, told], sort_keys=True).encode()))


def _read(path: Path, key: str) -> Tensors | None:
    """The tensors, where every byte is as it was written under that key."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            size = struct.unpack("<Q", data[:8])[0]
            header = json.loads(data[8:8 + size])
            if _checksum(header, memoryview(data)[8 + size:], key) != int(header["__metadata__"]["crc32"]):
                return None
        with safetensors.safe_open(str(path), "pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # not views of a file that others may cut short
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error, safetensors.SafetensorError):
        return None
