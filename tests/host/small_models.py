"""Small models under the names of large ones, for the example workflows: what each loader takes, in its own format.

ComfyUI's own detection knows neither a UNet as small as the toy base nor a T5 of one layer, so a node pack of the tests' own hands out the
toy base for the checkpoint of its name, and tells ComfyUI's loader the sizes of the two text encoders. Flux and its VAE need no such help.
"""
from __future__ import annotations

from pathlib import Path

import torch

CHECKPOINT, UNET, VAE, CLIP_L, T5 = "toy_base.safetensors", "small_flux.safetensors", "small_ae.safetensors", "small_clip_l.safetensors", "small_t5.safetensors"
WIDTH = 128  # of Flux's stream: one head, whose three axes add up to it
TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LONG_TEXT = {"d_model": 64, "num_layers": 1, "num_heads": 2, "d_kv": 32, "d_ff": 64}

PACK = f"""
import comfy.sd
import comfy.text_encoders.long_clipl as long_clipl
import folder_paths
import nodes

whole, parts = nodes.CheckpointLoaderSimple.load_checkpoint, nodes.DualCLIPLoader.load_clip


def load_checkpoint(self, ckpt_name):
    return tuple(nodes.NODE_CLASS_MAPPINGS["ToyBase"].execute().args) if ckpt_name == {CHECKPOINT!r} else whole(self, ckpt_name)


def load_clip(self, clip_name1, clip_name2, type, device="default"):
    if clip_name1 != {CLIP_L!r}:
        return parts(self, clip_name1, clip_name2, type, device)
    paths = [folder_paths.get_full_path_or_raise("text_encoders", name) for name in (clip_name1, clip_name2)]
    looked, long_clipl.model_options_long_clip = long_clipl.model_options_long_clip, lambda weights, tokenizer, options: (tokenizer, options)  # it would undo our sizes
    try:
        return (comfy.sd.load_clip(paths, clip_type=comfy.sd.CLIPType[type.upper()], model_options={{"clip_l_model_config": {TEXT!r}, "t5xxl_model_config": {LONG_TEXT!r}}}),)
    finally:
        long_clipl.model_options_long_clip = looked


nodes.CheckpointLoaderSimple.load_checkpoint, nodes.DualCLIPLoader.load_clip = load_checkpoint, load_clip
NODE_CLASS_MAPPINGS = {{}}
"""


def write(base: Path) -> None:
    """All of them below that base folder, and three pictures with captions in input/my_pictures."""
    models = base / "models"
    for folder in ("checkpoints", "diffusion_models", "vae", "text_encoders"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    (base / "custom_nodes").mkdir(exist_ok=True)
    (base / "custom_nodes" / "loom_small_models.py").write_text(PACK)
    (models / "checkpoints" / CHECKPOINT).touch()
    _save(_flux(), models / "diffusion_models" / UNET)
    _save(_vae(), models / "vae" / VAE)
    _save(_clip_l(), models / "text_encoders" / CLIP_L)
    _save(_t5(), models / "text_encoders" / T5)
    _pictures(base / "input" / "my_pictures")


def _save(shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    save_file({name: torch.ones(shape) if "norm" in name and len(shape) == 1 else torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}, path)


def _linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _flux() -> dict[str, tuple[int, ...]]:
    """One double and one single block, in Flux.1-dev's own names."""
    w, shapes = WIDTH, {**_linear("img_in", WIDTH, 64), **_linear("txt_in", WIDTH, LONG_TEXT["d_model"])}
    for name, into in (("time_in", 256), ("guidance_in", 256), ("vector_in", TEXT["hidden_size"])):
        shapes |= {**_linear(f"{name}.in_layer", w, into), **_linear(f"{name}.out_layer", w, w)}
    for side in ("img", "txt"):
        here = f"double_blocks.0.{side}"
        shapes |= {**_linear(f"{here}_mod.lin", 6 * w, w), **_linear(f"{here}_attn.qkv", 3 * w, w), **_linear(f"{here}_attn.proj", w, w), **_linear(f"{here}_mlp.0", 4 * w, w),
                   **_linear(f"{here}_mlp.2", w, 4 * w), f"{here}_attn.norm.query_norm.scale": (128,), f"{here}_attn.norm.key_norm.scale": (128,)}
    here = "single_blocks.0"
    shapes |= {**_linear(f"{here}.linear1", 7 * w, w), **_linear(f"{here}.linear2", w, 5 * w), **_linear(f"{here}.modulation.lin", 3 * w, w),
               f"{here}.norm.query_norm.scale": (128,), f"{here}.norm.key_norm.scale": (128,)}
    return shapes | _linear("final_layer.linear", 64, w) | _linear("final_layer.adaLN_modulation.1", 2 * w, w)


def _vae() -> dict[str, tuple[int, ...]]:
    """TAESD's two halves for 16 channels, named as ComfyUI tells them apart."""
    from comfy.taesd.taesd import TAESD

    return {name: tuple(value.shape) for name, value in TAESD(latent_channels=16).state_dict().items() if name.startswith("taesd_")}


def _clip_l() -> dict[str, tuple[int, ...]]:
    w, shapes = TEXT["hidden_size"], {"text_model.embeddings.token_embedding.weight": (49408, TEXT["hidden_size"]), "text_model.embeddings.position_embedding.weight": (77, TEXT["hidden_size"]),
                                      "text_model.final_layer_norm.weight": (TEXT["hidden_size"],), "text_model.final_layer_norm.bias": (TEXT["hidden_size"],)}
    for layer in range(TEXT["num_hidden_layers"]):
        here = f"text_model.encoder.layers.{layer}"
        for part in ("q", "k", "v", "out"):
            shapes |= _linear(f"{here}.self_attn.{part}_proj", w, w)
        shapes |= {**_linear(f"{here}.mlp.fc1", TEXT["intermediate_size"], w), **_linear(f"{here}.mlp.fc2", w, TEXT["intermediate_size"])}
        shapes |= {f"{here}.{norm}.{part}": (w,) for norm in ("layer_norm1", "layer_norm2") for part in ("weight", "bias")}
    return shapes


def _t5() -> dict[str, tuple[int, ...]]:
    w, inner, wide = LONG_TEXT["d_model"], LONG_TEXT["d_kv"] * LONG_TEXT["num_heads"], LONG_TEXT["d_ff"]
    here = "encoder.block.0.layer"
    return {"shared.weight": (32128, w), "encoder.final_layer_norm.weight": (w,), f"{here}.0.SelfAttention.relative_attention_bias.weight": (32, LONG_TEXT["num_heads"]),
            **{f"{here}.0.SelfAttention.{part}.weight": (inner, w) for part in "qkv"}, f"{here}.0.SelfAttention.o.weight": (w, inner), f"{here}.0.layer_norm.weight": (w,),
            f"{here}.1.DenseReluDense.wi_0.weight": (wide, w), f"{here}.1.DenseReluDense.wi_1.weight": (wide, w), f"{here}.1.DenseReluDense.wo.weight": (w, wide),
            f"{here}.1.layer_norm.weight": (w,)}


def _pictures(home: Path) -> None:
    import skimage.data
    from PIL import Image

    home.mkdir(parents=True, exist_ok=True)
    for other in home.iterdir():
        other.unlink()
    astronaut, coffee = Image.fromarray(skimage.data.astronaut()), Image.fromarray(skimage.data.coffee()).resize((768, 512))
    for number, (picture, caption) in enumerate(((astronaut, "an astronaut"), (coffee, "a cup of coffee"), (astronaut.crop((100, 0, 512, 412)), "a woman smiling"))):
        picture.save(home / f"{number}.png")
        (home / f"{number}.txt").write_text(caption)
