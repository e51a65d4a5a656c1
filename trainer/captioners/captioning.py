"""Captions for a whole dataset, and captions on disk; knows no model, only something with `caption(image)`."""
from __future__ import annotations

import contextlib
import csv
import io
import os
import uuid
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Protocol

from PIL import Image

from ..data.captions import key, listed, read_metadata
from ..data.folder import Dataset, open_picture
from ..errors import LoomError
from .wording import Tag, Wording

SAVE_AS = ("nothing", "metadata.csv", "sidecar .txt")


class Captioner(Protocol):
    """What a captioning method must do."""

    def caption(self, image: Image.Image, poll: Callable[[], object] | None = None) -> str | list[Tag]:
        """A text, or tags in the order to be written; "" or none where nothing fits. `poll` is called while it takes long, and may raise."""

    def close(self) -> None:
        """Let go of the model's memory."""


def check_save_as(dataset: Dataset, save_as: str) -> None:
    """Raises LoomError for an unknown choice, and where two pictures would share a caption file: before minutes of work, not after them."""
    if save_as not in SAVE_AS:
        raise LoomError(f"save_as {save_as!r} is unknown: AutoCaption.save_as is one of {', '.join(SAVE_AS)}")
    if save_as == "sidecar .txt":
        _check_sidecars(dataset)


def caption_dataset(dataset: Dataset, captioner: Captioner, wording: Wording | None = None, *, save_as: str = "nothing",
                    progress: Callable[[int, int], object] | None = None, poll: Callable[[], object] | None = None) -> tuple[Dataset, str]:
    """(the dataset with what the captioner says as captions, a report of several lines).

    `progress(done, total)` is called after every picture, `poll()` before it and while a text is written. Where `poll` raises (an
    interrupt), or a picture fails, the captions made so far are saved first if `save_as` asks for it. Raises LoomError for unknown choices.
    """
    check_save_as(dataset, save_as)
    wording = wording or Wording()
    made: dict[str, str] = {}
    kept, silent, more, saved = 0, [], [], ""
    try:
        for index, picture in enumerate(dataset.pictures):
            if poll is not None:
                poll()
            if wording.existing == "keep" and picture.caption:
                kept += 1
            else:
                words = wording.words(captioner.caption(open_picture(picture.path), poll))
                silent += [] if words else [picture.name]
                more += [len(words)] if not isinstance(words, str) and len(words) > wording.max_tags else []
                made[picture.name] = wording.caption(words, picture.caption)
            if progress is not None:
                progress(index + 1, len(dataset.pictures))
    finally:
        if made:
            saved = save_captions(dataset.with_captions(made), save_as)

    lines = [f"{len(made)} pictures captioned, {kept} kept their caption"]
    if silent:
        lines.append(f"warning: nothing was found for {len(silent)} pictures, because of thresholds or the ban list: {listed(silent)}")
    if more:
        lines.append(f"{len(more)} pictures have more tags than max_tags {wording.max_tags} lets through, up to {max(more)}; the likeliest are kept")
    return dataset.with_captions(made), "\n".join(lines + ([saved] if saved else []))


def written_files(dataset: Dataset, save_as: str) -> set[str]:
    """The names of the files, relative to the folder, that saving may write."""
    if save_as == "nothing":
        return set()
    return {save_as} if save_as == "metadata.csv" else {_sidecar(picture.name) for picture in dataset.pictures}


def save_captions(dataset: Dataset, save_as: str) -> str:
    """Write the captions (without the trigger word) into the dataset's folder; returns a line that says where.

    UTF-8, under a temporary name and then renamed. A file that would change is first kept as <name>.bak. Rows of a
    metadata.csv for pictures that are not in the dataset stay in it. Raises LoomError where the folder cannot be written.
    """
    if save_as == "nothing":
        return ""
    check_save_as(dataset, save_as)
    captioned = {picture.name: picture.caption for picture in dataset.pictures if picture.caption}
    if save_as == "metadata.csv":
        _replace(dataset.folder / save_as, _csv(dataset, captioned))
        return f"saved {len(captioned)} captions in {dataset.folder.name}/metadata.csv"
    for name, caption in captioned.items():
        _replace(dataset.folder / _sidecar(name), caption + "\n")
    line = f"saved {len(captioned)} captions in .txt files in {dataset.folder.name}"
    shadows = [name for name in ("metadata.csv", "metadata.jsonl") if (dataset.folder / name).exists()]
    return f"{line}; LoadDataset reads {shadows[0]} before them unless caption_source is sidecar" if shadows else line


def _csv(dataset: Dataset, captioned: dict[str, str]) -> str:
    rows = list(captioned.items())
    path = dataset.folder / "metadata.csv"
    if path.exists() and not path.is_symlink():
        own = {key(picture.name).casefold() for picture in dataset.pictures}
        # A table that cannot be understood is kept as .bak all the same.
        with contextlib.suppress(LoomError):
            rows += [(name, caption) for name, caption in read_metadata(path)[0].items() if name.casefold() not in own]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([("filename", "prompt"), *rows])
    return out.getvalue()


def _sidecar(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".txt"))


def _check_sidecars(dataset: Dataset) -> None:
    seen: dict[str, str] = {}
    for picture in dataset.pictures:
        other = seen.setdefault(_sidecar(picture.name).casefold(), picture.name)
        if other != picture.name:
            raise LoomError(f"{other} and {picture.name} would share the caption file {_sidecar(picture.name)}: "
                            "rename one of them, or set AutoCaption.save_as to metadata.csv")


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
        _write(path, data)
    except OSError as error:
        raise LoomError(f"{path.name} cannot be written into {str(path.parent)!r} ({error.strerror}): "
                        "make the folder writable, or set AutoCaption.save_as to nothing") from error


def _keep(path: Path, old: bytes) -> None:
    number = 0
    while True:
        backup = path.with_name(f"{path.name}.bak" + (f".{number}" if number else ""))
        if not backup.exists():
            return _write(backup, old)
        if backup.read_bytes() == old:
            return None
        number += 1


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name[:60]}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
