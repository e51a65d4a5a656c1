"""LoKr files as LyCORIS makes them, whatever divides their layers: training goes on from them, and what is saved says the same to ComfyUI's loader."""
from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from lora_loom.trainer.adapters import Adapter, adapted, size
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.config import AdapterConfig, LoomConfig
from lora_loom.trainer.data.folder import read_dataset
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.hooks import Hooks
from lora_loom.trainer.job import train
from lora_loom.trainer.runs.lora_names import read
from lora_loom.trainer.toy import stars
from safetensors.torch import load_file, save_file

LINEAR, CONV = r"mid_block\.attentions\.0\.transformer_blocks\.0\.ff\.net\.0\.proj$", r"down_blocks\.1\.resnets\.0\.conv1$"


def by_path(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"loom_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


files = by_path("lokr_files")
FILES, RANK, ALPHA, by_formula = files.FILES, files.RANK, files.ALPHA, files.by_formula


@pytest.fixture(scope="module")
def model() -> backbone.DiffusersModel:
    return backbone.load("toy_base", "cpu", "fp32")


def by_comfyui(weight: torch.Tensor, found: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weight that ComfyUI's loader makes of it (comfy/weight_adapter/lokr.py and base.py)."""
    rank, found = None, {name: tensor.float() for name, tensor in found.items()}
    w1, w2 = found.get("lokr_w1"), found.get("lokr_w2")
    if w1 is None:
        rank, w1 = len(found["lokr_w1_b"]), found["lokr_w1_a"] @ found["lokr_w1_b"]
    if w2 is None:
        a, b = found["lokr_w2_a"], found["lokr_w2_b"]
        rank, w2 = len(b), torch.einsum("ijkl,jr,ip->prkl", found["lokr_t2"], b, a).contiguous() if "lokr_t2" in found else a @ b
    added = torch.kron(w1[(...,) + (None,) * (w2.ndim - 2)], w2).reshape(weight.shape) * (1.0 if rank is None else found["alpha"] / rank)
    if "dora_scale" not in found:
        return weight + added
    return (weight + added) * found["dora_scale"] / weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))


def answer(base: torch.nn.Module, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    conv = isinstance(base, torch.nn.Conv2d)
    return F.conv2d(x, weight, base.bias, base.stride, base.padding) if conv else F.linear(x, weight, base.bias)


def questions(base: torch.nn.Module) -> torch.Tensor:
    shape = (2, base.in_channels, 5, 5) if isinstance(base, torch.nn.Conv2d) else (5, base.in_features)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def layer_of(model: backbone.DiffusersModel, pattern: str) -> tuple[torch.nn.Module, str]:
    with adapted(model, AdapterConfig(target_modules=(pattern,)), 0) as [adapter]:
        return adapter.layer.get_base_layer(), adapter.key


@pytest.mark.parametrize("pattern", [LINEAR, CONV], ids=["linear", "conv"])
@pytest.mark.parametrize("name", FILES)
def test_training_goes_on_from_it(model: backbone.DiffusersModel, tmp_path: Path, name: str, pattern: str) -> None:
    """The run's own rank and alpha are others: the file decides the shapes, and the answer is its own before and after a save."""
    settings, names = FILES[name]
    base, key = layer_of(model, pattern)
    made = by_formula(base, **settings)
    assert made.keys() - {"alpha"} == (names if base.weight.ndim == 4 else names - {"lokr_t2"})
    save_file({f"{key}.{suffix}": tensor for suffix, tensor in made.items()}, tmp_path / "file.safetensors")
    given = read(tmp_path / "file.safetensors", model.layer_names("lora_unet"), model.family)
    config = AdapterConfig(algorithm="lokr", rank=16, alpha=5.0, target_modules=(pattern,))
    x, weight = questions(base), by_comfyui(base.weight.detach(), made)
    with adapted(model, config, 0, given) as [adapter], torch.enable_grad():
        adapter.load(given[key])
        out = adapter.layer(x)
        torch.testing.assert_close(out, answer(base, weight, x), rtol=1e-4, atol=1e-4)
        assert (weight - base.weight).norm() > 0.1 * base.weight.norm()
        saved = {suffix: tensor.detach().clone() for suffix, tensor in adapter.tensors().items()}
        if name == "tucker" and base.weight.ndim == 4:  # ComfyUI's loader cannot read that: what is saved is multiplied out
            assert saved.keys() == {"lokr_w1", "lokr_w2", "alpha"} and saved["lokr_w2"].is_contiguous()
        else:
            assert {s: t.shape for s, t in saved.items()} == {s: t.shape for s, t in made.items()}
        torch.testing.assert_close(by_comfyui(base.weight.detach(), saved), weight, rtol=1e-4, atol=1e-5)
        # gradients are those of the weight as ComfyUI builds it
        leaves = {suffix: tensor.clone().requires_grad_(suffix != "alpha") for suffix, tensor in saved.items()}
        answer(base, by_comfyui(base.weight.detach(), leaves), x).square().mean().backward()
        out.square().mean().backward()
        scale = config.alpha / config.rank
        factors = {"lokr_w1": scale} if "lokr_w2" in saved else {}  # only there is the run's scale inside what is saved
        for suffix, parameter in adapter.named().items():
            torch.testing.assert_close(parameter.grad.flatten(), leaves[suffix].grad.flatten() * factors.get(suffix, 1.0), rtol=1e-3, atol=1e-5)
    assert size(model, config, given) == (1, sum(p.numel() for p in adapter.parameters()) + 1)  # and alpha
    assert all(p.dtype == torch.float32 for p in adapter.parameters())
    assert not hasattr(base, "magnitude")


@pytest.mark.parametrize("pattern", [LINEAR, CONV], ids=["linear", "conv"])
@pytest.mark.parametrize("name", [name for name in FILES if name != "tucker"])
def test_lycoris_own_files(model: backbone.DiffusersModel, name: str, pattern: str) -> None:
    """The shapes above are LyCORIS's, and without magnitudes its answer is ours. With them it divides by |W + d| where ComfyUI's loader divides by |W|."""
    lokr = pytest.importorskip("lycoris.modules.lokr")
    base, key = layer_of(model, pattern)
    theirs = lokr.LokrModule(key, base, lora_dim=RANK, alpha=ALPHA, **FILES[name][0])
    made = by_formula(base, **FILES[name][0])
    assert {suffix: tuple(p.shape) for suffix, p in theirs.named_parameters()} == {s: tuple(t.shape) for s, t in made.items() if s != "alpha"}
    with torch.no_grad():
        for suffix, parameter in theirs.named_parameters():
            parameter.copy_(made[suffix])
        given = {key: {suffix: tensor.clone() for suffix, tensor in theirs.custom_state_dict().items()}}
        with adapted(model, AdapterConfig(algorithm="lokr", rank=16, target_modules=(pattern,)), 0, given) as [adapter]:
            adapter.load(given[key])
            x = questions(base)
            expected = theirs(x)
            if "dora_scale" in made:
                whole = base.weight + theirs.get_weight(base.weight.shape)
                rows = lambda weight: weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
                merged = theirs.apply_weight_decompose(whole)
                torch.testing.assert_close(answer(base, merged, x), expected, rtol=1e-4, atol=1e-4)
                expected = answer(base, merged * rows(whole) / rows(base.weight), x)
            torch.testing.assert_close(adapter.layer(x), expected, rtol=1e-4, atol=1e-4)


def test_a_whole_run_goes_on_and_is_resumed_without_the_file(model: backbone.DiffusersModel, tmp_path: Path) -> None:
    """The layers of one file may be divided in several ways; those that it lacks begin as new ones. The state alone is enough to go on."""
    target = (r"attn2\.to_[kv]$", r"resnets\.0\.conv[12]$", r"time_emb_proj$")
    with adapted(model, AdapterConfig(target_modules=target[:2]), 0) as adapters:
        kinds = [settings for settings, _ in FILES.values()]
        made = {f"{a.key}.{suffix}": t for i, a in enumerate(adapters) for suffix, t in by_formula(a.layer.get_base_layer(), **kinds[i % len(kinds)]).items()}
    assert len(adapters) >= 2 * len(kinds)
    first = tmp_path / "first.safetensors"
    save_file({name: 0.1 * t if "w2" in name else t for name, t in made.items()}, first)
    dataset = read_dataset(stars.write(tmp_path / "stars", 3), resolution=64, min_size=64)
    config = LoomConfig().replace(adapter={"algorithm": "lokr", "rank": 4, "alpha": 2.0, "dropout": 0.1, "module_dropout": 0.1, "target_modules": target,
                                           "init_lora": first.name},
                                  optim={"learning_rate": 1e-3}, train={"steps": 4, "precision": "fp32"}, output={"name": "onward", "save_dtype": "fp32"})
    folders = lambda name: {"loras_folder": tmp_path / name, "runs_folder": tmp_path / name / "runs"}
    whole = train(model, dataset, config, init_lora=first, **folders("whole"))
    for name, tensor in load_file(first).items():
        if name not in whole.lora:  # of Tucker's form
            assert f"{name.split('.')[0]}.lokr_t2" in made and f"{name.split('.')[0]}.lokr_w2" in whole.lora
            continue
        assert whole.lora[name].shape == tensor.shape
        moved = (whole.lora[name] - tensor).norm() if not name.endswith("alpha") and "lokr_w1" not in name else torch.tensor(0.01)  # w1 takes up the scale
        assert 0 < moved < 0.2 * tensor.norm() + 0.5, name
    assert any(name.startswith("lora_unet_mid_block_resnets_0_time_emb_proj") for name in whole.lora)
    steps: list[int] = []
    parts = train(model, dataset, config, init_lora=first, **folders("parts"),
                  hooks=Hooks(progress=lambda now: steps.append(now.step), should_stop=lambda: steps[-1:] == [2]))
    assert parts.stopped
    first.unlink()
    resumed = train(model, dataset, config, init_lora=first, resume="onward", **folders("parts"))
    assert resumed.losses == whole.losses and resumed.path.read_bytes() == whole.path.read_bytes()


def _adapter(model: backbone.DiffusersModel, given: dict[str, torch.Tensor], algorithm: str = "lokr") -> Adapter:
    base, key = layer_of(model, LINEAR)
    with adapted(model, AdapterConfig(algorithm=algorithm, rank=4, target_modules=(LINEAR,)), 0, {key: given}) as [adapter]:
        adapter.load(given)
        return adapter


@pytest.mark.parametrize(("change", "words"), [
    (lambda t: t.update(lokr_w1=torch.ones(2, 2)), r"which make a matrix of \(\d+, \d+\) where the layer has \(\d+, \d+\): choose a whole file"),
    (lambda t: t.pop("lokr_w2_a"), "which make no matrix where the layer has"),
    (lambda t: t.update(lokr_w1_a=torch.ones(4, 2), lokr_w1_b=torch.ones(2, 4)), "which make no matrix"),
    (lambda t: t.update(lokr_w1=torch.tensor(1.0)), "which make no matrix"),
    (lambda t: t.update(dora_scale=torch.ones(1, 128)), "whose magnitudes are of its columns.*LoraLoader in front of TrainLoRA"),
], ids=["other shapes", "half a factor", "a factor twice", "no matrix", "columns"])
def test_what_cannot_be_gone_on_from_says_why_and_what_to_do(model: backbone.DiffusersModel, change: object, words: str) -> None:
    given = by_formula(layer_of(model, LINEAR)[0], factor=4)
    change(given)
    with pytest.raises(LoomError, match=f"init_lora has .* for lora_unet_.*, {words}"):
        _adapter(model, given)


def test_other_algorithms_magnitudes_have_a_remedy(model: backbone.DiffusersModel) -> None:
    with adapted(model, AdapterConfig(algorithm="loha", rank=4, target_modules=(LINEAR,)), 0) as [adapter]:
        tensors = {**adapter.tensors(), "dora_scale": torch.ones(8, 1)}
        with pytest.raises(LoomError, match="loha has no place for and would lose: put the file on the model with LoraLoader"):
            adapter.load(tensors)
    with pytest.raises(LoomError, match="lora needs lora_down.weight.*choose the algorithm"):
        _adapter(model, by_formula(layer_of(model, LINEAR)[0], factor=4), "lora")
