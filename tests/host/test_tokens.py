"""Tokens are counted as ComfyUI's own tokenizers cut captions, whatever the family."""
from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest

CAPTIONS = ["", "a cat", "a (very:1.5) [odd] cat, embedding", "zxmug on a table, " * 60, "水墨画，山"]
FAMILIES = {  # tokenizer, encoders that cut, encoders that do not
    "sd1_clip.SD1Tokenizer": (["CLIP-L"], []), "sdxl_clip.SDXLTokenizer": (["CLIP-L", "CLIP-G"], []), "text_encoders.flux.FluxTokenizer": (["CLIP-L"], ["T5-XXL"]),
    "text_encoders.sd3_clip.SD3Tokenizer": (["CLIP-L", "CLIP-G"], ["T5-XXL"]), "text_encoders.z_image.ZImageTokenizer": ([], ["qwen3_4b"]),
    "text_encoders.qwen_image.QwenImageTokenizer": ([], ["qwen25_7b"]),
}


def clip_of(tokenizer) -> SimpleNamespace:
    return SimpleNamespace(tokenizer=tokenizer, tokenize=lambda text, return_word_ids=False: tokenizer.tokenize_with_weights(text, return_word_ids))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_s_tokens(comfy_modules, name):
    from lora_loom.trainer.backbones.comfy_tokens import text_encoders

    module, kind = name.rsplit(".", 1)
    try:
        tokenizer = getattr(importlib.import_module(f"comfy.{module}"), kind)()
    except ModuleNotFoundError:
        pytest.skip("this ComfyUI does not know the family")
    encoders = {encoder.name: encoder for encoder in text_encoders(clip_of(tokenizer))}
    cut, whole = FAMILIES[name]
    assert set(encoders) == {*cut, *whole}
    assert all(encoders[one].windows and encoders[one].limit == 75 for one in cut) and all(not encoders[one].windows and encoders[one].limit == 512 for one in whole)
    for encoder in encoders.values():
        counts = encoder.count(CAPTIONS)
        assert counts[0] == 0 and counts[1] in (2, 3) and counts[3] > 240 and counts[4] > 0  # T5 makes a token of the space before "a"
    for one in cut:
        key, counts = {"CLIP-L": "l", "CLIP-G": "g"}[one], encoders[one].count(CAPTIONS)
        windows = [len(tokenizer.tokenize_with_weights(caption)[key]) for caption in CAPTIONS]
        assert all(n >= -(-count // 75) for n, count in zip(windows, counts)) and windows[1] == 1 and windows[3] > 1


def test_the_counts_are_transformers_s(comfy_modules):
    import comfy.sd1_clip
    from lora_loom.trainer.backbones.comfy_tokens import text_encoders
    from transformers import CLIPTokenizer

    reference = CLIPTokenizer.from_pretrained(Path(comfy.sd1_clip.__file__).with_name("sd1_tokenizer"))
    [encoder] = text_encoders(clip_of(comfy.sd1_clip.SD1Tokenizer()))
    assert encoder.count(CAPTIONS) == [len(reference(caption).input_ids) - 2 for caption in CAPTIONS]  # (very:1.5) is what a caption says, no emphasis


def test_a_clip_of_another_kind_gives_no_word_on_tokens(comfy_modules):
    from lora_loom.trainer.backbones.comfy_tokens import text_encoders

    assert text_encoders(None) == () and text_encoders(SimpleNamespace(tokenize=lambda text: {})) == ()
    assert text_encoders(SimpleNamespace(tokenizer=None, tokenize=lambda text, return_word_ids: {"l": [[(1, 1.0)]]})) == ()
