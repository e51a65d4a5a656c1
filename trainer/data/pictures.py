"""One picture file as pixels: decoded strictly, turned upright, made RGB. Knows nothing of folders or training."""
from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from ..errors import LoomError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
# Pillow tells formats by content: without this list an EPS called .png would start Ghostscript.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF")
_ORIENTATION, _WIDTH = 0x0112, 0x0100  # EXIF and TIFF
MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs, kept also where another extension has switched it off


def open_picture(path: str | Path) -> Image.Image:
    """The picture as RGB: first frame, turned upright by its EXIF, transparency on white. Raises LoomError where it cannot be read."""
    try:
        return decode(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise LoomError(f"picture {Path(path).name!r} is no longer there: start again, the folder is read anew") from error
    except Exception as error:
        name = Path(path).name
        raise LoomError(f"picture {name!r} cannot be used, {reason(name, error)}: replace it by an intact file") from error


def decode(data: bytes) -> Image.Image:
    """As `open_picture`, from a file's bytes. Raises whatever Pillow raises; `reason` puts that into words."""
    return as_rgb(_upright(data))


def open_mask(path: str | Path, alpha: bool) -> Image.Image | None:
    """What of a picture counts, as L: the picture's own transparency, or a mask file's brightness. None for a picture without transparency."""
    image = _upright(Path(path).read_bytes())
    if not alpha:
        return as_rgb(image).convert("L")
    return image.convert("RGBA").getchannel("A") if _transparent(image) else None


def _transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def header(path: str | Path) -> tuple[int, int, dict[str, object]]:
    """(width, height, Pillow's `info`) of the picture, turned upright by its EXIF; no pixel is decoded. Raises whatever Pillow raises."""
    with strict_pillow(), _opened(path) as image:
        try:  # getexif would decode a PNG, whose EXIF is in `info` already
            exif = Image.Exif() if image.format == "PNG" else image.getexif()
            if image.format == "PNG" and "exif" in image.info:
                exif.load(image.info["exif"])
            turned = exif.get(_ORIENTATION) in (5, 6, 7, 8)
        except Exception:  # a damaged EXIF block says nothing about the pixels
            turned = False
        if image.format == "TIFF" and image.width != image.tag_v2.get(_WIDTH, image.width):
            turned = False  # newer Pillows give it turned already
        return (image.height, image.width, image.info) if turned else (image.width, image.height, image.info)


def _opened(source: str | Path | io.BytesIO) -> Image.Image:
    """The file by its content alone, not too large, not decoded yet."""
    Image.init()
    image = Image.open(source, formats=[f for f in FORMATS if f in Image.OPEN])
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Image.DecompressionBombError(f"{image.width}x{image.height} is above {MAX_PIXELS} pixels: make it smaller")
    return image


def _upright(data: bytes) -> Image.Image:
    with strict_pillow(), _opened(io.BytesIO(data)) as image:
        image.load()
        try:
            return ImageOps.exif_transpose(image)
        except Exception:  # as above
            return image.copy()


def reason(name: str, error: Exception) -> str:
    """Why the file `name` cannot be decoded, in words for a report."""
    if isinstance(error, Image.UnidentifiedImageError):
        known = not name.lower().endswith(".avif") or "AVIF" in Image.OPEN
        return "it is no picture, whatever its name says" if known else "this Pillow cannot read AVIF, update it to 11.3 or newer"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large ({error})"
    return f"broken ({str(error) or type(error).__name__})"


_strictness = contextlib.ExitStack()
_strict, _strict_lock = 0, threading.Lock()


@contextlib.contextmanager
def strict_pillow() -> Iterator[None]:
    """Truncated files are errors, also where another extension has told Pillow to pad them; large files are ours to refuse.
    Pillow's switches are everyone's: several threads may be inside, the first in sets them, the last out puts them back."""
    global _strict
    with _strict_lock:
        if not _strict:
            _strictness.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            _strictness.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _strict += 1
    try:
        yield
    finally:
        with _strict_lock:
            _strict -= 1
            if not _strict:
                _strictness.close()


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture as RGB: 16 bits scaled to 8, transparency on white."""
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip these at 255 instead of scaling them
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        if image.mode != "F":
            values = values / 65535 * 255  # "I" holds 16 bits too: it is how older Pillows open a 16-bit PNG
        elif values.max() <= 1:
            values = values * 255
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if _transparent(image):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
