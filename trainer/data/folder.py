"""A folder of pictures and captions: what is in it, what of it can be trained on, and what was left out and why.

Knows nothing of models or latents. Nothing outside the folder is ever read, and a broken file never stops the rest.
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from ..errors import LoomError
from . import captions as caption_files
from .captions import METADATA, SIDECARS, SOURCES, listed
from .masks import MASKS, find_mask, mask_files, without_masks
from .pictures import SUFFIXES, decode, open_picture, reason

__all__ = ["Dataset", "Picture", "fingerprint", "list_captions", "open_picture", "read_dataset"]

@dataclass(frozen=True)
class Picture:
    """One picture that can be trained on. `name` is relative to the folder; width and height are those after EXIF rotation."""

    path: Path
    name: str
    width: int
    height: int
    caption: str
    digest: str
    mask: Path | None = None  # what of it counts: a file of its own, or the picture itself for its transparency
    mask_digest: str = ""


def word_pattern(word: str) -> re.Pattern[str]:
    """Finds the word, but not inside another: Chinese and Japanese put no spaces, so their characters bound a word."""
    letter = r"[^\W\u2e80-\U0003ffff]"
    return re.compile(rf"(?<!{letter}){re.escape(word)}(?!{letter})", re.IGNORECASE)


@dataclass(frozen=True)
class Dataset:
    """Pictures with captions, and the settings that say how they are trained on.

    caption_source is the one really used: metadata.csv, metadata.jsonl, sidecar, folder name, none, mixed, or
    given (by `with_captions`).
    """

    folder: Path
    pictures: tuple[Picture, ...]
    resolution: int
    min_size: int
    trigger_word: str
    repeats: int
    flip: bool
    buckets: bool
    caption_source: str
    left_out: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    masks: str = "none"

    def caption(self, picture: Picture) -> str:
        """What the model is taught: the picture's caption, with the trigger word in front unless it has that word already."""
        if not self.trigger_word or not picture.caption:
            return picture.caption or self.trigger_word
        if word_pattern(self.trigger_word).search(picture.caption):
            return picture.caption
        return f"{self.trigger_word}, {picture.caption}"

    def digest(self) -> str:
        """sha256 over everything that changes a training: the pictures' bytes and order, their captions, the settings."""
        rows = [(picture.digest, self.caption(picture), *filter(None, [picture.mask_digest])) for picture in self.pictures]
        settings = {"resolution": self.resolution, "repeats": self.repeats, "flip": self.flip, "buckets": self.buckets}
        return hashlib.sha256(json.dumps([rows, settings], sort_keys=True).encode()).hexdigest()

    def with_captions(self, captions: dict[str, str]) -> Dataset:
        """A copy with the captions of the named pictures replaced. Raises LoomError for a name that is not in it."""
        unknown = sorted(set(captions) - {picture.name for picture in self.pictures})
        if unknown:
            raise LoomError(f"captions name {listed(unknown)}, which the dataset does not have: use the names of Dataset.pictures")
        pictures = tuple(dataclasses.replace(p, caption=captions.get(p.name, p.caption)) for p in self.pictures)
        if pictures == self.pictures:
            return self
        stale = _captionless(self.pictures, self.trigger_word)
        warnings = tuple(w for w in self.warnings if w not in stale) + _captionless(pictures, self.trigger_word)
        kept = any(p.caption and p.name not in captions for p in self.pictures)
        return dataclasses.replace(self, pictures=pictures, warnings=warnings, caption_source="mixed" if kept else "given")

    def report(self) -> str:
        """What was found, in lines to read."""
        captioned = sum(bool(p.caption) for p in self.pictures)
        widths, heights = [p.width for p in self.pictures], [p.height for p in self.pictures]
        count, home = len(self.pictures), self.folder.name or self.folder
        lines = [
            f"{count} pictures x {self.repeats} repeats = {count * self.repeats} per epoch, from {home}",
            f"captions: {captioned} of {count} pictures, source: {self.caption_source}",
            f"trigger word: {self.trigger_word or 'none'}",
            f"sizes: {min(widths)} to {max(widths)} wide, {min(heights)} to {max(heights)} high; trained at {self.resolution}, "
            f"{'in buckets by aspect ratio' if self.buckets else 'cropped to squares'}{', each also mirrored' if self.flip else ''}",
            *([f"masks: {sum(p.mask is not None for p in self.pictures)} of {count} pictures, from {self.masks}"] if self.masks != "none" else []),
        ] if self.pictures else [f"no pictures, from {home}"]
        if self.left_out:
            lines.append(f"left out: {len(self.left_out)}")
            lines += [f"  {name}: {why}" for name, why in self.left_out[:20]]
            lines += [f"  and {len(self.left_out) - 20} more"] if len(self.left_out) > 20 else []
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])


def read_dataset(folder: str | Path, *, resolution: int = 512, min_size: int = 512, caption_source: str = "auto", trigger_word: str = "",
                 repeats: int = 1, flip: bool = False, buckets: bool = True, masks: str = "none", poll: Callable[[], object] | None = None) -> Dataset:
    """Read and really decode every picture under `folder`; `poll` is called before each and may raise.

    Sizes are in pixels. Raises LoomError for a setting out of its range, for a folder that is missing or holds no
    picture to train on, and for a metadata file that cannot be understood (with its line).
    """
    _check("resolution", resolution, 64, 4096)
    _check("min_size", min_size, 0, 65536)
    _check("repeats", repeats, 1, 1000)
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
    texts, source_of, warnings = _captions(folder, files, names, caption_source)

    pictures, broken, small = [], [], []
    for name in names:
        if poll is not None:
            poll()
        try:
            data = files[name].read_bytes()
            width, height = decode(data).size
        except Exception as error:  # Pillow's readers raise nearly every kind there is, and one file must not stop the rest
            broken.append((name, reason(name, error)))
            continue
        if min(width, height) < min_size:
            small.append((name, f"{width}x{height} is below min_size {min_size}", min(width, height)))
            continue
        digest = hashlib.sha256(data).hexdigest()
        try:
            mask = find_mask(masks, files, name, mask_of.get(name), digest)
        except Exception as error:
            broken.append((mask_of.get(name, name), f"as a mask: {reason(name, error)}"))
            mask = None, ""
        pictures.append(Picture(files[name], name, width, height, texts.get(name, ""), digest, *mask))

    if not pictures and small:
        largest = max(side for _, _, side in small)
        also = f" and {len(broken)} cannot be read" if broken else ""
        raise LoomError(f"all {len(small)} pictures in {str(folder)!r} are below min_size {min_size}{also}: the largest shorter side is {largest}; "
                        f"lower LoadDataset.min_size to {largest} or less, or add larger pictures")
    if not pictures:
        shown = "; ".join(f"{name}: {why}" for name, why in broken[:5])
        raise LoomError(f"none of the {len(broken)} pictures in {str(folder)!r} can be read ({shown}): replace them by intact files")
    used = {source_of[p.name] for p in pictures if p.caption}
    source = "none" if not used else used.pop() if len(used) == 1 else "mixed"
    trigger_word = trigger_word.strip()
    left_out += sorted([(name, why) for name, why, _ in small] + broken, key=lambda row: _natural(row[0]))
    warnings += _captionless(pictures, trigger_word) + without_masks([p.name for p in pictures if p.mask is None], len(pictures), masks, len(mask_of))
    return Dataset(folder, tuple(pictures), resolution, min_size, trigger_word, repeats, bool(flip), bool(buckets), source,
                   tuple(left_out), warnings, masks)


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
                digest.update(path.read_bytes() if text else b"")
    except (OSError, TypeError, ValueError):
        return "unreadable"
    return digest.hexdigest()


def list_captions(folder: str | Path, caption_source: str = "auto") -> tuple[dict[str, Path], dict[str, str], dict[str, str], tuple[str, ...]]:
    """({picture: path}, {picture: caption}, {picture: where that came from}, warnings), in natural order, without opening a picture."""
    files, _ = _walk(Path(folder))
    names = [name for name in files if name.lower().endswith(SUFFIXES)]
    masks = set(mask_files(names).values())
    names = [name for name in names if name not in masks]
    return {name: files[name] for name in names}, *_captions(Path(folder), files, names, caption_source)


def _check(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise LoomError(f"{name} is {value!r}, which is no whole number: LoadDataset.{name} takes {low} to {high}")
    if not low <= value <= high:
        raise LoomError(f"{name} {value} is {'below' if value < low else 'above'} {low if value < low else high}: "
                        f"LoadDataset.{name} takes {low} to {high}")


def _natural(name: str) -> tuple:
    """2.png before 10.png, and A beside a."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.casefold())], name


def _walk(folder: Path) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """({name relative to the folder: path} in natural order, what was left out and why). Hidden files and folders do not count."""
    root = os.path.realpath(folder)
    files: dict[str, Path] = {}
    left_out: list[tuple[str, str]] = []
    pending, seen = [""], {root}
    while pending:
        inside = pending.pop()
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
            real = os.path.realpath(entry.path)
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
    return {name: files[name] for name in sorted(files, key=_natural)}, sorted(left_out, key=lambda row: _natural(row[0]))


def _captions(folder: Path, files: dict[str, Path], names: list[str], caption_source: str) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
    """({name: caption}, {name: where it came from}, warnings). Each source answers for the pictures that those before it left empty."""
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
    if caption_source in ("auto", "folder name"):
        empty = [name for name in names if not texts.get(name)]
        # The real path, for "." and links have no name of their own.
        found, notes = caption_files.from_folder_names(Path(os.path.realpath(folder)), empty, caption_source == "auto")
        texts, source_of, warnings = texts | found, source_of | dict.fromkeys(found, "folder name"), warnings + notes
    return texts, source_of, warnings


def _captionless(pictures: tuple[Picture, ...] | list[Picture], trigger_word: str) -> tuple[str, ...]:
    without = [picture.name for picture in pictures if not picture.caption]
    taught = f"the trigger word {trigger_word!r} alone" if trigger_word else "an empty caption"
    return (f"{len(without)} of {len(pictures)} pictures have no caption and are trained with {taught}: {listed(without)}",) if without else ()
