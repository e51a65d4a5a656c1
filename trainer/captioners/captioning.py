"""Captions for a whole dataset; knows no model, only something with `tags(image, labels, max_tags, threshold)`."""
from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from PIL import Image

from ..data.captions import listed
from ..data.folder import Dataset, open_picture
from ..data.saving import check_sidecars, sidecar, write_captions
from ..errors import LoomError

EXISTING = ("keep", "replace", "append")
SAVE_AS = ("nothing", "metadata.csv", "sidecar .txt")
# what a first-time user starts from: one line a group
LABELS = """photo, drawing, painting, 3d render
portrait, full body, close-up, landscape, still life
person, woman, man, child, animal, cat, dog, bird, building, city, forest, food, car
red, orange, yellow, green, blue, purple, pink, black and white
daylight, night, studio light, sunset"""


class Captioner(Protocol):
    """What a captioning method must do."""

    def tags(self, image: Image.Image, labels: list[str], max_tags: int, threshold: float) -> list[str]:
        """Labels that fit the picture, best first."""


def parse_labels(text: str) -> list[str]:
    """Labels from lines and commas (Chinese ones too), each once, in order; lines that begin with # are skipped. Raises LoomError for none."""
    lines = [line for line in text.replace("\uff0c", ",").replace("\u3001", ",").splitlines() if not line.lstrip().startswith("#")]
    labels = {}
    for label in (" ".join(part.split()) for line in lines for part in line.split(",")):
        if label:
            labels.setdefault(label.casefold(), label)
    if not labels:
        raise LoomError("labels is empty: write the words to choose from into AutoCaption.labels, one a line or separated by commas")
    return list(labels.values())


def caption_dataset(dataset: Dataset, tagger: Captioner, *, labels: list[str], max_tags: int = 8, threshold: float = 0.05, prefix: str = "",
                    suffix: str = "", existing: str = "keep", save_as: str = "nothing", progress: Callable[[int, int], object] | None = None,
                    poll: Callable[[], object] | None = None) -> tuple[Dataset, str]:
    """(the dataset with tags as captions, a report of several lines).

    `progress(done, total)` is called after every picture, `poll()` before it. Where `poll` raises (an interrupt), or a
    picture fails, the captions made so far are saved first if `save_as` asks for it. Raises LoomError for unknown choices.
    """
    for name, value, choices in (("existing", existing, EXISTING), ("save_as", save_as, SAVE_AS)):
        if value not in choices:
            raise LoomError(f"{name} {value!r} is unknown: AutoCaption.{name} is one of {', '.join(choices)}")
    if isinstance(max_tags, bool) or not isinstance(max_tags, int) or not 1 <= max_tags <= 1000:
        raise LoomError(f"max_tags {max_tags!r} is not a whole number from 1 to 1000: AutoCaption.max_tags takes 1 to 1000")
    if save_as == "sidecar .txt":
        check_sidecars([picture.name for picture in dataset.pictures])  # before minutes of work, not after them

    made: dict[str, str] = {}
    kept, untagged, saved = 0, [], ""
    try:
        for index, picture in enumerate(dataset.pictures):
            if poll is not None:
                poll()
            if existing == "keep" and picture.caption:
                kept += 1
            else:
                tags = tagger.tags(open_picture(picture.path), labels, max_tags, threshold)
                untagged += [] if tags else [picture.name]
                made[picture.name] = _join(picture.caption if existing == "append" else "", tags, prefix, suffix)
            if progress is not None:
                progress(index + 1, len(dataset.pictures))
    finally:
        if made:
            saved = save_captions(dataset.with_captions(made), save_as)

    lines = [f"{len(made)} pictures captioned, {kept} kept their caption"]
    if untagged:
        lines.append(f"warning: no label fits {len(untagged)} pictures well enough (probability {threshold:g}): {listed(untagged)}")
    return dataset.with_captions(made), "\n".join(lines + ([saved] if saved else []))


def written_files(dataset: Dataset, save_as: str) -> set[str]:
    """The names of the files, relative to the folder, that saving may write."""
    if save_as == "nothing":
        return set()
    return {save_as} if save_as == "metadata.csv" else {sidecar(picture.name) for picture in dataset.pictures}


def save_captions(dataset: Dataset, save_as: str) -> str:
    """Write the captions (without the trigger word) into the dataset's folder; returns a line that says where.

    UTF-8, under a temporary name and then renamed. A file that would change is first kept as <name>.bak. Rows of a
    metadata.csv for pictures that are not in the dataset stay in it. Raises LoomError where the folder cannot be written.
    """
    if save_as == "nothing":
        return ""
    if save_as not in SAVE_AS:
        raise LoomError(f"save_as {save_as!r} is unknown: AutoCaption.save_as is one of {', '.join(SAVE_AS)}")
    captioned = {picture.name: picture.caption for picture in dataset.pictures if picture.caption}
    return write_captions(dataset.folder, captioned, save_as, [picture.name for picture in dataset.pictures])


def _join(existing: str, tags: list[str], prefix: str, suffix: str) -> str:
    """prefix, existing caption, tags and suffix with commas; what the existing caption already says is not said again."""
    prefix, existing, suffix = (text.strip(" ,\n") for text in (prefix, existing, suffix))
    said = {part.strip().casefold() for part in existing.split(",")}
    tags = [tag for tag in tags if tag.casefold() not in said]
    # Appending twice must not repeat them; they may be comma lists themselves, so whole parts are compared.
    if f"{existing},".casefold().startswith(f"{prefix},".casefold()):
        prefix = ""
    if f",{existing}".replace(", ", ",").casefold().endswith(f",{suffix}".replace(", ", ",").casefold()):
        suffix = ""
    return ", ".join(part for part in (prefix, existing, *tags, suffix) if part)
