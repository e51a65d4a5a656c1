"""LoRA files of every common spelling are read as ours, and a run goes on from them."""
from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from lora_loom.trainer.adapters import adapted, select
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.backbones.families import FAMILIES
from lora_loom.trainer.config import AdapterConfig, LoomConfig
from lora_loom.trainer.data.folder import read_dataset
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.job import train
from lora_loom.trainer.runs.lora_names import ldm_name, read
from lora_loom.trainer.toy import stars
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file

CONFIG = LoomConfig().replace(adapter={"rank": 4, "alpha": 2.0, "targets": "all linear+conv", "train_text_encoder": True},
                              optim={"learning_rate": 1e-2, "text_encoder_lr": 1e-2, "scheduler": "constant"},
                              train={"steps": 2, "precision": "fp32"}, output={"name": "first", "save_dtype": "fp32"})


@pytest.fixture(scope="module")
def model() -> backbone.DiffusersModel:
    return backbone.load("toy_base", "cpu", "fp32")


@pytest.fixture(scope="module")
def saved(model: backbone.DiffusersModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    dataset = read_dataset(stars.write(folder / "stars", 3), resolution=64, min_size=64)
    return train(model, dataset, CONFIG, loras_folder=folder, runs_folder=folder / "runs").path


def spelled(tensors: dict[str, torch.Tensor], model: backbone.DiffusersModel, how: str) -> dict[str, torch.Tensor]:
    """The file as another trainer would have written it."""
    names = {f"lora_unet_{n.replace('.', '_')}": n for n in model.layer_names("lora_unet").values()}
    names |= {f"lora_te_{n.replace('.', '_')}": n for n in model.layer_names("lora_te").values()}
    found = {}
    for key, tensor in tensors.items():
        layer, suffix = key.split(".", 1)
        text, name = layer.startswith("lora_te"), names[layer]
        if how == "kohya ldm":  # as sd-scripts saves SDXL's
            layer = layer if text else "lora_unet_" + ldm_name(name, 1).replace("UP", "1" if "up_blocks.0" in name else "2").replace(".", "_")
        elif how == "peft":
            layer = ("text_encoder." if text else "unet.") + name
            suffix = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}.get(suffix, suffix)
        elif how == "diffusers":
            layer = ("text_encoder." if text else "unet.") + name
            suffix = {"lora_down.weight": "lora.down.weight", "lora_up.weight": "lora.up.weight"}.get(suffix, suffix)
        elif how == "comfyui":
            layer = "clip_l.transformer." + name if text else "diffusion_model." + ldm_name(name, 1).replace("UP", "1" if "up_blocks.0" in name else "2")
        elif how == "lycoris":
            layer = layer if text else "lycoris_" + name.replace(".", "_")
        found[f"{layer}.{suffix}"] = tensor
    return found


@pytest.mark.parametrize("how", ["kohya", "kohya ldm", "peft", "diffusers", "comfyui", "lycoris"])
def test_every_spelling_is_read(model: backbone.DiffusersModel, saved: Path, tmp_path: Path, how: str) -> None:
    tensors = load_file(saved)
    save_file(spelled(tensors, model, how), tmp_path / "other.safetensors")
    found = read(tmp_path / "other.safetensors", model.layer_names("lora_unet"), model.family)
    assert set(found) == {key for layers in select(model, CONFIG.adapter).values() for key in layers.values()}
    for key, tensor in tensors.items():
        layer, suffix = key.split(".", 1)
        assert torch.equal(found[layer][suffix], tensor)


def test_a_file_that_diffusers_writes_is_read(model: backbone.DiffusersModel, tmp_path: Path) -> None:
    unet = copy.deepcopy(model.unet)
    unet.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=["to_q", "to_out.0"], init_lora_weights=False))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    found = read(tmp_path / "pytorch_lora_weights.safetensors", model.layer_names("lora_unet"), model.family)
    assert set(found) == set(select(model, AdapterConfig(target_modules=(r"to_q$", r"to_out\.0$")))["lora_unet"].values())
    theirs = {f"lora_unet_{n.replace('.', '_')}": m for n, m in unet.named_modules() if isinstance(m, LoraLayer)}
    for key, tensors in found.items():
        assert torch.equal(tensors["lora_up.weight"], theirs[key].lora_B["default"].weight)


def test_a_run_goes_on_from_a_file(model: backbone.DiffusersModel, saved: Path, tmp_path: Path) -> None:
    dataset = read_dataset(stars.write(tmp_path / "stars", 3), resolution=64, min_size=64)
    folders = {"loras_folder": tmp_path, "runs_folder": tmp_path / "runs", "init_lora": saved}
    still = CONFIG.replace(optim={"learning_rate": 1e-8, "text_encoder_lr": 0.0, "weight_decay": 0.0}, train={"steps": 1, "seed": 9}, output={"name": "second"})
    again = load_file(train(model, dataset, still, **folders).path)
    for key, tensor in load_file(saved).items():
        torch.testing.assert_close(again[key], tensor, rtol=0, atol=1e-6)
    wider = still.replace(adapter={"rank": 8, "alpha": 16.0})
    again = load_file(train(model, dataset, wider, **folders).path)
    for key in [k for k in load_file(saved) if k.endswith("lora_up.weight")]:
        stem = key.removesuffix(".lora_up.weight")
        first, second = ((t[key].flatten(1) @ t[f"{stem}.lora_down.weight"].flatten(1) * s) for t, s in ((load_file(saved), 0.5), (again, 2.0)))
        torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("change", "words"), [
    ({"targets": "attention"}, ("layers that this run would lose", "choose wider targets")), ({"train_text_encoder": False}, ("turn on train_text_encoder",)),
    ({"rank": 2}, ("rank 2 is below init_lora's 4", "set LoRAConfig.rank to 4")), ({"algorithm": "loha"}, ("hada_w1_a", "choose the algorithm")),
])
def test_what_would_be_lost_is_said_before_anything_runs(model: backbone.DiffusersModel, saved: Path, tmp_path: Path, change: dict, words: tuple[str, ...]) -> None:
    dataset = read_dataset(stars.write(tmp_path / "stars", 3), resolution=64, min_size=64)
    with pytest.raises(LoomError) as error:
        train(model, dataset, CONFIG.replace(adapter=change), loras_folder=tmp_path, runs_folder=tmp_path / "runs", init_lora=saved)
    assert all(word in str(error.value) for word in words), error.value
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(("algorithm", "extra", "words"), [
    ("lora", "dora_scale", "for lora_unet_.*which lora has no place for and would lose: set LoRAConfig.algorithm to dora"),
    ("loha", "hada_t1", "hada_t1 .*which loha has no place for"), ("lokr", "lokr_t2", "lokr_t2 .*which lokr has no place for"),
    ("oft", "rescale", "rescale .*which oft has no place for"),
])
def test_tensors_without_a_place_are_not_dropped_silently(model: backbone.DiffusersModel, algorithm: str, extra: str, words: str) -> None:
    with adapted(model, AdapterConfig(algorithm=algorithm, rank=4, target_modules=(r"attn2\.to_k$",)), 0) as adapters:
        tensors = {k: v.detach().clone() for k, v in adapters[0].tensors().items()}
        adapters[0].load(tensors)
        with pytest.raises(LoomError, match=words):
            adapters[0].load({**tensors, extra: torch.ones(4)})


def test_files_that_are_no_loras_of_this_family(model: backbone.DiffusersModel, tmp_path: Path) -> None:
    names = model.layer_names("lora_unet")
    save_file({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(4, 8)}, tmp_path / "flux.safetensors")
    with pytest.raises(LoomError, match="flux.safetensors' has 1 of 1 tensors that name no layer of this model.*same family"):
        read(tmp_path / "flux.safetensors", names, FAMILIES["sd15"])
    save_file({"lora_unet_down_blocks_0_resnets_0_conv1.lora_mid.weight": torch.zeros(4, 4, 3, 3)}, tmp_path / "tucker.safetensors")
    with pytest.raises(LoomError, match="tucker.safetensors' has 1 of 1 tensors of a kind that cannot be gone on from.*without Tucker decomposition"):
        read(tmp_path / "tucker.safetensors", names, FAMILIES["sd15"])
    (tmp_path / "cut.safetensors").write_bytes(b"no tensors")
    with pytest.raises(LoomError, match="no readable safetensors file"):
        read(tmp_path / "cut.safetensors", names, FAMILIES["sd15"])


@pytest.mark.parametrize("blocks", [1, 2])
def test_original_names_are_those_of_comfyui_when_it_is_there(blocks: int) -> None:
    """Spot checks; tests/host compares every layer of the full-size families with ComfyUI's own table."""
    assert ldm_name("down_blocks.0.attentions.1.proj_in", 2) == "input_blocks.2.1.proj_in"
    assert ldm_name("down_blocks.0.downsamplers.0.conv", blocks) == f"input_blocks.{blocks + 1}.0.op"
    assert ldm_name("up_blocks.1.resnets.0.conv_shortcut", blocks) == f"output_blocks.{blocks + 1}.0.skip_connection"
    assert ldm_name("mid_block.resnets.1.time_emb_proj", blocks) == "middle_block.2.emb_layers.1"


def test_adapters_go_on_from_half_precision(model: backbone.DiffusersModel) -> None:
    config = AdapterConfig(rank=4, target_modules=(r"attn2\.to_k$",))
    with adapted(model, config, 0) as adapters:
        saved = {a.key: {k: v.detach().half() for k, v in a.tensors().items()} for a in adapters}
        for adapter in adapters:
            adapter.load(saved[adapter.key])
            assert all(p.dtype == torch.float32 and p.requires_grad for p in adapter.parameters())


# ---------------------------------------------------------------- layers that diffusers holds in parts

QKV = "double_blocks.0.img_attn.qkv"
NAMES = {name: name for name in (QKV, "double_blocks.0.img_attn.proj", "single_blocks.0.linear1")}
PART = "transformer.transformer_blocks.0.attn.to_"


def flux_file(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path / "parts.safetensors")
    return path / "parts.safetensors"


def pair(stem: str, rows: int, rank: int, seed: int, columns: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"{stem}.lora_A.weight": torch.randn(rank, columns, generator=generator), f"{stem}.lora_B.weight": torch.randn(rows, rank, generator=generator)}


def test_parts_are_put_together(tmp_path: Path) -> None:
    q, v = pair(f"{PART}q", 8, 2, 1), pair(f"{PART}v", 8, 3, 2)
    linear1 = pair("single_transformer_blocks.0.proj_mlp", 32, 2, 3)  # without a prefix, as some trainers write
    alpha = {f"{PART}q.alpha": torch.tensor(1.0)}
    found = read(flux_file(tmp_path, {**q, **v, **linear1, **alpha}), NAMES, FAMILIES["flux"])
    added = {key: layer["lora_up.weight"] @ layer["lora_down.weight"] * layer["alpha"] / len(layer["lora_down.weight"]) for key, layer in found.items()}
    of = lambda tensors: list(tensors.values())[1] @ list(tensors.values())[0]
    wanted = {"lora_unet_double_blocks_0_img_attn_qkv": torch.cat([of(q) / 2, torch.zeros(8, 8), of(v)]),
              "lora_unet_single_blocks_0_linear1": torch.cat([torch.zeros(24, 8), of(linear1)])}
    assert added.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(added[key], value)


def test_small_numbers_of_a_half_precision_file_are_kept(tmp_path: Path) -> None:
    tensors = {k: v.half() for k, v in pair(f"{PART}q", 8, 64, 1).items()} | {f"{PART}q.alpha": torch.tensor(1.0).half()}
    tensors[f"{PART}q.lora_B.weight"] = torch.full((8, 64), 2e-5).half()
    up = read(flux_file(tmp_path, tensors), NAMES, FAMILIES["flux"])["lora_unet_double_blocks_0_img_attn_qkv"]["lora_up.weight"]
    torch.testing.assert_close(up[:8], tensors[f"{PART}q.lora_B.weight"].float() / 64, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("tensors", "words"), [
    ({**pair(f"{PART}q", 8, 2, 1), **pair(f"{PART}v", 16, 2, 2)}, "at lora_unet_double_blocks_0_img_attn_qkv has parts of a layer that do not fit together"),
    ({**pair(f"{PART}q", 8, 2, 1), **pair(f"{PART}v", 8, 2, 2, columns=4)}, "do not fit together"),
    ({**pair(f"{PART}q", 8, 2, 1), **pair(f"diffusion_model.{QKV}", 24, 2, 2)}, "whole and in parts"),
    ({**pair(f"{PART}q", 8, 2, 1), **pair(f"{PART}k", 8, 2, 1), f"{PART}q.dora_scale": torch.ones(8, 1)}, "DoRA of 2 of the 3 parts"),
    ({f"{PART}q.lokr_w1": torch.ones(2, 2), f"{PART}q.lokr_w2": torch.ones(4, 4)}, "lokr_w1, lokr_w2 for parts"),
], ids=["rows", "columns", "twice", "some magnitudes", "lokr"])
def test_parts_that_cannot_be_put_together(tmp_path: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(LoomError, match=words):
        read(flux_file(tmp_path, tensors), NAMES, FAMILIES["flux"])
