"""The one kind of error that users are meant to read."""
from __future__ import annotations

from typing import Any


class LoomError(ValueError):
    """Bad input or a run that cannot go on. The message gives the value, the rule and the remedy.

    fix: {input: value} of the nodes that would mend it, where that can be said; a host may offer to set them.
    """

    def __init__(self, message: str, fix: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.fix = fix or {}
