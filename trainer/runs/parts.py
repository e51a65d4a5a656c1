"""A layer's LoRA as the parts that diffusers holds it in, and back: q, k and v are layers of their own, the last norm's halves are changed over."""
from __future__ import annotations

import torch

from ..backbones.families import Named
from ..errors import LoomError

Tensors = dict[str, torch.Tensor]  # of one layer, by suffix
DOWN, UP, SCALE = "lora_down.weight", "lora_up.weight", "dora_scale"
MAGNITUDE = "magnitude"  # PEFT's, which divides by |W + BA| where ComfyUI's loader divides by |W|


def turned(rows: torch.Tensor, columns: int, named: Named) -> torch.Tensor:
    """The rows with their halves changed over, where diffusers has them so; `columns` of the layer's weight."""
    return rows.roll(len(rows) // 2, 0) if named.last_swapped and len(rows) == 2 * columns else rows


def divided(tensors: Tensors, named: Named) -> list[Tensors]:
    """Those of each of `named.theirs`; lora_down is the same in all. Magnitudes stay in the rows' own order, as ComfyUI takes them."""
    tensors = {**tensors, UP: turned(tensors[UP], tensors[DOWN].shape[1], named)}
    rows, start, found = len(tensors[UP]), 0, []
    for share in named.shares:
        part = slice(start, start := start + rows * share // sum(named.shares))
        found.append({name: value if name in (DOWN, "alpha") else value[part] for name, value in tensors.items()})
    return found


def multiplied_out(tensors: Tensors, what: str) -> Tensors:
    """A LoKr's second factor as one matrix where it is in Tucker's form: ComfyUI's loader leaves such layers out (torch.kron refuses the view that it
    makes of them), so that nothing can be saved in it. LoomError, beginning with `what`, where its parts do not fit together."""
    if "lokr_t2" not in tensors or not {"lokr_w2_a", "lokr_w2_b"} <= tensors.keys():
        return tensors
    core, a, b = (tensors[name].float() for name in ("lokr_t2", "lokr_w2_a", "lokr_w2_b"))
    try:
        w2 = torch.einsum("ij...,jr,ip->pr...", core, b, a).contiguous()
    except RuntimeError as error:
        raise LoomError(f"{what} has lokr_t2 {tuple(core.shape)}, lokr_w2_a {tuple(a.shape)} and lokr_w2_b {tuple(b.shape)}, which do not fit together: "
                        "choose a whole file") from error
    if "lokr_w1_b" not in tensors and "alpha" in tensors:  # without a factor of low rank readers know no scale
        w2 *= tensors["alpha"].item() / len(b)
    return {**{name: t for name, t in tensors.items() if name not in ("lokr_t2", "lokr_w2_a", "lokr_w2_b")}, "lokr_w2": w2}


def joined(given: dict[int, Tensors], named: Named, what: str) -> Tensors:
    """One layer's tensors from those of its parts by their place; a part that is not given changes nothing. Parts that read their input differently
    stay apart, so that the rank is the sum of theirs. LoomError, beginning with `what`, where they cannot be put together."""
    if len(named.theirs) == 1 and not named.last_swapped:
        return given[0]
    if not all({DOWN, UP} <= part.keys() <= {DOWN, UP, "alpha", SCALE, MAGNITUDE} for part in given.values()):
        raise LoomError(f"{what} has {', '.join(sorted(set().union(*given.values())))} for parts of a layer: LoRA and DoRA can be put together; "
                        "choose such a file, or one that names the layer whole")
    if any(len({name in given.get(i, {}) for i in range(len(named.theirs))}) > 1 for name in (SCALE, MAGNITUDE)):
        raise LoomError(f"{what} has a DoRA of {len(given)} of the {len(named.theirs)} parts of a layer: choose a file that has all of them")
    downs = {i: part[DOWN].float() for i, part in given.items()}
    ups = {i: part[UP].float() * (part["alpha"].item() / len(downs[i]) if "alpha" in part else 1.0) for i, part in given.items()}
    first = next(iter(downs))
    one, row = downs[first], len(ups[first]) // named.shares[first]
    if any(downs[i].shape[1:] != one.shape[1:] or ups[i].shape[1:] != (len(downs[i]),) or len(ups[i]) != row * named.shares[i] for i in ups):
        shapes = {named.theirs[i]: (tuple(ups[i].shape), tuple(downs[i].shape)) for i in ups}
        raise LoomError(f"{what} has parts of a layer that do not fit together ({shapes}): choose a LoRA of this model's family")
    shared = all(down.shape == one.shape and torch.equal(down, one) for down in downs.values())
    down = one if shared else torch.cat(list(downs.values()))
    up, start, column = one.new_zeros(row * sum(named.shares), len(down)), 0, 0
    for i, share in enumerate(named.shares):
        if i in ups:
            up[start:start + row * share, column:column + len(downs[i])] = ups[i]
            column += 0 if shared else len(downs[i])
        start += row * share
    magnitudes = {name: torch.cat([given[i][name] for i in sorted(given)]) for name in (SCALE, MAGNITUDE) if name in given[first]}
    if MAGNITUDE in magnitudes:
        magnitudes[MAGNITUDE] = turned(magnitudes[MAGNITUDE], one.shape[1], named)
    return {DOWN: down, UP: turned(up, one.shape[1], named), "alpha": torch.tensor(float(len(down))), **magnitudes}
