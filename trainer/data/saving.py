"""Captions onto disk, into metadata.csv or beside the pictures: whole files or none, and every older text is kept."""
from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from ..errors import LoomError
from ..files import write_whole
from .captions import caption_columns, key, read_table


def write_captions(folder: Path, captions: dict[str, str], save_as: str, names: Collection[str]) -> str:
    """Write the captions of the named pictures into the folder, as `metadata.csv` or as `sidecar .txt`; returns a line that says where.

    UTF-8, under a temporary name and then renamed. A file that would change is first kept as <name>.bak. Of `names`, those
    without a caption lose it; rows for other pictures, and further columns, stay. Raises LoomError where the folder cannot be written.
    """
    if save_as == "metadata.csv":
        _replace(folder / save_as, _csv(folder / save_as, captions, names))
        return f"saved {len(captions)} caption{'s' if len(captions) != 1 else ''} in {folder.name}/metadata.csv"
    check_sidecars(names)
    for name, caption in captions.items():
        _replace(folder / sidecar(name), caption + "\n")
    line = f"saved {len(captions)} caption{'s' if len(captions) != 1 else ''} in .txt files in {folder.name}"
    shadows = [name for name in ("metadata.csv", "metadata.jsonl") if (folder / name).exists()]
    return f"{line}; LoadDataset reads {shadows[0]} before them unless caption_source is sidecar" if shadows else line


def sidecar(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".txt"))


def check_sidecars(names: Collection[str]) -> None:
    """Raises LoomError where two of the pictures would share a caption file."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(sidecar(name).casefold(), name)
        if other != name:
            raise LoomError(f"{other} and {name} would share the caption file {sidecar(name)}: "
                            "rename one of them, or set AutoCaption.save_as to metadata.csv")


def _csv(path: Path, captions: dict[str, str], names: Collection[str]) -> str:
    header, rows = ["filename", "prompt"], []
    if path.exists() and not path.is_symlink():
        # A table that cannot be understood is kept as .bak all the same.
        with contextlib.suppress(LoomError):
            header, *rows = read_table(path)
    name_column, caption_column = caption_columns(header)
    old = {key(row[name_column]).casefold(): row for row in rows if row[name_column].strip()}  # the last counts, as it does for readers
    new = []
    for name, caption in [*captions.items(), *((name, "") for name in names if name not in captions)]:
        row = old.pop(key(name).casefold(), [""] * len(header))
        row[name_column], row[caption_column] = name, caption
        if caption or sum(bool(cell.strip()) for cell in row) > 1:  # what further columns say stays
            new.append(row)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *new, *old.values()])
    return out.getvalue()


def _replace(path: Path, text: str) -> None:
    """Write `text` whole or not at all; keep what it replaces. Every older text that differs stays in a .bak of its own."""
    try:
        data = text.encode("utf-8")
        if path.is_symlink():
            raise LoomError(f"{path.name} in {str(path.parent)!r} is a link, which is not written through: replace it by a file of its own")
        old = path.read_bytes() if path.exists() else None
        if old == data:
            return
        if old is not None:
            _keep(path, old)
        write_whole(path, data)
    except OSError as error:
        raise LoomError(f"{path.name} cannot be written into {str(path.parent)!r} ({error.strerror}): "
                        "make the folder writable, or set AutoCaption.save_as to nothing") from error


def _keep(path: Path, old: bytes) -> None:
    number = 0
    while True:
        backup = path.with_name(f"{path.name}.bak" + (f".{number}" if number else ""))
        if not backup.exists():
            return write_whole(backup, old)
        if backup.read_bytes() == old:
            return None
        number += 1
