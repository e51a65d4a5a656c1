"""What a run will take, said from shapes alone: the same bytes as a real step holds, the same LoRA as is then trained, and nothing of the process touched."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from lora_loom.trainer import estimate, loop
from lora_loom.trainer.adapters import select
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.data.folder import read_dataset
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.hooks import Hooks
from lora_loom.trainer.job import train

CONFIG = LoomConfig().replace(adapter={"rank": 4, "alpha": 4.0}, optim={"learning_rate": 1e-3, "scheduler": "constant"}, loss={"caption_dropout": 0.0},
                              train={"steps": 1, "precision": "fp32", "seed": 5}, output={"name": "toy", "save_dtype": "fp16"})
CHANGES = {
    "plain": {}, "checkpointing": {"train": {"gradient_checkpointing": True}}, "nf4": {"train": {"base_precision": "nf4"}}, "batch": {"train": {"batch_size": 2}},
    "bf16": {"train": {"precision": "bf16"}}, "conv lokr": {"adapter": {"targets": "all linear+conv", "algorithm": "lokr"}},
    "ff rank 32": {"adapter": {"targets": "attention+ff", "rank": 32}}, "dora": {"adapter": {"algorithm": "dora"}}, "oft": {"adapter": {"algorithm": "oft"}},
    "preservation": {"loss": {"preservation": 1.0}}, "text encoder": {"adapter": {"train_text_encoder": True, "dropout": 0.1}},
}


@pytest.fixture(autouse=True)
def shapes(comfy_modules: ModuleType) -> ModuleType:
    from lora_loom.trainer.backbones import comfy_shapes

    return comfy_shapes


@pytest.fixture(scope="module")
def toy(comfy_modules: ModuleType):
    from lora_loom.trainer.backbones import comfy_toy
    from lora_loom.trainer.backbones.comfy import open_model

    with torch.inference_mode():
        parts = comfy_toy.load()
    return open_model(*parts, "toy_base")


@pytest.fixture
def lights(shapes: ModuleType) -> Callable:
    from lora_loom.trainer.light import Light

    return lambda precision="fp32", path=None: Light(shapes.open_shapes(path, precision))


class Counted(BaseException):
    """One step was looked at."""


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_the_bytes_are_those_of_a_real_step(toy, lights: Callable, circles: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict) -> None:
    config, said, held = CONFIG.replace(**change), {}, []

    def first_step(state, objective, source, *_) -> None:
        held.append(estimate.peak(objective, next(source(0)), state))
        raise Counted

    monkeypatch.setattr(loop, "train", first_step)
    side = 256 if config.train.in_nf4 else 128  # an unpacked weight of the toy's is as large as all that small pictures take
    dataset = read_dataset(circles("a {} zxw circle", ("red", "green", "blue", "yellow"), side), resolution=side, min_size=32, trigger_word="zxw")
    with pytest.raises(Counted), torch.inference_mode():
        train(toy, dataset, config, loras_folder=tmp_path / "loras", runs_folder=tmp_path / "runs", hooks=Hooks(event=lambda name, data: said.update({name: data})))
    light = lights(config.train.precision)
    found = light.memory(config, (side // 8, side // 8), config.train.gradient_checkpointing, config.train.batch_size)
    assert found.step == pytest.approx(held[0], rel=0.03)
    assert found.step == pytest.approx(said["memory"]["step"], rel=0.1)
    assert (found.lora, found.optimizer) == (said["memory"]["lora"], said["memory"]["optimizer"])
    assert found.base == pytest.approx(said["memory"]["base"], rel=0.01)


@pytest.mark.parametrize("change", [{}, {"adapter": {"targets": "all linear+conv", "algorithm": "dora", "rank": 32}}, {"adapter": {"train_text_encoder": True, "rank": 64}},
                                    {"adapter": {"algorithm": "loha"}, "output": {"save_dtype": "fp32"}}], ids=["plain", "dora", "text", "loha"])
def test_the_file_is_as_large_as_was_said(toy, lights: Callable, circles: Callable[..., Path], tmp_path: Path, change: dict) -> None:
    config = CONFIG.replace(**change)
    with torch.inference_mode():
        result = train(toy, read_dataset(circles(), resolution=64, min_size=32), config, loras_folder=tmp_path / "loras", runs_folder=tmp_path / "runs")
    layers, values, size = lights().size(config)
    trained = {name: t for name, t in result.lora.items() if not name.endswith("alpha")}
    assert values == sum(t.numel() for t in trained.values()) and layers == len({name.split(".")[0] for name in trained})
    assert size == pytest.approx(result.path.stat().st_size, rel=0.1, abs=8192)


def test_between_two_ranks_the_bytes_lie_on_a_line(lights: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    light, asked = lights(), []
    ask = light._ask
    monkeypatch.setattr(light, "_ask", lambda *given: asked.append(1) or ask(*given))
    config = CONFIG.replace(adapter={"targets": "all linear", "rank": 8})
    light.step(config, (16, 16), False)
    light.prepare(config, (16, 16), False)
    assert len(asked) == 2
    told = {rank: light.step(config.replace(adapter={"rank": rank}), (16, 16), False) for rank in (4, 16, 64, 128)}
    assert len(asked) == 2
    for rank, step in told.items():
        assert step == pytest.approx(lights().step(config.replace(adapter={"rank": rank}), (16, 16), False), rel=0.05)


def test_nothing_of_the_process_is_touched(lights: Callable) -> None:
    """It may be asked while another thread draws its noise or trains."""
    import comfy.model_management

    before, threads = torch.get_rng_state(), torch.get_num_threads()
    training, loaded = getattr(comfy.model_management, "in_training", None), list(comfy.model_management.current_loaded_models)
    for change in ({"adapter": {"dropout": 0.2, "module_dropout": 0.5}}, {"adapter": {"dropout": 0.2}, "train": {"gradient_checkpointing": True}}):
        config = CONFIG.replace(**change)
        lights().memory(config, (8, 8), config.train.gradient_checkpointing, 1)
    assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == threads
    assert getattr(comfy.model_management, "in_training", None) == training and list(comfy.model_management.current_loaded_models) == loaded


def test_an_interrupt_is_left_to_whom_it_is_for(lights: Callable) -> None:
    import comfy.model_management as manage

    manage.interrupt_current_processing(True)
    try:
        lights().memory(CONFIG, (8, 8), False, 1)
        assert manage.processing_interrupted()
    finally:
        manage.interrupt_current_processing(False)


NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.float8_e4m3fn: "F8_E4M3"}


def write_header(path: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> Path:
    """A checkpoint of those shapes whose weights are a hole in the file."""
    rows, end = {}, 0
    for name, tensor in tensors.items():
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        rows[name] = {"dtype": NAMES[kind], "shape": list(tensor.shape), "data_offsets": [end, end := end + tensor.numel() * kind.itemsize]}
    text = json.dumps(rows).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def network(shapes: ModuleType, kind: str, unet: dict) -> dict[str, torch.Tensor]:
    import comfy.supported_models

    config = getattr(comfy.supported_models, kind)(dict(unet))
    config.set_inference_dtype(torch.float32, None)
    config.custom_operations = shapes._Layers
    return config.get_model({}, "", device=torch.device("meta")).diffusion_model.state_dict()


FLOW = {  # shallow, of real width where it costs nothing
    "flux": ("Flux", {"image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0,
                      "num_heads": 24, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}),
    "sd3": ("SD3", {"in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 24, "num_blocks": 2, "input_size": None, "adm_in_channels": 2048, "qk_norm": "rms",
                    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}}, "num_patches": 36864,
                    "pos_embed_max_size": 192, "pos_embed_scaling_factor": None, "x_block_self_attn_layers": [0]}),
    "qwen_image": ("QwenImage", {"image_model": "qwen_image", "in_channels": 64, "num_layers": 1}),
    "lumina2": ("Lumina2", {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 2304, "cap_feat_dim": 2304, "n_layers": 1, "n_refiner_layers": 2, "qk_norm": True,
                            "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512], "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0}),
    "wan": ("WAN21_T2V", {"image_model": "wan2.1", "model_type": "t2v", "dim": 1536, "out_dim": 16, "num_heads": 12, "ffn_dim": 8960, "num_layers": 1, "patch_size": (1, 2, 2),
                          "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6, "in_dim": 16}),
}


@pytest.mark.parametrize("family", list(FLOW))
def test_flow_families_are_known_by_their_header(shapes: ModuleType, lights: Callable, tmp_path: Path, family: str) -> None:
    kind, unet = FLOW[family]
    tensors = network(shapes, kind, unet)
    light = lights("bf16", write_header(tmp_path / "model.safetensors", tensors, torch.bfloat16))
    config = CONFIG.replace(adapter={"targets": "all linear", "rank": 8}, train={"precision": "bf16"})
    assert light.model.family.id == family and sum(map(len, select(light.model, config.adapter).values())) == light.size(config)[0] > 3
    if family != "sd3":  # whose depth ComfyUI takes from its width
        assert light.model.memory()[0] == pytest.approx(4 * sum(t.numel() for t in tensors.values()), rel=0.01)  # ComfyUI loads it in fp32 on a CPU
    plain, checkpointed = (light.memory(config, (32, 32), on, 1) for on in (False, True))
    tokens = 32 * 32 // light.model.family.patch ** 2
    assert plain.step > 2 * tokens * 1536 * 3 and checkpointed.step < 1.05 * plain.step  # of a single block it can save nothing


def test_what_is_no_checkpoint_is_said(shapes: ModuleType, tmp_path: Path) -> None:
    cases = {"empty": b"", "short": b"\x05\0\0\0\0\0\0\0{}", "long": (2**40).to_bytes(8, "little") + b"{}", "list": b"\x02\0\0\0\0\0\0\0[]",
             "pickle": b"\x80\x04\x95\0\0\0\0\0\0\0\0\x8c"}
    for name, data in cases.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        with pytest.raises(LoomError, match="no header of safetensors|of no family|nothing is known"):
            shapes.open_shapes(path, "fp32")
    with pytest.raises(LoomError, match="of no family|nothing is known"):
        shapes.open_shapes(write_header(tmp_path / "other.safetensors", {"weight": torch.empty(3, 3)}, torch.float16), "fp32")
