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
    KroneckerDoraConv2d,
    KroneckerDoraLinear,
    KroneckerLinear,
    MasterConv2d,
    MasterLinear,
    ModuleDropout,
)
from .backbones.protocol import Fetch
from .config import AdapterConfig
from .errors import LoomError

Given = dict[str, torch.Tensor]  # an adapter's tensors in a file, by suffix


@dataclass(frozen=True)
class Kind:
    """One algorithm. `zero` names the tensors that start at 0, so that a new adapter changes nothing; `kept` those that
    `prepare` has filled from the base weight. `tensors` gives what goes into the file, by suffix."""

    configure: Callable[[AdapterConfig, str], Any]  # PEFT's configuration for (config, regular expression over module names)
    prepare: Callable[[BaseTunerLayer, AdapterConfig, Fetch], None]
    named: Callable[[BaseTunerLayer], dict[str, torch.nn.Parameter]]  # by suffix, as files name them
    tensors: Callable[[BaseTunerLayer, AdapterConfig], Given]
    load: Callable[[BaseTunerLayer, AdapterConfig, Given], None]
    settle: Callable[[BaseTunerLayer], None]  # after an optimizer step
    count: Callable[[tuple[int, ...], int], int]  # trained values for (shape of the base weight, rank)
    zero: tuple[str, ...]
    kept: tuple[str, ...] = ()
    follow: Callable[[BaseTunerLayer, Given], None] | None = None  # before `prepare`: take the shapes of a file's tensors, where these may differ


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


def _lora_tensors(layer: BaseTunerLayer, config: AdapterConfig) -> Given:
    found: Given = dict(_lora_named(layer))
    if "dora_scale" in found:
        found["dora_scale"] = layer.scale.reshape(-1, *[1] * (layer.get_base_layer().weight.ndim - 1))
    return {**found, "alpha": torch.tensor(_file_alpha(config))}


def _lora_load(layer: BaseTunerLayer, config: AdapterConfig, given: Given) -> None:
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
        _check_rows(given, len(b))
        layer.take(scale if scale is None else scale.reshape(len(b)), magnitude if magnitude is None else magnitude.reshape(len(b)))


def _check_rows(given: Given, rows: int) -> None:
    """LoomError for LyCORIS's wd_on_out=False, also where the layer is square."""
    if "dora_scale" in given and given["dora_scale"].shape[0] != rows:
        raise LoomError(f"whose magnitudes are of its columns (dora_scale {tuple(given['dora_scale'].shape)}), and training knows those of its {rows} rows "
                        "alone: put the file on the model with LoraLoader in front of TrainLoRA and train a new one on top of it")


# ---------------------------------------------------------------- LoHa, LoKr

_CLASSES = {loha.Linear: HadamardLinear, loha.Conv2d: HadamardConv2d, lokr.Linear: KroneckerLinear, lokr.Conv2d: KroneckerConv2d}
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
_WITH_MAGNITUDES = {KroneckerLinear: KroneckerDoraLinear, KroneckerConv2d: KroneckerDoraConv2d}


def _lycoris_prepare(layer: BaseTunerLayer, config: AdapterConfig, fetch: Fetch) -> None:
    layer.__class__ = _CLASSES[type(layer)]
    layer.training = True  # for its dropouts; the base layer stays in eval mode


def _lycoris_named(names: tuple[str, ...]) -> Callable[[BaseTunerLayer], dict[str, torch.nn.Parameter]]:
    return lambda layer: {name: getattr(layer, name)[NAME] for name in names if NAME in getattr(layer, name)}


def _loha_tensors(layer: BaseTunerLayer, config: AdapterConfig) -> Given:
    return {**_lycoris_named(_LOHA)(layer), "alpha": torch.tensor(float(config.alpha))}


def _loha_load(layer: BaseTunerLayer, config: AdapterConfig, given: Given) -> None:
    scale = given["alpha"].item() / config.rank if "alpha" in given else 1.0
    for name, parameter in _lycoris_named(_LOHA)(layer).items():
        factor = scale / (config.alpha / config.rank) if name == "hada_w1_b" else 1.0
        parameter.copy_(given[name].float().reshape(parameter.shape) * factor)


def _lokr_follow(layer: BaseTunerLayer, given: Given) -> None:
    """Which factors there are and how large they are is a file's own affair: LyCORIS's factor, decompose_both, full_matrix, magnitudes."""
    if not {*_LOKR} & given.keys():
        return  # of another algorithm, which `load` says
    weight = layer.get_base_layer().weight
    made, wanted = _lokr_makes(given), (weight.shape[0], math.prod(weight.shape[1:]))
    if made != wanted:
        raise LoomError(f"which make {'no matrix' if made is None else f'a matrix of {made}'} where the layer has {wanted}: "
                        "choose a whole file, trained on a model of this family")
    _check_rows(given, len(weight))
    for name in _LOKR:
        held = getattr(layer, name)
        held.clear()
        if name in given:
            held[NAME] = torch.nn.Parameter(torch.empty(given[name].shape))
    if "dora_scale" in given:
        layer.magnitude = torch.nn.Parameter(torch.empty(len(weight)))


def _lokr_makes(given: Given) -> tuple[int, int] | None:
    """(rows, columns) of the Kronecker product; None where factors are missing, given twice, or do not fit together."""
    if any(given[name].ndim < 2 for name in {*_LOKR} & given.keys()):
        return None

    def factor(name: str) -> tuple[int, int] | None:
        low = [given[part] for part in (f"{name}_a", f"{name}_b") if part in given]
        if name in given:
            return None if low else (len(given[name]), given[name][0].numel())
        return (len(low[0]), low[1][0].numel()) if len(low) == 2 and low[0].shape[1:] == (len(low[1]),) else None

    w1, w2 = factor("lokr_w1"), factor("lokr_w2")
    return None if w1 is None or w2 is None else (w1[0] * w2[0], w1[1] * w2[1])


def _lokr_prepare(layer: BaseTunerLayer, config: AdapterConfig, fetch: Fetch) -> None:
    _lycoris_prepare(layer, config, fetch)
    if hasattr(layer, "magnitude"):
        layer.__class__ = _WITH_MAGNITUDES[type(layer)]
        layer.begin(fetch)


def _lokr_named(layer: BaseTunerLayer) -> dict[str, torch.nn.Parameter]:
    magnitude = getattr(layer, "magnitude", None)
    return {**_lycoris_named(_LOKR)(layer), **({} if magnitude is None else {"dora_scale": magnitude})}


def _lokr_rank(tensors: Given) -> int | None:
    """What readers divide alpha by; None where neither factor is of low rank: they know no scale then."""
    return next((len(tensors[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in tensors), None)


def _lokr_tensors(layer: BaseTunerLayer, config: AdapterConfig) -> Given:
    """Where readers know no scale it goes into w1, and alpha = rank says 1."""
    found: Given = dict(_lokr_named(layer))
    if "dora_scale" in found:
        found["dora_scale"] = found["dora_scale"].reshape(-1, *[1] * (layer.get_base_layer().weight.ndim - 1))
    rank = _lokr_rank(found)
    if rank is None:
        found["lokr_w1"] = found["lokr_w1"] * (config.alpha / config.rank)
        return {**found, "alpha": torch.tensor(float(config.rank))}
    return {**found, "alpha": torch.tensor(config.alpha * (rank / config.rank))}


def _lokr_load(layer: BaseTunerLayer, config: AdapterConfig, given: Given) -> None:
    """w1 takes up the difference of the scales."""
    mine = _lokr_named(layer)
    rank = _lokr_rank(mine)
    scale = 1.0 if rank is None or "alpha" not in given else given["alpha"].item() / rank
    for name, parameter in mine.items():
        factor = scale / (config.alpha / config.rank) if name in ("lokr_w1", "lokr_w1_b") else 1.0
        parameter.copy_(given[name].float().reshape(parameter.shape) * factor)


def _lokr_count(shape: tuple[int, ...], rank: int) -> int:
    (out_l, out_k), (in_m, in_n) = lokr.factorization(shape[0]), lokr.factorization(shape[1])
    large = out_k * in_n * math.prod(shape[2:])
    low = rank * (out_k + in_n * math.prod(shape[2:]))
    return out_l * in_m + (low if rank < max(out_k, in_n) / 2 else large)


# ---------------------------------------------------------------- OFT

def _oft_named(layer: BaseTunerLayer) -> dict[str, torch.nn.Parameter]:
    return {"oft_blocks": layer.oft_blocks[NAME]}


def _oft_tensors(layer: BaseTunerLayer, config: AdapterConfig) -> Given:
    return {**_oft_named(layer), "alpha": torch.tensor(0.0)}  # for readers alpha is a constraint here; 0 is none


def _oft_load(layer: BaseTunerLayer, config: AdapterConfig, given: Given) -> None:
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
    "loha": Kind(_lycoris(LoHaConfig), _lycoris_prepare, _lycoris_named(_LOHA), _loha_tensors, _loha_load, _nothing,
                 lambda shape, rank: 2 * _lora_count(shape, rank), zero=("hada_w2_b",)),
    "lokr": Kind(_lycoris(LoKrConfig), _lokr_prepare, _lokr_named, _lokr_tensors, _lokr_load, _nothing, _lokr_count,
                 zero=("lokr_w1", "lokr_w1_a"), kept=("dora_scale",), follow=_lokr_follow),
    "oft": Kind(_nothing, _nothing, _oft_named, _oft_tensors, _oft_load, _nothing, lambda shape, rank: shape[0] * lokr.factorization(shape[0], rank)[0],
                zero=("oft_blocks",)),
}
