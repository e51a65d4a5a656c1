"""Blocks through torch.compile: the same gradients, nothing lost where it fails, and a decision that is kept only where it pays."""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from lora_loom.trainer import attempts, compiling
from lora_loom.trainer.adapters import adapted
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.backbones.protocol import Batch
from lora_loom.trainer.compiling import FAILED, SAVED, SLOWER, Compiling, pays
from lora_loom.trainer.config import AdapterConfig, LoomConfig, LossConfig
from lora_loom.trainer.data.folder import Dataset, read_dataset
from lora_loom.trainer.hooks import Hooks, Progress
from lora_loom.trainer.job import train
from lora_loom.trainer.layers import recipes
from lora_loom.trainer.layers.compiled import Blocks, of_the_compiler
from lora_loom.trainer.layers.on_demand import weights_on_demand
from lora_loom.trainer.objective import Objective

CONFIG = LoomConfig().replace(
    adapter={"rank": 2, "alpha": 2.0}, optim={"learning_rate": 1e-3, "scheduler": "constant"}, loss={"caption_dropout": 0.0},
    train={"steps": 4, "precision": "fp32", "seed": 5, "compile": "always"}, output={"name": "toy", "save_dtype": "fp32"})


@pytest.fixture(autouse=True)
def nothing_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "WIDE", 0)


@pytest.fixture(scope="module")
def model() -> backbone.DiffusersModel:
    return backbone.load("toy_base", "cpu", "fp32")


@pytest.fixture
def dataset(circles: Callable[..., Path]) -> Dataset:
    return read_dataset(circles(colours=("red", "green")), resolution=64, min_size=32)


def gradients(model: backbone.DiffusersModel, adapter: AdapterConfig, blocks: Blocks | None, precision: str = "fp32", checkpointing: int = 0,
              steps: int = 1) -> tuple[float, list[torch.Tensor]]:
    """(loss, gradients by adapter's name) of a fixed question; adapters do something from the start."""
    batch = Batch(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), ["a red circle", "a blue star"])
    with torch.no_grad():
        batch.conditioning = model.encode_captions(batch.captions)
    with torch.enable_grad(), model.training(precision, False, checkpointing, blocks=blocks), adapted(model, adapter, 0) as adapters:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for one in adapters:
                for parameter in one.parameters():
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        objective = Objective(model, adapters, LossConfig())
        if blocks is not None:
            blocks.on = True
        for _ in range(steps):
            for one in adapters:
                for parameter in one.parameters():
                    parameter.grad = None
            loss = objective(objective.draw(batch, torch.Generator().manual_seed(3)))
            loss.backward()
        return loss.item(), [p.grad.clone() for one in adapters for p in one.parameters()]


def near(found: tuple, expected: tuple, share: float) -> None:
    assert found[0] == pytest.approx(expected[0], rel=share)
    assert len(found[1]) == len(expected[1]) > 10
    for mine, other in zip(found[1], expected[1]):
        assert (mine - other).norm() <= share * other.norm()


@pytest.mark.parametrize("checkpointing", [0, 1])
def test_the_same_gradients(model: backbone.DiffusersModel, checkpointing: int) -> None:
    adapter, blocks = AdapterConfig(rank=4, alpha=4.0, targets="all linear+conv"), Blocks("aot_eager")
    expected = gradients(model, adapter, None, "fp32", checkpointing)
    near(gradients(model, adapter, blocks, "fp32", checkpointing), expected, 1e-5)
    assert blocks.compilations >= 2 and not blocks.failed and blocks.on
    before = blocks.compilations
    near(gradients(model, adapter, None, "fp32", checkpointing), expected, 1e-6)  # nothing is left of it
    assert blocks.compilations == before


def test_in_bf16_the_gradients_are_as_near_to_those_in_fp32(model: backbone.DiffusersModel) -> None:
    adapter, blocks = AdapterConfig(rank=4, alpha=4.0, targets="all linear+conv"), Blocks("aot_eager")
    compiled, plain = gradients(model, adapter, blocks, "bf16"), gradients(model, adapter, None, "bf16")
    true = gradients(backbone.load("toy_base", "cpu", "fp32"), adapter, None)[1]
    assert blocks.compilations >= 2 and not blocks.failed
    near(compiled, plain, 5e-2)
    off = lambda found: (sum((mine - other).square().sum() for mine, other in zip(found[1], true)) / sum(other.square().sum() for other in true)).sqrt()
    assert 0 < off(compiled) <= 1.2 * off(plain) < 0.05


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch's compiler for CPUs needs a C++ compiler")
def test_the_same_gradients_from_torchs_own_compiler(model: backbone.DiffusersModel) -> None:
    adapter, blocks, kept = AdapterConfig(rank=4, alpha=4.0, targets="attention"), Blocks(), []
    convolutions = {m.weight.shape for m in model.unet.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1)}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append((t.shape, t.untyped_storage().data_ptr())) or t, lambda t: t):
        compiled = gradients(model, adapter, blocks)
    own = {p.untyped_storage().data_ptr() for p in model.unet.parameters()}
    near(compiled, gradients(model, adapter, None), 1e-5)
    assert blocks.compilations >= 2 and not blocks.failed
    assert any(shape in convolutions for shape, _ in kept) and not [shape for shape, place in kept if shape in convolutions and place not in own]


class _Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wide, self.back, self.conv = torch.nn.LayerNorm(64), torch.nn.Linear(64, 256), torch.nn.Linear(256, 64), torch.nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.back(torch.nn.functional.gelu(self.wide(self.norm(x))))
        return x + self.conv(x.transpose(1, 2).unflatten(2, (2, 2))).flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("held", "backend"), [(torch.float16, "aot_eager_decomp_partition"), (torch.float32, "aot_eager_decomp_partition"), pytest.param(
    torch.float16, "inductor", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"))], ids=str)
def test_weights_in_another_dtype_are_cast_again_and_not_kept(held: torch.dtype, backend: str) -> None:
    """SD's files are in fp16, and trained in bf16: no copy of a weight may wait for backward."""
    torch.manual_seed(0)
    net, blocks, kept, found = torch.nn.Sequential(_Block(), _Block()).to(held).requires_grad_(False), Blocks(backend), [], {}

    def fetch(layer: torch.nn.Module, like: torch.Tensor) -> AbstractContextManager:
        return nullcontext(tuple(None if p is None else p.to(like.dtype) for p in (layer.weight, layer.bias)))

    x = torch.randn(1, 4, 64, dtype=torch.bfloat16, requires_grad=True)
    with weights_on_demand(net, fetch), blocks.of(list(net), lambda layer: True):
        for blocks.on in (False, True):
            kept.clear()
            with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
                y = net(x)
            found[blocks.on] = y.detach(), *torch.autograd.grad(y.square().sum(), x)
    assert blocks.compilations and not blocks.failed
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    assert kept and max(t.untyped_storage().nbytes() for t in kept if t.untyped_storage().data_ptr() not in own) < 2 * 64 * 64
    for mine, other in zip(found[True], found[False]):
        assert (mine - other).norm() <= 1e-2 * other.norm()


def test_blocks_alike_are_compiled_once(model: backbone.DiffusersModel) -> None:
    adapter, blocks = AdapterConfig(rank=4, targets="attention"), Blocks("aot_eager")
    gradients(model, adapter, blocks, steps=3)
    count = sum(type(m).__name__ in model.family.checkpointed for m in model.unet.modules())
    assert 2 <= blocks.compilations < count


@pytest.mark.parametrize("algorithm", ["lora", "dora", "loha", "lokr", "oft"])
def test_every_algorithm_trains_with_it(model: backbone.DiffusersModel, algorithm: str) -> None:
    adapter, blocks = AdapterConfig(rank=4, alpha=4.0, algorithm=algorithm, targets="attention"), Blocks("aot_eager")
    near(gradients(model, adapter, blocks), gradients(model, adapter, None), 1e-4)
    assert blocks.compilations or blocks.failed


def test_what_cannot_be_compiled_runs_as_it_is(model: backbone.DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, blocks = AdapterConfig(rank=4, alpha=4.0, targets="all linear+conv"), Blocks("aot_eager")
    expected = gradients(model, adapter, None)

    def no_compiler(*_: Any) -> None:
        raise RuntimeError("Compiler: cl is not found.")

    monkeypatch.setattr(blocks, "_compile", no_compiler)
    near(gradients(model, adapter, blocks), expected, 1e-6)
    assert not blocks.on and not blocks.usable and all("cl is not found" in why or "Backend" in why for why in blocks.failed.values()) and blocks.failed


def test_an_error_of_a_blocks_own_is_not_the_compilers(model: backbone.DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not of_the_compiler(RuntimeError("the card is gone")) and not of_the_compiler(torch.OutOfMemoryError())
    blocks = Blocks("aot_eager")
    kind = next(type(m) for m in model.unet.modules() if type(m).__name__ in model.family.checkpointed)
    monkeypatch.setattr(blocks, "_entry", lambda kind: lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("the card is gone")))
    with pytest.raises(RuntimeError, match="the card is gone"):
        gradients(model, AdapterConfig(rank=4, targets="attention"), blocks)
    assert kind.__name__ not in blocks.failed


# ---------------------------------------------------------------- whole runs

def run(model: backbone.DiffusersModel, dataset: Dataset, config: LoomConfig, folder: Path, **hooks: Any) -> Any:
    return train(model, dataset, config, loras_folder=folder / "loras", runs_folder=folder / "runs", hooks=Hooks(**hooks))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[Blocks]:
    """Runs compile without code being made of it; the blocks that they had."""
    made: list[Blocks] = []

    def blocks() -> Blocks:
        made.append(Blocks("aot_eager"))
        return made[-1]

    monkeypatch.setattr(attempts, "Blocks", blocks)
    return made


def test_a_run_learns_the_same(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, eager: list[Blocks]) -> None:
    config = CONFIG.replace(train={"validation_steps": 2, "batch_size": 2})
    whole, never = run(model, dataset, config, tmp_path / "whole"), run(model, dataset, config.replace(train={"compile": "never"}), tmp_path / "never")
    assert len(eager) == 1 and eager[0].compilations
    assert whole.losses == pytest.approx(never.losses, rel=1e-5)
    for name, tensor in never.lora.items():
        torch.testing.assert_close(whole.lora[name], tensor, rtol=1e-3, atol=1e-5)
    run(model, dataset, config.replace(train={"compile": "auto"}), tmp_path / "auto")
    assert len(eager) == 1  # on a CPU not unasked


def test_a_compiler_that_fails_in_backward_costs_no_step(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, eager: list[Blocks],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    never = run(model, dataset, CONFIG.replace(train={"compile": "never"}), tmp_path / "never")
    calls: list[int] = []
    plain = torch.Tensor.backward

    def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 3 and eager[0].on:
            raise torch._dynamo.exc.BackendCompilerFailed("inductor", RuntimeError("no such kernel"), [])
        plain(self, *args, **kwargs)

    events: list[tuple[str, dict]] = []
    seen: list[int] = []
    monkeypatch.setattr(attempts.Attempts, "_needs", lambda *_: None)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    result = run(model, dataset, CONFIG, tmp_path / "broken", event=lambda name, data: events.append((name, data)),
                 progress=lambda now: seen.append(now.step) if now.phase == "train" else None)
    assert [data for name, data in events if name == "compiling"] == [{"step": 3, "change": FAILED}]
    assert seen == [1, 2, 3, 4] and result.losses == pytest.approx(never.losses, rel=1e-5) and not eager[0].on
    assert "no such kernel" in result.report


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_kind_that_fails_after_blocks_of_it_ran_compiled_costs_no_step(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, eager: list[Blocks],
                                                                         monkeypatch: pytest.MonkeyPatch, checkpointing: bool) -> None:
    """Checkpoints then ask in backward for what they did not see in forward."""
    config = CONFIG.replace(train={"gradient_checkpointing": checkpointing, "steps": 3})
    never = run(model, dataset, config.replace(train={"compile": "never"}), tmp_path / "never")
    entry, calls = Blocks._entry, []

    def full(self: Blocks, kind: type) -> Callable:
        calls.append(kind)
        if calls.count(kind) == 3:
            raise torch._dynamo.exc.InternalTorchDynamoError("what is this")
        return entry(self, kind)

    monkeypatch.setattr(Blocks, "_entry", full)
    seen: list[int] = []
    result = run(model, dataset, config, tmp_path / "limit", progress=lambda now: seen.append(now.step) if now.phase == "train" else None)
    assert seen == [1, 2, 3] and result.losses == pytest.approx(never.losses, rel=1e-5) and eager[0].failed


def test_memory_that_runs_out_first_costs_the_compiled_blocks(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, eager: list[Blocks],
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    predict, calls = backbone.DiffusersModel.predict, []

    def full(self: Any, noisy: torch.Tensor, *args: Any) -> torch.Tensor:
        if torch.is_grad_enabled() and noisy.shape[-1] >= 8:
            calls.append(1)
            if len(calls) in (2, 4):
                raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, noisy, *args)

    events: list[tuple[str, dict]] = []
    monkeypatch.setattr(backbone.DiffusersModel, "predict", full)
    result = run(model, dataset, CONFIG, tmp_path, event=lambda name, data: events.append((name, data)))
    changes = [data["change"] for name, data in events if name in ("compiling", "out of memory")]
    assert changes == ["blocks are no longer compiled: memory ran out", "gradient checkpointing in every second block"] and result.steps == 4


def test_what_it_is_not_for(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, eager: list[Blocks]) -> None:
    run(model, dataset, CONFIG.replace(train={"plain_layers": True}), tmp_path)
    assert not eager


# ---------------------------------------------------------------- whether it pays

class Clock:
    """Steps of so many seconds, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wanted: str = "auto", kinds: int = 6, sizes: int = 1, epoch: int = 10, room: float | None = None) -> None:
        self.now, self.step, self.events = 100.0, 0, []
        monkeypatch.setattr(compiling.time, "monotonic", lambda: self.now)
        self.blocks = Blocks()
        self.blocks._shapes = {("Block", n) for n in range(kinds)}
        self.compiling = Compiling(self.blocks, wanted, sizes, epoch, Hooks(event=lambda name, data: self.events.append((name, data["step"], data["change"]))))
        self.compiling.begin(room)
        self.watch = self.compiling.watching(lambda now: None)

    def steps(self, count: int, seconds: float, total: int = 10_000, compiled: int = 0, validation: float | None = None) -> None:
        for _ in range(count):
            self.now += seconds
            self.step += 1
            self.blocks.compilations += compiled
            self.watch(Progress("train", self.step, total, validation_loss=validation))


def test_it_is_tried_where_it_pays_and_kept_where_steps_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.steps(7, 1.0)
    assert clock.blocks.on and clock.events == [("compiling", 7, "blocks are compiled from here on")]
    clock.steps(2, 40.0, compiled=3)
    clock.steps(1, 30.0, validation=0.5)
    clock.steps(30, 0.8)
    assert clock.blocks.on and len(clock.events) == 1
    assert clock.compiling.notes() == ["Compiled blocks made a step 1.25 times as fast, after 80 s of compiling"]


def test_it_is_not_kept_where_steps_are_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.steps(7, 1.0)
    clock.steps(2, 40.0, compiled=3)
    clock.steps(7, 0.99)
    assert not clock.blocks.on and clock.events[1:] == [("compiling", 16, SLOWER)] and clock.compiling.notes() == []
    clock.steps(50, 1.0)
    assert not clock.blocks.on and len(clock.events) == 2


def test_a_short_run_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.steps(50, 1.0, total=1000)
    assert not clock.blocks.on and not clock.events  # 12 % of a thousand seconds do not earn six compilations back twice
    assert not pays(1.0, 1000, {"Block": 6}, 1) and pays(1.0, 10_000, {"Block": 6}, 1) and SAVED <= 0.14
    assert pays(1.0, 10**9, {"Block": 2, "Other": 32}, 2) and not pays(1.0, 10**9, {"Block": 2, "Other": 32}, 3)  # more shapes than are kept


def test_a_card_that_is_nearly_full_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for room, tried in ((1.2, False), (2.0, True)):
        clock = Clock(monkeypatch, room=room)
        clock.steps(7, 1.0)
        assert clock.blocks.on == tried and bool(clock.events) == tried


def test_sizes_are_compared_over_whole_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    for faster in (0.9, 1.1):
        clock = Clock(monkeypatch, sizes=2, kinds=1, epoch=20)
        for share in (1.0, faster):
            for _ in range(10):
                clock.steps(1, 1.0 * share)
                clock.steps(1, 0.27 * share)
            clock.steps(1, 1.0)  # the first of each, which is not counted
            if share == 1.0:
                assert clock.blocks.on
        clock.steps(2, 0.6)
        assert clock.blocks.on == (faster < 1)


def test_more_compilations_than_were_reckoned_with_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.steps(7, 1.0, total=3000)
    assert clock.blocks.on
    clock.steps(20, 30.0, total=3000, compiled=1)
    assert not clock.blocks.on and clock.events[1:] == [("compiling", 19, compiling.TOO_LONG)]


def test_a_compiler_that_fails_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.steps(7, 1.0)
    clock.blocks.stop("Unsupported: what is this")
    clock.steps(5, 1.0)
    assert clock.events[1:] == [("compiling", 8, FAILED)]


def test_who_wants_it_always_is_told_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, "always")
    assert clock.blocks.on
    clock.blocks.stop("Unsupported: what is this")
    clock.steps(20, 1.0)
    assert clock.compiling.notes() == ["Blocks could not be compiled: Block, Unsupported: what is this"] and clock.events == [("compiling", 1, FAILED)]


def test_who_wants_it_always_is_told_that_no_block_was_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, "always", kinds=0)
    clock.steps(3, 1.0)
    assert not clock.blocks.on and clock.compiling.notes() == [compiling.NOT_READY] and not clock.events


def test_the_limit_goes_by_the_name_that_torch_has_for_it() -> None:
    from lora_loom.trainer.layers.compiled import _limit

    assert hasattr(torch._dynamo.config, _limit(torch._dynamo.config))
    assert _limit(type("Config", (), {"cache_size_limit": 8})()) == "cache_size_limit"


def test_an_error_before_the_compiler_begins_is_its_own(model: backbone.DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Blocks("aot_eager")
    expected = gradients(model, AdapterConfig(rank=4, targets="attention"), None)

    def broken(*_: Any) -> None:
        raise AttributeError("torch._dynamo.config.recompile_limit does not exist")

    monkeypatch.setattr(blocks, "_entry", broken)
    near(gradients(model, AdapterConfig(rank=4, targets="attention"), blocks), expected, 1e-6)
    assert blocks.failed and not blocks.on


def test_more_shapes_than_are_kept_run_as_ever(model: backbone.DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_loom.trainer.layers import compiled

    monkeypatch.setattr(compiled, "SHAPES", 1)
    adapter, blocks = AdapterConfig(rank=4, alpha=4.0, targets="attention"), Blocks("aot_eager")
    near(gradients(model, adapter, blocks, checkpointing=1, steps=2), gradients(model, adapter, None, checkpointing=1), 1e-5)
    assert blocks.compilations == 2 and not blocks.failed and blocks.on


def test_it_is_a_setting_that_a_resumed_run_may_change() -> None:
    from lora_loom.trainer.runs.checkpoint import FREE

    assert ("train", "compile") in FREE and json.loads(json.dumps(CONFIG.to_dict()))["train"]["compile"] == "always"
