"""Known before the start: memory against what a real step takes, disk against what is written, and the plan where it would not fit."""
from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lora_loom.trainer import attempts, devices, estimate, loop, optim, samples
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.backbones.families import FAMILIES
from lora_loom.trainer.config import LoomConfig, SampleConfig
from lora_loom.trainer.data.folder import Dataset, read_dataset
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.hooks import Hooks, Progress
from lora_loom.trainer.job import Result, plan, train
from safetensors.torch import load_file

CONFIG = LoomConfig().replace(adapter={"rank": 4, "alpha": 4.0}, optim={"learning_rate": 1e-3, "scheduler": "constant"}, loss={"caption_dropout": 0.0},
                              train={"steps": 3, "precision": "fp32", "seed": 5}, output={"name": "toy", "save_dtype": "fp32"})


@pytest.fixture(autouse=True)
def nothing_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_peaks", weakref.WeakKeyDictionary())


@pytest.fixture
def shapes(circles: Callable[..., Path]) -> Callable[[int], Dataset]:
    return lambda side: read_dataset(circles("a {} star", ("red", "green", "blue", "yellow"), side), resolution=side, min_size=32, trigger_word="star")


@pytest.fixture
def dataset(shapes: Callable[[int], Dataset]) -> Dataset:
    return shapes(64)


def run(dataset: Dataset, config: LoomConfig, folder: Path, model: backbone.DiffusersModel | None = None, **hooks: object) -> Result:
    return train(model or backbone.load("toy_base", "cpu", "fp32"), dataset, config, loras_folder=folder / "loras", runs_folder=folder / "runs", hooks=Hooks(**hooks))


def test_the_peak_is_that_of_the_tensors() -> None:
    layer, x = torch.nn.Linear(100, 50, bias=False), torch.randn(1000, 100)
    with torch.no_grad(), estimate.Peak() as peak:
        first = layer(x)  # 200,000 bytes
        second = first * 2
        del first
        third = second.view(10, -1)  # the same bytes
        fourth = third + 1
    assert peak.live == 400_000 and peak.peak == 400_000 and fourth.shape == (10, 5000)
    del second, third, fourth
    assert peak.live == 0


@pytest.mark.parametrize(("side", "change"), [
    (64, {}), (128, {}), (256, {}), (128, {"train": {"batch_size": 4}}), (256, {"adapter": {"targets": "all linear+conv", "algorithm": "lokr"}}),
    (128, {"loss": {"preservation": 1.0}}), (128, {"adapter": {"algorithm": "dora"}}), (128, {"adapter": {"train_text_encoder": True}}),
    (256, {"train": {"gradient_checkpointing": True}}), (128, {"train": {"gradient_checkpointing": True, "batch_size": 2}})],
    ids=["64", "128", "256", "batch", "lokr", "preservation", "dora", "text encoder", "checkpointing", "checkpointing, batch"])
def test_a_step_takes_what_was_said(shapes: Callable[[int], Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, change: dict) -> None:
    """Within the tenth that was promised; the checkpointed toy is all small parts, which do not all grow alike."""
    found, real = {}, []

    def first_step(state, objective, source, config, *_) -> None:
        real.append(estimate.peak(objective, next(source(0)), state))
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", first_step)
    with pytest.raises(KeyboardInterrupt):
        run(shapes(side), CONFIG.replace(**change), tmp_path, event=lambda name, data: found.update({name: data}))
    allowed = 0.3 if "gradient_checkpointing" in change.get("train", {}) else 0.1
    assert found["memory"]["step"] == pytest.approx(real[0], rel=allowed)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lion", "prodigy", "schedule_free_adamw"])
def test_the_optimizer_keeps_what_was_said(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    states, whole = [], loop.train
    monkeypatch.setattr(loop, "train", lambda state, *args: (states.append(state), whole(state, *args)))
    config = CONFIG.replace(optim={"optimizer": optimizer, "learning_rate": 1.0 if optimizer == "prodigy" else 1e-4, "ema_decay": 0.0 if "free" in optimizer else 0.9}, train={"steps": 1})
    run(dataset, config, tmp_path)
    [state] = states
    values = sum(p.numel() for p in state.parameters)
    kept = sum(t.numel() * t.element_size() for slot in state.optimizer.state.values() for t in slot.values() if isinstance(t, torch.Tensor) and t.numel() > 1)
    kept += sum(t.numel() * 4 for t in state.average.values) if state.average else 0
    assert optim.kept_bytes(config.optim, values) == pytest.approx(kept, rel=0.1, abs=0.7 * values)


def test_asking_changes_nothing(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.replace(adapter={"dropout": 0.3, "module_dropout": 0.2}, loss={"caption_dropout": 0.3}, optim={"ema_decay": 0.5})
    asked = run(dataset, config, tmp_path / "asked")
    monkeypatch.setattr(estimate, "memory", lambda *_: estimate.Memory(0, 0, 0, 0, None))
    plain = run(dataset, config, tmp_path / "plain")
    mine, theirs = load_file(asked.path), load_file(plain.path)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs) and asked.losses == plain.losses


def test_the_disk_takes_no_more_than_was_said(dataset: Dataset, tmp_path: Path) -> None:
    found: dict[str, dict] = {}
    config = CONFIG.replace(train={"steps": 6}, output={"save_steps": 2, "save_dtype": "fp32"}, samples={"sample_steps": 3})
    stopped = run(dataset, config, tmp_path, event=lambda name, data: found.update({name: data}), should_stop=lambda: True)
    assert stopped.steps == 1
    cached = sum(path.stat().st_size for path in (stopped.run_folder.parent / ".cache").rglob("*.safetensors"))
    first = found["memory"]["disk"]
    result = run(dataset, config, tmp_path, event=lambda name, data: found.update({name: data}))
    written = sum(path.stat().st_size for path in [result.path, *result.run_folder.rglob("*")] if path.is_file() and "tfevents" not in path.name)
    assert 0.1 * found["memory"]["disk"] < written <= found["memory"]["disk"]
    assert 0 < cached == first - found["memory"]["disk"]  # which the first run has left to the second


def test_what_would_not_fit_is_planned_before_the_first_step(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory as it would be on a small card: the run begins with the plan that fits, and learns the same."""
    config, events = CONFIG.replace(train={"batch_size": 4}), []
    whole = run(dataset, config, tmp_path / "whole", event=lambda name, data: events.append((name, data)))
    needs = next(data for name, data in events if name == "memory")
    model = backbone.load("toy_base", "cpu", "fp32")
    model.memory = lambda: (12_000_000, needs["optimizer"] + needs["step"] // 6)
    events.clear()
    small = run(dataset, config, tmp_path / "small", model, event=lambda name, data: events.append((name, data)))
    plans = [data for name, data in events if name == "will not fit"]
    ways = ["gradient checkpointing in every second block", "gradient checkpointing in every block", "each micro-batch in 2 parts",
            "each micro-batch in 4 parts"]
    assert [plan["change"] for plan in plans] == ways[:len(plans)] and plans
    assert all(plan["step"] == 1 for plan in plans) and "free for the last two" in plans[0]["needed"]
    assert "So that it fits into memory, these were changed: gradient checkpointing in every second block" in small.report
    assert small.losses == pytest.approx(whole.losses, rel=1e-4)
    finally_needed = next(data for name, data in events if name == "memory")
    assert finally_needed["step"] < needs["step"]


def test_what_fits_no_plan_is_tried_all_the_same(dataset: Dataset, tmp_path: Path) -> None:
    """An estimate is no verdict: where even the cheapest plan seems too dear, the run is tried with it."""
    model = backbone.load("toy_base", "cpu", "fp32")
    model.memory = lambda: (12_000_000, 1000)
    assert run(dataset, CONFIG, tmp_path, model).steps == 3


def test_a_budget_is_kept_by_giving_up_speed_and_one_too_small_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    events: list[tuple[str, dict]] = []
    config = CONFIG.replace(train={"batch_size": 4})
    whole = run(dataset, config, tmp_path / "whole", event=lambda name, data: events.append((name, data)))
    needs = next(data for name, data in events if name == "memory")
    held = needs["base"] + needs["lora"] + needs["optimizer"]
    events.clear()
    tight = config.replace(train={"memory_budget": (held + needs["step"] / 2) / 2**30})
    small = run(dataset, tight, tmp_path / "small", event=lambda name, data: events.append((name, data)))
    assert "So that it fits into memory, these were changed: gradient checkpointing in every second block" in small.report
    now = next(data for name, data in events if name == "memory")
    assert now["base"] + now["lora"] + now["optimizer"] + now["step"] <= held + needs["step"] / 2
    assert small.losses == pytest.approx(whole.losses, rel=1e-4)
    with pytest.raises(LoomError, match="memory_budget 0.01 GB is below the 0.01[0-9] GB that this run takes after gradient checkpointing") as error:
        run(dataset, config.replace(train={"memory_budget": 0.01}), tmp_path / "none")
    assert not list((tmp_path / "none" / "loras").glob("*"))
    run(dataset, config.replace(train=error.value.fix), tmp_path / "enough")


def test_bf16_without_its_instructions_is_said(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    said = lambda precision, device: "several times as long as fp32" in plan(FAMILIES["toy"], dataset, CONFIG.replace(train={"precision": precision}), device)
    assert said("bf16", torch.device("cpu")) and not said("bf16", "cuda") and not said("fp32", "cpu") and not said("auto", "cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not said("bf16", "cpu")


@pytest.mark.parametrize("which", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_a_cpu_with_bf16_instructions_computes_in_them(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert backbone.resolve("auto", "cpu", True) == "fp32" and backbone.resolve("auto", "cuda") == "bf16"
    monkeypatch.setattr(torch.cpu, which, lambda: True)
    assert backbone.resolve("auto", "cpu", FAMILIES["sd15"].cpu_bf16) == "bf16" and backbone.resolve("fp32", "cpu", True) == "fp32"
    assert backbone.resolve("auto", "cpu", FAMILIES["toy"].cpu_bf16) == "fp32"  # too small to gain by it
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert backbone.resolve("auto", "cpu", True) == "fp32"


def test_asking_that_fails_ends_no_run(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    events: list[tuple[str, dict]] = []
    monkeypatch.setattr(estimate, "peak", failing)
    assert run(dataset, CONFIG, tmp_path, event=lambda name, data: events.append((name, data))).steps == 3
    assert next(data for name, data in events if name == "memory")["text"] == "unknown"


def test_samples_and_validation_count_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds a step, ten for samples before the first and every four steps, 1.5 for a validation every third."""
    clock, events = [100.0], []
    monkeypatch.setattr(estimate.time, "monotonic", lambda: clock[0])
    pictures = samples.Samples.__new__(samples.Samples)
    pictures.config, pictures.failure, pictures.draws, pictures.seconds = SampleConfig(sample_steps=4), "", 1, 10.0
    assert [pictures.to_come(step, 20) for step in (0, 3, 4, 19, 20)] == [50.0, 50.0, 40.0, 10.0, 0.0] and pictures.to_come(3, 21) == 60.0
    config = CONFIG.replace(train={"validation_steps": 3})
    between = functools.partial(attempts._between, config, 20, pictures, 9)
    watch = estimate.Clock(Hooks(event=lambda name, data: events.append((name, data))), between).watching(lambda now: None)
    clock[0] += 10.0  # the first samples
    for step in range(1, 6):
        clock[0] += 2.0
        checked = None
        if step % 3 == 0:
            clock[0] += 1.5
            checked = 0.1
        watch(Progress("train", step, 20, validation_loss=checked))
        if step % 4 == 0:
            clock[0] += 10.0
    [(name, data)] = events
    said_between = between(4, 2.0)
    assert data == {"step": 4, "seconds_per_step": 2.0, "seconds": 10.0 + 4 * 2 + 1.5 + 16 * 2.0 + said_between}
    assert said_between == pytest.approx(40.0 + 6 * 4 * 9 * 2.0 / 3)


def test_the_time_is_that_of_the_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, events = [100.0], []
    monkeypatch.setattr(estimate.time, "monotonic", lambda: clock[0])
    watch = estimate.Clock(Hooks(event=lambda name, data: events.append((name, data)))).watching(lambda now: None)
    clock[0] = 109.0  # the first step warms up
    for step in range(1, 6):
        watch(Progress("train", step, 50))
        clock[0] += 2.0
    [(name, data)] = events
    assert name == "estimate" and data == {"step": 3, "seconds_per_step": 2.0, "seconds": 13.0 + 47 * 2.0}


@pytest.mark.parametrize("before", [1.0, 7e8], ids=["no cap", "no cap, as cudaMallocAsync tells it"])
def test_torch_is_held_to_the_budget_on_a_card(monkeypatch: pytest.MonkeyPatch, before: float) -> None:
    """No card is needed for it: what torch.cuda would be told, and that it is put back after an error too."""
    told, cuda = [], torch.device("cuda", 0)
    for name, answer in {"empty_cache": lambda: told.append("emptied"), "mem_get_info": lambda device: (3 * 2**30, 8 * 2**30),
                         "get_per_process_memory_fraction": lambda device: before, "set_per_process_memory_fraction": lambda share, device: told.append(share)}.items():
        monkeypatch.setattr(torch.cuda, name, answer, raising=False)
    with pytest.raises(torch.OutOfMemoryError), devices.capped(cuda, 2 * 2**30):
        assert told == ["emptied", 0.25]
        raise torch.OutOfMemoryError
    assert told == ["emptied", 0.25, 1.0]
    with devices.capped(cuda, 0), devices.capped(torch.device("cpu"), 2**30):
        assert len(told) == 3


def test_what_others_hold_on_the_card_is_not_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * 2**30)
    needs = estimate.Memory(base=2 * 2**30, lora=2**28, optimizer=0, step=0, free=None)
    attempt = SimpleNamespace(config=CONFIG.replace(train={"memory_budget": 6.0}), model=SimpleNamespace(device=torch.device("cuda", 0)))
    assert attempts.Attempts._cap(attempt, needs) == 6 * 2**30 + 5 * 2**30 - 2 * 2**30 - 2**28
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**28)  # the base lies outside torch's memory
    assert attempts.Attempts._cap(attempt, needs) == 4 * 2**30
    assert attempts.Attempts._cap(attempt, None) == 0


def test_a_run_like_an_earlier_one_is_not_asked_again(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answer at once; another rank, size or way is asked anew."""
    asked, peak, said = [], estimate.peak, []
    monkeypatch.setattr(estimate, "peak", lambda *given: asked.append(1) or peak(*given))
    model = backbone.load("toy_base", "cpu", "fp32")
    for number, change in enumerate(({}, {"optim": {"learning_rate": 5e-4}}, {"adapter": {"rank": 8}}, {"train": {"gradient_checkpointing": True}})):
        run(dataset, CONFIG.replace(**change), tmp_path / str(number), model, event=lambda name, data: said.append((data["step"], len(asked))) if name == "memory" else None)
    assert [count for _, count in said] == [2, 2, 4, 6] and said[3][0] < said[0][0] == said[1][0]
