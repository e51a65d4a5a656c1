"""All that a run goes on from, in one place: adapters, optimizer, schedule, average, random numbers, history.

It can be written down after any step and taken up again, in the same process or in another: what follows is the same, bit for bit on a CPU.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import optim
from .adapters import Adapter
from .config import LoomConfig

Written = tuple[dict[str, torch.Tensor], dict[str, Any]]  # tensors on the CPU, and facts fit for JSON
Random = tuple[torch.Tensor, torch.Tensor, "torch.Tensor | None", int]  # states of the loop's, the CPU's and the GPU's random numbers; micro-batches drawn


class Average:
    """Exponential moving average of the trained values; its decay rises as (1 + n)/(10 + n) to the given one, as in TensorFlow's."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self.decay, self.count = decay, 0
        self.values = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: list[torch.nn.Parameter]) -> None:
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        torch._foreach_lerp_(self.values, [p.detach() for p in parameters], 1 - decay)


class State:
    """A run after `step` optimizer steps. `drawn` counts micro-batches, also those of skipped steps."""

    def __init__(self, adapters: list[Adapter], config: LoomConfig, steps: int, device: torch.device) -> None:
        self.adapters, self.steps, self.device = adapters, steps, device
        self.optimizer, self.schedule = optim.build(adapters, config.optim, steps)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.average = Average(self.parameters, config.optim.ema_decay) if config.optim.ema_decay else None
        self.generator = torch.Generator().manual_seed(config.train.seed)
        self.history: list[float] = []
        self.smoothed: float | None = None
        self.drawn = self.dropped = 0  # micro-batches; steps that were skipped
        self.skipped = 0  # steps in a row
        if hasattr(self.optimizer, "train"):  # schedule-free optimizers step one point and give another
            self.optimizer.train()
        self.mark()

    @property
    def step(self) -> int:
        return len(self.history)

    @property
    def skips_by_itself(self) -> bool:
        """Whether `take` can be left to the device: torch's fused optimizers ask there whether a step is bad."""
        devices = {p.device for p in self.parameters}
        return bool(self.optimizer.defaults.get("fused")) and len(devices) == 1 and next(iter(devices)).type == "cuda"

    def random(self) -> Random:
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return self.generator.get_state(), torch.get_rng_state(), cuda, self.drawn

    def mark(self, random: Random | None = None) -> None:
        """Remember the random numbers: what is written down later goes on from here, even out of a step that was broken off."""
        self._marked = random or self.random()

    def take(self, unless: torch.Tensor | None = None) -> None:
        """One optimizer step with the gradients that are there, which are dropped then. unless: 1.0 on the device where it is to be none."""
        if unless is not None:  # as torch.amp.GradScaler tells it
            self.optimizer.grad_scale, self.optimizer.found_inf = None, unless
        self.optimizer.step()
        for adapter in self.adapters:
            adapter.settle()
        self.drop()

    def drop(self) -> None:
        """The gradients, unused."""
        self.optimizer.zero_grad(set_to_none=True)

    def advance(self, loss: float, random: Random | None = None) -> None:
        """The step was taken, and no other since; `random` as it was afterwards."""
        self.schedule.step()
        if self.average is not None:
            self.average.update(self.parameters)
        self.history.append(loss)
        self.smoothed = loss if self.smoothed is None else 0.95 * self.smoothed + 0.05 * loss
        self.skipped = 0
        self.mark(random)

    def skip(self, random: Random | None = None) -> int:
        """The step was left out; how many times in a row that makes."""
        self.skipped += 1
        self.dropped += 1
        self.mark(random)
        return self.skipped

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The adapters hold what is to be kept and looked at: the average, or what a schedule-free optimizer gives."""
        switch = getattr(self.optimizer, "eval", None)
        if switch is None and self.average is None:
            yield
            return
        raw = [p.detach().clone() for p in self.parameters]
        try:
            if switch is not None:
                switch()
            if self.average is not None:
                _copy(self.parameters, self.average.values)
            for adapter in self.adapters:  # an average need not be where they demand it
                adapter.settle()
            yield
        finally:
            if switch is not None:
                self.optimizer.train()
            _copy(self.parameters, raw)

    # ------------------------------------------------------------ written down and taken up

    def written(self) -> Written:
        """Everything, as after the last `mark`."""
        tensors = {f"adapter.{a.key}.{name}": p for a in self.adapters for name, p in a.named().items()}
        tensors.update({f"fixed.{a.key}.{name}": t for a in self.adapters for name, t in a.fixed().items()})
        tree = self.optimizer.state_dict()
        facts: dict[str, Any] = {"groups": [], "slots": {}, "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},
                                 "history": self.history, "smoothed": self.smoothed, "skipped": self.skipped, "dropped": self.dropped, "drawn": self._marked[3]}
        for number, group in enumerate(tree["param_groups"]):
            facts["groups"].append(_split(group, f"group.{number}.", tensors))
        for number, slot in tree["state"].items():
            facts["slots"][str(number)] = _split(slot, f"slot.{number}.", tensors)
        if self.average is not None:
            facts["averaged"] = self.average.count
            tensors.update({f"average.{i}": v for i, v in enumerate(self.average.values)})
        tensors.update({"random.loop": self._marked[0], "random.cpu": self._marked[1]})
        if self._marked[2] is not None:
            tensors["random.cuda"] = self._marked[2]
        return {k: v.detach().cpu().clone() for k, v in tensors.items()}, facts

    @torch.no_grad()
    def take_up(self, written: Written) -> None:
        """Go on from what `written` gave for the same configuration. Raises KeyError or RuntimeError where it does not fit."""
        tensors, facts = written
        fixed = _by_adapter(tensors, "fixed")
        for adapter in self.adapters:
            for name, parameter in adapter.named().items():
                parameter.copy_(tensors[f"adapter.{adapter.key}.{name}"])
            adapter.fix(fixed.get(adapter.key, {}))
        tree = self.optimizer.state_dict()
        groups = [{**_joined(facts["groups"][i], f"group.{i}.", tensors), "params": group["params"]} for i, group in enumerate(tree["param_groups"])]
        slots = {int(i): _joined(slot, f"slot.{i}.", tensors) for i, slot in facts["slots"].items()}
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.schedule.load_state_dict({**facts["schedule"], "lr_lambdas": [None] * len(groups)})  # functions, built anew
        if self.average is not None:
            self.average.count = facts["averaged"]
            _copy(self.average.values, [tensors[f"average.{i}"] for i in range(len(self.average.values))])
        self.history[:], self.smoothed = facts["history"], facts["smoothed"]
        self.skipped, self.dropped, self.drawn = facts["skipped"], facts["dropped"], facts["drawn"]
        self.generator.set_state(tensors["random.loop"])
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        self.mark()


def adapters_in(written: Written) -> dict[str, dict[str, torch.Tensor]]:
    """{adapter's key: its trained tensors by suffix}"""
    return _by_adapter(written[0], "adapter")


def _by_adapter(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{kind}."):
            key, _, suffix = name[len(kind) + 1:].partition(".")
            found.setdefault(key, {})[suffix] = tensor
    return found


@torch.no_grad()
def _copy(to: list, values: list[torch.Tensor]) -> None:
    for target, value in zip(to, values):
        target.copy_(value)


def _split(values: dict[str, Any], prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What of `values` is no tensor; the tensors go into `tensors` under their prefixed names, those of a dictionary inside (bitsandbytes) after its own."""
    facts: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            tensors[prefix + name] = value
        elif name != "params":
            facts[name] = _split(value, f"{prefix}{name}/", tensors) if isinstance(value, dict) else value
    return facts


def _joined(values: dict[str, Any], prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    names = [k.removeprefix(prefix) for k in tensors if k.startswith(prefix)]
    found = {name: tensors[prefix + name] for name in names if "/" not in name}
    for name, value in values.items():
        found[name] = _joined(value, f"{prefix}{name}/", tensors) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value
    return found
