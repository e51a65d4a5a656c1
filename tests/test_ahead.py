"""A device that is given steps before anybody has read what came of the one before: the same numbers, files and events as one by one."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_loom.trainer import loop
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.backbones.diffusers_load import load_parts
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.data.folder import Dataset, read_dataset
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.hooks import Hooks, Progress
from lora_loom.trainer.job import train
from lora_loom.trainer.state import State

CONFIG = LoomConfig().replace(
    adapter={"rank": 2, "alpha": 2.0, "dropout": 0.1, "target_modules": (r"attn2\.to_v$",)},
    optim={"learning_rate": 1e-3, "scheduler": "cosine", "warmup_steps": 2},
    train={"steps": 6, "precision": "fp32", "seed": 5}, output={"name": "toy", "save_dtype": "fp32", "save_minutes": 0.0})


class Interrupt(BaseException):
    """A host's own."""


class Model(backbone.DiffusersModel):
    """The toy base; at some of its steps something happens first."""

    happens: Callable[[int, torch.Tensor], torch.Tensor]
    calls = 0

    def predict(self, noisy: torch.Tensor, *args: object) -> torch.Tensor:
        answer = super().predict(noisy, *args)
        if noisy.shape[-1] < 8 or not torch.is_grad_enabled():  # asked for its memory, or for a validation
            return answer
        self.calls += 1
        return self.happens(self.calls, answer)


@pytest.fixture(scope="module")
def model() -> Model:
    model = Model(load_parts("toy_base", torch.float32), torch.device("cpu"))
    model.encode_captions([""])  # transformers marks a text encoder at its first call
    return model


@pytest.fixture
def dataset(circles: Callable[..., Path]) -> Dataset:
    return read_dataset(circles(colours=("red", "green", "blue", "yellow")), resolution=64, min_size=32)


@pytest.fixture
def told(model: Model, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """`told(config, happens, …)`: all that is left of a run one by one, and of the same run with a step ahead."""

    def run(config: LoomConfig, happens: Callable = lambda call, answer: answer, hooks: Callable[[], dict[str, Any]] = dict, resume: bool = False) -> list[dict[str, Any]]:
        return [once(ahead, config, happens, hooks(), resume) for ahead in (False, True)]

    def once(ahead: bool, config: LoomConfig, happens: Callable, hooks: dict[str, Any], resume: bool) -> dict[str, Any]:
        monkeypatch.setattr(State, "skips_by_itself", ahead)
        model.calls, model.happens = 0, happens
        folder, events, steps, error = tmp_path / str(ahead), [], [], ""
        progress = hooks.pop("progress", lambda now: None)
        watch = Hooks(progress=lambda now: (steps.append(now), progress(now)), event=lambda name, data: events.append(name), **hooks)
        try:
            result = train(model, dataset, config, loras_folder=folder / "loras", runs_folder=folder / "runs", hooks=watch, resume="toy" if resume else "")
        except (LoomError, RuntimeError, Interrupt) as raised:
            result, error = None, f"{type(raised).__name__}: {raised}"
        metrics = folder / "runs" / "toy" / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else []
        keep = ("step", "loss", "smoothed_loss", "learning_rate", "grad_norm", "validation_loss")
        return {
            "files": {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}, "steps": [now.step for now in steps if now.phase == "train"],
            "metrics": [{name: line.get(name) for name in keep} for line in lines], "events": [name for name in events if name != "estimate"],
            "error": error, "report": result and result.report, "calls": model.calls}

    return run


@pytest.mark.parametrize("changed", [
    {}, {"train": {"gradient_accumulation_steps": 3}}, {"optim": {"ema_decay": 0.9}}, {"optim": {"max_grad_norm": 1e-4}},
    {"adapter": {"algorithm": "dora"}}, {"adapter": {"train_text_encoder": True}},
    {"train": {"validation_steps": 2}, "output": {"save_steps": 2}, "samples": {"sample_steps": 3}},
], ids=str)
def test_the_same_run(told: Callable, changed: dict) -> None:
    apart, ahead = told(CONFIG.replace(**changed))
    assert apart == ahead
    assert apart["steps"] == [1, 2, 3, 4, 5, 6] and apart["files"] and len({line["loss"] for line in apart["metrics"]}) == 6


def test_a_step_is_computed_before_the_one_before_it_is_read(told: Callable, model: Model) -> None:
    """What the order is for; and that nothing is computed beyond the end, nor before adapters that a validation asks for."""
    computed: list[tuple[int, int]] = []
    apart, ahead = told(CONFIG.replace(train={"validation_steps": 4}),
                        hooks=lambda: {"progress": lambda now: computed.append((now.step, model.calls)) if now.phase == "train" else None})
    assert computed[:6] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6)]
    assert computed[6:] == [(1, 2), (2, 3), (3, 4), (4, 4), (5, 6), (6, 6)]
    assert apart == ahead


@pytest.mark.parametrize("bad", [(1,), (3, 5, 6), (6, 7)], ids=str)
def test_bad_steps_are_left_out(told: Callable, bad: tuple[int, ...]) -> None:
    apart, ahead = told(CONFIG.replace(optim={"ema_decay": 0.9}), lambda call, answer: answer * torch.nan if call in bad else answer)
    assert apart == ahead
    assert apart["calls"] == 6 + len(bad) and apart["events"].count("step skipped") == len(bad) and f"{len(bad)} steps were skipped" in apart["report"]


def test_an_explosion_is_left_out(told: Callable) -> None:
    config = CONFIG.replace(train={"steps": loop.TRUSTED + 4})
    apart, ahead = told(config, lambda call, answer: answer * 1000 if call == loop.TRUSTED + 2 else answer)
    assert apart == ahead and apart["events"].count("step skipped") == 1


def test_three_bad_steps_in_a_row_end_the_run(told: Callable) -> None:
    apart, ahead = told(CONFIG, lambda call, answer: answer * torch.nan if call in (4, 5, 6) else answer)
    assert "at step 4, 3 times in a row" in apart["error"] and "What was learned in 3 steps is saved as toy.safetensors" in apart["error"]
    assert {**ahead, "calls": 6} == apart and ahead["calls"] == 7


def test_a_stop_keeps_what_was_learned(told: Callable) -> None:
    def hooks() -> dict[str, Any]:
        seen: list[int] = []
        return {"progress": lambda now: seen.append(now.step) if now.phase == "train" else None, "should_stop": lambda: seen[-1:] == [3]}

    apart, ahead = told(CONFIG, hooks=hooks)
    assert {**ahead, "calls": 3} == apart and apart["steps"] == [1, 2, 3] and "Stopped at step 3 of 6" in apart["report"]
    apart, ahead = told(CONFIG, resume=True)  # on from there, in the run's own file
    assert apart == ahead and apart["steps"] == [4, 5, 6]


def test_an_interrupt_keeps_what_was_learned(told: Callable) -> None:
    def interrupted(call: int, answer: torch.Tensor) -> torch.Tensor:
        if call == 4:
            raise Interrupt
        return answer

    apart, ahead = told(CONFIG, interrupted)
    assert apart == ahead and apart["error"].startswith("Interrupt") and apart["steps"] == [1, 2, 3]
    apart, ahead = told(CONFIG, resume=True)
    assert apart == ahead and apart["steps"] == [4, 5, 6]


def test_a_resumed_run_ends_as_one_that_was_never_broken_off(told: Callable, tmp_path: Path) -> None:
    def interrupted(call: int, answer: torch.Tensor) -> torch.Tensor:
        if call == 4:
            raise Interrupt
        return answer

    told(CONFIG, interrupted)
    _, resumed = told(CONFIG, resume=True)
    for path in tmp_path.glob("*/loras/*"):
        path.rename(path.with_name(f"first_{path.name}"))
    _, whole = told(CONFIG.replace(output={"name": "whole"}))
    weights = lambda left, name: left["files"][f"{name}.safetensors"][-1000:]  # the head holds the name
    assert weights(resumed, "toy") == weights(whole, "whole")


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")], ids=["torch", "the driver", "a library"])
def test_memory_that_runs_out_costs_no_step(told: Callable, error: Exception) -> None:
    def full(call: int, answer: torch.Tensor) -> torch.Tensor:
        if call == 4:
            raise error
        return answer

    apart, ahead = told(CONFIG.replace(adapter={"dropout": 0.0}), full)
    assert apart == ahead and apart["steps"] == [1, 2, 3, 4, 5, 6] and "out of memory" in apart["events"]
    assert "gradient checkpointing in every second block" in apart["report"]


def test_memory_that_no_cheaper_way_has(told: Callable) -> None:
    def full(call: int, answer: torch.Tensor) -> torch.Tensor:
        if call >= 4:
            raise RuntimeError("CUDA error: out of memory")
        return answer

    apart, ahead = told(CONFIG.replace(adapter={"dropout": 0.0}), full)
    assert apart["error"] == ahead["error"] and "the GPU ran out of memory" in apart["error"] and "toy.safetensors" in apart["files"]


def test_an_error_in_a_hook_keeps_what_was_learned(told: Callable) -> None:
    def hooks() -> dict[str, Any]:
        def progress(now: Progress) -> None:
            if now.phase == "train" and now.step == 2:
                raise RuntimeError("the page is gone")
        return {"progress": progress}

    apart, ahead = told(CONFIG, hooks=hooks)
    assert {**ahead, "calls": 2} == apart and "the page is gone" in apart["error"] and "toy.safetensors" in apart["files"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("the card is gone")], ids=["memory", "error"])
def test_a_stop_that_is_asked_for_once_is_not_lost_where_the_next_step_fails(told: Callable, error: Exception) -> None:
    def fails(call: int, answer: torch.Tensor) -> torch.Tensor:
        if call == 4:
            raise error
        return answer

    def hooks() -> dict[str, Any]:
        seen: list[int] = []
        asked = [True]
        return {"progress": lambda now: seen.append(now.step) if now.phase == "train" else None, "should_stop": lambda: seen[-1:] == [3] and bool(asked) and asked.pop()}

    apart, ahead = told(CONFIG, fails, hooks)
    assert {**ahead, "calls": 3} == apart and not apart["error"] and "Stopped at step 3 of 6" in apart["report"]


def test_an_interrupt_while_a_step_is_waited_for_counts_it_once(told: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    read, reads = loop._Numbers.__call__, []

    def interrupted(self: loop._Numbers) -> list[float]:
        reads.append(1)
        if len(reads) == 3:
            raise Interrupt
        return read(self)

    monkeypatch.setattr(loop._Numbers, "__call__", interrupted)
    _, broken = told(CONFIG)
    assert broken["error"].startswith("Interrupt") and broken["steps"] == [1, 2, 3] and len(broken["metrics"]) == 3
    over, resumed = told(CONFIG, resume=True)
    assert over["error"].startswith("LoomError")  # one by one there was nothing to interrupt: that run is over
    assert resumed["steps"] == [4, 5, 6] and resumed["metrics"] == over["metrics"]


def test_what_a_failed_step_held_is_free_when_the_one_before_is_made_known(told: Callable, model: Model) -> None:
    import weakref

    held: list[weakref.ref] = []
    alive: list[bool] = []

    def full(call: int, answer: torch.Tensor) -> torch.Tensor:
        mine = answer * 2
        held.append(weakref.ref(mine))
        if call == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer

    def hooks() -> dict[str, Any]:
        return {"progress": lambda now: alive.append(held[-1]() is not None) if now.phase == "train" and now.step == 3 else None}

    told(CONFIG, full, hooks)
    assert alive == [False, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_the_device(dataset: Dataset, tmp_path: Path) -> None:
    model = backbone.load("toy_base", "cuda", "bf16")
    seen: list[int] = []

    def progress(now: Progress) -> None:
        if now.phase == "train":
            seen.append(now.step)
            torch.cuda.set_sync_debug_mode("error" if 5 <= now.step < 15 else "default")

    try:
        train(model, dataset, CONFIG.replace(train={"steps": 20, "precision": "bf16"}), loras_folder=tmp_path / "loras", runs_folder=tmp_path / "runs", hooks=Hooks(progress=progress))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert seen == list(range(1, 21))
