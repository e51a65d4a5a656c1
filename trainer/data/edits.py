"""Captions as an editor sees them: listed as LoadDataset reads them, and saved only onto the state of the folder that was listed."""
from __future__ import annotations

import threading
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from ..errors import LoomError
from .captions import METADATA, listed
from .folder import fingerprint, list_captions
from .saving import check_sidecars, sidecar, write_captions

SAVE_AS = ("metadata.csv", "sidecar .txt")
MAX_CAPTION = 20_000  # characters: no text encoder reads a tenth of it
_saving = threading.Lock()  # between looking whether the folder has changed and writing into it


class Changed(LoomError):
    """The folder is not as it was listed: nothing was written."""


@dataclass(frozen=True)
class Row:
    """One picture. `source` says where its caption came from: metadata.csv, metadata.jsonl, sidecar, folder name, or nowhere."""

    name: str
    path: Path
    caption: str
    source: str


@dataclass(frozen=True)
class Listing:
    """A folder's pictures at one moment, which `fingerprint` stands for."""

    rows: tuple[Row, ...]
    fingerprint: str
    warnings: tuple[str, ...]
    save_as: str  # where edits go if nobody says otherwise: to where the captions are


def list_rows(folder: Path, caption_source: str = "auto") -> Listing:
    """Every picture with its caption; none is opened. Raises LoomError for a metadata file that cannot be understood, with its line."""
    before = fingerprint(folder)
    try:
        files, texts, source_of, warnings = list_captions(folder, caption_source)
    except LoomError:
        if caption_source != "metadata" or any((folder / name).exists() for name in METADATA):
            raise
        files, texts, source_of, warnings = list_captions(folder, "none")  # an editor is how the file comes to be
    rows = tuple(Row(name, path, texts.get(name, ""), source_of.get(name, "") if texts.get(name) else "") for name, path in files.items())
    sources = {row.source for row in rows}
    beside = "sidecar" in sources and not sources & set(METADATA)
    return Listing(rows, before, tuple(warnings), "sidecar .txt" if beside or caption_source == "sidecar" else "metadata.csv")


def save_edits(folder: Path, edits: dict[str, str], *, listed_as: str, save_as: str, caption_source: str = "auto") -> tuple[Listing, str]:
    """(the folder as it is now, a report). `edits` are the new captions of the pictures that were edited, `listed_as` the fingerprint of
    the listing that they were made on.

    What is overwritten is kept as .bak. An emptied caption loses its row, unless further columns say more,
    and the text beside the picture is emptied.
    Raises Changed, with nothing written, where the folder has changed since; LoomError for edits that cannot be saved.
    """
    if save_as not in SAVE_AS:
        raise LoomError(f"save_as {save_as!r} is unknown: captions are saved as one of {', '.join(SAVE_AS)}")
    edits = {name: _tidy(name, caption) for name, caption in edits.items()}
    with _saving:
        now = list_rows(folder, caption_source)
        if now.fingerprint != listed_as:
            raise Changed(f"{folder.name} has changed on disk since it was opened: nothing was saved; look at both, then save again")
        unknown = sorted(set(edits) - {row.name for row in now.rows})
        if unknown:
            raise LoomError(f"captions name {listed(unknown)}, which {folder.name} does not hold: open the folder again")
        report = _write(folder, now, edits, save_as)
        after = list_rows(folder, caption_source)
    unread = [row.name for row in after.rows if row.caption != edits.get(row.name, row.caption)]
    if unread:
        report += f"\nwarning: LoadDataset reads other captions for {listed(unread)}: caption_source {caption_source!r} takes them from elsewhere"
    return after, report


def _write(folder: Path, now: Listing, edits: dict[str, str], save_as: str) -> str:
    emptied = [name for name, caption in edits.items() if not caption]
    texts = {sidecar(name).casefold() for name in (edits if save_as != "metadata.csv" else emptied)}
    check_sidecars([row.name for row in now.rows if sidecar(row.name).casefold() in texts])  # another picture's caption is not to change with it
    if save_as == "metadata.csv":  # the table is whole: what it said of other pictures, it says again
        whole = {row.name: edits.get(row.name, row.caption) for row in now.rows if row.name in edits or row.source in METADATA}
        report = write_captions(folder, {name: caption for name, caption in whole.items() if caption}, save_as, whole)
        beside = [name for name in emptied if any((folder / name).with_suffix(suffix).exists() for suffix in (".txt", ".caption"))]
    else:
        report = write_captions(folder, {name: caption for name, caption in edits.items() if caption}, save_as, edits)
        beside = emptied
    for name in beside:
        write_captions(folder, {name: ""}, "sidecar .txt", [name])
    return report + (f"; {len(emptied)} emptied" if emptied else "")


def _tidy(name: str, caption: str) -> str:
    """One line without control characters: what every reader of captions gives back as it was written."""
    text = " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in caption).split())
    if len(text) > MAX_CAPTION:
        raise LoomError(f"the caption of {name} has {len(text)} characters: up to {MAX_CAPTION} are saved")
    return text
