"""Labels in groups: a user's text, and the lists that come with LoRA Loom (labels/*.txt), as what CLIP chooses among."""
from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import LoomError

LISTS = Path(__file__).with_name("labels")
ORDER = ("medium", "style", "subject", "light", "palette", "composition")
# what a first-time user starts from
DEFAULT = "\n".join(f"@{name}" for name in ORDER)
_HEAD = re.compile(r"(?P<name>[^:=@]*?)(?P<settings>(?:\s*\b(?:max|threshold)\s*=\s*[^\s:=]*)*)\s*")


@dataclass(frozen=True)
class Group:
    """Labels that compete with each other: probabilities sum to 1 within a group. None leaves a limit to the method's own."""

    name: str
    labels: tuple[str, ...]
    most: int | None = None
    threshold: float | None = None


def parse_groups(text: str) -> list[Group]:
    """The groups that a text names, in order; for a text without labels, the lists that come with LoRA Loom.

    A line is a group: `cat, dog, bird`, or with a name `animal: cat, dog`. `@light` stands for a list of ours. Lines of one label
    each are one group together. `@light max=1`, `animal max=2 threshold=0.3: cat, dog` set a group's limits. Groups of the same name
    are one; each label counts once in a group; # begins a comment. Commas may be Chinese. Raises LoomError for what it cannot read.
    """
    groups: dict[str, Group] = {}
    for line in text.replace("\uff0c", ",").replace("\u3001", ",").replace("\uff1a", ": ").splitlines():
        line = line.strip()
        if line and not line.startswith("#"):
            group = _group(line, len(groups))
            if group.labels:
                known = groups.get(group.name.casefold(), Group(group.name, ()))
                groups[group.name.casefold()] = replace(
                    known, labels=_once(known.labels + group.labels), most=group.most if known.most is None else known.most,
                    threshold=group.threshold if known.threshold is None else known.threshold)
    return list(groups.values()) if groups else parse_groups(DEFAULT)


def shipped(name: str) -> tuple[str, ...]:
    """The labels of one of our lists. Raises LoomError for a name that is none."""
    if name not in ORDER:
        raise LoomError(f"labels names the list @{name}, which there is not: the lists are @{', @'.join(ORDER)}; "
                        "write a group of your own as a line such as animal: cat, dog")
    return _labels((LISTS / f"{name}.txt").read_text(encoding="utf-8").partition("\n")[2].replace("\n", ","))


def _group(line: str, number: int) -> Group:
    if line.startswith("@"):
        name, limits = _head(line[1:].rstrip(" :"), line)
        return Group(name, shipped(name.casefold()), *limits)
    head, colon, words = line.partition(":")
    if colon and (not words or words[0].isspace()) and "," not in head:  # a colon inside a word, as of re:zero, names no group
        name, limits = _head(head, line)
        return Group(name, _labels(words), *limits)
    labels = _labels(line)
    return Group("one a line" if len(labels) == 1 else f"group {number + 1}", labels)


def _head(text: str, line: str) -> tuple[str, tuple[int | None, float | None]]:
    found = _HEAD.fullmatch(text.strip())
    settings = dict(re.findall(r"(max|threshold)\s*=\s*(\S*)", found["settings"])) if found else {}
    try:
        most = int(settings["max"]) if "max" in settings else None
        threshold = float(settings["threshold"]) if "threshold" in settings else None
        if not found or not found["name"].strip() or (most is not None and most < 1) or not 0 <= (threshold or 0) <= 1:
            raise ValueError
    except ValueError:
        raise LoomError(f"labels has the line {line[:80]!r}, whose group cannot be read: write a name, max= from 1 up and threshold= from 0 to 1, "
                        "as in animal max=2 threshold=0.3: cat, dog") from None
    return " ".join(found["name"].split()), (most, threshold)


def _labels(text: str) -> tuple[str, ...]:
    return _once(tuple(" ".join(part.split()) for part in text.split(",")))


def _once(labels: tuple[str, ...]) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for label in labels:
        found.setdefault(label.casefold(), label)
    found.pop("", None)
    return tuple(found.values())
