"""Tags by zero-shot CLIP: which labels of each group fit a picture (Radford et al. 2021, arXiv:2103.00020, section 3.1)."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from . import open_clip_files
from .labels import Group, parse_groups
from .options import CaptionOptions

# Averaging a few wordings steadies the ranking (section 3.1.4 of the paper).
TEMPLATES = ("a photo of {}", "a picture of {}", "an image with {}")
BATCH = 96  # prompts at once


@dataclass
class Tagger:
    """A loaded CLIP and the groups it chooses among."""

    clip: open_clip_files.OpenClip
    groups: list[Group]
    options: CaptionOptions
    device: torch.device
    _texts: torch.Tensor | None = field(default=None, repr=False)

    @torch.no_grad()
    def label_features(self) -> torch.Tensor:
        """(labels of all groups, width), unit length, averaged over TEMPLATES; made once."""
        if self._texts is None:
            prompts = [template.format(label) for group in self.groups for label in group.labels for template in TEMPLATES]
            rows = [_unit(self.clip.model.encode_text(self.clip.tokenizer(prompts[start:start + BATCH]).to(self.device)))
                    for start in range(0, len(prompts), BATCH)]
            self._texts = _unit(torch.cat(rows).unflatten(0, (-1, len(TEMPLATES))).mean(1))
        return self._texts

    @torch.no_grad()
    def rank(self, image: Image.Image) -> list[torch.Tensor]:
        """A group's probabilities each, (labels of the group,) on the CPU, fp32: softmax over its labels of 100 times the cosine."""
        pixels = self.clip.preprocess(image.convert("RGB"))[None].to(self.device)
        scores = (100.0 * _unit(self.clip.model.encode_image(pixels)) @ self.label_features().T)[0]
        return [part.softmax(-1).cpu() for part in scores.split([len(group.labels) for group in self.groups])]

    def caption(self, image: Image.Image, poll: Any = None) -> list[tuple[str, float]]:
        """(label, probability) of each group's likeliest labels, best first; groups in their order, none below the group's threshold."""
        found = []
        for group, probabilities in zip(self.groups, self.rank(image)):
            most = self.options.group_max_tags if group.most is None else group.most
            threshold = self.options.group_threshold if group.threshold is None else group.threshold
            values, order = probabilities.sort(descending=True, stable=True)
            found += [(group.labels[i], p) for p, i in zip(values.tolist()[:most], order.tolist()) if p >= threshold]
        return found

    def close(self) -> None:
        self.clip.model.to("meta")
        self._texts = None


def load(path: str | Path, device: torch.device | str = "cpu", options: CaptionOptions | None = None) -> Tagger:
    """A Tagger of an open_clip model. Raises LoomError for labels or a model that cannot be used."""
    options = options or CaptionOptions()
    groups = parse_groups(options.labels)  # a mistake in them answers at once
    return Tagger(open_clip_files.load(path, device), groups, options, torch.device(device))


def _unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)
