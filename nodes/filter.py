"""FilterDataset: pictures left out by what the report or a CLIP model says of them."""
from __future__ import annotations

import comfy.model_management

from ..trainer.captioners import methods, open_clip_files, scores
from ..trainer.data.filters import REPORTED, leave_out_below, leave_out_reported
from ..trainer.data.folder import Dataset as Pictures
from ..trainer.data.report import look
from ..trainer.errors import LoomError
from . import events, folders, quality
from .schema import NONE, Dataset, io, output, schema, widget


class FilterDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "FilterDataset", "Filter Dataset", has_intermediate_output=True,
            search_aliases=["dataset quality", "duplicates", "aesthetic", "clip score", "clean dataset", "筛选", "去重", "清洗", "重复图片", "美学", "训练"],
            description="Leaves pictures out of a dataset: copies, blurred or badly exposed ones, those that do not fit a text, or please too little. "
                        "They are listed in the report and stay in their folder.",
            inputs=[
                widget(Dataset, "dataset", tooltip="The pictures to choose from: Load Dataset's."),
                widget(io.Boolean, "duplicates", default=False, tooltip="Leave out copies, also rescaled or mirrored ones; the largest of each stays."),
                widget(io.Boolean, "blurred", default=False, tooltip="Leave out pictures that are blurred even where they are sharpest."),
                widget(io.Boolean, "badly_exposed", default=False, tooltip="Leave out pictures that are nearly black, nearly white or without contrast."),
                widget(io.Combo, "model", options=[NONE, *sorted(methods.models("clip_tags", folders.clip_folders()), key=str.casefold)], default=NONE,
                       tooltip="An open_clip model in models/open_clip, for the two filters below; none: they do nothing."),
                widget(io.String, "prompt", default="", tooltip="What the pictures should show. Empty: not asked."),
                widget(io.Float, "min_similarity", default=0.2, min=-1.0, max=1.0, step=0.01,
                       tooltip="Pictures whose CLIP similarity to the prompt is lower are left out. 0.1 to 0.2 is little, 0.3 is much; the report gives all."),
                widget(io.Combo, "aesthetic_head", options=[NONE, *folders.aesthetic_heads()], default=NONE, optional=True, advanced=True,
                       tooltip="LAION's aesthetic head as .safetensors in models/aesthetic, for the CLIP model that it was trained with."),
                widget(io.Float, "min_aesthetic", default=5.0, min=0.0, max=10.0, step=0.1, optional=True, advanced=True,
                       tooltip="Pictures that the head scores lower are left out: 5 is middling, 6 is pleasing."),
            ],
            outputs=[output(Dataset, "dataset"), output(io.String, "report")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @events.errors_shown
    def execute(cls, dataset, duplicates, blurred, badly_exposed, model, prompt, min_similarity, aesthetic_head=NONE, min_aesthetic=5.0) -> io.NodeOutput:
        node, kept, lines = cls.hidden.unique_id, dataset, []
        switches = {name for name, on in zip(REPORTED, (duplicates, blurred, badly_exposed)) if on}
        if switches:
            seen = look(dataset, cache=folders.measures(), progress=events.counter(node), poll=events.interrupted)
            kept = leave_out_reported(seen, switches)
        head = None if aesthetic_head in (None, NONE) else folders.aesthetic_head(aesthetic_head)
        if model in (None, NONE) and (head or prompt.strip()):
            raise LoomError("model is none: FilterDataset.model takes the CLIP model that the prompt and the aesthetic head need; "
                            "put one into models/open_clip and choose it, or empty the prompt and set aesthetic_head to none")
        if head or prompt.strip():
            kept, lines = _by_model(node, kept, methods.model_path("clip_tags", model, folders.clip_folders()), prompt, min_similarity, head, min_aesthetic)
        text, drawn = quality.report(kept, node)
        first = f"{len(dataset.pictures) - len(kept.pictures)} of {len(dataset.pictures)} pictures left out"
        return io.NodeOutput(kept, "\n".join([first, *lines, "", text]), ui=drawn)


def _by_model(node, dataset: Pictures, path, prompt: str, min_similarity: float, head, min_aesthetic: float) -> tuple[Pictures, list[str]]:
    """(the dataset without what scores too low, a line a picture with its scores)."""
    head = head and scores.load_head(head)
    device = comfy.model_management.get_torch_device()
    comfy.model_management.free_memory(methods.size(path) * 1.2 + 2**30, device)
    clip = open_clip_files.load(path, device)
    try:
        features = scores.image_features(clip, dataset, device, events.counter(node), events.interrupted)
        found: dict[str, tuple[list[float], float]] = {}
        if prompt.strip():
            found["similarity"] = (scores.similarities(clip, features, prompt, device), min_similarity)
        if head:
            found["aesthetic score"] = (scores.aesthetics(head, features, path.name), min_aesthetic)
    finally:
        clip.model.to("meta")
        comfy.model_management.soft_empty_cache()
    names, kept = [p.name for p in dataset.pictures], dataset
    for called, (values, least) in found.items():
        kept = leave_out_below(kept, dict(zip(names, values)), least, called)
    return kept, [f"  {name}: {', '.join(f'{called} {values[i]:.3g}' for called, (values, _) in found.items())}" for i, name in enumerate(names)]
