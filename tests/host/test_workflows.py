"""Every example workflow opens in the page without a missing node, and runs when only the names of its models are changed."""
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")
pages = pytest.importorskip("loom_host_pages", reason="needs websocket-client, from the extra `test`")
pytest.importorskip("playwright.sync_api", reason="needs playwright, from the extra `test`")
pytest.importorskip("skimage", reason="needs scikit-image, from the extra `test`")


workflows = pages.workflows
small = host.by_path("loom_small_models", Path(__file__).with_name("small_models.py"))
# What the test may change: the names of models, and numbers that are nothing but time; LORA_LOOM_HEAVY=1 leaves sizes as they are.
NAMES = {"ckpt_name": small.CHECKPOINT, "unet_name": small.UNET, "vae_name": small.VAE, "clip_name1": small.CLIP_L, "clip_name2": small.T5, "model": "small"}
STEPS = {"TrainLoRA": 2, "PreviewSample": 1, "KSampler": 1}
SIZES = {} if os.environ.get("LORA_LOOM_HEAVY") else {"resolution": 64, "min_size": 64, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def comfy(comfy_path, comfy_modules, tmp_path_factory: pytest.TempPathFactory):
    base = tmp_path_factory.mktemp("examples")
    workflows.settle(base)
    small.write(base)
    host.by_path("loom_test_captioners", host.PACK / "tests" / "test_captioners.py").write_model(base / "models" / "open_clip" / "small")
    with host.Comfy(comfy_path, base) as server:
        yield server


@pytest.fixture(scope="module")
def page(comfy):
    with pages.opened(comfy.url) as page:
        yield page


@pytest.mark.browser
@pytest.mark.parametrize("name", list(workflows.WORKFLOWS))
def test_an_example_opens_and_runs_with_small_models(comfy, page, name):
    prompt = page.evaluate("""async (name) => {
        const answer = await window.app.api.fetchApi(`/workflow_templates/comfyui-lora-loom/${name}.json`);
        await window.app.loadGraphData(await answer.json());
        if (!window.app.graph._nodes.every((node) => node.type in LiteGraph.registered_node_types)) throw new Error("a node is missing");
        return (await window.app.graphToPrompt()).output;
    }""", name)
    for node in prompt.values():
        for field, value in node["inputs"].items():
            if field in NAMES and isinstance(value, str) and value != "none":
                node["inputs"][field] = NAMES[field]
        node["inputs"] |= {field: value for field, value in SIZES.items() if field in node["inputs"]}
        if node["class_type"] in STEPS:
            assert node["inputs"]["steps"] > STEPS[node["class_type"]]
            node["inputs"]["steps"] = STEPS[node["class_type"]]
    finished(comfy, prompt)


# [node, other] where two nodes lie on one another, and [node, group] where one hangs out of its group.
OVER = """async (name) => {
    const {app} = window, answer = await app.api.fetchApi(`/workflow_templates/comfyui-lora-loom/${name}.json`), title = LiteGraph.NODE_TITLE_HEIGHT, wait = (ms) => new Promise((done) => setTimeout(done, ms));
    await app.loadGraphData(await answer.json());
    const {ds} = app.canvas, element = (node) => document.querySelector(`.lg-node[data-node-id="${node.id}"]`);
    ds.scale = 0.3;
    [ds.offset[0], ds.offset[1]] = [100, 100];
    app.canvas.setDirty(true, true);
    for (let tries = 0; tries < 40 && !app.graph._nodes.every(element); tries++) await wait(100);
    await wait(700);
    const boxes = app.graph._nodes.map((node) => { const r = element(node).getBoundingClientRect(), [x, y] = [node.pos[0], node.pos[1] - title]; return [node.title, x, y, x + r.width / ds.scale, y + r.height / ds.scale]; });
    const inside = (group, x, y) => x >= group.pos[0] && x <= group.pos[0] + group.size[0] && y >= group.pos[1] && y <= group.pos[1] + group.size[1];
    const meet = ([, ax, ay, ar, ab], [, bx, by, br, bb]) => ax < br && bx < ar && ay < bb && by < ab;
    return [...boxes.flatMap((one, i) => boxes.slice(i + 1).filter((other) => meet(one, other)).map((other) => [one[0], other[0]])),
            ...boxes.flatMap((one) => app.graph._groups.filter((group) => inside(group, one[1], one[2]) && !inside(group, one[3], one[4])).map((group) => [one[0], group.title]))];
}"""


@pytest.mark.browser
def test_nodes_have_room_in_the_new_renderer_too(comfy, page):
    page.evaluate("() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    try:
        over = {name: page.evaluate(OVER, name) for name in workflows.WORKFLOWS}
    finally:
        page.evaluate("() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
    assert not any(over.values()), over


def finished(comfy, prompt: dict) -> None:
    """Runs the prompt; every node has run, and its LoRA is there."""
    outcome = comfy.run(prompt, timeout=600)
    assert outcome.ending == "execution_success", f"{outcome.error}\n{comfy.text()[-3000:]}"
    assert set(outcome.executed) | set(outcome.cached) == set(prompt)
    trained = [node["inputs"]["name"] for node in prompt.values() if node["class_type"] == "TrainLoRA"]
    assert all((comfy.base / "output" / "loras" / f"{name}.safetensors").is_file() for name in trained)


BLUEPRINT = """async (folder) => {
    const {app} = window.comfyAPI.app, own = app.graph._nodes[0];
    const [base, load, show] = ["ToyBase", "LoadDataset", "PreviewImage"].map((kind) => { const node = LiteGraph.createNode(kind); app.graph.add(node); return node; });
    const slot = (name) => own.inputs.findIndex((input) => input.name === name);
    base.outputs.forEach((output, n) => base.connect(n, own, slot(output.name)));
    load.connect(0, own, slot("dataset"));
    own.connect(own.outputs.findIndex((output) => output.name === "images"), show, 0);
    const set = (node, values) => { for (const w of node.widgets) if (w.name in values) w.value = values[w.name]; };
    set(load, {folder, resolution: 64, min_size: 64});
    set(own, {name: "by_blueprint", prompt: "a red circle\\na blue square", width: 64, height: 64});
    const inner = (kind) => own.subgraph._nodes.find((node) => node.type === kind);
    set(inner("TrainLoRA"), {steps: 2});
    set(inner("PreviewSample"), {steps: 1});
    return (await app.graphToPrompt()).output;
}"""


@pytest.mark.browser
def test_the_blueprint_is_found_and_trains(comfy, page):
    assert workflows.blueprint.NAME in [entry["name"] for entry in comfy.get("/global_subgraphs").values() if entry["info"]["node_pack"].endswith("comfyui-lora-loom")]
    page.evaluate("() => { for (const node of [...window.app.graph._nodes]) window.app.graph.remove(node); }")
    page.mouse.dblclick(900, 900)
    page.keyboard.type(workflows.blueprint.NAME, delay=20)
    page.wait_for_timeout(1500)
    page.keyboard.press("Enter")
    page.wait_for_function("(name) => window.app.graph._nodes[0]?.title === name", arg=workflows.blueprint.NAME, timeout=15_000)
    shown = page.evaluate("() => { const own = window.app.graph._nodes[0]; return own.properties.previewExposures.map((one) => own.subgraph.getNodeById(one.sourceNodeId).type); }")
    assert shown == ["PreviewSample"]  # the new nodes show its pictures on the outside
    prompt = page.evaluate(BLUEPRINT, "lora_loom_stars")
    trained, = (node["inputs"] for node in prompt.values() if node["class_type"] == "TrainLoRA")
    assert (trained["name"], trained["steps"], trained["batch_size"]) == ("by_blueprint", 2, 1)
    assert [node["inputs"]["prompt"] for node in prompt.values() if node["class_type"] == "PreviewSample"] == ["a red circle\na blue square"]
    finished(comfy, prompt)


def test_each_has_a_note_in_both_languages_a_picture_and_an_id_of_its_own():
    ids = {}
    for name in workflows.WORKFLOWS:
        saved = json.loads((host.PACK / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
        note, = (node["widgets_values"][0] for node in saved["nodes"] if node["type"] == "MarkdownNote")
        assert note == workflows.graphs.note(name) and note.count("\n## ") >= 1 and any("\u4e00" <= letter <= "\u9fff" for letter in note)
        assert saved["id"] == workflows.identity(name)
        assert (host.PACK / "example_workflows" / f"{name}.jpg").stat().st_size > 10_000
        ids[saved["id"]] = name
    assert len(ids) == len(workflows.WORKFLOWS)
    assert {path.stem for path in (host.PACK / "example_workflows").iterdir()} == set(workflows.WORKFLOWS)
