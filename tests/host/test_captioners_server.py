"""AutoCaption's methods in a real ComfyUI, the newest and the oldest: models found, told apart, run, and let go."""
from __future__ import annotations

import json
import re

import pytest

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")
pages = pytest.importorskip("loom_host_pages", reason="needs websocket-client, from the extra `test`")
pytest.importorskip("transformers", minversion="4.56")
from lora_loom.trainer.toy import stars  # noqa: E402

workflows = pages.workflows


@pytest.fixture(scope="module", params=["newest", "oldest"])
def comfy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    path, site = host.asked_for(request)
    base = tmp_path_factory.mktemp("captioners") / "base"
    taggers = host.by_path("loom_test_captioners_models", host.PACK / "tests" / "test_captioners_models.py")
    taggers.write_tags(taggers.write_timm(base / "models" / "captioners" / "wd") / "selected_tags.csv")
    host.by_path("loom_vision_models", host.PACK / "tests" / "vision_models.py").blip(base / "models" / "LLM" / "blip")
    (base / "input" / "pictures").mkdir(parents=True)
    stars.write(base / "input" / "pictures", count=3)
    (base / "input" / "pictures" / "metadata.csv").unlink()
    with host.Comfy(path, base, site) as server:
        yield server


def captioning(**changes: object) -> dict:
    graph = workflows.caption()
    graph["1"]["inputs"].update(folder="pictures", resolution=64, min_size=64)
    graph["3"]["inputs"].update(labels="", save_as="nothing", **changes)
    graph["5"] = workflows.node("PreviewAny", source=["3", 1])
    return graph


def captions(outcome) -> str:
    assert outcome.ending == "execution_success", outcome.error
    return "".join(outcome.history["outputs"]["5"]["text"])


def test_models_of_every_method_are_listed(comfy) -> None:
    node = comfy.get("/object_info/AutoCaption")["AutoCaption"]["input"]
    assert all(name in json.dumps(node["required"]["model"]) for name in ("wd", "blip", "none"))
    assert list(node["required"]) == ["dataset", "method", "model", "labels", "max_tags", "prefix", "suffix", "existing", "save_as"]  # as older workflows have them


def test_tags_and_texts(comfy) -> None:
    """With the inputs of older workflows alone, and with the newer ones."""
    tags = captions(comfy.run(captioning(method="wd14", model="wd", max_tags=3)))
    assert any(tag in tags for tag in ("1girl", "long hair", "solo", "some one (series)"))
    assert "long_hair" not in tags
    bare = captions(comfy.run(captioning(method="wd14", model="wd", max_tags=9, general_threshold=0.0, character_tags=False, ban="*hair", replace="solo => alone", prefix="zx")))
    assert bare.count("alone") == 3 and "hair" not in bare and "some one" not in bare and bare.count("zx, ") == 3
    text = captions(comfy.run(captioning(method="vision_llm", model="blip", instruction="a photo of", max_length=4)))
    assert text.count("photo") >= 3


def test_what_does_not_fit_is_told_before_anything_runs(comfy) -> None:
    outcome = comfy.run(captioning(method="wd14", model="blip"))
    assert "'blip' is for vision_llm, not for wd14" in outcome.error and "selected_tags.csv" in outcome.error and "3" not in outcome.executed
    assert "method 'magic' is unknown" in comfy.run(captioning(method="magic", model="blip")).error
    for changes, words in (({"model": "none"}, "no CLIP is connected: put "), ({"model": "none", "clip": ["9", 1]}, "CLIP reads no pictures|ComfyUI is too old"), ({"model": "blip", "replace": "x"}, "no replacement"),
                           ({"model": "blip", "max_length": 0}, "max_length")):
        graph = captioning(method="vision_llm", **changes)
        graph["9"] = workflows.node("ToyBase")
        assert re.search(words, comfy.run(graph).error), changes
    assert "zx, " in captions(comfy.run(captioning(method="wd14", model="wd", prefix="zx", general_threshold=0.1)))  # a good run follows
