"""Captions by a CLIP of ComfyUI's that can write (Qwen-VL, Gemma and the like): it is handed in, and knows how to load and unload itself."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import LoomError
from .options import CaptionOptions
from .vision_llm import INSTRUCTION, answer, shrunk

RULE = "connect a CLIP that reads pictures and writes text, such as Qwen3-VL or Gemma, or disconnect clip and choose a local model"


@dataclass
class Writer:
    """`clip` is ComfyUI's CLIP object: tokenize, generate, decode."""

    clip: Any
    options: CaptionOptions

    def caption(self, image: Image.Image, poll: Callable[[], object] | None = None) -> str:
        pixels = torch.from_numpy(np.asarray(shrunk(image.convert("RGB")), np.float32) / 255)[None]
        try:
            tokens = self.clip.tokenize(self.options.instruction.strip() or INSTRUCTION, image=pixels, min_length=1, thinking=False)
        except TypeError as error:
            raise LoomError(f"the connected CLIP takes no picture ({error}): {RULE}") from error
        if not _holds_picture(tokens):
            raise LoomError(f"the connected CLIP reads no pictures: {RULE}")
        try:
            ids = self.clip.generate(tokens, do_sample=False, max_length=self.options.max_length)
        except (AttributeError, NotImplementedError) as error:
            raise LoomError(f"the connected CLIP writes no text ({error}): {RULE}") from error
        return answer(self.clip.decode(ids), len(ids) >= self.options.max_length)

    def close(self) -> None:
        """Nothing: other nodes may use the CLIP, and ComfyUI unloads it when it needs the memory."""


def load(clip: Any, options: CaptionOptions | None = None) -> Writer:
    """Raises LoomError where this ComfyUI's CLIPs cannot write."""
    if not all(hasattr(clip, name) for name in ("tokenize", "generate", "decode")):
        raise LoomError("this ComfyUI is too old for text from a CLIP: update it, or disconnect clip and choose a local model")
    return Writer(clip, options or CaptionOptions())


def _holds_picture(tokens: Any) -> bool:
    rows = tokens.values() if isinstance(tokens, dict) else [tokens]
    found = [token[0] for batches in rows for row in batches for token in row if isinstance(token, tuple)]
    return any(isinstance(token, dict) and token.get("type") == "image" for token in found)
