"""LoRA files by other trainers: every common spelling of a layer and of its tensors, read as ours.

kohya (sd-scripts), LyCORIS, diffusers and PEFT, ComfyUI's own trainer; layers in diffusers' or in the original (LDM) names.
"""
from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..backbones.families import Family
from ..errors import LoomError
from .parts import Tensors, joined, multiplied_out

# Ends of keys, longest first; what they are called in our files.
_SUFFIXES = {
    ".lora_A.default.weight": "lora_down.weight", ".lora_B.default.weight": "lora_up.weight", ".lora_A.weight": "lora_down.weight",
    ".lora_B.weight": "lora_up.weight", ".lora_down.weight": "lora_down.weight", ".lora_up.weight": "lora_up.weight",
    ".lora.down.weight": "lora_down.weight", ".lora.up.weight": "lora_up.weight", "_lora.down.weight": "lora_down.weight",
    "_lora.up.weight": "lora_up.weight", ".lora_magnitude_vector.default.weight": "magnitude", ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector": "magnitude", ".dora_scale": "dora_scale", ".alpha": "alpha", ".oft_blocks": "oft_blocks",
    **{f".{name}": name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b",
                                     "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "rescale")},
}
_UNET = ("lora_unet_", "lycoris_", "unet.", "diffusion_model.", "model.diffusion_model.", "transformer.", "base_model.model.", "lora_transformer_")
_TEXT = {  # prefix -> the text encoder's place among the family's
    "lora_te_": 0, "lora_te1_": 0, "lora_te2_": 1, "text_encoder.": 0, "text_encoder_2.": 1,
    "clip_l.transformer.": 0, "clip_h.transformer.": 0, "clip_g.transformer.": 1, "text_encoders.clip_l.transformer.": 0,
    "text_encoders.clip_h.transformer.": 0, "text_encoders.clip_g.transformer.": 1, "text_encoders.": 0,
}


def ldm_name(name: str, layers_per_block: int) -> str:
    """A UNet layer's original (LDM) name from diffusers', both with dots: down_blocks.0.attentions.1.proj_in -> input_blocks.2.1.proj_in."""
    inner = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
                         r"|mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
    if found is None:
        return name
    side, block, kind, number, rest, middle, middle_number, middle_rest = found.groups()
    if side is None:
        place = 1 if middle == "attentions" else 2 * int(middle_number)
        return f"middle_block.{place}.{inner.get(middle_rest, middle_rest)}"
    block, number = int(block), int(number)
    if side == "down":
        stride = layers_per_block + 1
        if kind == "downsamplers":
            return f"input_blocks.{stride * (block + 1)}.0.op"
        return f"input_blocks.{stride * block + number + 1}.{int(kind == 'attentions')}.{inner.get(rest, rest)}"
    stride = layers_per_block + 1
    if kind == "upsamplers":
        return f"output_blocks.{stride * block + layers_per_block}.UP.conv"
    return f"output_blocks.{stride * block + number}.{int(kind == 'attentions')}.{inner.get(rest, rest)}"


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _suffix(key: str) -> tuple[str, str] | None:
    for end, name in _SUFFIXES.items():
        if key.endswith(end):
            return key[:-len(end)].replace(".processor", ""), name
    return None


def layer_key(stem: str, keys: dict[str, str], text_prefixes: tuple[str, ...]) -> str | None:
    """Our key of the layer that `stem` names, or None. `keys` holds every flat spelling of the UNet's layers -> our key."""
    for prefix in sorted(_UNET, key=len, reverse=True):
        if stem.startswith(prefix):
            return keys.get(_flat(stem[len(prefix):]))
    for prefix in sorted(_TEXT, key=len, reverse=True):
        if stem.startswith(prefix) and _TEXT[prefix] < len(text_prefixes):
            rest = _flat(stem[len(prefix):])
            return f"{text_prefixes[_TEXT[prefix]]}_{rest if rest.startswith('text_model') else 'text_model_' + rest}"
    return keys.get(_flat(stem))


def spellings(names: dict[str, str]) -> dict[str, str]:
    """Every flat spelling of the UNet's layers -> our key, from {own module path: diffusers' name}."""
    found: dict[str, str] = {}
    per_block = max((int(n.split(".")[3]) for n in names.values() if re.match(r"down_blocks\.\d+\.resnets\.\d+\.conv1$", n)), default=0) + 1
    for own, name in names.items():
        ours = f"lora_unet_{_flat(name)}"
        original = ldm_name(name, per_block)
        for spelled in (name, own, name.removesuffix(".0") if name.endswith("to_out.0") else name, *(original.replace("UP", place) for place in "12")):
            found[_flat(spelled)] = ours
    return found


def read(path: Path, names: dict[str, str], family: Family) -> dict[str, Tensors]:
    """{our key: {suffix: tensor}}, `names` as for `spellings`. LoomError where the file cannot be read or names layers that are not there."""
    keys = spellings(names)
    layers = {f"lora_unet_{_flat(own)}": named for own, name in names.items() if family.flow and (named := family.in_diffusers(own, name))}
    parts = {_flat(name.removeprefix("transformer.")): (ours, i) for ours, named in layers.items() for i, name in enumerate(named.theirs)}
    keys.update({spelled: f"{ours}/{i}" for spelled, (ours, i) in parts.items() if spelled not in keys})
    try:
        tensors = load_file(path)
    except Exception as error:
        raise LoomError(f"init_lora {path.name!r} is no readable safetensors file ({error}): choose another, or none") from error
    found: dict[str, dict[str, torch.Tensor]] = {}
    strange, unknown = [], []
    for key, tensor in tensors.items():
        stem = _suffix(key)
        if stem is None:
            unknown.append(key)
            continue
        ours = layer_key(stem[0], keys, family.text_prefixes)
        if ours is None:
            strange.append(key)
        else:
            found.setdefault(ours, {})[stem[1]] = tensor
    if unknown and not strange:
        raise LoomError(f"init_lora {path.name!r} has {len(unknown)} of {len(tensors)} tensors of a kind that cannot be gone on from, such as {unknown[0]!r}: "
                        "choose a LoRA, DoRA, LoHa, LoKr or OFT without Tucker decomposition, or train without it")
    if strange:
        raise LoomError(f"init_lora {path.name!r} has {len(strange)} of {len(tensors)} tensors that name no layer of this model, such as {strange[0]!r}: "
                        "choose a LoRA of the same family")
    for ours, named in layers.items():
        given = {i: found.pop(f"{ours}/{i}") for i in range(len(named.theirs)) if f"{ours}/{i}" in found}
        if given:
            if ours in found:
                raise LoomError(f"init_lora {path.name!r} has {ours} whole and in parts: one of them would be lost; choose a file that has it once")
            found[ours] = joined(given, named, f"init_lora {path.name!r} at {ours}")
    return {ours: multiplied_out(tensors, f"init_lora {path.name!r} at {ours}") for ours, tensors in found.items()}
