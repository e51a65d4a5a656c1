"""The pictures that compare a run's saved steps, kept in <run>/grid, and what was chosen among them.

Knows files and names alone: who draws the pictures is the host's business.
"""
from __future__ import annotations

import hashlib
import json
import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import LoomError
from ..files import write_whole
from .saved import Saved

FOLDER = "grid"
MOST_COLUMNS, MOST_ROWS = 12, 50
_KEPT = {".jpg": 1000, ".json": 50}  # files that stay: more than the largest grid has
_STRENGTH = 10.0
_KEY = re.compile(r"[0-9a-f]{32}")
_CHOICE = "ChooseCheckpoint.choice takes run/file @ strength, as a click in the grid writes it"


def strengths_in(text: str) -> list[float]:
    """[0.6, 0.8, 1.0] of "0.6, 0.8, 1.0", each once, in their order."""
    rule = f"ChooseCheckpoint.strengths takes 1 to {MOST_COLUMNS} numbers from {-_STRENGTH:g} to {_STRENGTH:g}, for example 0.6, 0.8, 1.0"
    found = []
    for part in filter(None, re.split("[,;\\s\uff0c\u3001\uff1b]+", str(text))):
        try:
            value = float(part)
        except ValueError:
            raise LoomError(f"strengths has {part[:40]!r}: {rule}") from None
        if not math.isfinite(value) or abs(value) > _STRENGTH:
            raise LoomError(f"strength {part[:40]} is out of bounds: {rule}")
        found.append(value)
    found = list(dict.fromkeys(found))
    if not 1 <= len(found) <= MOST_COLUMNS:
        raise LoomError(f"strengths has {len(found)} numbers: {rule}")
    return found


def prompts_in(text: str, usual: list[str]) -> list[str]:
    """The lines of the text; `usual` where there are none."""
    found = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip())) or list(dict.fromkeys(usual))[:MOST_COLUMNS]
    if not found:
        raise LoomError("prompts is empty, and the run had no sample prompts: ChooseCheckpoint.prompts takes one prompt a line; write at least one")
    if len(found) > MOST_COLUMNS:
        raise LoomError(f"prompts has {len(found)} lines: ChooseCheckpoint.prompts takes up to {MOST_COLUMNS}, one column each; take some out")
    return found


@dataclass(frozen=True)
class Choice:
    """What a click in the grid has chosen."""

    run: str
    file: str
    strength: float

    def __str__(self) -> str:
        return f"{self.run}/{self.file} @ {self.strength:g}"


def choice_in(text: str) -> Choice | None:
    """None for an empty text."""
    if not text.strip():
        return None
    names, at, number = text.rpartition("@")
    run, slash, file = names.strip().partition("/")
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not (at and slash and run and file) or not abs(strength) <= _STRENGTH:
        raise LoomError(f"choice {text[:80]!r} cannot be read: {_CHOICE}; click in the grid, or empty it")
    return Choice(run, file, strength)


@dataclass(frozen=True)
class Column:
    strength: float
    prompt: str


@dataclass(frozen=True)
class Grid:
    """Rows are saved steps, columns strengths or prompts; a cell's key stands for all that its picture depends on."""

    run: Path
    compare: str
    rows: list[Saved]
    columns: list[Column]
    keys: list[list[str]]
    width: int
    height: int
    prompts: list[str]

    @property
    def id(self) -> str:
        return _digest(self.keys)

    def picture(self, row: int, column: int) -> Path:
        return self.run / FOLDER / f"{self.keys[row][column]}.jpg"

    def missing(self) -> list[tuple[int, int]]:
        """(row, column) of what is not drawn yet, row by row."""
        return [(r, c) for r in range(len(self.rows)) for c in range(len(self.columns)) if not self.picture(r, c).is_file()]

    def written(self) -> dict[str, Any]:
        rows = [{"step": row.step, "file": row.file, "kind": row.kind, "best": row.best} for row in self.rows]
        return {"id": self.id, "run": self.run.name, "compare": self.compare, "rows": rows, "columns": [asdict(column) for column in self.columns],
                "keys": self.keys, "width": self.width, "height": self.height}

    def keep(self) -> None:
        """Its layout goes to disk, and what is older than enough grids goes away."""
        folder = self.run / FOLDER
        if folder.is_symlink():
            raise LoomError(f"folder {FOLDER!r} of run {self.run.name!r} is a link: ChooseCheckpoint draws into the run's own folder; remove the link")
        folder.mkdir(exist_ok=True)
        for suffix, most in _KEPT.items():
            files = sorted((path for path in folder.glob(f"*{suffix}") if _KEY.fullmatch(path.stem)), key=lambda path: -path.stat().st_mtime)
            own = {key for row in self.keys for key in row}
            for path in files[most:]:
                if path.stem not in own:
                    path.unlink(missing_ok=True)
        write_whole(folder / f"{self.id}.json", json.dumps(self.written(), ensure_ascii=False).encode(), synced=False)

    def draw(self, row: int, column: int, data: bytes) -> None:
        write_whole(self.picture(row, column), data, synced=False)


def plan(run: Path, compare: str, rows: list[Saved], strengths: list[float], prompts: list[str], width: int, height: int, facts: Any) -> Grid:
    """strengths: each with the first prompt; prompts: each at the last strength. facts: whatever else the pictures depend on, fit for JSON."""
    columns = [Column(s, prompts[0]) for s in strengths] if compare == "strengths" else [Column(strengths[-1], p) for p in prompts]
    keys = [[_digest([1, row.mark, column.strength, column.prompt, width, height, facts]) for column in columns] for row in rows]
    return Grid(run, compare, rows, columns, keys, width, height, prompts)


def read(run: Path, id_: str = "") -> dict[str, Any]:
    """A layout that `Grid.keep` wrote, the newest for "", with `drawn`: which cells have their picture. LoomError where there is none."""
    folder = run / FOLDER
    files = [folder / f"{id_}.json"] if _KEY.fullmatch(id_) else sorted(folder.glob("*.json"), key=lambda p: -p.stat().st_mtime)[:1] if not id_ else []
    try:
        if files[0].is_symlink() or folder.is_symlink():  # not the run's own
            raise LookupError
        found = json.loads(files[0].read_text(encoding="utf-8"))
        found["run"] = run.name  # it may have been renamed
        found["drawn"] = [[(folder / f"{key}.jpg").is_file() for key in row] for row in found["keys"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise LoomError(f"run {run.name!r} has no such grid: run ChooseCheckpoint to draw one") from None
    return found


def picture(run: Path, key: Any) -> bytes:
    """The cell's JPEG. LoomError for anything else."""
    path = run / FOLDER / f"{key}.jpg"
    try:
        if isinstance(key, str) and _KEY.fullmatch(key) and not path.is_symlink() and not path.parent.is_symlink():
            return path.read_bytes()
    except OSError:
        pass
    raise LoomError(f"cell {str(key)[:80]!r} is not in run {run.name!r}: give a key that GET /lora_loom/run/grid lists")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=os.fspath).encode()).hexdigest()[:32]
