"""Low-rank adapters by PEFT, put into a model's own module tree for the length of a run and taken out again.

Names, not module order, decide their first values, so that both backbones start from the same LoRA.
"""
from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer

from .backbones.families import TEXT_TARGETS
from .backbones.protocol import TrainableModel
from .config import AdapterConfig
from .errors import LoomError

_ADAPTER = "default"


class _MasterLinear(torch.nn.Linear):
    """fp32 master weights that compute in their input's dtype: no fp32 copy of the activations is kept."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.to(x.dtype), self.bias)


class _MasterConv2d(torch.nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), self.bias)


@dataclass
class Adapter:
    """One adapted layer: its kohya key ("lora_unet_down_blocks_0_…") and PEFT's layer around the base one."""

    key: str
    layer: LoraLayer

    @property
    def down(self) -> torch.nn.Module:
        return self.layer.lora_A[_ADAPTER]

    @property
    def up(self) -> torch.nn.Module:
        return self.layer.lora_B[_ADAPTER]

    @property
    def magnitude(self) -> torch.nn.Parameter | None:
        """DoRA's magnitude (out, …), where there is one (Liu et al. 2024, arXiv:2402.09353)."""
        found = self.layer.lora_magnitude_vector
        return found[_ADAPTER].weight if _ADAPTER in found else None

    def parameters(self) -> list[torch.nn.Parameter]:
        found = [self.down.weight, self.up.weight]
        return found if self.magnitude is None else [*found, self.magnitude]


def select(model: TrainableModel, config: AdapterConfig) -> dict[str, dict[str, str]]:
    """{kohya prefix: {own module path: kohya key}} of the layers that the configuration asks for."""
    selected: dict[str, dict[str, str]] = {}
    for prefix, root in model.modules(config.train_text_encoder).items():
        if prefix == "lora_unet":
            patterns = config.target_modules or model.family.targets[config.targets]
        else:
            patterns = TEXT_TARGETS
        try:
            wanted = [re.compile(p) for p in patterns]
        except re.error as error:
            raise LoomError(f"target_modules {list(patterns)} holds an invalid pattern ({error}): "
                            "use regular expressions over diffusers' layer names, such as attn2\\.to_k$") from error
        names = model.layer_names(prefix)
        layers = {own: m for own, m in root.named_modules() if own in names and isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
        selected[prefix] = {own: f"{prefix}_{names[own].replace('.', '_')}" for own in layers if any(w.search(names[own]) for w in wanted)}
    if not selected["lora_unet"]:
        raise LoomError(f"targets {list(config.target_modules) or config.targets!r} match no layer of {model.family.title}: "
                        "use attention, attention+ff, all linear, all linear+conv, or patterns such as attn1\\.to_q$")
    return selected


@contextmanager
def adapted(model: TrainableModel, config: AdapterConfig, seed: int) -> Iterator[list[Adapter]]:
    """The adapters, live in the model's tree inside, gone after it; the base layers are the same objects before and after."""
    chosen = select(model, config)
    roots = model.modules(config.train_text_encoder)
    try:
        adapters = [a for prefix, layers in chosen.items() for a in _inject(roots[prefix], layers, config, seed, model.device_of(prefix))]
        yield sorted(adapters, key=lambda a: a.key)
    finally:
        for root in roots.values():
            eject(root)


def _inject(root: torch.nn.Module, layers: dict[str, str], config: AdapterConfig, seed: int, device: torch.device) -> list[Adapter]:
    if not layers:
        return []
    peft = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, use_dora=config.algorithm == "dora",
        target_modules="(" + "|".join(re.escape(own) for own in layers) + ")", init_lora_weights=True)
    with torch.no_grad():
        inject_adapter_in_model(peft, root, _ADAPTER)
    found = []
    for own, module in list(root.named_modules()):
        if isinstance(module, LoraLayer):
            adapter = Adapter(layers[own], module)
            module.cast_input_dtype_enabled = False
            for part in (adapter.down, adapter.up):
                part.to(device=device, dtype=torch.float32)
                part.__class__ = _MasterLinear if isinstance(part, torch.nn.Linear) else _MasterConv2d
            _initialise(adapter, seed)
            if adapter.magnitude is not None:
                adapter.magnitude.data = adapter.magnitude.data.to(device=device, dtype=torch.float32)
            for dropout in module.lora_dropout.values():
                dropout.train()
            for parameter in adapter.parameters():
                parameter.requires_grad_(True)
            found.append(adapter)
    if len(found) != len(layers):
        raise RuntimeError(f"PEFT adapted {len(found)} of {len(layers)} layers")
    return found


def _initialise(adapter: Adapter, seed: int) -> None:
    """PEFT's own start (Kaiming-uniform A with a = sqrt(5), B = 0) from a generator that depends on seed and name alone."""
    digest = hashlib.sha256(f"{seed}:{adapter.key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    weight = adapter.down.weight
    bound = 1 / math.sqrt(weight[0].numel())
    with torch.no_grad():
        weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
        adapter.up.weight.zero_()


def eject(root: torch.nn.Module) -> None:
    """Put every base layer back in its place. Harmless where nothing was injected."""
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                setattr(parent, name, child.get_base_layer())
    for leftover in ("peft_config",):
        if leftover in root.__dict__:
            delattr(root, leftover)
