"""Datasets in a real ComfyUI: variants are shown and trained on, a second run finds everything encoded, an edited picture alone is encoded again."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
from lora_loom.trainer.toy import stars
from PIL import Image

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")


@pytest.fixture(scope="module")
def comfy(comfy_path: Path, tmp_path_factory: pytest.TempPathFactory):
    with host.Comfy(comfy_path, tmp_path_factory.mktemp("datasets")) as server:
        yield server


def graph(folder: str, name: str, augment: dict | None = None, **dataset) -> dict:
    base = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2]}
    found = {
        "1": {"class_type": "ToyBase", "inputs": {}},
        "2": {"class_type": "LoadDataset", "inputs": {"folder": folder, "resolution": 64, "min_size": 32, "caption_source": "auto", "trigger_word": "zxc",
                                                      "repeats": 1, "flip": False, "buckets": True, **dataset}},
        "4": {"class_type": "LoRAConfig", "inputs": {"preset": "quick look", "rank": 2, "shuffle_tags": True, "caption_variants": 3}},
        "5": {"class_type": "TrainLoRA", "inputs": {**base, "dataset": ["2", 0], "config": ["4", 0], "steps": 2, "epochs": 0, "learning_rate": 1e-4,
                                                    "batch_size": 2, "seed": 0, "name": name}},
    }
    if augment is not None:
        off = dict.fromkeys(("flip", "crop", "rotation", "brightness", "contrast", "hue"), 0.0)
        found["3"] = {"class_type": "AugmentDataset", "inputs": {"dataset": ["2", 0], **off, "variants": 3, "seed": 0, **augment}}
        found["5"]["inputs"]["dataset"] = ["3", 0]
    return found


def pictures(comfy, name: str, count: int = 3, side: int = 128) -> Path:
    folder = stars.write(comfy.base / "input" / name, count)
    for path in folder.glob("*.png"):
        Image.open(path).resize((side, side)).save(path)
    return folder


def encoded(comfy) -> tuple[int, int]:
    """(made, taken from the cache) of the last run, from the server's log."""
    return tuple(map(int, re.findall(r"(\d+) pictures and captions encoded, (\d+) taken from the cache", comfy.text())[-1]))


def test_a_second_run_encodes_only_what_changed(comfy) -> None:
    folder = pictures(comfy, "鸟 set")
    assert comfy.run(graph("鸟 set", "one")).ending == "execution_success"
    made, found = encoded(comfy)
    assert made >= 3 + 2 and found == 0
    assert comfy.run(graph("鸟 set", "two")).ending == "execution_success"
    assert encoded(comfy) == (0, made)
    Image.new("RGB", (80, 80), "navy").save(sorted(folder.glob("*.png"))[1])
    again = comfy.run(graph("鸟 set", "three"))
    assert again.ending == "execution_success" and {"2", "5"} <= set(again.executed) and encoded(comfy) == (1, made - 1)
    assert (comfy.base / "output" / "lora_loom" / ".cache").is_dir()


def test_variants_are_shown_and_trained_on(comfy) -> None:
    pictures(comfy, "varied")
    outcome = comfy.run(graph("varied", "varied", {"rotation": 10.0, "hue": 90.0}, more_resolutions="96、128"))
    assert outcome.ending == "execution_success", outcome.error
    assert len(outcome.history["outputs"]["3"]["images"]) == 3 * 3 and any("3 variants of each picture, rotation 10, hue 90" in text for text in outcome.texts)
    assert sum(encoded(comfy)) >= 3 * 3 * 3  # pictures, variants, resolutions; the plain ones may be known from the test before
    plan = (comfy.base / "output" / "lora_loom" / "varied" / "dataset.txt").read_text(encoding="utf-8")
    assert "trained at 64 + 96 + 128" in plan and "augmented: 3 variants" in plan and re.search(r"128x128: 3.*96x96: 3|96x96: 3.*128x128: 3", plan)


@pytest.mark.parametrize("augment,dataset,words", [
    ({"variants": 99}, {}, "99"), ({"rotation": 40.0}, {}, "40"), (None, {"more_resolutions": "768; 1024"}, "more_resolutions '768; 1024' is no list of numbers"),
    (None, {"more_resolutions": "9"}, "more_resolutions 9 is below 64"),
])
def test_what_cannot_be_is_named(comfy, augment: dict | None, dataset: dict, words: str) -> None:
    if not (comfy.base / "input" / "plain").is_dir():
        pictures(comfy, "plain")
    outcome = comfy.run(graph("plain", "never", augment, **dataset))
    assert outcome.ending != "execution_success" and words in outcome.error
    assert not (comfy.base / "output" / "loras" / "never.safetensors").exists()
