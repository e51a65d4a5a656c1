"""Names that users give: a LoRA's, a run's."""
from __future__ import annotations

from .errors import LoomError

_WINDOWS = {"con", "prn", "aux", "nul", "conin$", "conout$", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}


def check_name(name: str, what: str = "TrainLoRA.name", most: int = 120) -> str:
    """The name, which `what` takes, if it is a plain file name of up to `most` bytes on every system; raises LoomError otherwise.

    One level of sub-folders would leave ComfyUI's loras folder to chance, so separators are refused too.
    """
    rule = what + ' takes a plain file name without any of \\ / : * ? " < > | or control characters'
    if not isinstance(name, str) or not name.strip():
        raise LoomError(f"name {name!r} is empty: {rule}, for example my_lora")
    bad = sorted({c for c in name if c in '\\/:*?"<>|' or ord(c) < 32 or ord(c) == 127})
    if bad:
        raise LoomError(f"name {name!r} has {' '.join(repr(c) for c in bad)}: {rule}; leave them out")
    if not name.isprintable():
        raise LoomError(f"name {name!r} holds characters that cannot be shown: {rule}; type it again")
    if name.strip(" .") != name:
        raise LoomError(f"name {name!r} starts or ends with a dot or a space, which Windows drops: remove it")
    if name.split(".")[0].strip().lower() in _WINDOWS:
        raise LoomError(f"name {name!r} is reserved by Windows: choose another, for example my_{name.split('.')[0].lower()}")
    if len(name.encode("utf-8")) > most:
        raise LoomError(f"name {name[:20]!r}... is {len(name.encode('utf-8'))} bytes long: {what} takes up to {most}")
    return name
