"""What a run will take, asked over the route and drawn in LoRAConfig and TrainLoRA on ComfyUI's own page, in both renderers."""
from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")
pages = pytest.importorskip("loom_host_pages", reason="needs websocket-client, from the extra `test`")
pytest.importorskip("playwright.sync_api", reason="needs playwright, from the extra `test`")

pytestmark = pytest.mark.browser


workflows = pages.workflows


@pytest.fixture(scope="module", params=host.PAGES)
def comfy(request, tmp_path_factory: pytest.TempPathFactory):
    path, site = host.asked_for(request)
    base = tmp_path_factory.mktemp(f"estimate_{request.param}")
    workflows.settle(base)
    (base / "models" / "checkpoints").mkdir(parents=True)
    (base / "models" / "checkpoints" / "broken.safetensors").write_bytes(b"no header")
    (base / "models" / "checkpoints" / "old.ckpt").write_bytes(b"no safetensors")
    (base / "secret.safetensors").write_bytes(b"outside")
    with host.Comfy(path, base, site) as server:
        server.which = request.param
        yield server


def ask(comfy, body, headers: dict | None = None) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(comfy.url + "/lora_loom/estimate", data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


TOY = {"loader": {"kind": "toy"}, "config": {"rank": 8, "targets": "attention"}, "train": {"steps": 0, "epochs": 3, "batch_size": 4},
       "dataset": {"folder": "lora_loom_stars", "resolution": 64, "min_size": 64}}


def changed(**parts) -> dict:
    return {**TOY, **{name: {**TOY[name], **values} for name, values in parts.items()}}


def test_the_route_says_what_a_run_will_take(comfy):
    status, found = ask(comfy, TOY)
    assert status == 200 and found["family"] == "toy" and found["layers"] == 32 and found["parameters"] == 39936
    assert (found["pictures"], found["steps_per_epoch"], found["steps"]) == (20, 5, 15)
    memory = found["memory"]
    assert memory["device"] == "RAM" and memory["needed"] == sum(memory[part] for part in ("base", "lora", "optimizer", "step"))
    assert memory["lora"] == 4 * 39936 and memory["base"] > 12_000_000 and 0 < memory["free"] < memory["total"]
    wide = ask(comfy, changed(config={"rank": 32, "targets": "all linear+conv"}))[1]
    assert wide["parameters"] > 10 * found["parameters"] and wide["file_bytes"] > 5 * found["file_bytes"] and wide["memory"]["step"] > memory["step"]
    assert ask(comfy, changed(config={"gradient_checkpointing": True}))[1]["memory"]["step"] < memory["step"]
    bare = ask(comfy, {"loader": {"kind": "toy"}, "train": {"steps": 7}})[1]
    assert (bare["steps"], bare["pictures"], bare["steps_per_epoch"]) == (7, None, None) and bare["memory"]["step"] > 0


@pytest.mark.parametrize("name, said", [("broken.safetensors", "no header of safetensors"), ("old.ckpt", "not in the format safetensors")])
def test_of_what_is_unknown_it_says_what_it_can(comfy, name, said):
    status, found = ask(comfy, changed(loader={"kind": "checkpoint", "name": name}))
    assert status == 200 and found["memory"] is None and found["parameters"] is None and found["pictures"] == 20 and said in found["notes"][0]


@pytest.mark.parametrize("body, said", [
    (changed(loader={"kind": "checkpoint", "name": "../../secret.safetensors"}), "is not there"), (changed(loader={"kind": "checkpoint", "name": "/etc/passwd"}), "is not there"),
    (changed(loader={"kind": "checkpoint", "name": ["a"]}), "is not there"), (changed(loader={"kind": "vae", "name": "x"}), "unknown"), ({"loader": "toy"}, "loader is"),
    (changed(config={"rank": 0}), "rank 0 is below 1"), (changed(config={"rank": "many"}), "rank"), (changed(config={"targets": "everything"}), "targets"),
    (changed(train={"batch_size": -1}), "batch_size"), (changed(dataset={"folder": "../user"}), "folder"), (changed(dataset={"resolution": "64"}), "dataset.resolution"),
    (changed(dataset={"more_resolutions": "a, b"}), "more_resolutions"), (b"[1, 2]", "no JSON object"), (b"{" * 5000, "no JSON object"), (b" " * 200_000, "larger than"),
])
def test_the_route_refuses(comfy, body, said):
    status, found = ask(comfy, body)
    assert status == 400 and said in found["error"]


def test_other_sites_are_refused(comfy):
    assert ask(comfy, TOY, {"Origin": "http://evil.example"})[0] == 403
    assert ask(comfy, TOY, {"Sec-Fetch-Site": "cross-site"})[0] == 403


@pytest.fixture(scope="module")
def page(comfy):
    with pages.opened(comfy.url) as page:
        yield page


OPEN = """async () => {
    const answer = await window.app.api.fetchApi("/workflow_templates/comfyui-lora-loom/toy_base_train_and_generate.json");
    await window.app.loadGraphData(await answer.json());
}"""
STRIP = "() => document.querySelector('.loom-estimate .line')?.innerText.replaceAll('\\n', ' ') ?? ''"


def node(kind: str) -> str:
    return f"window.app.graph._nodes.find((n) => n.comfyClass === '{kind}')"


def set_widget(page, kind: str, name: str, value) -> None:
    page.evaluate(f"([name, value]) => {{ const w = {node(kind)}.widgets.find((w) => w.name === name); w.value = value; w.callback?.(value); }}", [name, value])


def wait_for(page, text: str) -> None:
    page.wait_for_function("(text) => document.querySelector('.loom-estimate')?.innerText.includes(text) && !document.querySelector('.loom-estimate.asking')", arg=text, timeout=60_000)


def renderer(page, vue: bool) -> None:
    page.evaluate("(on) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue)
    page.wait_for_timeout(800)


def shot(page, name: str) -> None:
    host.KEPT.mkdir(exist_ok=True)
    page.evaluate(f"""() => {{
        const config = {node('LoRAConfig')}, canvas = window.app.canvas;
        canvas.ds.scale = 1.2;
        canvas.ds.offset = [60 - config.pos[0], 160 - config.pos[1]];
        canvas.setDirty(true, true);
    }}""")
    page.wait_for_timeout(900)
    page.screenshot(path=str(host.KEPT / f"{name}.png"))


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
def test_the_strip_follows_the_widgets(comfy, page, vue):
    if vue and comfy.which == "oldest":
        pytest.skip("its page has no Vue nodes")
    if comfy.which == "newest":
        renderer(page, vue)
    page.evaluate(OPEN)
    wait_for(page, "parameters")
    before, size = page.evaluate(STRIP), page.evaluate(f"() => [...{node('LoRAConfig')}.size]")
    set_widget(page, "LoRAConfig", "rank", 64)
    page.wait_for_function(f"(before) => ({STRIP})() !== before", arg=before, timeout=60_000)
    wait_for(page, "parameters")
    assert page.evaluate(f"() => [...{node('LoRAConfig')}.size]") == size  # nothing moves
    wide = page.evaluate(STRIP)
    set_widget(page, "TrainLoRA", "batch_size", 16)  # of another node
    page.wait_for_function(f"(before) => ({STRIP})() !== before", arg=wide, timeout=60_000)
    bars = page.evaluate("() => [...document.querySelectorAll('.loom-estimate .bar i')].map((bar) => parseFloat(bar.style.width))")
    assert len(bars) == 3 and all(width > 0 for width in bars) and sum(bars) <= 100.1
    shot(page, f"estimate_{comfy.which}_{'vue' if vue else 'classic'}")
    set_widget(page, "LoRAConfig", "target_modules", "nothing_like_this$")
    wait_for(page, "finds no layer")
    set_widget(page, "LoRAConfig", "target_modules", "")
    wait_for(page, "parameters")
    page.evaluate(f"() => {node('TrainLoRA')}.disconnectInput({node('TrainLoRA')}.inputs.findIndex((i) => i.name === 'model'))")
    wait_for(page, "Connect a loaded base model")
    page.evaluate(f"() => {node('TrainLoRA')}.disconnectInput({node('TrainLoRA')}.inputs.findIndex((i) => i.name === 'config'))")
    wait_for(page, "Connect config")
    assert page.problems == []


def test_the_panel_says_before_the_run_what_it_will_take(comfy, page):
    if comfy.which == "newest":
        renderer(page, False)
    page.evaluate(OPEN)
    says = "() => document.querySelector('.loom-live .says')?.innerText ?? ''"
    page.wait_for_function(f"() => /steps/.test(({says})()) && /About/.test(({says})())", timeout=60_000)
    assert "epochs of 20 pictures" in page.evaluate(says)
    for unit, other in (("GiB", " GB"), ("GB", "GiB")):  # all views at once
        page.evaluate("(unit) => window.app.extensionManager.setting.set('LoraLoom.Sizes', unit)", unit)
        for view in (says, STRIP):
            page.wait_for_function(f"([unit, other]) => {{ const text = ({view})(); return text.includes(` ${{unit}}`) && !text.includes(other); }}", arg=[unit, other], timeout=10_000)
    assert page.evaluate("() => document.querySelectorAll('.loom-live .says .warning, .loom-live .says .error').length") == 0
    set_widget(page, "LoadDataset", "resolution", 512)
    page.wait_for_function("() => document.querySelector('.loom-live .says .warning')?.innerText.includes('smaller')", timeout=60_000)  # of the dataset's report
    set_widget(page, "LoadDataset", "min_size", 4000)
    page.wait_for_function("() => document.querySelector('.loom-live .says .error')?.innerText.includes('min_size')", timeout=60_000)
    assert page.evaluate("() => document.querySelectorAll('.loom-live .says .error').length") == 1  # said once, though both routes say it
    assert page.problems == []


def test_the_strip_in_chinese_and_light(comfy, page):
    if comfy.which == "oldest":
        pytest.skip("one page is enough")
    for name, value in (("Comfy.ColorPalette", "light"), ("Comfy.Locale", "zh")):
        page.evaluate("([name, value]) => window.app.extensionManager.setting.set(name, value)", [name, value])
    page.wait_for_timeout(800)
    page.evaluate(OPEN)
    wait_for(page, "个可训练参数")
    shot(page, "estimate_light_zh")
