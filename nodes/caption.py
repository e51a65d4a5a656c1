"""AutoCaption: captions for the pictures of a dataset, by a model from a local folder."""
from __future__ import annotations

import comfy.model_management
import comfy.utils

from ..trainer.captioners import clip_tags
from ..trainer.captioners.captioning import EXISTING, LABELS, SAVE_AS, caption_dataset, parse_labels, written_files
from ..trainer.data.folder import fingerprint
from . import dataset as dataset_node
from . import dataset_routes, events, folders
from .schema import Dataset, io, output, schema, widget


class AutoCaption(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AutoCaption", "Auto Caption", search_aliases=["caption", "tagger", "clip interrogator", "tag"],
            description="Writes captions for a dataset's pictures. clip_tags ranks your labels on each picture with an open_clip model from models/open_clip.",
            inputs=[
                widget(Dataset, "dataset"),
                widget(io.Combo, "method", options=["clip_tags"], default="clip_tags", tooltip="clip_tags: the labels that fit each picture best."),
                widget(io.Combo, "model", options=clip_tags.local_models(folders.clip_folders()),
                       tooltip="An open_clip model in models/open_clip: a folder with open_clip_config.json and its .safetensors, or "
                               "ViT-B-32.safetensors."),
                widget(io.String, "labels", default=LABELS, multiline=True, tooltip="The words to choose from, one a line or separated by commas."),
                widget(io.Int, "max_tags", default=8, min=1, max=100, tooltip="At most this many labels a picture."),
                widget(io.String, "prefix", default="", tooltip="Put in front of every caption."),
                widget(io.String, "suffix", default="", tooltip="Put behind every caption."),
                widget(io.Combo, "existing", options=list(EXISTING), default="keep", tooltip="What to do with captions that are there already."),
                widget(io.Combo, "save_as", options=list(SAVE_AS), default="nothing",
                       tooltip="Also write the captions to the folder. What was there is kept as .bak."),
            ],
            outputs=[output(Dataset, "dataset"), output(io.String, "captions", is_output_list=True), output(io.String, "report")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model) -> bool | str:
        return events.verdict(lambda name: clip_tags.model_path(name, folders.clip_folders()), model)

    @classmethod
    @events.errors_shown
    def execute(cls, dataset, method, model, labels, max_tags, prefix, suffix, existing, save_as) -> io.NodeOutput:
        wanted = parse_labels(labels)
        own = written_files(dataset, save_as)
        before, others = fingerprint(dataset.folder), fingerprint(dataset.folder, leave_out=own)
        bar = None

        def progress(done: int, total: int) -> None:
            nonlocal bar
            bar = bar or comfy.utils.ProgressBar(total, node_id=cls.hidden.unique_id)
            bar.update_absolute(done, total)
            events.show(cls.hidden.unique_id, f"captioning {done}/{total}")

        path = clip_tags.model_path(model, folders.clip_folders())
        device = comfy.model_management.get_torch_device()
        comfy.model_management.free_memory(path.stat().st_size * 1.5 if path.is_file() else 3e9, device)
        tagger = clip_tags.load(path, device)
        try:
            captioned, report = caption_dataset(
                dataset, tagger, labels=wanted, max_tags=max_tags, prefix=prefix, suffix=suffix, existing=existing, save_as=save_as,
                progress=progress, poll=events.interrupted)
        finally:
            del tagger
            comfy.model_management.soft_empty_cache()
        if own and fingerprint(dataset.folder, leave_out=own) == others:  # else the user has edited it meanwhile
            dataset_node.written(before, fingerprint(dataset.folder))
        dataset_routes.remember_made(captioned)
        events.show(cls.hidden.unique_id, report)
        return io.NodeOutput(captioned, [captioned.caption(p) for p in captioned.pictures], report)
