"""A dataset: pictures with captions, and the settings that say how they are trained on. Plain data; it reads no file."""
from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LoomError
from .augment import Augmentation
from .buckets import sizes_for
from .captions import SOURCES, listed
from .masks import MASKS, without_masks

RANGES = {"resolution": (64, 4096), "min_size": (0, 65536), "repeats": (1, 1000)}  # of the settings that are whole numbers
_TEXTS, _SWITCHES = ("folder", "trigger_word", "more_resolutions", "augment"), ("flip", "buckets", "upscale")
_CHOICES = {"caption_source": SOURCES, "masks": tuple(MASKS)}


@dataclass(frozen=True)
class Picture:
    """One picture that can be trained on. `name` is relative to the folder; width and height are those after EXIF rotation.

    digest is the sha256 of the file's bytes, "" before the file has been read whole (see checked.py). repeats: how often its
    folder's name says that it counts, times the dataset's own.
    """

    path: Path
    name: str
    width: int
    height: int
    caption: str
    digest: str
    mask: Path | None = None  # what of it counts: a file of its own, or the picture itself for its transparency
    mask_digest: str = ""
    repeats: int = 1


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
    more_resolutions: tuple[int, ...] = ()  # each picture is trained at these too, as far as it is large enough
    upscale: bool = False  # enlarge what is smaller than its bucket
    augment: Augmentation | None = None
    name: str = ""  # what the host calls the folder
    asked_source: str = "auto"  # the caption_source that was asked for

    @property
    def resolutions(self) -> tuple[int, ...]:
        return (self.resolution, *self.more_resolutions)

    def sizes(self, picture: Picture, multiple: int) -> list[tuple[int, int]]:
        """The (width, height) that the picture is trained at, for a model that takes multiples of so many pixels."""
        return sizes_for(picture.width, picture.height, self.resolutions, multiple, self.buckets, self.upscale)

    @property
    def per_epoch(self) -> int:
        """Pictures an epoch, each of its repeats counted."""
        return self.repeats * sum(picture.repeats for picture in self.pictures)

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
        settings = {"resolution": self.resolutions, "repeats": [self.repeats, [p.repeats for p in self.pictures]], "flip": self.flip,
                    "buckets": self.buckets, "trigger_word": self.trigger_word, "upscale": self.upscale,
                    "augment": self.augment and dataclasses.asdict(self.augment)}
        return hashlib.sha256(json.dumps([rows, settings], sort_keys=True).encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """What they are trained with, by the names of LoadDataset's inputs; fit for JSON."""
        told = {name: getattr(self, name) for name in ("resolution", "min_size", "trigger_word", "repeats", "flip", "buckets", "masks", "upscale")}
        how = self.augment
        varied = f"{how.variants} variants of each picture, {how.words()}, seed {how.seed}" if how and how.active else ""
        return {"folder": self.name or self.folder.name, **told, "caption_source": self.asked_source,
                "more_resolutions": ", ".join(map(str, self.more_resolutions)), "augment": varied}

    def with_captions(self, captions: dict[str, str]) -> Dataset:
        """A copy with the captions of the named pictures replaced. Raises LoomError for a name that is not in it."""
        unknown = sorted(set(captions) - {picture.name for picture in self.pictures})
        if unknown:
            raise LoomError(f"captions name {listed(unknown)}, which the dataset does not have: use the names of Dataset.pictures")
        pictures = tuple(dataclasses.replace(p, caption=captions.get(p.name, p.caption)) for p in self.pictures)
        if pictures == self.pictures:
            return self
        stale = captionless(self.pictures, self.trigger_word)
        warnings = tuple(w for w in self.warnings if w not in stale) + captionless(pictures, self.trigger_word)
        kept = any(p.caption and p.name not in captions for p in self.pictures)
        return dataclasses.replace(self, pictures=pictures, warnings=warnings, caption_source="mixed" if kept else "given")

    def read_whole(self, pictures: list[Picture], broken: list[tuple[str, str]]) -> Dataset:
        """A copy with these pictures, after their files were read whole; `broken` are (name, why) of those that were not."""
        stale = captionless(self.pictures, self.trigger_word)
        warnings = tuple(w for w in self.warnings if w not in stale) + captionless(pictures, self.trigger_word)
        if self.masks != "none":
            warnings += without_masks([p.name for p in pictures if p.mask is None], len(pictures))
        left_out = tuple(sorted([*self.left_out, *broken], key=lambda row: natural(row[0])))
        return dataclasses.replace(self, pictures=tuple(pictures), left_out=left_out, warnings=warnings)

    def report(self) -> str:
        """What was found, in lines to read."""
        captioned = sum(bool(p.caption) for p in self.pictures)
        widths, heights = [p.width for p in self.pictures], [p.height for p in self.pictures]
        count, home = len(self.pictures), self.folder.name or self.folder
        times = f"x {self.repeats} repeats" if self.per_epoch == count * self.repeats else f"x {self.repeats} repeats x those of their folders"
        lines = [
            f"{count} pictures {times} = {self.per_epoch} per epoch, from {home}",
            f"captions: {captioned} of {count} pictures, source: {self.caption_source}",
            f"trigger word: {self.trigger_word or 'none'}",
            f"sizes: {min(widths)} to {max(widths)} wide, {min(heights)} to {max(heights)} high; trained at "
            f"{' + '.join(map(str, self.resolutions))}, {'in buckets by aspect ratio' if self.buckets else 'cropped to squares'}"
            f"{', small ones enlarged' if self.upscale else ''}{', each also mirrored' if self.flip else ''}",
            *([f"augmented: {self.augment.variants} variants of each picture, {self.augment.words()}"] if self.augment and self.augment.active else []),
            *([f"masks: {sum(p.mask is not None for p in self.pictures)} of {count} pictures, from {self.masks}"] if self.masks != "none" else []),
        ] if self.pictures else [f"no pictures, from {home}"]
        if self.left_out:
            lines.append(f"left out: {len(self.left_out)}")
            lines += [f"  {name}: {why}" for name, why in self.left_out[:20]]
            lines += [f"  and {len(self.left_out) - 20} more"] if len(self.left_out) > 20 else []
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])


def recorded(found: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that `Dataset.settings` may have given: another hand may have been at them."""
    def ours(name: str, value: Any) -> bool:
        if name in RANGES:
            return type(value) is int and RANGES[name][0] <= value <= RANGES[name][1]
        return isinstance(value, bool) if name in _SWITCHES else isinstance(value, str) and (name in _TEXTS or value in _CHOICES.get(name, ()))

    return {name: value for name, value in found.items() if ours(name, value)}


def natural(name: str) -> tuple:
    """2.png before 10.png, and A beside a."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.casefold())], name


def captionless(pictures: tuple[Picture, ...] | list[Picture], trigger_word: str) -> tuple[str, ...]:
    without = [picture.name for picture in pictures if not picture.caption]
    taught = f"the trigger word {trigger_word!r} alone" if trigger_word else "an empty caption"
    return (f"{len(without)} of {len(pictures)} pictures have no caption and are trained with {taught}: {listed(without)}",) if without else ()
