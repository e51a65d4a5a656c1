"""The sidebar tab with all runs, on ComfyUI's own page: list, comparison, and what a run does to the graph. The runs are files written here."""
from __future__ import annotations

import json
import math
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.runs import checkpoint, record
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")
pages = pytest.importorskip("loom_host_pages", reason="needs websocket-client, from the extra `test`")
pytest.importorskip("playwright.sync_api", reason="needs playwright, from the extra `test`")

pytestmark = pytest.mark.browser
PROMPTS = ("a red star on a blue background", "a red circle on a blue background")
MANY = 300
LIST = re.compile(r"/lora_loom/runs\?")


workflows = pages.workflows


DATASET = {"folder": "lora_loom_stars", "resolution": 64, "min_size": 60, "trigger_word": "", "repeats": 3, "flip": True, "buckets": False, "masks": "none", "upscale": False,
           "more_resolutions": "72, 80", "augment": ""}


def add_run(base: Path, name: str, *, steps: int = 400, step: int | None = None, status: str = "finished", lora: str = "", samples: tuple[int, ...] = (), ago: float = 0,
            resumable: bool = False, best: int | None = None, slow: float = 90.0, config: dict | None = None, prompts: tuple[str, ...] = PROMPTS, **facts) -> Path:
    """A run as a training leaves it, and its LoRA file."""
    run, step, started = base / "output" / "lora_loom" / name, steps if step is None else step, time.time() - ago
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(LoomConfig().replace(**{"output": {"name": name}, **(config or {})}).to_yaml(), encoding="utf-8")
    lines, smoothed = [], 0.3
    for i in range(1, step + 1):
        loss = 0.06 + 0.24 * math.exp(-i / slow) + 0.03 * math.sin(i * 12.9898) * math.sin(i * 78.233)
        smoothed = 0.95 * smoothed + 0.05 * loss
        validation = 0.08 + abs(i - best) / 4000 if best and i % 50 == 0 else None
        lines.append({"step": i, "loss": loss, "smoothed_loss": smoothed, "learning_rate": 1e-3 * (1 + math.cos(math.pi * i / steps)) / 2, "grad_norm": 1.0, "validation_loss": validation})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = [[line["step"], line["smoothed_loss"]] for line in lines[:: -max(1, step // record.POINTS)][::-1]]
    (run / record.FILE).write_text(json.dumps({
        "version": 1, "name": name, "status": status, "started": started, "ended": started + 95, "seconds": 95, "steps": steps, "steps_per_epoch": 20, "family": "toy", "model": "toy_base",
        "pictures": 20, "lora": lora, "best": 0.08 if best else None, "best_step": best, "curve": curve, **facts}, ensure_ascii=False))
    (run / "samples").mkdir()
    for at in samples:
        for number, prompt in enumerate(prompts, 1):
            told = PngImagePlugin.PngInfo()
            told.add_itxt("lora_loom", f"{prompt}\nstep {at}, seed 0")
            with Image.open(host.PACK / "assets" / "lora_loom_stars" / f"star_{(at // 20 + number) % 20 + 1:02d}.png") as star:
                star.resize((256, 256)).save(run / "samples" / f"step{at:06d}_{number}.png", pnginfo=told)
    if resumable:
        (run / checkpoint.FILE).parent.mkdir(exist_ok=True)
        (run / checkpoint.FILE).write_bytes(b"x" * 3_000_000)
    if lora:
        (base / "output" / "loras").mkdir(exist_ok=True)
        save_file({"lora_unet_x.lora_up.weight": np.zeros((2, 2), np.float32)}, base / "output" / "loras" / lora)
    return run


@pytest.fixture(scope="module", params=host.PAGES)
def comfy(request, tmp_path_factory: pytest.TempPathFactory):
    path, site = host.asked_for(request)
    base = tmp_path_factory.mktemp(f"runs_{request.param}")
    workflows.settle(base)
    add_run(base, "toy_star", lora="toy_star.safetensors", samples=(0, 100, 200, 300, 400), best=300, ago=3600, slow=60.0, report="Finished at step 400 of 400, smoothed loss 0.0612",
            config={"adapter": {"rank": 16}, "optim": {"learning_rate": 2e-3}, "train": {"steps": 400, "batch_size": 4}}, dataset=DATASET)
    add_run(base, "toy_star_wide", steps=600, step=350, status="stopped", resumable=True, samples=(0, 100, 200, 300), lora="toy_star_wide.safetensors", ago=7200, slow=140.0,
            config={"adapter": {"rank": 48, "alpha": 24.0}, "optim": {"learning_rate": 5e-4}, "train": {"steps": 600, "batch_size": 2}, "output": {"name": "wide"}},
            dataset={**DATASET, "folder": "elsewhere", "trigger_word": "zxmug", "augment": "2 variants of each picture, crop 0.1, seed 0"})
    add_run(base, "夜景 'n' & light", step=120, status="failed", error="<img src=x onerror='window.loomPwned = 1'> is no number: lower the learning rate", samples=(0, 100), ago=90_000,
            prompts=("<b>夜景</b>", PROMPTS[0]))
    with host.Comfy(path, base, site) as server:
        server.which = request.param
        yield server


@pytest.fixture(scope="module")
def page(comfy):
    with pages.opened(comfy.url, (1500, 1000)) as page:
        page.set_default_timeout(20_000)
        yield page
        assert pages.ours(page) == []
        assert page.evaluate("() => window.loomPwned") is None


def keep(page, comfy, name: str) -> None:
    host.KEPT.mkdir(exist_ok=True)
    page.wait_for_timeout(500)
    page.screenshot(path=str(host.KEPT / f"{comfy.which}_runs_{name}.png"))


@pytest.fixture
def runs(page):
    """The tab, open and read anew."""
    with page.expect_response(LIST) as answer:
        if page.locator(".loom-runs").count():
            page.locator(".loom-runs .top button").first.click()
        else:
            page.locator("[class*='lora_loom.runs-tab-button']").click()
    page.wait_for_function("(newest) => document.querySelector('.loom-runs .run:not([hidden])') && [...document.querySelectorAll('.loom-runs .run:not([hidden])')].every((card) => newest.includes(card.run.name))",
                           arg=[run["name"] for run in answer.value.json()["runs"]])
    return page.locator(".loom-runs")


def card(runs, name: str):
    return runs.locator(".run:visible").filter(has=runs.page.locator(f'button.name:text-is("{name}")'))


def shown(runs) -> list[str]:
    """The names in sight, from top to bottom."""
    return runs.locator(".run:visible").evaluate_all("(cards) => cards.sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top).map((c) => c.run.name)")


def do(runs, name: str, what: str) -> None:
    card(runs, name).locator(f'.acts button[aria-label^="{what}"]').click()


def graph(page, *kinds: str) -> None:
    """Nodes of these kinds alone; a LoRAConfig goes into a TrainLoRA. window.loomNodes has them by kind."""
    page.evaluate("""async (kinds) => {
        await window.app.loadGraphData({nodes: [], links: [], last_node_id: 0, last_link_id: 0, version: 0.4});
        const made = window.loomNodes = {};
        kinds.forEach((kind, i) => {
            const node = made[kind] = LiteGraph.createNode(kind);
            node.pos = [500 + 450 * i, 100];
            window.app.graph.add(node);
        });
        if (made.TrainLoRA && made.LoRAConfig) made.LoRAConfig.connect(0, made.TrainLoRA, made.TrainLoRA.inputs.findIndex((i) => i.name === "config"));
        Object.assign(window.app.canvas.ds, {scale: 0.8});
        window.app.canvas.ds.offset[0] = window.app.canvas.ds.offset[1] = 60;
        window.app.canvas.setDirty(true, true);
    }""", list(kinds))
    page.wait_for_timeout(300)


def value(page, kind: str, name: str):
    return page.evaluate("([kind, name]) => window.app.graph._nodes.find((n) => n.type === kind).widgets.find((w) => w.name === name).value", [kind, name])


def says(page, text: str) -> None:
    """A message of the page with that text; then it is gone."""
    page.locator(".p-toast-message", has_text=text).first.wait_for()
    page.evaluate("() => window.app.extensionManager.toast.removeAll?.()")


def test_the_list_shows_every_run(comfy, page, runs):
    assert shown(runs) == ["toy_star", "toy_star_wide", "夜景 'n' & light"]
    star, night = card(runs, "toy_star"), card(runs, "夜景 'n' & light")
    assert "400 steps · loss" in star.locator(".facts").text_content() and star.locator(".state").text_content() == "Finished"
    assert night.locator(".state").text_content() == "Failed" and "step 120 / 400" in night.locator(".facts").text_content()
    assert star.locator("path").get_attribute("d").count("L") >= 47
    assert star.locator(".picture:visible span").all_text_contents() == ["best 300", "last 400"] and card(runs, "toy_star_wide").locator(".picture:visible").count() == 1
    page.wait_for_function("() => [...document.querySelectorAll('.loom-runs .picture img[src]')].length >= 4 && [...document.querySelectorAll('.loom-runs .picture img[src]')].every((i) => i.naturalWidth === 192)")
    used = comfy.get("/lora_loom/runs")["runs"]
    files = {run["lora"]: run["lora_bytes"] for run in used}
    assert all(files[name] == ((comfy.base / "output" / "loras" / name).stat().st_size if name else 0) for name in files) and sum(files.values()) > 0
    assert runs.locator(".foot span").text_content() == f"3 runs · {sum(run['bytes'] for run in used) / 2**20:.1f} MB + {sum(files.values())} B of LoRA files"
    keep(page, comfy, "list")


def test_use_in_graph_adds_a_loader_in_the_middle_of_the_view(comfy, page, runs):
    graph(page)
    add_run(comfy.base, "later", lora="later.safetensors", steps=20)  # the page's lists do not know it
    runs.locator(".top button").first.click()
    card(runs, "later").wait_for()
    do(runs, "later", "Use")
    says(page, "later.safetensors")
    assert value(page, "LoraLoader", "lora_name") == "later.safetensors"
    assert page.evaluate("() => LiteGraph.createNode('LoraLoaderModelOnly').widgets.find((w) => w.name === 'lora_name').options.values.includes('later.safetensors')")
    at = page.evaluate("""() => {
        const node = window.app.graph._nodes[0], ds = window.app.canvas.ds, side = document.querySelector('.loom-runs').getBoundingClientRect();
        return {x: (node.pos[0] + node.size[0] / 2 + ds.offset[0]) * ds.scale, y: (node.pos[1] + node.size[1] / 2 + ds.offset[1]) * ds.scale, side: side.right};
    }""")
    assert at["side"] + 200 < at["x"] < 1300 and 250 < at["y"] < 750, at
    do(runs, "later", "Use")  # a second one does not hide the first
    page.wait_for_function("() => window.app.graph._nodes.length === 2")
    says(page, "in the middle of the view")
    page.keyboard.press("Control+z")  # as one step
    page.wait_for_function("() => window.app.graph._nodes.length === 1")
    page.evaluate("() => { const big = LiteGraph.createNode('TrainLoRA'); big.pos = [...window.app.graph._nodes[0].pos]; window.app.graph.add(big); }")
    do(runs, "later", "Use")  # nor does another lie on what stands there
    page.wait_for_function("() => window.app.graph._nodes.length === 3")
    assert page.evaluate("""() => { const box = (n) => [n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]], nodes = window.app.graph._nodes.map(box), added = nodes.pop();
        return nodes.every((b) => b[2] < added[0] || added[2] < b[0] || b[3] < added[1] || added[3] < b[1]); }""")
    shutil.rmtree(comfy.base / "output" / "lora_loom" / "later")


def test_use_in_graph_sets_the_selected_loader(page, runs):
    graph(page, "LoraLoader", "LoraLoaderModelOnly")
    page.evaluate("() => window.app.canvas.selectNodes([window.loomNodes.LoraLoaderModelOnly])")
    before = value(page, "LoraLoader", "lora_name")
    do(runs, "toy_star_wide", "Use")
    says(page, "toy_star_wide.safetensors is set in 1 loader.")
    assert value(page, "LoraLoaderModelOnly", "lora_name") == "toy_star_wide.safetensors" and value(page, "LoraLoader", "lora_name") == before != "toy_star_wide.safetensors"
    assert page.evaluate("() => window.app.graph._nodes.length") == 2
    assert card(runs, "夜景 'n' & light").locator(".acts button").first.is_disabled()  # it has left no file


def test_resume_and_repeat(comfy, page, runs):
    graph(page)
    do(runs, "toy_star_wide", "Resume")
    says(page, "There is no Train LoRA in this graph")
    graph(page, "LoRAConfig", "TrainLoRA")
    do(runs, "toy_star_wide", "Resume")
    says(page, "Train LoRA goes on with toy_star_wide")
    page.wait_for_function("() => window.loomNodes.TrainLoRA.widgets.find((w) => w.name === 'resume').value === 'toy_star_wide'")
    assert card(runs, "toy_star").locator('.acts button[aria-label^="Resume"]').is_disabled()
    do(runs, "toy_star_wide", "Repeat")
    says(page, "The settings of toy_star_wide are filled in")
    got = [value(page, *where) for where in (("LoRAConfig", "rank"), ("LoRAConfig", "alpha"), ("TrainLoRA", "steps"), ("TrainLoRA", "batch_size"), ("TrainLoRA", "learning_rate"), ("TrainLoRA", "name"))]
    assert got == [48, 24, 600, 2, 0.0005, "wide"] and value(page, "TrainLoRA", "resume") == "none"  # it begins anew
    assert page.evaluate("() => Object.values(window.app.canvas.selected_nodes).map((n) => n.comfyClass)") == ["TrainLoRA"]  # to be seen
    page.evaluate("() => { const more = LiteGraph.createNode('TrainLoRA'); window.app.graph.add(more); window.app.canvas.deselectAll(); }")
    do(runs, "toy_star", "Repeat")
    says(page, "select the one that is meant")
    page.evaluate("() => window.app.canvas.selectNodes([window.loomNodes.TrainLoRA])")
    do(runs, "toy_star", "Repeat")
    says(page, "The settings of toy_star are filled in")
    assert (value(page, "LoRAConfig", "rank"), value(page, "TrainLoRA", "steps")) == (16, 400)


def test_resume_and_repeat_take_the_pictures_too(page, runs):
    graph(page, "LoRAConfig", "TrainLoRA", "LoadDataset")
    page.evaluate("""() => { const {LoadDataset: load, TrainLoRA: train} = window.loomNodes;
        load.connect(0, train, train.inputs.findIndex((i) => i.name === "dataset")); load.widgets.find((w) => w.name === "folder").value = "3d"; }""")
    told = lambda: {name: value(page, "LoadDataset", name) for name in DATASET if name != "augment"}
    for name, what, folder, word in (("toy_star_wide", "Resume", "3d", "zxmug"), ("toy_star", "Repeat", "lora_loom_stars", "")):  # a folder that is not here stays what it was
        do(runs, name, what)
        says(page, name)
        page.wait_for_function("(word) => window.loomNodes.LoadDataset.widgets.find((w) => w.name === 'trigger_word').value === word", arg=word)
        assert told() == {name: value for name, value in DATASET.items() if name != "augment"} | {"folder": folder, "trigger_word": word}


def test_a_config_that_two_share_is_filled_for_the_one_that_is_meant(page, runs):
    graph(page, "LoRAConfig", "TrainLoRA")
    page.evaluate("""() => { const {LoRAConfig: config, TrainLoRA: one} = window.loomNodes, two = LiteGraph.createNode("TrainLoRA"), slot = (node) => node.inputs.findIndex((i) => i.name === "config");
        window.app.graph.add(two); window.loomTwo = two;
        for (const node of [one, two]) config.connect(0, node, slot(node));
        for (const [name, value] of [["name", "second"], ["steps", 777], ["resume", "other"]]) two.widgets.find((w) => w.name === name).value = value;
        window.app.canvas.selectNodes([one]); }""")
    for action in ("Resume", "Repeat"):
        do(runs, "toy_star_wide", action)
        says(page, "toy_star_wide")
        assert value(page, "TrainLoRA", "steps") == 600 and value(page, "LoRAConfig", "rank") == 48 and value(page, "TrainLoRA", "name") == "wide"
        assert page.evaluate("() => ['name', 'steps', 'resume'].map((name) => window.loomTwo.widgets.find((w) => w.name === name).value)") == ["second", 777, "other"]


def test_search(runs):
    runs.locator("input[type=text]").fill("star FIN")
    assert shown(runs) == ["toy_star"] and "1 of 3 runs" in runs.locator(".foot").text_content()
    runs.locator("input[type=text]").fill("nothing like it")
    assert runs.locator(".empty").text_content() == "No run matches the search." and shown(runs) == []
    runs.locator("input[type=text]").fill("")
    runs.locator("select").select_option("bySize")
    assert shown(runs)[0] == "toy_star_wide"
    runs.locator("select").select_option("byTime")


def ask_name(page, name: str) -> None:
    field = page.locator(".p-dialog input[type=text], [role=dialog] input").last
    field.wait_for()
    field.fill(name)
    field.press("Enter")


def test_rename(comfy, page, runs):
    graph(page, "TrainLoRA")
    do(runs, "toy_star_wide", "Resume")
    says(page, "goes on with")
    card(runs, "toy_star_wide").locator("button.name").focus()
    page.keyboard.press("F2")
    ask_name(page, "../out")
    says(page, "out")  # refused in the server's words
    assert (comfy.base / "output" / "lora_loom" / "toy_star_wide").is_dir()
    page.wait_for_function("() => [...document.querySelectorAll('.p-dialog input[type=text], [role=dialog] input')].some((field) => field.value === '../out')")  # to be mended
    ask_name(page, "宽的星")
    card(runs, "宽的星").wait_for()
    assert value(page, "TrainLoRA", "resume") == "宽的星" and (comfy.base / "output" / "lora_loom" / "宽的星" / "config.yaml").is_file() and not card(runs, "toy_star_wide").count()
    do(runs, "宽的星", "Rename")
    ask_name(page, "toy_star_wide")
    card(runs, "toy_star_wide").wait_for()


def test_trash_undo_and_empty(comfy, page, runs):
    folder = comfy.base / "output" / "lora_loom"
    for name in ("away", "away for good"):
        add_run(comfy.base, name, steps=10, lora=f"{name}.safetensors")
    graph(page, "TrainLoRA")
    page.evaluate("() => window.app.canvas.selectNodes([window.loomNodes.TrainLoRA])")
    runs.locator(".top button").first.click()
    card(runs, "away").locator("button.name").focus()
    page.keyboard.press("Delete")
    runs.locator(".notice").wait_for()
    assert runs.locator(".notice span").text_content() == "“away” is in the trash. Its LoRA away.safetensors stays in the loras folder." and not (folder / "away").exists() and "away" not in shown(runs)
    assert page.evaluate("() => window.app.graph._nodes.length") == 1  # the selected node is the page's affair
    assert page.evaluate("() => document.activeElement.classList.contains('name')")  # the keys go on from the next run
    runs.locator(".notice button", has_text="Undo").click()
    card(runs, "away").wait_for()
    assert (folder / "away" / "config.yaml").is_file() and runs.locator(".notice").is_hidden()
    for name in ("away", "away for good"):
        do(runs, name, "Move")
        card(runs, name).wait_for(state="detached")
    runs.locator(".foot button").click()
    dialog = page.locator("dialog.small")
    assert dialog.locator("li b").all_text_contents() == sorted(dialog.locator("li b").all_text_contents(), key=["away for good", "away"].index)
    keep(page, comfy, "trash")
    dialog.locator("li", has=page.locator('b:text-is("away")')).get_by_role("button").click()
    card(runs, "away").wait_for()
    dialog.get_by_role("button", name="Empty").click()
    page.locator(".p-dialog button, [role=dialog] button").filter(has_text="Cancel").first.click()
    assert (folder / ".trash" / "away for good").is_dir()
    runs.locator(".foot button").click()
    dialog.get_by_role("button", name="Empty").click()
    page.locator(".p-dialog button, [role=dialog] button").filter(has_text="Confirm").first.click()
    says(page, "The trash is empty.")
    runs.locator(".foot button").wait_for(state="hidden")
    assert not (folder / ".trash").exists() and (comfy.base / "output" / "loras" / "away for good.safetensors").is_file()
    shutil.rmtree(folder / "away")


def test_comparison(comfy, page, runs):
    assert runs.locator(".compare").is_disabled()
    for name in ("toy_star", "toy_star_wide", "夜景 'n' & light"):
        card(runs, name).locator("input").check()
    assert runs.locator(".compare").text_content() == "Compare (3)"
    runs.locator(".compare").click()
    dialog = page.locator("dialog.runs")
    dialog.locator(".plot canvas").wait_for()
    assert dialog.locator("h2").text_content() == "3 runs side by side" and dialog.locator(".who b").all_text_contents() == ["toy_star", "toy_star_wide", "夜景 'n' & light"]
    assert dialog.locator(".report").last.text_content().startswith("<img src=x")  # as text
    # the prompt that two runs share is one row, whatever its number
    assert dialog.locator(".samples tbody th").all_text_contents() == [*PROMPTS, "<b>夜景</b>"]
    at = lambda: [text.split("best")[0] for text in dialog.locator(".samples tbody tr").first.locator(".at").all_text_contents()]
    assert at() == ["step 400", "step 300", "step 100"]
    dialog.locator("input[type=range]").fill("1")
    assert at() == ["step 100"] * 3
    dialog.locator("input[type=range]").fill("3")
    assert at() == ["step 300", "step 300", "step 100"] and "best" in dialog.locator(".samples .at").first.text_content()
    page.wait_for_function("() => [...document.querySelector('.lora-loom-modal').shadowRoot.querySelectorAll('.samples img')].slice(0, 3).every((i) => i.naturalWidth > 0)")
    keep(page, comfy, "comparison")
    box = dialog.locator(".plot .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    assert all(text.startswith("step ") for text in dialog.locator(".who .value").all_text_contents())
    for column, there in (("validation", True), ("learning_rate", True), ("grad_norm", True), ("loss", True)):
        dialog.locator("select").select_option(column)
        assert (dialog.locator(".plot canvas").count() == 1) is there
    rows = lambda: dialog.locator("section").last.locator("tr.part ~ tr:not(.part) th").all_text_contents()  # below the run's own facts
    assert rows() == ["folder", "trigger_word", "augment", "rank", "alpha", "learning_rate", "steps", "batch_size", "name"], rows()
    dialog.get_by_label("All settings").check()
    assert len(rows()) > 50 and dialog.locator("tr.differs").count() == 9
    dialog.get_by_label("All settings").uncheck()
    dialog.get_by_role("button", name="All steps").click()
    assert dialog.locator(".samples.steps tbody tr").count() == 3 + 6 and dialog.locator(".samples.steps img").count() == 22
    dialog.locator("section").nth(1).scroll_into_view_if_needed()
    keep(page, comfy, "all_steps")
    dialog.get_by_role("button", name="Leave out 夜景").click()
    assert dialog.locator("h2").text_content() == "2 runs side by side" and dialog.locator("thead th").count() == 3 * 2
    dialog.locator(".samples button:visible").first.click()
    page.locator("dialog.viewer img").wait_for()
    page.keyboard.press("Escape")
    page.locator("dialog.viewer").wait_for(state="detached")
    graph(page, "LoRAConfig", "TrainLoRA")
    dialog.locator(".who > div").last.get_by_role("button", name="Repeat").click()
    says(page, "The settings of toy_star_wide are filled in")
    assert value(page, "LoRAConfig", "rank") == 48 and page.locator("dialog.runs").count() == 0
    runs.locator(".top .compare + button").click()
    assert runs.locator(".compare").is_disabled()


def test_a_list_that_changes_under_the_mouse_waits_for_the_release(comfy, page, runs):
    away = add_run(comfy.base, "away soon", steps=10)
    refresh = runs.locator(".top button").first
    refresh.click()
    card(runs, "away soon").wait_for()
    page.wait_for_timeout(300)  # the list stands still
    box = card(runs, "toy_star").locator("input").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    shutil.rmtree(away)
    with page.expect_response(LIST):
        refresh.evaluate("(button) => button.click()")
    page.wait_for_timeout(300)
    assert shown(runs)[0] == "away soon"
    page.mouse.up()
    card(runs, "away soon").wait_for(state="detached")
    assert card(runs, "toy_star").locator("input").is_checked() and runs.locator("input:checked").count() == 1
    runs.locator(".top .compare + button").click()


def test_one_run_with_settings_of_another_version(comfy, page, runs):
    text = (comfy.base / "output" / "lora_loom" / "toy_star" / "config.yaml").read_text()
    (comfy.base / "output" / "lora_loom" / "toy_star" / "config.yaml").write_text(text + "\nof_the_future: {a: 1}\n")
    card(runs, "toy_star").locator("button.name").click()
    dialog = page.locator("dialog.runs")
    dialog.locator("pre").wait_for()
    assert "of_the_future" in dialog.locator("pre").text_content() and dialog.locator("h2").text_content() == "toy_star"
    (comfy.base / "output" / "lora_loom" / "toy_star" / "config.yaml").write_text(text)
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


def test_a_run_that_trains_shows_its_progress(comfy, page, runs):
    send = lambda name, **data: page.evaluate("([name, data]) => window.app.api.dispatchCustomEvent(`lora_loom.${name}`, data)", [name, {"run": "now", "node": "5", "prompt_id": "p", **data}])
    add_run(comfy.base, "now", steps=200, step=40, status="running", ago=-5)
    send("started", step=0, steps=200)  # a run that the list does not know: it is read anew
    card(runs, "now").wait_for()
    for step in range(50, 130, 10):
        send("progress", phase="train", step=step, steps=200, smoothed_loss=0.2 - step / 1000, eta_seconds=75)
    page.wait_for_timeout(100)
    now = card(runs, "now")
    assert now.locator(".facts").text_content() == "step 120 / 200 · 1:15 left · loss 0.0800" and now.locator(".state").text_content() == "Training"
    assert now.locator(".done i").evaluate("(bar) => bar.style.width") == "60%" and now.locator('.acts button[aria-label^="Move"]').is_disabled()
    assert now.locator("path").get_attribute("d").endswith("L59.8 100.0")  # of 200 steps
    keep(page, comfy, "training")
    shutil.rmtree(comfy.base / "output" / "lora_loom" / "now")
    add_run(comfy.base, "now", steps=200, status="finished", ago=-5, lora="now.safetensors")
    send("ended", status="finished")
    now.locator('.state:text-is("Finished")').wait_for()
    assert now.locator(".acts button").first.is_enabled()
    shutil.rmtree(comfy.base / "output" / "lora_loom" / "now")


def test_the_comparison_follows_a_run_that_trains(comfy, page, runs):
    def tell(name: str, **data) -> None:
        page.evaluate("([name, data]) => window.app.api.dispatchCustomEvent(`lora_loom.${name}`, data)", [name, {"run": "going", "node": "5", "prompt_id": "p", **data}])

    def grow(step: int, **facts) -> None:
        if (comfy.base / "output" / "lora_loom" / "going").exists():
            shutil.rmtree(comfy.base / "output" / "lora_loom" / "going")
        add_run(comfy.base, "going", steps=300, step=step, ago=-5, **facts)

    grow(60, status="running", samples=(0,))
    runs.locator(".top button").first.click()
    card(runs, "going").wait_for()
    for name in ("going", "toy_star"):
        card(runs, name).locator("input").check()
    runs.locator(".compare").click()
    dialog = page.locator("dialog.runs")
    dialog.locator(".plot canvas").wait_for()
    told = dialog.locator(".who > div", has_text="going").locator(".soft").first
    dialog.locator("select").select_option("loss")
    before = dialog.locator(".plot canvas").evaluate("(c) => c.toDataURL()")
    grow(180, status="running", samples=(0, 150))
    tell("progress", phase="train", step=180, steps=300, smoothed_loss=0.1)
    dialog.locator(".samples .at", has_text="step 150").first.wait_for()
    assert "step 180 / 300" in told.text_content() and dialog.locator("select").input_value() == "loss"  # what was set stays
    assert dialog.locator(".plot canvas").evaluate("(c) => c.toDataURL()") != before
    grow(300, status="finished", samples=(0, 150), lora="going.safetensors")
    tell("ended", status="finished")
    dialog.locator('.who .state:text-is("Finished")').nth(1).wait_for()
    assert dialog.locator("select").input_value() == "loss" and dialog.locator(".who > div", has_text="going").get_by_role("button", name="Use").is_enabled()
    page.keyboard.press("Escape")
    runs.locator(".top .compare + button").click()
    shutil.rmtree(comfy.base / "output" / "lora_loom" / "going")
    runs.locator(".top button").first.click()


def test_hundreds_of_runs_and_the_keys(comfy, page, runs):
    for number in range(MANY):
        add_run(comfy.base, f"one of many {number:03d}", steps=3, ago=200_000 + number)
    runs.locator(".top button").first.click()
    page.wait_for_function(f"() => document.querySelector('.loom-runs .foot span').textContent.startsWith('{MANY + 3} runs')")
    assert runs.locator(".run").count() < 20  # elements; the others come when they are scrolled to
    card(runs, "toy_star").locator("button.name").focus()
    name = "() => document.activeElement.textContent"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(name) == "toy_star_wide"
    page.keyboard.press("End")
    assert page.evaluate(name) == f"one of many {MANY - 1:03d}" and runs.locator(".run").count() < 24
    page.keyboard.press("Home")
    assert page.evaluate(name) == "toy_star"
    assert runs.locator(".run button[tabindex='0']:visible").evaluate_all("(found) => new Set(found.map((b) => b.closest('.run').run.name)).size") == 1
    drawn = page.evaluate("""async () => {
        const box = document.querySelector(".loom-runs .grid"), found = {most: 0, names: new Set(), writes: 0};
        const watch = new MutationObserver((changes) => (found.writes += changes.length));
        for (let i = 0; i < 60; i += 1) {
            box.scrollTop += 40;
            await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
            if (i === 20) watch.observe(box, {subtree: true, attributes: true, attributeFilter: ["d"]});
            const cards = [...box.querySelectorAll(".run:not([hidden])")];
            found.most = Math.max(found.most, cards.length);
            for (const card of cards) found.names.add(card.querySelector(".name").textContent);
        }
        watch.disconnect();
        return {...found, names: found.names.size};
    }""")
    assert drawn["most"] < 12 and drawn["names"] > 16 and drawn["writes"] < 20, drawn  # a card that stays in sight is not drawn again
    for number in range(MANY):
        shutil.rmtree(comfy.base / "output" / "lora_loom" / f"one of many {number:03d}")


def test_light_theme_chinese_and_a_narrow_bar(comfy, page):
    page.evaluate("""async () => {
        await window.app.extensionManager.setting.set("Comfy.ColorPalette", "light");
        await window.app.extensionManager.setting.set("Comfy.Locale", "zh");
    }""")
    page.wait_for_timeout(500)
    tab, runs = page.locator("[class*='lora_loom.runs-tab-button']"), page.locator(".loom-runs")
    page.locator("[class*='lora_loom.runs-tab-button'][aria-label='LoRA Loom 的所有训练：查看、对比、使用']").wait_for()  # without a reload, as the page's own tabs
    if runs.count():
        tab.click()
        runs.wait_for(state="detached")
    tab.click()
    runs.locator(".run:visible").first.wait_for()
    assert card(runs, "toy_star").locator(".state").text_content() == "已完成" and runs.locator(".compare").text_content() == "对比（0）"
    keep(page, comfy, "zh_light")
    for name in ("toy_star", "toy_star_wide"):
        card(runs, name).locator("input").check()
    runs.locator(".compare").click()
    page.locator("dialog.runs .plot canvas").wait_for()
    keep(page, comfy, "zh_light_comparison")
    page.locator("dialog.runs label", has_text="所有设置").locator("input").check()
    assert page.locator("dialog.runs th[scope=row]", has_text="适合的图片数 · pictures").count() == 1
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 700, "height": 500})  # as a window at 200 %
    page.evaluate("() => { document.querySelector('.loom-runs').style.width = '240px'; }")
    page.wait_for_timeout(300)
    assert page.evaluate("""() => [...document.querySelectorAll(".loom-runs .run:not([hidden]) .acts button, .loom-runs .run:not([hidden]) .name")].every((b) => {
        const box = b.getBoundingClientRect(), around = b.closest(".run").getBoundingClientRect();
        return box.left >= around.left && box.right <= around.right && box.width >= 24;
    })""")
    keep(page, comfy, "narrow")
    runs.locator(".compare").click()
    page.locator("dialog.runs .plot canvas").wait_for()
    keep(page, comfy, "narrow_comparison")
    page.keyboard.press("Escape")
