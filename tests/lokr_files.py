"""What LyCORIS saves of a LoKr network, by its formulas; tests load this file by its path."""
from __future__ import annotations

import math

import torch
from peft.tuners.lokr.layer import factorization

# LyCORIS's settings of a network, and the tensors that they lead to in the layers of the toy base
FILES = {
    "factor": ({"factor": 4}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
    "factor 8, both": ({"factor": 8, "decompose_both": True}, {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}),
    "full": ({"full_matrix": True, "factor": 8}, {"lokr_w1", "lokr_w2"}),
    "unbalanced": ({"factor": 4, "unbalanced_factorization": True}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
    "dora": ({"factor": 4, "weight_decompose": True}, {"lokr_w1", "lokr_w2_a", "lokr_w2_b", "dora_scale"}),
    "dora, both": ({"factor": 8, "decompose_both": True, "weight_decompose": True}, {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "dora_scale"}),
    "dora, full": ({"full_matrix": True, "weight_decompose": True}, {"lokr_w1", "lokr_w2", "dora_scale"}),
    "tucker": ({"factor": 4, "use_tucker": True}, {"lokr_w1", "lokr_t2", "lokr_w2_a", "lokr_w2_b"}),
}
RANK, ALPHA = 3, 2.0


def by_formula(base: torch.nn.Module, factor: int = -1, decompose_both: bool = False, full_matrix: bool = False, unbalanced_factorization: bool = False,
               weight_decompose: bool = False, use_tucker: bool = False) -> dict[str, torch.Tensor]:
    """A layer's tensors of the shapes that LyCORIS 4 gives them (modules/lokr.py), filled as after some training."""
    weight, generator = base.weight, torch.Generator().manual_seed(9)
    (j, k), (m, n) = factorization(weight.shape[0], factor), factorization(weight.shape[1], factor)
    j, k = (k, j) if unbalanced_factorization else (j, k)
    kernel = tuple(weight.shape[2:])
    window = math.prod(kernel)
    shapes = {"lokr_w1_a": (j, RANK), "lokr_w1_b": (RANK, m)} if decompose_both and RANK < max(j, m) / 2 else {"lokr_w1": (j, m)}
    if full_matrix:
        shapes["lokr_w2"] = (k, n, *kernel)
    elif use_tucker and window > 1:
        shapes |= {"lokr_t2": (RANK, RANK, *kernel), "lokr_w2_a": (RANK, k), "lokr_w2_b": (RANK, n)}
    else:
        shapes |= {"lokr_w2_a": (k, RANK), "lokr_w2_b": (RANK, n * window)}
    found = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if weight_decompose:
        lengths = weight.detach().flatten(1).norm(dim=1)
        found["dora_scale"] = (lengths * (1 + 0.2 * torch.rand(len(lengths), generator=generator))).reshape(-1, *[1] * (weight.ndim - 1))
    return {**found, "alpha": torch.tensor(ALPHA)}
