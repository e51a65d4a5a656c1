"""The quality report: what a careful trainer would say of a dataset before training on it. Knows no server.

    print(examine(read_dataset("pictures")))
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import caption_checks, picture_checks
from .findings import SEVERITIES, Finding, Seen, Training, cropped
from .folder import Dataset
from .measured import measure_all

__all__ = ["Bucket", "Finding", "Report", "Training", "about_training", "examine", "look", "whole_text"]

# In the order of a run: what is there, what it looks like, how it is trained, what is said of it.
CHECKS = (picture_checks.left_out, picture_checks.reading, picture_checks.copies, picture_checks.blurred, picture_checks.exposure, picture_checks.small,
          picture_checks.cropping, picture_checks.batches, caption_checks.missing, caption_checks.identical, caption_checks.trigger,
          caption_checks.long_captions, caption_checks.how_many)
OF_THE_TRAINING = (picture_checks.batches, caption_checks.long_captions, caption_checks.how_many)
MEASURED = (256, 1024)  # the side of the area that pictures are measured at is the resolution, within these


@dataclass(frozen=True)
class Bucket:
    """A size that pictures are trained at; `cropped` is the share of their area that is cut off, on average, and at most."""

    width: int
    height: int
    pictures: int
    cropped: float
    most_cropped: float


@dataclass(frozen=True)
class Report:
    """What was found, worst first. `str()` is the text for people, `to_dict()` the JSON for programs."""

    folder: str
    pictures: int
    resolution: int
    buckets: tuple[Bucket, ...]
    findings: tuple[Finding, ...]

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def summary(self) -> str:
        """"20 pictures: 1 error, 2 warnings, 3 notes" """
        counts = [f"{n} {severity}{'s' * (n != 1)}" for severity in SEVERITIES if (n := self.count(severity))]
        return f"{self.pictures} picture{'s' * (self.pictures != 1)}: {', '.join(counts) or 'nothing to complain of'}"

    def to_dict(self, most: int | None = None) -> dict[str, Any]:
        """{version, folder, pictures, resolution, counts {severity: n}, buckets, findings}; of each finding's pictures the first `most`."""
        return {"version": 1, "folder": self.folder, "pictures": self.pictures, "resolution": self.resolution,
                "counts": {severity: self.count(severity) for severity in SEVERITIES},
                "buckets": [vars(bucket) for bucket in self.buckets], "findings": [finding.to_dict(most) for finding in self.findings]}

    def __str__(self) -> str:
        rows = [f"  {b.width}x{b.height}: {b.pictures}" + (f", {b.cropped:.0%} cropped away" if b.cropped >= 0.005 else "") for b in self.buckets]
        return "\n".join([self.summary(), "buckets:" if rows else "", *rows, *map(str, self.findings)])


def examine(dataset: Dataset, training: Training | None = None, *, cache: Path | None = None, progress: Callable[[int, int], object] | None = None,
            poll: Callable[[], object] | None = None) -> Report:
    """The report on a Dataset. Every picture is decoded once, in a few threads; `cache` is a folder that remembers what was measured.

    `poll()` is called before each picture and may raise, `progress(done, total)` after each.
    """
    seen = look(dataset, training, cache=cache, progress=progress, poll=poll)
    return Report(dataset.folder.name, len(dataset.pictures), dataset.resolution, _buckets(seen), _found(seen, CHECKS))


def look(dataset: Dataset, training: Training | None = None, *, cache: Path | None = None, progress: Callable[[int, int], object] | None = None,
         poll: Callable[[], object] | None = None) -> Seen:
    """The dataset with its pictures measured."""
    return Seen(dataset, training or Training(), measure_all(dataset, min(max(dataset.resolution, MEASURED[0]), MEASURED[1]), cache, progress, poll))


def whole_text(dataset: Dataset, report: Report) -> str:
    """What the dataset is, and then the report on it; what both would say is said once."""
    return f"{dataclasses.replace(dataset, left_out=(), warnings=()).report()}\n\n{report}"


def about_training(dataset: Dataset, training: Training) -> tuple[Finding, ...]:
    """What only shows once the training is known: batches, captions' lengths, the number of pictures. No picture is read."""
    return _found(Seen(dataset, training, {}), OF_THE_TRAINING)


def _found(seen: Seen, checks: Iterable[Callable[[Seen], Iterable[Finding]]]) -> tuple[Finding, ...]:
    return tuple(sorted((finding for check in checks for finding in check(seen)), key=lambda finding: SEVERITIES.index(finding.severity)))


def _buckets(seen: Seen) -> tuple[Bucket, ...]:
    """From tall to wide."""
    shares: dict[tuple[int, int], list[float]] = {}
    for picture in seen.dataset.pictures:
        for size in seen.dataset.sizes(picture, seen.multiple):
            shares.setdefault(size, []).append(cropped(picture, size))
    return tuple(Bucket(w, h, len(found), round(sum(found) / len(found), 4), round(max(found), 4))
                 for (w, h), found in sorted(shares.items(), key=lambda row: (row[0][0] / row[0][1], row[0])))
