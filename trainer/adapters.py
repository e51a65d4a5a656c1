"""Adapters put into a model's own module tree for the length of a run and taken out again.

Names, not module order, decide their first values, so that both backbones start from the same LoRA.
"""
from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer

from .adapter_kinds import KINDS
from .adapter_kinds import Given as Tensors
from .adapter_layers import NAME, Dora, OutputOFT
from .backbones.families import TEXT_TARGETS, Named
from .backbones.protocol import TrainableModel, is_linear
from .config import AdapterConfig, parse_target
from .errors import LoomError


@dataclass
class Adapter:
    """One adapted layer: its key in files ("lora_unet_down_blocks_0_…"), the layer around the base one, and its own settings."""

    key: str
    layer: BaseTunerLayer
    config: AdapterConfig
    learning_rate: float | None = None  # where a pattern sets one of its own
    plain: str = ""  # the layer's own path, where files name it by that: "diffusion_model.layers.0.attention.qkv"
    diffusers: Named | None = None  # diffusers' name of it, or of the parts of its rows: "unet.mid_block.…", "transformer.…", "text_encoder.…"

    def named(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by suffix: lora_down.weight (r, in, …), lora_up.weight (out, r, …), dora_scale, hada_w1_a …"""
        return KINDS[self.config.algorithm].named(self.layer)

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.named().values())

    def tensors(self) -> Tensors:
        """What its part of a file holds, by suffix, scaled as readers expect it."""
        return KINDS[self.config.algorithm].tensors(self.layer, self.config)

    def fixed(self) -> Tensors:
        """What a file that the run began from has set and training does not change: the lengths of a DoRA's rows. A state has to hold it too."""
        return self.layer.fixed() if isinstance(self.layer, Dora) else {}

    def fix(self, tensors: Tensors) -> None:
        """Take up what `fixed` gave."""
        if tensors:
            self.layer.fix(tensors)

    def settle(self) -> None:
        """What the algorithm demands after every optimizer step."""
        KINDS[self.config.algorithm].settle(self.layer)

    @torch.no_grad()
    def load(self, tensors: Tensors) -> None:
        """Go on from another file's tensors (see runs/lora_names.py). LoomError where they do not fit."""
        mine = self.named()
        needed = [name for name in mine if name != "dora_scale"]
        missing = [name for name in needed if name not in tensors]
        if missing:
            raise LoomError(f"init_lora has {', '.join(sorted(tensors))} for {self.key}, {self.config.algorithm} needs {', '.join(needed)}: "
                            "choose the algorithm and rank that the file was trained with")
        ignored = sorted(set(tensors) - {*mine, "alpha", *(["magnitude"] if "dora_scale" in mine else [])})
        if ignored:
            dora = ignored[-1] in ("dora_scale", "magnitude") and "lora_up.weight" in mine
            raise LoomError(f"init_lora has {', '.join(ignored)} for {self.key}, which {self.config.algorithm} has no place for and would lose: "
                            f"{'set LoRAConfig.algorithm to dora' if dora else _ON_TOP}")
        if "lora_down.weight" in tensors and tensors["lora_down.weight"].shape[0] > self.config.rank:
            rank = tensors["lora_down.weight"].shape[0]
            raise LoomError(f"rank {self.config.rank} is below init_lora's {rank} at {self.key}: set LoRAConfig.rank to {rank} or more")
        try:
            with _of_file(self.key, tensors):
                KINDS[self.config.algorithm].load(self.layer, self.config, tensors)
        except RuntimeError as error:
            shapes = {name: tuple(t.shape) for name, t in tensors.items()}
            raise LoomError(f"init_lora has {shapes} for {self.key}, the run has {({k: tuple(v.shape) for k, v in mine.items()})}: "
                            "choose the algorithm and rank that the file was trained with, and a LoRA of this model's family") from error


_ON_TOP = "put the file on the model with LoraLoader in front of TrainLoRA and train a new one on top of it"


@contextmanager
def _of_file(key: str, tensors: Tensors) -> Iterator[None]:
    """A LoomError inside says what is wrong with the file's tensors for one layer; outside also with which."""
    try:
        yield
    except LoomError as error:
        raise LoomError(f"init_lora has {({name: tuple(t.shape) for name, t in tensors.items()})} for {key}, {error}") from error


def select(model: TrainableModel, config: AdapterConfig) -> dict[str, dict[str, str]]:
    """{kohya prefix: {own module path: kohya key}} of the layers that the configuration asks for."""
    selected: dict[str, dict[str, str]] = {}
    for prefix, root in model.modules(config.train_text_encoder).items():
        try:
            wanted = [re.compile(p) for p in _patterns(model, config, prefix)]
        except re.error as error:
            raise LoomError(f"target_modules {list(config.target_modules)} holds an invalid pattern ({error}): "
                            "use regular expressions over diffusers' layer names, such as attn2\\.to_k$",
                            {"target_modules": [p for p in config.target_modules if _is_pattern(parse_target(p).pattern)]}) from error
        names = model.layer_names(prefix)
        layers = {own: m for own, m in root.named_modules() if own in names and any(w.search(names[own]) for w in wanted)}
        layers = {own: m for own, m in layers.items() if hasattr(m, "weight")}
        odd = [own for own, m in layers.items() if not is_linear(m) and not isinstance(m, torch.nn.Conv2d)]
        if odd:
            raise LoomError(f"MODEL has {len(odd)} layers of the kind {type(layers[odd[0]]).__name__}, such as {odd[0]}, which cannot be trained on: "
                            "load the checkpoint in fp16, bf16 or fp8")
        idle = [w.pattern for w in wanted if not any(w.search(name) for name in names.values())] if prefix == "lora_unet" and config.target_modules else []
        if idle:
            raise LoomError(f"target_modules {', '.join(map(repr, idle))} {'finds' if len(idle) == 1 else 'find'} no layer of "
                            f"{model.family.title}: correct or remove {'it' if len(idle) == 1 else 'them'}; its layers have names such as "
                            f"{', '.join(sorted(names.values())[:1] + sorted(names.values())[-1:])}",
                            {"target_modules": [p for p in config.target_modules if parse_target(p).pattern not in idle]})
        selected[prefix] = {own: f"{prefix}_{names[own].replace('.', '_')}" for own in layers}
    if not selected["lora_unet"]:
        raise LoomError(f"targets {list(config.target_modules) or config.targets!r} match no layer of {model.family.title}: "
                        "use attention, attention+ff, all linear, all linear+conv, or patterns such as attn1\\.to_q$")
    return selected


def _is_pattern(text: str) -> bool:
    try:
        return bool(re.compile(text))
    except re.error:
        return False


def _patterns(model: TrainableModel, config: AdapterConfig, prefix: str) -> tuple[str, ...]:
    if prefix != "lora_unet":
        return TEXT_TARGETS
    return tuple(parse_target(t).pattern for t in config.target_modules) or model.family.targets[config.targets]


def _own_config(config: AdapterConfig, name: str, prefix: str) -> tuple[AdapterConfig, float | None]:
    """The settings of the layer of that diffusers name: those of the first pattern that fits it go before the general ones."""
    if prefix == "lora_unet":
        for target in map(parse_target, config.target_modules):
            if re.search(target.pattern, name):
                own = {k: v for k, v in (("rank", target.rank), ("alpha", target.alpha)) if v is not None}
                return dataclasses.replace(config, **own), target.learning_rate
    return config, None


def size(model: TrainableModel, config: AdapterConfig, given: dict[str, Tensors] | None = None) -> tuple[int, int]:
    """(layers, trained values) that the configuration asks for; nothing is allocated. given: as for `adapted`."""
    kind, given = KINDS[config.algorithm], given or {}
    roots, layers, values = model.modules(config.train_text_encoder), 0, 0
    for prefix, chosen in select(model, config).items():
        names = model.layer_names(prefix)
        for own, key in chosen.items():
            own_config = _own_config(config, names[own], prefix)[0]
            followed = kind.follow is not None and key in given
            values += (sum(t.numel() for t in given[key].values()) if followed else
                       kind.count(tuple(roots[prefix].get_submodule(own).weight.shape), own_config.rank))
            layers += 1
    return layers, values


@contextmanager
def adapted(model: TrainableModel, config: AdapterConfig, seed: int, given: dict[str, Tensors] | None = None) -> Iterator[list[Adapter]]:
    """The adapters, live in the model's tree inside, gone after it; the base layers are the same objects before and after.

    given: by key, the tensors that they will go on from, for these may decide how a layer's weights are divided. LoomError where they cannot."""
    chosen = select(model, config)
    roots = model.modules(config.train_text_encoder)
    try:
        found: list[Adapter] = []
        for prefix, layers in chosen.items():
            names, groups = model.layer_names(prefix), {}
            for own, key in layers.items():
                groups.setdefault(_own_config(config, names[own], prefix), {})[own] = key
            for (own_config, rate), part in groups.items():
                found += _inject(model, prefix, part, own_config, rate, given or {})
        for adapter in found:
            _initialise(adapter, seed)
        yield sorted(found, key=lambda a: a.key)
    finally:
        for root in roots.values():
            eject(root)


def _inject(model: TrainableModel, prefix: str, layers: dict[str, str], config: AdapterConfig, rate: float | None,
            given: dict[str, Tensors]) -> list[Adapter]:
    kind, root, device = KINDS[config.algorithm], model.modules(config.train_text_encoder)[prefix], model.device_of(prefix)
    if config.algorithm == "oft":
        for own in layers:
            parent, _, name = own.rpartition(".")
            setattr(root.get_submodule(parent), name, OutputOFT(root.get_submodule(own), config))
    elif layers:
        root.__dict__.pop("peft_config", None)  # of the group before this one
        with torch.no_grad():
            inject_adapter_in_model(kind.configure(config, "(" + "|".join(re.escape(own) for own in layers) + ")"), root, NAME)
    found, names = [], model.layer_names(prefix)
    for own, key in layers.items():
        layer = root.get_submodule(own)
        if not isinstance(layer, BaseTunerLayer):
            raise RuntimeError(f"PEFT has not adapted {own}")
        layer.cast_input_dtype_enabled = False
        if kind.follow is not None and key in given:
            with _of_file(key, given[key]):
                kind.follow(layer, given[key])
        for parameter in kind.named(layer).values():
            parameter.data = parameter.data.to(device=device, dtype=torch.float32)
        kind.prepare(layer, config, model.fetch)
        for parameter in kind.named(layer).values():
            parameter.requires_grad_(True)
        keys = model.family.keys if prefix == "lora_unet" else "kohya"
        found.append(Adapter(key, layer, config, rate, "" if keys == "kohya" else f"diffusion_model.{own}",
                             model.family.in_diffusers(own, names[own], prefix)))
    return found


def _initialise(adapter: Adapter, seed: int) -> None:
    """PEFT's own start (Kaiming-uniform with a = sqrt(5), and zeros) from generators that depend on seed and name alone."""
    kind = KINDS[adapter.config.algorithm]
    for name, parameter in adapter.named().items():
        if name in kind.kept or parameter.is_meta:  # where shapes alone are asked for
            continue
        digest = hashlib.sha256(f"{seed}:{adapter.key}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        bound = 0.0 if name in kind.zero else parameter[0].numel() ** -0.5
        with torch.no_grad():
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


@contextmanager
def disabled(adapters: list[Adapter]) -> Iterator[None]:
    """The model answers as without them inside."""
    for adapter in adapters:
        adapter.layer._disable_adapters = True  # PEFT's enable_adapters would also change requires_grad
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.layer._disable_adapters = False


@contextmanager
def evaluating(adapters: list[Adapter]) -> Iterator[None]:
    """No adapter drops anything inside."""
    modules = [m for a in adapters for m in _own_modules(a.layer)]
    before = [m.training for m in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in zip(modules, before):
            module.training = training


def _own_modules(layer: BaseTunerLayer) -> Iterator[torch.nn.Module]:
    """The adapter's own, without the base layer."""
    yield layer
    for name, child in layer.named_children():
        if name != "base_layer":
            yield from child.modules()


def eject(root: torch.nn.Module) -> None:
    """Put every base layer back in its place. Harmless where nothing was injected."""
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                setattr(parent, name, child.get_base_layer())
    root.__dict__.pop("peft_config", None)
