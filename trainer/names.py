"""Names that users give: a LoRA's, a run's."""
from __future__ import annotations

import unicodedata

from .errors import LoomError

_WINDOWS = {"con", "prn", "aux", "nul", "conin$", "conout$", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}
_MEANING = {"none", "newest"}  # what the canvas says where no run is chosen, and for the newest
_BAD = '\\/:*?"<>|'
_TURNING = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # which make a name look like another one
_INPUT, _RUN = "TrainLoRA.name", "a run's name"


def _hidden(c: str) -> bool:
    """Whether a name must not have it. Spaces of other scripts, and what joins letters and emoji, are parts of names that systems make."""
    return unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _TURNING


def _seen(name: str) -> bool:
    return any(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs") for c in name)


def _mended(name: object, most: int) -> str:
    """The nearest name that is allowed."""
    found = "".join("_" if c in _BAD else c for c in str(name) if not _hidden(c)).strip("_ .")
    found = f"my_{found}" if found.split(".")[0].strip().lower() in _WINDOWS or found.lower() in _MEANING else found
    return found.encode("utf-8")[:most].decode("utf-8", "ignore").strip(" .") or "my_lora"


def check_name(name: str, what: str = _INPUT, most: int = 120) -> str:
    """The name, which `what` takes, if it is a plain file name of up to `most` bytes on every system; raises LoomError otherwise.

    One level of sub-folders would leave ComfyUI's loras folder to chance, so separators are refused too.
    """
    fix = {"name": _mended(name, most)} if what == _INPUT else None
    rule = what + ' takes a plain file name without any of \\ / : * ? " < > | or control characters'
    if not isinstance(name, str) or not _seen(name):
        raise LoomError(f"name {name!r} is empty: {rule}, for example my_lora", fix)
    bad = sorted({c for c in name if c in _BAD or ord(c) < 32 or ord(c) == 127})
    if bad:
        raise LoomError(f"name {name!r} has {' '.join(repr(c) for c in bad)}: {rule}; leave them out", fix)
    if any(map(_hidden, name)):
        raise LoomError(f"name {name!r} holds characters that cannot be shown: {rule}; type it again", fix)
    if name.strip(" .") != name:
        raise LoomError(f"name {name!r} starts or ends with a dot or a space, which Windows drops: remove it", fix)
    if name.split(".")[0].strip().lower() in _WINDOWS:
        raise LoomError(f"name {name!r} is reserved by Windows: choose another, for example my_{name.split('.')[0].lower()}", fix)
    if name.lower() in _MEANING and what in (_INPUT, _RUN):
        raise LoomError(f"name {name!r} stands for the lack of one, or for the newest run: choose another, for example my_{name.lower()}", fix)
    if len(name.encode("utf-8")) > most:
        raise LoomError(f"name {name[:20]!r}... is {len(name.encode('utf-8'))} bytes long: {what} takes up to {most}", fix)
    return name
