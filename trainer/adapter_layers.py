"""The layers that adapters put around base layers: PEFT's own where they will do, and what PEFT lacks.

One layer at a time: which of them make up an algorithm, and how files name their tensors, is in adapter_kinds.py.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.loha import layer as loha
from peft.tuners.lokr import layer as lokr
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import BaseTunerLayer

from .backbones.protocol import Fetch, Weights
from .config import AdapterConfig
from .devices import onto
from .layers.low_rank import fusible, low_rank

NAME = "default"  # of the one adapter that PEFT's layers hold


class MasterLinear(torch.nn.Linear):
    """fp32 master weights that compute in their input's dtype: no fp32 copy of the activations is kept."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias)


class MasterConv2d(torch.nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), self.bias)


class ModuleDropout(torch.nn.Dropout):
    """Ordinary dropout, and with probability `module` the whole input: the adapter is left out for that pass."""

    def __init__(self, p: float, module: float) -> None:
        super().__init__(p)
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x) if self.training and self.left_out() else super().forward(x)

    def left_out(self) -> bool:
        return bool(self.module) and torch.rand(1).item() < self.module


class Fused:
    """PEFT's layer, as one function with its base layer where that covers it: no dropout of single values, and a base whose weight is on demand."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        dropout = self.lora_dropout[NAME]
        dropping = not isinstance(dropout, torch.nn.Identity) and dropout.training
        if args or kwargs or dropping and dropout.p or self.disable_adapters or not fusible(self.base_layer):
            return super().forward(x, *args, **kwargs)
        if dropping and dropout.left_out():
            return self.base_layer(x)
        return low_rank(x, self.base_layer, self.lora_A[NAME].weight, self.lora_B[NAME].weight, self.scaling[NAME])


class FusedLinear(Fused, lora.Linear):
    pass


class FusedConv2d(Fused, lora.Conv2d):
    pass


def _rows(layer: BaseTunerLayer, fetch: Fetch, like: torch.Tensor) -> Weights:
    """(lengths of the rows of the base weight (out,) in fp32, the bias or None), both for `like`'s device."""
    with torch.no_grad(), fetch(layer.get_base_layer(), like) as (weight, bias):
        return weight.float().flatten(1).norm(dim=1).to(like.device).clamp(min=1e-12), None if bias is None else bias.clone()


def _scaled(x: torch.Tensor, out: torch.Tensor, low: torch.Tensor, factor: torch.Tensor, bias: torch.Tensor | None, conv: bool) -> torch.Tensor:
    """factor (W + d) x + b, from out = W x + b and low = d x; `factor` by row."""
    channels = 1 if conv else x.ndim - 1
    by_channel = lambda t: t.to(x.dtype).reshape([-1 if i == channels else 1 for i in range(x.ndim)])
    factor, unbiased = by_channel(factor), out if bias is None else out - by_channel(bias)
    return out + (factor - 1) * unbiased + factor * low


class Dora:
    """Weight-decomposed LoRA (Liu et al. 2024, arXiv:2402.09353): out = m / |W + sBA| (W + sBA) x + b, norms by row.

    Directions stay where they are of the same length as W's rows (`settle`), so that |W + sBA| = |W|: the magnitude m alone
    says how long a row is. That is what the paper's own gradient does to first order; no norm is needed in a step, BA is never
    built; and loaders agree: PEFT divides by |W + sBA|, ComfyUI's by |W|. Dropout acts on the low-rank branch alone.

    A LoRA by other trainers has rows of other lengths. What goes on from one keeps these (`take`), and its file says what
    ComfyUI's loader makes the same of.
    """

    def begin(self, fetch: Fetch) -> None:
        self.fetch = fetch
        self.norms, self.base_bias = _rows(self, fetch, self.lora_A[NAME].weight)
        self.lengths = self.norms  # of the rows of W + sBA
        self.magnitude = torch.nn.Parameter(self.norms.clone())

    @torch.no_grad()
    def take(self, scale: torch.Tensor | None = None, magnitude: torch.Tensor | None = None) -> None:
        """Go on from A and B that were just put in: with ComfyUI's dora_scale (out,), with PEFT's magnitudes (out,), or as a LoRA, which has neither."""
        a, b, s = self.lora_A[NAME].weight.flatten(1), self.lora_B[NAME].weight.flatten(1), self.scaling[NAME]
        with self.fetch(self.get_base_layer(), a) as (weight, _):
            lengths = (weight.flatten(1).float() + s * (b @ a)).norm(dim=1).clamp(min=1e-12)
        if (scale is not None or magnitude is not None) and torch.allclose(lengths, self.norms, rtol=2e-3, atol=0):
            self.magnitude.copy_(magnitude if scale is None else scale)  # ours, rounded
            self.settle()
            return
        self.lengths = lengths
        self.magnitude.copy_(lengths if scale is magnitude is None else magnitude if scale is None else scale * lengths / self.norms)

    def fixed(self) -> dict[str, torch.Tensor]:
        return {} if self.lengths is self.norms else {"lengths": self.lengths}

    def fix(self, tensors: dict[str, torch.Tensor]) -> None:
        self.lengths = tensors["lengths"].to(self.norms)

    @property
    def scale(self) -> torch.Tensor:
        """The magnitudes as ComfyUI's loader takes them, (out,)."""
        return self.magnitude if self.lengths is self.norms else self.magnitude * self.norms / self.lengths

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters:
            return self.base_layer(x, *args, **kwargs)
        out = self.base_layer(x, *args, **kwargs)
        low = self.lora_B[NAME](self.lora_A[NAME](self.lora_dropout[NAME](x))) * self.scaling[NAME]
        return _scaled(x, out, low, self.magnitude / self.lengths, self.base_bias, isinstance(self.base_layer, torch.nn.Conv2d))

    @torch.no_grad()
    def settle(self, iterations: int = 12) -> None:
        """Each row b of B back to where |w + sbA| = its length, the nearest such place by Newton's method.

        Where that is |w|: 2 s b(Aw) + s^2 bAA^Tb^T = 0."""
        a, b, s = self.lora_A[NAME].weight.flatten(1), self.lora_B[NAME].weight.flatten(1), self.scaling[NAME]
        with self.fetch(self.get_base_layer(), a) as (weight, _):
            along = s * (weight.flatten(1).float() @ a.T)  # (out, r)
        gram = s * s * (a @ a.T)
        longer = (self.lengths.square() - self.norms.square())[:, None]
        for _ in range(iterations):
            turned = along + b @ gram
            excess = (b * (along + turned)).sum(1, keepdim=True) - longer  # |w + sbA|^2 - length^2
            b -= excess * turned / (2 * turned.square().sum(1, keepdim=True)).clamp(min=1e-30)


class DoraLinear(Dora, lora.Linear):
    pass


class DoraConv2d(Dora, lora.Conv2d):
    pass


class HadamardLinear(loha.Linear):
    """PEFT's, computing in its input's dtype. The full difference is built once a pass: a Hadamard product has no low-rank form."""

    def _get_delta_activations(self, adapter_name: str, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        delta = self.get_delta_weight(adapter_name, apply_rank_dropout=self.training and bool(self.rank_dropout[adapter_name]))
        return F.linear(input, delta.to(input.dtype))


class HadamardConv2d(loha.Conv2d):
    def _get_delta_activations(self, adapter_name: str, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        delta = self.get_delta_weight(adapter_name, apply_rank_dropout=self.training and bool(self.rank_dropout[adapter_name]))
        base = self.get_base_layer()
        return F.conv2d(input, delta.to(input.dtype), None, base.stride, base.padding, base.dilation, base.groups)


def _kron_parts(layer: lokr.LoKrLayer, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(w1 (l, m), w2 (k, n, …)) of the difference w1 ⊗ w2, scaled."""
    w1 = layer.lokr_w1[NAME] if NAME in layer.lokr_w1 else layer.lokr_w1_a[NAME] @ layer.lokr_w1_b[NAME]
    w2 = layer.lokr_w2[NAME] if NAME in layer.lokr_w2 else layer.lokr_w2_a[NAME] @ layer.lokr_w2_b[NAME]
    return (w1 * layer.scaling[NAME]).to(dtype), w2.to(dtype)


def _row_dropout(layer: lokr.LoKrLayer, out: torch.Tensor, channels: int) -> torch.Tensor:
    """PEFT's rank dropout: whole outputs are left out."""
    share = layer.rank_dropout[NAME]
    if not layer.training or not share:
        return out
    keep = onto(torch.rand(out.shape[channels]) > share, out.device, out.dtype)
    return out * keep.reshape([-1 if i == channels % out.ndim else 1 for i in range(out.ndim)])


class KroneckerLinear(lokr.Linear):
    """PEFT's, without ever building w1 ⊗ w2: (w1 ⊗ w2) x = w2 X w1ᵀ with X (n, m) out of x (LyCORIS does the same)."""

    def _get_delta_activations(self, adapter_name: str, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        w1, w2 = _kron_parts(self, input.dtype)
        inner = F.linear(input.unflatten(-1, (w1.shape[1], w2.shape[1])), w2)  # (…, m, k)
        out = torch.einsum("lm,...mk->...lk", w1, inner).flatten(-2)
        return _row_dropout(self, out, -1)


class KroneckerConv2d(lokr.Conv2d):
    def _get_delta_activations(self, adapter_name: str, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base = self.get_base_layer()
        if base.groups != 1:
            return super()._get_delta_activations(adapter_name, input, *args, **kwargs)
        w1, w2 = _kron_parts(self, input.dtype)
        n = base.in_channels // w1.shape[1]
        w2 = w2.reshape(w2.shape[0], n, *base.kernel_size)
        rows = input.unflatten(1, (w1.shape[1], n))
        inner = F.conv2d(rows.flatten(0, 1), w2, None, base.stride, base.padding, base.dilation)
        inner = inner.unflatten(0, rows.shape[:2])  # (B, m, k, h, w)
        out = torch.einsum("lm,bmkhw->blkhw", w1, inner).flatten(1, 2)
        return _row_dropout(self, out, 1)


class KroneckerDora:
    """LoKr with magnitudes as ComfyUI's loader has it: out = m / |W| (W + w1 ⊗ w2) x + b, norms by row of W alone.

    LyCORIS divides by |W + w1 ⊗ w2| in training, which no file can say to ComfyUI. So one of its files is gone on from as ComfyUI shows it,
    and what is saved looks there as it did in training.
    """

    def begin(self, fetch: Fetch) -> None:
        self.norms, self.base_bias = _rows(self, fetch, self.magnitude)
        with torch.no_grad():
            self.magnitude.copy_(self.norms)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.training and self.module_dropout[NAME] and torch.rand(1).item() < self.module_dropout[NAME]:
            return out
        low = self._get_delta_activations(NAME, x)
        return _scaled(x, out, low, self.magnitude / self.norms, self.base_bias, isinstance(self.base_layer, torch.nn.Conv2d))


class KroneckerDoraLinear(KroneckerDora, KroneckerLinear):
    pass


class KroneckerDoraConv2d(KroneckerDora, KroneckerConv2d):
    pass


class OutputOFT(torch.nn.Module, BaseTunerLayer):
    """Orthogonal finetuning (Qiu et al. 2023, arXiv:2306.07280) of a layer's outputs, as LyCORIS and ComfyUI's loader have it.

    PEFT's own OFT turns the inputs, which no file that ComfyUI reads can say. W' = blockdiag(R) W with R = (I + Q)(I - Q)⁻¹,
    Q = B - Bᵀ; oft_blocks B is (blocks, size, size), where size is the divisor of the outputs nearest to the rank.
    """

    adapter_layer_names = ("oft_blocks",)

    def __init__(self, base_layer: torch.nn.Module, config: AdapterConfig) -> None:
        super().__init__()
        self.base_layer, self._disable_adapters, self.merged_adapters = base_layer, False, []
        size, blocks = lokr.factorization(base_layer.weight.shape[0], config.rank)
        self.oft_blocks = torch.nn.ParameterDict({NAME: torch.nn.Parameter(torch.zeros(blocks, size, size))})
        self.module_dropout = config.module_dropout

    def turn(self) -> torch.Tensor:
        """R - I, (blocks, size, size) in fp32."""
        q = self.oft_blocks[NAME] - self.oft_blocks[NAME].transpose(1, 2)
        eye = torch.eye(q.shape[-1], device=q.device)
        return torch.linalg.solve(eye - q, eye + q, left=False) - eye

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.training and self.module_dropout and torch.rand(1).item() < self.module_dropout:
            return y
        bias = self.base_layer.bias
        channels = 1 if isinstance(self.base_layer, torch.nn.Conv2d) else y.ndim - 1
        unbiased = y if bias is None else y - bias.detach().to(y).reshape([-1 if i == channels else 1 for i in range(y.ndim)])
        blocks = self.turn().to(y.dtype)
        rows = unbiased.movedim(channels, -1).unflatten(-1, blocks.shape[:2])
        return y + torch.einsum("knm,...kn->...km", blocks, rows).flatten(-2).movedim(-1, channels)
