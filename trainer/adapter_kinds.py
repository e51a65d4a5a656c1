"""What one adapted layer is for each algorithm: PEFT's layer, its trained tensors, and their names in LoRA files.

A kind knows one layer at a time; adapters.py knows the model.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoHaConfig, LoKrConfig, LoraConfig
from peft.tuners.loha import layer as loha
from peft.tuners.lokr import layer as lokr
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import BaseTunerLayer

from .backbones.protocol import Fetch
from .config import AdapterConfig

NAME = "default"  # of the one adapter that PEFT's layers hold


@dataclass(frozen=True)
class Kind:
    """One algorithm. `zero` names the tensors that start at 0, so that a new adapter changes nothing; `kept` those that
    `prepare` has filled from the base weight. `tensors` gives what goes into the file, by suffix."""

    configure: Callable[[AdapterConfig, str], Any]  # PEFT's configuration for (config, regular expression over module names)
    prepare: Callable[[BaseTunerLayer, AdapterConfig, Fetch], None]
    named: Callable[[BaseTunerLayer], dict[str, torch.nn.Parameter]]  # by suffix, as files name them
    tensors: Callable[[BaseTunerLayer, AdapterConfig], dict[str, torch.Tensor]]
    load: Callable[[BaseTunerLayer, AdapterConfig, dict[str, torch.Tensor]], None]
    settle: Callable[[BaseTunerLayer], None]  # after an optimizer step
    count: Callable[[tuple[int, ...], int], int]  # trained values for (shape of the base weight, rank)
    zero: tuple[str, ...]
    kept: tuple[str, ...] = ()


# ---------------------------------------------------------------- LoRA, DoRA, rsLoRA

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
        if self.training and self.module and torch.rand(1).item() < self.module:
            return torch.zeros_like(x)
        return super().forward(x)


class _Dora:
    """Weight-decomposed LoRA (Liu et al. 2024, arXiv:2402.09353): out = m / |W + sBA| (W + sBA) x + b, norms by row.

    Directions stay where they are of the same length as W's rows (`settle`), so that |W + sBA| = |W|: the magnitude m alone
    says how long a row is. That is what the paper's own gradient does to first order; no norm is needed in a step, BA is never
    built; and loaders agree: PEFT divides by |W + sBA|, ComfyUI's by |W|. Dropout acts on the low-rank branch alone.
    """

    def begin(self, fetch: Fetch) -> None:
        self.fetch = fetch
        like = self.lora_A[NAME].weight
        with torch.no_grad(), fetch(self.get_base_layer(), like) as (weight, bias):
            self.norms = weight.float().flatten(1).norm(dim=1).to(like.device).clamp(min=1e-12)
            self.base_bias = None if bias is None else bias.clone()
        self.magnitude = torch.nn.Parameter(self.norms.clone())

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters:
            return self.base_layer(x, *args, **kwargs)
        channels = 1 if isinstance(self.base_layer, torch.nn.Conv2d) else x.ndim - 1
        by_channel = lambda t: t.to(x.dtype).reshape([-1 if i == channels else 1 for i in range(x.ndim)])
        factor = by_channel(self.magnitude / self.norms)
        out = self.base_layer(x, *args, **kwargs)
        low = self.lora_B[NAME](self.lora_A[NAME](self.lora_dropout[NAME](x))) * self.scaling[NAME]
        unbiased = out if self.base_bias is None else out - by_channel(self.base_bias)
        return out + (factor - 1) * unbiased + factor * low

    @torch.no_grad()
    def settle(self, iterations: int = 12) -> None:
        """Each row b of B back to where |w + sbA| = |w|, the nearest such place by Newton's method: 2 s b(Aw) + s^2 bAA^Tb^T = 0."""
        a, b, s = self.lora_A[NAME].weight.flatten(1), self.lora_B[NAME].weight.flatten(1), self.scaling[NAME]
        with self.fetch(self.get_base_layer(), a) as (weight, _):
            along = s * (weight.flatten(1).float() @ a.T)  # (out, r)
        gram = s * s * (a @ a.T)
        for _ in range(iterations):
            turned = along + b @ gram
            excess = (b * (along + turned)).sum(1, keepdim=True)  # |w + sbA|^2 - |w|^2
            b -= excess * turned / (2 * turned.square().sum(1, keepdim=True)).clamp(min=1e-30)


class DoraLinear(_Dora, lora.Linear):
    pass


class DoraConv2d(_Dora, lora.Conv2d):
    pass


def _lora_prepare(layer: BaseTunerLayer, config: AdapterConfig, fetch: Fetch) -> None:
    for part in (layer.lora_A[NAME], layer.lora_B[NAME]):
        part.__class__ = MasterLinear if isinstance(part, torch.nn.Linear) else MasterConv2d
    if config.module_dropout:
        layer.lora_dropout[NAME] = ModuleDropout(config.dropout, config.module_dropout)
    for dropout in layer.lora_dropout.values():
        dropout.train()
    if config.algorithm == "dora":
        layer.__class__ = DoraConv2d if isinstance(layer, lora.Conv2d) else DoraLinear
        layer.begin(fetch)


def _lora_settle(layer: BaseTunerLayer) -> None:
    if isinstance(layer, _Dora):
        layer.settle()


def _nothing(*_: Any) -> None:
    pass


def _lora_named(layer: BaseTunerLayer) -> dict[str, torch.nn.Parameter]:
    found = {"lora_down.weight": layer.lora_A[NAME].weight, "lora_up.weight": layer.lora_B[NAME].weight}
    if isinstance(layer, _Dora):
        found["dora_scale"] = layer.magnitude
    return found


def _lora_count(shape: tuple[int, ...], rank: int) -> int:
    return rank * (shape[0] + math.prod(shape[1:])) + shape[0]  # the last for DoRA's magnitude


def _file_alpha(config: AdapterConfig) -> float:
    """The alpha that means the same scale to readers who divide it by the rank. rsLoRA (Kalajdzievski 2023) divides by its root."""
    return config.alpha * math.sqrt(config.rank) if config.algorithm == "rslora" else config.alpha


def _lora_tensors(layer: BaseTunerLayer, config: AdapterConfig) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = dict(_lora_named(layer))
    if "dora_scale" in found:
        found["dora_scale"] = found["dora_scale"].reshape(-1, *[1] * (layer.get_base_layer().weight.ndim - 1))
    return {**found, "alpha": torch.tensor(_file_alpha(config))}


def _lora_load(layer: BaseTunerLayer, config: AdapterConfig, given: dict[str, torch.Tensor]) -> None:
    """B takes up the difference of the scales; a smaller rank is filled up by rows whose column of B is 0."""
    down, up = given["lora_down.weight"].float(), given["lora_up.weight"].float()
    mine = _lora_named(layer)
    rank = down.shape[0]
    scale = given.get("alpha", torch.tensor(float(rank))).item() / rank
    ours = _file_alpha(config) / config.rank
    a, b = mine["lora_down.weight"], mine["lora_up.weight"]
    a[:rank].copy_(down.reshape(rank, *a.shape[1:]))
    b.zero_()
    b[:, :rank].copy_(up.reshape(b.shape[0], rank, *b.shape[2:]) * (scale / ours))
    if "dora_scale" in mine and "dora_scale" in given:
        mine["dora_scale"].copy_(given["dora_scale"].float().reshape(mine["dora_scale"].shape))
    _lora_settle(layer)


# ---------------------------------------------------------------- LoHa, LoKr

class _HadamardLinear(loha.Linear):
    """PEFT's, computing in its input's dtype. The full difference is built once a pass: a Hadamard product has no low-rank form."""

    def _get_delta_activations(self, adapter_name: str, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        delta = self.get_delta_weight(adapter_name, apply_rank_dropout=self.training and bool(self.rank_dropout[adapter_name]))
        return F.linear(input, delta.to(input.dtype))


class _HadamardConv2d(loha.Conv2d):
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
    keep = (torch.rand(out.shape[channels]) > share).to(out)
    return out * keep.reshape([-1 if i == channels % out.ndim else 1 for i in range(out.ndim)])


class _KroneckerLinear(lokr.Linear):
    """PEFT's, without ever building w1 ⊗ w2: (w1 ⊗ w2) x = w2 X w1ᵀ with X (n, m) out of x (LyCORIS does the same)."""

    def _get_delta_activations(self, adapter_name: str, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        w1, w2 = _kron_parts(self, input.dtype)
        inner = F.linear(input.unflatten(-1, (w1.shape[1], w2.shape[1])), w2)  # (…, m, k)
        out = torch.einsum("lm,...mk->...lk", w1, inner).flatten(-2)
        return _row_dropout(self, out, -1)


class _KroneckerConv2d(lokr.Conv2d):
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


_CLASSES = {loha.Linear: _HadamardLinear, loha.Conv2d: _HadamardConv2d, lokr.Linear: _KroneckerLinear, lokr.Conv2d: _KroneckerConv2d}
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")


def _lycoris_prepare(layer: BaseTunerLayer, config: AdapterConfig, fetch: Fetch) -> None:
    layer.__class__ = _CLASSES[type(layer)]
    layer.training = True  # for its dropouts; the base layer stays in eval mode


def _lycoris_named(names: tuple[str, ...]) -> Callable[[BaseTunerLayer], dict[str, torch.nn.Parameter]]:
    return lambda layer: {name: getattr(layer, name)[NAME] for name in names if NAME in getattr(layer, name)}


def _loha_tensors(layer: BaseTunerLayer, config: AdapterConfig) -> dict[str, torch.Tensor]:
    return {**_lycoris_named(_LOHA)(layer), "alpha": torch.tensor(float(config.alpha))}


def _lokr_tensors(layer: BaseTunerLayer, config: AdapterConfig) -> dict[str, torch.Tensor]:
    """Where neither factor is of low rank, readers know no scale: it goes into w1, and alpha = rank says 1."""
    found: dict[str, torch.Tensor] = dict(_lycoris_named(_LOKR)(layer))
    if "lokr_w1" in found and "lokr_w2" in found:
        found["lokr_w1"] = found["lokr_w1"] * (config.alpha / config.rank)
        return {**found, "alpha": torch.tensor(float(config.rank))}
    return {**found, "alpha": torch.tensor(float(config.alpha))}


def _lokr_count(shape: tuple[int, ...], rank: int) -> int:
    (out_l, out_k), (in_m, in_n) = lokr.factorization(shape[0]), lokr.factorization(shape[1])
    large = out_k * in_n * math.prod(shape[2:])
    low = rank * (out_k + in_n * math.prod(shape[2:]))
    return out_l * in_m + (low if rank < max(out_k, in_n) / 2 else large)


def _lycoris_load(names: tuple[str, ...], scaled: tuple[str, ...]) -> Callable[[BaseTunerLayer, AdapterConfig, dict[str, torch.Tensor]], None]:
    def load(layer: BaseTunerLayer, config: AdapterConfig, given: dict[str, torch.Tensor]) -> None:
        mine = _lycoris_named(names)(layer)
        full = "lokr_w1" in mine and "lokr_w2" in mine
        theirs = 1.0 if full else given["alpha"].item() / config.rank if "alpha" in given else 1.0
        factor = theirs / (config.alpha / config.rank)
        for name, parameter in mine.items():
            parameter.copy_(given[name].float().reshape(parameter.shape) * (factor if name in scaled else 1.0))

    return load


# ---------------------------------------------------------------- OFT

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
        if self.disable_adapters or self.module_dropout and torch.rand(1).item() < self.module_dropout:
            return y
        bias = self.base_layer.bias
        channels = 1 if isinstance(self.base_layer, torch.nn.Conv2d) else y.ndim - 1
        unbiased = y if bias is None else y - bias.detach().to(y).reshape([-1 if i == channels else 1 for i in range(y.ndim)])
        blocks = self.turn().to(y.dtype)
        rows = unbiased.movedim(channels, -1).unflatten(-1, blocks.shape[:2])
        return y + torch.einsum("knm,...kn->...km", blocks, rows).flatten(-2).movedim(-1, channels)


def _oft_named(layer: BaseTunerLayer) -> dict[str, torch.nn.Parameter]:
    return {"oft_blocks": layer.oft_blocks[NAME]}


def _oft_tensors(layer: BaseTunerLayer, config: AdapterConfig) -> dict[str, torch.Tensor]:
    return {**_oft_named(layer), "alpha": torch.tensor(0.0)}  # for readers alpha is a constraint here; 0 is none


def _oft_load(layer: BaseTunerLayer, config: AdapterConfig, given: dict[str, torch.Tensor]) -> None:
    layer.oft_blocks[NAME].copy_(given["oft_blocks"].float())


# ---------------------------------------------------------------- the table

def _lora(config: AdapterConfig, targets: str) -> LoraConfig:
    return LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout,
                      use_rslora=config.algorithm == "rslora", target_modules=targets, init_lora_weights=True)


def _lycoris(kind: type) -> Callable[[AdapterConfig, str], Any]:
    return lambda config, targets: kind(r=config.rank, alpha=config.alpha, rank_dropout=config.dropout, module_dropout=config.module_dropout,
                                        target_modules=targets, init_weights=True)


_LORA_KIND = Kind(_lora, _lora_prepare, _lora_named, _lora_tensors, _lora_load, _lora_settle, _lora_count, zero=("lora_up.weight",), kept=("dora_scale",))
KINDS = {
    **dict.fromkeys(("lora", "dora", "rslora"), _LORA_KIND),
    "loha": Kind(_lycoris(LoHaConfig), _lycoris_prepare, _lycoris_named(_LOHA), _loha_tensors, _lycoris_load(_LOHA, ("hada_w1_b",)), _nothing,
                 lambda shape, rank: 2 * _lora_count(shape, rank), zero=("hada_w2_b",)),
    "lokr": Kind(_lycoris(LoKrConfig), _lycoris_prepare, _lycoris_named(_LOKR), _lokr_tensors, _lycoris_load(_LOKR, ("lokr_w1", "lokr_w1_b")),
                 _nothing, _lokr_count, zero=("lokr_w1", "lokr_w1_a")),
    "oft": Kind(_nothing, _nothing, _oft_named, _oft_tensors, _oft_load, _nothing, lambda shape, rank: shape[0] * lokr.factorization(shape[0], rank)[0],
                zero=("oft_blocks",)),
}
