"""A run's state on disk: one safetensors file, tensors as they are and the rest as JSON in its header; whole or not at all."""
from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml

from ..config import LoomConfig
from ..errors import LoomError
from ..files import write_whole
from . import record

FILE = Path("checkpoints") / "resume.safetensors"
_KEY = "lora_loom.state"
_ANEW = {"resume": "none"}  # what mends it: a new run
# What may change between a run's start and its resumption: how long it goes on, what is written when, and what is not read again.
FREE = {("train", "steps"), ("train", "epochs"), ("train", "pictures"), ("train", "gradient_checkpointing"), ("train", "plain_layers"),
        ("train", "compile"), ("train", "memory_budget"), ("output", None), ("samples", None), ("data", "cache"), ("adapter", "init_lora")}
SELECTING = {"folder", "min_size", "caption_source", "masks"}  # what decides which pictures and captions are read, and nothing else


def write(run: Path, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    """Raises OSError where it cannot be written; the one before stays then."""
    write_whole(run / FILE, safetensors.torch.save(tensors, {_KEY: json.dumps(facts)}))


@torch.inference_mode(False)  # the optimizer goes on with these tensors
def read(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `write` wrote. LoomError where there is none, or where it cannot be read."""
    path = run / FILE
    if not run.is_dir():
        known = sorted(found.parents[1].name for found in run.parent.glob(f"*/{FILE.as_posix()}"))
        near = difflib.get_close_matches(run.name, known, 1, 0.4)
        raise LoomError(f"resume {run.name!r} is no run in {run.parent}: {f'did you mean {near[0]!r}? ' if near else ''}"
                        f"Runs that can go on: {', '.join(known) or 'none'}", _ANEW)
    if not path.is_file():
        raise LoomError(f"resume {run.name!r} has no state to go on from ({FILE.as_posix()}): it has finished, or was stopped before its first save; "
                        "choose another run, or go on from its LoRA with LoRAConfig.init_lora", _ANEW)
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            facts = json.loads(file.metadata()[_KEY])
            return {key: file.get_tensor(key).clone() for key in file.keys()}, facts
    except Exception as error:
        raise LoomError(f"resume {run.name!r}: {FILE.as_posix()} cannot be read ({error}): it is damaged; go on from a LoRA in its folder "
                        "with LoRAConfig.init_lora", _ANEW) from error


def remove(run: Path) -> None:
    (run / FILE).unlink(missing_ok=True)


def configured(run: Path) -> LoomConfig:
    """The configuration that the run was started with."""
    try:
        return LoomConfig.from_yaml((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LoomError) as error:
        raise LoomError(f"resume {run.name!r} has no readable config.yaml ({error}): choose another run", _ANEW) from error


def check_same(run: Path, config: LoomConfig, dataset: dict[str, Any]) -> None:
    """LoomError naming every setting that differs from the run's own, where it must not; also of `Dataset.settings`, where these are given."""
    before, now = {"dataset": record.dataset(run), **configured(run).to_dict()}, {"dataset": dataset, **config.to_dict()}
    changed = [(part, name) for part, values in before.items() for name, value in values.items()
               if now[part].get(name, value) != value and not {(part, name), (part, None)} & FREE]
    if changed:
        told = [f"{name} is {now[part][name]!r}, was {before[part][name]!r}" for part, name in changed]
        told += ["pictures or captions may be others too"] if {name for _, name in changed} <= SELECTING else []
        raise LoomError(f"resume {run.name!r} with other settings ({'; '.join(told)}): a run goes on as it began; set them back, or start a new run",
                        {name: before[part][name] for part, name in changed if name != "augment"})  # which is of several inputs
