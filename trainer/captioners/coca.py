"""Sentences by CoCa (Yu et al. 2022, arXiv:2205.01917), from open_clip's models in local safetensors.

open_clip's own `generate` needs parts of transformers that newer ones lack, so the words are searched here.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..errors import LoomError
from . import open_clip_files
from .options import CaptionOptions

START, END = 49406, 49407  # of CLIP's own vocabulary
BEAMS, SHORTEST = 4, 5  # tokens, the start counted: without a lower bound the end itself is often the likeliest


@dataclass
class Writer:
    """A loaded CoCa."""

    clip: open_clip_files.OpenClip
    options: CaptionOptions
    device: torch.device

    @torch.no_grad()
    def tokens(self, image: Image.Image, poll: Callable[[], object] | None = None, beams: int = BEAMS) -> list[int]:
        """The likeliest sentence's token ids, START and END included where it has ended. At most max_length tokens, or the model's own context."""
        model = self.clip.model
        _, seen = model.visual(self.clip.preprocess(image.convert("RGB"))[None].to(self.device))

        def next_tokens(rows: torch.Tensor) -> torch.Tensor:
            if poll is not None:
                poll()
            return model.text_decoder(seen.expand(len(rows), -1, -1), model.text(rows.to(self.device))[1])[:, -1].float().log_softmax(-1).cpu()

        return beam_search(next_tokens, START, END, min(self.options.max_length, self._context()), beams, SHORTEST)

    def _context(self) -> int:
        return min(self.clip.config[part].get("context_length", 77) for part in ("text_cfg", "multimodal_cfg"))

    def caption(self, image: Image.Image, poll: Callable[[], object] | None = None) -> str:
        words = [token for token in self.tokens(image, poll) if token not in (START, END)]
        return " ".join(self.clip.tokenizer.decode(words).split())

    def close(self) -> None:
        self.clip.model.to("meta")


def beam_search(next_tokens: Callable[[torch.Tensor], torch.Tensor], start: int, end: int, longest: int, beams: int, shortest: int = 1) -> list[int]:
    """Token ids from `start` to `end`, of `shortest` to `longest` tokens, whose mean log-probability is the highest that so many beams meet.

    Where none has ended within `longest` tokens, the likeliest unfinished one. `next_tokens` maps (rows, length) ids to (rows, vocabulary)
    log-probabilities. One beam is greedy search.
    """
    rows, scores, done = torch.full((1, 1), start), torch.zeros(1), []
    while len(rows) and rows.shape[1] < longest and not (len(done) >= beams and max(done)[0] >= scores[0].item() / rows.shape[1]):
        logs = next_tokens(rows)
        if rows.shape[1] < shortest:
            logs[:, end] = -torch.inf
        values, flat = (scores[:, None] + logs).flatten().topk(min(2 * beams, logs.numel()))  # twice as many, for half of them may end here
        longer = torch.cat([rows[flat // logs.shape[1]], (flat % logs.shape[1])[:, None]], 1)
        ended = (longer[:, -1] == end) & values.isfinite()
        done += [(value / longer.shape[1], row) for value, row in zip(values[:beams][ended[:beams]].tolist(), longer[:beams][ended[:beams]].tolist())]
        rows, scores = longer[longer[:, -1] != end][:beams], values[longer[:, -1] != end][:beams]
    return max(done)[1] if done else rows[0].tolist()


def fits(path: Path) -> bool:
    """Whether it is an open_clip model with a text decoder."""
    try:
        return open_clip_files.fits(path) and "multimodal_cfg" in open_clip_files.configuration(path)
    except LoomError:
        return False


def load(path: str | Path, device: torch.device | str = "cpu", options: CaptionOptions | None = None) -> Writer:
    """A Writer of an open_clip CoCa. Raises LoomError for a model that cannot be used."""
    clip = open_clip_files.load(path, device)
    if not hasattr(clip.model, "text_decoder"):
        raise LoomError(f"model {Path(path).name!r} writes no sentences: method coca takes a CoCa, such as coca_ViT-L-14.safetensors; "
                        "for this one choose clip_tags")
    if clip.config["text_cfg"].get("hf_tokenizer_name"):
        raise LoomError(f"model {Path(path).name!r} has a tokenizer of its own, and method coca knows CLIP's alone: take coca_ViT-B-32 or coca_ViT-L-14")
    return Writer(clip, options or CaptionOptions(), torch.device(device))
