"""Prompts inside picture files: as ComfyUI and A1111 write them, and as nobody should."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from lora_loom.trainer.data.embedded import prompt_of
from lora_loom.trainer.data.folder import read_dataset
from PIL import Image
from PIL.PngImagePlugin import PngInfo

GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 1, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red cat,\n on a mat", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
}
FLUX = {
    "13": {"class_type": "SamplerCustomAdvanced", "inputs": {"noise": ["25", 0], "guider": ["22", 0], "latent_image": ["27", 0]}},
    "22": {"class_type": "BasicGuider", "inputs": {"model": ["30", 0], "conditioning": ["26", 0]}},
    "26": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["6", 0]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["40", 0], "clip": ["11", 0]}},
    "40": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "a fox in snow"}},
}
A1111 = "a castle, <lora:style:0.8> at night\nwide shot\nNegative prompt: people\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"


def png(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (64, 64), "red").save(path, pnginfo=info)
    return path


@pytest.mark.parametrize("texts,wanted", [
    ({"prompt": json.dumps(GRAPH)}, "a red cat, on a mat"),
    ({"prompt": json.dumps(FLUX), "workflow": "{}"}, "a fox in snow"),
    ({"prompt": json.dumps({"3": GRAPH["3"], "6": {"class_type": "CLIPTextEncodeSDXL", "inputs": {"text_g": "wide", "text_l": "thin"}}})}, "wide"),
    ({"parameters": A1111}, "a castle, at night wide shot"),
    ({"parameters": "only a prompt"}, "only a prompt"),
    ({"parameters": "Negative prompt: bad\nSteps: 3, Seed: 1"}, ""),
    ({"parameters": A1111, "prompt": json.dumps(GRAPH)}, "a castle, at night wide shot"),
    ({"prompt": "{broken"}, ""), ({"prompt": "[1, 2]"}, ""), ({"prompt": "{}"}, ""), ({"prompt": "[" * 100_000}, ""),
    ({"prompt": json.dumps({"1": {"class_type": "KSampler", "inputs": {"positive": ["1", 0]}}})}, ""),  # a circle
    ({"prompt": json.dumps({"1": {"class_type": "KSampler", "inputs": {"positive": ["9", 0]}}, "2": 3, "3": {"inputs": []}})}, ""),
    ({"Comment": "a cat"}, ""), ({}, ""),
])
def test_prompts_in_png(tmp_path: Path, texts: dict[str, str], wanted: str) -> None:
    png(tmp_path / "a.png", **texts)
    dataset = read_dataset(tmp_path, resolution=64, min_size=32)
    assert dataset.pictures[0].caption == wanted and dataset.caption_source == ("embedded" if wanted else "none")


def test_jpeg_and_webp_hold_a1111s_parameters_in_exif(tmp_path: Path) -> None:
    for name, encoding in (("a.jpg", "utf-16-be"), ("b.webp", "utf-16-le")):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode(encoding)
        Image.new("RGB", (64, 64), "red").save(tmp_path / name, exif=exif.tobytes())
    assert [p.caption for p in read_dataset(tmp_path, resolution=64, min_size=32).pictures] == ["a castle, at night wide shot"] * 2
    assert prompt_of({"exif": b"UNICODE\0\xff"}) == prompt_of({"exif": 3}) == prompt_of({"parameters": 4}) == ""


def test_what_people_wrote_goes_before_it(tmp_path: Path) -> None:
    home = tmp_path / "3_zxc mug"
    home.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        png(home / name, **({} if name == "c.png" else {"parameters": A1111}))
    (home / "a.txt").write_text("by hand")
    found = {p.name: p.caption for p in read_dataset(tmp_path, resolution=64, min_size=32).pictures}
    assert found == {"3_zxc mug/a.png": "by hand", "3_zxc mug/b.png": "a castle, at night wide shot", "3_zxc mug/c.png": "zxc mug"}
    assert {p.caption for p in read_dataset(tmp_path, resolution=64, min_size=32, caption_source="embedded").pictures} == {"a castle, at night wide shot", ""}
    assert {p.caption for p in read_dataset(tmp_path, resolution=64, min_size=32, caption_source="sidecar").pictures} == {"by hand", ""}
