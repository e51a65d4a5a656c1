"""What a check of a dataset looks at, and what it says."""
from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..backbones.families import FAMILIES
from ..backbones.protocol import TextEncoder
from .buckets import bucket_for
from .captions import listed
from .folder import Dataset, Picture
from .measured import Look

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing. `text` says what, by which rule, and what helps; `pictures` are (name, detail); `values` are the numbers
    and words in `text`, for programs."""

    id: str
    severity: str
    text: str
    pictures: tuple[tuple[str, str], ...] = ()
    values: dict[str, Any] = field(default_factory=dict)

    def to_dict(self, most: int | None = None) -> dict[str, Any]:
        """JSON's types alone; of the pictures the first `most`."""
        shown = [{"name": name, "detail": detail} for name, detail in self.pictures[:most]]
        return {"id": self.id, "severity": self.severity, "text": self.text, "values": self.values, "count": len(self.pictures), "pictures": shown}

    def __str__(self) -> str:
        names = [f"{name} ({detail})" if detail else name for name, detail in self.pictures]
        return f"{self.severity}: {self.text}" + (f"\n  {listed(names)}" if names else "")


@dataclass(frozen=True)
class Training:
    """What is known of the training that the pictures are for; nothing, by default.

    multiple: of pixels that the model's sizes are; 0: as the families of about that resolution have it. pictures: how many the preset
    is made for, from and to; 0, 0: any, or nobody knows.
    """

    multiple: int = 0
    batch_size: int = 1
    pictures: tuple[int, int] = (0, 0)
    encoders: tuple[TextEncoder, ...] = ()


@dataclass(frozen=True)
class Seen:
    """All that a check may look at. `looks` is empty where the pictures have not been looked at."""

    dataset: Dataset
    training: Training
    looks: dict[str, Look]

    @functools.cached_property
    def multiple(self) -> int:
        return self.training.multiple or usual_multiple(self.dataset.resolution)

    @functools.cached_property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """{name: the (width, height) that the picture is trained at, of several resolutions the first}"""
        return {p.name: self._size(p.width, p.height) for p in self.dataset.pictures}

    def full_size(self, picture: Picture) -> tuple[int, int]:
        """What it would be trained at if it were large enough."""
        return self._size(picture.width * 1000, picture.height * 1000)

    def _size(self, width: int, height: int) -> tuple[int, int]:
        return bucket_for(width, height, self.dataset.resolution, self.multiple, self.dataset.buckets, self.dataset.upscale)

    def measured(self) -> Iterable[tuple[Picture, Any]]:
        """(picture, its measures) of those that have been measured."""
        return ((p, look.measures) for p in self.dataset.pictures if (look := self.looks.get(p.name)) is not None and look.measures is not None)


def usual_multiple(resolution: int) -> int:
    """The multiple of pixels of the families that are trained at about this resolution; of several the largest."""
    nearest = min((abs(math.log(resolution / family.resolution)), family.resolution) for family in FAMILIES.values())[1]
    return max(family.size_multiple for family in FAMILIES.values() if family.resolution == nearest)


def cropped(picture: Picture, size: tuple[int, int]) -> float:
    """The share of the picture's area that is cut off where it is trained at `size` = (width, height)."""
    one, other = picture.width / picture.height, size[0] / size[1]
    return 1 - min(one, other) / max(one, other)


def pictures_(count: int, be: bool = False) -> str:
    """"1 picture", "3 pictures are" """
    return f"{count} picture{'s' * (count != 1)}" + (f" {'is' if count == 1 else 'are'}" if be else "")
