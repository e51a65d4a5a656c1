"""The one kind of error that users are meant to read."""
from __future__ import annotations


class LoomError(ValueError):
    """Bad input or a run that cannot go on. The message gives the value, the rule and the remedy."""
