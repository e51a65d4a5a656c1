"""How well pictures fit a text, and how they please, by a CLIP model from a local folder.

Aesthetic heads are LAION's, as safetensors: one linear layer (github.com/LAION-AI/aesthetic-predictor) or the five of
github.com/christophschuhmann/improved-aesthetic-predictor, on the unit-length image features of the CLIP that they were trained with.
"""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..data.folder import Dataset, open_picture
from ..errors import LoomError
from .open_clip_files import PICKLES, OpenClip

_LINEAR, _MLP = ("",), tuple(f"layers.{n}." for n in (0, 2, 4, 6, 7))  # dropouts between them; no activations
_SHAPES = ("a head has `weight` (1, width) and `bias` (1), or layers.0, 2, 4, 6 and 7 with widths to 1024, 128, 64, 16 and 1; "
           "width is 768 for CLIP ViT-L/14 and 512 for ViT-B/32")


class Head:
    """An aesthetic head: image features (N, width) -> scores (N), about 1 to 10."""

    def __init__(self, layers: list[tuple[torch.Tensor, torch.Tensor]], name: str) -> None:
        self.layers, self.name, self.width = layers, name, layers[0][0].shape[1]

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        for weight, bias in self.layers:
            features = torch.nn.functional.linear(features, weight, bias)
        return features[:, 0]


def load_head(path: str | Path) -> Head:
    """A head from a .safetensors file. Raises LoomError for anything else."""
    from safetensors.torch import load_file

    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise LoomError(f"aesthetic head {path.name!r} is a pickle, which can run code when it is opened: save its tensors as .safetensors")
    try:
        state = load_file(path)
    except Exception as error:
        raise LoomError(f"aesthetic head {path.name!r} cannot be read ({error}): copy the .safetensors file again") from error
    prefixes = _MLP if f"{_MLP[0]}weight" in state else _LINEAR
    try:
        layers = [(state[f"{prefix}weight"].float(), state[f"{prefix}bias"].float()) for prefix in prefixes]
        widths = [weight.shape[1] for weight, _ in layers[1:]] + [1]
        fits = all(weight.shape[0] == width == len(bias) for (weight, bias), width in zip(layers, widths))
    except (KeyError, IndexError):
        fits = False
    if not fits:
        raise LoomError(f"aesthetic head {path.name!r} holds {', '.join(f'{k} {tuple(v.shape)}' for k, v in list(state.items())[:3])}: {_SHAPES}")
    return Head(layers, path.name)


@torch.no_grad()
def image_features(clip: OpenClip, dataset: Dataset, device: torch.device | str = "cpu", progress: Callable[[int, int], object] | None = None,
                   poll: Callable[[], object] | None = None, batch: int = 16) -> torch.Tensor:
    """(pictures, width) of unit length, fp32 on the CPU. `poll()` is called before each picture and may raise."""
    rows = []
    for start in range(0, len(dataset.pictures), batch):
        pixels = []
        for picture in dataset.pictures[start:start + batch]:
            if poll is not None:
                poll()
            pixels.append(clip.preprocess(open_picture(picture.path)))
        rows.append(torch.nn.functional.normalize(clip.model.encode_image(torch.stack(pixels).to(device)).float(), dim=-1).cpu())
        if progress is not None:
            progress(min(start + batch, len(dataset.pictures)), len(dataset.pictures))
    return torch.cat(rows)


@torch.no_grad()
def similarities(clip: OpenClip, features: torch.Tensor, prompt: str, device: torch.device | str = "cpu") -> list[float]:
    """The cosine of each picture with the prompt: CLIP ViT-B/32 and L/14 give 0.1 to 0.2 for what does not fit, and up to 0.35 for what does."""
    if not prompt.strip():
        raise LoomError("prompt is empty: FilterDataset.prompt takes what the pictures should show, such as: a photo of a mug")
    text = clip.model.encode_text(clip.tokenizer([prompt.strip()]).to(device)).float()
    return (features @ torch.nn.functional.normalize(text, dim=-1).cpu()[0]).tolist()


@torch.no_grad()
def aesthetics(head: Head, features: torch.Tensor, model: str) -> list[float]:
    """The head's score of each picture. Raises LoomError where it was trained on features of another width."""
    if head.width != features.shape[1]:
        raise LoomError(f"aesthetic head {head.name!r} takes features of width {head.width}, and model {model!r} gives {features.shape[1]}: "
                        "choose the CLIP that it was trained with, ViT-L/14 for 768 and ViT-B/32 for 512")
    return head(features).tolist()
