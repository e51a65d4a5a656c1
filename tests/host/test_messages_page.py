"""A Chinese page: what the server says is Chinese in the live panel, in a node and in what routes refuse."""
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")
pages = pytest.importorskip("loom_host_pages", reason="needs websocket-client, from the extra `test`")
pytest.importorskip("playwright.sync_api", reason="needs playwright, from the extra `test`")

pytestmark = pytest.mark.browser


live = host.by_path("loom_test_live_page", Path(__file__).with_name("test_live_page.py"))
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module", params=host.PAGES)
def comfy(request, tmp_path_factory: pytest.TempPathFactory):
    path, site = host.asked_for(request)
    base = tmp_path_factory.mktemp(f"messages_{request.param}")
    live.workflows.settle(base)
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.write_text(settings.read_text().replace('"Comfy.Locale": "en"', '"Comfy.Locale": "zh"'))
    with host.Comfy(path, base, site) as server:
        server.which = request.param
        yield server


@pytest.fixture(scope="module")
def page(comfy):
    with pages.opened(comfy.url) as page:
        yield page


def keep(page, comfy, name: str) -> None:
    live.keep(page, comfy, f"zh_{name}")


def test_an_error_and_a_plan_are_chinese_in_the_live_panel(comfy, page) -> None:
    live.start(page, "wrong", optimizer="prodigy", steps=3, learning_rate=1e-4)
    page.evaluate("window.app.queuePrompt(0)")
    live.until(page, "() => document.querySelector('.loom-live')?.dataset.status === 'failed'")
    assert live.text(page, ".says .error") == "prodigy 的学习率不能是 0.0001：它自己寻找学习率，再乘以这个值；请把“训练 LoRA”的“学习率”设为 1"
    assert live.text(page, ".buttons .strong") == "把“学习率”设为 1"
    keep(page, comfy, "error")
    page.keyboard.press("Escape")
    live.start(page, "right", steps=3)
    page.evaluate("""() => { window.loomRoom = ""; new MutationObserver(() => { window.loomRoom ||= document.querySelector(".loom-live .room").textContent; })
        .observe(document.querySelector(".loom-live .room"), {childList: true}); }""")
    page.evaluate("window.app.queuePrompt(0)")
    live.until(page, "() => document.querySelector('.loom-live')?.dataset.status === 'finished'")
    live.until(page, "() => [...document.querySelectorAll('.loom-live .says p')].some((p) => /^已完成：第 3 步，共 3 步，平滑损失 [\\d.]+。已保存为 right.safetensors。/.test(p.textContent))")
    plan = page.locator(".loom-live .says .plan").inner_text().splitlines()
    assert plan[1].startswith("20 张图片，重复后 20 张") and plan[2].startswith("3 步，每步 1 x 1 张图片") and "学习率" in plan[3]
    memory = [line for line in page.locator(".loom-live .says p").all_inner_texts() if line.startswith("占用")]
    assert re.match(r"内存 [\d.]+ GB", page.evaluate("() => window.loomRoom"))  # what ComfyUI held while it trained
    assert memory and "基础模型" in memory[0] and "base model" not in memory[0]
    page.evaluate("() => document.querySelector('.loom-live .says .plan').scrollIntoView()")
    keep(page, comfy, "plan")
    assert pages.ours(page) == []


BROKEN = """async () => {
    const graph = window.app.graph, loader = graph._nodes.find((n) => n.comfyClass === "LoadDataset");
    loader.widgets.find((w) => w.name === "min_size").value = 4096;
    window.app.queuePrompt(0);
}"""
TEXTS = """() => { const loader = window.app.graph._nodes.find((n) => n.comfyClass === "LoadDataset");
    return loader.widgets.filter((w) => w.name.includes("text-preview")).map((w) => String(w.value)); }"""


def test_what_comfyui_draws_in_our_nodes_is_chinese_too(comfy, page) -> None:
    live.start(page, "small", steps=3)
    page.evaluate(BROKEN)
    live.until(page, f"() => ({TEXTS})().some((text) => text.startsWith('错误'))")
    [text] = page.evaluate(TEXTS)
    assert text.startswith("错误：") and "20 张图片都小于最小尺寸 4096" in text and "“加载数据集”的“最小尺寸”" in text
    # all of it can be read: the classic nodes give such a text two lines
    room = page.evaluate("""() => { const node = window.app.graph._nodes.find((n) => n.comfyClass === "LoadDataset"), text = node.widgets.find((w) => w.name.includes("text-preview"));
        return [text.options.getMinHeight(), node.size[1] - node.computeSize()[1]]; }""")
    assert room[0] >= 17 * 4 and room[1] >= 0
    keep(page, comfy, "node")
    page.keyboard.press("Escape")


def test_refusals_of_routes_are_chinese_and_what_is_no_message_is_not_touched(comfy, page) -> None:
    said = page.evaluate("""async () => {
        const { renameRun } = await import("/extensions/comfyui-lora-loom/runs_api.mjs");
        const { translated } = await import("/extensions/comfyui-lora-loom/translated.mjs");
        const refused = await renameRun("gone", "x").catch((error) => error.message);
        return [refused, translated("RuntimeError: none of ours"), translated("")];
    }""")
    assert said[0].startswith("训练 'gone' 不存在，或已改名：") and said[1:] == ["RuntimeError: none of ours", ""]
    english = page.evaluate("""async () => {
        const { translated } = await import("/extensions/comfyui-lora-loom/translated.mjs");
        await window.app.extensionManager.setting.set("Comfy.Locale", "en");
        const found = translated("rank 0 is below 1: LoRAConfig.rank takes 1 to 512");
        await window.app.extensionManager.setting.set("Comfy.Locale", "zh");
        return [found, translated(found)];
    }""")
    assert english[0].startswith("rank 0 is below 1") and CHINESE.search(english[1])


BOXES = """() => {
    const { graph } = window.app, kinds = Object.entries(LiteGraph.registered_node_types).filter(([, { nodeData }]) => nodeData?.category === "LoRA Loom").map(([kind]) => kind);
    return kinds.flatMap((kind) => {
        const node = LiteGraph.createNode(kind);
        graph.add(node);
        const said = (node.widgets ?? []).filter((w) => w.element?.tagName === "TEXTAREA").map((w) => [`${kind}.${w.name}`, w.element.placeholder]);
        graph.remove(node);
        return said;
    });
}"""


def test_empty_text_boxes_say_their_chinese_names(page) -> None:
    names = json.loads((host.PACK / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    said = dict(page.evaluate(BOXES))
    assert said["TrainLoRA.sample_prompts"] == "样图提示词：每行一条" and said["PreviewSample.negative"] == "反向提示词"
    assert len(said) >= 9
    for box, placeholder in said.items():
        kind, name = box.split(".")
        assert placeholder.startswith(names[kind]["inputs"][name]["name"]), box
