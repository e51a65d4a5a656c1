"""How a layer's output comes out of tensors that are kept anyway: who needs it in backward keeps those, and makes it again.

A recipe is a remark on a tensor. Whoever does not read it keeps the tensor itself, as ever.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

WIDE = 320  # channels, SD's fewest: in narrower networks a tensor is kept as it is, for making it again takes longer than the little memory is worth


@dataclass(frozen=True)
class Recipe:
    """`make(*tensors)` gives the tensor once more, bit for bit; it may ask for weights. Tensors go through `save_for_backward`, never beside it,
    so that torch frees and recomputes them as it does all others."""

    tensors: tuple[torch.Tensor, ...]
    make: Callable[..., torch.Tensor]


def note(tensor: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """The tensor with that remark, where a backward may come that reads it."""
    if tensor.requires_grad:
        tensor.loom_recipe = recipe, tensor._version
    return tensor


def recipe(tensor: torch.Tensor) -> Recipe:
    """What is to be kept of the tensor: its recipe's, or itself where it has none or has been changed since."""
    found = getattr(tensor, "loom_recipe", None)
    return found[0] if found is not None and found[1] == tensor._version else Recipe((tensor,), _itself)


def then(source: Recipe, function: Callable[[torch.Tensor], torch.Tensor]) -> Recipe:
    """What `function` makes of what the recipe makes."""
    make = source.make  # never `source`, whose tensors would be kept for as long as the function
    return Recipe(source.tensors, lambda *kept: function(make(*kept)))


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
