"""Every picture of a dataset read and decoded whole, a few at a time, so that nothing broken is met later. What was read once is
remembered by the file's size and times, for a folder of thousands takes minutes to decode.
"""
from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import LoomError
from ..files import write_whole
from .dataset import Dataset, Picture
from .masks import checked_mask
from .pictures import decode, reason, strict_pillow

WORKERS = min(4, os.cpu_count() or 1)  # each holds one decoded picture, of up to 270 MB
_VERSION = 1


def read_whole(dataset: Dataset, poll: Callable[[], object] | None = None, progress: Callable[[int, int], object] | None = None,
               index: Path | None = None) -> Dataset:
    """The dataset with every picture's digest, and without those that cannot be decoded, which `left_out` names.

    `poll` is called before each and may raise. index: a folder for what is remembered. LoomError where no picture is left.
    """
    known = _Index(index, dataset.folder)
    pictures, broken = [], []
    with strict_pillow(), contextlib.ExitStack() as remembering:
        remembering.callback(known.save)  # also where it is broken off
        for number, (picture, result) in enumerate(in_threads(lambda p: _read(p, known), dataset.pictures, poll)):
            if isinstance(result, Picture):
                pictures.append(result)
            else:
                broken.append((picture.name, result))
            if progress is not None:
                progress(number + 1, len(dataset.pictures))
    if not pictures:
        raise LoomError(all_broken(dataset.folder, broken))
    masked, odd = [], []
    for picture in pictures:
        try:
            mask, digest = checked_mask(picture.mask, picture.path, picture.digest)
        except Exception as error:
            odd.append((picture.mask.relative_to(dataset.folder).as_posix(), f"as a mask: {reason(picture.mask.name, error)}"))
            mask, digest = None, ""
        masked.append(dataclasses.replace(picture, mask=mask, mask_digest=digest))
    return dataset.read_whole(masked, broken + odd)


def in_threads(work: Callable[[Any], Any], items: Iterable[Any], poll: Callable[[], object] | None = None) -> Iterator[tuple[Any, Any]]:
    """(item, work(item)) in order, with no more than a few under way; `poll` is called here before each."""
    items = iter(items)
    with ThreadPoolExecutor(WORKERS, "lora_loom_pictures") as pool:
        waiting: list[tuple[Any, Future]] = [(item, pool.submit(work, item)) for item in islice(items, 2 * WORKERS)]
        try:
            while waiting:
                if poll is not None:
                    poll()
                item, future = waiting.pop(0)
                result = future.result()
                waiting += [(more, pool.submit(work, more)) for more in islice(items, 1)]
                yield item, result
        finally:
            for _, future in waiting:
                future.cancel()


def all_broken(folder: Path, broken: list[tuple[str, str]]) -> str:
    shown = "; ".join(f"{name}: {why}" for name, why in broken[:5])
    return f"none of the {len(broken)} pictures in {str(folder)!r} can be read ({shown}): replace them by intact files"


def _read(picture: Picture, known: _Index) -> Picture | str:
    """The picture with its digest, or why it cannot be used."""
    try:
        stat = picture.path.stat()
        facts = known.get(picture.name, stat)
        if facts is None:
            data = picture.path.read_bytes()
            facts = [hashlib.sha256(data).hexdigest(), *decode(data).size]
            known.add(picture.name, stat, facts)
        return dataclasses.replace(picture, digest=facts[0], width=facts[1], height=facts[2])
    except Exception as error:  # Pillow's readers raise nearly every kind there is, and one file must not stop the rest
        return reason(picture.name, error)


class _Index:
    """{name: [size, times …, digest, width, height]} of one folder's files, as they were when they were read."""

    def __init__(self, home: Path | None, folder: Path) -> None:
        name = hashlib.sha256(os.path.realpath(folder).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self.path = home and home / f"{name}.json"
        self.before: dict[str, list] = {}
        self.now: dict[str, list] = {}
        if self.path:
            with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
                tree = json.loads(self.path.read_bytes())
                self.before = tree["files"] if tree.get("version") == _VERSION and isinstance(tree.get("files"), dict) else {}

    def get(self, name: str, stat: os.stat_result) -> list | None:
        row = self.before.get(name)
        if not isinstance(row, list) or len(row) != 6 or row[:3] != _times(stat) or not isinstance(row[3], str) or len(row[3]) != 64 \
                or not all(isinstance(side, int) and side > 0 for side in row[4:]):
            return None
        self.now[name] = row
        return row[3:]

    def add(self, name: str, stat: os.stat_result, facts: list) -> None:
        self.now[name] = [*_times(stat), *facts]

    def save(self) -> None:
        if self.path and self.now != self.before:
            with contextlib.suppress(OSError):  # it saves time, no more
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self.path, json.dumps({"version": _VERSION, "files": self.now}).encode(), synced=False)


def _times(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
