"""Optimizers are those of their libraries, with our settings; what is missing is named."""
from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from lora_loom.trainer import optim
from lora_loom.trainer.adapters import adapted
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.config import OPTIMIZERS, AdapterConfig, LoomConfig, OptimConfig
from lora_loom.trainer.data.folder import read_dataset
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.hooks import Hooks
from lora_loom.trainer.job import remarks_on, train
from lora_loom.trainer.toy import stars

ON_CPU = ("adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule_free_adamw")


@pytest.fixture(scope="module")
def model() -> backbone.DiffusersModel:
    return backbone.load("toy_base", "cpu", "fp32")


def available(name: str) -> None:
    if optim.OPTIMIZERS[name].package:
        pytest.importorskip(optim.OPTIMIZERS[name].module, reason="needs the extra `optimizers`")


def test_the_table_is_the_list_of_choices() -> None:
    assert tuple(optim.OPTIMIZERS) == OPTIMIZERS


def direct(name: str, parameters: list[torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """The library's optimizer as its own documentation has it called, with beta 0.8 and 0.95 and a decay of 0.1."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, rate, betas=(0.8, 0.95), weight_decay=0.1)
    if name == "adamw8bit":
        return importlib.import_module("bitsandbytes.optim").AdamW8bit(parameters, rate, betas=(0.8, 0.95), weight_decay=0.1)
    if name == "adafactor":
        return importlib.import_module("transformers.optimization").Adafactor(parameters, rate, weight_decay=0.1, scale_parameter=False, relative_step=False)
    if name == "lion":
        return importlib.import_module("lion_pytorch").Lion(parameters, rate, betas=(0.8, 0.95), weight_decay=0.1)
    if name == "prodigy":
        return importlib.import_module("prodigyopt").Prodigy(parameters, rate, betas=(0.8, 0.95), weight_decay=0.1, use_bias_correction=True, safeguard_warmup=True)
    found = importlib.import_module("schedulefree").AdamWScheduleFree(parameters, rate, betas=(0.8, 0.95), weight_decay=0.1, warmup_steps=2)
    found.train()
    return found


@pytest.mark.parametrize("name", ON_CPU)
def test_equal_to_the_library(model: backbone.DiffusersModel, name: str) -> None:
    available(name)
    rate = 1.0 if name == "prodigy" else 1e-2
    config = OptimConfig(optimizer=name, learning_rate=rate, scheduler="constant", warmup_steps=2, weight_decay=0.1, beta1=0.8, beta2=0.95)
    with adapted(model, AdapterConfig(rank=4, target_modules=(r"attn2\.to_k$",)), 0) as adapters:
        ours = [p for a in adapters for p in a.parameters()]
        theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
        reference = direct(name, theirs, rate)
        optimizer, schedule = optim.build(adapters, config, 10)
        if name == "schedule_free_adamw":
            optimizer.train()  # as State does
        for step in range(4):
            for a, b in zip(ours, theirs):
                a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
                b.grad = a.grad.clone()
            optimizer.step()
            schedule.step()
            reference.step()
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ON_CPU)
def test_each_learns(model: backbone.DiffusersModel, tmp_path: Path, name: str) -> None:
    available(name)
    dataset = read_dataset(stars.write(tmp_path / "stars", 4), resolution=64, min_size=64)
    rate = {"prodigy": 1.0, "lion": 3e-4}.get(name, 2e-3)
    config = LoomConfig().replace(adapter={"targets": "all linear+conv"}, optim={"optimizer": name, "learning_rate": rate, "scheduler": "constant"},
                                  train={"steps": 160 if name == "prodigy" else 60, "batch_size": 4}, loss={"caption_dropout": 0.0}, output={"name": name})
    rates: list[float] = []
    losses = train(model, dataset, config, loras_folder=tmp_path, runs_folder=tmp_path / "runs",
                   hooks=Hooks(progress=lambda now: rates.append(now.learning_rate) if now.phase == "train" else None)).losses
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20]), (sum(losses[:20]), sum(losses[-20:]))
    if name == "prodigy":  # the rate that is shown is the one that it has found
        assert rates[0] < 1e-5 < max(rates) < 1


def test_schedule_free_shows_and_saves_its_average(model: backbone.DiffusersModel, tmp_path: Path) -> None:
    available("schedule_free_adamw")
    dataset = read_dataset(stars.write(tmp_path / "stars", 4), resolution=64, min_size=64)
    config = LoomConfig().replace(adapter={"rank": 2}, optim={"optimizer": "schedule_free_adamw", "learning_rate": 1e-2}, train={"steps": 5},
                                  output={"name": "free", "save_dtype": "fp32", "save_steps": 4})
    result = train(model, dataset, config, loras_folder=tmp_path, runs_folder=tmp_path / "runs")
    shorter = train(model, dataset, config.replace(train={"steps": 4}), loras_folder=tmp_path, runs_folder=tmp_path / "runs")
    from safetensors.torch import load_file

    for key, tensor in load_file(result.run_folder / "checkpoints" / "free_step000004.safetensors").items():
        torch.testing.assert_close(tensor, shorter.lora[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [n for n, row in optim.OPTIMIZERS.items() if row.package])
def test_a_missing_package_is_named_before_anything_is_loaded(model: backbone.DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def missing(module: str) -> None:
        raise ImportError(f"No module named {module!r}")

    dataset = read_dataset(stars.write(tmp_path / "stars", 2), resolution=64, min_size=64)
    monkeypatch.setattr(optim.importlib, "import_module", missing)
    with pytest.raises(LoomError, match=rf"optimizer '{name}' needs the package {optim.OPTIMIZERS[name].package}.*pip install"):
        train(model, dataset, LoomConfig().replace(optim={"optimizer": name, "learning_rate": 1.0}), loras_folder=tmp_path, runs_folder=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_prodigy_wants_a_rate_of_one(model: backbone.DiffusersModel, tmp_path: Path) -> None:
    available("prodigy")
    dataset = read_dataset(stars.write(tmp_path / "stars", 2), resolution=64, min_size=64)
    with pytest.raises(LoomError, match="learning_rate 0.0001 with prodigy.*set TrainLoRA.learning_rate to 1"):
        train(model, dataset, LoomConfig().replace(optim={"optimizer": "prodigy"}), loras_folder=tmp_path, runs_folder=tmp_path / "runs")


def test_prodigy_leaves_text_encoders_alone_at_the_rate_0(model: backbone.DiffusersModel) -> None:
    """As it is advised where a LoRA with text encoders is gone on from."""
    available("prodigy")
    config = OptimConfig(optimizer="prodigy", learning_rate=1.0, text_encoder_lr=0.0, scheduler="constant", weight_decay=0.1)
    with adapted(model, AdapterConfig(rank=2, train_text_encoder=True, target_modules=(r"attn2\.to_k$",)), 0) as adapters:
        before = {(a.key, name): p.detach().clone() for a in adapters for name, p in a.named().items()}
        optimizer, _ = optim.build(adapters, config, 10)
        for _ in range(3):
            for adapter in adapters:
                for parameter in adapter.parameters():
                    parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        for adapter in adapters:
            for name, parameter in adapter.named().items():
                assert torch.equal(parameter, before[adapter.key, name]) == adapter.key.startswith("lora_te")


def test_the_warm_up_that_is_shown_is_the_one_that_runs(model: backbone.DiffusersModel) -> None:
    """schedule-free AdamW has its own; a constant schedule has none, which the plan says."""
    available("schedule_free_adamw")
    config = OptimConfig(optimizer="schedule_free_adamw", learning_rate=1e-2, scheduler="cosine", warmup_steps=4)
    with adapted(model, AdapterConfig(rank=2, target_modules=(r"attn2\.to_k$",)), 0) as adapters:
        optimizer, schedule = optim.build(adapters, config, 10)
        optimizer.train()
        for _ in range(6):
            shown = optim.rate(optimizer, schedule)
            for adapter in adapters:
                for parameter in adapter.parameters():
                    parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            schedule.step()
            assert shown == pytest.approx(optimizer.param_groups[0]["scheduled_lr"])
        assert shown == pytest.approx(1e-2)
    said = lambda **values: " ".join(remarks_on(LoomConfig().replace(optim=values), 100, "cpu"))
    assert "scheduler cosine is not used" in said(optimizer="schedule_free_adamw", scheduler="cosine", warmup_steps=4)
    assert "warmup_steps 4 is not used" in said(scheduler="constant", warmup_steps=4)
    assert said(scheduler="constant_with_warmup", warmup_steps=4) == said(optimizer="schedule_free_adamw", warmup_steps=4) == ""


@pytest.mark.parametrize("name", ["adamw8bit", "paged_adamw8bit"])
def test_eight_bits_follow_thirty_two(model: backbone.DiffusersModel, tmp_path: Path, name: str) -> None:
    """The same run on both: the losses stay close, and what the optimizer keeps is bytes."""
    available(name)
    dataset = read_dataset(stars.write(tmp_path / "stars", 4), resolution=64, min_size=64)
    config = LoomConfig().replace(adapter={"rank": 64, "alpha": 64.0}, optim={"learning_rate": 1e-3, "scheduler": "constant"},
                                  train={"steps": 40, "batch_size": 4}, loss={"caption_dropout": 0.0}, output={"save_dtype": "fp32"})
    results = [train(model, dataset, config.replace(optim={"optimizer": kind}, output={"name": kind}), loras_folder=tmp_path, runs_folder=tmp_path / "runs")
               for kind in ("adamw", name)]
    assert results[1].losses == pytest.approx(results[0].losses, rel=0.05)
    assert results[1].losses != results[0].losses and sum(results[1].losses[-10:]) < 0.95 * sum(results[1].losses[:10])
    wide = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = optim.find(name)([wide])
    wide.grad = torch.ones_like(wide)
    optimizer.step()
    assert optimizer.state[wide]["state1"].dtype == torch.uint8


def test_a_bitsandbytes_without_code_for_the_device_is_named(model: backbone.DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    available("adamw8bit")

    def step(self: torch.optim.Optimizer, closure: object = None) -> None:
        raise NotImplementedError("no kernel for cpu")

    monkeypatch.setattr(optim.find("adamw8bit"), "step", step)
    dataset = read_dataset(stars.write(tmp_path / "stars", 2), resolution=64, min_size=64)
    with pytest.raises(LoomError, match="optimizer 'adamw8bit' does not work on cpu with this bitsandbytes .no kernel for cpu.*use adamw"):
        train(model, dataset, LoomConfig().replace(optim={"optimizer": "adamw8bit"}), loras_folder=tmp_path, runs_folder=tmp_path / "runs")
    assert not list(tmp_path.glob("*.safetensors"))
