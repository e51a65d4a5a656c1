"""AutoCaption: captions for the pictures of a dataset, by a model from a local folder or by a connected CLIP."""
from __future__ import annotations

import comfy.model_management

from ..trainer.captioners import clip_socket, methods
from ..trainer.captioners.captioning import SAVE_AS, caption_dataset, check_save_as, written_files
from ..trainer.captioners.labels import DEFAULT, parse_groups
from ..trainer.captioners.options import CaptionOptions
from ..trainer.captioners.vision_llm import INSTRUCTION
from ..trainer.captioners.wording import EXISTING, Wording, parse_ban, parse_replace
from ..trainer.data.folder import fingerprint
from ..trainer.errors import LoomError
from . import dataset as dataset_node
from . import dataset_routes, events, folders
from .schema import NONE, Dataset, io, output, schema, widget

_OPTIONS = CaptionOptions()
_ROOM = 1.2, 2**30  # activations beside the weights: a share of them, and bytes


class AutoCaption(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        rare = {"optional": True, "advanced": True}
        return schema(
            "AutoCaption", "Auto Caption",
            search_aliases=["caption", "tagger", "clip interrogator", "tag", "wd14", "florence", "joycaption", "blip",
                            "打标", "反推", "标注", "标签", "提示词", "训练"],
            description="Writes captions for a dataset's pictures, with a model from ComfyUI's models folder. Nothing is downloaded.",
            inputs=[
                widget(Dataset, "dataset", tooltip="The pictures to caption: Load Dataset's, or what Filter Dataset has left."),
                widget(io.Combo, "method", options=list(methods.METHODS), default="clip_tags",
                       tooltip="clip_tags: the labels that fit best. coca: a short sentence. wd14: Danbooru tags. "
                               "vision_llm: a text as instructed, by Florence-2, BLIP, Qwen-VL, JoyCaption and the like."),
                widget(io.Combo, "model", options=[*methods.local_models(folders.caption_models()), NONE],
                       tooltip="A model in models/open_clip (clip_tags, coca), models/captioners (wd14) or models/LLM (vision_llm). "
                               "none: vision_llm by the CLIP connected to clip."),
                widget(io.String, "labels", default=DEFAULT, multiline=True, placeholder="@medium, @style \u2026, or a group a line: cat, dog, bird",
                       tooltip="For clip_tags. @medium and the like are lists that come along. Your own: a group of words a line, which compete with each "
                               "other; animal: cat, dog names a group, animal max=1 threshold=0.3: cat, dog limits it. Empty: all lists."),
                widget(io.Int, "max_tags", default=8, min=1, max=100, tooltip="At most this many tags a picture, the likeliest. 20 to 40 suit wd14."),
                widget(io.String, "prefix", default="", tooltip="Put in front of every caption."),
                widget(io.String, "suffix", default="", tooltip="Put behind every caption."),
                widget(io.Combo, "existing", options=list(EXISTING), default="keep", tooltip="What to do with captions that are there already."),
                widget(io.Combo, "save_as", options=list(SAVE_AS), default="nothing",
                       tooltip="Also write the captions to the folder. What was there is kept as .bak."),
                widget(io.Clip, "clip", optional=True,
                       tooltip="For vision_llm, in place of a model: a CLIP that reads pictures and writes text, such as Qwen3-VL or Gemma."),
                widget(io.String, "instruction", default="", multiline=True, optional=True, placeholder=f"instruction for vision_llm: {INSTRUCTION}",
                       tooltip="For vision_llm: what to write. Florence-2 takes <CAPTION>, <DETAILED_CAPTION> or <MORE_DETAILED_CAPTION>; BLIP the beginning "
                               "of the caption. Empty: the model's own way."),
                widget(io.Int, "max_length", default=_OPTIONS.max_length, min=1, max=4096, **rare,
                       tooltip="For coca and vision_llm: at most this many tokens a caption; a text that is cut short ends with its last whole sentence."),
                widget(io.String, "ban", default="", multiline=True, **rare,
                       tooltip="Tags to leave out, with commas; * stands for anything. Of texts, sentences with these words are left out."),
                widget(io.String, "replace", default="", multiline=True, **rare, placeholder="grey => gray",
                       tooltip="Replacements, one a line: old => new. Tags are replaced whole, in texts words and phrases are. Nothing behind => removes."),
                widget(io.Int, "group_max_tags", default=_OPTIONS.group_max_tags, min=1, max=100, **rare,
                       tooltip="For clip_tags: at most this many labels of a group."),
                widget(io.Float, "group_threshold", default=_OPTIONS.group_threshold, min=0.0, max=1.0, step=0.01, **rare,
                       tooltip="For clip_tags: labels less likely than this within their group are left out."),
                widget(io.Float, "general_threshold", default=_OPTIONS.general_threshold, min=0.0, max=1.0, step=0.01, **rare,
                       tooltip="For wd14: general tags less likely than this are left out."),
                widget(io.Float, "character_threshold", default=_OPTIONS.character_threshold, min=0.0, max=1.0, step=0.01, **rare,
                       tooltip="For wd14: characters less likely than this are left out."),
                widget(io.Boolean, "character_tags", default=_OPTIONS.character_tags, **rare, tooltip="For wd14: name the characters it knows."),
                widget(io.Boolean, "rating_tags", default=_OPTIONS.rating_tags, **rare,
                       tooltip="For wd14: add the rating: general, sensitive, questionable or explicit."),
            ],
            outputs=[output(Dataset, "dataset"), output(io.String, "captions", is_output_list=True), output(io.String, "report")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, method=None, model=None) -> bool | str:
        return events.verdict(lambda name: _check_model(method, name), model)

    @classmethod
    @events.errors_shown
    def execute(cls, dataset, method, model, labels, max_tags, prefix, suffix, existing, save_as, clip=None, ban="", replace="", **options) -> io.NodeOutput:
        wording = Wording(prefix, suffix, existing, max_tags, parse_ban(ban or ""), parse_replace(replace or ""))
        told = CaptionOptions(labels=labels, **{name: value for name, value in options.items() if value is not None})
        parse_groups(labels if method == "clip_tags" else "")
        check_save_as(dataset, save_as)
        own = written_files(dataset, save_as)
        before, others = fingerprint(dataset.folder), fingerprint(dataset.folder, leave_out=own)
        try:
            with methods.opened(_loader(method, model, clip, told)) as captioner:
                captioned, report = caption_dataset(dataset, captioner, wording, save_as=save_as, poll=events.interrupted,
                                                    progress=events.counter(cls.hidden.unique_id, "captioning pictures"), keep=dataset_routes.remember_made)
        finally:
            comfy.model_management.soft_empty_cache()
        if own and fingerprint(dataset.folder, leave_out=own) == others:  # else the user has edited it meanwhile
            dataset_node.written(before, fingerprint(dataset.folder))
        events.show(cls.hidden.unique_id, report)
        return io.NodeOutput(captioned, [captioned.caption(p) for p in captioned.pictures], report)


def _check_model(method: str | None, model: str) -> None:
    """Before anything runs. Whether a CLIP is connected is not known here, so vision_llm's `none` waits for execute, as a linked method does."""
    if method is not None and (method, model) != ("vision_llm", NONE):
        methods.model_path(method, model, folders.caption_models())


def _loader(method: str, model: str, clip, options: CaptionOptions):
    """What loads the captioner, after ComfyUI has made room for it."""
    if method == "vision_llm" and clip is not None:
        return lambda: clip_socket.load(clip, options)
    if (method, model) == ("vision_llm", NONE):
        wanted = methods.METHODS[method]
        raise LoomError(f"model is {NONE} and no CLIP is connected: put {wanted.wants} into models/{wanted.home} (from {wanted.source}), "
                        "refresh the page and choose it; or connect a CLIP that reads pictures and writes text, such as Qwen3-VL, to AutoCaption.clip")
    path = methods.model_path(method, model, folders.caption_models())
    device = comfy.model_management.get_torch_device()

    def load():
        comfy.model_management.free_memory(methods.size(path) * _ROOM[0] + _ROOM[1], device)
        return methods.method(method).load(path, device, options)

    return load
