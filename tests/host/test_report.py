"""The quality report in a real ComfyUI: in the nodes, over HTTP, and drawn on the page in both renderers."""
from __future__ import annotations

import json
import socket
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image, ImageFilter
from skimage import data

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")
pages = pytest.importorskip("loom_host_pages", reason="needs websocket-client, from the extra `test`")


workflows = pages.workflows
node = workflows.node


@pytest.fixture(scope="module", params=["newest", "oldest"])
def comfy(request, tmp_path_factory: pytest.TempPathFactory):
    path, site = host.asked_for(request)
    base = tmp_path_factory.mktemp(f"report_{request.param}")
    workflows.settle(base)
    home = base / "input" / "图 set"
    home.mkdir(parents=True)
    for name in ("astronaut", "chelsea", "coffee", "camera"):
        Image.fromarray(getattr(data, name)()).save(home / f"{name}.png")
        (home / f"{name}.txt").write_text("a photo" if name != "camera" else "zxmug " + "very " * 90 + "long", encoding="utf-8")
    Image.open(home / "astronaut.png").resize((400, 400)).save(home / "astronaut again.jpg", quality=60)
    Image.open(home / "coffee.png").filter(ImageFilter.GaussianBlur(5)).crop((50, 0, 450, 400)).save(home / "soft <b>.png")
    (home / "broken.png").write_bytes(b"no picture")
    host.by_path("loom_test_captioners", host.PACK / "tests" / "test_captioners.py").write_model(base / "models" / "open_clip" / "tiny")
    with host.Comfy(path, base, site) as server:
        server.which = request.param
        yield server


def graph(clip: bool = False, **changes) -> dict:
    found = {
        "2": node("LoadDataset", folder="图 set", resolution=512, min_size=64, caption_source="auto", trigger_word="zxmug", repeats=1, flip=False, buckets=True,
                  **({"clip": ["1", 1]} if clip else {})),
        "3": node("PreviewAny", source=["2", 2]),
        "4": node("FilterDataset", dataset=["2", 0], **{"duplicates": True, "blurred": True, "badly_exposed": False, "model": "none", "prompt": "", "min_similarity": 0.2, **changes}),
        "5": node("PreviewAny", source=["4", 1]),
    }
    return found | ({"1": node("ToyBase")} if clip else {})


def test_the_nodes_report(comfy):
    outcome = comfy.run(graph(clip=True))
    assert outcome.ending == "execution_success", outcome.error
    outputs = outcome.history["outputs"]
    [tree] = outputs["2"]["lora_loom_report"]
    found = {finding["id"]: finding for finding in tree["findings"]}
    assert set(found) == {"broken", "alike", "blurred", "smaller", "no_caption", "same_caption", "without_trigger", "long_captions", "few_pictures"}
    assert found["alike"]["pictures"] == [{"name": "astronaut again.jpg", "detail": "like astronaut.png"}]
    assert found["long_captions"]["values"] | {"most": 0, "parts": 0} == {"n": 1, "limit": 75, "encoder": "CLIP-L", "most": 0, "windows": True, "parts": 0}
    text = "".join(outputs["3"]["text"])
    assert "6 pictures x 1 repeats" in text and all(finding["text"] in text for finding in found.values())
    [left] = outputs["4"]["lora_loom_report"]
    assert left["pictures"] == 4 and {p["name"] for f in left["findings"] if f["id"] == "filtered" for p in f["pictures"]} == {"astronaut again.jpg", "soft <b>.png"}
    assert "2 of 6 pictures left out" in "".join(outputs["5"]["text"])
    assert len(list((comfy.base / "input" / "图 set").iterdir())) == 11  # nothing is deleted, and nothing is written there
    assert len(list((comfy.base / "output" / "lora_loom" / ".cache" / "measures").glob("*.json"))) == 1


def test_filters_by_a_local_model(comfy):
    outcome = comfy.run(graph(model="tiny", prompt="a cat", min_similarity=-1.0))
    assert outcome.ending == "execution_success", outcome.error
    text = "".join(outcome.history["outputs"]["5"]["text"])
    assert "2 of 6 pictures left out" in text and text.count(": similarity ") == 4
    for changes, said in (({"model": "tiny", "prompt": "a cat", "min_similarity": 1.0}, "leaves out all 4 pictures"), ({"prompt": "a cat"}, "model is none"),
                          ({"model": "../tiny", "prompt": "a cat"}, "../tiny")):
        outcome = comfy.run(graph(**changes))
        assert said in outcome.error, outcome.error


def test_train_lora_says_what_only_it_can_know(comfy):
    whole = workflows.toy()
    whole["2"]["inputs"].update(folder="图 set", trigger_word="zxmug")
    whole["4"]["inputs"].update(preset="person", preservation=0.0)
    whole["5"]["inputs"].update(steps=1, sample_steps=0, batch_size=1)
    outcome = comfy.run({key: whole[key] for key in ("1", "2", "4", "5")})
    assert outcome.ending == "execution_success", outcome.error
    [told] = [data for kind, data in outcome.messages if kind == "lora_loom.warnings"]
    last = "\n".join(told["warnings"])
    assert "6 pictures are few: the preset is made for 15 to 30" in last and "above the 75 tokens that CLIP-L reads at once" in last


def route(**parameters) -> str:
    return "/lora_loom/report?" + urllib.parse.urlencode(parameters)


def refusal(comfy, **parameters) -> str:
    import urllib.error

    with pytest.raises(urllib.error.HTTPError) as caught:
        comfy.get(route(**parameters))
    assert caught.value.code == 400
    return json.loads(caught.value.read())["error"]


def test_the_report_over_http(comfy):
    tree = comfy.get(route(folder="图 set", min_size=64, trigger_word="zxmug", preset="person", batch_size=4))
    assert tree["pictures"] == 6 and {"broken", "alike", "blurred", "few_pictures", "short_batches"} <= {finding["id"] for finding in tree["findings"]}
    assert comfy.get(route(folder="图 set", min_size=64, flip="true", resolution=256))["resolution"] == 256
    for wrong, said in (({"folder": "../output"}, "'../output' is none that LoadDataset lists"), ({"folder": "/etc"}, "is none that LoadDataset lists"), ({}, "is no name"),
                        ({"folder": "图 set", "resolution": "1e9"}, "no whole number"), ({"folder": "图 set", "resolution": 1}, "below 64"),
                        ({"folder": "图 set", "buckets": "maybe"}, "buckets=true"), ({"folder": "图 set", "nonsense": 1}, "'nonsense' is unknown"),
                        ({"folder": "图 set", "batch_size": 0}, "batch_size 0"), ({"folder": "图 set", "preset": "../x"}, "unknown"),
                        ({"folder": "图 set", "masks": "x"}, "masks 'x'")):
        assert said in refusal(comfy, **wrong), wrong
    link = comfy.base / "input" / "out"
    link.symlink_to(comfy.base / "output", target_is_directory=True)
    assert "is not there" in refusal(comfy, folder="out")


def test_a_run_goes_before_a_report(comfy):
    """What a page has begun to measure stops for a run that wants to, is done with it, and comes all the same."""
    home = comfy.base / "input" / "some"
    home.mkdir()
    for number in range(60):
        Image.fromarray(data.coffee()).rotate(number).save(home / f"{number}.jpg")
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(comfy.get, route(folder="some", min_size=64))
        time.sleep(0.5)
        prompt = {"2": node("LoadDataset", **{**graph()["2"]["inputs"], "folder": "some"}), "3": node("PreviewAny", source=["2", 2])}
        outcome = comfy.run(prompt)
        assert outcome.ending == "execution_success" and outcome.history["outputs"]["2"]["lora_loom_report"][0]["of"]["folder"] == "some", outcome.error
        assert report.result(120)["pictures"] == 60


def test_a_report_that_nobody_waits_for_ends(comfy):
    home = comfy.base / "input" / "many"
    home.mkdir()
    for number in range(300):
        Image.fromarray(data.coffee()).rotate(number).save(home / f"{number}.jpg")
    with socket.create_connection(("127.0.0.1", comfy.port)) as page:
        page.sendall(f"GET {route(folder='many', min_size=64)} HTTP/1.1\r\nHost: 127.0.0.1:{comfy.port}\r\n\r\n".encode())
    assert comfy.get(route(folder="图 set", min_size=64))["pictures"] == 6  # comes after it
    remembered = [json.loads(path.read_text()) for path in (comfy.base / "output" / "lora_loom" / ".cache").rglob("*.json")]
    assert remembered and all(len(tree.get("files") or tree["pictures"]) < 300 for tree in remembered)


# ---------------------------------------------------------------- on the page

pytest.importorskip("playwright.sync_api", reason="needs playwright, from the extra `test`")
LOOK = """() => [2, 4].map((id) => {
    const node = window.app.graph.getNodeById(id), drawn = node.loomReport;
    return {height: node.size[1], rows: drawn ? [...drawn.querySelectorAll("summary span:first-child")].map((e) => e.textContent) : [],
            text: drawn?.textContent ?? "", seen: drawn?.getBoundingClientRect().height ?? 0, bold: drawn?.querySelectorAll("li b").length};
})"""


@pytest.fixture(scope="module")
def page(comfy):
    with pages.opened(comfy.url, (1500, 1100)) as page:
        yield page


def setting(page, name: str, value) -> None:
    page.evaluate("async ([name, value]) => window.app.extensionManager.setting.set(name, value)", [name, value])
    page.wait_for_timeout(700)


def run(page) -> None:
    page.evaluate("""() => { window.loomDone = ""; for (const name of ["execution_success", "execution_error"])
        window.app.api.addEventListener(name, () => { window.loomDone = name; }, {once: true}); window.app.queuePrompt(0, 1); }""")
    page.wait_for_function("() => window.loomDone === 'execution_success'", timeout=120_000)
    page.wait_for_timeout(1200)


def open_graph(page, prompt: dict) -> None:
    page.evaluate("(prompt) => window.app.loadApiJson(prompt, 'report')", prompt)
    page.wait_for_timeout(1200)
    page.evaluate("""() => { [[2, 20], [3, 420], [4, 760], [5, 1160]].forEach(([id, x]) => { window.app.graph.getNodeById(id).pos = [x, 60]; });
        window.app.canvas.ds.scale = 1; window.app.canvas.ds.offset = [60, 60]; window.app.canvas.setDirty(true, true); }""")


@pytest.mark.browser
@pytest.mark.parametrize("renderer", ["canvas", "vue"])
def test_the_report_is_drawn_in_the_node(comfy, page, renderer):
    if renderer == "vue" and comfy.which == "oldest":
        pytest.skip("its page has no new nodes")
    setting(page, "Comfy.VueNodes.Enabled", renderer == "vue") if comfy.which == "newest" else None
    open_graph(page, graph(min_similarity=0.2 if renderer == "vue" else 0.21))  # not from the cache on 0.3.64, which tells the page nothing then
    before = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    page.wait_for_function("() => window.app.graph.getNodeById(2).loomReport.querySelector('summary')")  # Load Dataset's own, before anything runs
    first, none = page.evaluate(LOOK)
    assert none["rows"] == []
    run(page)
    drawn, filtered = page.evaluate(LOOK)
    assert drawn["rows"] == first["rows"] and drawn["height"] == first["height"]
    assert drawn["rows"][0] == "Cannot be used" and {"Almost the same", "Blurred", "Few pictures"} <= set(drawn["rows"])
    assert "6 pictures" in drawn["text"] and "512×512" in drawn["text"] and "soft <b>.png" in drawn["text"] and drawn["bold"] == 0  # a name is no HTML
    assert "4 pictures" in filtered["text"] and "Left out by a filter" in filtered["rows"] and drawn["seen"] > 200
    page.evaluate("() => document.querySelectorAll('.loom-report details').forEach((e) => e.setAttribute('open', ''))")
    page.wait_for_timeout(500)
    assert [now["height"] for now in page.evaluate(LOOK)] == [drawn["height"], filtered["height"]]  # it scrolls, nothing jumps
    page.evaluate("() => document.querySelectorAll('.loom-report details').forEach((e, i) => e.toggleAttribute('open', i === 1))")
    host.KEPT.mkdir(exist_ok=True)
    page.wait_for_timeout(300)
    page.screenshot(path=str(host.KEPT / f"{comfy.which}_report_{renderer}.png"))
    # saved and opened again every value is in its place, and no report is among them
    saved = page.evaluate("() => window.app.graph.serialize()")
    assert "Cannot be used" not in json.dumps(saved) and "lora_loom_report" not in json.dumps(saved)
    page.evaluate("(saved) => window.app.loadGraphData(saved)", saved)
    page.wait_for_timeout(1000)
    assert page.evaluate("async () => (await window.app.graphToPrompt()).output") == before
    if comfy.which == "newest":  # from the cache, the page is told again
        run(page)
        assert page.evaluate(LOOK)[0]["rows"] == drawn["rows"]
    assert page.problems == []


SET = "([name, value]) => { window.app.graph.getNodeById(2).widgets.find((w) => w.name === name).value = value; }"
AGAIN = """() => { const node = window.app.graph.getNodeById(2); window.loomReport ??= window.app.nodeOutputs[2].lora_loom_report[0];
    node.onExecuted({lora_loom_report: [{...structuredClone(window.loomReport), pictures: 77}]}); }"""  # as a workflow that is opened again brings it along


@pytest.mark.browser
def test_a_run_s_report_is_shown_for_its_own_settings_alone(comfy, page):
    prompt = graph()
    prompt["2"]["inputs"]["trigger_word"] = "zxnew"  # from the cache the page of 0.3.64 is told nothing
    open_graph(page, prompt)
    head, bars = page.locator(".loom-report .loom-head").first, "() => window.app.graph.getNodeById(2).loomReport.querySelectorAll('.loom-buckets i').length"
    page.wait_for_function("() => window.app.graph.getNodeById(2).loomReport.querySelector('summary')")
    several = page.evaluate(bars)
    run(page)
    page.evaluate(SET, ["more_resolutions", "128"])
    page.wait_for_function(f"() => ({bars})() > {several}")
    page.evaluate(AGAIN)
    page.wait_for_timeout(1500)
    assert page.evaluate(bars) > several and "77" not in head.text_content()
    page.evaluate(SET, ["more_resolutions", ""])
    page.wait_for_function(f"() => ({bars})() === {several}")
    page.evaluate(AGAIN)
    page.wait_for_function("() => window.app.graph.getNodeById(2).loomReport.textContent.includes('77 pictures')")
    page.evaluate("() => { delete window.loomReport; }")


@pytest.mark.browser
def test_what_is_computed_is_known_when_it_runs(comfy, page):
    prompt = graph(min_similarity=0.24)
    prompt["6"] = node("StringLength", string="x" * 300)
    prompt["2"]["inputs"]["resolution"] = ["6", 0]
    open_graph(page, prompt)
    page.locator(".loom-report", has_text="resolution comes from another node").first.wait_for()
    run(page)
    page.wait_for_function("() => window.app.graph.getNodeById(2).loomReport.textContent.includes('320×320')")
    page.evaluate("() => { const load = window.app.graph.getNodeById(2); load.disconnectInput(load.inputs.findIndex((input) => input.name === 'resolution')); }")
    page.wait_for_function("() => window.app.graph.getNodeById(2).loomReport.textContent.includes('512×512')")
    page.evaluate("() => { const load = window.app.graph.getNodeById(2); window.app.graph.getNodeById(6).connect(0, load, load.inputs.findIndex((input) => input.name === 'resolution')); }")
    page.locator(".loom-report", has_text="resolution comes from another node").first.wait_for()


@pytest.mark.browser
def test_the_report_is_drawn_in_chinese(comfy, page):
    setting(page, "Comfy.Locale", "zh")
    open_graph(page, graph(min_similarity=0.22))
    run(page)
    drawn = page.evaluate(LOOK)[1]
    assert "4 张图片" in drawn["text"] and "无法使用" in drawn["rows"] and "被筛选剔除" in drawn["rows"] and "undefined" not in drawn["text"]
    assert "Cannot" not in drawn["text"] and "1 个文件无法使用" in drawn["text"]
    setting(page, "Comfy.Locale", "en")
