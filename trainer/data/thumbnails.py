"""Small pictures for the page, made once and kept in a folder."""
from __future__ import annotations

import contextlib
import hashlib
import io
import os
import uuid
from pathlib import Path

from PIL import Image, features

from ..errors import LoomError
from .pictures import open_picture

SIDES = (192, 384, 768)  # pixels of the longer side: a grid, a sharp screen's grid, a look from near
FORMAT = "WEBP" if features.check("webp") else "JPEG"
KIND = f"image/{FORMAT.lower()}"


def thumbnail_key(path: Path, side: int) -> str:
    """Stands for the file as it is now: its real path, size and time. Raises LoomError where it is gone or `side` is none of SIDES."""
    if side not in SIDES:
        raise LoomError(f"size {side} is none of {', '.join(map(str, SIDES))}: ask for one of them")
    try:
        stat = path.stat()
    except OSError as error:
        raise LoomError(f"picture {path.name!r} is not there ({error.strerror}): open the folder again") from error
    return hashlib.sha256(f"{os.path.realpath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\0{side}".encode("utf-8", "surrogatepass")).hexdigest()


def thumbnail(path: Path, side: int, kept: Path) -> bytes:
    """The picture, at most `side` pixels long, as bytes of KIND; from the folder `kept` where it was made before. Raises LoomError."""
    file = kept / f"{thumbnail_key(path, side)}.{FORMAT.lower()}"
    with contextlib.suppress(OSError):
        data = file.read_bytes()
        if data:
            return data
    image = open_picture(path)
    image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    out = io.BytesIO()
    image.save(out, FORMAT, quality=80, **({"method": 2} if FORMAT == "WEBP" else {}))
    temporary = file.with_name(f".{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):  # a full disk costs speed alone
        kept.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(out.getvalue())
        os.replace(temporary, file)
    return out.getvalue()
