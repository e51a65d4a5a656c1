"""A run's record, run.json: what it is, where it stands and how it ended, for whoever lists the runs. The curves are in metrics.jsonl."""
from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..data.dataset import recorded
from ..errors import LoomError
from ..files import write_whole

FILE = "run.json"
_number = lambda value: not isinstance(value, bool) and isinstance(value, (int, float)) and abs(value) < 1e12
_count = lambda value: _number(value) and isinstance(value, int)
_text = lambda value: isinstance(value, str)
_pairs = lambda value: isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 and all(map(_number, pair)) for pair in value)
_FIELDS = {  # what `Record` writes; None stands for nothing known
    **dict.fromkeys(("name", "status", "lora", "final", "family", "model", "plan", "report", "error"), _text),
    **dict.fromkeys(("started", "ended", "seconds", "best"), _number),
    **dict.fromkeys(("version", "step", "steps", "steps_per_epoch", "pictures", "best_step"), _count),
    **dict.fromkeys(("fix", "host", "dataset"), lambda value: isinstance(value, dict)),
    "digests": lambda value: isinstance(value, list) and all(map(_text, value)),
    "curve": _pairs,
}
_KEPT = ("lora", "final", "digests")  # of a run that goes on: its LoRA file so far
POINTS = 48  # of the small curve that an ended run keeps, so that listing a thousand runs reads no metrics


class Record:
    """Written when the run begins and when it ends. A disk that is full ends no run."""

    def __init__(self, run: Path, **facts: Any) -> None:
        """facts: fit for JSON. A run that goes on keeps its first start and the seconds it took before."""
        self._path, self._since = run / FILE, time.time()
        before = read(run)
        self._before = before.get("seconds") or 0.0
        self.facts = {"version": 1, "name": run.name, "started": before.get("started") or self._since,
                      **{name: before[name] for name in _KEPT if name in before}, **facts}
        self.write("running", ended=None)

    @property
    def digests(self) -> list[str]:
        """sha256 of the LoRA files that the run has written as its result: of the last one, and of one that may not have come to be."""
        found = self.facts.get("digests")
        return found if isinstance(found, list) else []

    def writes(self, digest: str) -> None:
        """A file of these bytes is about to be written."""
        self.write("running", digests=[*self.digests[-1:], digest])

    def write(self, status: str, **facts: Any) -> None:
        self.facts.update(facts, status=status, seconds=self._before + time.time() - self._since)
        with contextlib.suppress(OSError):
            write_whole(self._path, json.dumps(self.facts, ensure_ascii=False, indent=1).encode())


@contextlib.contextmanager
def ending(record: Record, interrupts: tuple[type[BaseException], ...]) -> Iterator[dict[str, Any]]:
    """Writes down how the block ended, with what it put into the dictionary: "finished" or "stopped" by its `stopped`; "interrupted" by the
    host or a key; "failed" with the error."""
    facts: dict[str, Any] = {}
    try:
        yield facts
        status = "stopped" if facts.pop("stopped", False) else "finished"
    except BaseException as error:
        status = "interrupted" if isinstance(error, interrupts) or not isinstance(error, Exception) else "failed"
        if status == "failed":
            facts.update(error=str(error) or type(error).__name__, fix=error.fix if isinstance(error, LoomError) else {})
        raise
    finally:
        facts.pop("stopped", None)
        record.write(status, ended=time.time(), **facts)


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def read(run: Path) -> dict[str, Any]:
    """What `Record` wrote; empty where there is none or a damaged one. Another hand may have been at it: what does not look like ours is left out."""
    try:
        if (run / FILE).is_symlink():
            return {}
        found = json.loads((run / FILE).read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: value for name, value in found.items() if name in _FIELDS and (value is None or _FIELDS[name](value))} if isinstance(found, dict) else {}


def dataset(run: Path) -> dict[str, Any]:
    """`Dataset.settings` of what the run trains on; empty where it has not said so."""
    return recorded(read(run).get("dataset") or {})
