"""What one adapted layer is for each algorithm: PEFT's layer, its trained tensors, and their names in LoRA files.

A kind knows one layer at a time; adapters.py knows the model.
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig
from peft.tuners.loha import layer as loha
from peft.tuners.lokr import layer as lokr
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import BaseTunerLayer

from .adapter_layers import (
    NAME,
    Dora,
    DoraConv2d,
    DoraLinear,
    FusedConv2d,
    FusedLinear,
    HadamardConv2d,
    HadamardLinear,
    KroneckerConv2d,
    KroneckerLinear,
    MasterConv2d,
    MasterLinear,
    ModuleDropout,
)
from .backbones.protocol import Fetch
from .config import AdapterConfig


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

def _lora_prepare(layer: BaseTunerLayer, config: AdapterConfig, fetch: Fetch) -> None:
    for part in (layer.lora_A[NAME], layer.lora_B[NAME]):
        part.__class__ = MasterLinear if isinstance(part, torch.nn.Linear) else MasterConv2d
    if config.module_dropout:
        layer.lora_dropout[NAME] = ModuleDropout(config.dropout, config.module_dropout)
    for dropout in layer.lora_dropout.values():
        dropout.train()
    dora = config.algorithm == "dora"
    if isinstance(layer, lora.Conv2d):
        layer.__class__ = DoraConv2d if dora else FusedConv2d
    else:
        layer.__class__ = DoraLinear if dora else FusedLinear
    if dora:
        layer.begin(fetch)


def _lora_settle(layer: BaseTunerLayer) -> None:
    if isinstance(layer, Dora):
        layer.settle()


def _nothing(*_: Any) -> None:
    pass


def _lora_named(layer: BaseTunerLayer) -> dict[str, torch.nn.Parameter]:
    found = {"lora_down.weight": layer.lora_A[NAME].weight, "lora_up.weight": layer.lora_B[NAME].weight}
    if isinstance(layer, Dora):
        found["dora_scale"] = layer.magnitude
    return found


def _lora_count(shape: tuple[int, ...], rank: int) -> int:
    return rank * (shape[0] + math.prod(shape[1:]))


def _file_alpha(config: AdapterConfig) -> float:
    """The alpha that means the same scale to readers who divide it by the rank. rsLoRA (Kalajdzievski 2023) divides by its root."""
    return config.alpha * math.sqrt(config.rank) if config.algorithm == "rslora" else config.alpha


def _lora_tensors(layer: BaseTunerLayer, config: AdapterConfig) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = dict(_lora_named(layer))
    if "dora_scale" in found:
        found["dora_scale"] = layer.scale.reshape(-1, *[1] * (layer.get_base_layer().weight.ndim - 1))
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
    if isinstance(layer, Dora):
        scale, magnitude = (given[name].to(b) if name in given else None for name in ("dora_scale", "magnitude"))
        if scale is not None and scale.shape[0] != len(b):  # LyCORIS's wd_on_out=False, also where the layer is square
            raise RuntimeError("magnitudes of columns")
        layer.take(scale if scale is None else scale.reshape(len(b)), magnitude if magnitude is None else magnitude.reshape(len(b)))


# ---------------------------------------------------------------- LoHa, LoKr

_CLASSES = {loha.Linear: HadamardLinear, loha.Conv2d: HadamardConv2d, lokr.Linear: KroneckerLinear, lokr.Conv2d: KroneckerConv2d}
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
    **dict.fromkeys(("lora", "rslora"), _LORA_KIND),
    "dora": dataclasses.replace(_LORA_KIND, count=lambda shape, rank: _lora_count(shape, rank) + shape[0]),  # its magnitudes
    "loha": Kind(_lycoris(LoHaConfig), _lycoris_prepare, _lycoris_named(_LOHA), _loha_tensors, _lycoris_load(_LOHA, ("hada_w1_b",)), _nothing,
                 lambda shape, rank: 2 * _lora_count(shape, rank), zero=("hada_w2_b",)),
    "lokr": Kind(_lycoris(LoKrConfig), _lycoris_prepare, _lycoris_named(_LOKR), _lokr_tensors, _lycoris_load(_LOKR, ("lokr_w1", "lokr_w1_b")),
                 _nothing, _lokr_count, zero=("lokr_w1", "lokr_w1_a")),
    "oft": Kind(_nothing, _nothing, _oft_named, _oft_tensors, _oft_load, _nothing, lambda shape, rank: shape[0] * lokr.factorization(shape[0], rank)[0],
                zero=("oft_blocks",)),
}
