"""AugmentDataset: the same pictures a little otherwise, shown before they are trained on."""
from __future__ import annotations

import dataclasses

import torch

from ..trainer.data.augment import LIMITS, Augmentation
from . import dataset as dataset_node
from . import events
from .schema import Dataset, io, output, schema, ui, widget

_PREVIEWED = 3  # pictures
_TIPS = {
    "flip": "Share of the variants that are mirrored. Not for text, faces with a side, or logos.",
    "crop": "Up to this share of each side is cut away, anywhere: the subject is learned in other places and sizes.",
    "rotation": "Degrees to either side; what would leave empty corners is cut away.",
    "brightness": "Lighter and darker by up to this factor.",
    "contrast": "More and less contrast by up to this factor.",
    "hue": "Colours turned by up to so many degrees. 180: any colour at all, for subjects whose colour should stay open.",
}


class AugmentDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        strengths = [widget(io.Float, name, default=0.0, min=0.0, max=high, step=1.0 if high > 10 else 0.05, tooltip=_TIPS[name])
                     for name, high in LIMITS.items()]
        return schema(
            "AugmentDataset", "Augment Dataset", search_aliases=["augmentation", "flip", "random crop", "rotate", "color jitter", "数据增强", "训练"],
            description="Variants of each picture, for sets of few. All are off at 0. The images show the pictures as they will be trained on, "
                        "the first of each as it is.",
            inputs=[widget(Dataset, "dataset", tooltip="The pictures to vary: Load Dataset's, or what a node behind it has made of them."), *strengths,
                    widget(io.Int, "variants", default=4, min=1, max=64, tooltip="Of each picture, the first as it is. Each is encoded once and kept."),
                    widget(io.Int, "seed", default=0, min=0, max=2**63 - 1, control_after_generate=False, tooltip="Other variants for another seed.")],
            outputs=[output(Dataset, "dataset"), output(io.Image, "images", is_output_list=True)],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @events.errors_shown
    def execute(cls, dataset, variants, seed, **strengths) -> io.NodeOutput:
        found = dataclasses.replace(dataset, augment=Augmentation(**strengths, variants=variants, seed=seed).check())
        shown = dataset_node.images(found)
        told = f"{variants} variants of each picture, {found.augment.words()}" if found.augment.active else "nothing is varied: all strengths are 0"
        events.show(cls.hidden.unique_id, told)
        return io.NodeOutput(found, shown, ui=_preview(shown, variants, cls) if found.augment.active else None)


def _preview(shown: list[torch.Tensor], variants: int, cls: type) -> dict:
    """The variants of the first pictures; those of one picture are of one size."""
    groups = [torch.cat(shown[start:start + variants]) for start in range(0, min(len(shown), _PREVIEWED * variants), variants)]
    return {"images": [saved for group in groups for saved in ui.PreviewImage(group, cls=cls).values]}
