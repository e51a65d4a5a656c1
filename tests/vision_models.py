"""Tiny vision-language models with random weights, saved as transformers saves them; their tokenizers know a few dozen words."""
from __future__ import annotations

from pathlib import Path

import torch

WORDS = "a photo of cat dog on the red blue table describe this image write caption what does in detail with paragraph is shown . , ! ? : USER ASSISTANT user assistant".split()
QWEN = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|endoftext|>")
CHAT = ("{% for m in messages %}<|im_start|>{{ m.role }} {% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|> {% endfor %}<|im_start|>assistant ")
# As JoyCaption's: the content is text, and the template sets the picture.
JOY = ("{% for m in messages %}<|im_start|>{{ m.role }} {% if m.role == 'user' %}<image>{% endif %}{{ m['content'] | trim }}<|im_end|> {% endfor %}"
       "<|im_start|>assistant ")


def tokenizer(special: tuple[str, ...], **settings):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", *special, *dict.fromkeys(WORDS), *(f"word{i}" for i in range(30))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.Metaspace(replacement=" ")
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", model_input_names=["input_ids", "attention_mask"], additional_special_tokens=list(special), **settings)


def _randomly(model):
    """Weights large enough that pictures and words change what is written."""
    torch.manual_seed(0)
    for value in model.parameters():
        if value.ndim > 1:
            value.data = torch.randn_like(value) * 0.4
    return model.eval()


def _clip_pictures(side: int = 32):
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"height": side, "width": side}, do_center_crop=False)


def blip(home: Path) -> Path:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    words = tokenizer(("[PAD]", "[CLS]", "[SEP]", "[DEC]"), pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", bos_token="[DEC]")
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 32}
    config = BlipConfig(text_config={**small, "vocab_size": len(words), "encoder_hidden_size": 32, "max_position_embeddings": 64, "bos_token_id": 4, "eos_token_id": 2,
                                     "pad_token_id": 1, "sep_token_id": 3}, vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=32, image_text_hidden_size=32)
    _randomly(BlipForConditionalGeneration(config)).save_pretrained(home)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), words).save_pretrained(home)
    return home


def florence2(home: Path) -> Path:
    from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor

    words = tokenizer(("<s>", "</s>", "<pad>", "<image>"), bos_token="<s>", eos_token="</s>", pad_token="<pad>", extra_special_tokens={"image_token": "<image>"})
    vision = {"embed_dim": [16, 16, 16, 16], "num_heads": [1, 1, 1, 1], "num_groups": [1, 1, 1, 1], "depths": [1, 1, 1, 1], "window_size": 2, "projection_dim": 32}
    text = {"vocab_size": len(words), "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "decoder_start_token_id": 2,
            "forced_bos_token_id": None, "forced_eos_token_id": None}
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=words.convert_tokens_to_ids("<image>"))
    model = _randomly(Florence2ForConditionalGeneration(config))
    pictures = _clip_pictures(64)
    pictures.image_seq_length = 2 * 2 + 1
    model.save_pretrained(home)
    Florence2Processor(pictures, words).save_pretrained(home)
    return home


def qwen2_vl(home: Path) -> Path:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    words = tokenizer(QWEN, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = {name: words.convert_tokens_to_ids(token) for name, token in (("image_token_id", "<|image_pad|>"), ("video_token_id", "<|video_pad|>"),
                                                                       ("vision_start_token_id", "<|vision_start|>"), ("vision_end_token_id", "<|vision_end|>"))}
    text = {"vocab_size": len(words), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
            "bos_token_id": 7, "eos_token_id": 2, "pad_token_id": 7, "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 1, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    model = _randomly(Qwen2VLForConditionalGeneration(config))
    model.generation_config.update(do_sample=True, temperature=0.1, top_p=0.001, top_k=1, eos_token_id=2, pad_token_id=7)
    model.save_pretrained(home)
    size = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 6}
    Qwen2VLProcessor(Qwen2VLImageProcessor(**size), words, Qwen2VLVideoProcessor(**size), chat_template=CHAT).save_pretrained(home)
    return home


def llava(home: Path, template: str | None = JOY) -> Path:
    """With JoyCaption's way of asking; without a template as the first LLaVA exports."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    words = tokenizer((*QWEN, "<image>"), eos_token="<|im_end|>", pad_token="<|endoftext|>")
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlavaConfig(text_config={**small, "model_type": "llama", "vocab_size": len(words), "num_key_value_heads": 2, "bos_token_id": 7, "eos_token_id": 2, "pad_token_id": 7},
                         vision_config={**small, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 16, "projection_dim": 32},
                         image_token_index=words.convert_tokens_to_ids("<image>"), vision_feature_layer=-1)
    _randomly(LlavaForConditionalGeneration(config)).save_pretrained(home)
    LlavaProcessor(_clip_pictures(), words, patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1,
                   chat_template=template).save_pretrained(home)
    return home
