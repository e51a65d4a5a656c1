"""The LoRA file: kohya's key names, which ComfyUI, WebUI and diffusers all load, and metadata as in ModelSpec and kohya's ss_*.

The same adapters give the same bytes: metadata is sorted and holds no time and no path.
"""
from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch

from ..adapters import Adapter
from ..backbones.protocol import TrainableModel
from ..config import LoomConfig
from ..data.captions import COMMAS
from ..data.dataset import Dataset
from .parts import DOWN, SCALE, UP, divided, turned

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def state_dict(adapters: list[Adapter], config: LoomConfig, keys: str) -> dict[str, torch.Tensor]:
    """Named as a family's `keys` has it; "diffusion_model" keeps each layer whole, where "transformer" may divide it.

    {key.lora_down.weight (r, in, …), key.lora_up.weight (out, r, …), key.alpha (), DoRA: key.dora_scale (out, 1, …)} on CPU;
    LoHa, LoKr and OFT in LyCORIS's names."""
    found: dict[str, torch.Tensor] = {}
    for adapter in adapters:
        for layer, tensors in _layers(adapter, keys):
            found.update({f"{layer}.{name}": tensor for name, tensor in tensors.items()})
    return _on_cpu(found, config)


def for_diffusers(adapters: list[Adapter], config: LoomConfig) -> dict[str, torch.Tensor]:
    """The LoRA in diffusers' own names where it cannot read the other file: a DoRA, for it leaves `dora_scale` out of any file, and layers that
    families.py has `apart`. {} where that file will do, and where a layer has no name there.

    {name.lora_A.weight (r, in, …), name.lora_B.weight (out, r, …), name.lora_magnitude_vector.weight (out,) or (1, out, 1, 1)} on CPU."""
    if any(a.diffusers is None for a in adapters) or config.adapter.algorithm != "dora" and not any(a.diffusers.apart for a in adapters):
        return {}
    found: dict[str, torch.Tensor] = {}
    for adapter in adapters:
        tensors, named = adapter.tensors(), adapter.named()
        if UP not in tensors:  # LoHa, LoKr and OFT are ComfyUI's
            return {}
        if SCALE in tensors:
            tensors[SCALE] = turned(named[SCALE], tensors[DOWN].shape[1], adapter.diffusers)
        for name, part in zip(adapter.diffusers.theirs, divided(tensors, adapter.diffusers)):
            part = _peft_named(part)
            if SCALE in part:
                magnitude = part.pop(SCALE)
                found[f"{name}.lora_magnitude_vector.weight"] = magnitude.reshape(-1) if part["lora_A.weight"].ndim == 2 else magnitude.reshape(1, -1, 1, 1)
            found.update({f"{name}.{k}": v for k, v in part.items()})
    return _on_cpu(found, config)


def _on_cpu(tensors: dict[str, torch.Tensor], config: LoomConfig) -> dict[str, torch.Tensor]:
    """As they are saved. Alpha and magnitudes in fp32: the one is no round number for rsLoRA, the other are near 1 and few."""
    kept, dtype = (".alpha", f".{SCALE}", ".lora_magnitude_vector.weight"), DTYPES[config.output.save_dtype]
    return {k: v.detach().to("cpu", torch.float32 if k.endswith(kept) else dtype).contiguous().clone() for k, v in tensors.items()}


def _layers(adapter: Adapter, keys: str) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """(name, tensors) of the adapter in the file: of each part of its rows, where diffusers has layers for them."""
    tensors, named = adapter.tensors(), adapter.diffusers
    if not adapter.plain or UP not in tensors:
        yield adapter.plain or adapter.key, tensors
    elif keys != "transformer" or named is None:
        yield adapter.plain, _peft_named(tensors)
    else:
        for name, part in zip(named.theirs, divided(tensors, named)):
            yield name, _peft_named(part)


def _peft_named(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """lora_A and lora_B for lora_down and lora_up, the scale in lora_B: diffusers' readers of these files know no alpha."""
    scale = tensors["alpha"].item() / tensors[DOWN].shape[0]
    rest = {name: tensor for name, tensor in tensors.items() if name not in (DOWN, UP, "alpha")}
    return {"lora_A.weight": tensors[DOWN], "lora_B.weight": tensors[UP] * scale, **rest}


def metadata(model: TrainableModel, dataset: Dataset, config: LoomConfig, steps: int) -> dict[str, str]:
    """ModelSpec 1.0 and kohya's ss_* names, all text. `lora_loom.config` repeats the run."""
    adapter, optim, train = config.adapter, config.optim, config.train
    resolution = f"{dataset.resolution}x{dataset.resolution}"
    found = {
        "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": model.family.architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models", "modelspec.title": config.output.name,
        "modelspec.resolution": resolution,
        "modelspec.trigger_phrase": dataset.trigger_word, "modelspec.description": "Trained with LoRA Loom",
        "ss_base_model_version": model.family.base_model_version, "ss_sd_model_name": model.name or "unknown", "ss_output_name": config.output.name,
        "ss_v2": str(model.family.id == "sd2"), "ss_network_module": "networks.lora", "ss_network_dim": adapter.rank,
        "ss_network_alpha": f"{adapter.alpha:g}", "ss_network_dropout": f"{adapter.dropout:g}",
        "ss_network_args": json.dumps({"algo": adapter.algorithm, "targets": list(adapter.target_modules) or adapter.targets}),
        "ss_steps": steps, "ss_max_train_steps": train.steps or steps, "ss_num_train_images": dataset.per_epoch,
        "ss_total_batch_size": train.batch_size * train.gradient_accumulation_steps, "ss_gradient_accumulation_steps": train.gradient_accumulation_steps,
        "ss_learning_rate": f"{optim.learning_rate:g}", "ss_unet_lr": f"{optim.learning_rate:g}",
        "ss_text_encoder_lr": f"{optim.text_encoder_lr:g}" if adapter.train_text_encoder else "None",
        "ss_optimizer": optim.optimizer, "ss_lr_scheduler": optim.scheduler, "ss_lr_warmup_steps": optim.warmup_steps,
        "ss_max_grad_norm": f"{optim.max_grad_norm:g}", "ss_min_snr_gamma": f"{config.loss.min_snr_gamma:g}",
        "ss_noise_offset": f"{config.loss.noise_offset:g}", "ss_caption_dropout_rate": f"{config.loss.caption_dropout:g}",
        "ss_seed": train.seed, "ss_resolution": f"({dataset.resolution}, {dataset.resolution})", "ss_enable_bucket": str(dataset.buckets),
        "ss_dataset_dirs": json.dumps({dataset.folder.name: {"n_repeats": dataset.repeats, "img_count": len(dataset.pictures)}}, ensure_ascii=False),
        "ss_tag_frequency": json.dumps({dataset.folder.name: _tags(dataset)}, ensure_ascii=False),
        "lora_loom.dataset_hash": dataset.digest(), "lora_loom.config": json.dumps(_shared(config), ensure_ascii=False),
    }
    if not model.family.flow:
        found["modelspec.prediction_type"] = "v" if model.prediction == "v_prediction" else "epsilon"
    return {k: str(v) for k, v in found.items()}


def _shared(config: LoomConfig) -> dict:
    """The configuration as it may travel: no path of this machine."""
    return config.replace(adapter={"init_lora": Path(config.adapter.init_lora).name}).to_dict()


def _tags(dataset: Dataset) -> dict[str, int]:
    counts: dict[str, int] = {}
    for picture in dataset.pictures:
        for tag in filter(None, (t.strip() for t in re.split(COMMAS, dataset.caption(picture)))):
            counts[tag] = counts.get(tag, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:1000])


def to_bytes(tensors: dict[str, torch.Tensor], info: dict[str, str]) -> bytes:
    """A safetensors file. Its header is written again with sorted keys, for the library's own order changes between processes."""
    raw = safetensors.torch.save(tensors)
    size = struct.unpack("<Q", raw[:8])[0]
    body = raw[8 + size:]
    header = json.loads(raw[8:8 + size])
    digest = hashlib.sha256(body).hexdigest()
    header["__metadata__"] = dict(sorted({**info, "sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}.items()))
    text = json.dumps(dict(sorted(header.items())), ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body
