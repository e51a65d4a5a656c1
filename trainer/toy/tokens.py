"""CLIP's tokenizer without a model hub: the vocabulary that open_clip ships inside its package."""
from __future__ import annotations

import json
import tempfile
from functools import lru_cache
from pathlib import Path

import torch


@lru_cache(maxsize=2)
def clip_tokenizer(pad_token: str = "<|endoftext|>"):
    """A transformers CLIPTokenizer built from open_clip's BPE file. SD2 and SDXL's second encoder pad with "!"."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    simple = SimpleTokenizer()
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        special = {simple.sot_token_id: "<|startoftext|>", simple.eot_token_id: "<|endoftext|>"}  # open_clip spells them otherwise
        vocab.write_text(json.dumps({special.get(i, word): i for word, i in simple.encoder.items()}), encoding="utf-8")
        ranked = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
        merges.write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in ranked), encoding="utf-8")
        names = {"unk_token": "<|endoftext|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": pad_token}
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77, local_files_only=True, **names)


def tokenize(captions: list[str], pad_token: str = "<|endoftext|>") -> torch.Tensor:
    """Token ids (B, 77), cut at the text encoder's 77 tokens."""
    return clip_tokenizer(pad_token)(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
