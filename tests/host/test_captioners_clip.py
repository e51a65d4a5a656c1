"""A CLIP of ComfyUI's own that reads pictures and writes: Qwen3-VL in small, with random weights, through ComfyUI's own tokenizer and generation."""
from __future__ import annotations

from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from lora_loom.trainer.captioners import clip_socket
from lora_loom.trainer.captioners.options import CaptionOptions
from lora_loom.trainer.captioners.vision_llm import INSTRUCTION
from lora_loom.trainer.errors import LoomError
from PIL import Image
from skimage import data

SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
EYES = {"hidden_size": 32, "intermediate_size": 32, "depth": 1, "deepstack_visual_indexes": [0]}
PICTURES = [Image.fromarray(picture).resize((96, 64)) for picture in (data.chelsea(), data.coffee(), data.astronaut())]


@pytest.fixture
def clip(comfy_modules: ModuleType, monkeypatch: pytest.MonkeyPatch):
    qwen = pytest.importorskip("comfy.text_encoders.qwen3vl", reason="this ComfyUI has no CLIP that writes")
    import comfy.sd

    config = qwen.QWEN3VL_CONFIGS["qwen3vl_4b"]
    monkeypatch.setitem(qwen.QWEN3VL_CONFIGS, "qwen3vl_4b", lambda **given: config(**given | SMALL))
    monkeypatch.setitem(qwen.QWEN3VL_VISION, "qwen3vl_4b", EYES)
    monkeypatch.setitem(qwen.QWEN3VL_VISION_COMMON, "num_heads", 2)
    target = SimpleNamespace(params={}, clip=qwen.te(model_type="qwen3vl_4b"), tokenizer=qwen.tokenizer("qwen3vl_4b"))
    made = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    torch.manual_seed(0)
    for value in made.cond_stage_model.parameters():
        value.data = torch.randn_like(value) * 0.2
    return made


def test_it_writes_what_comfyui_s_own_node_would(clip) -> None:
    """As TextGenerate asks: tokenize with the picture, generate, decode."""
    found = []
    for instruction in ("", "say it"):
        writer = clip_socket.load(clip, CaptionOptions(instruction=instruction, max_length=6))
        for picture in PICTURES:
            with torch.inference_mode():
                pixels = torch.from_numpy(np.asarray(picture, np.float32) / 255)[None]
                tokens = clip.tokenize(instruction or INSTRUCTION, image=pixels, skip_template=False, min_length=1, thinking=False, video=None, audio=None)
                ids = clip.generate(tokens, do_sample=False, max_length=6)
                assert writer.caption(picture) == " ".join(clip.decode(ids).split())
            found.append(tuple(ids))
    assert len(set(found)) > 2  # pictures and instructions count


def test_one_that_only_encodes_is_told(comfy_modules: ModuleType) -> None:
    import comfy.sd
    from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 77, "hidden_act": "gelu", "eos_token_id": 49407,
             "vocab_size": 49408, "layer_norm_eps": 1e-5}
    plain = comfy.sd.CLIP(SimpleNamespace(params={}, clip=SD1ClipModel, tokenizer=SD1Tokenizer), model_options={"clip_l_model_config": small})
    with pytest.raises(LoomError, match="reads no pictures: connect a CLIP that reads pictures" if hasattr(plain, "generate") else "too old"):
        clip_socket.load(plain, CaptionOptions()).caption(PICTURES[0])
