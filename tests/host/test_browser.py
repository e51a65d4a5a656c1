"""ComfyUI's own page in Chromium: the example workflows open, Run runs them, choosing a preset shows what it holds."""
from __future__ import annotations

import json

import pytest
from lora_loom.trainer.config import LoomConfig

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")
pages = pytest.importorskip("loom_host_pages", reason="needs websocket-client, from the extra `test`")
pytest.importorskip("playwright.sync_api", reason="needs playwright, from the extra `test`")

pytestmark = pytest.mark.browser


workflows = pages.workflows


@pytest.fixture(scope="module", params=["newest", "oldest"])
def comfy(request, tmp_path_factory: pytest.TempPathFactory):
    path, site = host.asked_for(request)
    base = tmp_path_factory.mktemp(f"page_{request.param}")
    workflows.settle(base)
    workflows.stand_in(base)
    (base / "input" / "broken").mkdir()
    (base / "input" / "broken" / "1.png").write_bytes(b"no picture")
    with host.Comfy(path, base, site) as server:
        server.which = request.param
        yield server


@pytest.fixture(scope="module")
def page(comfy):
    with pages.opened(comfy.url) as page:
        yield page


def open_workflow(page, name: str) -> None:
    """The example as the template browser fetches it."""
    page.evaluate("""async (name) => {
        const answer = await window.app.api.fetchApi(`/workflow_templates/comfyui-lora-loom/${name}.json`);
        await window.app.loadGraphData(await answer.json());
    }""", name)
    page.wait_for_timeout(500)


def keep(page, name: str) -> None:
    host.KEPT.mkdir(exist_ok=True)
    page.evaluate(workflows.FIT)
    page.wait_for_timeout(1500)
    page.screenshot(path=str(host.KEPT / f"{name}.png"))


def widget(page, node: int, name: str):
    return page.evaluate("([node, name]) => window.app.graph.getNodeById(node).widgets.find((w) => w.name === name).value", [node, name])


def set_widget(page, node: int, name: str, value) -> None:
    """As a user's choice: the value, then the widget's callback."""
    page.evaluate("""async ([node, name, value]) => {
        const widget = window.app.graph.getNodeById(node).widgets.find((w) => w.name === name);
        widget.value = value;
        await widget.callback?.(value);
    }""", [node, name, value])


def press_run(page, until: str, timeout: float = 150) -> dict:
    page.evaluate("""() => {
        window.loomEvents = [];
        for (const name of ["execution_success", "execution_error", "execution_interrupted"])
            window.app.api.addEventListener(name, (event) => window.loomEvents.push([name, event.detail]));
    }""")
    page.click("[data-testid=queue-button]")
    page.wait_for_function("(until) => window.loomEvents.some(([name]) => name === until)", arg=until, timeout=timeout * 1000)
    return page.evaluate("(until) => window.loomEvents.find(([name]) => name === until)[1]", until)


def plain(value):
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


@pytest.mark.parametrize("name", list(workflows.WORKFLOWS))
def test_the_examples_open_and_give_the_prompt_they_were_made_from(comfy, page, name):
    open_workflow(page, name)
    kinds = page.evaluate("() => window.app.graph._nodes.map((n) => [n.type, n.has_errors === true])")
    assert all(not errors for _, errors in kinds), kinds
    assert page.evaluate("() => window.app.graph._nodes.every((n) => n.type in window.LiteGraph.registered_node_types)")
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    wanted = workflows.WORKFLOWS[name]["graph"]()
    assert {key: value["class_type"] for key, value in prompt.items()} == {key: value["class_type"] for key, value in wanted.items()}
    for key, node in wanted.items():
        for field, value in node["inputs"].items():
            assert plain(prompt[key]["inputs"][field]) == plain(value), (key, field)
    keep(page, f"{comfy.which}_{name}_opened")


def test_a_preset_fills_the_widgets(page):
    open_workflow(page, "toy_base_train_and_generate")
    set_widget(page, 4, "preset", "low vram")
    page.wait_for_function("() => window.app.graph.getNodeById(4).widgets.find((w) => w.name === 'rank').value === 8")
    assert widget(page, 4, "gradient_checkpointing") is True and widget(page, 4, "targets") == "attention"
    set_widget(page, 4, "preset", "illustration style")
    page.wait_for_function("() => window.app.graph.getNodeById(4).widgets.find((w) => w.name === 'rank').value === 32")
    assert widget(page, 4, "gradient_checkpointing") is False and widget(page, 4, "caption_dropout") == 0.1
    assert widget(page, 5, "steps") == 2500 and widget(page, 5, "learning_rate") == 0.0001  # of the Train LoRA behind it
    set_widget(page, 4, "rank", 24)  # by hand: another family leaves it
    set_widget(page, 4, "family", "sd15")
    page.wait_for_function("() => window.app.graph.getNodeById(4).widgets.find((w) => w.name === 'targets').value === 'all linear+conv'")
    assert widget(page, 4, "rank") == 24 and widget(page, 4, "alpha") == 32 and widget(page, 5, "steps") == 2500
    set_widget(page, 4, "family", "qwen_image")
    page.wait_for_function("() => window.app.graph.getNodeById(5).widgets.find((w) => w.name === 'learning_rate').value === 0.00005")
    assert widget(page, 4, "targets") == "attention+ff" and widget(page, 4, "rank") == 24


def test_a_preset_and_its_values_are_one_step_of_undo(page):
    """The page takes note of the graph when the mouse is released, before the values have come."""
    open_workflow(page, "toy_base_train_and_generate")
    state = lambda: (widget(page, 4, "preset"), widget(page, 4, "rank"), widget(page, 5, "steps"), widget(page, 4, "caption_dropout"))
    states = [state()]
    for preset in ("illustration style", "product photo"):
        page.evaluate("""async (value) => {
            const widget = window.app.graph.getNodeById(4).widgets.find((w) => w.name === "preset");
            widget.value = value;
            const done = widget.callback(value), tracker = window.app.extensionManager.workflow.activeWorkflow.changeTracker;
            (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
            await done;
        }""", preset)
        page.wait_for_timeout(500)
        states.append(state())
    assert len(set(states)) == 3 and states[1][0] == "illustration style" and states[2][0] == "product photo"
    for key, wanted in (("z", states[1]), ("z", states[0]), ("y", states[1]), ("y", states[2])):
        page.evaluate("() => window.app.canvas.canvas.focus()")
        page.keyboard.press(f"Control+{key}")
        host.eventually(page, lambda wanted=wanted: state() == wanted)
        assert state() == wanted, key


def test_an_api_file_keeps_its_own_values(page):
    """The page calls a widget's callback for each value that it reads from there, as if it were chosen."""
    prompt = workflows.WORKFLOWS["toy_base_train_and_generate"]["graph"]()
    prompt["4"]["inputs"].update(preset="person", family="sdxl", rank=5)
    page.evaluate("(prompt) => window.app.loadApiJson(prompt, 'from a file')", prompt)
    page.wait_for_timeout(2000)  # as long as a preset would have taken to come and overwrite them
    read = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert {k: plain(read["4"]["inputs"][k]) for k in prompt["4"]["inputs"]} == {k: plain(v) for k, v in prompt["4"]["inputs"].items()}
    assert {k: plain(read["5"]["inputs"][k]) for k in ("steps", "learning_rate", "batch_size")} == {"steps": 400, "learning_rate": 0.002, "batch_size": 4}
    page.evaluate("() => window.app.graph.getNodeById(4).widgets.find((w) => w.name === 'preset').callback('person')")  # as a primitive does at each run
    page.wait_for_timeout(1000)
    assert widget(page, 4, "rank") == 5 and widget(page, 5, "steps") == 400
    set_widget(page, 4, "preset", "one object")  # a choice still fills
    page.wait_for_function("() => window.app.graph.getNodeById(4).widgets.find((w) => w.name === 'rank').value !== 5")


def test_a_run_s_config_fills_the_nodes(page):
    """Dropped on the node, as a file is."""
    open_workflow(page, "toy_base_train_and_generate")
    text = LoomConfig().replace(adapter={"rank": 7, "alpha": 3.0, "target_modules": ("to_q$", "to_k$")}, train={"steps": 77, "batch_size": 2}, output={"name": "again"}).to_yaml()
    page.evaluate("""(text) => {
        const node = window.app.graph.getNodeById(4), dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([text], "config.yaml", {type: "application/yaml"}));
        return node.onDragDrop({dataTransfer});
    }""", text)
    page.wait_for_function("() => window.app.graph.getNodeById(5).widgets.find((w) => w.name === 'steps').value === 77")
    assert (widget(page, 4, "rank"), widget(page, 4, "alpha"), widget(page, 4, "target_modules")) == (7, 3, "to_q$\nto_k$")
    assert (widget(page, 5, "batch_size"), widget(page, 5, "name"), widget(page, 4, "preset")) == (2, "again", "default")


FOLD = """() => {
    const node = window.app.graph.getNodeById(4), button = node.widgets.find((w) => w.name === "lora_loom_fold");
    return {label: button?.label ?? "", height: node.size[1], seen: node.widgets.filter((w) => node.isWidgetVisible(w)).length};
}"""


def test_rare_settings_fold_away_on_the_classic_canvas(comfy, page):
    open_workflow(page, "toy_base_train_and_generate")
    folded = page.evaluate(FOLD)
    assert folded["label"].startswith("▸ 42 more settings") and folded["seen"] < 20 and folded["height"] <= workflows.graphs.HEIGHTS["LoRAConfig"]
    press = "() => window.app.graph.getNodeById(4).widgets.find((w) => w.name === 'lora_loom_fold').callback()"
    page.evaluate(press)
    opened = page.evaluate(FOLD)
    assert opened["label"] == "▾ Fewer settings" and opened["seen"] > 40 and opened["height"] > 900
    set_widget(page, 4, "huber_c", 0.5)
    page.evaluate(press)
    assert page.evaluate(FOLD)["label"] == "▸ 42 more settings · 1 changed"
    # saved and opened again, every value is in its place, the folded ones too
    page.evaluate("async () => window.app.loadGraphData(window.app.graph.serialize())")
    assert page.evaluate(FOLD)["label"] == "▸ 42 more settings · 1 changed"
    assert widget(page, 4, "huber_c") == 0.5 and widget(page, 4, "save_dtype") == "fp16"
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")["4"]["inputs"]
    assert prompt["huber_c"] == 0.5 and "lora_loom_fold" not in prompt and len(prompt) == 59


def test_run_shows_the_previews(comfy, page):
    open_workflow(page, "toy_base_train_and_generate")
    set_widget(page, 5, "steps", 20)
    set_widget(page, 7, "steps", 6)
    press_run(page, "execution_success")
    shown = lambda: page.evaluate("() => Object.fromEntries([3, 6, 7, 13, 16].map((id) => [id, (window.app.nodeOutputs[id]?.images ?? []).length]))")
    host.eventually(page, lambda: shown()["16"] == 4)
    assert shown() == {"3": 20, "6": 1, "7": 4, "13": 1, "16": 4}
    drawn = page.evaluate("() => window.app.graph.getNodeById(16).imgs?.map((i) => [i.naturalWidth, i.naturalHeight])")
    assert drawn in (None, [[384, 192]] * 4), drawn
    page.wait_for_function("() => document.querySelector('.loom-live .says')?.textContent.includes('Finished at step 20 of 20')", timeout=20_000)
    assert page.problems == []
    keep(page, f"{comfy.which}_run")


def test_a_broken_folder_is_named_on_the_page(comfy, page):
    open_workflow(page, "toy_base_train_and_generate")
    set_widget(page, 2, "folder", "broken")
    detail = press_run(page, "execution_error")
    assert detail["node_type"] == "LoadDataset" and "none of the 1 pictures" in detail["exception_message"]
    page.wait_for_function("() => window.app.graph.getNodeById(2).widgets.some((w) => String(w.value).includes('none of the 1 pictures'))", timeout=20_000)
    keep(page, f"{comfy.which}_broken_folder")
    page.keyboard.press("Escape")


def test_the_saved_workflows_are_what_this_page_saves():
    for name in workflows.WORKFLOWS:
        saved = json.loads((host.PACK / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
        assert saved["version"] == 0.4 and any(node["type"] == "MarkdownNote" for node in saved["nodes"]) and saved["groups"]


def test_a_page_s_seeds_stay_whole(comfy, page):
    """The server takes larger ones, as an API client may send them; a page that let one be typed would change its last digits."""
    nodes = ["TrainLoRA", "PreviewSample", "ChooseCheckpoint", "AugmentDataset"]
    limits = page.evaluate("""(types) => types.flatMap((type) => window.LiteGraph.createNode(type).widgets
        .filter((w) => w.name.endsWith("seed")).map((w) => [type, w.name, w.options.max, w.options.min]))""", nodes)
    assert {(kind, name) for kind, name, *_ in limits} == {("TrainLoRA", "seed"), ("TrainLoRA", "sample_seed"), *((kind, "seed") for kind in nodes[1:])}
    assert {(low, high) for *_, high, low in limits} == {(0, 2**53 - 1)}
    for kind, name, *_ in limits:
        told = comfy.get(f"/object_info/{kind}")[kind]["input"]
        assert {**told.get("required", {}), **told.get("optional", {})}[name][1]["max"] > 2**60
