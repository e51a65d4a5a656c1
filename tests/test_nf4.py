"""A base model in 4 bits: what is trained is what the unpacked weights would train, in less memory."""
from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.data.folder import Dataset, read_dataset
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.hooks import Hooks
from lora_loom.trainer.job import Result, train
from lora_loom.trainer.layers import nf4
from safetensors.torch import load_file

functions = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes, from the extra `test`")

CONFIG = LoomConfig().replace(adapter={"rank": 4, "alpha": 4.0, "targets": "all linear+conv"}, optim={"learning_rate": 1e-3, "scheduler": "constant"},
                              train={"steps": 3, "precision": "fp32", "seed": 5, "base_precision": "nf4"}, output={"name": "toy", "save_dtype": "fp32"})


@pytest.fixture
def dataset(circles: Callable[..., Path]) -> Dataset:
    return read_dataset(circles("a {} star", ("red", "green", "blue")), resolution=64, min_size=32, trigger_word="star")


def run(dataset: Dataset, config: LoomConfig, folder: Path, model: backbone.DiffusersModel | None = None, resume: str = "", **hooks: object) -> Result:
    model = model or backbone.load("toy_base", "cpu", "fp32")
    return train(model, dataset, config, loras_folder=folder / "loras", runs_folder=folder / "runs", hooks=Hooks(**hooks), resume=resume)


def blocks(model: backbone.DiffusersModel) -> list[torch.nn.Module]:
    return nf4.packable(m for m in model.unet.modules() if type(m).__name__ in model.family.checkpointed)


def test_it_trains_what_the_unpacked_weights_would(dataset: Dataset, tmp_path: Path) -> None:
    """Against a model whose weights went through bitsandbytes beforehand and are held whole: the same file, to rounding. A plain run differs."""
    before = {name: p.clone() for name, p in backbone.load("toy_base", "cpu", "fp32").unet.state_dict().items()}
    model = backbone.load("toy_base", "cpu", "fp32")
    packed = run(dataset, CONFIG, tmp_path / "packed", model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.unet.state_dict().items())  # the host's weights stay as they are

    other, layers = backbone.load("toy_base", "cpu", "fp32"), 0
    for layer in blocks(other):
        found = functions.quantize_4bit(layer.weight.data.flatten(1), blocksize=64, compress_statistics=True, quant_type="nf4")
        layer.weight.data = functions.dequantize_4bit(*found).view_as(layer.weight)
        layers += 1
    whole = run(dataset, CONFIG.replace(train={"base_precision": "as loaded"}), tmp_path / "whole", other)
    plain = run(dataset, CONFIG.replace(train={"base_precision": "as loaded"}), tmp_path / "plain")
    mine, theirs, as_loaded = (load_file(result.path) for result in (packed, whole, plain))
    assert layers > 50 and packed.losses == pytest.approx(whole.losses, rel=1e-5) and packed.losses[0] != pytest.approx(plain.losses[0], rel=1e-4)
    ups = [key for key in mine if key.endswith("lora_up.weight")]
    assert all((mine[key] - theirs[key]).norm() <= 1e-3 * theirs[key].norm() for key in ups) and any(not torch.allclose(mine[key], as_loaded[key]) for key in ups)


def test_what_it_takes_is_known(dataset: Dataset, tmp_path: Path) -> None:
    """The packed bytes by themselves, and in the run's own estimate beside the weights, which on a CPU lie in the same memory."""
    found: dict[str, dict] = {}
    model = backbone.load("toy_base", "cpu", "fp32")
    held = sum(p.numel() * p.element_size() for p in model.unet.parameters())
    packed = nf4.Packed(blocks(model), model.fetch, model.device, torch.float32)
    parts = [(q.numel(), state.absmax.numel(), 4 * state.state2.absmax.numel()) for q, state, *_ in packed._held.values()]
    biases = sum(4 * layer.bias.numel() for layer in blocks(model) if layer.bias is not None)
    assert packed.bytes == sum(map(sum, parts)) + biases
    values = sum(layer.weight.numel() for layer in blocks(model))
    assert 0.51 < (packed.bytes - biases) / values < 0.53
    run(dataset, CONFIG, tmp_path, event=lambda name, data: found.update({name: data}))
    assert found["memory"]["base"] == held + packed.bytes


def test_a_resumed_run_is_the_same(dataset: Dataset, tmp_path: Path) -> None:
    whole = run(dataset, CONFIG.replace(train={"steps": 4}), tmp_path / "whole")
    seen: list[int] = []
    stopped = run(dataset, CONFIG.replace(train={"steps": 4}), tmp_path / "parts", should_stop=lambda: len(seen) == 2,
                  progress=lambda now: seen.append(now.step) if now.phase == "train" else None)
    assert stopped.steps == 2
    with pytest.raises(LoomError, match="base_precision"):
        run(dataset, CONFIG.replace(train={"steps": 4, "base_precision": "as loaded"}), tmp_path / "parts", resume="toy")
    again = run(dataset, CONFIG.replace(train={"steps": 4}), tmp_path / "parts", resume="toy")
    mine, theirs = load_file(again.path), load_file(whole.path)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_without_the_package_it_says_so_before_anything_is_read(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(LoomError, match=r"base_precision 'nf4' needs the package bitsandbytes.*pip install bitsandbytes") as error:
        run(dataset, CONFIG, tmp_path)
    assert error.value.fix == {"base_precision": "as loaded"} and not list(tmp_path.rglob("*.safetensors"))


def test_a_library_without_code_for_the_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args, **kwargs):
        raise NotImplementedError("no kernel")

    layer = torch.nn.Linear(64, 64)
    monkeypatch.setattr(functions, "quantize_4bit", broken)
    with pytest.raises(LoomError, match="does not work on cpu with this bitsandbytes .no kernel.: update bitsandbytes"):
        nf4.Packed([layer], lambda layer, like: nullcontext((layer.weight, layer.bias)), torch.device("cpu"), torch.float32)


def test_an_interrupt_between_layers_goes_on_its_way() -> None:
    def poll() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nf4.Packed([torch.nn.Linear(64, 64)], lambda layer, like: nullcontext((layer.weight, layer.bias)), torch.device("cpu"), torch.float32, poll)
