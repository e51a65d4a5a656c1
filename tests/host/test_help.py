"""Help as users meet it: a page for each node in both languages, with its picture, in ComfyUI's own help panel."""
from __future__ import annotations

import io
import json
import re

import pytest

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")
pages = pytest.importorskip("loom_host_pages", reason="needs websocket-client, from the extra `test`")
pytest.importorskip("playwright.sync_api", reason="needs playwright, from the extra `test`")
DOCS = host.PACK / "web" / "js" / "docs"


workflows = pages.workflows


@pytest.fixture(scope="module")
def comfy(comfy_path, tmp_path_factory: pytest.TempPathFactory):
    base = tmp_path_factory.mktemp("help")
    workflows.settle(base)
    workflows.stand_in(base)
    with host.Comfy(comfy_path, base) as server:
        yield server


@pytest.fixture(scope="module")
def nodes(comfy) -> dict[str, dict]:
    return {kind: node for kind, node in comfy.get("/object_info").items() if node["category"] == "LoRA Loom"}


@pytest.fixture(scope="module")
def page(comfy):
    with pages.opened(comfy.url, (1500, 1000)) as page:
        yield page


def inputs(node: dict) -> dict[str, dict]:
    return {name: (*given, {})[1] for part in ("required", "optional") for name, given in node["input"].get(part, {}).items()}


def test_every_input_and_output_is_explained_in_both_languages(nodes):
    chinese = json.loads((host.PACK / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    for kind, node in nodes.items():
        pages = {language: (DOCS / kind / f"{language}.md").read_text(encoding="utf-8").splitlines() for language in ("en", "zh")}
        for part, found in (("inputs", inputs(node)), ("outputs", {name: {} for name in node["output_name"]})):
            for number, (name, options) in enumerate(found.items()):
                called = chinese[kind][part][name if part == "inputs" else str(number)]["name"]  # as the Chinese canvas shows it
                for language, start in (("en", f"- `{name}`: "), ("zh", f"- `{name}` {called}：")):
                    said = [line for line in pages[language] if line.startswith(start)]
                    assert said, f"{kind}/{language}.md has no line that begins with {start!r}"
                    assert not options.get("tooltip") or options["tooltip"].rstrip(".") not in " ".join(said), f"{kind}.{name}: when to change it, not its tooltip"
        assert pages["en"][0] == f"# {node['display_name']}" and pages["zh"][0] == f"# {chinese[kind]['display_name']}"


def test_every_page_has_its_picture(nodes):
    Image = pytest.importorskip("PIL.Image")
    assert {path.name for path in DOCS.iterdir()} == set(nodes)
    for kind in nodes:
        data = (DOCS / kind / "node.webp").read_bytes()
        assert Image.open(io.BytesIO(data)).format == "WEBP" and len(data) < 60_000
        for language in ("en", "zh"):
            assert f"({kind}/node.webp)" in (DOCS / kind / f"{language}.md").read_text(encoding="utf-8")


LOCALE = "(language) => window.comfyAPI.app.app.extensionManager.setting.set('Comfy.Locale', language)"
NEW_NODES = """async () => {
    const {app} = window.comfyAPI.app, settings = app.extensionManager.setting, said = [];
    await settings.set("LoraLoom.NamePattern", "{folder}_{date}");
    await settings.set("LoraLoom.SamplePrompts", "a star\\na circle");
    for (const other of [...app.graph._nodes]) app.graph.remove(other);
    const [train, load, filter] = ["TrainLoRA", "LoadDataset", "FilterDataset"].map((kind) => { const node = LiteGraph.createNode(kind); app.graph.add(node); return node; });
    const widget = (node, name) => node.widgets.find((w) => w.name === name), name = () => said.push(widget(train, "name").value);
    const choose = (folder) => { const w = widget(load, "folder"); w.value = folder; w.callback(folder); };
    name();
    load.connect(0, filter, 0);
    filter.connect(0, train, train.inputs.findIndex((input) => input.name === "dataset"));
    choose("lora_loom_stars");
    await new Promise((done) => setTimeout(done, 200));
    name();
    choose("my_pictures");
    name();
    const queued = async () => Object.values((await app.graphToPrompt()).output).find((node) => node.class_type === "TrainLoRA").inputs;
    const first = await queued();
    widget(train, "name").value = "mine";
    choose("lora_loom_stars");
    name();
    await settings.set("LoraLoom.NamePattern", "other_{preset}");
    await app.loadGraphData(app.graph.serialize());
    await new Promise((done) => setTimeout(done, 300));
    const again = await queued(), fresh = LiteGraph.createNode("TrainLoRA");
    app.graph.add(fresh);
    const last = [first.name, first.sample_prompts, again.name, widget(fresh, "name").value];
    await settings.set("LoraLoom.NamePattern", "{trigger}_{preset}");  // no trigger word, and then one
    const pack = LiteGraph.createNode("TrainLoRA"), set = LiteGraph.createNode("LoadDataset");
    for (const node of [pack, set]) app.graph.add(node);
    set.connect(0, pack, pack.inputs.findIndex((input) => input.name === "dataset"));
    await new Promise((done) => setTimeout(done, 200));
    last.push(widget(pack, "name").value);
    widget(set, "trigger_word").value = "my  mug__red";
    widget(set, "trigger_word").callback();
    last.push(widget(pack, "name").value);
    await settings.set("LoraLoom.NamePattern", "my_lora");
    await settings.set("LoraLoom.SamplePrompts", "");
    return [said, last];
}"""


@pytest.mark.browser
def test_new_nodes_are_named_by_the_pattern_and_what_is_shown_is_queued(page):
    today = page.evaluate("() => { const d = new Date(), two = (n) => String(n).padStart(2, '0'); return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())}`; }")
    said, last = page.evaluate(NEW_NODES)
    assert said == [f"lora_{today}", f"lora_loom_stars_{today}", f"my_pictures_{today}", "mine"]
    assert last == [f"my_pictures_{today}", "a star\na circle", "mine", "other_default", "default", "my_mug_red_default"]  # a saved node keeps its name, whatever the pattern is now


@pytest.mark.browser
def test_units_are_those_of_the_settings(page):
    found = page.evaluate("""async () => {
        const settings = window.comfyAPI.app.app.extensionManager.setting, found = [];
        const {speed: rate, size, gigabytes} = await import("/extensions/comfyui-lora-loom/units.mjs");
        for (const [speed, sizes] of [["auto", "GB"], ["it/s", "GiB"], ["s/it", "GB (1000)"]]) {
            await settings.set("LoraLoom.Speed", speed);
            await settings.set("LoraLoom.Sizes", sizes);
            found.push([rate(4), rate(0.25), rate(0), gigabytes(12 * 2 ** 30), size(0), size(999), size(1.5 * 2 ** 20), size(300 * 2 ** 20), size(12 * 2 ** 30)]);
        }
        await settings.set("LoraLoom.Speed", "auto");
        await settings.set("LoraLoom.Sizes", "GB");
        return found;
    }""")
    assert found == [["4.00 it/s", "4.00 s/it", "0.00 it/s", "12.0 GB", "0 B", "999 B", "1.5 MB", "300 MB", "12.0 GB"],
                     ["4.00 it/s", "0.25 it/s", "0.00 it/s", "12.0 GiB", "0 B", "999 B", "1.5 MiB", "300 MiB", "12.0 GiB"],
                     ["0.25 s/it", "4.00 s/it", "0.00 it/s", "12.9 GB", "0 B", "999 B", "1.6 MB", "315 MB", "12.9 GB"]]


def test_no_view_formats_sizes_and_times_by_itself():
    """Whatever a view says of bytes, seconds or speeds comes from units.mjs, so that the settings hold everywhere."""
    for path in (host.PACK / "web" / "js").glob("*.*js"):
        if path.name != "units.mjs":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"2 \*\* [1-4]0|[*/] ?1024|1e[69]|toFixed\(1\)\} [GMK]|\bit/s\b|s/it\b", text), path.name


@pytest.mark.browser
@pytest.mark.parametrize(("language", "words"), [("en", ("Name", "Sample prompts", "Speed", "Sizes")), ("zh", ("名称", "样图提示词", "速度", "大小"))])
def test_the_settings_page_is_in_both_languages(page, language, words):
    page.evaluate(LOCALE, language)
    page.evaluate("() => window.comfyAPI.app.app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    page.get_by_role("dialog").get_by_text("LoRA Loom", exact=True).first.click()
    for word in words:
        page.get_by_role("dialog").get_by_text(word, exact=True).first.wait_for(timeout=10_000)
    text = page.get_by_role("dialog").inner_text()
    assert "LoraLoom" not in text and "settings." not in text
    page.keyboard.press("Escape")
    page.evaluate(LOCALE, "en")


SHOW = """async (kind) => {
    const {app} = window.comfyAPI.app;
    for (const other of [...app.graph._nodes]) app.graph.remove(other);
    const node = LiteGraph.createNode(kind);
    app.graph.add(node);
    node.pos = [400, 200];
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset[0] = app.canvas.ds.offset[1] = 0;
    app.canvas.deselectAll();
    app.canvas.selectNode(node);
    app.canvas.setDirty(true, true);
}"""
SHOWN = """() => {
    const page = document.querySelector(".node-help-content");
    return [page?.querySelector("h1")?.textContent, [...(page?.querySelectorAll("img") ?? [])].map((image) => image.naturalWidth), page?.querySelectorAll("li").length];
}"""


@pytest.mark.browser
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_help_panel_shows_page_and_picture(page, nodes, language):
    page.evaluate(LOCALE, language)
    page.reload()  # pages of help are fetched in the language that the page has begun with
    workflows.loaded(page)
    for kind in ("LoRAConfig", "LoadDataset", "AutoCaption"):
        title = (DOCS / kind / f"{language}.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        page.evaluate(SHOW, kind)
        if not page.locator(".node-help-content").count():
            page.click("[data-testid=info-button]")
        page.wait_for_function("(title) => document.querySelector('.node-help-content h1')?.textContent === title", arg=title, timeout=15_000)
        page.wait_for_function("() => document.querySelector('.node-help-content img')?.naturalWidth > 0", timeout=15_000)
        _, images, lines = page.evaluate(SHOWN)
        assert images == images[:1] and images[0] > 300 and lines >= len(inputs(nodes[kind]))
        text = page.evaluate("() => document.querySelector('.node-help-content').textContent")
        assert "<!--" not in text and "![" not in text
        width, room = page.evaluate("() => { const { scrollWidth, clientWidth } = document.querySelector('.node-help-content'); return [scrollWidth, clientWidth]; }")
        assert width < 1.1 * room, f"{kind}/{language}.md is wider than the panel, as a table is"
    page.evaluate(LOCALE, "en")
