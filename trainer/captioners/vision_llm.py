"""Texts by a vision-language model from a local folder as transformers saves it: Florence-2, BLIP, BLIP-2, Qwen-VL, LLaVA, JoyCaption and their kin.

Each is asked in its own way by its own processor. Code that lies in the folder is never run, and nothing is looked up by name.
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import LoomError
from .options import CaptionOptions

INSTRUCTION = "Write a descriptive caption for this image in one paragraph."  # for models that follow one, where the user gives none
FLORENCE_TASK = "<MORE_DETAILED_CAPTION>"
MAX_PIXELS = 1024 * 1024  # more makes thousands of tokens of a photograph, and tells captions nothing
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")


@dataclass
class Writer:
    """A loaded model with its processor."""

    model: Any
    processor: Any
    options: CaptionOptions
    device: torch.device

    @torch.no_grad()
    def tokens(self, image: Image.Image, poll: Callable[[], object] | None = None) -> torch.Tensor:
        """The ids that it writes about the picture, greedily, on the CPU; without those of the question. Polls before every token."""
        image = shrunk(image.convert("RGB"))
        text = question(self.model.config.model_type, self.processor, self.options.instruction.strip())
        inputs = self.processor(images=image, return_tensors="pt", **({"text": text} if text else {})).to(self.device, self.model.dtype)
        ids = self.model.generate(**inputs, max_new_tokens=self.options.max_length, do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None,
                                  stopping_criteria=[_Polls(poll)] if poll is not None else None)[0].cpu()
        asked = inputs["input_ids"][0].cpu() if "input_ids" in inputs else ids[:0]
        # What BLIP is given is the beginning of its caption; other models' answers come with the question in front or without it.
        return ids if self.model.config.model_type == "blip" or not ids[:len(asked)].equal(asked) else ids[len(asked):]

    def caption(self, image: Image.Image, poll: Callable[[], object] | None = None) -> str:
        ids = self.tokens(image, poll)
        text = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return answer(text, len(ids) >= self.options.max_length)

    def close(self) -> None:
        self.model.to("meta")
        self.model = None  # some modules keep tensors that `to` does not know


class _Polls:
    """As transformers' StoppingCriteria: never stops, but lets an interrupt through."""

    def __init__(self, poll: Callable[[], object]) -> None:
        self.poll = poll

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.poll()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def shrunk(image: Image.Image) -> Image.Image:
    """The picture at no more than MAX_PIXELS, its shape kept."""
    scale = (MAX_PIXELS / (image.width * image.height)) ** 0.5
    return image if scale >= 1 else image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS)


def answer(text: str, cut_short: bool) -> str:
    """The caption alone, on one line: without a model's thoughts, and whole sentences only where the length has cut it short."""
    text = " ".join(re.sub(r"^.*</think>", "", text, flags=re.DOTALL).split())
    whole = re.match(r".*[.!?](?=\s)|.*[.!?]$|.*[\u3002\uff01\uff1f]", text) if cut_short else None
    return whole[0] if whole else text


def question(kind: str, processor: Any, instruction: str) -> str:
    """The prompt for a model of that type; "" where it wants none. Raises LoomError for an instruction that the model cannot follow."""
    if kind == "florence2":
        task = instruction or FLORENCE_TASK
        known = getattr(processor, "tasks_answer_post_processing_type", {})
        if not re.fullmatch(r"<[A-Z_]+>", task) or known.get(task, "pure_text") != "pure_text" or task.startswith("<REGION_"):
            raise LoomError(f"instruction {instruction!r} is none of Florence-2's tasks that give a caption: leave AutoCaption.instruction empty, or write "
                            "<CAPTION>, <DETAILED_CAPTION> or <MORE_DETAILED_CAPTION>")
        return task
    template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if template:
        return _chat(processor, str(getattr(processor, "image_token", "")), instruction or INSTRUCTION, template)
    if kind.startswith(("llava", "vipllava", "video_llava")):  # exports from before chat templates
        return f"USER: {processor.image_token}\n{instruction or INSTRUCTION} ASSISTANT:"
    return instruction  # BLIP and its kin: the beginning of the caption, or a question as BLIP-2 was taught it


def _chat(processor: Any, image_token: str, instruction: str, template: Any) -> str:
    """The chat template's prompt. Some templates, JoyCaption's among them, want plain text and set the picture by themselves."""
    parts = [{"type": "image"}, {"type": "text", "text": instruction}]
    for content in (parts, instruction, f"{image_token}\n{instruction}"):
        try:
            text = processor.apply_chat_template([{"role": "user", "content": content}], chat_template=template, tokenize=False, add_generation_prompt=True)
        except Exception:  # jinja's own, about parts where text is wanted
            continue
        if instruction in text and "'type':" not in text and (not image_token or image_token in text):
            return text
    raise LoomError("the model's chat template sets no picture: it may be a language model without eyes; take one that reads pictures, such as Qwen2.5-VL")


def fits(path: Path) -> bool:
    """A folder with config.json, a processor's settings and safetensors, as transformers saves a model; taggers and open_clip's are others'."""
    return (path.is_dir() and (path / "config.json").is_file() and any((path / name).is_file() for name in _WEIGHTS)
            and any((path / name).is_file() for name in _PROCESSORS))


def load(path: str | Path, device: torch.device | str = "cpu", options: CaptionOptions | None = None) -> Writer:
    """A Writer from a folder that transformers has saved. Raises LoomError for a model that it does not know or that would have to run code."""
    folder, device, options = Path(path), torch.device(device), options or CaptionOptions()
    tree = _config(folder)
    try:
        import transformers
    except ImportError:
        raise LoomError("method vision_llm needs transformers, which is not installed: install it (pip install transformers), or take another method") from None
    if tree["model_type"] not in transformers.CONFIG_MAPPING:
        code = "wants to run code of its own from the folder, which is never done" if tree.get("auto_map") else "is unknown to this transformers"
        raise LoomError(f"model {folder.name!r} of type {tree['model_type']!r} {code} ({transformers.__version__}): update transformers, "
                        "or take an export that transformers knows by itself")
    family = getattr(transformers, "AutoModelForImageTextToText", None) or transformers.AutoModelForVision2Seq
    local = {"local_files_only": True, "trust_remote_code": False}
    dtype = "dtype" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 56) else "torch_dtype"
    try:
        processor = transformers.AutoProcessor.from_pretrained(str(folder), **local)
        model, info = family.from_pretrained(str(folder), use_safetensors=True, output_loading_info=True, **{dtype: _dtype(device)}, **local)
    except Exception as error:
        raise _unreadable(folder, tree, error) from error
    if info["missing_keys"] or info["mismatched_keys"]:  # transformers fills them with random numbers
        names = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise _unreadable(folder, tree, f"its weights lack {len(names)} tensors, the first {names[0]}")
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise LoomError(f"model {folder.name!r} has no processor for pictures and words together: copy {' or '.join(_PROCESSORS)} and the tokenizer's files "
                        "from where the weights came from")
    question(model.config.model_type, processor, options.instruction.strip())  # an instruction that it cannot follow is told before the first picture
    return Writer(model.to(device).eval().requires_grad_(False), processor, options, device)


def _config(folder: Path) -> dict:
    if not (folder / "config.json").is_file() or not any((folder / name).is_file() for name in _WEIGHTS):
        pickles = sorted(p.name for p in folder.glob("*.bin")) if folder.is_dir() else []
        why = f"; {pickles[0]} is a pickle, which can run code when it is opened" if pickles else ""
        raise LoomError(f"model {folder.name!r} is no vision-language model as transformers saves it (config.json with model.safetensors, and the "
                        f"processor's files){why}: copy the whole folder, its weights as safetensors")
    try:
        tree = json.loads((folder / "config.json").read_text("utf-8-sig"))
        if not isinstance(tree["model_type"], str):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        raise LoomError(f"config.json of model {folder.name!r} names no model_type: copy it again from where the weights came from") from None
    if tree.get("quantization_config"):
        raise LoomError(f"model {folder.name!r} is quantized, as its config.json says, which needs code of other packages: take the same model in bf16 or fp16")
    return tree


def _unreadable(folder: Path, tree: dict, error: object) -> LoomError:
    said = " ".join(str(error).split())[:300]
    remedy = "copy the whole folder again from where it came from, or update transformers"
    if tree.get("auto_map"):  # Microsoft's first exports of Florence-2 are of this kind
        remedy = ("the folder is an export that brings code of its own, which is never run; take the export for transformers itself"
                  + (", such as florence-community/Florence-2-base" if tree["model_type"] == "florence2" else ""))
    return LoomError(f"model {folder.name!r} cannot be read ({said}): {remedy}")


def _dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if device.type != "cuda" or torch.cuda.is_bf16_supported() else torch.float16
