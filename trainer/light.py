"""What a run will take, said while its settings are still being chosen: from the model's shapes, before anything is loaded.

A step is asked of the trainer's own objective, on a model whose weights are shapes (backbones/comfy_shapes.py). What was asked once is
remembered; between two ranks the bytes lie on a line, so that after the second one every rank is known.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch

from . import estimate, optim
from .adapters import adapted, select, size
from .backbones.protocol import TrainableModel
from .config import LoomConfig
from .objective import Objective
from .runs import export

_LINEAR = ("lora", "rslora", "dora", "loha")  # algorithms whose bytes grow with the rank alone; the others' shapes jump with it
_HEADER = 330  # bytes of a file's header that a layer takes
_METADATA = 4096


@dataclass(frozen=True)
class Asked:
    """What of a configuration changes the bytes of a step, except for the rank."""

    algorithm: str
    targets: tuple[str, ...]
    text: bool
    dropout: bool
    preservation: bool
    checkpointing: int
    plain: bool
    in_nf4: bool
    size: tuple[int, int]  # of the latents, in cells

    @classmethod
    def of(cls, config: LoomConfig, cells: tuple[int, int], checkpointing: int) -> Asked:
        a = config.adapter
        return cls(a.algorithm, a.target_modules or (a.targets,), a.train_text_encoder, a.dropout > 0, config.loss.preservation > 0, checkpointing,
                   config.train.plain_layers, config.train.in_nf4, cells)


class Light:
    """The answers for one model, by its shapes: `model` has `batch`, which gives a micro-batch without numbers."""

    def __init__(self, model: TrainableModel) -> None:
        self.model = model
        self._steps: dict[Asked, dict[int, int]] = {}  # rank -> bytes
        self._sizes: dict[object, tuple[int, int, int]] = {}

    def size(self, config: LoomConfig) -> tuple[int, int, int]:
        """(layers, trained values, bytes of the file). LoomError as `select` has it."""
        key = replace(config.adapter, alpha=1.0, dropout=0.0, module_dropout=0.0, init_lora=""), config.output.save_dtype
        if key not in self._sizes:
            layers, values = size(self.model, config.adapter)
            in_file = (values + self._repeated(config)) * export.DTYPES[config.output.save_dtype].itemsize
            self._sizes[key] = layers, values, in_file + layers * _HEADER + _METADATA
        return self._sizes[key]

    def _repeated(self, config: LoomConfig) -> int:
        """Values that the file holds once more: where one matrix becomes several layers, each has its input's side."""
        if self.model.family.keys != "transformer" or config.adapter.algorithm not in ("lora", "rslora", "dora"):
            return 0
        named = ((own, self.model.family.in_diffusers(own, own)) for own in select(self.model, config.adapter)["lora_unet"])
        return sum((len(found.theirs) - 1) * config.adapter.rank * self.model.modules(False)["lora_unet"].get_submodule(own).weight.shape[1]
                   for own, found in named if found is not None)

    def memory(self, config: LoomConfig, cells: tuple[int, int], checkpointing: int, rows: int) -> estimate.Memory:
        """As estimate.memory says it before the first step, for `rows` pictures of (height, width) latent cells at once."""
        _, values, _ = self.size(config)
        base, free = self.model.memory(config.train.in_nf4)
        return estimate.Memory(base, 4 * values, 4 * values + optim.kept_bytes(config.optim, values), rows * self.step(config, cells, checkpointing), free)

    def step(self, config: LoomConfig, cells: tuple[int, int], checkpointing: int) -> int:
        known, rank = self._known(config, cells, checkpointing), config.adapter.rank
        if rank not in known and (len(known) < 2 or config.adapter.algorithm not in _LINEAR):
            known[rank] = self._ask(config, cells, checkpointing)
        if rank in known:
            return known[rank]
        (low, least), (high, most) = min(known.items()), max(known.items())
        return round(least + (most - least) * (rank - low) / (high - low))

    def prepare(self, config: LoomConfig, cells: tuple[int, int], checkpointing: int) -> None:
        """Ask for the second rank, so that the next answer comes at once whatever the rank is."""
        known, rank = self._known(config, cells, checkpointing), config.adapter.rank
        if len(known) == 1 and config.adapter.algorithm in _LINEAR:
            other = rank * 4 if rank <= 32 else max(2, rank // 4)
            known[other] = self._ask(config.replace(adapter={"rank": other}), cells, checkpointing)

    def _known(self, config: LoomConfig, cells: tuple[int, int], checkpointing: int) -> dict[int, int]:
        if len(self._steps) > 1000:
            self._steps.clear()
        return self._steps.setdefault(Asked.of(config, cells, checkpointing), {})

    def _ask(self, config: LoomConfig, cells: tuple[int, int], checkpointing: int) -> int:
        """Bytes that one picture's step holds at most. No random number is drawn that others would miss."""
        model, adapter = self.model, replace(config.adapter, module_dropout=0.0)
        with model.training(config.train.precision, adapter.train_text_encoder, checkpointing, plain=config.train.plain_layers,
                                 in_nf4=config.train.in_nf4):
            with torch.device("meta"):
                own = adapted(model, adapter, 0)
                found = own.__enter__()
            try:
                parameters = [p for one in found for p in one.parameters()]
                objective = Objective(model, found, config.loss, together=not checkpointing)
                batch = model.batch(*cells, 1, adapter.train_text_encoder, config.loss.preservation > 0)
                return estimate.peak(objective, batch, SimpleNamespace(parameters=parameters))
            finally:
                own.__exit__(None, None, None)
