"""ComfyUI's own models as the trainer's: the same numbers as diffusers, no copy, nothing left behind, files that LoraLoader maps whole."""
from __future__ import annotations

import gc
import importlib.util
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from lora_loom.trainer.adapters import adapted
from lora_loom.trainer.backbones import diffusers as diffusers_backbone
from lora_loom.trainer.backbones.protocol import Batch
from lora_loom.trainer.config import ALGORITHMS, AdapterConfig, LoomConfig
from lora_loom.trainer.data.folder import Dataset, read_dataset
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.hooks import Hooks, Progress
from lora_loom.trainer.job import Result, train
from lora_loom.trainer.runs.lora_names import ldm_name, read
from PIL import Image
from safetensors.torch import save_file

CONFIG = LoomConfig().replace(
    adapter={"rank": 4, "alpha": 4.0}, optim={"learning_rate": 1e-3, "text_encoder_lr": 1e-3, "scheduler": "constant"}, loss={"caption_dropout": 0.0},
    train={"steps": 4, "precision": "fp32", "batch_size": 2, "seed": 1}, output={"name": "host", "save_dtype": "fp32"},
)
CAPTION = "a red circle on a blue background"


@pytest.fixture(autouse=True)
def comfy(comfy_modules: ModuleType) -> Iterator[SimpleNamespace]:
    """The modules of ComfyUI and our backbone that the tests use; models are unloaded after each."""
    import comfy.lora
    import comfy.model_management
    import comfy.model_patcher
    import comfy.model_sampling
    import comfy.sample
    import comfy.sd
    import comfy.supported_models
    import comfy.utils
    from lora_loom.trainer.backbones import comfy as backbone
    from lora_loom.trainer.backbones import comfy_toy

    yield SimpleNamespace(**{name: getattr(comfy, name) for name in ("lora", "model_management", "model_patcher", "model_sampling", "sample", "sd", "supported_models", "utils")},
                          Model=backbone.open_model, toy=comfy_toy)
    comfy.model_management.unload_all_models()
    gc.collect()


@pytest.fixture
def toy(comfy: SimpleNamespace) -> tuple:
    """(MODEL, CLIP, VAE) as a loader node hands them over: made inside inference mode."""
    with torch.inference_mode():
        parts = comfy.toy.load()
    assert all(p.is_inference() for p in parts[0].model.parameters())
    return parts


@pytest.fixture
def dataset(circles: Callable[..., Path]) -> Dataset:
    return read_dataset(circles("a {} circle (round)"), resolution=64, min_size=32)


def by_path(name: str) -> ModuleType:
    """A helper of the tests above this folder."""
    spec = importlib.util.spec_from_file_location(f"loom_{name}", Path(__file__).parents[1] / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(model: object, dataset: Dataset, config: LoomConfig, folder: Path, **hooks: object) -> Result:
    with torch.inference_mode():  # as ComfyUI executes nodes
        return train(model, dataset, config, loras_folder=folder / "loras", runs_folder=folder / "runs", hooks=Hooks(**hooks))


def last_step(look: Callable[[], None]) -> Callable[[Progress], None]:
    """A progress hook that looks at the model while the finished adapters are live."""
    def progress(now: Progress) -> None:
        if now.phase == "train" and now.step == now.total:
            with torch.no_grad():
                look()
    return progress


def predict(model: object, caption: str = CAPTION, size: int = 8) -> torch.Tensor:
    """The model's output for fixed noisy latents at three timesteps, (3, 4, size, size)."""
    noisy = torch.randn(3, 4, size, size, generator=torch.Generator().manual_seed(9))
    sizes = [(64, 64, 0, 0, 64, 64)] * 3
    with torch.no_grad():
        conditioning = [model.encode_captions([caption])[0]] * 3
        return model.predict(noisy, torch.tensor([0, 400, 999]), Batch(noisy, [caption] * 3, conditioning, sizes), conditioning)


def by_comfyui(comfy: SimpleNamespace, patcher, context: torch.Tensor, size: int = 8, **extra: torch.Tensor) -> torch.Tensor:
    """The same prediction out of ComfyUI's `apply_model`, with every patch of `patcher` in force."""
    comfy.model_management.load_models_gpu([patcher])
    sampling = patcher.get_model_object("model_sampling")
    noisy = torch.randn(3, 4, size, size, generator=torch.Generator().manual_seed(9))
    sigma = sampling.sigmas[[0, 400, 999]].float()
    x = noisy * (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt()  # what the sampler holds
    with torch.inference_mode():
        denoised = patcher.model.apply_model(x, sigma, c_crossattn=context.expand(3, -1, -1), **extra)
    if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        s = sigma.view(-1, 1, 1, 1)
        return (x / (s**2 + 1) - denoised) * (s**2 + 1).sqrt() / s
    return (x - denoised) / sigma.view(-1, 1, 1, 1)


def snapshot(*roots: torch.nn.Module) -> list[tuple]:
    """Modules by identity and attributes, parameters by identity, place and flag."""
    return [(name, id(m), type(m), sorted(m.__dict__), id(m.__dict__.get("forward")), m.training, sorted(m._modules),
             [(k, id(p), p.data_ptr(), p.requires_grad, p.dtype) for k, p in m._parameters.items() if p is not None])
            for root in roots for name, m in root.named_modules()]


def base_tensors(*roots: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"{i}.{k}": v for i, root in enumerate(roots) for k, v in [*root.named_parameters(), *root.named_buffers()]}


@contextmanager
def no_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No key of a LoRA is left out by ComfyUI inside."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        yield
    bad = [r.getMessage() for r in caplog.records if "lora key not loaded" in r.getMessage() or "NOT LOADED" in r.getMessage() or "ERROR lora" in r.getMessage()]
    assert bad == []


# ---------------------------------------------------------------- the same numbers

def test_epsilon_equals_diffusers(comfy: SimpleNamespace, toy: tuple) -> None:
    ours, theirs = comfy.Model(*toy), diffusers_backbone.load("toy_base", "cpu", "fp32")
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert ours.prediction == theirs.prediction == "epsilon"
    for caption in (CAPTION, "", "parentheses (as they are), back\\slash, name \\(series\\)", "word " * 100):
        a, b = (m.encode_captions([caption])[0].context.detach() for m in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        torch.testing.assert_close(predict(ours, caption), predict(theirs, caption), rtol=0, atol=1e-4)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.encode_images(pixels), theirs.encode_images(pixels), rtol=0, atol=1e-4)


def test_predict_equals_comfyuis_sampler(comfy: SimpleNamespace, toy: tuple) -> None:
    """Timestep, schedule and scale as ComfyUI's own `apply_model` uses them."""
    model = comfy.Model(*toy)
    context = model.encode_captions([CAPTION])[0].context
    torch.testing.assert_close(predict(model), by_comfyui(comfy, toy[0], context), rtol=0, atol=5e-4)


def test_captions_of_all_lengths_are_answered_as_if_they_were_alone(comfy: SimpleNamespace, toy: tuple) -> None:
    model = comfy.Model(*toy)
    noisy, timesteps = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([100, 400, 0, 950])
    with torch.no_grad():
        given = model.encode_captions([f"{word} " * (75 * count - 5) for word, count in zip(("red", "blue", "a", "star"), (7, 1, 5, 7))])
        assert [c.context.shape[1] // 77 for c in given] == [7, 1, 5, 7]
        whole = model.predict(noisy, timesteps, Batch(noisy, [""] * 4, given), given)
        for i, own in enumerate(given):
            row = slice(i, i + 1)
            torch.testing.assert_close(whole[row], model.predict(noisy[row], timesteps[row], Batch(noisy[row], [""], [own]), [own]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [
    {}, {"algorithm": "dora", "targets": "all linear+conv"}, {"train_text_encoder": True}, {"algorithm": "dora", "dropout": 0.2, "module_dropout": 0.1},
    *({"algorithm": a, "targets": "all linear+conv", "train_text_encoder": True} for a in ("loha", "lokr", "oft")), {"base_precision": "nf4"}],
    ids=["lora", "dora conv", "text encoder", "dora dropout", "loha", "lokr", "oft", "nf4"])
def test_loss_curves_equal_diffusers(comfy: SimpleNamespace, toy: tuple, dataset: Dataset, tmp_path: Path, options: dict) -> None:
    options = dict(options)
    base = options.pop("base_precision", "as loaded")
    config = CONFIG.replace(adapter=options, train={"steps": 20, "base_precision": base}, loss={"caption_dropout": 0.2})
    ours = run(comfy.Model(*toy), dataset, config, tmp_path / "comfy")
    theirs = run(diffusers_backbone.load("toy_base", "cpu", "fp32"), dataset, config, tmp_path / "diffusers")
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-3) and len(ours.losses) == 20
    assert ours.lora.keys() == theirs.lora.keys()
    for key, value in ours.lora.items():
        assert value.shape == theirs.lora[key].shape, key


def test_compiled_blocks_learn_the_same(comfy: SimpleNamespace, toy: tuple, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that ComfyUI made in inference mode too; blocks that tell ComfyUI's patches which they are, compiled once for all that are alike."""
    from lora_loom.trainer import attempts
    from lora_loom.trainer.layers.compiled import Blocks

    made = Blocks("aot_eager")
    monkeypatch.setattr(attempts, "Blocks", lambda: made)
    config = CONFIG.replace(train={"steps": 4, "batch_size": 1, "gradient_checkpointing": True}, adapter={"targets": "all linear+conv"})
    never = run(comfy.Model(*toy), dataset, config, tmp_path / "never")
    always = run(comfy.Model(*toy), dataset, config.replace(train={"compile": "always"}), tmp_path / "always")
    count = sum(type(m).__name__ in ("BasicTransformerBlock", "ResBlock") for m in toy[0].model.diffusion_model.modules())
    assert 2 <= made.compilations < count and not made.failed, made.failed
    assert always.losses == pytest.approx(never.losses, rel=1e-4)


def test_recorded_steps_learn_the_same(comfy: SimpleNamespace, toy: tuple, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = by_path("repeater").records_on_the_cpu(monkeypatch, few=1)
    config = CONFIG.replace(train={"steps": 8, "batch_size": 1})
    never = run(comfy.Model(*toy), dataset, config.replace(train={"compile": "never"}), tmp_path / "never")
    auto = run(comfy.Model(*toy), dataset, config, tmp_path / "auto")
    assert len(made) == 1 and made[0].recorded.recordings == 1 and not made[0].recorded.failed, made[0].recorded.failed
    assert auto.losses == pytest.approx(never.losses, rel=1e-4)
    assert "forward" not in toy[0].model.diffusion_model.__dict__


def test_the_same_seed_gives_the_same_bytes(comfy: SimpleNamespace, toy: tuple, dataset: Dataset, tmp_path: Path) -> None:
    config = CONFIG.replace(adapter={"targets": "all linear+conv", "train_text_encoder": True})
    first = run(comfy.Model(*toy), dataset, config, tmp_path / "first").path.read_bytes()
    assert run(comfy.Model(*comfy.toy.load()), dataset, config, tmp_path / "second").path.read_bytes() == first
    saving = run(comfy.Model(*toy), dataset, config.replace(train={"gradient_checkpointing": True}), tmp_path / "third")
    import safetensors.torch
    for key, value in safetensors.torch.load(first).items():
        torch.testing.assert_close(saving.lora[key], value, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- no copy, nothing left behind

@pytest.mark.parametrize("ending", ["well", "stop", "error", "interrupt", "nan"])
@pytest.mark.parametrize("options", [{}, {"algorithm": "dora", "targets": "all linear+conv", "train_text_encoder": True}], ids=["unet", "all"])
def test_base_weights_are_neither_copied_nor_changed(comfy: SimpleNamespace, toy: tuple, dataset: Dataset, tmp_path: Path, options: dict, ending: str) -> None:
    model, clip, vae = toy
    loom = comfy.Model(model, clip, vae)
    roots = [model.model, clip.cond_stage_model, vae.first_stage_model]
    patchers = [model, clip.patcher, vae.patcher]

    def loaded_anew() -> None:
        """ComfyUI leaves marks of its own where it loads and unloads."""
        with torch.inference_mode():
            comfy.model_management.unload_all_models()
            comfy.model_management.load_models_gpu(patchers)

    predict(loom)
    loaded_anew()
    tensors, before = base_tensors(*roots), snapshot(*roots)
    places, values = {k: v.data_ptr() for k, v in tensors.items()}, {k: v.clone() for k, v in tensors.items()}
    during: list[bool] = []

    def unchanged() -> bool:
        """Also by what hangs in the tree just now, not only by the tensors that were there."""
        now = {v.data_ptr() for root in roots for v in root.state_dict().values()}
        return set(places.values()) <= now and all(v.data_ptr() == places[k] and torch.equal(v, values[k]) for k, v in tensors.items())

    steps: list[int] = []

    def poll() -> None:
        during.append(unchanged())
        if ending == "interrupt" and steps[-1:] == [2]:
            raise comfy.model_management.InterruptProcessingException

    def progress(now: Progress) -> None:
        steps.extend([now.step] if now.phase == "train" else [])
        if now.phase == "train" and now.step == 2 and ending == "error":
            raise RuntimeError("the page is gone")
        if now.phase == "train" and now.step == 2 and ending == "nan":
            with torch.no_grad():  # an adapter that overflowed
                next(p for p in loom.unet.parameters() if p.requires_grad).fill_(torch.nan)

    expected = {"error": RuntimeError, "interrupt": comfy.model_management.InterruptProcessingException, "nan": LoomError}.get(ending)
    hooks = {"poll": poll, "progress": progress, "should_stop": lambda: ending == "stop"}
    config = CONFIG.replace(adapter=options, train={"gradient_checkpointing": bool(options)})
    if expected is None:
        run(loom, dataset, config, tmp_path, **hooks)
    else:
        with pytest.raises(expected):
            run(loom, dataset, config, tmp_path, **hooks)
    assert all(during) and len(during) >= (2 if options else 6) and unchanged()
    loaded_anew()
    assert snapshot(*roots) == before
    assert not any("peft" in type(m).__module__ for root in roots for m in root.modules())
    assert len(list((tmp_path / "loras").iterdir())) == 1  # what was learned, on every way out
    assert getattr(comfy.model_management, "in_training", False) is False
    # and ComfyUI goes on working with them
    torch.testing.assert_close(by_comfyui(comfy, model, loom.encode_captions([CAPTION])[0].context), predict(loom), rtol=0, atol=5e-4)


def test_encoders_are_released_before_step_1(comfy: SimpleNamespace, toy: tuple, dataset: Dataset, tmp_path: Path) -> None:
    model, clip, vae = toy

    def loaded() -> set[str]:
        held = [entry.model for entry in comfy.model_management.current_loaded_models]
        return {name for name, p in (("model", model), ("clip", clip.patcher), ("vae", vae.patcher)) if any(h is p or (h is not None and h.is_clone(p)) for h in held)}

    seen: dict[bool, set[str]] = {}
    encoding: set[str] = set()
    for text in (False, True):
        def progress(now: Progress, text: bool = text) -> None:
            if now.phase == "encode":
                encoding.update(loaded())
            elif now.step == 1:
                seen[text] = loaded()
        run(comfy.Model(model, clip, vae), dataset, CONFIG.replace(adapter={"train_text_encoder": text}, train={"steps": 1}), tmp_path, progress=progress)
    assert {"clip", "vae"} <= encoding
    assert seen[False] == {"model"} and "vae" not in seen[True] and "model" in seen[True]


# ---------------------------------------------------------------- the file, loaded by ComfyUI

@pytest.mark.parametrize(("targets", "algorithm", "save_dtype"), [
    ("attention", "lora", "fp32"), ("all linear", "lora", "fp16"), ("attention+ff", "dora", "fp16"), ("all linear+conv", "dora", "fp32"),
    *itertools.product(["all linear+conv"], ALGORITHMS[2:], ["fp16"])])
def test_live_adapters_and_loaded_file_sample_the_same_latent(
        comfy: SimpleNamespace, toy: tuple, dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, targets: str, algorithm: str, save_dtype: str) -> None:
    """8 steps of euler by ComfyUI's own sampler: the adapters in the tree against the file applied by its own loader."""
    model, clip, vae = toy
    loom, live = comfy.Model(model, clip, vae), {}

    def sample(patcher, encoder) -> torch.Tensor:
        with torch.inference_mode():
            positive, negative = (encoder.encode_from_tokens_scheduled(encoder.tokenize(text)) for text in (CAPTION, ""))
            latent = torch.zeros(1, 4, 8, 8)
            noise = comfy.sample.prepare_noise(latent, 3)
            return comfy.sample.sample(patcher, noise, 8, 2.0, "euler", "normal", positive, negative, latent, seed=3, disable_pbar=True).clone()

    config = CONFIG.replace(adapter={"targets": targets, "algorithm": algorithm, "train_text_encoder": True}, output={"save_dtype": save_dtype}, train={"steps": 8})
    plain = sample(model, clip)
    result = run(loom, dataset, config, tmp_path, progress=last_step(lambda: live.update(latent=sample(model, clip))))
    with no_warnings(caplog):
        patched = comfy.sd.load_lora_for_models(model, clip, comfy.utils.load_torch_file(str(result.path), safe_load=True), 1.0, 1.0)
        loaded = sample(*patched)
        ours = sample(*loom.with_lora(result.lora))
    assert (live["latent"] - plain).abs().max() > 0.01
    torch.testing.assert_close(loaded, live["latent"], rtol=0, atol=1e-3)
    assert torch.equal(ours, loaded)
    assert torch.equal(sample(model, clip), plain)  # the base is as it was


def test_a_lokr_of_any_factorisation_goes_on_as_comfyui_shows_it(
        comfy: SimpleNamespace, toy: tuple, dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first answer is that of the file in ComfyUI's loader, and what is saved after training gives there what the live adapters gave."""
    files = by_path("lokr_files")
    settings = [settings for settings, _ in files.FILES.values() if "use_tucker" not in settings]  # which ComfyUI's loader leaves out
    model, clip, vae = toy
    loom = comfy.Model(model, clip, vae)
    config = CONFIG.replace(adapter={"algorithm": "lokr", "targets": "all linear+conv", "rank": 8, "alpha": 3.0}, train={"steps": 8})
    with torch.inference_mode(False), adapted(loom, config.adapter, 0) as adapters:
        made = {f"{a.key}.{name}": 0.2 * tensor if "lokr_w2" in name else tensor for i, a in enumerate(adapters)
                for name, tensor in files.by_formula(a.layer.get_base_layer(), **settings[i % len(settings)]).items()}
    save_file(made, tmp_path / "first.safetensors")
    with no_warnings(caplog):
        shown = comfy.sd.load_lora_for_models(model, None, made, 1.0, 0.0)[0]
    context = loom.encode_captions([CAPTION])[0].context
    wanted, seen = by_comfyui(comfy, shown, context), []
    assert (wanted - by_comfyui(comfy, model, context)).abs().max() > 0.05
    comfy.model_management.unload_all_models()
    given = read(tmp_path / "first.safetensors", loom.layer_names("lora_unet"), loom.family)
    with torch.inference_mode(False), loom.training("fp32", False, False), adapted(loom, config.adapter, 0, given) as adapters:
        for adapter in adapters:
            adapter.load(given[adapter.key])
        torch.testing.assert_close(predict(loom), wanted, rtol=0, atol=2e-3)
    with torch.inference_mode():
        result = train(loom, dataset, config, loras_folder=tmp_path / "loras", runs_folder=tmp_path / "runs", init_lora=tmp_path / "first.safetensors",
                       hooks=Hooks(progress=last_step(lambda: seen.append(predict(loom)))))
    with no_warnings(caplog):
        loaded = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(result.path), safe_load=True), 1.0, 0.0)[0]
    torch.testing.assert_close(by_comfyui(comfy, loaded, context), seen[0], rtol=0, atol=2e-3)
    assert (seen[0] - wanted).abs().max() > 0.01
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_another_lora_on_the_model_stays_in_force_and_is_trained_on_top_of(comfy: SimpleNamespace, toy: tuple, dataset: Dataset, tmp_path: Path) -> None:
    model, clip, vae = toy
    values = {k: v.clone() for k, v in base_tensors(model.model, clip.cond_stage_model).items()}
    config = CONFIG.replace(adapter={"train_text_encoder": True}, optim={"learning_rate": 2e-2, "text_encoder_lr": 2e-2})
    other = run(comfy.Model(model, clip, vae), dataset, config, tmp_path / "other").lora
    stacked = comfy.sd.load_lora_for_models(model, clip, other, 0.8, 0.8)
    loom = comfy.Model(*stacked, vae)
    again, weaker = (comfy.sd.load_lora_for_models(model, clip, {k: v.clone() for k, v in other.items()}, strength, 0.8) for strength in (0.8, 0.7))
    assert loom.loras_digest() == comfy.Model(*again, vae).loras_digest() not in ("", comfy.Model(*weaker, vae).loras_digest(), comfy.Model(model, clip, vae).loras_digest())
    context = loom.encode_captions([CAPTION])[0].context
    wanted = by_comfyui(comfy, stacked[0], context)
    plain_context = comfy.Model(model, clip, vae).encode_captions([CAPTION])[0].context
    assert (context - plain_context).abs().max() > 0.01 and (wanted - by_comfyui(comfy, model, context)).abs().max() > 0.01

    with loom.training("fp32", True, False), adapted(loom, config.adapter, 0):  # step 0: B is zero
        torch.testing.assert_close(loom.encode_captions([CAPTION])[0].context, context, rtol=0, atol=1e-4)
        torch.testing.assert_close(predict(loom), wanted, rtol=0, atol=5e-4)

    live: dict[str, torch.Tensor] = {}
    second = run(loom, dataset, config.replace(train={"seed": 2}), tmp_path / "second", progress=last_step(lambda: live.update(epsilon=predict(loom))))
    assert (live["epsilon"] - wanted).abs().max() > 0.01
    without = run(comfy.Model(model, clip, vae), dataset, config.replace(train={"seed": 2}), tmp_path / "without")
    assert any(not torch.equal(v, second.lora[k]) for k, v in without.lora.items()) and without.losses[0] != second.losses[0]

    both = comfy.Model(*loom.with_lora(second.lora), vae)
    context = both.encode_captions([CAPTION])[0].context
    torch.testing.assert_close(by_comfyui(comfy, both.patcher, context), live["epsilon"], rtol=0, atol=1e-3)
    comfy.model_management.unload_all_models()
    assert all(torch.equal(v, values[k]) for k, v in base_tensors(model.model, clip.cond_stage_model).items())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_weight_is_kept_for_backward(comfy: SimpleNamespace, toy: tuple, algorithm: str, precision: str) -> None:
    """Neither a base weight nor a cast copy of one: nothing that autograd saves is as large as a layer's weight and of its shape."""
    loom = comfy.Model(*toy)
    loom.unet.requires_grad_(False)
    with torch.inference_mode():
        for parameter in loom.unet.parameters():
            parameter.requires_grad = True  # as loader nodes leave them
    places = {p.data_ptr() for p in loom.unet.parameters()}
    shapes = {tuple(p.shape) for p in loom.unet.parameters() if p.ndim == 2 and p.shape[0] != 3}
    noisy, kept = torch.randn(3, 4, 8, 8), []
    with torch.inference_mode(False), torch.no_grad():
        conditioning = [loom.encode_captions([CAPTION])[0]] * 3
    with torch.inference_mode(False), loom.training(precision, False, False), adapted(loom, AdapterConfig(algorithm=algorithm, rank=5), 0), torch.enable_grad():
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            loom.predict(noisy, torch.tensor([1, 500, 900]), Batch(noisy, [CAPTION] * 3, conditioning), conditioning).sum().backward()
        assert not any(p.requires_grad for p in toy[0].model.diffusion_model.input_blocks[0].parameters())
    assert kept and not [t.shape for t in kept if t.data_ptr() in places]
    if algorithm != "loha":  # its full difference is of that shape
        assert not [t.shape for t in kept if tuple(t.shape) in shapes or tuple(t.T.shape if t.ndim == 2 else ()) in shapes]
    assert all(p.requires_grad and p.grad is None for p in loom.unet.parameters())


@pytest.mark.parametrize("text_encoder", [False, True])
def test_another_lora_is_in_force_also_where_the_model_was_never_loaded(
        comfy: SimpleNamespace, toy: tuple, dataset: Dataset, tmp_path: Path, text_encoder: bool) -> None:
    """ComfyUI finds the weights to patch by their names: none of ours may be in the tree when it loads."""
    model, clip, vae = toy
    config = CONFIG.replace(adapter={"train_text_encoder": True}, optim={"learning_rate": 2e-2, "text_encoder_lr": 2e-2})
    other = run(comfy.Model(model, clip, vae), dataset, config, tmp_path / "other").lora
    losses, pointers = {}, []
    for warm in (True, False):
        comfy.model_management.unload_all_models()
        stacked = comfy.sd.load_lora_for_models(model, clip, other, 0.8, 0.8)
        loom = comfy.Model(*stacked, vae)
        if warm:
            with torch.inference_mode():
                comfy.model_management.load_models_gpu([stacked[0], stacked[1].patcher])
        quiet = CONFIG.replace(adapter={"train_text_encoder": text_encoder}, train={"seed": 3})
        losses[warm] = run(loom, dataset, quiet, tmp_path / str(warm)).losses
        after = by_comfyui(comfy, stacked[0], loom.encode_captions([CAPTION])[0].context)
        assert (after - by_comfyui(comfy, model, loom.encode_captions([CAPTION])[0].context)).abs().max() > 0.01
        with torch.inference_mode():
            comfy.model_management.unload_all_models()
        pointers.append([p.data_ptr() for p in model.model.parameters()])
    assert losses[True] == losses[False]
    plain = run(comfy.Model(model, clip, vae), dataset, quiet, tmp_path / "plain").losses
    assert plain[0] != losses[True][0]
    assert pointers[0] == pointers[1]


def test_a_vae_of_another_family(comfy: SimpleNamespace, toy: tuple, dataset: Dataset, tmp_path: Path) -> None:
    wide = SimpleNamespace(first_stage_model=object(), patcher=toy[2].patcher, encode=lambda pixels: torch.zeros(len(pixels), 16, 8, 8))
    with pytest.raises(LoomError, match=r"vae gives latents of shape \(1, 16, 8, 8\).*TrainLoRA.vae"):
        run(comfy.Model(toy[0], toy[1], wide), dataset, CONFIG, tmp_path)


@pytest.mark.parametrize(("class_name", "unet"), [
    ("SD15", {"context_dim": 768, "num_res_blocks": [2] * 4, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3}),
    ("SDXL", {"context_dim": 2048, "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
              "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10})])
def test_original_names_are_comfyuis(comfy: SimpleNamespace, class_name: str, unet: dict) -> None:
    table = comfy.utils.unet_to_diffusers({**COMMON, **unet})
    checked = 0
    for name, own in table.items():
        if name.startswith(("down_blocks", "up_blocks", "mid_block")) and name.endswith(".weight") and "norm" not in name:
            told = ldm_name(name.removesuffix(".weight"), 2)
            assert own.removesuffix(".weight") in {told.replace("UP", place) for place in "12"}, name
            checked += 1
    assert checked > 200


# ---------------------------------------------------------------- the families at full width

COMMON = {
    "use_checkpoint": False, "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False, "num_classes": None, "adm_in_channels": None,
    "in_channels": 4, "model_channels": 320, "use_temporal_attention": False, "num_res_blocks": [1, 1, 1, 1], "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 0], "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
}
SHALLOW = {  # real widths, one block a level, two layers of text
    "sd15": ("SD15", {"context_dim": 768, "use_linear_in_transformer": False}, ("clip_l",), ("lora_te",)),
    "sd2": ("SD20", {"context_dim": 1024, "use_linear_in_transformer": True}, ("clip_h",), ("lora_te",)),
    "sdxl": ("SDXL", {"context_dim": 2048, "use_linear_in_transformer": True, "adm_in_channels": 2816, "num_classes": "sequential", "num_res_blocks": [1, 1, 1],
                      "channel_mult": [1, 2, 4], "transformer_depth": [0, 1, 2], "transformer_depth_output": [0, 0, 1, 1, 2, 2]}, ("clip_l", "clip_g"), ("lora_te1", "lora_te2")),
}


def randomise(root: torch.nn.Module, generator: torch.Generator) -> None:
    """Small random weights that keep activations near one, in place and in the module's own dtype."""
    for name, parameter in root.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * (0.02 if "embedding" in name else 0.5 * fan_in**-0.5))
        else:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)


def shallow(comfy: SimpleNamespace, family: str, v_prediction: bool = False) -> tuple:
    """(MODEL, CLIP, VAE): ComfyUI's own classes for that family, fp16 weights computing in fp32; the VAE is the toy's."""
    class_name, unet, encoders, _ = SHALLOW[family]
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)
        config = getattr(comfy.supported_models, class_name)({**COMMON, **unet})
        config.set_inference_dtype(torch.float16, torch.float32)
        told = {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.linspace(-1, 1, 320), "v_pred": torch.zeros(0)} if v_prediction else {}
        model = config.get_model(told, "", device=torch.device("cpu"))
        randomise(model.diffusion_model, generator)
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
        target = config.clip_target()
        options = {"dtype": torch.float16, **{f"{e}_model_config": {"num_hidden_layers": 3} for e in encoders}}
        clip = comfy.sd.CLIP(target, parameters=0, model_options=options)
        for encoder in encoders:
            randomise(getattr(clip.cond_stage_model, encoder).transformer, generator)
        return patcher, clip, comfy.toy.load()[2]


heavy = pytest.mark.skipif(not os.environ.get("LORA_LOOM_HEAVY"), reason="takes long, and its like is tested: LORA_LOOM_HEAVY=1 runs it")


@pytest.mark.parametrize(("family", "v_prediction", "targets", "algorithm"), [
    ("sd15", False, "all linear+conv", "lora"), ("sd2", True, "attention", "lora"), ("sdxl", False, "all linear+conv", "lora"),
    pytest.param("sd15", False, "all linear+conv", "dora", marks=pytest.mark.slow), pytest.param("sd2", False, "all linear+conv", "lora", marks=heavy),
    pytest.param("sdxl", False, "all linear+conv", "dora", marks=heavy), pytest.param("sdxl", True, "attention", "lora", marks=heavy),
])
def test_full_width_families(comfy: SimpleNamespace, dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture,
                             family: str, v_prediction: bool, targets: str, algorithm: str) -> None:
    model, clip, vae = shallow(comfy, family, v_prediction)
    loom, prefixes = comfy.Model(model, clip, vae), SHALLOW[family][3]
    assert loom.family.id == family and loom.prediction == ("v_prediction" if v_prediction else "epsilon")
    tensors = base_tensors(model.model, clip.cond_stage_model)
    places, sums = {k: v.data_ptr() for k, v in tensors.items()}, {k: v.sum().item() for k, v in tensors.items()}
    context = loom.encode_captions([CAPTION])[0].context
    plain, live = predict(loom), {}
    config = CONFIG.replace(adapter={"train_text_encoder": True, "targets": targets, "algorithm": algorithm}, optim={"learning_rate": 2e-3, "text_encoder_lr": 2e-3}, train={"steps": 2})

    def look() -> None:
        live.update(epsilon=predict(loom), context=loom.encode_captions([CAPTION])[0].context)

    result = run(loom, dataset, config, tmp_path, progress=last_step(look))
    assert {k: v.data_ptr() for k, v in base_tensors(model.model, clip.cond_stage_model).items()} == places
    assert {k: v.sum().item() for k, v in tensors.items()} == sums

    layers = {k.split(".")[0] for k in result.lora}
    assert {p: any(layer.startswith(p + "_") for layer in layers) for p in ("lora_unet", *prefixes)} == dict.fromkeys(("lora_unet", *prefixes), True)
    named = set(loom.layer_names("lora_unet").values())
    assert {layer.removeprefix("lora_unet_") for layer in layers if layer.startswith("lora_unet_")} <= {n.replace(".", "_") for n in named}
    with no_warnings(caplog):
        lora = comfy.utils.load_torch_file(str(result.path), safe_load=True)
        patched, patched_clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
        assert len(patched.patches) + len(patched_clip.patcher.patches) == len(layers)
        loaded = comfy.Model(patched, patched_clip, vae)
        new_context = loaded.encode_captions([CAPTION])[0].context
        loaded.load()
        epsilon = predict(loaded)
    assert (new_context - context).abs().max() > 1e-3 and (epsilon - plain).abs().max() > 1e-3
    scale = (live["epsilon"] - plain).abs().max()
    # an fp16 base rounds W + BA to fp16 when a LoRA is loaded, and live adapters do not
    assert ((epsilon - live["epsilon"]).abs().max() / scale).item() < 0.1
    assert ((new_context - live["context"]).abs().max() / (live["context"] - context).abs().max()).item() < 0.1


def test_v_prediction_equals_comfyuis_sampler(comfy: SimpleNamespace) -> None:
    model, clip, vae = shallow(comfy, "sd2", v_prediction=True)
    loom = comfy.Model(model, clip, vae)
    torch.testing.assert_close(predict(loom), by_comfyui(comfy, model, loom.encode_captions([CAPTION])[0].context), rtol=1e-3, atol=2e-3)


def test_sdxl_conditions_as_comfyui_does(comfy: SimpleNamespace) -> None:
    """Pooled text and the sizes: the same prediction as by `apply_model` with ComfyUI's own vector."""
    model, clip, vae = shallow(comfy, "sdxl")
    loom = comfy.Model(model, clip, vae)
    entry = loom.encode_captions([CAPTION])[0]
    with torch.inference_mode():
        [[context, extra]] = clip.encode_from_tokens_scheduled(clip.tokenize(CAPTION))
        torch.testing.assert_close(entry.context, context.float(), rtol=0, atol=1e-5)
        torch.testing.assert_close(entry.pooled, extra["pooled_output"].float(), rtol=0, atol=1e-5)
        y = model.model.encode_adm(pooled_output=extra["pooled_output"], width=64, height=64, device=torch.device("cpu"))
    torch.testing.assert_close(predict(loom), by_comfyui(comfy, model, context, y=y.expand(3, -1)), rtol=1e-3, atol=2e-3)


# ---------------------------------------------------------------- what it refuses

def test_missing_parts(comfy: SimpleNamespace, toy: tuple) -> None:
    model, clip, vae = toy
    with pytest.raises(LoomError, match="clip is empty.*CLIPLoader"):
        comfy.Model(model, None, vae)
    with pytest.raises(LoomError, match="vae is empty.*VAELoader"):
        comfy.Model(model, clip, None)
    with pytest.raises(LoomError, match="vae is empty.*VAELoader"):  # what a checkpoint without a VAE gives
        comfy.Model(model, clip, comfy.sd.VAE(sd={}))


def test_the_clip_of_another_family(comfy: SimpleNamespace, toy: tuple) -> None:
    model, _, vae = toy
    target = comfy.supported_models.SD20({**COMMON, **SHALLOW["sd2"][1]}).clip_target()
    clip_h = comfy.sd.CLIP(target, model_options={"dtype": torch.float16, "clip_h_model_config": {"num_hidden_layers": 3}})
    with pytest.raises(LoomError, match="without clip_l.*same checkpoint"):
        comfy.Model(model, clip_h, vae)
    target = comfy.supported_models.SD15({**COMMON, **SHALLOW["sd15"][1]}).clip_target()
    clip_l = comfy.sd.CLIP(target, model_options={"dtype": torch.float16, "clip_l_model_config": {"num_hidden_layers": 3}})
    with pytest.raises(LoomError, match="width 768, the MODEL takes 64"):  # clip_l of real SD1.5 on the toy base
        comfy.Model(model, clip_l, vae).encode_captions([CAPTION])


def empty_model(comfy: SimpleNamespace, class_name: str, unet: dict):
    """A MODEL of that family without weights: on the meta device."""
    config = getattr(comfy.supported_models, class_name)(unet)
    config.set_inference_dtype(torch.float16, torch.float32)
    model = config.get_model({}, "", device=torch.device("meta"))
    return comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


FLUX = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 32, "hidden_size": 64, "mlp_ratio": 4.0, "num_heads": 2, "depth": 1,
        "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}
REFINER = {**COMMON, "model_channels": 384, "use_linear_in_transformer": True, "context_dim": 1280, "adm_in_channels": 2560, "num_classes": "sequential",
           "transformer_depth": [0, 1, 1, 0], "transformer_depth_output": [0, 0, 1, 1, 1, 1, 0, 0]}


@pytest.mark.parametrize(("class_name", "unet", "words"), [
    ("FluxInpaint", {**FLUX, "in_channels": 96}, ("family FluxInpaint", "SD1.5, SD2.x, SDXL, SD3.x")),
    ("SD15", {**COMMON, **SHALLOW["sd15"][1], "in_channels": 9}, ("9 input channels", "inpainting", "plain one")),
    ("SDXLRefiner", REFINER, ("family SDXLRefiner", "SD1.5, SD2.x, SDXL, SD3.x")),
    ("SD21UnclipL", {**COMMON, **SHALLOW["sd2"][1], "adm_in_channels": 1536, "num_classes": "sequential"}, ("family SD21UnclipL", "SD1.5, SD2.x, SDXL, SD3.x")),
])
def test_families_that_are_not_trained_yet(comfy: SimpleNamespace, toy: tuple, class_name: str, unet: dict, words: tuple[str, ...]) -> None:
    model = empty_model(comfy, class_name, unet)
    with pytest.raises(LoomError) as error:
        comfy.Model(model, toy[1], toy[2])
    assert all(word in str(error.value) for word in words)


def test_sampling_that_other_nodes_have_changed(comfy: SimpleNamespace, toy: tuple) -> None:
    """ModelSamplingDiscrete set to v_prediction is trained as that; lcm or x0 is named and refused."""
    model, clip, vae = toy
    known = comfy.model_sampling

    def patched(*bases: type):
        clone = model.clone()
        clone.add_object_patch("model_sampling", type("ModelSamplingAdvanced", bases, {})(model.model.model_config))
        return clone

    assert comfy.Model(patched(known.ModelSamplingDiscrete, known.V_PREDICTION), clip, vae).prediction == "v_prediction"
    assert comfy.Model(patched(known.ModelSamplingDiscrete, known.EPS), clip, vae).prediction == "epsilon"
    for bases in ((known.ModelSamplingDiscrete, known.X0), (known.ModelSamplingDiscreteFlow, known.CONST), (known.ModelSamplingContinuousEDM, known.EDM)):
        if hasattr(known, "X0"):
            with pytest.raises(LoomError, match="epsilon and v-prediction"):
                comfy.Model(patched(*bases), clip, vae)


# ---------------------------------------------------------------- samples while training

SAMPLED = CONFIG.replace(adapter={"dropout": 0.3}, optim={"learning_rate": 5e-3}, samples={"sample_steps": 2, "sample_prompts": (CAPTION,), "sample_seed": 3})


@pytest.mark.parametrize("text_encoder", [False, True])
def test_samples_come_from_comfyuis_own_sampler_on_the_live_adapters(comfy: SimpleNamespace, toy: tuple, dataset: Dataset, tmp_path: Path, text_encoder: bool) -> None:
    config = SAMPLED.replace(adapter={"train_text_encoder": text_encoder})
    patcher, clip, vae = toy
    model = comfy.Model(*toy)
    model.load(text_encoder)
    roots = (patcher.model, clip.cond_stage_model) if text_encoder else (patcher.model,)  # what ComfyUI unloads meanwhile keeps its own marks
    before = snapshot(*roots)
    weights = {name: (t.data_ptr(), t.clone()) for name, t in base_tensors(*roots).items()}
    loader, requested = comfy.model_management.load_models_gpu, []
    comfy.model_management.load_models_gpu = lambda models, *args, **kwargs: requested.append(list(models)) or loader(models, *args, **kwargs)
    try:
        result = run(model, dataset, config, tmp_path / "seen", event=lambda name, data: requested.append(name) if name == "started" else None)
    finally:
        comfy.model_management.load_models_gpu = loader
    assert snapshot(*roots) == before
    assert all(t.data_ptr() == weights[name][0] and torch.equal(t, weights[name][1]) for name, t in base_tensors(*roots).items())
    assert any(m.model is patcher for m in comfy.model_management.current_loaded_models)
    drawn = requested[requested.index("started") + 1:]
    assert sum(vae.patcher in models for models in drawn) >= 4  # encoding, and three samples
    assert sum(any(m is patcher or m.is_clone(patcher) for m in models) for models in drawn) == 1  # for the training, not for the samples

    blind = run(comfy.Model(*toy), dataset, config.replace(samples={"sample_steps": 0}), tmp_path / "blind")
    assert all(torch.equal(result.lora[key], blind.lora[key]) for key in blind.lora) and result.losses == blind.losses

    settings = {"steps": 20, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "seed": 3, "disable_pbar": True}
    with torch.inference_mode():
        for step, (unet, text) in ((0, (patcher, clip)), (4, model.with_lora(result.lora))):
            empty = torch.zeros(1, 4, 8, 8)
            positive, negative = (text.encode_from_tokens_scheduled(text.tokenize(words)) for words in (CAPTION, ""))
            found = comfy.sample.sample(unet, comfy.sample.prepare_noise(empty, 3), positive=positive, negative=negative, latent_image=empty, **settings)
            wanted = vae.decode(found)[0] * 255
            kept = torch.from_numpy(np.asarray(Image.open(result.run_folder / "samples" / f"step{step:06d}_1.png")).copy())
            assert (kept - wanted).abs().max() < 1.5, step


def test_captions_are_drawn_as_they_are_trained_on(comfy: SimpleNamespace, toy: tuple) -> None:
    """Emphasis is for prompts of the user's own; a caption's parentheses are parentheses."""
    model, caption = comfy.Model(*toy), "a ((red)) star, name (series:1.8)"
    [[[literally, _]], [[emphasized, _]]] = [*model.encode_prompts([caption], as_captions=True), *model.encode_prompts([caption])]
    torch.testing.assert_close(literally, model.encode_captions([caption])[0].context, rtol=0, atol=1e-6)
    assert (emphasized - literally).abs().max() > 0.1


@pytest.mark.parametrize("trained", [False, True])
def test_clip_skip_is_as_comfyui_sets_it(comfy: SimpleNamespace, toy: tuple, dataset: Dataset, tmp_path: Path, trained: bool) -> None:
    """CLIPSetLastLayer in front of TrainLoRA: captions are read one layer early, in training too, and the LoRA fits the CLIP behind it."""
    model, clip, vae = toy
    skipped = clip.clone()
    skipped.clip_layer(-2)
    ours = comfy.Model(model, skipped, vae)
    with torch.inference_mode():
        wanted = [text.encode_from_tokens(text.tokenize(CAPTION)) for text in (clip, skipped)]
    got = ours.encode_captions([CAPTION])[0].context
    torch.testing.assert_close(got, wanted[1].clone(), rtol=0, atol=1e-6)
    assert (got - wanted[0]).abs().max() > 0.01
    live = []
    config = CONFIG.replace(adapter={"train_text_encoder": trained})
    result = run(ours, dataset, config, tmp_path, progress=last_step(lambda: live.append(ours.encode_captions([CAPTION])[0].context.clone())))
    _, behind = ours.with_lora(result.lora)
    with torch.inference_mode():
        torch.testing.assert_close(behind.encode_from_tokens(behind.tokenize(CAPTION)).clone(), live[0].clone(), rtol=0, atol=1e-3)
    assert ((live[0] - got).abs().max() > 1e-3) == trained


# ---------------------------------------------------------------- layers of other packs

def test_layers_that_unpack_their_weight_themselves(comfy: SimpleNamespace, toy: tuple, dataset: Dataset, tmp_path: Path) -> None:
    """As ComfyUI-GGUF's do: `weight` holds packed bytes that mean nothing by themselves, `cast_bias_weight` gives the numbers."""
    plain = run(comfy.Model(*toy), dataset, CONFIG, tmp_path / "plain")
    layers = [m for n, m in toy[0].model.diffusion_model.named_modules() if "transformer_blocks" in n and isinstance(m, torch.nn.Linear)]
    asked: list[int] = []

    class Packed:
        def cast_bias_weight(self, input=None, dtype=None, device=None, bias_dtype=None):
            asked.append(1)
            return self.numbers.to(input), None if self.bias is None else self.bias.to(input)

        def forward_comfy_cast_weights(self, input):
            return torch.nn.functional.linear(input, *self.cast_bias_weight(input))

    kinds: dict[type, type] = {}
    with torch.inference_mode():
        for layer in layers:
            layer.numbers = layer.weight.detach().clone()
            layer.weight = torch.nn.Parameter(torch.zeros_like(layer.weight), requires_grad=False)
            layer.comfy_cast_weights = True
            layer.__class__ = kinds.setdefault(type(layer), type("Packed", (Packed, type(layer)), {}))
    packed = run(comfy.Model(*toy), dataset, CONFIG, tmp_path / "packed")
    assert len(asked) > 6 * len(layers) and packed.losses == plain.losses
    assert all(torch.equal(packed.lora[key], plain.lora[key]) for key in plain.lora)


@pytest.mark.parametrize("patched", [False, True], ids=["bare", "with a stacked LoRA"])
def test_scaled_fp8_layers_of_older_comfyuis(comfy_modules: ModuleType, patched: bool) -> None:
    """Before it had quantized tensors, ComfyUI's layer applied a scale in its own forward: what is fetched has it too."""
    import comfy.model_patcher
    import comfy.ops

    if not hasattr(comfy.ops, "scaled_fp8_ops"):
        pytest.skip("this ComfyUI has quantized tensors instead")
    from comfy.weight_adapter.lora import LoRAAdapter
    from lora_loom.trainer.backbones.comfy import fetch

    torch.manual_seed(0)
    layer = comfy.ops.scaled_fp8_ops(override_dtype=torch.float8_e4m3fn).Linear(64, 32)
    weight = torch.randn(32, 64) * 0.01
    scale = weight.abs().max() / 448
    layer.weight.data, layer.scale_weight.data = (weight / scale).to(torch.float8_e4m3fn), scale
    layer.bias.data = torch.zeros(32).to(torch.float8_e4m3fn)
    if patched:
        lora = LoRAAdapter(set(), (torch.randn(32, 4) * 0.05, torch.randn(4, 64) * 0.05, 4.0, None, None, None))
        layer.weight_function = [comfy.model_patcher.LowVramPatch("k", {"k": [(1.0, lora, 1.0, None, None)]}, layer.convert_weight, layer.set_weight)]
    x = torch.randn(5, 64)
    with torch.no_grad(), fetch(layer.requires_grad_(False), x) as (found, bias):
        torch.testing.assert_close(torch.nn.functional.linear(x, found, bias), layer(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("form", "share", "options"), [
    ("float8_e4m3fn", 0.04, {"scale": "recalculate"}), ("float8_e5m2", 0.08, {"scale": "recalculate"}), ("nvfp4", 0.15, {}), ("mxfp8", 0.04, {}),
    ("int8_tensorwise", 0.02, {"is_weight": True}), ("int8_tensorwise", 0.02, {"is_weight": True, "per_channel": True, "convrot": True}),
    ("convrot_w4a4", 0.2, {}), ("asym_w4a8_int8", 0.1, {})], ids=lambda given: given if isinstance(given, str) else "turned" if "convrot" in str(given) else "")
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
def test_every_quantized_layer_that_comfyui_loads(comfy_modules: ModuleType, form: str, share: float, options: dict, compute: torch.dtype) -> None:
    """It computes with what its numbers mean, forward and backward, keeps nothing but what it is given, and is what it was afterwards."""
    import comfy.ops
    from lora_loom.trainer.backbones.comfy import fetch, known_as_linear
    from lora_loom.trainer.layers.low_rank import low_rank
    from lora_loom.trainer.layers.on_demand import weights_on_demand

    quant = pytest.importorskip("comfy.quant_ops", reason="this ComfyUI has no quantized layers")
    if form not in quant.QUANT_ALGOS:
        pytest.skip(f"this ComfyUI knows no {form}")
    torch.manual_seed(0)
    layout, (out, into) = quant.QUANT_ALGOS[form]["comfy_tensor_layout"], (96, 256)
    true, down, up = torch.randn(out, into) / 16, torch.randn(4, into, requires_grad=True), torch.randn(out, 4, requires_grad=True)
    layer = comfy.ops.mixed_precision_ops({}, compute_dtype=compute).Linear(into, out)
    packed = quant.QuantizedTensor.from_float(true.to(compute), layout, **options)
    layer.weight, layer.bias = torch.nn.Parameter(packed, requires_grad=False), torch.nn.Parameter(torch.randn(out).to(compute), requires_grad=False)
    layer.quant_format, layer.layout_type = form, layout
    net, before = torch.nn.Sequential(layer), (type(layer), packed._qdata.clone(), dict(layer.__dict__))
    meant = packed.dequantize().to(compute)
    assert (meant - true).norm() < share * true.norm()
    x, weights, kept = torch.randn(2, 3, into).to(compute).requires_grad_(), torch.randn(2, 3, out).to(compute), []
    with torch.no_grad():
        theirs = layer(x.detach())
    with known_as_linear(net), weights_on_demand(net, fetch):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            mine = net(x), low_rank(x, layer, down, up, 0.5)
        grads = [torch.autograd.grad((y * weights).sum(), x, retain_graph=True)[0] for y in mine]
    exact = torch.nn.functional.linear(x, meant, layer.bias)
    branch = torch.nn.functional.linear(torch.nn.functional.linear(x, down.to(compute)), up.to(compute)) * 0.5
    near = 1e-5 if compute == torch.float32 else 1e-2
    for found, expected in ((mine[0], exact), (mine[1], exact + branch), (grads[0], weights @ meant), (grads[1], weights @ (meant + 0.5 * up.to(compute) @ down.to(compute)))):
        assert (found - expected).norm() <= near * expected.norm()
    assert (mine[0] - theirs).norm() < 1.5 * share * theirs.norm()  # which quantizes what it is given, too
    assert {tuple(t.shape) for t in kept} == {(2, 3, into), (4, into), (out, 4)}
    assert (type(layer), layer.weight._qdata.equal(before[1]), dict(layer.__dict__)) == (before[0], True, before[2])
