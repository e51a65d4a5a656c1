"""The nodes in a real ComfyUI server: one server, spoken to as its page and its API users do."""
from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")
pages = pytest.importorskip("loom_host_pages", reason="needs websocket-client, from the extra `test`")
import torch  # noqa: E402
from lora_loom.trainer.config import LoomConfig  # noqa: E402
from lora_loom.trainer.runs import record  # noqa: E402
from lora_loom.trainer.runs.held import Hold  # noqa: E402
from lora_loom.trainer.toy import stars  # noqa: E402
from lora_loom.trainer.toy.demo import CONFIG as DEMO  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

PACK = host.PACK


workflows = pages.workflows

# A node pack of the tests' own: what a checkpoint without VAE or CLIP hands out.
NOTHING = """
class Nothing:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP", "VAE"), "give", "test"

    def give(self):
        return (None, None, None)

NODE_CLASS_MAPPINGS = {"LoomTestNothing": Nothing}
"""


def prepare(base: Path) -> Path:
    """A base folder with the tests' node pack and a LoRA that makes every number NaN."""
    (base / "custom_nodes").mkdir(parents=True)
    (base / "custom_nodes" / "loom_test_nothing.py").write_text(NOTHING)
    (base / "models" / "loras").mkdir(parents=True)
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    wide = workflow_width()
    save_file({f"{key}.lora_down.weight": torch.full((1, wide), torch.nan), f"{key}.lora_up.weight": torch.ones(wide, 1),
               f"{key}.alpha": torch.tensor(1.0)}, base / "models" / "loras" / "poison.safetensors")
    return base


def workflow_width() -> int:
    from lora_loom.trainer.toy import arch

    return arch.UNET["block_out_channels"][next(i for i, kind in enumerate(arch.UNET["down_block_types"]) if "CrossAttn" in kind)]


@pytest.fixture(scope="module")
def comfy(comfy_path: Path, tmp_path_factory: pytest.TempPathFactory):
    with host.Comfy(comfy_path, prepare(tmp_path_factory.mktemp("server") / "基 base")) as server:
        yield server


def toy(steps: int = 8, **changes: dict) -> dict:
    """The example workflow, short; `toy(n5={"name": "x"})` changes inputs of node 5."""
    graph = workflows.toy()
    graph["5"]["inputs"]["steps"] = steps
    graph["7"]["inputs"].update(steps=3, prompt="a red star on a blue background\na red circle on a blue background")
    graph["11"]["inputs"]["steps"] = 3
    for name, values in changes.items():
        graph[name[1:]]["inputs"].update(values)
    return graph


def training(folder: str = "lora_loom_stars", steps: int = 2, config: dict | None = None, dataset: dict | None = None, **train) -> dict:
    """Only what TrainLoRA needs, with TrainLoRA as node 5."""
    whole = toy(steps, n2={"folder": folder, **(dataset or {})}, n4={"preservation": 0.0, **(config or {})}, n5={"name": "small", "sample_steps": 0, **train})
    return {key: whole[key] for key in ("1", "2", "4", "5")}


def well(outcome) -> None:
    assert outcome.ending == "execution_success", outcome.error


_seed = iter(range(1000, 10_000))


def good_run(comfy) -> None:
    """A training that cannot come from the cache."""
    outcome = comfy.run(training(steps=1, seed=next(_seed)))
    well(outcome)
    assert "5" in outcome.executed


def folder_of(comfy, name: str) -> Path:
    path = comfy.base / "input" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def lora_file(comfy, name: str) -> Path:
    return comfy.base / "output" / "loras" / f"{name}.safetensors"


INPUTS = {
    "LoadDataset": {"folder": ..., "resolution": 512, "min_size": 512, "caption_source": "auto", "trigger_word": "", "repeats": 1, "flip": False, "buckets": True},
    "AutoCaption": {"dataset": ..., "method": "clip_tags", "model": ..., "labels": ..., "max_tags": 8, "prefix": "", "suffix": "", "existing": "keep", "save_as": "nothing"},
    "LoRAConfig": {"preset": "default", "rank": 16, "alpha": 16, "dropout": 0, "algorithm": "lora", "targets": "attention", "train_text_encoder": False,
                   "optimizer": "adamw", "scheduler": "constant_with_warmup"},
    "TrainLoRA": {"model": ..., "clip": ..., "vae": ..., "dataset": ..., "config": ..., "steps": ..., "epochs": 0, "learning_rate": 1e-4, "batch_size": 1, "seed": 0, "name": ...},
    "PreviewSample": {"model": ..., "clip": ..., "vae": ..., "prompt": "", "negative": "", "seed": 0, "steps": ..., "cfg": ..., "sampler_name": ..., "scheduler": ...,
                      "width": 512, "height": 512, "base_model": ...},
    "ToyBase": {},
}
OUTPUTS = {
    "LoadDataset": {"dataset": "TRAIN_DATASET", "images": "IMAGE", "report": "STRING"},
    "AutoCaption": {"dataset": "TRAIN_DATASET", "captions": "STRING", "report": "STRING"},
    "LoRAConfig": {"config": "LORA_CONFIG"},
    "TrainLoRA": {"model": "MODEL", "clip": "CLIP", "lora": "LORA_MODEL", "loss": "LOSS_MAP", "path": "STRING"},
    "PreviewSample": {"images": "IMAGE"},
    "ToyBase": {"model": "MODEL", "clip": "CLIP", "vae": "VAE"},
}


def check_nodes(info: dict) -> None:
    for kind, wanted in INPUTS.items():
        node = info[kind]
        found = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        assert set(wanted) <= set(found), kind
        for name, default in wanted.items():
            if default is not ...:
                assert found[name][1].get("default") == default, (kind, name)
        assert dict(zip(node["output_name"], node["output"], strict=True)) == OUTPUTS[kind]
        assert node["category"] == "LoRA Loom"
        assert node["output_node"] == (kind in ("TrainLoRA", "PreviewSample")), kind
    assert info["LoadDataset"]["output_is_list"] == [False, True, False]
    assert info["AutoCaption"]["output_is_list"] == [False, True, False]


def test_nodes_are_as_designed(comfy):
    check_nodes(comfy.get("/object_info"))


def test_every_input_has_a_tooltip_and_everything_is_in_chinese(comfy):
    chinese = json.loads((Path(__file__).parents[2] / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    ours = {kind: node for kind, node in comfy.get("/object_info").items() if node["category"] == "LoRA Loom"}
    assert set(chinese) == set(ours)
    for kind, node in ours.items():
        inputs = {name: (*given, {})[1] for part in ("required", "optional") for name, given in node["input"].get(part, {}).items()}
        assert not [name for name, options in inputs.items() if not options.get("tooltip")], kind
        assert set(chinese[kind].get("inputs", {})) == set(inputs), kind
        assert all(text["name"] and text["tooltip"] for text in chinese[kind].get("inputs", {}).values()), kind
        assert list(chinese[kind]["outputs"]) == [str(n) for n in range(len(node["output"]))] and all(o["name"] for o in chinese[kind]["outputs"].values())
        assert chinese[kind]["display_name"] and chinese[kind]["description"] and node["description"]
    assert comfy.get("/i18n")["zh"]["nodeDefs"] == chinese


def test_example_workflows_are_served_with_their_pictures(comfy):
    listed = comfy.get("/workflow_templates")["comfyui-lora-loom"]
    assert set(listed) == set(workflows.WORKFLOWS)
    for name in listed:
        for suffix in ("json", "jpg"):
            with urllib.request.urlopen(f"{comfy.url}/api/workflow_templates/comfyui-lora-loom/{name}.{suffix}") as answer:
                assert answer.status == 200 and len(answer.read()) > 1000


def test_presets_for_the_page(comfy):
    answer = comfy.get("/lora_loom/presets")
    assert answer["low vram"]["values"]["gradient_checkpointing"] is True and answer["low vram"]["values"]["rank"] == 8
    assert all(preset["about"][language] for preset in answer.values() for language in ("en", "zh"))


def test_ones_own_presets_over_http(comfy):
    kept = comfy.post("/lora_loom/presets", {"name": "我的 预设", "values": {"rank": 24, "alpha": 24, "target_modules": "to_q$\nto_k$ rank=4", "preservation_words": "dog，cat",
                                                                        "init_lora": "secret.safetensors", "nonsense": 3}})
    assert kept == {"name": "我的 预设"}
    path = comfy.base / "user" / "lora_loom" / "presets" / "我的_预设.yaml"
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == {"values": {
        "adapter": {"rank": 24, "alpha": 24, "target_modules": ["to_q$", "to_k$ rank=4"]}, "loss": {"preservation_words": ["dog", "cat"]}}}
    values = comfy.get("/lora_loom/presets")["我的 预设"]["values"]
    assert values["rank"] == 24 and values["target_modules"] == "to_q$\nto_k$ rank=4" and values["preservation_words"] == "dog, cat"
    info = comfy.get("/object_info/LoRAConfig")["LoRAConfig"]["input"]["required"]["preset"]
    assert "我的 预设" in (info[0] if isinstance(info[0], list) else info[1]["options"])
    for wrong, said in (({"name": "Person", "values": {}}, "LoRA Loom's own"), ({"name": "../x", "values": {}}, "'/'"), ({"name": 3, "values": {}}, "no preset"), ([], "no preset"),
                        ({"name": "bad", "values": {"rank": 0}}, "below 1"), ({"name": "bad", "values": {"rank": "many"}}, "whole number")):
        answer = comfy.post("/lora_loom/presets", wrong)
        assert answer["status"] == 400 and said in answer["error"], answer
    again = {"name": "我的 预设", "values": {"rank": 12}}
    assert comfy.post("/lora_loom/presets", again) == {"exists": "我的 预设"} and comfy.get("/lora_loom/presets")["我的 预设"]["values"]["rank"] == 24
    assert comfy.post("/lora_loom/presets", {**again, "replace": True}) == {"name": "我的 预设"}
    assert comfy.post("/lora_loom/presets", {"name": "large", "values": {"target_modules": "x" * 300_000}})["status"] == 400
    (path.parent / "odd.yaml").write_text("families: [sdxl]\nvalues: {}")
    assert "families" in comfy.get("/lora_loom/presets")["odd"]["error"]
    (path.parent / "odd.yaml").unlink()
    path.write_bytes(b"\xff")  # a broken file of one's own hides no other
    presets = comfy.get("/lora_loom/presets")
    assert "is not UTF-8" in presets["我的 预设"]["error"] and presets["person"]["values"]["rank"] == 16
    path.unlink()


def test_a_run_s_config_becomes_widget_values(comfy):
    well(comfy.run(training(steps=2, config={"rank": 6, "alpha": 3, "targets": "attention+ff"}, name="again", seed=next(_seed), learning_rate=3e-4, sample_prompts="a\nb")))
    run = comfy.base / "output" / "lora_loom" / "again"
    request = urllib.request.Request(comfy.url + "/lora_loom/config", (run / "config.yaml").read_bytes())
    with urllib.request.urlopen(request) as answer:
        found = json.load(answer)
    assert found["LoRAConfig"]["rank"] == 6 and found["LoRAConfig"]["alpha"] == 3 and found["LoRAConfig"]["targets"] == "attention+ff"
    assert found["TrainLoRA"]["steps"] == 2 and found["TrainLoRA"]["learning_rate"] == 3e-4 and found["TrainLoRA"]["name"] == "again"
    assert found["TrainLoRA"]["sample_prompts"] == "a\nb"
    inputs = comfy.get("/object_info/LoRAConfig")["LoRAConfig"]["input"]
    assert found["LoRAConfig"].keys() <= inputs["optional"].keys()
    assert found["LoRAConfig"]["init_lora"] == "none"
    with socket.create_connection(("127.0.0.1", comfy.port)) as slow:  # in two pieces, as from another machine
        body = (run / "config.yaml").read_bytes()
        slow.sendall(b"POST /lora_loom/config HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:20])
        time.sleep(0.5)
        slow.sendall(body[20:])
        whole = b"".join(iter(lambda: slow.recv(65536), b""))
    assert json.loads(whole.split(b"\r\n\r\n", 1)[1]) == found
    for data, said in ((b"\xff\xfe", "no UTF-8"), (b"- 1", "holds"), (b"x" * 300_000, "larger"), (b"adapter: {rnak: 1}", "did you mean 'rank'")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(comfy.url + "/lora_loom/config", data))
        assert refused.value.code == 400 and said in json.load(refused.value)["error"]


def test_what_the_widgets_show_is_what_runs(comfy):
    """A preset's layer patterns and LoRA are not in force where the node shows none."""
    folder = comfy.base / "user" / "lora_loom" / "presets"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "patterns.yaml").write_text("values: {adapter: {target_modules: ['attn1.to_q$'], init_lora: gone.safetensors}, loss: {preservation_words: [dog]}}")
    try:
        shown = {"preset": "patterns", "target_modules": "", "preservation_words": "", "init_lora": "none", "targets": "attention+ff"}
        well(comfy.run(training(steps=1, config=shown, name="shown", seed=next(_seed))))
        ran = LoomConfig.from_yaml((comfy.base / "output" / "lora_loom" / "shown" / "config.yaml").read_text())
        assert (ran.adapter.target_modules, ran.adapter.init_lora, ran.adapter.targets, ran.loss.preservation_words) == ((), "", "attention+ff", ())
        graph = training(steps=1, name="left_out", seed=next(_seed))
        graph["4"]["inputs"] = {"preset": "patterns"}  # over the API, what is left out comes from the preset
        well(comfy.run(graph))
        ran = LoomConfig.from_yaml((comfy.base / "output" / "lora_loom" / "left_out" / "config.yaml").read_text())
        assert (ran.adapter.target_modules, ran.adapter.init_lora) == (("attn1.to_q$",), "")
    finally:
        (folder / "patterns.yaml").unlink()


def test_samples_while_training_reach_the_page(comfy):
    outcome = comfy.run(training(steps=4, name="sampled", seed=next(_seed), sample_steps=2, sample_prompts="a red star on a blue background\n\na red circle on a blue background"))
    well(outcome)
    drawn = [data for kind, data in outcome.messages if kind == "lora_loom.sample"]
    assert [data["step"] for data in drawn] == [0, 2, 4] and all(data["node"] == "5" for data in drawn)
    assert drawn[1]["files"] == ["step000002_1.png", "step000002_2.png"] and "paths" not in drawn[1]
    [told] = outcome.history["outputs"]["5"]["lora_loom_run"]
    assert told["run"] == "sampled" and told["samples"] == ["step000004_1.png", "step000004_2.png"]
    assert all(Image.open(comfy.base / "output" / "lora_loom" / "sampled" / "samples" / name).size == (64, 64) for name in told["samples"])


def check_toy_run(comfy, outcome, steps: int) -> None:
    """Everything that a page sees of the toy workflow's run."""
    well(outcome)
    assert {"5", "7", "11", "13"} <= set(outcome.executed)
    bar = [data for kind, data in outcome.messages if kind == "progress" and data["node"] == "5"]
    assert bar[-1]["value"] == bar[-1]["max"] == steps
    running = [d for kind, d in outcome.messages if kind == "lora_loom.progress"]
    assert {"encode", "train"} == {d["phase"] for d in running} and all(d["node"] == "5" for d in running)
    last = running[-1]
    assert last["step"] == last["steps"] == steps and last["loss"] > 0 and last["steps_per_second"] > 0 and last["eta_seconds"] == 0
    assert [point[0] for d in running for point in d.get("points", [])] == list(range(1, steps + 1)), "every step is drawn"
    [ended] = [d for kind, d in outcome.messages if kind == "lora_loom.ended"]
    assert ended["status"] == "finished" and ended["run"] == last["run"]
    outputs = outcome.history["outputs"]
    assert len(outputs["3"]["images"]) == 20 and len(outputs["7"]["images"]) == 2 and len(outputs["13"]["images"]) == 1 and outputs["6"]["images"] and outputs["5"]["lora_loom_run"][0]["report"].startswith(f"Finished at step {steps} of {steps}")
    for path in outcome.images(comfy.base):
        with Image.open(path) as image:
            image.load()
    before_after = comfy.base / "temp" / outputs["7"]["images"][0]["filename"]
    assert Image.open(before_after).size == (128, 64)


def test_toy_workflow_runs_then_is_fully_cached(comfy):
    first = comfy.run(toy())
    check_toy_run(comfy, first, 8)
    assert lora_file(comfy, "toy_star").is_file()
    run = comfy.base / "output" / "lora_loom" / "toy_star"
    assert {"config.yaml", "dataset.txt", "metrics.jsonl"} <= {p.name for p in run.iterdir()}
    assert LoomConfig.from_yaml((run / "config.yaml").read_text()) == DEMO.replace(train={"steps": 8}), "the demo's two ways train alike"
    again = comfy.run(toy())
    well(again)
    assert again.executed == [] and set(again.cached) == set(toy())
    assert not lora_file(comfy, "toy_star_2").exists()


def latent(comfy, outcome, node: str) -> torch.Tensor:
    [saved] = outcome.history["outputs"][node]["latents"]
    return load_file(comfy.base / saved["type"] / saved["subfolder"] / saved["filename"])["latent_tensor"]


def sampled(graph: dict, model: list, clip: list, seed: int) -> dict:
    node = workflows.node
    return {**graph,
            "20": node("CLIPTextEncode", clip=clip, text="a red star on a blue background"), "21": node("CLIPTextEncode", clip=clip, text=""),
            "22": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "23": node("KSampler", model=model, positive=["20", 0], negative=["21", 0], latent_image=["22", 0], seed=seed, steps=4, cfg=3.0, sampler_name="euler",
                       scheduler="normal", denoise=1.0),
            "24": node("SaveLatent", samples=["23", 0], filename_prefix="loom"),
            "25": node("VAEDecode", samples=["23", 0], vae=["1", 2]), "26": node("PreviewImage", images=["25", 0])}


def test_the_file_equals_the_live_model(comfy):
    """LoraLoader with the file, and TrainLoRA's outputs, give the same latents and pictures; both differ from the base's."""
    train = {**training(steps=12, name="equal", learning_rate=0.01, config={"targets": "all linear+conv", "train_text_encoder": True})}
    live = comfy.run(sampled(train, ["5", 0], ["5", 1], 3))
    well(live)
    assert "equal.safetensors" in json.dumps(comfy.get("/object_info/LoraLoader"))
    loader = {"1": workflows.node("ToyBase"), "2": workflows.node(
        "LoraLoader", model=["1", 0], clip=["1", 1], lora_name="equal.safetensors", strength_model=1.0, strength_clip=1.0)}
    loaded = comfy.run(sampled(loader, ["2", 0], ["2", 1], 3))
    well(loaded)
    plain = comfy.run(sampled({"1": loader["1"]}, ["1", 0], ["1", 1], 3))
    well(plain)
    one, two, base = (latent(comfy, outcome, "24") for outcome in (live, loaded, plain))
    assert (one - two).abs().max() < 1e-3
    assert (one - base).abs().max() > 1e-2
    pictures = [torch.tensor(list(Image.open(outcome.images(comfy.base)[-1]).convert("RGB").tobytes())) for outcome in (live, loaded)]
    assert (pictures[0] - pictures[1]).abs().max() <= 1
    assert not re.search("lora key not loaded|NOT LOADED", comfy.text())


def test_the_model_output_outlives_unloading(comfy):
    train = training(steps=4, name="freed", learning_rate=0.01)
    first = comfy.run(sampled(train, ["5", 0], ["5", 1], 1))
    well(first)
    comfy.post("/free", {"unload_models": True})
    time.sleep(1.5)  # the worker does it when it next looks
    second = comfy.run(sampled(train, ["5", 0], ["5", 1], 2))
    well(second)
    assert "5" in second.cached and "23" in second.executed
    loader = {"1": workflows.node("ToyBase"), "2": workflows.node(
        "LoraLoader", model=["1", 0], clip=["1", 1], lora_name="freed.safetensors", strength_model=1.0, strength_clip=1.0)}
    loaded = comfy.run(sampled(loader, ["2", 0], ["2", 1], 2))
    assert (latent(comfy, second, "24") - latent(comfy, loaded, "24")).abs().max() < 1e-3


def test_cancel_keeps_what_was_learned(comfy):
    at = {}

    def press(kind, data):
        if kind == "lora_loom.progress" and data["phase"] == "train" and data["step"] >= 4 and not at:
            at.update(step=data["step"], clock=time.perf_counter())
            comfy.post("/interrupt", {})
        if kind == "lora_loom.saved":
            at["saved"] = data["step"]

    outcome = comfy.run(training(steps=5000, name="cancelled"), on_message=press)
    assert outcome.ending == "execution_interrupted"
    assert time.perf_counter() - at["clock"] < 10  # seconds; a whole run takes minutes
    assert at["step"] <= at["saved"] <= at["step"] + 6  # a few steps pass on the way of the message
    with safe_open(lora_file(comfy, "cancelled"), "pt") as file:
        assert file.metadata()["ss_steps"] == str(at["saved"])
        assert all(file.get_tensor(key).isfinite().all() for key in file.keys())
    good_run(comfy)


def test_a_cancelled_run_goes_on_where_it_was(comfy):
    """Cancelled on the canvas, taken up by choosing it in `resume`: the same numbers as a run that nobody disturbed."""
    pressed = []

    def press(kind, data):
        if kind == "lora_loom.progress" and data["phase"] == "train" and data["step"] >= 3 and not pressed:
            pressed.append(1)
            comfy.post("/interrupt", {})

    good_run(comfy)
    first = comfy.base / "output" / "loras" / "begin.safetensors"
    shutil.copy(sorted(first.parent.glob("small*.safetensors"))[0], first)
    config = {"dropout": 0.2, "init_lora": first.name}
    well(comfy.run(training(steps=40, name="undisturbed", config=config)))
    outcome = comfy.run(training(steps=40, name="goes_on", config=config), on_message=press)
    assert outcome.ending == "execution_interrupted"
    assert "goes_on" in comfy.get("/object_info/TrainLoRA")["TrainLoRA"]["input"]["optional"]["resume"][1]["options"]
    other = comfy.run(training(steps=40, name="goes_on", config={"dropout": 0.3}, resume="goes_on"))
    assert other.ending == "execution_error" and "dropout is 0.3, was 0.2" in other.error, other.error
    first.unlink()
    gone = comfy.run(training(steps=40, name="anew", config={**config, "dropout": 0.1}))
    assert gone.ending == "execution_error" and "init_lora 'begin.safetensors' is not there" in gone.error, gone.error
    well(comfy.run(training(steps=40, name="goes_on", config=config, resume="goes_on")))
    assert not lora_file(comfy, "goes_on_2").exists()
    resumed, whole = load_file(lora_file(comfy, "goes_on")), load_file(lora_file(comfy, "undisturbed"))
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert len((comfy.base / "output" / "lora_loom" / "goes_on" / "metrics.jsonl").read_text().splitlines()) == 40


def test_a_run_that_is_stopped_again_goes_on_again(comfy):
    """The same prompt each time: ComfyUI must not take it from its cache as long as the run is not over, nor train anew once it is."""
    def stopped_at(step: int, **train) -> int:
        pressed = []

        def stop(kind, data):
            if kind == "lora_loom.progress" and data["phase"] == "train" and data["step"] >= step and not pressed:
                pressed.append(comfy.post("/lora_loom/control", {"run": data["run"], "action": "stop"}))

        outcome = comfy.run(training(steps=400, name="thrice", **train), on_message=stop)
        well(outcome)
        assert "5" in outcome.executed
        return comfy.get("/lora_loom/run?name=thrice")["step"]

    first = stopped_at(2)
    second = stopped_at(first + 2, resume="thrice")
    third = stopped_at(second + 2, resume="thrice")
    assert first < second < third < 400
    trashed = comfy.post("/lora_loom/run/trash", {"run": "thrice"})["trashed"]
    assert "is no run in" in comfy.run(training(steps=400, name="thrice", resume="thrice")).error
    comfy.post("/lora_loom/run/restore", {"trashed": trashed})
    rest = training(steps=third + 2, name="thrice", resume="thrice")
    well(over := comfy.run(rest))
    assert "5" in over.executed and comfy.get("/lora_loom/run?name=thrice")["status"] == "finished"
    well(again := comfy.run(rest))
    assert again.executed == []  # its result is there


def test_a_run_that_another_process_trains_is_not_taken_for_a_broken_one(comfy):
    good_run(comfy)
    runs = comfy.base / "output" / "lora_loom"
    home = runs / "from the command line"
    shutil.copytree(next(path for path in runs.iterdir() if (path / record.FILE).is_file()), home)
    facts = record.read(home)
    (home / record.FILE).write_text(json.dumps({**facts, "name": home.name, "status": "running", "ended": None}))
    told = lambda: next(found for found in comfy.get("/lora_loom/runs")["runs"] if found["name"] == home.name)
    assert told()["status"] == "lost"
    hold = Hold(home)
    try:
        assert (told()["status"], told()["elsewhere"]) == ("running", True)
        assert "is training: wait for its end" in comfy.post("/lora_loom/run/trash", {"run": home.name})["error"]
    finally:
        hold.release()
    assert told()["status"] == "lost" and comfy.post("/lora_loom/run/trash", {"run": home.name})["name"] == home.name


def broken(comfy) -> str:
    for number in range(3):
        (folder_of(comfy, "broken") / f"{number}.png").write_bytes(b"no picture" * number)
    return "broken"


def empty(comfy) -> str:
    return folder_of(comfy, "empty").name


# what goes wrong: (prompt, texts that the one message holds)
FAILURES = {
    "name leads out": (lambda c: training(name="../evil"), ["'../evil'", "plain file name"]),
    "name for windows": (lambda c: training(name='a<b>:"c'), ["TrainLoRA.name takes a plain file name"]),
    "name is empty": (lambda c: training(name=""), ["name '' is empty", "for example"]),
    "empty folder": (lambda c: training(empty(c)), ["empty' holds no pictures", "put pictures into it"]),
    "only broken pictures": (lambda c: training(broken(c)), ["none of the 3 pictures", "1.png", "replace them"]),
    "all too small": (lambda c: training(dataset={"min_size": 128}), ["all 20 pictures", "below min_size 128", "lower LoadDataset.min_size to 64"]),
    "no such folder": (lambda c: training("gone away"), ["'gone away' is not there", "choose another"]),
    "no folder chosen": (lambda c: training(""), ["folder is empty"]),
    "no such preset": (lambda c: training(config={"preset": "fast"}), ["preset 'fast' is unknown", "quick look"]),
    "nothing to train": (lambda c: training(steps=0), ["steps 0 and epochs 0", "set TrainLoRA.steps to 1 or more"]),
    "not a number": (lambda c: poisoned(), ["loss nan", "lower the learning rate"]),
    "no vae": (lambda c: without("vae", 2), ["vae is empty", "VAELoader"]),
    "no clip": (lambda c: without("clip", 1), ["clip is empty", "CLIPLoader"]),
    "bad target modules": (lambda c: training(config={"target_modules": "no_such_layer$"}), ["no_such_layer"]),
    "no captions": (lambda c: training(dataset={"caption_source": "none", "trigger_word": ""}, config={"preservation": 0.0}),
                    ["captions are missing", "none of the 20 pictures", "trigger_word"]),
    "preservation without a trigger word": (lambda c: training(dataset={"trigger_word": ""}, config={"preservation": 2.0}), ["preservation 2 without a trigger word"]),
    "broken expression": (lambda c: training(config={"target_modules": "to_(k"}), ["to_(k"]),
}


def poisoned() -> dict:
    graph = training(name="poisoned")
    graph["6"] = workflows.node("LoraLoaderModelOnly", model=["1", 0], lora_name="poison.safetensors", strength_model=1.0)
    graph["5"]["inputs"]["model"] = ["6", 0]
    return graph


def without(name: str, slot: int) -> dict:
    graph = training()
    graph["6"] = workflows.node("LoomTestNothing")
    graph["5"]["inputs"][name] = ["6", slot]
    return graph


@pytest.mark.parametrize("case", FAILURES)
def test_bad_input_gives_one_message_and_a_good_run_follows(comfy, case):
    make, wanted = FAILURES[case]
    before = set((comfy.base / "output").rglob("*.safetensors"))
    outcome = comfy.run(make(comfy))
    assert outcome.ending in ("", "execution_error")
    if outcome.ending:
        message = outcome.error
        assert sum(kind == "execution_error" for kind, _ in outcome.messages) == 1
    else:
        errors = [error for node in outcome.answer["node_errors"].values() for error in node["errors"]]
        assert len(errors) == 1, errors
        message = errors[0]["message"] + " " + errors[0]["details"]
    for text in wanted:
        assert text in message, message
    assert set((comfy.base / "output").rglob("*.safetensors")) == before
    assert not list((comfy.base / "output" / "loras").glob(".*")), "a reservation was left behind"
    good_run(comfy)


def test_a_run_that_explodes_keeps_what_was_learned(comfy):
    config = {"alpha": 4096.0, "rank": 1, "max_grad_norm": 0.0, "targets": "all linear+conv", "weight_decay": 10.0}
    outcome = comfy.run(training(steps=400, name="exploded", learning_rate=1.0, config=config))
    assert outcome.ending == "execution_error" and "must be finite numbers" in outcome.error, outcome.error
    last = int(re.search(r"What was learned in (\d+) steps is saved as exploded.safetensors", outcome.error)[1])
    assert last >= 1
    with safe_open(lora_file(comfy, "exploded"), "pt") as file:
        assert file.metadata()["ss_steps"] == str(last)
    good_run(comfy)


@pytest.mark.parametrize("folder", ["../output", "..", ".", "lora_loom_stars/../..", "lora_loom_stars/../../models", "/etc", "datasets/../loras", "C:\\Windows", "link"])
def test_folders_never_lead_out(comfy, folder):
    link = comfy.base / "input" / "link"
    if not link.is_symlink():
        link.symlink_to(comfy.base / "models", target_is_directory=True)
    outcome = comfy.run(training(folder))
    assert outcome.ending == "" and "is not there" in outcome.error, outcome.error


def stars_in(comfy, name: str, count: int = 4) -> Path:
    return stars.write(folder_of(comfy, name), count=count, seed=5)


def test_edits_on_disk_run_what_depends_on_them_and_nothing_else(comfy):
    folder = stars_in(comfy, "edited")
    graph = training("edited", name="edited")
    well(comfy.run(graph))
    assert comfy.run(graph).executed == []

    picture = folder / "star_01.png"
    Image.open(picture).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(picture)
    after_picture = comfy.run(graph)
    well(after_picture)
    assert set(after_picture.executed) == {"2", "5"} and {"1", "4"} <= set(after_picture.cached)
    assert comfy.run(graph).executed == []

    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("a ", "one ", 1))
    after_caption = comfy.run(graph)
    assert set(after_caption.executed) == {"2", "5"}

    shutil.copy(picture, folder / "one_more.png")
    assert set(comfy.run(graph).executed) == {"2", "5"}
    (folder / "notes.pdf").write_text("nothing to do with it")
    well(comfy.run(graph))
    (folder / "one_more.png").unlink()
    assert {"2", "5"} <= set(comfy.run(graph).executed)
    assert comfy.run(graph).executed == []


def test_another_file_to_go_on_from_runs_again(comfy):
    good_run(comfy)
    first, second = sorted((comfy.base / "output" / "loras").glob("small*.safetensors"))[0], comfy.base / "output" / "loras" / "start.safetensors"
    shutil.copy(first, second)
    graph = training(config={"init_lora": "start.safetensors"}, name="onward")
    well(comfy.run(graph))
    assert comfy.run(graph).executed == []
    tensors = load_file(second)
    save_file({k: v if k.endswith("alpha") else v * 2 for k, v in tensors.items()}, second)
    outcome = comfy.run(graph)
    well(outcome)
    assert set(outcome.executed) == {"4", "5"}


def test_a_list_of_seeds_trains_once_for_each_and_all_are_told_of(comfy):
    stars_in(comfy, "listed", 2)
    graph = {key: value for key, value in workflows.toy().items() if key in "1245"}
    graph["2"]["inputs"]["folder"] = "listed"
    graph["5"]["inputs"].update(steps=2, sample_steps=0, name="seeds", seed=["9", 0])
    graph["9"] = workflows.node("GetImageSize", image=["2", 1])  # a number for each picture
    outcome = comfy.run(graph)
    assert outcome.ending == "execution_success", outcome.error
    told = [state for state in comfy.get("/lora_loom/state")["trainings"] if state["name"] == "seeds"]
    assert [(state["run"], state["status"]) for state in told] == [("seeds_2", "finished"), ("seeds", "finished")]  # the newest first


def documented(start: str) -> set[str]:
    """The words in code of the row of docs/api.md that begins so."""
    rows = [row for row in (PACK / "docs" / "api.md").read_text(encoding="utf-8").splitlines() if row.startswith("|") and start in row.split("|")[1]]
    assert rows, start
    return {word for row in rows for word in re.findall(r"[a-z_]+", " ".join(re.findall("`([^`]*)`", row)))}


def test_every_field_that_is_sent_is_documented(comfy):
    """What it says of events and routes is what comes."""
    stars_in(comfy, "schema", 6)
    graph = training("schema", name="schema")
    graph["4"]["inputs"] |= {"save_steps": 2, "validation_steps": 2, "validation_split": 0.2}
    graph["5"]["inputs"] |= {"steps": 6, "sample_steps": 3, "sample_prompts": "a star"}
    outcome = comfy.run(graph)
    well(outcome)
    wrong = comfy.run({**graph, "5": {**graph["5"], "inputs": {**graph["5"]["inputs"], "steps": 0, "epochs": 0, "name": "schema wrong"}}})
    common = documented("`node`, `prompt_id`") | documented("`workflow`") | documented("`name`, `run`")
    seen: dict[str, set[str]] = {}
    for kind, data in [*outcome.messages, *wrong.messages]:
        if kind.startswith("lora_loom."):
            seen.setdefault(kind.removeprefix("lora_loom."), set()).update(data)
    assert {"preparing", "started", "progress", "memory", "estimate", "sample", "checkpoint", "saved", "ended"} <= set(seen)
    missing = {name: fields - common - documented(f"`{name}`") for name, fields in seen.items()}
    assert not any(missing.values()), missing

    run = documented("GET /lora_loom/run?name=") | (runs := documented("GET /lora_loom/runs"))
    found = comfy.get("/lora_loom/run?name=schema")
    listed = comfy.get("/lora_loom/runs")
    assert set(found) <= run, set(found) - run
    assert set(listed) | {name for one in listed["runs"] for name in one} <= runs, ({name for one in listed["runs"] for name in one} | set(listed)) - runs
    columns = set(comfy.get("/lora_loom/run/curve?name=schema"))
    assert columns <= documented("GET /lora_loom/run/curve"), columns
    state = {name for one in comfy.get("/lora_loom/state")["trainings"] for name in one}
    words = set(re.findall(r"[a-z_]+", (PACK / "docs" / "api.md").read_text(encoding="utf-8")))
    assert state <= words, state - words


def test_names_that_are_not_ascii(comfy):
    folder = folder_of(comfy, "我的 图片 ü")
    for number, name in enumerate(["星星 一.png", "étoile.png", "ひとつ.png"]):
        image = Image.open(stars.write(comfy.base / "scratch", count=3) / f"star_0{number + 1}.png")
        image.save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"星 {number}, un étoile", encoding="utf-8")
    graph = training("我的 图片 ü", name="星星 LoRA é")
    graph["9"] = workflows.node("PreviewAny", source=["2", 2])
    assert "我的 图片 ü" in json.dumps(comfy.get("/object_info/LoadDataset"), ensure_ascii=False)
    outcome = comfy.run(graph)
    well(outcome)
    assert "3 of 3 pictures, source: sidecar" in "".join(outcome.history["outputs"]["9"]["text"])
    assert lora_file(comfy, "星星 LoRA é").is_file()
    assert "星星 LoRA é.safetensors" in json.dumps(comfy.get("/object_info/LoraLoader"), ensure_ascii=False)
    sub = training("我的 图片 ü/.", name="x")
    assert comfy.run(sub).ending in ("execution_success", "")  # never a crash


def captioning(folder: str, **changes) -> dict:
    graph = workflows.caption()
    graph["1"]["inputs"].update(folder=folder, resolution=64, min_size=64)
    graph["3"]["inputs"].update(**{"model": "tiny", "labels": "red star, blue star\ncat", "max_tags": 2, "existing": "replace", **changes})
    return graph


def test_captions_by_a_local_model(comfy):
    write_model = host.by_path("loom_test_captioners", PACK / "tests" / "test_captioners.py").write_model
    write_model(comfy.base / "models" / "open_clip" / "tiny")
    assert "tiny" in json.dumps(comfy.get("/object_info/AutoCaption")["AutoCaption"]["input"]["required"]["model"])
    folder = stars_in(comfy, "captioned")
    before = (folder / "metadata.csv").read_text()
    graph = captioning("captioned")
    graph["5"] = workflows.node("PreviewAny", source=["3", 1])
    first = comfy.run(graph)
    well(first)
    rows = (folder / "metadata.csv").read_text(encoding="utf-8-sig").splitlines()
    assert rows[0] == "filename,prompt" and len(rows) == 5 and all(re.search("star|cat", row.split(",", 1)[1]) for row in rows[1:])
    assert any(path.read_text() == before for path in folder.glob("*.bak*"))
    assert any("captioning" in text for text in first.texts)
    again = comfy.run(graph)
    well(again)
    assert again.executed == []
    well(comfy.run(captioning("captioned", existing="keep")))

    sidecars = captioning("captioned", save_as="sidecar .txt")
    well(comfy.run(sidecars))
    assert len(list(folder.glob("*.txt"))) == 4
    assert comfy.run(sidecars).executed == []

    for name in ("gone", "../tiny", "/etc/passwd"):
        outcome = comfy.run(captioning("captioned", model=name))
        assert name in outcome.error and set(outcome.answer["node_errors"]) == {"3"}, outcome.error
        assert "3" not in outcome.executed  # the pictures, which do not need it, are shown all the same


def test_captions_that_were_just_written_are_read_by_other_graphs(comfy):
    """LoadDataset's node is the same in both graphs; only the one that wrote the captions may take it from the cache."""
    host.by_path("loom_test_captioners", PACK / "tests" / "test_captioners.py").write_model(comfy.base / "models" / "open_clip" / "tiny")
    folder = stars_in(comfy, "bare")
    (folder / "metadata.csv").unlink()
    graph = captioning("bare")
    well(comfy.run(graph))
    assert comfy.run(graph).executed == []
    only = {"1": graph["1"], "9": workflows.node("PreviewAny", source=["1", 2])}
    read = comfy.run(only)
    well(read)
    assert "4 of 4 pictures, source: metadata.csv" in "".join(read.history["outputs"]["9"]["text"])
    (folder / "metadata.csv").unlink()
    again = comfy.run(graph)
    well(again)
    assert {"1", "3"} <= set(again.executed) and (folder / "metadata.csv").is_file()


def test_example_workflows_hold_no_paths():
    for name, workflow in workflows.WORKFLOWS.items():
        text = (PACK / "example_workflows" / f"{name}.json").read_text(encoding="utf-8")
        graph = json.loads(text)
        values = [value for node in graph["nodes"] if "Note" not in node["type"] for value in node.get("widgets_values") or []]
        assert not any(re.match(r"/|\\\\|~|[A-Za-z]:[\\/]", str(value)) for value in values)
        kinds = sorted(node["type"] for node in graph["nodes"] if node["type"] != "MarkdownNote")
        assert kinds == sorted(node["class_type"] for node in workflow["graph"]().values())
        boxes = [(n["pos"][0], n["pos"][1] - 30, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]) for n in graph["nodes"]]
        for i, a in enumerate(boxes):
            assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[i + 1:]), name
        with Image.open(PACK / "example_workflows" / f"{name}.jpg") as image:
            assert image.width >= 400


def test_example_pictures_are_brought_once(comfy_modules, tmp_path, monkeypatch):
    stub = types.SimpleNamespace(get_input_directory=lambda: str(tmp_path / "input"), models_dir="", get_folder_paths=lambda kind: [])
    monkeypatch.setitem(sys.modules, "folder_paths", stub)
    folders = host.by_path("lora_loom.nodes.folders_under_test", PACK / "nodes" / "folders.py")
    folders.bring_example()
    target = tmp_path / "input" / "lora_loom_stars"
    assert len(list(target.glob("*.png"))) == 20 and [p.name for p in target.parent.iterdir()] == ["lora_loom_stars"]
    drawn = stars.write(tmp_path / "drawn")
    assert {p.name for p in drawn.iterdir()} == {p.name for p in target.iterdir()}
    for path in drawn.glob("*.png"):
        assert Image.open(path).tobytes() == Image.open(target / path.name).tobytes()
    assert (drawn / "metadata.csv").read_bytes() == (target / "metadata.csv").read_bytes()
    shutil.rmtree(target)
    target.mkdir()
    (target / "mine.png").write_bytes(b"mine")
    folders.bring_example()
    assert [p.name for p in target.iterdir()] == ["mine.png"]


def test_the_client_of_the_examples(comfy, tmp_path):
    """HTTP and websocket alone: it follows the run to its end and fetches the samples; what the server refuses, it says."""
    program = [sys.executable, str(PACK / "examples" / "queue_training.py"), "--server", comfy.url.removeprefix("http://"), "--resolution", "64", "--trigger", "star"]
    done = subprocess.run([*program, "lora_loom_stars", "--steps", "3", "--name", "by_client", "--sample-steps", "3", "--samples", str(tmp_path / "drawn")],
                          capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 3/3  loss" in done.stdout and "finished: Finished at step 3 of 3" in done.stdout and "LoRA by_client.safetensors" in done.stdout
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [f"step00000{step}_{n}.png" for step in (0, 3) for n in (1, 2)]
    wrong = subprocess.run([*program, "no such folder"], capture_output=True, text=True, timeout=120, check=False)
    assert wrong.returncode and "no such folder" in wrong.stderr
    # Ctrl-C takes its own job out of the queue, and lets the one that trains alone
    first = subprocess.Popen([*program, "lora_loom_stars", "--steps", "4000", "--name", "goes_on"], stdout=subprocess.PIPE, text=True)
    assert any("step 1/" in line for line in first.stdout)
    second = subprocess.Popen([*program, "lora_loom_stars", "--steps", "4000", "--name", "never"], stderr=subprocess.PIPE, text=True)
    while len(comfy.get("/queue")["queue_pending"]) != 1:
        time.sleep(0.1)
    second.send_signal(signal.SIGINT)
    assert "had not begun" in second.communicate(timeout=60)[1] and second.returncode and comfy.get("/queue")["queue_pending"] == []
    first.send_signal(signal.SIGINT)
    told, _ = first.communicate(timeout=120)
    assert "stopped: Stopped at step" in told and first.returncode == 0
