"""Captions for a whole dataset; knows no model, only something with `caption(image)`."""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

from PIL import Image

from ..data.captions import listed
from ..data.folder import Dataset, Picture, open_picture
from ..data.saving import check_sidecars, sidecar, write_captions
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
        check_sidecars([picture.name for picture in dataset.pictures])


def caption_dataset(dataset: Dataset, captioner: Captioner, wording: Wording | None = None, *, save_as: str = "nothing",
                    progress: Callable[[int, int], object] | None = None, poll: Callable[[], object] | None = None,
                    keep: Callable[[Dataset], object] | None = None, whole: bool = False) -> tuple[Dataset, str]:
    """(the dataset with what the captioner says as captions, a report of several lines).

    `progress(done, total)` is called after every picture, `poll()` before it and while a text is written. Where `poll` raises (an
    interrupt), or the captioner fails, the captions made so far are saved first if `save_as` asks for it. `keep` gets the dataset with
    the captions that were made, on every way out. whole: at the end captions that were kept as they are go into the file too. A picture
    that cannot be read any more is left as it is and named.
    Raises LoomError for unknown choices.
    """
    check_save_as(dataset, save_as)
    wording = wording or Wording()
    made: dict[str, str] = {}
    kept, silent, more, gone = 0, [], [], []
    try:
        for index, picture in enumerate(dataset.pictures):
            if poll is not None:
                poll()
            if wording.existing == "keep" and picture.caption:
                kept += 1
            elif (image := _opened(picture, gone)) is not None:
                words = wording.words(captioner.caption(image, poll))
                silent += [] if words else [picture.name]
                more += [len(words)] if not isinstance(words, str) and len(words) > wording.max_tags else []
                made[picture.name] = wording.caption(words, picture.caption)
            if progress is not None:
                progress(index + 1, len(dataset.pictures))
    except BaseException:  # what ends it is what is to be told, not that saving failed as well
        with contextlib.suppress(LoomError):
            _save_made(dataset, made, save_as)
        if made and keep is not None:
            keep(dataset.with_captions(made))
        raise
    saved = save_captions(dataset.with_captions(made), save_as) if whole else _save_made(dataset, made, save_as)
    if keep is not None:
        keep(dataset.with_captions(made))

    lines = [f"{len(made)} pictures captioned, {kept} kept their caption"]
    if silent:
        lines.append(f"warning: nothing was found for {len(silent)} pictures, because of thresholds or the ban list: {listed(silent)}")
    if gone:
        lines.append(f"warning: {len(gone)} pictures cannot be read any more and stay as they were: {listed(gone)}")
    if more:
        lines.append(f"{len(more)} pictures have more tags than max_tags {wording.max_tags} lets through, up to {max(more)}; the likeliest are kept")
    return dataset.with_captions(made), "\n".join(lines + ([saved] if saved else []))


def _opened(picture: Picture, gone: list[str]) -> Image.Image | None:
    try:
        return open_picture(picture.path)
    except LoomError:
        gone.append(picture.name)
        return None


def _save_made(dataset: Dataset, made: dict[str, str], save_as: str) -> str:
    """Only what was made: of the other pictures the file may say something newer by now."""
    captions = {name: caption for name, caption in made.items() if caption}
    return write_captions(dataset.folder, captions, save_as, list(captions)) if captions and save_as != "nothing" else ""


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
    check_save_as(dataset, save_as)
    captioned = {picture.name: picture.caption for picture in dataset.pictures if picture.caption}
    return write_captions(dataset.folder, captioned, save_as, [picture.name for picture in dataset.pictures])
