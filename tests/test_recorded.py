"""Recorded steps: the same gradients, compared before they are used, and the network itself wherever a recording would not do.

No CUDA device is needed: repeater.py stands in for one.
"""
from __future__ import annotations

import gc
import importlib.util
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from lora_loom.trainer import attempts, devices, recording
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.data.folder import Dataset, read_dataset
from lora_loom.trainer.hooks import Hooks, Progress
from lora_loom.trainer.job import Result, train
from lora_loom.trainer.layers import recorded as layers
from lora_loom.trainer.layers.compiled import GONE
from lora_loom.trainer.layers.recorded import Recorded
from lora_loom.trainer.objective import Objective
from lora_loom.trainer.recording import FAILED, HERE, LEAST, MEMORY, ROOM, SLOWER, Recording


def by_path(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"loom_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


repeater = by_path("repeater")
Repeater = repeater.Repeater


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen, self.down, self.up, self.idle = torch.nn.Linear(8, 8), torch.nn.Linear(8, 2), torch.nn.Linear(2, 8), torch.nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.calls = 0

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor | None = None, options: dict | None = None) -> dict[str, torch.Tensor]:
        self.calls += 1
        y = self.frozen(x) * t[:, None] + self.up(self.down(x).tanh())
        return {"sample": y if context is None else y + context * (options or {}).get("scale", 1)}


def recorded_here(repeater: Repeater | None = None, **options: Any) -> Recorded:
    return Recorded(recorder=lambda device: repeater or Repeater(), **options)


def asked(network: Network, seed: int, rows: int = 3, **more: Any) -> tuple[torch.Tensor, ...]:
    """(answer, gradients of all that is trained) for numbers drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    x, t, context = torch.randn(rows, 8, generator=generator), torch.rand(rows, generator=generator), torch.randn(rows, 8, generator=generator)
    network.zero_grad(set_to_none=True)
    answer = network(x, t, context=context, **more)["sample"]
    (answer * torch.randn(rows, 8, generator=generator)).sum().backward()
    return answer.detach().clone(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)


def same(mine: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return len(mine) == len(other) > 3 and all(torch.equal(m, o) for m, o in zip(mine, other))


@pytest.fixture
def network() -> Network:
    return Network()


def test_the_same_answers_and_gradients(network: Network) -> None:
    expected, recorded = [asked(network, seed) for seed in range(4)], recorded_here()
    calls = network.calls
    with recorded.of(network, lambda layer: True):
        assert recorded.usable and same(asked(network, 0), expected[0]) and network.calls == calls + 1 and not recorded.recordings
        recorded.on = True
        assert same(asked(network, 1), expected[1]) and recorded.recordings == 1 and not recorded.failed
        for seed in (0, 3, 2, 3):
            assert same(asked(network, seed), expected[seed])
        with torch.no_grad():
            for p in network.parameters():  # an optimizer's step
                p.mul_(0.9)
            answers = network(torch.ones(1, 8), torch.ones(1))["sample"]
        changed = asked(network, 2)
    assert "forward" not in network.__dict__ and not same(changed, expected[2])
    assert same(asked(network, 2), changed) and torch.equal(network(torch.ones(1, 8), torch.ones(1))["sample"], answers)
    assert recorded.recordings == 1


def test_each_shape_and_each_option_has_its_own_recording(network: Network) -> None:
    options = {"scale": 2.0}
    expected = {rows: asked(network, 5, rows) for rows in (2, 3)}
    scaled, recorded = asked(network, 5, options=options), recorded_here()
    with recorded.of(network, lambda layer: True):
        recorded.on = True
        for _ in range(3):
            assert same(asked(network, 5), expected[3]) and same(asked(network, 5, 2), expected[2]) and same(asked(network, 5, options=options), scaled)
        assert recorded.recordings == 3
        assert same(asked(network, 5, options={"scale": True}), expected[3]) and recorded.recordings == 4  # which is no 1.0
        with torch.no_grad():
            ones = torch.ones(3, 8)
            assert torch.equal(network(ones, torch.ones(3))["sample"], network.frozen(ones) + network.up(network.down(ones).tanh()))
    assert recorded.recordings == 4


def test_shapes_beyond_those_that_are_held_run_as_ever(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "SHAPES", 2)
    expected, recorded = {rows: asked(network, 5, rows) for rows in (1, 2, 3, 4)}, recorded_here()
    with recorded.of(network, lambda layer: True):
        recorded.on = True
        for rows in (1, 2, 3, 4, 3, 2, 1):
            assert same(asked(network, 5, rows), expected[rows])
        assert recorded.recordings == 2 and recorded.on and not recorded.failed


def test_two_answers_before_their_gradients(network: Network) -> None:
    """The second would write over what the first needs."""
    expected, recorded = [asked(network, seed) for seed in (1, 2)], recorded_here(several=True)
    with recorded.of(network, lambda layer: True):
        recorded.on = True
        asked(network, 0)
        network.zero_grad(set_to_none=True)
        losses = []
        for seed in (1, 2):
            generator = torch.Generator().manual_seed(seed)
            x, t, context = torch.randn(3, 8, generator=generator), torch.rand(3, generator=generator), torch.randn(3, 8, generator=generator)
            losses.append((network(x, t, context=context)["sample"] * torch.randn(3, 8, generator=generator)).sum())
        sum(losses).backward()
        both = [p.grad for p in network.parameters() if p.grad is not None]
        assert len(both) == 4
        for mine, first, second in zip(both, expected[0][1:], expected[1][1:]):
            torch.testing.assert_close(mine, first + second)
        # and an answer whose gradients nobody asks for holds nothing up
        network(x, t, context=context)
        del losses
        gc.collect()
        calls = network.calls
        assert same(asked(network, 2), expected[1]) and network.calls == calls + 1  # the repeater's own


@pytest.mark.parametrize("several", [True, False])
def test_gradients_that_add_up_are_not_written_over(network: Network, several: bool) -> None:
    expected, recorded = [asked(network, seed) for seed in (1, 2)], recorded_here(several=several)
    with recorded.of(network, lambda layer: True):
        recorded.on = True
        asked(network, 0)
        network.zero_grad(set_to_none=True)
        for seed in (1, 2):
            generator = torch.Generator().manual_seed(seed)
            x, t, context = torch.randn(3, 8, generator=generator), torch.rand(3, generator=generator), torch.randn(3, 8, generator=generator)
            (network(x, t, context=context)["sample"] * torch.randn(3, 8, generator=generator)).sum().backward()
        added = [p.grad for p in network.parameters() if p.grad is not None]
        right = all(torch.allclose(mine, first + second) for mine, first, second in zip(added, expected[0][1:], expected[1][1:]))
        assert right == several  # what it is for


@pytest.mark.parametrize("fault", ["another gradient", "no number", "a gradient left out", "a stale answer", "waits", "breaks", "memory"])
def test_a_recording_that_is_not_the_network_is_not_used(network: Network, fault: str) -> None:
    expected = [asked(network, seed) for seed in range(3)]

    def spoil(number: int, gradients: tuple) -> None:
        if fault == "another gradient" and number == 2:  # the first repetition was right
            gradients[0].add_(0.1)
        if fault == "no number":
            gradients[-3].fill_(torch.nan)
        if fault == "a gradient left out":
            gradients[1].zero_()
        if fault == "breaks":
            raise RuntimeError("operation not permitted when stream is capturing")
        if fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")

    recorded = recorded_here(Repeater("a layer waits for the device" if fault == "waits" else "", spoil, fault == "a stale answer"))
    with recorded.of(network, lambda layer: True):
        recorded.on = True
        assert all(same(asked(network, seed), expected[seed]) for seed in range(3))
        assert not recorded.on and not recorded.usable and recorded.recordings == 1 and not recorded._held
    words = {"waits": "a layer waits for the device", "breaks": "not permitted", "memory": "OutOfMemoryError"}.get(fault, "other gradients than the network itself")
    assert words in recorded.failed
    with recorded.of(network, lambda layer: True):
        assert not recorded.usable and "forward" not in network.__dict__


def test_networks_that_it_is_not_for(network: Network) -> None:
    recorded = recorded_here()
    with recorded.of(network, lambda layer: layer is not network.up):
        assert not recorded.usable and "forward" not in network.__dict__
    network.forward = lambda x, t: x  # somebody else's
    with recorded.of(network, lambda layer: True):
        assert not recorded.usable
    del network.forward
    network.requires_grad_(False)
    with recorded.of(network, lambda layer: True):
        recorded.on = True
        network(torch.ones(1, 8), torch.ones(1))
        assert "trained itself" in recorded.failed and not recorded.on


def test_it_records_anew_where_the_network_runs_otherwise_but_not_for_ever(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MOST", 4)
    state = [0]
    expected, recorded = asked(network, 1), recorded_here(state=lambda: state[0])
    with recorded.of(network, lambda layer: True):
        recorded.on = True
        for state[0] in (0, 0, 1, 1, 0, 2):
            assert same(asked(network, 1), expected)
        assert recorded.recordings == 4 and recorded.on
        state[0] = 3
        assert same(asked(network, 1), expected) and recorded.recordings == 4 and "too often" in recorded.failed


def test_an_error_of_the_networks_own_is_the_networks(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = recorded_here()
    monkeypatch.setattr(Network, "forward", lambda self, x, t, context=None: x / 0 if t is None else self.nothing)
    with recorded.of(network, lambda layer: True):
        recorded.on = True
        with pytest.raises(AttributeError, match="nothing"):
            network(torch.ones(1, 8), torch.ones(1))
        assert "AttributeError" in recorded.failed


def test_no_device_records_on_a_cpu(network: Network) -> None:
    recorded, expected = Recorded(), asked(network, 0)
    with recorded.of(network, lambda layer: True):
        recorded.on = True
        assert same(asked(network, 0), expected) and "cpu records nothing" in recorded.failed


# ---------------------------------------------------------------- in a run

CONFIG = LoomConfig().replace(
    adapter={"rank": 2, "alpha": 2.0}, optim={"learning_rate": 1e-3, "scheduler": "constant"}, loss={"caption_dropout": 0.0},
    train={"steps": 12, "precision": "fp32", "seed": 5, "compile": "auto"}, output={"name": "toy", "save_dtype": "fp32"})


@pytest.fixture(scope="module")
def model() -> backbone.DiffusersModel:
    return backbone.load("toy_base", "cpu", "fp32")


@pytest.fixture
def dataset(circles: Callable[..., Path]) -> Dataset:
    return read_dataset(circles(colours=("red", "green")), resolution=64, min_size=32)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    return repeater.records_on_the_cpu(monkeypatch)


def run(model: backbone.DiffusersModel, dataset: Dataset, config: LoomConfig, folder: Path, **hooks: Any) -> Result:
    return train(model, dataset, config, loras_folder=folder / "loras", runs_folder=folder / "runs", hooks=Hooks(**hooks))


@pytest.mark.parametrize("options", [{}, {"train": {"gradient_accumulation_steps": 2}}, {"adapter": {"algorithm": "loha"}},
                                     {"loss": {"preservation": 0.5}}, {"train": {"validation_steps": 5}}, {"optim": {"ema_decay": 0.9}}], ids=str)
def test_a_run_learns_the_same(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, made: list[Recording], options: dict) -> None:
    config = CONFIG.replace(**options)
    if "loss" in options:
        dataset = read_dataset(dataset.folder, resolution=64, min_size=32, trigger_word="circle")
    never = run(model, dataset, config.replace(train={"compile": "never"}), tmp_path / "never")
    assert not made
    events: list[tuple] = []
    result = run(model, dataset, config, tmp_path / "auto", event=lambda name, data: events.append((name, data.get("change"))))
    assert made[0].recorded.recordings == 1 and not made[0].recorded.failed and ("compiling", HERE) in events
    assert len(made[0].after) + len(made[0].before) >= 8
    assert result.losses == pytest.approx(never.losses, rel=1e-4)
    for key, value in never.lora.items():
        torch.testing.assert_close(result.lora[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", [
    {"train": {"compile": "never"}}, {"train": {"plain_layers": True}}, {"adapter": {"dropout": 0.1}}, {"adapter": {"module_dropout": 0.1}},
    {"adapter": {"train_text_encoder": True}}, {"train": {"gradient_checkpointing": True}}], ids=str)
def test_runs_that_it_is_not_for(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, made: list[Recording], options: dict) -> None:
    """What draws within the network, is trained outside it, or runs in parts."""
    run(model, dataset, CONFIG.replace(**options), tmp_path)
    assert not any(one.recorded.recordings for one in made)


@pytest.mark.parametrize("device, hip, allocator, why", [("cuda", None, "native", None), ("cuda", None, "cudaMallocAsync", devices.NATIVE),
                                                         ("cuda", "7.1", "native", ""), ("cpu", None, "native", "")])
def test_where_recordings_are_not_safe(monkeypatch: pytest.MonkeyPatch, device: str, hip: str | None, allocator: str, why: str | None) -> None:
    """ComfyUI's default allocator ends the process where a recording breaks off."""
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: allocator)
    assert devices.why_not_recorded(torch.device(device)) == why


@pytest.mark.parametrize("train", [{"compile": "always"}, {"compile": "auto"}, {"compile": "always", "plain_layers": True}], ids=str)
def test_who_asks_for_everything_is_told_what_there_is_not(
        model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: dict) -> None:
    made = []
    monkeypatch.setattr(attempts, "why_not_recorded", lambda device: devices.NATIVE)
    monkeypatch.setattr(attempts, "Recording", lambda *given: made.append(given))
    if "plain_layers" not in train:  # a compiler takes its time
        monkeypatch.setattr(attempts.Attempts, "_compiling", lambda self: SimpleNamespace(
            blocks=None, begin=lambda room: None, watching=lambda then: then, notes=lambda: []))
    report = run(model, dataset, CONFIG.replace(train={"steps": 2, **train}), tmp_path).report
    assert not made and [note in report for note in (devices.NATIVE, attempts.NEITHER)] == [train == {"compile": "always"}, "plain_layers" in train]


def test_batches_of_two_sizes_are_two_recordings(model: backbone.DiffusersModel, circles: Callable[..., Path], tmp_path: Path, made: list[Recording]) -> None:
    dataset, config = read_dataset(circles(colours=("red", "green", "blue")), resolution=64, min_size=32), CONFIG.replace(train={"batch_size": 2, "steps": 20})
    never = run(model, dataset, config.replace(train={"compile": "never"}), tmp_path / "never")
    result = run(model, dataset, config, tmp_path / "auto")
    assert made[0].sizes == 2 and made[0].recorded.recordings == 2 and not made[0].recorded.failed
    assert result.losses == pytest.approx(never.losses, rel=1e-4)


def test_a_part_of_a_step_leaves_no_graph_to_the_next(
        model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, made: list[Recording], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its nodes belong to the stream of whoever asked, and would break off a recording that meets them."""
    graphs, alive, forward = [], [], layers._Replay.forward

    def asked(ctx: Any, held: Any, *given: Any) -> torch.Tensor:
        gc.collect()
        alive.append(any(graph() is not None for graph in graphs))
        token = given[0]
        graphs.append(weakref.ref(token))
        return forward(ctx, held, *given)

    objective = Objective.__call__

    def watched(self: Objective, *given: Any) -> torch.Tensor:
        loss = objective(self, *given)
        node = loss.grad_fn
        node.metadata["mine"] = mark = type("Mark", (), {})()
        graphs.append(weakref.ref(mark))
        return loss

    monkeypatch.setattr(Objective, "__call__", watched)
    monkeypatch.setattr(layers._Replay, "forward", staticmethod(asked))
    run(model, dataset, CONFIG.replace(train={"gradient_accumulation_steps": 3, "steps": 10}), tmp_path)
    assert made[0].recorded.recordings == 1 and len(alive) > 3 and not any(alive)


def test_memory_that_runs_out_beside_a_recording_costs_the_recording_first(
        model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, made: list[Recording], monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple] = []

    def progress(now: Progress) -> None:
        if now.phase == "train" and now.step == 9 and made[0].recorded.on:
            raise torch.OutOfMemoryError("CUDA out of memory")

    result = run(model, dataset, CONFIG, tmp_path, progress=progress, event=lambda name, data: events.append((name, data.get("change"))))
    assert [change for name, change in events if name in ("compiling", "out of memory")] == [HERE, MEMORY] and result.steps == 12


# ---------------------------------------------------------------- whether it pays

class Clock:
    """Steps of so many seconds, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: float | None = ROOM, usable: bool = True, sizes: int = 1, epoch: int = 10) -> None:
        self.now, self.step, self.events = 100.0, 0, []
        monkeypatch.setattr(recording.time, "monotonic", lambda: self.now)
        self.recorded = Recorded()
        self.recorded.usable = usable
        self.recording = Recording(self.recorded, sizes, epoch, Hooks(event=lambda name, data: self.events.append((name, data["step"], data["change"]))))
        self.recording.begin(room)
        self.watch = self.recording.watching(lambda now: None)

    def steps(self, count: int, seconds: float, total: int = 1000, recordings: int = 0, validation: float | None = None) -> None:
        for _ in range(count):
            self.now += seconds
            self.step += 1
            self.recorded.recordings += recordings
            self.watch(Progress("train", self.step, total, validation_loss=validation))


def test_it_is_kept_where_steps_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.steps(7, 0.1)
    assert clock.recorded.on and clock.events == [("compiling", 7, HERE)] and not clock.recording.settled and clock.recording.notes() == []
    clock.steps(1, 3.0, recordings=1)
    clock.steps(1, 2.0, validation=0.5)
    clock.steps(7, 0.04)
    assert clock.recorded.on and clock.recording.settled and len(clock.events) == 1
    assert clock.recording.notes() == ["CUDA graphs made a step 2.50 times as fast"]


def test_it_is_not_kept_where_steps_are_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.steps(7, 0.1)
    clock.steps(1, 3.0, recordings=1)
    clock.steps(7, 0.099)
    assert not clock.recorded.on and clock.recording.settled and clock.events[1:] == [("compiling", 15, SLOWER)] and clock.recording.notes() == []
    clock.steps(20, 0.1)
    assert not clock.recorded.on and len(clock.events) == 2


@pytest.mark.parametrize(("room", "usable", "total"), [(ROOM - 0.1, True, 1000), (None, True, 1000), (9.0, False, 1000), (9.0, True, LEAST)])
def test_where_it_is_not_tried(monkeypatch: pytest.MonkeyPatch, room: float | None, usable: bool, total: int) -> None:
    clock = Clock(monkeypatch, room, usable)
    clock.steps(30, 0.1, total)
    assert not clock.recorded.on and not clock.events and clock.recording.settled


def test_sizes_are_compared_over_whole_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    for faster in (0.9, 1.1):
        clock = Clock(monkeypatch, sizes=2, epoch=20)
        for share in (1.0, faster):
            for _ in range(10):
                clock.steps(1, 1.0 * share)
                clock.steps(1, 0.27 * share)
            clock.steps(1, 1.0)  # the first of each, which is not counted
            if share == 1.0:
                assert clock.recorded.on
        assert clock.recorded.on == (faster < 1) and clock.recording.settled


def test_a_recording_that_fails_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.steps(7, 0.1)
    clock.recorded.stop("no")
    clock.steps(20, 0.1)
    assert clock.events[1:] == [("compiling", 8, FAILED)] and clock.recorded.failed == "no"


def test_weights_that_leave_the_device_later_are_told_as_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.steps(7, 0.1)
    clock.steps(1, 3.0, recordings=1)
    clock.steps(9, 0.04)
    assert clock.recording.settled
    clock.recorded.stop(GONE)
    clock.steps(5, 0.1)
    assert clock.events[1:] == [("compiling", 18, MEMORY)] and clock.recording.notes() == []


# ---------------------------------------------------------------- how a CUDA device is asked

@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch.cuda's names, written down as they are used; `breaks` ends a recording with an error."""
    seen = SimpleNamespace(calls=[], mode=0, breaks=None, stream="caller's")
    device = torch.device("cuda", 0)

    @contextmanager
    def stream(other: object) -> Iterator[None]:
        before, seen.stream = seen.stream, other
        try:
            yield
        finally:
            seen.stream = before

    class Graph:
        def replay(self) -> None:
            seen.calls.append("replay")

    class graph:
        def __init__(self, one: Graph, pool: str, stream: object, capture_error_mode: str) -> None:
            assert pool == "pool" and capture_error_mode == "thread_local" and isinstance(one, Graph)
            self.stream = stream

        def __enter__(self) -> None:
            assert seen.stream is self.stream
            seen.calls.append("begin")

        def __exit__(self, *error: object) -> None:
            if seen.breaks:
                seen.stream = "left behind"  # as torch leaves it
                raise seen.breaks
            seen.calls.append("end")

    generator = SimpleNamespace(clone_state=lambda: "spare", graphsafe_set_state=lambda state: seen.calls.append(state))
    names = {"Stream": lambda device: SimpleNamespace(device=device, wait_stream=lambda other: None), "current_stream": lambda device: seen, "stream": stream,
             "CUDAGraph": Graph, "graph": graph, "graph_pool_handle": lambda: "pool", "default_generators": (generator,),
             "get_sync_debug_mode": lambda: seen.mode, "set_sync_debug_mode": lambda mode: setattr(seen, "mode", mode)}
    seen.wait_stream = lambda other: None
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    seen.ended = False  # whether torch could end the recording itself

    def end(index: int, pool: str) -> None:
        if seen.ended:
            raise RuntimeError("not currently recording to mempool_id")
        seen.calls.append(("end", index, pool))

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda index, pool: seen.calls.append(("release", index, pool)), raising=False)
    seen.recorder = layers.Cuda(device)
    return seen


def test_what_waits_for_the_device_is_found_out_before_a_recording(cuda: SimpleNamespace) -> None:
    modes = []
    assert cuda.recorder.warm(lambda: modes.append(cuda.mode)) == "" and modes == ["warn"] and cuda.mode == 0
    assert "waits" in cuda.recorder.warm(lambda: warnings.warn("called a synchronizing CUDA operation", stacklevel=1)) and cuda.mode == 0
    with pytest.raises(ZeroDivisionError):
        cuda.recorder.warm(lambda: 1 / 0)
    assert cuda.mode == 0 and cuda.stream == "caller's"


def test_forward_and_backward_are_recorded_one_after_the_other(cuda: SimpleNamespace) -> None:
    x = torch.ones(3, requires_grad=True)
    found = cuda.recorder.record(lambda: x * 2, lambda answer: torch.autograd.grad(answer.sum(), x))
    assert cuda.calls == ["begin", "end", "begin", "end"] and torch.equal(found.answer, torch.full((3,), 2.0)) and not found.answer.requires_grad
    found.forward()
    found.backward()
    assert cuda.calls[4:] == ["replay", "replay"] and torch.equal(found.gradients[0], torch.full((3,), 2.0))


@pytest.mark.parametrize("ended", [False, True])
def test_a_recording_that_breaks_off_leaves_torch_as_it_was(cuda: SimpleNamespace, ended: bool) -> None:
    """What torch gave back itself is not given back twice: others may hold it."""
    cuda.ended = ended
    cuda.breaks = RuntimeError("operation failed due to a previous error during capture")
    with pytest.raises(RuntimeError, match="previous error"):
        cuda.recorder.record(lambda: torch.ones(1), lambda answer: ())
    assert cuda.calls == ["begin", *([] if ended else [("end", 0, "pool"), ("release", 0, "pool")]), "spare"] and cuda.stream == "caller's"
