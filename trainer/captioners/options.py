"""What the captioning methods are told: one description for the node's widgets and the command line's options."""
from __future__ import annotations

from dataclasses import dataclass

from ..errors import LoomError

_RANGES = {"max_length": (1, 4096), "group_max_tags": (1, 100), "group_threshold": (0, 1), "general_threshold": (0, 1), "character_threshold": (0, 1)}


@dataclass(frozen=True)
class CaptionOptions:
    """Each method reads its own. Thresholds are probabilities, max_length counts tokens. Raises LoomError for a value out of its range."""

    labels: str = ""  # clip_tags: as labels.parse_groups reads them
    group_max_tags: int = 3
    group_threshold: float = 0.1
    instruction: str = ""  # vision_llm: "" stands for the model's own way of captioning
    max_length: int = 256  # coca, vision_llm
    general_threshold: float = 0.35  # wd14: the values that its author's own demo begins with
    character_threshold: float = 0.85
    character_tags: bool = True
    rating_tags: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            kinds, said = (int, "whole number") if isinstance(low, int) and high > 1 else ((int, float), "number")
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                raise LoomError(f"{name} {value!r} is no {said} from {low} to {high}: AutoCaption.{name} takes {low} to {high}")
