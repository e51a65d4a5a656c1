"""One pass over a dataset's pictures: each is read and measured once, a few at a time, and remembered by its bytes."""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..files import write_whole
from .pictures import reason
from .quality import VERSION, Measures, measure

_WORKERS = max(1, min(4, os.cpu_count() or 1))  # a decoded picture may take 270 MB
_AHEAD = 4 * _WORKERS
_KEPT = 2000  # measurements of pictures that are not in the folder any more


@dataclass(frozen=True)
class Look:
    """What reading a picture gave: its bytes' sha256, and its measures, or why there are none."""

    digest: str
    measures: Measures | None
    error: str = ""


def measure_all(dataset: Any, side: int, cache: Path | None = None, progress: Callable[[int, int], object] | None = None,
                poll: Callable[[], object] | None = None) -> dict[str, Look]:
    """{name: Look} of every picture of a Dataset, measured at an area of `side` x `side`; those that `cache` remembers are not decoded.

    `cache` is a folder, made where it is missing. `poll()` is called before each picture and may raise: what was measured until then is
    remembered all the same. `progress(done, total)` is called after each.
    """
    file = None if cache is None else cache / f"{hashlib.sha256(os.path.realpath(dataset.folder).encode('utf-8', 'replace')).hexdigest()[:16]}.json"
    known = {} if file is None else _read(file)
    found: dict[str, Look] = {}
    look = lambda picture: _look(picture.name, picture.path, picture.digest, side, known)
    try:
        for done, (picture, one) in enumerate(_ahead(look, dataset.pictures, poll), 1):
            found[picture.name] = one
            if progress is not None:
                progress(done, len(dataset.pictures))
    finally:
        now = {f"{one.digest} {side}": one.measures for one in found.values() if one.measures is not None}
        if file is not None and now.keys() - known.keys():
            _write(file, known, now)
    return found


def _look(name: str, path: Path, digest: str, side: int, known: dict[str, Measures]) -> Look:
    """The bytes are read only where they are needed: a picture whose digest is known may be remembered."""
    if digest and (remembered := known.get(f"{digest} {side}")) is not None:
        return Look(digest, remembered)
    try:
        data = path.read_bytes()
        digest = digest or hashlib.sha256(data).hexdigest()
        return Look(digest, known.get(f"{digest} {side}") or measure(data, side))
    except Exception as error:  # Pillow's readers raise nearly every kind there is, and one file must not stop the rest
        return Look(digest, None, reason(name, error))


def _ahead(work: Callable, items: Iterable, poll: Callable[[], object] | None) -> Iterator[tuple[Any, Any]]:
    """(item, work(item)) in order, with a few items in work at a time."""
    waiting = iter(items)
    with ThreadPoolExecutor(_WORKERS, "lora_loom.measure") as pool:
        try:
            running = deque((item, pool.submit(work, item)) for item in islice(waiting, _AHEAD))
            while running:
                if poll is not None:
                    poll()
                item, future = running.popleft()
                yield item, future.result()
                running.extend((item, pool.submit(work, item)) for item in islice(waiting, 1))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read(file: Path) -> dict[str, Measures]:
    """What is remembered; nothing of a file that is damaged or of another version, and no row that makes no sense."""
    try:
        tree = json.loads(file.read_bytes())
        rows = tree["pictures"] if tree["version"] == VERSION else {}
        rows = list(rows.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    found = {}
    for key, row in rows:
        with contextlib.suppress(TypeError, ValueError):
            found[key] = Measures.from_dict(row)
    return found


def _write(file: Path, known: dict[str, Measures], now: dict[str, Measures]) -> None:
    """Those of now last, for the oldest are forgotten first. A folder that cannot be written to costs time alone."""
    old = [(key, one) for key, one in known.items() if key not in now]
    rows = dict(old[-_KEPT:]) | now
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"version": VERSION, "pictures": {key: one.to_dict() for key, one in rows.items()}}).encode(), synced=False)
