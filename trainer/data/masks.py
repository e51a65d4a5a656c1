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


def find_mask(masks: str, files: dict[str, Path], name: str, file: str | None, digest: str) -> tuple[Path | None, str]:
    """(path, sha256) of the picture's mask; (None, "") where it has none. Raises what Pillow raises."""
    if masks == "alpha" and open_mask(files[name], True) is not None:
        return files[name], digest
    if masks == "files" and file is not None:
        open_mask(files[file], False)
        return files[file], hashlib.sha256(files[file].read_bytes()).hexdigest()
    return None, ""


def without_masks(names: list[str], total: int, masks: str, there: int) -> tuple[str, ...]:
    """Warnings: `names` of `total` pictures have no mask; `there` mask files lie in the folder."""
    if masks == "none":
        return (f"{there} masks are there and not used: set LoadDataset.masks to files",) if there else ()
    return (f"{len(names)} of {total} pictures have no mask and count whole: {listed(names)}",) if names else ()
