"""A folder of pictures and captions: what is in it, and what was left out and why.

Knows nothing of models or latents. Nothing outside the folder is ever read, and a broken file never stops the rest. Here
pictures are known by their headers, which is quick for thousands; checked.py reads them whole.
"""
from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ..errors import LoomError
from . import captions as caption_files
from .augment import Augmentation
from .captions import METADATA, SIDECARS, SOURCES, folder_repeats, listed
from .checked import all_broken, read_whole
from .dataset import RANGES, Dataset, Picture, captionless, natural, word_pattern
from .embedded import from_pictures
from .masks import MASKS, mask_files
from .pictures import SUFFIXES, header, open_picture, reason

__all__ = ["Dataset", "Picture", "fingerprint", "list_captions", "list_dataset", "open_picture", "read_dataset", "word_pattern"]


def read_dataset(folder: str | Path, *, poll: Callable[[], object] | None = None, progress: Callable[[int, int], object] | None = None,
                 index: Path | None = None, **settings: Any) -> Dataset:
    """`list_dataset`, and every picture read and decoded whole: what is broken is left out. `poll` is called before each and may raise,
    `progress(done, total)` after it. index: a folder that remembers which files were read already."""
    return read_whole(list_dataset(folder, poll=poll, **settings), poll, progress, index)


def list_dataset(folder: str | Path, *, resolution: int = 512, min_size: int = 512, caption_source: str = "auto", trigger_word: str = "",
                 repeats: int = 1, flip: bool = False, buckets: bool = True, masks: str = "none", more_resolutions: tuple[int, ...] = (),
                 upscale: bool = False, augment: Augmentation | None = None, poll: Callable[[], object] | None = None) -> Dataset:
    """Every picture under `folder` by its header, with its caption; digests stay empty.

    Sizes are in pixels. Raises LoomError for a setting out of its range, for a folder that is missing or holds no
    picture to train on, and for a metadata file that cannot be understood (with its line).
    """
    _check("resolution", resolution)
    more_resolutions = tuple(dict.fromkeys(r for r in more_resolutions if r != resolution))
    for more in more_resolutions:
        _check("more_resolutions", more, RANGES["resolution"], more_resolutions)
    _check("min_size", min_size)
    _check("repeats", repeats)
    if masks not in MASKS:
        raise LoomError(f"masks {masks!r} is unknown: LoadDataset.masks is one of {', '.join(MASKS)}")
    if caption_source not in SOURCES:
        raise LoomError(f"caption_source {caption_source!r} is unknown: LoadDataset.caption_source is one of {', '.join(SOURCES)}")
    if not str(folder) or not Path(folder).exists():  # Path("") would be wherever the program was started
        raise LoomError(f"folder {str(folder)!r} does not exist: choose a folder of pictures")
    folder = Path(folder)
    if not folder.is_dir():
        raise LoomError(f"folder {str(folder)!r} is a file: choose the folder that holds it")

    files, left_out = _walk(folder)
    names = [name for name in files if name.lower().endswith(SUFFIXES)]
    mask_of = mask_files(names)
    names = [name for name in names if name not in mask_of.values()]
    if not names:
        linked = f" ({left_out[0][0]}: {left_out[0][1]})" if left_out else ""
        others = f", only {len(files)} other files" if files else ""
        raise LoomError(f"folder {str(folder)!r} holds no pictures{others}{linked}: "
                        f"put pictures into it ({' '.join(s[1:] for s in SUFFIXES)})")
    headers, broken = _headers(files, names, poll)
    texts, source_of, warnings = _captions(folder, files, list(headers), {name: info for name, (_, _, info) in headers.items()}, caption_source)
    counts, counted = folder_repeats(Path(os.path.realpath(folder)), list(headers)) if caption_source in ("auto", "folder name") else ({}, ())

    pictures, small = [], []
    for name, (width, height, _) in headers.items():
        if min(width, height) < min_size:
            small.append((name, f"{width}x{height} is below min_size {min_size}", min(width, height)))
            continue
        mask = {"alpha": files[name], "files": files.get(mask_of.get(name, ""))}.get(masks)
        pictures.append(Picture(files[name], name, width, height, texts.get(name, ""), "", mask, repeats=counts.get(name, 1)))

    if not pictures and small:
        largest = max(side for _, _, side in small)
        also = f" and {len(broken)} cannot be read" if broken else ""
        raise LoomError(f"all {len(small)} pictures in {str(folder)!r} are below min_size {min_size}{also}: the largest shorter side is {largest}; "
                        f"lower LoadDataset.min_size to {largest} or less, or add larger pictures", {"min_size": largest})
    if not pictures:
        raise LoomError(all_broken(folder, broken))
    used = {source_of[p.name] for p in pictures if p.caption}
    source = "none" if not used else used.pop() if len(used) == 1 else "mixed"
    trigger_word = trigger_word.strip()
    left_out += sorted([(name, why) for name, why, _ in small] + broken, key=lambda row: natural(row[0]))
    warnings += counted + captionless(pictures, trigger_word)
    if mask_of and masks == "none":
        warnings += (f"{len(mask_of)} masks are there and not used: set LoadDataset.masks to files",)
    return Dataset(folder, tuple(pictures), resolution, min_size, trigger_word, repeats, bool(flip), bool(buckets), source,
                   tuple(left_out), warnings, masks, more_resolutions, bool(upscale), augment.check() if augment else None, asked_source=caption_source)


def _headers(files: dict[str, Path], names: list[str], poll: Callable[[], object] | None) -> tuple[dict[str, tuple], list[tuple[str, str]]]:
    """({name: (width, height, info)}, broken as (name, why))"""
    found, broken = {}, []
    for number, name in enumerate(names):
        if poll is not None and number % 256 == 255:
            poll()
        try:
            found[name] = header(files[name])
        except Exception as error:  # Pillow's readers raise nearly every kind there is, and one file must not stop the rest
            broken.append((name, reason(name, error)))
    return found, broken


_READ = 2**24  # bytes: a larger text is no caption, and its size and time must do


def fingerprint(folder: str | Path, leave_out: Collection[str] = ()) -> str:
    """sha256 over every picture's and caption file's name, size and time, and over the captions' bytes; cheap, and never raises.

    Files whose names relative to the folder are in `leave_out` do not count.
    """
    digest = hashlib.sha256()
    try:
        files, _ = _walk(Path(folder or "\0"))  # not Path(""), which is wherever the program was started
        for name, path in files.items():
            text = name.lower().endswith(SIDECARS) or name.lower() in METADATA
            if name not in leave_out and (text or name.lower().endswith(SUFFIXES)):
                stat = path.stat()
                digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
                digest.update(path.read_bytes() if text and stat.st_size <= _READ else b"")
    except (OSError, TypeError, ValueError):
        return "unreadable"
    return digest.hexdigest()


def list_captions(folder: str | Path, caption_source: str = "auto") -> tuple[dict[str, Path], dict[str, str], dict[str, str], tuple[str, ...]]:
    """({picture: path}, {picture: caption}, {picture: where that came from}, warnings), in natural order. Only where nothing else holds a
    caption is a picture opened, for what its header may hold."""
    files, _ = _walk(Path(folder))
    names = [name for name in files if name.lower().endswith(SUFFIXES)]
    masks = set(mask_files(names).values())
    names = [name for name in names if name not in masks]
    return {name: files[name] for name in names}, *_captions(Path(folder), files, names, _Infos(files), caption_source)


class _Infos(dict):
    """{picture: Pillow's `info`}, read when it is asked for; nothing of a broken one."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.files = files

    def __missing__(self, name: str) -> dict[str, object]:
        try:
            return header(self.files[name])[2]
        except Exception:  # as above: this is no place to tell of it
            return {}


def _check(name: str, value: int, within: tuple[int, int] | None = None, among: tuple[int, ...] = ()) -> None:
    """LoomError where it is out of its range; `among`: the others of its list."""
    low, high = within or RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise LoomError(f"{name} is {value!r}, which is no whole number: LoadDataset.{name} takes {low} to {high}")
    nearest = lambda number: min(max(number, low), high)
    if not low <= value <= high:
        raise LoomError(f"{name} {value} is {'below' if value < low else 'above'} {low if value < low else high}: "
                        f"LoadDataset.{name} takes {low} to {high}", {name: ", ".join(str(nearest(one)) for one in among) or nearest(value)})


def _walk(folder: Path) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """({name relative to the folder: path} in natural order, what was left out and why). Hidden files and folders do not count."""
    root = os.path.realpath(folder)
    files: dict[str, Path] = {}
    left_out: list[tuple[str, str]] = []
    pending, seen = [""], {root}
    while pending:
        inside = pending.pop()
        home = os.path.realpath(folder / inside)
        try:
            entries = list(os.scandir(folder / inside))
        except OSError as error:
            if not inside:
                raise LoomError(f"folder {str(folder)!r} cannot be read ({error.strerror}): check its permissions") from error
            left_out.append((inside, f"cannot be read ({error.strerror})"))
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            name = f"{inside}/{entry.name}" if inside else entry.name
            shown = name.encode("utf-8", "backslashreplace").decode()
            real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(home, entry.name)
            if shown != name:
                left_out.append((shown, "its name is no valid text: rename it"))
            elif not Path(real).is_relative_to(root):
                left_out.append((name, "a link that leads outside the folder is not followed"))
            elif entry.is_dir():
                if real not in seen:  # links between sub-folders may run in circles
                    seen.add(real)
                    pending.append(name)
            elif entry.is_file():
                files[name] = folder / name
            elif entry.is_symlink():
                left_out.append((name, "a link that leads nowhere"))
    return {name: files[name] for name in sorted(files, key=natural)}, sorted(left_out, key=lambda row: natural(row[0]))


def _captions(folder: Path, files: dict[str, Path], names: list[str], infos: dict[str, dict],
              caption_source: str) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
    """({name: caption}, {name: where it came from}, warnings); `infos` as Pillow has them. Each source answers for the pictures that
    those before it left empty."""
    metadata = [name for wanted in METADATA for name in sorted(files, key=lambda n: n != wanted) if name.lower() == wanted]  # Metadata.csv comes from Windows
    if caption_source == "metadata" and not metadata:
        raise LoomError(f"caption_source is metadata, but folder {str(folder)!r} holds neither {' nor '.join(METADATA)}: "
                        "add one, or choose auto or sidecar")
    texts: dict[str, str] = {}
    source_of: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    if caption_source in ("auto", "metadata"):
        nested = [name for name in files if name.lower().endswith(tuple(f"/{m}" for m in METADATA))]
        if nested:
            warnings += (f"{listed(nested)} is not read: only a metadata file in the folder itself counts",)
        for source in metadata[:1]:
            found, notes = caption_files.from_metadata(files[source], names)
            texts, source_of, warnings = found, dict.fromkeys(found, source), warnings + notes
    if caption_source in ("auto", "sidecar"):
        found, notes = caption_files.from_sidecars(files, [name for name in names if not texts.get(name)])
        texts, source_of, warnings = texts | found, source_of | dict.fromkeys(found, "sidecar"), warnings + notes
    if caption_source in ("auto", "embedded"):
        found = from_pictures({name: infos[name] for name in names if not texts.get(name)})
        texts, source_of = texts | found, source_of | dict.fromkeys(found, "embedded")
    if caption_source in ("auto", "folder name"):
        empty = [name for name in names if not texts.get(name)]
        # The real path, for "." and links have no name of their own.
        found = caption_files.from_folder_names(Path(os.path.realpath(folder)), empty, caption_source == "auto")
        texts, source_of = texts | found, source_of | dict.fromkeys(found, "folder name")
    return texts, source_of, warnings
