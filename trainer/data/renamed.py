"""A metadata file follows pictures that an upload has renamed: every other cell of it stays."""
from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from ..errors import LoomError
from .captions import METADATA, NAME_COLUMNS, key, read_metadata, read_text


def follow_renamed(home: Path, renamed: dict[str, str]) -> list[str]:
    """Write the new names into home's metadata files. Returns what is to be said of those that cannot be understood."""
    names = {key(old).casefold(): now for old, now in renamed.items()}
    notes = []
    for path in sorted(home.iterdir()):
        if path.name.lower() not in METADATA:
            continue
        try:
            captions, _ = read_metadata(path)
            if any(name.casefold() in names for name in captions):
                text, _ = read_text(path, path.name)
                path.write_text((_csv if path.suffix.lower() == ".csv" else _jsonl)(text, names), encoding="utf-8", newline="")
        except LoomError as error:
            notes.append(f"{error}")
    return notes


def _csv(text: str, names: dict[str, str]) -> str:
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True))
    header = next(row for row in rows if any(cell.strip() for cell in row))
    known = [cell.strip().lower() for cell in header]
    column = next(known.index(name) for name in NAME_COLUMNS if name in known)
    for row in rows:
        if row is not header and len(row) > column:
            row[column] = names.get(key(row[column]).casefold(), row[column])
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _jsonl(text: str, names: dict[str, str]) -> str:
    lines = []
    for line in text.split("\n"):
        row = json.loads(line) if line.strip() else None
        for column in ("file_name", "filename"):
            if row and isinstance(row.get(column), str) and key(row[column]).casefold() in names:
                row[column] = names[key(row[column]).casefold()]
                line = json.dumps(row, ensure_ascii=False)
        lines.append(line)
    return "\n".join(lines)
