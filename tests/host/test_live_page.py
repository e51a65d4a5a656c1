"""The live panel in ComfyUI's own page: curves and samples while it trains, its buttons, and that it is there again after a reload, in another
browser, in another workflow and on another day."""
from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lora_loom.trainer.runs import held
from PIL import Image

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")
pages = pytest.importorskip("loom_host_pages", reason="needs websocket-client, from the extra `test`")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, from the extra `test`")

pytestmark = pytest.mark.browser


workflows = pages.workflows


@pytest.fixture(scope="module", params=host.PAGES)
def comfy(request, tmp_path_factory: pytest.TempPathFactory):
    path, site = host.asked_for(request)
    base = tmp_path_factory.mktemp(f"live_{request.param}")
    workflows.settle(base)
    with host.Comfy(path, base, site) as server:
        server.which = request.param
        yield server


@pytest.fixture(scope="module")
def playwright():
    with sync_api.sync_playwright() as found:
        yield found


@pytest.fixture(scope="module")
def page(comfy, playwright):
    browser, page = pages.launched(playwright, comfy.url)
    yield page
    browser.close()


@pytest.fixture(autouse=True)
def idle(comfy):
    """Nothing runs on when a test has failed."""
    yield
    with contextlib.suppress(OSError):
        comfy.post("/interrupt", {})


OPEN = """async (values) => {
    const answer = await window.app.api.fetchApi("/workflow_templates/comfyui-lora-loom/toy_base_train_and_generate.json");
    const graph = await answer.json();
    graph.nodes = graph.nodes.filter((n) => ["ToyBase", "LoadDataset", "LoRAConfig", "TrainLoRA"].includes(n.type));
    const there = new Set(graph.nodes.map((n) => n.id));
    graph.links = graph.links.filter((l) => there.has(l[1]) && there.has(l[3]));
    const left = new Set(graph.links.map((l) => l[0]));
    for (const node of graph.nodes) for (const output of node.outputs ?? []) output.links = output.links?.filter((id) => left.has(id));
    graph.groups = [];
    await window.app.loadGraphData(graph);
    for (const [type, name, value] of values) window.app.graph._nodes.find((n) => n.comfyClass === type).widgets.find((w) => w.name === name).value = value;
}"""
TRAINER = "window.app.graph._nodes.find((n) => n.comfyClass === 'TrainLoRA')"
LOOK = f"() => {{ const n = {TRAINER}, d = window.app.canvas.ds; d.scale = 1.5; d.offset = [90 - n.pos[0], 60 - n.pos[1]]; window.app.canvas.setDirty(true, true); }}"


def start(page, name: str, **values) -> None:
    train = {"steps": 400, "batch_size": 1, "sample_steps": 0, "name": name, **values}
    config = [("LoRAConfig", "preservation", 0), *(("LoRAConfig", key, train.pop(key)) for key in ("optimizer",) if key in train)]
    page.evaluate(OPEN, [*config, *(("TrainLoRA", key, value) for key, value in train.items())])
    page.wait_for_timeout(400)


def until(page, check: str, seconds: float = 60):
    page.wait_for_function(check, timeout=seconds * 1000)


def text(page, where: str) -> str:
    return page.locator(f".loom-live {where}").first.inner_text()


def status(page) -> str:
    return page.locator(".loom-live").first.get_attribute("data-status")


def keep(page, comfy, name: str) -> None:
    host.KEPT.mkdir(exist_ok=True)
    page.evaluate(LOOK)
    page.wait_for_timeout(700)
    page.screenshot(path=str(host.KEPT / f"live_{name}_{comfy.which}.png"))


STEP = "() => Number((document.querySelector('.loom-live .numbers')?.textContent.match(/\\d+/) ?? [0])[0])"


def running(page, steps: int) -> None:
    until(page, f"() => document.querySelector('.loom-live')?.dataset.status === 'running' && document.querySelector('.loom-live').dataset.phase === 'train' && ({STEP})() >= {steps}")


def drawn(page) -> int:
    """Pixels of the chart that are not its background."""
    return page.evaluate("""() => { const c = document.querySelector('.loom-live canvas'); if (!c?.width) return 0;
        const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0; for (let i = 3; i < data.length; i += 4) n += data[i] > 0; return n; }""")


def samples(page) -> list[str]:
    return page.evaluate("() => [...document.querySelectorAll('.loom-live .film img')].filter((i) => i.complete && i.naturalWidth).map((i) => new URL(i.src).searchParams.get('file'))")


def state(comfy) -> dict:
    return comfy.get("/lora_loom/state")["trainings"][0]


def test_a_run_is_watched_saved_sampled_and_stopped(comfy, page, playwright) -> None:
    start(page, "watched")
    assert status(page) == "idle" and text(page, ".head b") == "Press Run to train"
    page.evaluate(SET, ["name", "a/b:c"])
    until(page, "() => document.querySelector('.loom-live .head b').textContent === 'Not ready: see below'")
    page.evaluate(SET, ["name", "watched"])
    until(page, "() => document.querySelector('.loom-live .head b').textContent === 'Press Run to train'")
    assert page.locator(".loom-live .buttons button:visible").count() == 3
    page.evaluate("window.app.queuePrompt(0)")
    running(page, 5)
    assert text(page, ".head b") == "Training · watched" and "epoch" in text(page, ".head .soft") and "RAM" in text(page, ".room")
    assert drawn(page) > 500 and samples(page) == []
    page.get_by_role("button", name="Save now").click()
    page.get_by_role("button", name="Sample now").click()
    until(page, "() => document.querySelectorAll('.loom-live .film img').length === 2", 90)
    until(page, "() => [...document.querySelectorAll('.loom-live .says p')].some((p) => /saved at step \\d+ \\(asked for\\)/.test(p.textContent))")
    keep(page, comfy, "running")
    told = comfy.get("/lora_loom/run?name=watched")
    assert [c["kind"] for c in told["checkpoints"]] == ["saved"] and len(told["samples"]) == 2 and told["status"] == "running"

    page.reload()  # in the middle
    page.wait_for_function("() => window.app?.graph?._nodes?.length > 3", timeout=60_000)
    running(page, 6)
    until(page, "() => [...document.querySelectorAll('.loom-live .film img')].filter((i) => i.naturalWidth).length === 2")
    assert drawn(page) > 500 and len(samples(page)) == 2

    browser, other = pages.launched(playwright, comfy.url)  # who opens the same workflow elsewhere
    try:
        start(other, "watched")
        running(other, 6)
        before = other.evaluate(STEP)
        until(other, f"() => ({STEP})() > {before}")  # events reach it too
        start(other, "another")  # another workflow's node of the same number is not this run's
        other.evaluate("() => { window.app.graph.id = '00000000-0000-4000-8000-000000000001'; }")
        start(other, "another")
        assert pages.ours(other) == []
    finally:
        browser.close()

    page.evaluate("async () => { const kept = window.app.graph.serialize(); await window.app.loadGraphData({...kept, id: '00000000-0000-4000-8000-000000000002', nodes: [], links: []}); window.kept = kept; }")
    page.wait_for_timeout(500)
    page.evaluate("() => window.app.loadGraphData(window.kept)")
    running(page, 7)
    page.get_by_role("button", name="Stop and keep").click()
    until(page, "() => document.querySelector('.loom-live').dataset.status === 'stopped'")
    until(page, "() => /^Stopped at step/.test(document.querySelector('.loom-live .says p')?.textContent)")
    assert (comfy.base / "output" / "loras" / "watched.safetensors").is_file() and state(comfy)["status"] == "stopped"
    assert [b for b in page.locator(".loom-live .buttons button:visible").all_inner_texts()] == ["Resume"]
    keep(page, comfy, "stopped")
    page.get_by_role("button", name="Resume").click()
    until(page, f"() => {TRAINER}.widgets.find((w) => w.name === 'resume').value === 'watched'")
    assert pages.ours(page) == []


SET = "([name, value]) => { const w = window.app.graph._nodes.flatMap((n) => n.widgets ?? []).find((w) => w.name === name); w.value = value; }"
SAID = "() => [...document.querySelectorAll('.loom-live .says p.error')].map((p) => p.textContent)"
VALUE = "(name) => window.app.graph._nodes.flatMap((n) => n.widgets ?? []).find((w) => w.name === name).value"


def says(page, part: str, seconds: float = 30) -> None:
    """The panel's errors are one, with that in it; "": there is none."""
    until(page, f"() => {{ const said = ({SAID})(); return {json.dumps(part)} ? said.length === 1 && said[0].includes({json.dumps(part)}) : said.length === 0; }}", seconds)


def ended(comfy) -> float:
    """When a training ended last."""
    return max((t.get("ended", 0.0) for t in comfy.get("/lora_loom/state")["trainings"]), default=0.0)


def queue(page, comfy) -> None:
    """Run, until that training has ended."""
    before = ended(comfy)
    page.evaluate("window.app.queuePrompt(0)")
    deadline = time.monotonic() + 60
    while ended(comfy) == before and time.monotonic() < deadline:
        page.wait_for_timeout(100)  # the page's requests go through this process
    assert ended(comfy) > before
    page.wait_for_timeout(700)
    page.keyboard.press("Escape")  # ComfyUI's own dialog of an error


def test_an_error_stands_as_long_as_the_settings_that_made_it(comfy, page, playwright) -> None:
    start(page, "stands", steps=3)
    queue(page, comfy)
    until(page, "() => document.querySelector('.loom-live').dataset.status === 'finished'")
    page.evaluate(SET, ["target_modules", "nonsense"])
    says(page, "'nonsense' finds no layer")  # before a run already, beside the last one
    assert text(page, ".head b") == "Finished · stands" and page.get_by_role("button", name="Set target_modules empty").is_visible()
    queue(page, comfy)
    until(page, "() => document.querySelector('.loom-live .head b').textContent === 'Not started'")
    says(page, "'nonsense' finds no layer")
    until(page, "() => [...document.querySelectorAll('.loom-live .says p')].some((p) => p.textContent === 'Above: the last run, stands')")
    assert drawn(page) > 300 and status(page) == "failed"
    keep(page, comfy, "not_started")

    saved = page.evaluate("() => window.app.graph.serialize()")
    browser, other = pages.launched(playwright, comfy.url)
    try:
        other.evaluate("(graph) => window.app.loadGraphData(graph)", saved)
        says(other, "'nonsense' finds no layer")
        other.evaluate(SET, ["target_modules", ""])  # a copy in which it is mended
        says(other, "")
        until(other, "() => document.querySelector('.loom-live .head b').textContent === 'Finished · stands'")
        queue(page, comfy)  # the first page's mistake once more
        until(page, "() => document.querySelector('.loom-live .head b').textContent === 'Not started'")
        until(other, "() => document.querySelector('.loom-live .head b').textContent === 'Finished · stands'")
        says(other, "")
        assert pages.ours(other) == []
    finally:
        browser.close()

    page.get_by_role("button", name="Set target_modules empty").click()
    says(page, "")
    until(page, "() => document.querySelector('.loom-live .head b').textContent === 'Finished · stands'")
    folder, away = comfy.base / "input" / "lora_loom_stars", comfy.base / "input" / "away"
    folder.rename(away)  # what is known before a run is asked again when it was wrong, and after a run
    page.evaluate(SET, ["epochs", 3])
    says(page, "folder 'lora_loom_stars' is not there")
    away.rename(folder)
    says(page, "")
    page.evaluate(SET, ["epochs", 0])
    for name, value, error, button, mended in (("steps", 0, "set Train LoRA's steps to 1 or more", "Set steps 1000", 1000),
                                               ("name", "a/b:c", "name 'a/b:c' has '/' ':': Train LoRA's name takes", "Set name a_b_c", "a_b_c")):
        page.evaluate(SET, [name, value])
        says(page, error)
        page.get_by_role("button", name=button).click()
        says(page, "")
        assert page.evaluate(VALUE, name) == mended
    assert pages.ours(page) == []


def test_a_run_goes_on_with_the_settings_that_it_began_with(comfy, page) -> None:
    start(page, "goes_on", steps=4000)
    page.evaluate(SET, ["seed", 5])
    page.evaluate("window.app.queuePrompt(0)")
    running(page, 3)
    page.get_by_role("button", name="Stop and keep").click()
    until(page, "() => document.querySelector('.loom-live').dataset.status === 'stopped'")
    for name, value in (("seed", 6), ("rank", 4), ("steps", 10), ("repeats", 7)):
        page.evaluate(SET, [name, value])
    page.get_by_role("button", name="Resume").click()
    until(page, "() => document.querySelector('.loom-live .buttons button:not([hidden])').textContent.startsWith('resume is set')")
    assert [page.evaluate(VALUE, name) for name in ("seed", "rank", "steps", "repeats", "resume", "name")] == [5, 16, 4000, 1, "goes_on", "goes_on"] and page.locator(".loom-live .buttons button:visible").is_disabled()
    words, trigger = page.evaluate(VALUE, "preservation_words"), page.evaluate(VALUE, "trigger_word")
    for name, value in (("seed", 7), ("rank", 8), ("preservation_words", "red, blue"), ("trigger_word", "zxother"), ("steps", 9999)):  # changed after all
        page.evaluate(SET, [name, value])
    queue(page, comfy)
    says(page, "resume 'goes_on' with other settings")
    keep(page, comfy, "other_settings")
    page.get_by_role("button", name="Set back 4 settings").click()
    says(page, "")
    assert [page.evaluate(VALUE, name) for name in ("seed", "rank", "preservation_words", "trigger_word", "steps")] == [5, 16, words, trigger, 9999]
    page.evaluate("window.app.queuePrompt(0)")
    running(page, 20)
    page.get_by_role("button", name="Stop and keep").click()
    until(page, "() => document.querySelector('.loom-live').dataset.status === 'stopped'")
    page.evaluate(SET, ["resume", "none"])
    until(page, "() => document.querySelector('.loom-live .buttons button:not([hidden])').textContent === 'Resume'")
    assert pages.ours(page) == []


def test_an_error_offers_the_way_out(comfy, page) -> None:
    start(page, "wrong", optimizer="prodigy", steps=3, learning_rate=1e-4)
    page.evaluate("window.app.queuePrompt(0)")
    until(page, "() => document.querySelector('.loom-live')?.dataset.status === 'failed'")
    assert "it finds the rate itself" in text(page, ".says .error")
    keep(page, comfy, "failed")
    page.keyboard.press("Escape")  # the page of 0.3.64 shows its own dialog of the error
    page.get_by_role("button", name="Set learning_rate 1").click()
    assert page.evaluate(f"() => {TRAINER}.widgets.find((w) => w.name === 'learning_rate').value") == 1
    start(page, "right", steps=3, sample_steps=1)
    queue(page, comfy)
    until(page, "() => document.querySelector('.loom-live')?.dataset.status === 'finished'")
    until(page, "() => [...document.querySelectorAll('.loom-live .film img')].filter((i) => i.naturalWidth).length === 2")
    slider = page.locator(".loom-live .time input")
    assert samples(page) == ["step000003_1.png", "step000003_2.png"] and slider.input_value() == "3"
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert text(page, ".time span") == "step 2" and "step000002" in page.locator(".loom-live .film img").first.get_attribute("src")
    assert pages.ours(page) == []


def test_the_last_run_is_there_on_another_day(comfy, page, playwright) -> None:
    """A new server, which remembers nothing: the graph knows its run, and the run's folder the rest."""
    saved = page.evaluate("() => window.app.graph.serialize()")
    path, site = host.oldest() if comfy.which == "oldest" else (comfy.path, None)
    with host.Comfy(path, comfy.base, site) as server:
        server.which = comfy.which
        assert server.get("/lora_loom/state") == {"trainings": []}
        browser, other = pages.launched(playwright, server.url)
        try:
            other.evaluate("(graph) => window.app.loadGraphData(graph)", saved)
            until(other, "() => document.querySelector('.loom-live')?.dataset.status === 'finished' && document.querySelector('.loom-live .film img')?.naturalWidth > 0")
            assert text(other, ".head b") == "Finished · right" and drawn(other) > 300 and "Saved as right.safetensors" in text(other, ".says")
            keep(other, server, "another_day")
            if comfy.which == "newest":
                looks(other, server)
            assert pages.ours(other) == []
        finally:
            browser.close()


def looks(page, server) -> None:
    """Light theme, the new nodes, Chinese: pictures to be looked at, and that nothing is cut off."""
    page.evaluate("() => window.app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    page.wait_for_timeout(800)
    keep(page, server, "light")
    page.evaluate("() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    page.wait_for_timeout(1500)
    keep(page, server, "new_nodes")
    page.evaluate("async () => { await window.app.extensionManager.setting.set('Comfy.Locale', 'zh'); await window.app.extensionManager.setting.set('Comfy.ColorPalette', 'dark'); }")
    page.reload()
    page.wait_for_function("() => window.app?.graph?._nodes?.length > 3", timeout=60_000)
    until(page, "() => document.querySelector('.loom-live')?.dataset.status === 'finished'")
    assert text(page, ".head b").startswith("已完成")
    keep(page, server, "chinese")
    assert page.evaluate("() => { const e = document.querySelector('.loom-live .inside'); return e.scrollHeight <= e.clientHeight + 1; }")


def ask(comfy, route: str, body: object = None) -> tuple[int, dict]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(comfy.url + route, data, {"Content-Type": "application/json"}), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def test_the_routes_of_runs(comfy) -> None:
    """What they give, what they refuse, and that a run is moved, not deleted."""
    runs = {r["name"]: r for r in comfy.get("/lora_loom/runs")["runs"]}
    assert {"watched", "right"} <= set(runs) and runs["watched"]["status"] == "stopped" and runs["watched"]["resumable"] and runs["right"]["lora"] == "right.safetensors"
    folder = comfy.base / "output" / "lora_loom"
    (folder / "right" / "samples" / "step000009_1.png").symlink_to(comfy.log)
    (folder / "out").symlink_to(comfy.base / "models")
    for name in ("..", ".", "", "../lora_loom/right", "right/../right", "out", ".cache", "gone", "right\0", "a" * 400, "CON"):
        query = "/lora_loom/run?name=" + urllib.parse.quote(name)
        assert ask(comfy, query)[0] == 400 and ask(comfy, query.replace("/run?", "/run/curve?"))[0] == 400, name
        for route in ("rename", "trash", "keep"):
            assert ask(comfy, f"/lora_loom/run/{route}", {"run": name, "to": "x", "file": "x"})[0] == 400, (route, name)
    for query in ("file=step000009_1.png", "file=../config.yaml", "file=config.yaml", "file=", "file=step000003_1.png&size=-1", "file=step000003_1.png&size=9999"):
        assert ask(comfy, f"/lora_loom/run/sample?name=right&{query}")[0] == 400, query
    for query in ("points=0", "points=1e3", "points=99999", "after=-1", "after=x"):
        assert ask(comfy, f"/lora_loom/run/curve?name=right&{query}")[0] == 400, query
    for body in ({"run": "right", "action": "stop"}, {"run": "right", "action": "rm"}, {"action": "stop"}, {}, [], b"{", b"[" * 100_000):
        assert ask(comfy, "/lora_loom/control", body)[0] == 400, body
    for file in ([], {}, None, 3):
        assert ask(comfy, "/lora_loom/run/keep", {"run": "watched", "file": file})[0] == 400, file
    for kind in ([1], {"a": 1}, None, 3, "x"):
        assert ask(comfy, "/lora_loom/estimate", {"loader": {"kind": kind, "name": "x"}})[0] in (200, 400), kind
    (folder / "out").unlink()
    (folder / "right" / "samples" / "step000009_1.png").unlink()

    assert ask(comfy, "/lora_loom/run/rename", {"run": "right", "to": "watched"})[0] == 400
    assert ask(comfy, "/lora_loom/run/rename", {"run": "right", "to": "../x"})[0] == 400
    assert ask(comfy, "/lora_loom/run/rename", {"run": "right", "to": "右 1"}) == (200, {"name": "右 1"})
    assert (folder / "右 1" / "config.yaml").is_file() and not (folder / "right").exists()
    before = sorted(p.relative_to(folder / "右 1") for p in (folder / "右 1").rglob("*"))
    assert ask(comfy, "/lora_loom/run/trash", {"run": "右 1"}) == (200, {"name": "右 1", "trashed": "右 1"})
    assert "右 1" not in {r["name"] for r in comfy.get("/lora_loom/runs")["runs"]} and ask(comfy, "/lora_loom/run?name=" + "%E5%8F%B3%201")[0] == 400
    assert ask(comfy, "/lora_loom/run/restore", {"trashed": "../右 1"})[0] == 400
    assert ask(comfy, "/lora_loom/run/restore", {"trashed": "右 1"}) == (200, {"name": "右 1"})
    assert sorted(p.relative_to(folder / "右 1") for p in (folder / "右 1").rglob("*")) == before

    [saved] = comfy.get("/lora_loom/run?name=watched")["checkpoints"]
    status, found = ask(comfy, "/lora_loom/run/keep", {"run": "watched", "file": saved["file"]})
    assert status == 200 and (comfy.base / "output" / "loras" / found["lora"]).read_bytes() == (folder / "watched" / "checkpoints" / saved["file"]).read_bytes()
    assert ask(comfy, "/lora_loom/run/keep", {"run": "watched", "file": saved["file"]})[1] == found, "the same once more is the same file"
    assert comfy.get("/lora_loom/run?name=watched")["lora"] == found["lora"]
    assert ask(comfy, "/lora_loom/run/keep", {"run": "watched", "file": "resume.safetensors"})[0] == 400
    broken = folder / "watched" / "checkpoints" / "watched_step000888.safetensors"
    broken.write_bytes(b"no LoRA at all")
    status, refused = ask(comfy, "/lora_loom/run/keep", {"run": "watched", "file": broken.name})
    assert status == 400 and "damaged" in refused["error"] and comfy.get("/lora_loom/run?name=watched")["lora"] == found["lora"]
    broken.unlink()

    # what is in the trash, and is no run; what another process trains; many at once
    (folder / ".trash").mkdir(exist_ok=True)
    (folder / ".trash" / "a note").write_text("mine")
    status, found = ask(comfy, "/lora_loom/run/restore", {"trashed": "a note"})
    assert status == 400 and "is no run" in found["error"] and not (folder / "a note").exists()
    (folder / ".trash" / "a note").unlink()
    lora, kept = comfy.base / "output" / "loras", {"run": "watched", "file": saved["file"]}
    with contextlib.closing(open(folder / "watched" / held.FILE, "ab")) as lock:
        assert held._lock(lock)
        assert "is training: wait" in ask(comfy, "/lora_loom/run/keep", kept)[1]["error"]
    (folder / "watched" / held.FILE).unlink()
    for file in lora.glob("watched_saved*"):
        file.unlink()
    with ThreadPoolExecutor(8) as many:
        answers = list(many.map(lambda _: ask(comfy, "/lora_loom/run/keep", kept), range(24)))
    assert {status for status, _ in answers} == {200} and len(list(lora.glob("watched_saved*"))) == 1


def test_no_number_harms_nobody(comfy, page) -> None:
    """Python's JSON knows NaN, a page's does not: what the page asks for stays readable."""
    start(page, "no_number", steps=3)
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    next(node for node in prompt.values() if node["class_type"] == "TrainLoRA")["inputs"]["sample_cfg"] = float("nan")
    assert comfy.run(prompt).ending == "execution_error"
    found = page.evaluate("async () => (await (await window.app.api.fetchApi('/lora_loom/state')).json()).trainings[0]")
    assert found["status"] == "failed" and [kind for _, kind, _ in found["queued"]][0] == "TrainLoRA" and "sample_cfg" not in found["queued"][0][2]


def test_a_run_that_is_over_may_stay_in_resume(comfy, page) -> None:
    """ComfyUI's list of what can go on has it no more: the run says so, and how it is mended."""
    start(page, "over", steps=3)
    queue(page, comfy)
    page.evaluate("() => { for (const n of window.app.graph._nodes) for (const w of n.widgets ?? []) if (w.name === 'resume') w.value = 'over'; }")
    queue(page, comfy)
    says(page, "resume 'over' has no state to go on from")
    page.locator(".loom-live .buttons .strong").click()
    until(page, f"() => ({VALUE})('resume') === 'none'")
    says(page, "")


def test_a_killed_run_is_lost_and_not_running(comfy, page) -> None:
    folder = comfy.base / "output" / "lora_loom" / "killed"
    folder.mkdir()
    (folder / "config.yaml").write_text((comfy.base / "output" / "lora_loom" / "watched" / "config.yaml").read_text())
    (folder / "run.json").write_text(json.dumps({"version": 1, "name": "killed", "status": "running", "started": time.time() - 60, "steps": 9}))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "smoothed_loss": 0.5, "learning_rate": 1e-4, "grad_norm": 1, "validation_loss": null}\n')
    found = next(r for r in comfy.get("/lora_loom/runs")["runs"] if r["name"] == "killed")
    assert found["status"] == "lost" and found["step"] == 1 and not found["resumable"]
    assert Path(comfy.base, "output", "lora_loom", "killed").is_dir()
    # a page that saw it train, when the server is there again
    start(page, "killed")
    page.evaluate(f"""() => {{ const node = {TRAINER}, who = {{node: String(node.id), prompt_id: "p", workflow: window.app.graph.id, name: "killed"}};
        window.app.graph.id = "00000000-0000-4000-8000-00000000000a"; who.workflow = window.app.graph.id;
        window.app.api.dispatchCustomEvent("lora_loom.preparing", {{...who}});
        window.app.api.dispatchCustomEvent("lora_loom.started", {{...who, run: "killed", status: "running", step: 0, steps: 9}});
        window.app.api.dispatchCustomEvent("lora_loom.progress", {{...who, run: "killed", status: "running", phase: "train", step: 1, steps: 9, points: []}}); }}""")
    until(page, "() => document.querySelector('.loom-live').dataset.status === 'running'")
    page.evaluate("() => window.app.api.dispatchCustomEvent('reconnected')")
    until(page, "() => document.querySelector('.loom-live').dataset.status === 'lost'")


def test_a_run_that_comes_to_nothing_leaves_the_one_before_in_sight(comfy, page) -> None:
    """Interrupted while it counts pictures, which are no steps."""
    start(page, "before", steps=3)
    queue(page, comfy)
    until(page, "() => document.querySelector('.loom-live .head b').textContent === 'Finished · before'")
    page.evaluate(SET, ["name", "nothing"])
    many = comfy.base / "input" / "many"
    many.mkdir()
    for number in range(150):
        Image.new("RGB", (192, 192), (number, 90, 40)).save(many / f"{number}.png")
    page.evaluate(SET, ["folder", "many"])
    page.evaluate(SET, ["resolution", 192])
    page.evaluate("""() => { const api = window.app.api, press = ({detail}) => { if (detail.phase === "encode" && detail.step > 1) { api.interrupt(); api.removeEventListener("lora_loom.progress", press); } };
        api.addEventListener("lora_loom.progress", press); }""")
    queue(page, comfy)
    found = state(comfy)
    assert (found["status"], found["run"], found["step"]) == ("interrupted", "", 0)
    assert not (comfy.base / "output" / "lora_loom" / "nothing").exists()
    until(page, "() => document.querySelector('.loom-live .head b').textContent === 'Finished · before'")
    assert text(page, ".numbers") == "step 3 / 3"


def test_the_page_asks_for_the_pictures_no_more_often_than_it_must(comfy, page) -> None:
    """While a setting is wrong the estimate is asked again, not the reports on all pictures; a copy that is in no graph asks nothing."""
    start(page, "asked_often", steps=0)
    page.evaluate("() => { window.loomAsked = []; const real = window.app.api.fetchApi; window.loomReal = real; window.app.api.fetchApi = function (route, ...more) { window.loomAsked.push(String(route)); return real.call(this, route, ...more); }; }")
    says(page, "set Train LoRA's steps to 1 or more")
    page.wait_for_timeout(9500)
    asked = page.evaluate("() => window.loomAsked")
    page.evaluate("() => { window.app.api.fetchApi = window.loomReal; }")
    assert sum("/estimate" in route for route in asked) >= 2 and sum("/report" in route for route in asked) <= 1, asked  # Load Dataset's, which the panel takes too
    timers = page.evaluate("""() => {
        let made = 0; const real = window.setInterval; window.setInterval = (...all) => { made += 1; return real(...all); };
        for (const kind of ["TrainLoRA", "LoadDataset", "LoRAConfig", "ChooseCheckpoint", "AutoCaption", "FilterDataset"]) window.LiteGraph.createNode(kind);
        const idle = made, node = window.LiteGraph.createNode("TrainLoRA"); window.app.graph.add(node); const added = made; window.app.graph.remove(node);
        window.setInterval = real; return [idle, added];
    }""")
    assert timers[0] == 0 and timers[1] > 0, timers


def test_an_estimate_says_which_settings_are_only_known_in_the_run(comfy, page) -> None:
    start(page, "computed", steps=3)
    page.evaluate("""() => { const {graph} = window.app, length = window.LiteGraph.createNode("StringLength"), train = graph._nodes.find((node) => node.comfyClass === "TrainLoRA");
        graph.add(length); length.connect(0, train, train.inputs.findIndex((input) => input.name === "steps")); }""")
    until(page, "() => document.querySelector('.loom-live .says').textContent.includes('steps comes from another node and may differ')")


def test_another_workflow_s_training_is_not_shown(comfy, page) -> None:
    """Two workflows with the same nodes and the same name: each shows its own."""
    start(page, "same_name", steps=3)
    queue(page, comfy)
    until(page, "() => document.querySelector('.loom-live .head b').textContent === 'Finished · same_name'")
    saved = page.evaluate("() => window.app.graph.serialize()")
    own = {**saved, "id": "00000000-0000-4000-8000-00000000000b"}
    stranger = json.loads(json.dumps(own))
    for node in stranger["nodes"]:
        node.get("properties", {}).pop("lora_loom_run", None)
    page.evaluate("(graph) => window.app.loadGraphData(graph)", own)  # saved under another name: its run is still its own
    until(page, "() => document.querySelector('.loom-live .head b')?.textContent === 'Finished · same_name'")
    page.evaluate("(graph) => window.app.loadGraphData(graph)", stranger)
    page.wait_for_timeout(2500)
    assert status(page) == "idle", text(page, ".head b")


def test_a_run_that_failed_of_a_setting_is_not_resumed_once_the_setting_is_mended(comfy, page) -> None:
    """Resuming would set the setting back."""
    start(page, "explodes", steps=60, learning_rate=1.0)
    page.evaluate("() => { window.app.graph._nodes.find((n) => n.comfyClass === 'LoRAConfig').widgets.find((w) => w.name === 'warmup_steps').value = 0; }")
    page.evaluate("() => { window.app.queuePrompt(0); }")
    until(page, "() => document.querySelector('.loom-live')?.dataset.status === 'failed' && document.querySelector('.loom-live .head b').textContent.includes('explodes')")
    page.keyboard.press("Escape")
    fix = page.locator(".loom-live .buttons .strong")
    fix.wait_for()
    assert "learning_rate" in fix.inner_text()
    fix.click()
    until(page, "() => document.querySelector('.loom-live .says p')?.textContent === 'Set. Press Run.'")
    assert page.locator(".loom-live .buttons button", has_text="Resume").is_hidden()
    page.evaluate(SET, ["learning_rate", 1.0])  # as it was: the way out is offered again
    fix.wait_for()
    keep(page, comfy, "explodes")


def test_a_key_on_a_control_deletes_no_node(comfy, page) -> None:
    start(page, "keys", steps=3)
    page.evaluate("() => window.app.canvas.selectNodes([window.app.graph._nodes.find((n) => n.comfyClass === 'LoadDataset')])")
    count = page.evaluate("() => window.app.graph._nodes.length")
    for key in ("Delete", "Backspace"):
        page.locator(".lora-loom-zone button").first.focus()
        assert page.evaluate("() => document.activeElement.matches('.lora-loom-zone button')")
        page.keyboard.press(key)
        page.wait_for_timeout(300)
        assert page.evaluate("() => window.app.graph._nodes.length") == count, key


def test_a_run_that_is_in_the_trash_is_said_to_be_where_it_should_go_on(comfy, page) -> None:
    start(page, "binned", steps=400)
    page.evaluate("() => { window.app.queuePrompt(0); }")
    until(page, "() => document.querySelector('.loom-live')?.dataset.phase === 'train'")
    page.locator(".loom-live .buttons button", has_text="Stop").click()
    until(page, "() => document.querySelector('.loom-live .head b')?.textContent === 'Stopped · binned' || document.querySelector('.loom-live')?.dataset.status === 'stopped'")
    page.locator(".loom-live .buttons button", has_text="Resume").click()
    until(page, "() => document.querySelector('.loom-live .buttons').innerText.includes('resume is set')")
    assert ask(comfy, "/lora_loom/run/trash", {"run": "binned"})[0] == 200
    page.evaluate("() => { window.app.queuePrompt(0); }")
    until(page, "() => document.querySelector('.loom-live .says .error')?.textContent.includes('is no run in')")
    page.keyboard.press("Escape")
    keep(page, comfy, "trashed")
    assert page.locator(".loom-live .buttons .strong").is_visible()  # set resume to none


def test_two_workflows_of_one_example_show_their_own_training(comfy, page) -> None:
    """They have the same id: the name tells them apart, also while one trains, and the one that trains keeps it when its name is changed meanwhile."""
    start(page, "twin_one", steps=40)
    saved = page.evaluate("() => window.app.graph.serialize()")
    page.evaluate("() => { window.app.queuePrompt(0, 1); }")
    until(page, "() => document.querySelector('.loom-live').dataset.status === 'running'")
    page.evaluate(SET, ["name", "for the next"])
    page.wait_for_timeout(700)
    assert status(page) == "running"
    other = json.loads(json.dumps(saved).replace('"twin_one"', '"twin_two"'))
    page.evaluate("(graph) => window.app.loadGraphData(graph)", other)
    page.wait_for_timeout(1500)
    assert status(page) == "idle" and text(page, ".numbers") == ""
    page.evaluate("(graph) => window.app.loadGraphData(graph)", saved)
    until(page, "() => /twin_one/.test(document.querySelector('.loom-live .head b')?.textContent)")
    until(page, "() => document.querySelector('.loom-live .head b')?.textContent === 'Finished · twin_one'")


def test_a_renamed_run_is_found_again(comfy, page) -> None:
    """Also by a page whose workflow was saved before."""
    start(page, "first_name", steps=3)
    queue(page, comfy)
    until(page, "() => document.querySelector('.loom-live .head b').textContent === 'Finished · first_name'")
    saved = page.evaluate("() => window.app.graph.serialize()")
    assert ask(comfy, "/lora_loom/run/rename", {"run": "first_name", "to": "second name"})[0] == 200
    page.evaluate("(graph) => window.app.loadGraphData(graph)", saved)
    until(page, "() => document.querySelector('.loom-live .head b')?.textContent === 'Finished · second name'")
    assert drawn(page) > 300
    page.evaluate(SET, ["name", "another"])
    for node in saved["nodes"]:
        node.get("properties", {}).pop("lora_loom_run", None)
        if node["type"] == "TrainLoRA":
            node["widgets_values"] = ["an_example" if value == "first_name" else value for value in node["widgets_values"]]
    page.evaluate("(graph) => window.app.loadGraphData(graph)", saved)  # the example itself, opened anew
    page.wait_for_timeout(2500)
    assert status(page) == "idle", text(page, ".head b")


def test_the_newest_run_is_shown_by_a_page_that_kept_the_one_before(comfy, page) -> None:
    start(page, "again", steps=3)
    queue(page, comfy)
    until(page, "() => document.querySelector('.loom-live .head b').textContent === 'Finished · again'")
    saved = page.evaluate("() => window.app.graph.serialize()")
    page.evaluate(SET, ["steps", 4])
    queue(page, comfy)
    until(page, "() => document.querySelector('.loom-live .head b').textContent === 'Finished · again_2'")
    page.evaluate("(graph) => window.app.loadGraphData(graph)", saved)
    until(page, "() => document.querySelector('.loom-live .head b')?.textContent === 'Finished · again_2'")
    assert page.evaluate("() => window.app.graph._nodes.find((node) => node.comfyClass === 'TrainLoRA').properties.lora_loom_run") == "again_2"


def test_what_comfyui_refuses_is_said_in_the_node(comfy, page) -> None:
    start(page, "refused", steps=3)
    page.evaluate("""() => {
        const graph = window.app.graph, node = window.LiteGraph.createNode("AutoCaption"), load = graph._nodes.find((n) => n.comfyClass === "LoadDataset");
        graph.add(node);
        load.connect(0, node, 0);
        const train = graph._nodes.find((n) => n.comfyClass === "TrainLoRA");
        node.connect(0, train, train.findInputSlot("dataset"));
    }""")
    page.evaluate("() => window.app.queuePrompt(0)")
    until(page, "() => document.querySelector('.lora-loom-strip .refused')?.textContent.includes('clip_tags takes an open_clip model')")
    keep(page, comfy, "auto_caption_refused")
    page.keyboard.press("Escape")
    page.evaluate("""() => { window.app.graph._nodes.find((n) => n.comfyClass === "AutoCaption").widgets.find((w) => w.name === "method").value = "vision_llm"; }""")
    until(page, "() => document.querySelector('.lora-loom-strip .refused').hidden")  # it was said of another setting
