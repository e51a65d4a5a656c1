"""Flow transformers behind ComfyUI's own classes: shallow checkpoints of real width, made here, detected and loaded by ComfyUI itself."""
from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from lora_loom.trainer.backbones.families import FAMILIES
from lora_loom.trainer.config import TARGETS, AdapterConfig, LoomConfig
from lora_loom.trainer.data.folder import read_dataset
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.hooks import Hooks
from lora_loom.trainer.job import train
from lora_loom.trainer.runs import lora_names
from lora_loom.trainer.toy import stars
from PIL import Image
from safetensors.torch import load_file, save_file


@dataclasses.dataclass(frozen=True)
class Shallow:
    """One family: ComfyUI's configuration class, the network's own arguments, the width of its text, and what else its text encoder gives."""

    config: str
    unet: dict
    context: int
    pooled: int | None = None
    latents: tuple[int, ...] = (16,)  # (channels,), or (channels, 1) with a time axis
    scale: int = 8  # pixels a latent cell
    mask: bool = False
    layers: tuple[int, int] = (0, 0)  # adapted with attention, with all linear; counted by hand from the names


_FLUX = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0,
         "num_heads": 24, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}
SHALLOW = {
    "sd3": Shallow("SD3", {"in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 24, "num_blocks": 2, "input_size": None, "adm_in_channels": 2048, "qk_norm": "rms",
                           "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}}, "num_patches": 36864,
                           "pos_embed_max_size": 192, "pos_embed_scaling_factor": None, "x_block_self_attn_layers": [0]}, 4096, 2048),
    "flux": Shallow("Flux", _FLUX, 4096, 768),
    "chroma": Shallow("Chroma", {k: v for k, v in _FLUX.items() if k not in ("guidance_embed",)} | {
        "txt_ids_dims": [], "vec_in_dim": None, "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5}, 4096),
    "flux2": Shallow("Flux2", {**_FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None, "context_in_dim": 7680, "mlp_ratio": 3.0,
                               "num_heads": 24, "axes_dim": [32, 32, 32, 32], "theta": 2000, "qkv_bias": False, "ops_bias": False, "global_modulation": True, "mlp_silu_act": True,
                               "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3]}, 7680, latents=(128,), scale=16),
    "qwen_image": Shallow("QwenImage", {"image_model": "qwen_image", "in_channels": 64, "num_layers": 1}, 3584, latents=(16, 1), mask=True),
    "lumina2": Shallow("Lumina2", {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 2304, "cap_feat_dim": 2304, "n_layers": 1, "n_refiner_layers": 2, "qk_norm": True,
                                   "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512], "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0},
                       2304, mask=True),
    "z_image": Shallow("ZImage", {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 1, "n_refiner_layers": 2, "qk_norm": True,
                                  "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3,
                                  "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32}, 2560, mask=True),
    "wan": Shallow("WAN21_T2V", {"image_model": "wan2.1", "model_type": "t2v", "dim": 1536, "out_dim": 16, "num_heads": 12, "ffn_dim": 8960, "num_layers": 1, "patch_size": (1, 2, 2),
                                 "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6, "in_dim": 16}, 4096, latents=(16, 1)),
}
HEAVY = {"chroma", "flux2", "z_image"}
heavy = pytest.mark.skipif(not os.environ.get("LORA_LOOM_HEAVY"), reason="takes gigabytes and minutes, and its like is tested: LORA_LOOM_HEAVY=1 runs it")
CONFIG = LoomConfig().replace(adapter={"rank": 4, "alpha": 2.0, "targets": "all linear"}, optim={"learning_rate": 1e-2, "scheduler": "constant"},
                              train={"steps": 2, "batch_size": 2, "precision": "fp32"}, loss={"caption_dropout": 0.0}, output={"name": "flow", "save_dtype": "fp32"})


class Clip:
    """Stands for a text encoder of gigabytes: embeddings drawn from the caption itself, of the width and length that the family's own has."""

    def __init__(self, shallow: Shallow) -> None:
        self.shallow = shallow
        self.cond_stage_model = torch.nn.Module()
        self.patcher = type("Patcher", (), {"injections": {}, "load_device": torch.device("cpu")})()

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens(self, text: str, return_pooled: bool, return_dict: bool) -> dict:
        generator = torch.Generator().manual_seed(sum(map(ord, text)))
        length = 8 + len(text) % 3 * 4  # captions of different lengths
        found = {"cond": torch.randn(1, length, self.shallow.context, generator=generator),
                 "pooled_output": None if self.shallow.pooled is None else torch.randn(1, self.shallow.pooled, generator=generator)}
        if self.shallow.mask:
            found["attention_mask"] = torch.ones(1, length, dtype=torch.long)
        return found


    def encode_from_tokens_scheduled(self, text: str) -> list:
        found = self.encode_from_tokens(text, True, True)
        return [[found.pop("cond"), {name: value for name, value in found.items() if value is not None}]]


class Vae:
    def __init__(self, shallow: Shallow) -> None:
        self.shallow, self.first_stage_model = shallow, torch.nn.Module()
        self.latent_dim = 3 if len(shallow.latents) == 2 else 2
        self.patcher = None

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        assert self.latent_dim == 2 or len(pixels) == 1, "a video VAE takes a batch for the frames of one film"
        small = torch.nn.functional.adaptive_avg_pool2d(pixels.movedim(-1, 1), (pixels.shape[1] // self.shallow.scale, pixels.shape[2] // self.shallow.scale))
        latents = small.mean(1, keepdim=True).repeat(1, self.shallow.latents[0], 1, 1) * 2 - 1
        return latents.unsqueeze(2) if self.latent_dim == 3 else latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(1, H, W, 3); a video VAE gives frames, (1, T, H, W, 3)."""
        flat = latents.mean(1) * 0.25 + 0.5
        pixels = flat.repeat_interleave(self.shallow.scale, -1).repeat_interleave(self.shallow.scale, -2).unsqueeze(-1)
        return pixels.expand(*pixels.shape[:-1], 3)


def by_path(name: str) -> ModuleType:
    """A helper of the tests above this folder."""
    spec = importlib.util.spec_from_file_location(f"loom_{name}", Path(__file__).parents[1] / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network_of(shallow: Shallow):
    import comfy.supported_models

    config = getattr(comfy.supported_models, shallow.config)(dict(shallow.unet))
    config.set_inference_dtype(torch.float32, None)
    return config.get_model({}, "")


def checkpoint(shallow: Shallow) -> dict[str, torch.Tensor]:
    """Random weights of the real width, as a file of this family holds them. Gates are opened: a new model's zeros would hide every change."""
    network = network_of(shallow).diffusion_model
    pool = torch.randn(1_000_003, generator=torch.Generator().manual_seed(1))  # repeated, for billions of draws take minutes
    found: dict[str, torch.Tensor] = {}
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            found[name] = tensor
        elif "norm" in name and tensor.ndim == 1 or name.endswith((".ln_q.weight", ".ln_k.weight")):
            found[name] = torch.ones(tensor.shape)
        else:
            fan_in = tensor[0].numel() if tensor.ndim > 1 else tensor.numel()
            found[name] = pool.repeat(-(-tensor.numel() // len(pool)))[:tensor.numel()].view(tensor.shape) * min(0.05, fan_in ** -0.5)
    return found


def last_block_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI takes SD3's last block for the one that its width asks for, which a shallow one lacks; its halves of scale and shift stand the other way round."""
    import comfy.utils

    whole = comfy.utils.mmdit_to_diffusers

    def names(config: dict, output_prefix: str = "") -> dict:
        found, last = whole(config, output_prefix), config["num_blocks"] - 1
        end = "context_block.adaLN_modulation.1.weight"
        return {**found, f"transformer_blocks.{last}.norm1_context.linear.weight": (f"{output_prefix}joint_blocks.{last}.{end}", None, comfy.utils.swap_scale_shift)}

    monkeypatch.setattr(comfy.utils, "mmdit_to_diffusers", names)


@pytest.fixture(scope="module", params=[pytest.param(name, marks=heavy) if name in HEAVY else name for name in SHALLOW])
def family(request: pytest.FixtureRequest, comfy_modules: ModuleType):
    """(family's id, its Shallow, MODEL as ComfyUI loads it, inference tensors and all)."""
    import comfy.model_patcher
    import comfy.sd

    shallow, monkeypatch = SHALLOW[request.param], pytest.MonkeyPatch()
    with torch.inference_mode():
        if request.param == "sd3":  # ComfyUI reads its depth off its width
            built = network_of(shallow)
            built.diffusion_model.load_state_dict(checkpoint(shallow))
            last_block_is_the_last(monkeypatch)
            model = comfy.model_patcher.ModelPatcher(built, torch.device("cpu"), torch.device("cpu"))
        else:
            model = comfy.sd.load_diffusion_model_state_dict(checkpoint(shallow), model_options={"dtype": torch.float32})
    assert model is not None and type(model.model.model_config).__name__ == shallow.config
    yield request.param, shallow, model
    import gc

    import comfy.model_management

    comfy.model_management.unload_all_models()
    monkeypatch.undo()
    gc.collect()


def open_model(family):
    from lora_loom.trainer.backbones import comfy as backbone

    name, shallow, model = family
    opened = backbone.open_model(model, Clip(shallow), Vae(shallow))
    opened.release_encoders = lambda text_encoders: None  # there is nothing to unload
    return opened


def sampled(model, shallow: Shallow, name: str) -> torch.Tensor:
    """What ComfyUI's own sampler makes of the model: two steps from fixed noise."""
    import comfy.sample

    cond = Clip(shallow).encode_from_tokens("a star", True, True)
    positive = [[cond.pop("cond"), {k: v for k, v in cond.items() if v is not None}]]
    noise = torch.randn(1, *shallow.latents, 64 // shallow.scale, 64 // shallow.scale, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return comfy.sample.sample(model, noise, 2, 1.0, "euler", "simple", positive, positive, torch.zeros_like(noise), seed=0).clone()


def test_trains_saves_loads_and_changes_the_picture(family, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import comfy.sd

    name, shallow, model = family
    weights = {k: (v.data_ptr(), v.flatten()[:64].clone()) for k, v in model.model.diffusion_model.state_dict().items()}
    kinds = {k: type(v) for k, v in model.model.diffusion_model.named_modules()}
    before = sampled(model, shallow, name)
    opened = open_model(family)
    assert opened.family is FAMILIES[name] and opened.prediction == "flow"
    dataset = read_dataset(stars.write(tmp_path / "stars", 3), resolution=64, min_size=64)
    opened.family = dataclasses.replace(opened.family, sampler=("euler", "simple", 2))
    config = CONFIG.replace(samples={"sample_steps": 2, "sample_prompts": ("a star",)})
    result = train(opened, dataset, config, loras_folder=tmp_path / "loras", runs_folder=tmp_path / "runs")
    assert all(0 < loss < 1000 for loss in result.losses)
    drawn = [np.asarray(Image.open(result.run_folder / "samples" / f"step{step:06d}_1.png")) for step in (0, 2)]
    assert drawn[0].shape == (64, 64, 3) and (drawn[0] != drawn[1]).any()

    after = {k: (v.data_ptr(), v.flatten()[:64].clone()) for k, v in model.model.diffusion_model.state_dict().items()}
    assert weights.keys() == after.keys() and all(weights[k][0] == after[k][0] and torch.equal(weights[k][1], after[k][1]) for k in weights)
    assert {k: type(v) for k, v in model.model.diffusion_model.named_modules()} == kinds
    assert torch.equal(sampled(model, shallow, name), before), "the base model is as it was"

    lora = load_file(result.path)
    ups = {k: v for k, v in lora.items() if k.endswith(("lora_up.weight", "lora_B.weight"))}
    idle = [k for k, v in ups.items() if not v.abs().max() > 0]
    # the last block's text goes nowhere in some of them
    assert ups and len(idle) < len(ups) / 2 and all(any(word in k for word in ("txt", "add_", "to_add_out", "context")) for k in idle), idle
    prefix = {"kohya": "lora_unet_", "diffusion_model": "diffusion_model.", "transformer": "transformer."}[FAMILIES[name].keys]
    assert all(key.startswith(prefix) for key in lora)
    with caplog.at_level(logging.WARNING):
        loaded, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    assert "not loaded" not in caplog.text, caplog.text
    assert sum(map(len, loaded.patches.values())) == len(ups)
    changed = sampled(loaded, shallow, name)
    assert not torch.allclose(changed, before, rtol=1e-3, atol=1e-4)

    # the file says what was trained: the live adapters' answer is that of the patched weights
    sigmas = torch.tensor([0.3, 0.8])
    noisy = torch.randn(2, *shallow.latents, 64 // shallow.scale, 64 // shallow.scale, generator=torch.Generator().manual_seed(4))
    with_file, live = answer(opened, noisy, sigmas, loaded), answer(opened, noisy, sigmas, model, adapters=result.path)
    plain = answer(opened, noisy, sigmas, model)
    assert (with_file - live).abs().max() < 0.02 * (with_file - plain).abs().max()


# diffusers' own class of the network, its arguments for ours, and the pipeline part that reads LoRA files
DIFFUSERS = {
    "sd3": ("SD3Transformer2DModel", {"num_layers": 2, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192, "dual_attention_layers": (0,),
                                      "qk_norm": "rms_norm"}, "SD3"),
    "flux": ("FluxTransformer2DModel", {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}, "Flux"),
    "chroma": ("ChromaTransformer2DModel", {"num_layers": 1, "num_single_layers": 1}, "Flux"),
    "flux2": ("Flux2Transformer2DModel", {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 24, "joint_attention_dim": 7680}, "Flux2"),
    "qwen_image": ("QwenImageTransformer2DModel", {"num_layers": 1}, "QwenImage"),
    "lumina2": ("Lumina2Transformer2DModel", {"num_layers": 1, "cap_feat_dim": 2304}, "Lumina2"),
    "z_image": ("ZImageTransformer2DModel", {"n_layers": 1}, "ZImage"),
    "wan": ("WanTransformer3DModel", {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 1}, "Wan"),
}


def delta(layer: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a layer's LoRA adds to the weight."""
    scale = layer["alpha"].item() / len(layer["lora_down.weight"]) if "alpha" in layer else 1.0
    return layer["lora_up.weight"] @ layer["lora_down.weight"] * scale


def in_diffusers(kind: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint of the original names in diffusers' own, by diffusers."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    as_in_files = {re.sub(r"((query|key)_norm|distilled_guidance_layer\.norms\.\d+)\.weight$", r"\1.scale", k): v for k, v in weights.items()}
    return SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"](as_in_files, config={})


def fused(theirs: torch.nn.Module) -> dict[str, torch.Tensor]:
    theirs.fuse_lora()
    return {k.replace(".base_layer", ""): v.detach() for k, v in theirs.state_dict().items() if "lora_" not in k and not v.is_meta}


def scaled(tensors: dict[str, torch.Tensor], alphas: dict[str, float] | None) -> dict[str, torch.Tensor]:
    """With the alphas that diffusers' reader keeps apart, as tensors."""
    return {**tensors, **{key: torch.tensor(float(value)) for key, value in (alphas or {}).items()}}


# layers beside the blocks, which patterns of one's own choose
BESIDE = {
    "flux2": r"^(img_in|txt_in|time_in|guidance_in|final_layer)\b", "lumina2": r"^(x_embedder|cap_embedder\.1|t_embedder|final_layer)\b",
    "chroma": r"^(img_in|txt_in|final_layer\.linear|distilled_guidance_layer\.(in_proj|out_proj|layers))\b",
    "wan": r"^(time_embedding|text_embedding|time_projection|head\.head)\b",
}


@pytest.mark.parametrize("name", SHALLOW)
def test_every_linear_layer_has_its_name_in_diffusers(comfy_modules: ModuleType, name: str) -> None:
    """By shapes alone: the parts have the layer's rows and columns, and none of diffusers' layers is left over."""
    import diffusers

    kind, arguments, _ = DIFFUSERS[name]
    with torch.device("meta"):
        ours, theirs = network_of(SHALLOW[name]).diffusion_model, getattr(diffusers, kind)(**arguments)
    linear = lambda network: {n: tuple(m.weight.shape) for n, m in network.named_modules() if isinstance(m, torch.nn.Linear)}
    known, named = linear(theirs), set()
    for own, (rows, columns) in linear(ours).items():
        found = FAMILIES[name].in_diffusers(own, own)
        assert found is not None, own
        parts = [part.removeprefix("transformer.") for part in found.theirs]
        assert [known.get(part) for part in parts] == [(rows * share // sum(found.shares), columns) for share in found.shares], own
        assert not named & set(parts)
        named |= set(parts)
    assert named == known.keys()


@pytest.mark.parametrize("beside", [False, True], ids=["blocks", "attention and beside"])
def test_diffusers_makes_the_same_weights_of_the_file(family, tmp_path: Path, beside: bool) -> None:
    """What the file adds to the weights is the same through ComfyUI's LoraLoader and through diffusers' reader: the same weights, the same answer.
    And what diffusers has read, written in its own names, is read by us as the same LoRA. Where diffusers cannot read it there is a second file."""
    import comfy.lora
    import comfy.sd
    import diffusers
    from diffusers.loaders import lora_pipeline

    name, shallow, model = family
    if name in ("flux", "qwen_image") and not os.environ.get("LORA_LOOM_HEAVY"):
        pytest.skip("its weights take long to make twice, and SD3's, Lumina 2's and Wan's are tested: LORA_LOOM_HEAVY=1 runs it")
    if beside and name not in BESIDE:
        pytest.skip("its file has these as the others")
    kind, arguments, pipeline = DIFFUSERS[name]
    dataset = read_dataset(stars.write(tmp_path / "stars", 2), resolution=64, min_size=64)
    config = CONFIG.replace(train={"batch_size": 1}, adapter={"target_modules": (*FAMILIES[name].targets["attention"], BESIDE[name])} if beside else {})
    result = train(open_model(family), dataset, config, loras_folder=tmp_path / "loras", runs_folder=tmp_path / "runs")

    reader, flux = getattr(lora_pipeline, f"{pipeline}LoraLoaderMixin"), pipeline == "Flux"
    second = result.run_folder / "diffusers" / "pytorch_lora_weights.safetensors"
    assert second.is_file() == (name == "lumina2" or name in ("flux2", "chroma") and beside)
    read = reader.lora_state_dict(str(second if second.is_file() and beside else result.path), **({"return_alphas": True} if flux else {}))
    tensors, alphas = read if isinstance(read, tuple) else (read, None)
    save_file({k: v.clone().contiguous() for k, v in scaled(tensors, alphas).items()}, tmp_path / "diffusers.safetensors")
    names = open_model(family).layer_names("lora_unet")
    ours, back = (lora_names.read(path, names, FAMILIES[name]) for path in (result.path, tmp_path / "diffusers.safetensors"))
    assert ours.keys() == back.keys()
    for key, layer in ours.items():
        torch.testing.assert_close(delta(back[key]), delta(layer), rtol=1e-4, atol=1e-7, msg=key)

    def converted(added: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A checkpoint of zeros (pages of which take no memory) and what is added to it, in diffusers' names."""
        whole = {k: added.get(k, torch.zeros(v.shape)) for k, v in model.model.diffusion_model.state_dict().items()}
        return in_diffusers(kind, whole)

    with torch.device("meta"):
        theirs = getattr(diffusers, kind)(**arguments)
    theirs.load_state_dict(converted({}), assign=True, strict=False)
    reader.load_lora_into_transformer(tensors, **({"network_alphas": alphas} if flux else {}), transformer=theirs)
    read_by_diffusers = fused(theirs)
    loaded, _ = comfy.sd.load_lora_for_models(model, None, load_file(result.path), 1.0, 0.0)
    shapes = {k: v.shape for k, v in model.model.diffusion_model.state_dict().items()}
    added = {k.removeprefix("diffusion_model."): comfy.lora.calculate_weight(patches, torch.zeros(shapes[k.removeprefix("diffusion_model.")]), k)
             for k, patches in loaded.patches.items()}
    wanted = {k: v for k, v in converted(added).items() if v.any()}
    assert wanted and wanted.keys() == {k for k, v in read_by_diffusers.items() if v.any()}
    for key, value in wanted.items():
        torch.testing.assert_close(read_by_diffusers[key], value, rtol=1e-3, atol=1e-7, msg=key)


def test_diffusers_makes_the_same_weights_of_a_dora(family, tmp_path: Path) -> None:
    """ComfyUI from the file in its loras folder, diffusers from the one in the run's folder."""
    import comfy.lora
    import comfy.sd
    import diffusers

    name, shallow, model = family
    if name in ("flux", "qwen_image", "lumina2") and not os.environ.get("LORA_LOOM_HEAVY"):
        pytest.skip("its weights take long to divide, and SD3's and Wan's are tested: LORA_LOOM_HEAVY=1 runs it")
    kind, arguments, pipeline = DIFFUSERS[name]
    dataset = read_dataset(stars.write(tmp_path / "stars", 2), resolution=64, min_size=64)
    patterns = (*FAMILIES[name].targets["attention"], *([BESIDE[name]] if name in BESIDE else []))
    config = CONFIG.replace(adapter={"algorithm": "dora", "target_modules": patterns}, train={"batch_size": 1})
    result = train(open_model(family), dataset, config, loras_folder=tmp_path / "loras", runs_folder=tmp_path / "runs")

    base = {k: v.detach().clone() for k, v in model.model.diffusion_model.state_dict().items()}
    with torch.device("meta"):
        theirs = getattr(diffusers, kind)(**arguments)
    theirs.load_state_dict(in_diffusers(kind, dict(base)), assign=True, strict=False)
    getattr(diffusers.loaders.lora_pipeline, f"{pipeline}LoraLoaderMixin").load_lora_into_transformer(
        load_file(result.run_folder / "diffusers" / "pytorch_lora_weights.safetensors"), **({"network_alphas": None} if pipeline == "Flux" else {}), transformer=theirs)
    read_by_diffusers = fused(theirs)
    loaded, _ = comfy.sd.load_lora_for_models(model, None, load_file(result.path), 1.0, 0.0)
    patched = {k.removeprefix("diffusion_model."): comfy.lora.calculate_weight(patches, base[k.removeprefix("diffusion_model.")].float().clone(), k)
               for k, patches in loaded.patches.items()}
    assert patched and all(not torch.equal(v, base[k].float()) for k, v in patched.items())
    for key, value in in_diffusers(kind, {**base, **patched}).items():
        torch.testing.assert_close(read_by_diffusers[key].float(), value.float(), rtol=1e-3, atol=1e-6, msg=key)


def test_an_untrained_dora_changes_nothing(family) -> None:
    """Its magnitudes are the weights' norms, in the file too, where diffusers' names divide and turn the rows."""
    import comfy.sd
    from lora_loom.trainer.adapters import adapted
    from lora_loom.trainer.runs import export

    name, shallow, model = family
    if FAMILIES[name].keys != "transformer":
        pytest.skip("its layers are written whole")
    opened, config = open_model(family), CONFIG.replace(adapter={"algorithm": "dora"})
    with torch.inference_mode(False), opened.training("fp32", False, False), adapted(opened, config.adapter, 0) as adapters:
        lora = export.state_dict(adapters, config, FAMILIES[name].keys)
        whole = export.state_dict(adapters, config, "diffusion_model")
    before = sampled(model, shallow, name)
    for file in (lora, whole):
        loaded, _ = comfy.sd.load_lora_for_models(model, None, file, 1.0, 0.0)
        assert loaded.patches
        torch.testing.assert_close(sampled(loaded, shallow, name), before, rtol=1e-3, atol=1e-3)


def answer(opened, noisy: torch.Tensor, sigmas: torch.Tensor, patcher, adapters: Path | None = None) -> torch.Tensor:
    """The velocity of `patcher`'s model for two captions, with live adapters that hold `adapters` where given."""
    from lora_loom.trainer.adapters import adapted
    from lora_loom.trainer.backbones.protocol import Batch

    conditioning = opened.encode_captions(["a red star", "a blue"])
    assert conditioning[0].context.shape != conditioning[1].context.shape
    before, opened.patcher = opened.patcher, patcher
    try:
        with torch.inference_mode(False), torch.no_grad(), opened.training("fp32", False, False):
            if adapters is None:
                return opened.predict(noisy, sigmas, Batch(noisy, ["", ""]), conditioning)
            with adapted(opened, CONFIG.adapter, 0) as found:
                saved = lora_names.read(adapters, opened.layer_names("lora_unet"), opened.family)
                assert saved.keys() == {adapter.key for adapter in found}
                for adapter in found:
                    adapter.load(saved[adapter.key])
                return opened.predict(noisy, sigmas, Batch(noisy, ["", ""]), conditioning)
    finally:
        opened.patcher = before


def test_the_velocity_is_that_of_comfyuis_own_denoiser(family) -> None:
    """apply_model gives x - sigma * v: our v, from the same conditions, gives the same clean picture."""
    from lora_loom.trainer.backbones.protocol import Batch

    name, shallow, model = family
    opened = open_model(family)
    sigmas = torch.tensor([0.6])
    noisy = torch.randn(1, *shallow.latents, 64 // shallow.scale, 64 // shallow.scale, generator=torch.Generator().manual_seed(5))
    [conditioning] = opened.encode_captions(["a red star"])
    with torch.inference_mode(False), torch.no_grad(), opened.training("fp32", False, False):
        velocity = opened.predict(noisy, sigmas, Batch(noisy, [""]), [conditioning])
    import comfy.samplers

    with torch.inference_mode():
        opened.load()
        told = comfy.samplers.cond_cat([opened._told(noisy, conditioning)])
        clean = model.model.apply_model(noisy, sigmas, **told)
    torch.testing.assert_close(noisy - sigmas.view(-1, *[1] * (noisy.ndim - 1)) * velocity, clean.clone(), rtol=1e-3, atol=1e-4)


def test_targets_find_the_layers(family) -> None:
    from lora_loom.trainer.adapters import select

    opened = open_model(family)
    counts = [len(select(opened, AdapterConfig(targets=targets))["lora_unet"]) for targets in TARGETS]
    assert counts[0] < counts[1] <= counts[2] == counts[3], counts
    whole = set(select(opened, AdapterConfig(targets="all linear"))["lora_unet"])
    linear = {n for n, m in opened.unet.named_modules() if isinstance(m, torch.nn.Linear) and ("blocks." in n or "layers." in n or "refiner." in n)}
    missed = {n for n in linear - whole if "distilled_guidance" not in n and "cap_embedder" not in n}
    assert not missed, missed


def test_checkpointing_changes_no_gradient(family, tmp_path: Path) -> None:
    dataset = read_dataset(stars.write(tmp_path / "stars", 2), resolution=64, min_size=64)
    results = [train(open_model(family), dataset, CONFIG.replace(adapter={"targets": "attention"}, train={"gradient_checkpointing": on, "batch_size": 1}), loras_folder=tmp_path / str(on),
                     runs_folder=tmp_path / "runs") for on in (False, True)]
    assert results[1].losses == pytest.approx(results[0].losses, rel=1e-5)


def test_compiled_blocks_train_as_they_are(family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_loom.trainer import attempts
    from lora_loom.trainer.layers.compiled import Blocks

    made = [Blocks("aot_eager")]
    monkeypatch.setattr(attempts, "Blocks", lambda: made[0])
    dataset = read_dataset(stars.write(tmp_path / "stars", 2), resolution=64, min_size=64)
    results = [train(open_model(family), dataset, CONFIG.replace(train={"compile": wanted, "batch_size": 1}), loras_folder=tmp_path / wanted, runs_folder=tmp_path / "runs")
               for wanted in ("never", "always")]
    assert made[0].compilations and not made[0].failed
    assert results[1].losses == pytest.approx(results[0].losses, rel=1e-4)


def test_recorded_steps_train_as_they_are(family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions of different lengths are shapes of their own. Nothing that the network is told differs otherwise from step to step."""
    made = by_path("repeater").records_on_the_cpu(monkeypatch, few=1)
    dataset = read_dataset(stars.write(tmp_path / "stars", 2), resolution=64, min_size=64)
    results = [train(open_model(family), dataset, CONFIG.replace(train={"steps": 7, "compile": wanted, "batch_size": 1}), loras_folder=tmp_path / wanted, runs_folder=tmp_path / "runs")
               for wanted in ("never", "auto")]
    assert 1 <= made[0].recorded.recordings <= made[0].sizes and not made[0].recorded.failed, made[0].recorded.failed
    assert results[1].losses == pytest.approx(results[0].losses, rel=1e-4)


def test_blocks_in_4_bits_train_nearly_as_they_are(family, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    if family[0] in ("flux", "qwen_image", "lumina2") and not os.environ.get("LORA_LOOM_HEAVY"):
        pytest.skip("takes half a minute, and SD3 and Wan are tested: LORA_LOOM_HEAVY=1 runs it")
    dataset = read_dataset(stars.write(tmp_path / "stars", 2), resolution=64, min_size=64)
    said, results = [], []
    for base in ("as loaded", "nf4"):
        hooks = Hooks(event=lambda name, data: said.append(data["base"]) if name == "memory" else None)
        results.append(train(open_model(family), dataset, CONFIG.replace(train={"batch_size": 1, "base_precision": base}), hooks=hooks,
                             loras_folder=tmp_path / base, runs_folder=tmp_path / "runs"))
    assert results[1].losses == pytest.approx(results[0].losses, rel=0.1) and results[1].losses != results[0].losses
    assert results[1].lora.keys() == results[0].lora.keys()
    assert 0 < said[1] - said[0] < 0.2 * said[0]  # on a CPU beside the weights themselves, which are in fp32


def test_text_encoders_of_these_are_not_trained(family, tmp_path: Path) -> None:
    dataset = read_dataset(stars.write(tmp_path / "stars", 2), resolution=64, min_size=64)
    with pytest.raises(LoomError, match="train_text_encoder is on.*turn it off"):
        train(open_model(family), dataset, CONFIG.replace(adapter={"train_text_encoder": True}), loras_folder=tmp_path, runs_folder=tmp_path / "runs")


# ---------------------------------------------------------------- quantized bases

def scaled_fp8(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(the file with its blocks' linear weights in fp8 with a scale each, as ComfyUI's quantized checkpoints have them; the same numbers in fp32)."""
    quantized, plain = {}, {}
    for name, tensor in weights.items():
        quantized[name] = plain[name] = tensor
        if tensor.ndim == 2 and name.endswith(".weight") and "blocks." in name:
            scale = tensor.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            quantized[name] = (tensor / scale).to(torch.float8_e4m3fn)
            quantized[name.removesuffix("weight") + "weight_scale"] = scale
            quantized[name.removesuffix("weight") + "comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
            plain[name] = quantized[name].float() * scale
    return quantized, plain


@pytest.mark.parametrize("algorithm", ["lora", pytest.param("dora", marks=heavy)])
def test_a_base_in_scaled_fp8_trains_as_its_own_numbers_would(comfy_modules: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture, algorithm: str) -> None:
    import comfy.model_management
    import comfy.sd

    quant_ops = pytest.importorskip("comfy.quant_ops", reason="this ComfyUI has no quantized layers")
    shallow, results = SHALLOW["flux"], {}
    dataset = read_dataset(stars.write(tmp_path / "stars", 2), resolution=64, min_size=64)
    config = CONFIG.replace(train={"batch_size": 1}, adapter={"algorithm": algorithm})
    for name, weights in zip(("quantized", "plain"), scaled_fp8(checkpoint(shallow))):
        with torch.inference_mode():
            model = comfy.sd.load_diffusion_model_state_dict(weights, model_options={} if name == "quantized" else {"dtype": torch.float32})
        unet = model.model.diffusion_model
        layer = unet.double_blocks[0].img_attn.qkv
        assert isinstance(layer.weight, quant_ops.QuantizedTensor) == (name == "quantized") != isinstance(layer, torch.nn.Linear)
        kinds = {k: type(m) for k, m in unet.named_modules()}
        stored = getattr(layer.weight, "_qdata", layer.weight).flatten()[:4096].view(torch.uint8).clone()
        results[name] = train(open_model(("flux", shallow, model)), dataset, config, loras_folder=tmp_path / name, runs_folder=tmp_path / "runs")
        assert {k: type(m) for k, m in unet.named_modules()} == kinds
        assert torch.equal(getattr(layer.weight, "_qdata", layer.weight).flatten()[:4096].view(torch.uint8), stored)
        if name == "quantized":
            with caplog.at_level(logging.WARNING):
                loaded, _ = comfy.sd.load_lora_for_models(model, None, load_file(results[name].path), 1.0, 0.0)
            assert "not loaded" not in caplog.text and not torch.equal(sampled(loaded, shallow, "flux"), sampled(model, shallow, "flux"))
        del model, unet, layer
        comfy.model_management.unload_all_models()
    assert results["quantized"].losses == pytest.approx(results["plain"].losses, rel=1e-3)
    for key, value in results["plain"].lora.items():
        torch.testing.assert_close(results["quantized"].lora[key].float(), value.float(), rtol=0.05, atol=2e-3)
