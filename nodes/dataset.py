"""LoadDataset: a folder of pictures and captions becomes a TRAIN_DATASET."""
from __future__ import annotations

import dataclasses
import re

import torch
from server import PromptServer

from ..trainer.data import folder as reading
from ..trainer.data.augment import View
from ..trainer.data.buckets import to_tensor
from ..trainer.data.captions import COMMAS, SOURCES
from ..trainer.data.masks import MASKS
from ..trainer.data.pictures import open_picture
from ..trainer.errors import LoomError
from . import events, folders, quality
from .schema import Dataset, io, output, schema, widget
from .turns import turns

_SHOWN = 200  # pictures in the `images` output: more would not fit in memory
_BYTES = 512 * 2**20  # and no more than this
_same: dict[str, str] = {}  # fingerprint of a folder -> what stands for it in graphs that caption it


def written(before: str, after: str) -> None:
    """AutoCaption's own captions, just written, are no reason to run its graph again; taking them away is one."""
    if before != after:
        _same[after], _same[before] = _same.get(before, before), f"{before} again {len(_same)}"


def _captioned_by_the_graph(folder: str) -> bool:
    """Whether the prompt that runs now holds an AutoCaption that writes into this folder."""
    queue = getattr(getattr(PromptServer, "instance", None), "prompt_queue", None)
    for item in list(getattr(queue, "currently_running", {}).values()):
        for node in item[2].values():
            inputs = node.get("inputs", {})
            if node.get("class_type") == "AutoCaption" and inputs.get("save_as") != "nothing" and isinstance(inputs.get("dataset"), list):
                source = item[2].get(str(inputs["dataset"][0]), {})
                if source.get("class_type") == "LoadDataset" and source.get("inputs", {}).get("folder") == folder:
                    return True
    return False


class LoadDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "LoadDataset", "Load Dataset", has_intermediate_output=True,
            search_aliases=["training data", "image folder", "dataset", "kohya", "lora", "训练集", "数据集", "触发词", "正则化"],
            description="Pictures with captions from a folder inside ComfyUI's input folder (or a registered datasets folder).",
            inputs=[
                widget(io.Combo, "folder", options=folders.dataset_names(),
                       tooltip="A sub-folder of ComfyUI's input folder. Upload pictures into a new one below, or put them there and refresh."),
                widget(io.Int, "resolution", default=512, min=64, max=4096, step=8,
                       tooltip="Pictures are trained at about this many pixels squared: 512 for SD1.5, 1024 for SDXL, Flux and the like, 64 for the toy base."),
                widget(io.Int, "min_size", default=512, min=1, max=8192,
                       tooltip="Pictures whose shorter side is smaller are left out, and reported."),
                widget(io.Combo, "caption_source", options=list(SOURCES), default="auto",
                       tooltip="auto: metadata.csv, else metadata.jsonl, else .txt beside each picture, else the prompt that ComfyUI or A1111 wrote into it, "
                               "else a folder name such as 10_cat, whose number also gives repeats."),
                widget(io.String, "trigger_word", default="",
                       tooltip="Put in front of every caption that lacks it; write it in your prompts to call the LoRA."),
                widget(io.Int, "repeats", default=1, min=1, max=1000,
                       tooltip="How often an epoch shows each picture. It changes what an epoch is, not how many steps are trained."),
                widget(io.Boolean, "flip", default=False, tooltip="Also train on the mirror images. Not for text, faces with a side, or logos."),
                widget(io.Boolean, "buckets", default=True,
                       tooltip="Keep aspect ratios by training each picture in the bucket nearest to its shape. Off: square crops."),
                widget(io.Combo, "masks", options=list(MASKS), default="none", optional=True, advanced=True,
                       tooltip="Train on the subject alone. alpha: by the pictures' transparency; files: cat-masklabel.png or masks/cat.png, white counts."),
                widget(io.String, "more_resolutions", default="", optional=True, advanced=True, placeholder="768, 1024",
                       tooltip="Further resolutions, with commas: each picture is also trained at those that it is large enough for."),
                widget(io.Boolean, "upscale", default=False, optional=True, advanced=True,
                       tooltip="Enlarge pictures that are smaller than the resolution, instead of training them at their own size."),
                widget(io.Boolean, "check_pictures", default=True, optional=True, advanced=True,
                       tooltip="Report on every picture: copies, blur, exposure, cropping, captions. What was measured once is remembered."),
                widget(io.Clip, "clip", optional=True, advanced=True, tooltip="Counts the captions' tokens, where connected."),
            ],
            outputs=[output(Dataset, "dataset"), output(io.Image, "images", is_output_list=True), output(io.String, "report")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, folder) -> bool | str:
        return events.verdict(folders.dataset, folder)

    @classmethod
    def fingerprint_inputs(cls, folder, **values) -> str:
        try:
            print_ = reading.fingerprint(folders.dataset(folder))
        except LoomError:
            return "missing"
        return _same.get(print_, print_) if _captioned_by_the_graph(folder) else print_

    @classmethod
    @events.errors_shown
    def execute(cls, folder, resolution, min_size, caption_source, trigger_word, repeats, flip, buckets, masks="none",
                more_resolutions="", upscale=False, check_pictures=True, clip=None) -> io.NodeOutput:
        path = folders.dataset(folder)
        made_of = {"folder": folder, "resolution": resolution, "min_size": min_size, "caption_source": caption_source, "trigger_word": trigger_word,
                   "repeats": repeats, "flip": flip, "buckets": buckets, "masks": masks, "more_resolutions": more_resolutions, "upscale": upscale,
                   "fingerprint": reading.fingerprint(path)}
        with folders.called(path, folder), turns.run(events.interrupted):
            found = reading.read_dataset(
                path, resolution=resolution, min_size=min_size, caption_source=caption_source, trigger_word=trigger_word,
                repeats=repeats, flip=flip, buckets=buckets, masks=masks or "none", more_resolutions=resolutions(more_resolutions), upscale=bool(upscale),
                poll=events.interrupted, progress=events.counter(cls.hidden.unique_id), index=folders.cache() / "pictures")
        found = dataclasses.replace(found, name=folder)
        shown = images(found)
        report, drawn = quality.report(found, cls.hidden.unique_id, clip, made_of) if check_pictures else (found.report(), None)
        if not check_pictures:
            events.show(cls.hidden.unique_id, report)
        report += f"\nimages shows the first {len(shown)}" if len(shown) < len(found.pictures) else ""
        return io.NodeOutput(found, shown, report, ui=drawn)


def resolutions(text: str) -> tuple[int, ...]:
    """Numbers with commas. LoomError for anything else."""
    try:
        return tuple(int(part) for part in re.split(COMMAS, str(text or "")) if part.strip())
    except ValueError:
        raise LoomError(f"more_resolutions {text!r} is no list of numbers: LoadDataset.more_resolutions takes resolutions with commas, "
                        "such as 768, 1024") from None


def images(found: reading.Dataset) -> list[torch.Tensor]:
    """The pictures as they are trained on, each (1, H, W, 3) in 0..1: variants one after the other; the first 200, or fewer where
    they are large."""
    shown, room = [], _BYTES
    varied = found.augment.variants if found.augment and found.augment.active else 1
    for picture in found.pictures[:-(-_SHOWN // varied)]:
        events.interrupted()
        image, size = open_picture(picture.path), found.sizes(picture, 16)[0]
        for number in range(varied):
            room -= size[0] * size[1] * 12
            if room < 0 and shown:
                return shown
            view = found.augment.view(picture.digest, number) if found.augment else View()
            shown.append(to_tensor(view.of(image, size)[0]).movedim(0, -1)[None])
    return shown[:_SHOWN]
