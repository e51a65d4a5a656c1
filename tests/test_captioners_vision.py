"""vision_llm on tiny random models that transformers has saved: the same tokens as transformers, asked directly by each model's own classes."""
from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import weakref
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from lora_loom.trainer.captioners import clip_socket, methods, vision_llm
from lora_loom.trainer.captioners.captioning import caption_dataset
from lora_loom.trainer.captioners.options import CaptionOptions
from lora_loom.trainer.captioners.wording import Wording
from lora_loom.trainer.data.folder import read_dataset
from lora_loom.trainer.errors import LoomError
from PIL import Image
from skimage import data

transformers = pytest.importorskip("transformers", minversion="4.56")  # Florence-2 is among its own models from there on
PICTURES = [Image.fromarray(picture) for picture in (data.chelsea(), data.coffee(), data.astronaut())]


def _builders() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loom_vision_models", Path(__file__).with_name("vision_models.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _builders()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("LLM")
    for name in ("blip", "florence2", "qwen2_vl", "llava"):
        getattr(build, name)(home / name)
    return home


ASKED = "describe the cat"
# (model, its class, the instruction of the options, what its own processor is given)
CASES = [
    ("blip", "BlipForConditionalGeneration", "", None),
    ("blip", "BlipForConditionalGeneration", "a photo of", "a photo of"),
    ("florence2", "Florence2ForConditionalGeneration", "", "<MORE_DETAILED_CAPTION>"),
    ("florence2", "Florence2ForConditionalGeneration", "<CAPTION>", "<CAPTION>"),
    ("qwen2_vl", "Qwen2VLForConditionalGeneration", ASKED,
     f"<|im_start|>user <|vision_start|><|image_pad|><|vision_end|>{ASKED}<|im_end|> <|im_start|>assistant "),
    ("llava", "LlavaForConditionalGeneration", ASKED, f"<|im_start|>user <image>{ASKED}<|im_end|> <|im_start|>assistant "),
    ("llava", "LlavaForConditionalGeneration", "", f"<|im_start|>user <image>{vision_llm.INSTRUCTION}<|im_end|> <|im_start|>assistant "),
]


@pytest.mark.parametrize("name, kind, instruction, prompt", CASES)
def test_the_same_tokens_as_transformers(models: Path, name: str, kind: str, instruction: str, prompt: str | None) -> None:
    writer = vision_llm.load(models / name, options=CaptionOptions(instruction=instruction, max_length=8))
    model = getattr(transformers, kind).from_pretrained(models / name).eval()
    processor = transformers.AutoProcessor.from_pretrained(models / name)
    found = []
    for picture in PICTURES:
        inputs = processor(images=picture, return_tensors="pt", **({"text": prompt} if prompt else {}))
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=1)[0]
        if name in ("qwen2_vl", "llava"):
            ids = ids[inputs["input_ids"].shape[1]:]
        assert writer.tokens(picture).tolist() == ids.tolist()
        assert writer.caption(picture) == " ".join(processor.tokenizer.decode(ids, skip_special_tokens=True).split())
        found.append(tuple(ids.tolist()))
    assert len(set(found)) > 1  # the pictures count


def test_an_instruction_changes_what_is_written(models: Path) -> None:
    said = [vision_llm.load(models / "qwen2_vl", options=CaptionOptions(instruction=text, max_length=8)).tokens(PICTURES[0]).tolist() for text in ("describe the cat", "red dog")]
    assert said[0] != said[1]


def test_llava_without_a_chat_template(tmp_path: Path) -> None:
    writer = vision_llm.load(build.llava(tmp_path / "old", template=None), options=CaptionOptions(instruction="describe this", max_length=3))
    assert vision_llm.question("llava", writer.processor, "describe this") == "USER: <image>\ndescribe this ASSISTANT:"
    assert len(writer.tokens(PICTURES[0])) <= 3


@pytest.mark.parametrize("instruction", ["describe the cat", "<OD>", "<REGION_TO_CATEGORY>", "<CAPTION> <OD>"])
def test_florence_has_tasks_of_its_own(models: Path, instruction: str) -> None:
    with pytest.raises(LoomError, match="none of Florence-2's tasks .*<CAPTION>, <DETAILED_CAPTION> or <MORE_DETAILED_CAPTION>"):
        vision_llm.load(models / "florence2", options=CaptionOptions(instruction=instruction))


def test_a_model_without_eyes(models: Path) -> None:
    processor = vision_llm.load(models / "qwen2_vl").processor
    blind = SimpleNamespace(chat_template="{{ messages[0].content.upper() }}", tokenizer=None, image_token="<image>", apply_chat_template=processor.apply_chat_template)
    with pytest.raises(LoomError, match="chat template sets no picture"):
        vision_llm.question("qwen2_vl", blind, "describe")


@pytest.mark.parametrize("text, cut, wanted", [
    ("A cat. It sleeps on", True, "A cat."), ("A cat. It sleeps on", False, "A cat. It sleeps on"), ("a cat at 2.5 m on", True, "a cat at 2.5 m on"),
    ("<think>Well.\n A cat? </think>\n\nA  cat.\n", False, "A cat."), ("一只猫。它在", True, "一只猫。"), ("A cat.", True, "A cat."), ("", True, "")])
def test_answers(text: str, cut: bool, wanted: str) -> None:
    assert vision_llm.answer(text, cut) == wanted


def test_large_pictures_are_made_smaller() -> None:
    assert vision_llm.shrunk(Image.new("RGB", (4000, 1000))).size == (2048, 512)
    assert vision_llm.shrunk(PICTURES[0]) is PICTURES[0] and vision_llm.shrunk(Image.new("RGB", (80000, 1000))).size[1] >= 1


def edited(models: Path, home: Path, config: dict | None = None, name: str = "blip") -> Path:
    shutil.copytree(models / name, home)
    tree = json.loads((home / "config.json").read_text()) | (config or {})
    (home / "config.json").write_text(json.dumps(tree))
    return home


def test_models_that_cannot_be_used(models: Path, tmp_path: Path) -> None:
    remote = {"auto_map": {"AutoModelForCausalLM": "modeling_florence2.Florence2ForConditionalGeneration"}}
    code = edited(models, tmp_path / "code", remote | {"model_type": "florence3"})
    for file in ("modeling_florence2.py", "processing_florence2.py"):
        (code / file).write_text("raise SystemExit('the code of the folder was run')")
    old = edited(models, tmp_path / "old", remote, "florence2")
    from safetensors.torch import load_file, save_file

    weights = load_file(old / "model.safetensors")
    save_file({name.replace("vision_tower.convs.", "vision_tower.old_convs."): value for name, value in weights.items()}, old / "model.safetensors", {"format": "pt"})
    broken, pickled, words = (edited(models, tmp_path / name) for name in ("broken", "pickled", "words"))
    (broken / "model.safetensors").write_bytes(b"nonsense")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    (words / "processor_config.json").unlink()
    for home, said in ((code, "'florence3' wants to run code of its own from the folder, which is never done"), (old, "never run; .*florence-community/Florence-2-base"),
                       (edited(models, tmp_path / "new", {"model_type": "blip9"}), "'blip9' is unknown to this transformers .*update transformers"),
                       (edited(models, tmp_path / "nf4", {"quantization_config": {"quant_method": "bitsandbytes"}}), "is quantized.*bf16 or fp16"),
                       (broken, "'broken' cannot be read"), (pickled, "pytorch_model.bin is a pickle"), (words, "'words'"), (tmp_path / "gone", "is no vision-language model")):
        with pytest.raises(LoomError, match=said):
            vision_llm.load(home)


def test_found_and_told_apart(models: Path) -> None:
    assert list(methods.models("vision_llm", [models])) == ["blip", "florence2", "llava", "qwen2_vl"]
    assert methods.models("wd14", [models]) == methods.models("coca", [models]) == methods.models("clip_tags", [models]) == {}
    with pytest.raises(LoomError, match=r"'Florence-2' is not there: vision_llm takes a model's folder .config.json.*florence-community/Florence-2-base.*: blip, florence2, llava, qwen2_vl"):
        methods.model_path("vision_llm", "Florence-2", [models])


class Interrupt(BaseException):
    pass


def test_a_cancel_in_the_middle_of_a_text_keeps_what_is_done_and_leaves_nothing(models: Path, tmp_path: Path) -> None:
    for name, picture in zip("abc", PICTURES):
        picture.resize((96, 96)).save(tmp_path / f"{name}.png")
    dataset = read_dataset(tmp_path, min_size=64)
    living: list[weakref.ref] = []
    polls: list[int] = []

    def load() -> vision_llm.Writer:
        writer = vision_llm.load(models / "llava", options=CaptionOptions(max_length=6))
        living.extend(weakref.ref(value) for value in (*writer.model.parameters(), *writer.model.buffers()))
        return writer

    def poll() -> None:
        polls.append(1)
        if len(polls) == 11:  # 1 + 6 for the first picture at most; in the second's text
            raise Interrupt

    with pytest.raises(Interrupt) as kept, methods.opened(load) as writer:
        whole = writer.caption(dataset.pictures[0].path and PICTURES[0].resize((96, 96)))
        caption_dataset(dataset, writer, Wording(prefix="zxmug"), save_as="sidecar .txt", poll=poll)
    assert kept.value and len(living) > 20 and not any(ref() is not None for ref in living)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == f"zxmug, {whole}\n" and not (tmp_path / "b.txt").exists()


# ---------------------------------------------------------------- a CLIP of ComfyUI's

class Clip:
    """As ComfyUI's CLIP that reads pictures: tokens hold the picture, ids are decoded to text."""

    def __init__(self, eyes: bool = True, failure: type[Exception] | None = None) -> None:
        self.eyes, self.failure, self.asked = eyes, failure, {}

    def tokenize(self, text: str, image: torch.Tensor | None = None, **options: object) -> dict:
        self.asked = {"text": text, "image": image, **options}
        return {"qwen3vl_4b": [[(7, 1.0), ({"type": "image", "data": image} if self.eyes else 8, 1.0)]]}

    def generate(self, tokens: dict, do_sample: bool = True, max_length: int = 256) -> list[int]:
        if self.failure:
            raise self.failure("'CLIPTextModel' object has no attribute 'generate'")
        self.asked |= {"do_sample": do_sample, "max_length": max_length}
        return [1, 2, 3]

    def decode(self, ids: list[int]) -> str:
        return "<think>\n\n</think>\n\nA cat.\nIt sleeps"


def test_a_clip_that_writes() -> None:
    clip = Clip()
    assert clip_socket.load(clip, CaptionOptions(instruction="say it", max_length=9)).caption(PICTURES[0]) == "A cat. It sleeps"
    assert clip.asked["text"] == "say it" and clip.asked["do_sample"] is False and clip.asked["max_length"] == 9 and clip.asked["thinking"] is False
    np.testing.assert_array_equal((clip.asked["image"][0] * 255).round().byte().numpy(), np.asarray(PICTURES[0]))
    assert clip_socket.load(clip, CaptionOptions(max_length=3)).caption(PICTURES[0]) == "A cat."  # cut short


@pytest.mark.parametrize("clip, words", [
    (SimpleNamespace(tokenize=None, encode=None), "this ComfyUI is too old"), (Clip(eyes=False), "reads no pictures: connect a CLIP that reads"),
    (Clip(failure=AttributeError), "writes no text .*no attribute 'generate'"), (Clip(failure=NotImplementedError), "writes no text")])
def test_a_clip_that_cannot(clip: object, words: str) -> None:
    with pytest.raises(LoomError, match=words):
        clip_socket.load(clip, CaptionOptions()).caption(PICTURES[0])
