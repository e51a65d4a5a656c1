"""What of a picture counts: by its transparency, or by a mask file whose white counts."""
from __future__ import annotations

import hashlib
from pathlib import Path

from .captions import listed
from .pictures import open_mask

MASKS = ("none", "alpha", "files")


def mask_files(names: list[str]) -> dict[str, str]:
    """{picture: its mask} of those that have one: cat-masklabel.png (OneTrainer) or cat.mask.png beside cat.jpg, or masks/cat.png."""
    stems = {name.rsplit(".", 1)[0].casefold(): name for name in names}
    found = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        stem = file.rsplit(".", 1)[0].casefold()
        for inside in (f"{folder}/{stem}" if folder else stem, f"{folder}/masks/{stem}" if folder else f"masks/{stem}"):
            here = "/masks/" in f"/{inside}"
            for spelled in [inside.casefold()] if here else [f"{inside.casefold()}-masklabel", f"{inside.casefold()}.mask"]:
                if spelled in stems and stems[spelled] != name and "masks" not in folder.casefold().split("/"):
                    found.setdefault(name, stems[spelled])
    return found


def checked_mask(mask: Path | None, picture: Path, digest: str) -> tuple[Path | None, str]:
    """(path, sha256) of the mask that may be there, read whole; (None, "") where there is none. Raises what Pillow raises.

    `mask` is the picture itself where its transparency is meant; `digest` is the picture's."""
    if mask is None or open_mask(mask, alpha=mask == picture) is None:
        return None, ""
    return mask, digest if mask == picture else hashlib.sha256(mask.read_bytes()).hexdigest()


def without_masks(names: list[str], total: int) -> tuple[str, ...]:
    """A warning that `names` of `total` pictures have no mask."""
    return (f"{len(names)} of {total} pictures have no mask and count whole: {listed(names)}",) if names else ()
