"""How a run is made to fit into memory, from the dearest to the cheapest way. What is learned stays the same."""
from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Fitting:
    """checkpointing: every so many-th block is computed again in backward; 1: all of them, 0: none. split: a micro-batch is computed
    in so many parts, their gradients added up. offload: the host keeps as little of the base model on the device as it can."""

    checkpointing: int = 0
    split: int = 1
    offload: bool = False

    @property
    def together(self) -> bool:
        """Whether the captions without the concept are asked in the same forward: faster, with more memory at its height."""
        return not self.checkpointing

    def cheaper(self, batch_size: int, can_offload: bool) -> Fitting | None:
        """The next way, or None where there is none."""
        if self.checkpointing != 1:
            return replace(self, checkpointing=1 if self.checkpointing else 2)
        if self.split < batch_size:
            return replace(self, split=min(2 * self.split, batch_size))
        if can_offload and not self.offload:
            return replace(self, offload=True)
        return None

    def difference(self, before: Fitting) -> str:
        """What changed, in words."""
        words = [("gradient checkpointing in every block" if self.checkpointing == 1 else "gradient checkpointing in every second block",
                  self.checkpointing != before.checkpointing),
                 (f"each micro-batch in {self.split} parts", self.split != before.split),
                 ("base model kept off the device", self.offload != before.offload)]
        return " and ".join(text for text, changed in words if changed)
