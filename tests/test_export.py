"""The LoRA file: proof is loading. diffusers' own loader gives the epsilon of the live adapters; a full disk loses nothing."""
from __future__ import annotations

import errno
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors
import torch
from diffusers import StableDiffusionPipeline
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.backbones.diffusers_load import load_parts
from lora_loom.trainer.config import TARGETS, LoomConfig
from lora_loom.trainer.data.folder import Dataset, read_dataset
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.hooks import Hooks, Progress
from lora_loom.trainer.job import Result, train
from lora_loom.trainer.runs import checkpoint, export, saver, store
from safetensors.torch import load_file

CONFIG = LoomConfig().replace(
    adapter={"rank": 4, "alpha": 2.0}, optim={"learning_rate": 2e-2, "text_encoder_lr": 2e-2, "scheduler": "constant"}, loss={"caption_dropout": 0.0},
    train={"steps": 4, "precision": "fp32", "batch_size": 2}, output={"name": "织机", "save_dtype": "fp32"},
)
CAPTION = "a red circle on a blue background"


@pytest.fixture
def dataset(circles: Callable[..., Path]) -> Dataset:
    return read_dataset(circles("a {} square，tag", ("red", "blue")), resolution=64, min_size=32, trigger_word="zxc")


def run(dataset: Dataset, config: LoomConfig, folder: Path, **hooks: object) -> Result:
    return train(backbone.load("toy_base", "cpu", "fp32"), dataset, config, loras_folder=folder / "loras", runs_folder=folder / "runs", hooks=Hooks(**hooks))


# ---------------------------------------------------------------- what the file holds

def test_metadata(dataset: Dataset, tmp_path: Path) -> None:
    result = run(dataset, CONFIG.replace(adapter={"train_text_encoder": True}), tmp_path)
    with safetensors.safe_open(str(result.path), "pt") as file:
        info, keys = file.metadata(), set(file.keys())
    assert result.path.name == "织机.safetensors" and keys == set(result.lora)
    expected = {
        "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.title": "织机",
        "modelspec.trigger_phrase": "zxc", "modelspec.prediction_type": "epsilon", "modelspec.resolution": "64x64",
        "ss_base_model_version": "sd_v1", "ss_sd_model_name": "toy_base", "ss_network_module": "networks.lora", "ss_network_dim": "4",
        "ss_network_alpha": "2", "ss_steps": "4", "ss_total_batch_size": "2", "ss_learning_rate": "0.02", "ss_text_encoder_lr": "0.02",
        "ss_num_train_images": "2", "ss_seed": "0", "lora_loom.dataset_hash": dataset.digest(),
    }
    assert {k: info.get(k) for k in expected} == expected
    assert LoomConfig.from_dict(json.loads(info["lora_loom.config"])).adapter.rank == 4
    assert json.loads(info["ss_tag_frequency"]) == {"形 circles 64": {"zxc": 2, "tag": 2, "a red square": 1, "a blue square": 1}}
    assert info["modelspec.hash_sha256"] == "0x" + info["sshs_model_hash"] and str(tmp_path) not in json.dumps(info)


@pytest.mark.parametrize("algorithm", ["lora", "dora"])
@pytest.mark.parametrize("save_dtype", ["fp16", "bf16", "fp32"])
def test_tensors(dataset: Dataset, tmp_path: Path, algorithm: str, save_dtype: str) -> None:
    config = CONFIG.replace(adapter={"algorithm": algorithm, "targets": "all linear+conv"}, output={"save_dtype": save_dtype}, train={"steps": 1})
    lora = load_file(run(dataset, config, tmp_path).path)
    unet = backbone.load("toy_base", "cpu", "fp32").unet
    weights = {f"lora_unet_{name.replace('.', '_')}": m.weight for name, m in unet.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
    bases = {key.split(".")[0] for key in lora}
    assert bases < set(weights) and set(weights) - bases == {f"lora_unet_{k}" for k in ("conv_in", "conv_out", "time_embedding_linear_1", "time_embedding_linear_2")}
    for base in bases:
        down, up, weight = lora[f"{base}.lora_down.weight"], lora[f"{base}.lora_up.weight"], weights[base]
        assert down.shape == (4, *weight.shape[1:]) and up.shape == (weight.shape[0], 4, *[1] * (weight.ndim - 2))
        assert lora[f"{base}.alpha"].item() == 2 and lora[f"{base}.alpha"].shape == ()
        if algorithm == "dora":
            norm = weight.flatten(1).norm(dim=1)  # one step away from it
            scale = lora[f"{base}.dora_scale"]
            assert scale.shape == (weight.shape[0], *[1] * (weight.ndim - 1))
            torch.testing.assert_close(scale.flatten().float(), norm, rtol=0.02, atol=0.025)
    assert {v.dtype for k, v in lora.items() if k.endswith(".weight")} == {export.DTYPES[save_dtype]}
    assert {v.dtype for k, v in lora.items() if not k.endswith(".weight")} == {torch.float32}
    assert len(lora) == len(bases) * (4 if algorithm == "dora" else 3)


def test_the_same_tensors_give_the_same_bytes() -> None:
    tensors = {f"k{i}": torch.full((3,), float(i)) for i in range(20)}
    first = export.to_bytes(tensors, {"b": "2", "a": "1"})
    assert first == export.to_bytes(dict(reversed(tensors.items())), {"a": "1", "b": "2"})
    assert {k: v.tolist() for k, v in safetensors.torch.load(first).items()} == {k: v.tolist() for k, v in tensors.items()}
    assert int.from_bytes(first[:8], "little") % 8 == 0  # aligned, as the format asks


# ---------------------------------------------------------------- diffusers loads it

def epsilon(unet: Callable[..., object], context: torch.Tensor) -> torch.Tensor:
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        return unet(noisy, torch.tensor([50, 800]), encoder_hidden_states=context.expand(2, -1, -1)).sample


@pytest.mark.parametrize(("save_dtype", "tolerance"), [("fp32", 1e-5), ("fp16", 5e-3)])
@pytest.mark.parametrize("algorithm", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("targets", TARGETS)
def test_diffusers_loads_it_and_changes_epsilon_as_the_live_adapters(dataset: Dataset, tmp_path: Path, targets: str, algorithm: str, save_dtype: str, tolerance: float) -> None:
    config = CONFIG.replace(adapter={"algorithm": algorithm, "targets": targets, "train_text_encoder": True}, output={"save_dtype": save_dtype})
    model = backbone.load("toy_base", "cpu", "fp32")
    live: dict[str, torch.Tensor] = {}

    def look(now: Progress) -> None:
        if now.phase == "train" and now.step == now.total:
            with torch.no_grad():
                live["context"] = model.encode_captions([CAPTION])[0].context
                live["epsilon"] = epsilon(model.unet, live["context"])

    result = train(model, dataset, config, loras_folder=tmp_path / "loras", runs_folder=tmp_path / "runs", hooks=Hooks(progress=look))

    parts = load_parts("toy_base", torch.float32)
    pipeline = StableDiffusionPipeline(
        vae=parts.vae, text_encoder=parts.text_encoders[0].eval(), tokenizer=parts.tokenizers[0], unet=parts.unet.eval(), scheduler=parts.scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    tokens = backbone.chunks(parts.tokenizers[0], CAPTION)
    with torch.no_grad():
        plain_context = pipeline.text_encoder(tokens).last_hidden_state
        plain = epsilon(pipeline.unet, plain_context)
        if algorithm == "dora":  # diffusers leaves magnitudes out of files in kohya's names, and says so
            pipeline.load_lora_weights(str(result.run_folder / "diffusers"))
        else:
            pipeline.load_lora_weights(str(result.path.parent), weight_name=result.path.name)
        context = pipeline.text_encoder(tokens).last_hidden_state
    loaded = epsilon(pipeline.unet, context)
    torch.testing.assert_close(context, live["context"], rtol=0, atol=tolerance)
    torch.testing.assert_close(loaded, live["epsilon"], rtol=0, atol=tolerance)
    assert (live["context"] - plain_context).abs().max() > 0.01 and (live["epsilon"] - plain).abs().max() > 0.02  # there was something to load
    adapted = {name for name, m in pipeline.unet.named_modules() if hasattr(m, "lora_A") and len(m.lora_A)}
    assert len(adapted) == len({k.split(".")[0] for k in result.lora if k.startswith("lora_unet")})


# ---------------------------------------------------------------- the disk is full

def full(path_part: str, monkeypatch: pytest.MonkeyPatch, when: Callable[[], bool] = lambda: True) -> None:
    """From now on the system refuses to sync what lies in a folder of that name, as it does where space is short."""
    real = os.fsync

    def fsync(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        if path_part in name and when():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


linux = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc to tell which file is written")


@linux
def test_a_disk_full_at_the_start(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full("/loras/", monkeypatch)
    seen: list[Progress] = []
    with pytest.raises(LoomError, match="cannot take the .* MB this run needs .No space left on device.: free some space"):
        run(dataset, CONFIG, tmp_path, progress=seen.append)
    assert seen == [] and list((tmp_path / "loras").iterdir()) == []


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(LoomError, match=r"MB free in .*, this run needs [\d.]+ MB"):
        store.Reservation(tmp_path / "loras", 10**18)
    assert list((tmp_path / "loras").iterdir()) == []


@linux
@pytest.mark.parametrize("also", [(), ("/runs/",)], ids=["loras folder full", "runs folder full too"])
def test_a_disk_full_at_the_end(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, also: tuple[str, ...]) -> None:
    """One message, which says where the file went; the file there is whole."""
    trained: list[int] = []
    for part in ("/loras/", *also):
        full(part, monkeypatch, lambda: bool(trained))
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    with pytest.raises(LoomError) as error:
        run(dataset, CONFIG, tmp_path, progress=lambda p: trained.append(1) if p.phase == "train" else None)
    place = (elsewhere if also else tmp_path / "runs" / "织机") / "织机.safetensors"
    assert str(place) in str(error.value) and "No space left on device" in str(error.value) and "free some space" in str(error.value)
    monkeypatch.undo()
    assert {k: v.shape for k, v in load_file(place).items()} == {k: v.shape for k, v in run(dataset, CONFIG, tmp_path / "again").lora.items()}
    assert list((tmp_path / "loras").iterdir()) == []


@linux
def test_a_checkpoint_that_cannot_be_written_stops_nothing(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full("/checkpoints/", monkeypatch)
    events: list[str] = []
    result = run(dataset, CONFIG.replace(output={"save_steps": 1}), tmp_path, event=lambda name, data: events.append(name))
    assert result.steps == 4 and load_file(result.path) and events == ["started", "memory", *["checkpoint failed"] * 3, "estimate", "saved"]


def test_a_state_that_cannot_be_written_costs_no_checkpoint(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full_disk)
    events: list[str] = []
    result = run(dataset, CONFIG.replace(output={"save_steps": 1}), tmp_path, event=lambda name, data: events.append(name),
                 should_stop=lambda: len([name for name in events if name == "checkpoint"]) == 2)
    assert events.count("state failed") == 3 and events.count("checkpoint") == 2 and "checkpoint failed" not in events
    assert len(list((result.run_folder / "checkpoints").glob("*_step*.safetensors"))) == 2
    assert "The state to resume from could not be saved: No space left on device" in result.report and "checkpoint could" not in result.report


@linux
def test_a_disk_that_is_full_is_not_tried_at_every_step(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full("/checkpoints/", monkeypatch)
    clock, events = itertools.count(time.monotonic(), 25), []
    monkeypatch.setattr(saver, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    run(dataset, CONFIG.replace(output={"save_minutes": 1}, train={"steps": 12}), tmp_path, event=lambda name, data: events.append(name))
    assert 1 <= events.count("checkpoint failed") <= 5


@linux
def test_the_size_that_is_reserved_suffices(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = store.Reservation.__init__
    monkeypatch.setattr(store.Reservation, "__init__", lambda self, folder, size: (sizes.append(size), real(self, folder, size))[1])
    config = CONFIG.replace(adapter={"algorithm": "dora", "targets": "all linear+conv", "train_text_encoder": True, "rank": 8}, train={"steps": 1})
    assert 0 < run(dataset, config, tmp_path).path.stat().st_size <= sizes[0]
