"""How the text encoders behind a ComfyUI CLIP read captions, by ComfyUI's own tokenizers; nothing is encoded."""
from __future__ import annotations

from typing import Any

from .protocol import TextEncoder

_NAMES = {"l": "CLIP-L", "g": "CLIP-G", "h": "CLIP-H", "t5xxl": "T5-XXL", "umt5xxl": "UMT5-XXL"}
_ENDLESS = 100_000  # tokens: what ComfyUI gives for encoders that it never cuts
_TRAINED = 512  # that Flux.1, Flux.2, Wan and Z-Image were trained with; others with fewer


def text_encoders(clip: Any) -> tuple[TextEncoder, ...]:
    """One for each text encoder of a CLIP; none for a CLIP that is None, or that another pack has given a tokenizer of its own kind."""
    try:
        return () if clip is None else tuple(_encoder(clip, key) for key in _tokens(clip, ""))
    except (AttributeError, IndexError, KeyError, TypeError):  # rather no word on tokens than no training
        return ()


def _encoder(clip: Any, key: str) -> TextEncoder:
    empty, tokenizer = _count(clip, key, ""), _tokenizer(clip, key)
    longest = getattr(tokenizer, "max_length", _ENDLESS)
    windows = longest < _ENDLESS
    ends = getattr(tokenizer, "tokens_start", 1) + (getattr(tokenizer, "end_token", None) is not None)
    return TextEncoder(_NAMES.get(key, key), lambda captions: [max(0, _count(clip, key, caption) - empty) for caption in captions],
                       longest - ends if windows else _TRAINED, windows)


def _tokens(clip: Any, caption: str) -> dict[str, list]:
    from .comfy import literal  # as it is trained: a caption has no (emphasis:1.2)

    return clip.tokenize(literal(caption), return_word_ids=True)


def _count(clip: Any, key: str, caption: str) -> int:
    """Tokens that stand for text: those that ComfyUI adds around it and fills up with have the word number 0."""
    return sum(entry[2] != 0 for window in _tokens(clip, caption)[key] for entry in window)


def _tokenizer(clip: Any, key: str) -> Any:
    return getattr(clip.tokenizer, f"clip_{key}", None) or getattr(clip.tokenizer, key, None)
