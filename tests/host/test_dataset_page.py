"""Upload and the caption editor on ComfyUI's own page, as hands use them: in the classic canvas and the new nodes, newest and oldest."""
from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")
pages = pytest.importorskip("loom_host_pages", reason="needs websocket-client, from the extra `test`")
pytest.importorskip("playwright.sync_api", reason="needs playwright, from the extra `test`")

pytestmark = pytest.mark.browser


workflows = pages.workflows


@pytest.fixture(scope="module", params=["newest", "newest in new nodes", "oldest"])
def comfy(request, tmp_path_factory: pytest.TempPathFactory):
    path, site = host.asked_for(request)
    base = tmp_path_factory.mktemp("page")
    workflows.settle(base)
    workflows.stand_in(base)
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "Comfy.VueNodes.Enabled": request.param == "newest in new nodes"}))
    with host.Comfy(path, base, site) as server:
        server.which = request.param.replace(" ", "_")
        yield server


@pytest.fixture(scope="module")
def page(comfy):
    with pages.opened(comfy.url, (1500, 1000)) as page:
        page.set_default_timeout(30_000)
        yield page
        assert pages.ours(page) == []


# What differs between pages is the nodes; the editor's dialog is the same on all, and LORA_LOOM_HEAVY=1 tests it on each.
ON_EVERY_PAGE = {"test_upload_by_drop", "test_widgets_keep_their_places_in_saved_workflows", "test_the_strip_opens_the_editor_there"}


@pytest.fixture(autouse=True)
def where_it_may_differ(request, comfy) -> None:
    if comfy.which != "newest" and request.node.originalname not in ON_EVERY_PAGE and not os.environ.get("LORA_LOOM_HEAVY"):
        pytest.skip("as on the newest page, where it is tested: LORA_LOOM_HEAVY=1 runs it here too")


def png(number: int = 0, image=None, side: int = 90) -> bytes:
    out = io.BytesIO()
    Image.fromarray(data.chelsea() if image is None else image).resize((side, 60 + number)).save(out, "PNG")
    return out.getvalue()


def pictures(comfy, name: str, captions: list[str]) -> Path:
    folder = comfy.base / "input" / name
    folder.mkdir()
    images = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    for number, caption in enumerate(captions):
        (folder / f"{number}.png").write_bytes(png(number % 50, images[number % 4], 120))
        if caption:
            (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    return folder


def graph(page, folder: str = "lora_loom_stars", **auto) -> None:
    """LoadDataset and, behind it, AutoCaption, side by side; what a test before has left open is gone."""
    page.evaluate("""async ([folder, auto]) => {
        for (const left of document.querySelectorAll(".lora-loom-modal")) left.remove();
        const app = window.app;
        await app.loadGraphData({nodes: [], links: [], last_node_id: 0, last_link_id: 0, version: 0.4});
        const load = LiteGraph.createNode("LoadDataset"), caption = LiteGraph.createNode("AutoCaption");
        load.pos = [100, 100];
        caption.pos = [520, 100];
        app.graph.add(load);
        app.graph.add(caption);
        load.connect(0, caption, 0);
        const widget = load.widgets.find((w) => w.name === "folder");
        if (!widget.options.values.includes(folder)) widget.options.values = [...widget.options.values, folder];
        widget.value = folder;
        for (const [name, value] of Object.entries(auto)) caption.widgets.find((w) => w.name === name).value = value;
        app.canvas.ds.scale = 1;
        app.canvas.ds.offset[0] = app.canvas.ds.offset[1] = 60;
        app.canvas.setDirty(true, true);
        window.loomNodes = {load, caption};
    }""", [folder, auto])
    page.wait_for_selector(".lora-loom-zone", state="visible")
    page.wait_for_timeout(1200)


def keep(page, comfy, name: str) -> None:
    host.KEPT.mkdir(exist_ok=True)
    page.wait_for_timeout(500)
    page.screenshot(path=str(host.KEPT / f"{comfy.which}_{name}.png"))


def editor(page, folder: str, **auto):
    """The editor of that folder, open and read."""
    graph(page, folder, **auto)
    page.locator(".lora-loom-zone button", has_text="Edit captions").click()
    dialog = page.locator("dialog.editor")
    dialog.locator(".card").first.wait_for()
    return dialog


def close(page) -> None:
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")


def captions(dialog) -> list[str]:
    """What the cards in sight say, in order of their places."""
    return dialog.locator(".card:visible").evaluate_all("(cards) => cards.sort((a, b) => a.place - b.place).map((c) => c.querySelector('.caption').textContent)")


def write(page, *captions: str) -> None:
    """By keyboard, from the current card on."""
    for caption in captions:
        page.keyboard.press("Enter")
        page.keyboard.press("Control+a")
        page.keyboard.type(caption)
        page.keyboard.press("Enter")
        page.keyboard.press("ArrowRight")


def setting(page, **values) -> None:
    """Load Dataset's."""
    page.evaluate("(values) => { for (const [name, value] of Object.entries(values)) window.loomNodes.load.widgets.find((w) => w.name === name).value = value; }", values)


def folder_value(page) -> str:
    return page.evaluate("() => window.loomNodes.load.widgets.find((w) => w.name === 'folder').value")


def undo_states(page) -> str:
    return page.evaluate("() => JSON.stringify(window.app.graph.serialize().nodes.map((n) => [n.type, n.widgets_values]))")


def test_upload_by_button(comfy, page, tmp_path):
    graph(page)
    (tmp_path / "photo.webp").write_bytes(png())
    (tmp_path / "photo.txt").write_text("一只猫", encoding="utf-8")
    (tmp_path / "page.png").write_bytes(b"<svg onload=alert(1)>")
    with page.expect_file_chooser() as chooser:
        page.locator(".lora-loom-zone button", has_text="Upload pictures").click()
    chooser.value.set_files([tmp_path / name for name in ("photo.webp", "photo.txt", "page.png")])
    name = page.locator("dialog.small input")
    name.wait_for()
    keep(page, comfy, "upload_name")
    name.fill("我的猫")
    page.locator("dialog.small button.strong").click()
    refused = page.locator("dialog.small .list li")
    refused.first.wait_for()
    assert "page.png" in refused.first.text_content() and "SVG" in refused.first.text_content() and "photo.webp is now photo.png" in page.locator("dialog.small").text_content()
    keep(page, comfy, "upload_refused")
    page.locator("dialog.small button", has_text="Close").click()
    page.wait_for_selector("dialog", state="detached")
    assert folder_value(page) == "我的猫" and {p.name for p in (comfy.base / "input" / "我的猫").iterdir()} == {"photo.png", "photo.txt"}
    assert "2 files are in input/我的猫" in page.locator(".lora-loom-zone").text_content()
    assert "我的猫" in page.evaluate("() => LiteGraph.createNode('LoadDataset').widgets.find((w) => w.name === 'folder').options.values")  # of a node that comes later
    page.locator(".lora-loom-strip .item", has_text="一只猫").wait_for()  # AutoCaption behind it follows
    keep(page, comfy, "upload_done")


DROP = """async ([where, files]) => {
    const transfer = new DataTransfer();
    for (const [name, base64] of files) transfer.items.add(new File([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], name));
    if (where === "zone") {
        const zone = document.querySelector(".lora-loom-zone .drop");
        zone.dispatchEvent(new DragEvent("dragover", {dataTransfer: transfer, bubbles: true, cancelable: true}));
        window.loomOver = document.querySelector(".lora-loom-zone").classList.contains("over");
        zone.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
        return;
    }
    // on the node itself, at its title, as a mouse would
    const node = window.loomNodes.load, scale = app.canvas.ds.scale, view = app.canvas.canvas.getBoundingClientRect();
    const x = view.left + (node.pos[0] + 60 + app.canvas.ds.offset[0]) * scale, y = view.top + (node.pos[1] + 30 + app.canvas.ds.offset[1]) * scale;
    const at = document.elementFromPoint(x, y), event = (kind) => new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true, clientX: x, clientY: y});
    app.canvas.graph_mouse[0] = node.pos[0] + 60;
    app.canvas.graph_mouse[1] = node.pos[1] + 30;
    at.dispatchEvent(event("dragover"));
    at.dispatchEvent(event("drop"));
}"""


@pytest.mark.parametrize("where", ["zone", "node"])
def test_upload_by_drop(comfy, page, where):
    import base64

    graph(page)
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("猫/a.png", png(1))
        archive.writestr("猫/metadata.csv", "filename,prompt\na.png,a cat\n")
    before = page.evaluate("() => app.graph._nodes.length")
    page.evaluate(DROP, [where, [[f"cats {where}.zip", base64.b64encode(whole.getvalue()).decode()]]])
    name = page.locator("dialog.small input")
    name.wait_for()
    assert name.input_value() == f"cats {where}" and (where == "node" or page.evaluate("() => window.loomOver"))
    name.press("Enter")
    page.wait_for_function("(name) => window.loomNodes.load.widgets.find((w) => w.name === 'folder').value === name", arg=f"cats {where}")
    assert {p.name for p in (comfy.base / "input" / f"cats {where}").iterdir()} == {"a.png", "metadata.csv"}
    assert page.evaluate("() => app.graph._nodes.length") == before  # the page has not made a node of it as well
    page.wait_for_timeout(300)
    assert page.locator("dialog").count() == 0  # nothing was refused: nothing is to be said


def test_cancelled_upload_leaves_nothing(comfy, page, tmp_path):
    graph(page)
    (tmp_path / "large.png").write_bytes(png() + bytes(40_000_000))
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.emulateNetworkConditions", {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 3_000_000})
    try:
        with page.expect_file_chooser() as chooser:
            page.locator(".lora-loom-zone button", has_text="Upload pictures").click()
        chooser.value.set_files(tmp_path / "large.png")
        page.locator("dialog.small input").press("Enter")
        page.wait_for_function("() => /Uploading [1-9]/.test(document.querySelector('.lora-loom-zone').textContent)")
        keep(page, comfy, "uploading")
        page.locator(".lora-loom-zone button", has_text="Cancel").click()
        page.wait_for_function("() => document.querySelector('.lora-loom-zone').textContent.includes('or drop')")
        for _ in range(40):
            if not list((comfy.base / "input").glob(".lora*")):
                break
            page.wait_for_timeout(250)
        assert not list((comfy.base / "input").glob(".lora*")) and not (comfy.base / "input" / "pictures").exists()
        assert folder_value(page) == "lora_loom_stars"
    finally:
        session.send("Network.emulateNetworkConditions", {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1})
        session.detach()


def test_widgets_keep_their_places_in_saved_workflows(comfy, page):
    graph(page)
    saved = page.evaluate("() => window.app.graph.serialize().nodes.map((n) => [n.type, n.widgets_values])")
    inputs = comfy.get("/object_info/LoadDataset")["LoadDataset"]["input"]
    names = [name for name, kind in {**inputs["required"], **inputs.get("optional", {})}.items() if kind[0] != "CLIP"]  # a socket has no value
    assert len(dict(saved)["LoadDataset"]) == len(names) and dict(saved)["LoadDataset"][0] == "lora_loom_stars"
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert not [name for node in prompt.values() for name in node["inputs"] if name.startswith("lora_loom")]
    page.evaluate("async () => window.app.loadGraphData(window.app.graph.serialize())")
    assert page.evaluate("() => window.app.graph.serialize().nodes.map((n) => [n.type, n.widgets_values])") == saved


def test_edit_in_place_and_undo(comfy, page):
    folder = pictures(comfy, "editing", ["a woman, red", "a cat", "", "一只猫，红色"])
    dialog = editor(page, "editing")
    graph_before = undo_states(page)
    assert captions(dialog) == ["a woman, red", "a cat", "no caption", "一只猫，红色"]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    keep(page, comfy, "editor_editing")
    page.keyboard.press("Control+a")
    page.keyboard.type("a tabby cat")
    page.keyboard.press("Tab")  # keeps it, and goes on
    page.keyboard.type("a cup of coffee")
    page.keyboard.press("Enter")
    assert captions(dialog) == ["a woman, red", "a tabby cat", "a cup of coffee", "一只猫，红色"]
    page.keyboard.press("F2")
    page.keyboard.type("never mind")
    page.keyboard.press("Escape")
    assert captions(dialog)[2] == "a cup of coffee" and dialog.locator(".card.edited").count() == 2
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert captions(dialog)[1:3] == ["a cat", "no caption"] and dialog.locator("button.strong").is_disabled()
    page.keyboard.press("Control+z")  # nothing left: the page's own undo must not have it
    page.keyboard.press("Control+Shift+z")
    page.keyboard.press("Control+y")
    assert captions(dialog)[1:3] == ["a tabby cat", "a cup of coffee"]
    page.keyboard.press("Delete")  # nor its other keys
    page.keyboard.press("Control+b")
    page.keyboard.press("Control+v")
    page.keyboard.press("Control+s")
    dialog.locator("footer", has_text="saved 2 captions").wait_for()
    assert (folder / "1.txt").read_text() == "a tabby cat\n" and (folder / "1.txt.bak").read_text() == "a cat" and (folder / "2.txt").read_text() == "a cup of coffee\n"
    assert (folder / "3.txt").read_text("utf-8") == "一只猫，红色" and not (folder / "metadata.csv").exists()
    page.wait_for_timeout(500)
    assert undo_states(page) == graph_before
    close(page)
    dialog = editor(page, "editing")  # and read again
    assert captions(dialog) == ["a woman, red", "a tabby cat", "a cup of coffee", "一只猫，红色"]
    close(page)


def test_search_and_replace(comfy, page):
    pictures(comfy, "replacing", ["a red car (old)", "a red cat", "a Red hat (old)", "blue"])
    dialog = editor(page, "replacing")
    side = dialog.locator("aside")
    find, by = side.get_by_placeholder("Search for"), side.get_by_placeholder("Replace by")
    find.fill("CAR (old)")
    by.fill("$& new")
    side.locator("text=1 place in 1 caption").wait_for()
    find.fill("(old)")
    side.locator("text=2 places in 2 captions").wait_for()
    side.locator("button", has_text="Replace").click()
    assert captions(dialog) == ["a red car $& new", "a red cat", "a Red hat $& new", "blue"]  # plain text is plain on both sides
    dialog.locator("button", has_text="Undo").click()
    side.get_by_text("Regular expression").click()
    find.fill("(")
    side.locator(".wrong").wait_for()
    find.fill(r"a (red) (\w+)")
    by.fill("$2, $1")
    side.locator("text=3 places in 3 captions").wait_for()
    side.get_by_text("Match case").click()
    side.locator("text=2 places in 2 captions").wait_for()
    dialog.locator(".card").nth(1).click()
    side.locator("select").select_option("selected")
    side.locator("text=1 place in 1 caption").wait_for()
    side.locator("button", has_text="Replace").click()
    assert captions(dialog)[:2] == ["a red car (old)", "cat, red"]
    keep(page, comfy, "editor_replace")
    page.keyboard.press("Escape")  # there are edits: it asks
    dialog.locator("button", has_text="Keep editing").click()
    assert captions(dialog)[1] == "cat, red"
    page.keyboard.press("Escape")
    dialog.locator("button", has_text="Discard").click()
    page.wait_for_selector("dialog", state="detached")


def test_tags_and_filters(comfy, page):
    folder = pictures(comfy, "tagging", ["cat, red, tail", "Cat, blue", "dog", "", "bird, red"])
    dialog = editor(page, "tagging")
    side = dialog.locator("aside")
    assert side.locator(".tags button").all_text_contents() == ["cat2", "red2", "bird1", "blue1", "dog1", "tail1"]
    side.locator(".tags button", has_text="red").click()
    assert captions(dialog) == ["cat, red, tail", "bird, red"]
    dialog.locator(".card:visible").first.click()
    page.keyboard.press("Control+a")
    side.get_by_placeholder("Tag", exact=True).fill("warm, Red")
    side.locator("button", has_text="Add at the end").click()
    assert captions(dialog) == ["cat, red, tail, warm", "bird, red, warm"]  # red is there already
    side.get_by_placeholder("Tag", exact=True).fill("RED")
    side.locator("button", has_text="Remove").click()
    assert dialog.locator(".empty").is_visible()  # none is left that the filter shows
    keep(page, comfy, "editor_filtered")
    page.keyboard.press("Escape")  # takes the filter away first
    assert captions(dialog) == ["cat, tail, warm", "Cat, blue", "dog", "no caption", "bird, warm"]
    dialog.locator("button", has_text="No caption").click()
    assert captions(dialog) == ["no caption"]
    dialog.locator(".card:visible").first.click()
    side.get_by_placeholder("Tag", exact=True).fill("rocket")
    side.locator("button", has_text="Add in front").click()
    dialog.get_by_role("button", name="All", exact=True).click()
    dialog.locator(".card:visible").nth(1).click()
    dialog.locator(".card:visible").nth(3).click(modifiers=["Shift"])
    page.keyboard.press("Space")
    assert dialog.locator(".card.selected").count() == 2 and "2 selected" in dialog.locator("header").text_content()
    dialog.locator("select").first.select_option("metadata.csv")
    dialog.get_by_placeholder("Filter captions and names").fill("3.png")
    assert captions(dialog) == ["rocket"]
    page.keyboard.press("Control+s")
    dialog.locator("footer", has_text="saved 3 captions").wait_for()
    rows = dict(csv.reader((folder / "metadata.csv").open(encoding="utf-8")))
    assert rows == {"filename": "prompt", "0.png": "cat, tail, warm", "3.png": "rocket", "4.png": "bird, warm"}
    page.keyboard.press("Escape")
    close(page)


def test_what_someone_else_wrote_is_not_lost(comfy, page):
    folder = pictures(comfy, "both", ["zero", "one", "two"])
    dialog = editor(page, "both")
    write(page, "mine 0", "mine 1")
    (folder / "1.txt").write_text("theirs 1")
    (folder / "2.txt").write_text("theirs 2")
    page.keyboard.press("Control+s")
    notice = dialog.locator(".notice", has_text="changed on disk")
    notice.wait_for()
    keep(page, comfy, "editor_conflict")
    assert (folder / "0.txt").read_text() == "zero" and (folder / "1.txt").read_text() == "theirs 1"
    assert captions(dialog) == ["mine 0", "mine 1", "theirs 2"] and "Taken over from there: 1; edited in both places: 1." in notice.text_content()
    assert "1.png on disk: theirs 1" in notice.text_content() and "2.png" not in notice.text_content()
    notice.locator("button", has_text="Take the 1 from disk").click()
    assert captions(dialog) == ["mine 0", "theirs 1", "theirs 2"]
    dialog.locator(".grid").focus()
    page.keyboard.press("Control+z")
    assert captions(dialog)[1] == "mine 1"
    page.keyboard.press("Control+s")
    dialog.locator("footer", has_text="saved 2 captions").wait_for()
    assert (folder / "1.txt").read_text() == "mine 1\n" and (folder / "1.txt.bak").read_text() == "theirs 1" and (folder / "2.txt").read_text() == "theirs 2"
    close(page)


def test_what_was_written_for_a_picture_that_is_gone_is_told(comfy, page):
    folder = pictures(comfy, "going", ["zero", "one", "two"])
    dialog = editor(page, "going")
    write(page, "mine 0", "mine 1")
    for name in ("1.png", "1.txt"):
        (folder / name).unlink()
    page.keyboard.press("Control+s")
    notice = dialog.locator(".notice", has_text="changed on disk")
    notice.wait_for()
    assert "1.png is no longer in the folder; you had written: mine 1" in notice.text_content()
    assert captions(dialog) == ["mine 0", "two"] and (folder / "0.txt").read_text() == "zero"
    page.keyboard.press("Control+s")
    dialog.locator("footer", has_text="saved 1 caption").wait_for()
    close(page)


def test_a_thousand_pictures(comfy, page):
    folder = comfy.base / "input" / "many"
    folder.mkdir()
    rows = [("filename", "prompt")]
    for number in range(1200):
        Image.new("RGB", (48, 40), ((number * 7) % 256, (number * 13) % 256, (number * 29) % 256)).save(folder / f"{number}.png")
        rows.append((f"{number}.png", f"tag{number % 400}, common, picture {number}"))
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    dialog = editor(page, "many")
    dialog.locator("header", has_text="1200 pictures").wait_for()
    count = lambda: page.evaluate("() => document.querySelector('.lora-loom-modal').shadowRoot.querySelectorAll('*').length")
    first = count()
    most = page.evaluate("""async () => {
        const root = document.querySelector(".lora-loom-modal").shadowRoot, box = root.querySelector(".grid");
        let most = 0, cards = 0, empty = 0;
        for (let step = 0; step <= 60; step += 1) {
            box.scrollTop = (box.scrollHeight * step) / 60;
            await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
            most = Math.max(most, root.querySelectorAll("*").length);
            cards = Math.max(cards, root.querySelectorAll(".card").length);
            // wherever it is scrolled to, there are cards under the middle
            const at = box.getBoundingClientRect();
            if (!root.elementFromPoint(at.left + at.width / 3, at.top + at.height / 2)?.closest(".card")) empty += 1;
        }
        return {most, cards, empty};
    }""")
    assert most["cards"] < 60 and most["empty"] <= 1, most  # in a gap between two rows there is none
    assert most["most"] < first * 1.5 + 200, (first, most)
    dialog.locator(".grid").focus()
    page.keyboard.press("End")
    dialog.locator(".card.current", has_text="1199.png").wait_for()
    page.wait_for_function("""() => {
        const card = document.querySelector(".lora-loom-modal").shadowRoot.querySelector(".card.current img");
        return card.complete && card.naturalWidth > 0;
    }""")
    page.keyboard.press("Home")
    assert captions(dialog)[0] == "tag0, common, picture 0" and dialog.locator("aside", has_text="and 1351 more").count() == 1
    dialog.get_by_placeholder("Search for").fill("common")
    dialog.locator("text=1200 places in 1200 captions").wait_for()
    dialog.get_by_placeholder("Replace by").fill("rare")
    dialog.locator("aside button", has_text="Replace").click()
    dialog.locator("button.strong", has_text="Save 1200").click()
    dialog.locator("footer", has_text="saved 1200 captions").wait_for()
    assert (folder / "metadata.csv").read_text().count("rare") == 1200 and (folder / "metadata.csv.bak").read_text().count("common") == 1200
    keep(page, comfy, "editor_many")
    close(page)


def test_narrow_and_zoomed(comfy, page):
    """At 200 % of a laptop's 1366 by 768 everything can be reached."""
    dialog = editor(page, "lora_loom_stars")
    page.set_viewport_size({"width": 683, "height": 384})
    try:
        keep(page, comfy, "editor_zoomed")
        assert dialog.locator(".card:visible").first.bounding_box()["width"] > 180
        assert dialog.locator(".grid").bounding_box()["height"] > 180
        for part in (dialog.locator("button.strong"), dialog.get_by_placeholder("Filter captions"), dialog.locator(".toggle"), dialog.get_by_placeholder("Search for"),
                     dialog.get_by_placeholder("Filter tags")):
            part.scroll_into_view_if_needed()
            box = part.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 683 and box["y"] >= 0 and box["y"] + box["height"] <= 384
            if part.text_content() == "Replace and tags":
                part.click()
        keep(page, comfy, "editor_zoomed_tools")
    finally:
        page.set_viewport_size({"width": 1500, "height": 1000})
    close(page)


def test_auto_caption_shows_what_it_holds(comfy, page):
    """Counts, and what Load Dataset's report says of the pictures."""
    folder = pictures(comfy, "held", ["a", "", "c"])
    (folder / "3.png").write_bytes((folder / "2.png").read_bytes())
    graph(page, folder.name)
    setting(page, min_size=16, resolution=64)
    strip = page.locator(".lora-loom-strip")
    strip.locator(".counts", has_text="2 with a caption").wait_for()
    strip.locator(".item[data-severity=warning]", has_text="no caption").first.wait_for()
    assert "Same file twice" in strip.locator(".item").nth(3).get_attribute("title") and "No caption" in strip.locator(".item").nth(1).get_attribute("title")
    assert strip.locator(".item").first.get_attribute("data-severity") in ("", "note")
    keep(page, comfy, "caption_holds")


def asked(page, part: str) -> list[str]:
    return [request for request in page.evaluate("() => window.loomAsked") if part in request]


def watch(page) -> None:
    page.evaluate("""() => { window.loomAsked = []; window.loomSignals = []; window.loomReal ??= window.app.api.fetchApi;
        window.app.api.fetchApi = function (route, ...more) { window.loomAsked.push(String(route)); if (String(route).includes("/report")) window.loomSignals.push(more[0]?.signal);
            return window.loomReal.call(this, route, ...more); }; }""")


def test_many_pictures_are_checked_when_that_is_wanted(comfy, page):
    """A node that has just been made has some folder of the list; thousands of pictures are not decoded for that."""
    folder = comfy.base / "input" / "thousands"
    folder.mkdir()
    one = png(0, data.coffee(), 64)
    for number in range(1001):
        (folder / f"{number}.png").write_bytes(one)
    watch(page)
    graph(page, folder.name)
    setting(page, min_size=16, resolution=64)
    page.locator(".loom-report", has_text="1,001 pictures are checked when they are trained on").wait_for()
    page.wait_for_timeout(1500)
    assert asked(page, "report?folder=thousands") == []
    page.locator(".loom-report button", has_text="Check them now").click()
    page.locator(".loom-report", has_text="Same file twice").wait_for(timeout=120_000)
    setting(page, trigger_word="zxmug")  # is on the same pictures
    page.locator(".loom-report", has_text="1001 pictures").wait_for()
    graph(page, folder.name)
    setting(page, min_size=16, resolution=72)
    page.locator(".loom-report button", has_text="Check them now").wait_for()
    page.evaluate("""() => { const {app, loomNodes: {caption}} = window, train = LiteGraph.createNode("TrainLoRA"); app.graph.add(train);
        caption.connect(0, train, train.inputs.findIndex((input) => input.name === "dataset")); }""")
    page.locator(".loom-report", has_text="Same file twice").wait_for(timeout=120_000)  # they are to be trained on
    # Train LoRA takes Load Dataset's report, and asks by itself where that is on no page; what nobody waits for any more is given up
    watch(page)
    setting(page, resolution=80)
    host.eventually(page, lambda: asked(page, "report?folder=thousands"))
    page.wait_for_timeout(1500)
    assert len(asked(page, "report?folder=thousands")) == 1
    page.locator(".loom-report", has_text="Same file twice").wait_for(timeout=120_000)
    page.evaluate("() => { window.loomNodes.load.flags.collapsed = true; window.app.canvas.setDirty(true, true); }")
    page.locator(".loom-report").wait_for(state="hidden")
    watch(page)
    setting(page, resolution=88)
    host.eventually(page, lambda: asked(page, "report?folder=thousands"))
    page.evaluate("() => { window.app.graph.clear(); }")
    host.eventually(page, lambda: page.evaluate("() => window.loomSignals.every((signal) => signal.aborted)"))
    assert page.evaluate("() => window.loomSignals.length && window.loomSignals.every((signal) => signal.aborted)")
    page.evaluate("() => { window.app.api.fetchApi = window.loomReal; }")


def test_the_strip_opens_the_editor_there(comfy, page):
    graph(page, "lora_loom_stars", existing="replace")
    items = page.locator(".lora-loom-strip .item")
    items.first.wait_for()
    keep(page, comfy, "strip")
    assert "Edit 20 captions" in page.locator(".lora-loom-strip").text_content()
    items.nth(1).click()
    dialog = page.locator("dialog.editor")
    dialog.locator(".card.current", has_text="star_02.png").wait_for()
    page.keyboard.press("Enter")
    page.keyboard.type(" again")
    page.keyboard.press("Control+s")  # from within the text
    dialog.locator(".notice", has_text="its next run writes over these").wait_for()
    close(page)
    page.locator(".lora-loom-strip .item", has_text="again").wait_for()


def test_load_dataset_shows_what_it_holds(comfy, page):
    """Before anything runs: pictures and counts, the report on them with its buckets, its complaints marked on the pictures; a click opens the editor there."""
    folder = pictures(comfy, "seen in small", ["a", "", "c"])
    (folder / "3.png").write_bytes((folder / "2.png").read_bytes())
    (folder / "4.png").write_bytes(b"no picture")
    graph(page, folder.name)
    page.wait_for_function("() => [...document.querySelectorAll('.thumbs img')].filter((i) => i.naturalWidth).length === 4")
    assert page.locator(".lora-loom-zone .counts").inner_text() == "4 pictures · 2 with a caption · 1 unreadable"
    page.locator(".loom-report .loom-error", has_text="all 4 pictures in 'seen in small' are below min_size 512").wait_for()  # not where it lies on the server
    assert page.locator(".thumbs [data-severity=warning], .thumbs [data-severity=error]").count() == 0
    height = page.evaluate("() => window.loomNodes.load.size[1]")
    setting(page, resolution=64)
    page.locator(".loom-report button", has_text="min_size").click()  # the way out, as on Train LoRA
    page.locator(".loom-report .loom-head", has_text="2 pictures").wait_for()
    setting(page, min_size=16)
    page.locator(".loom-report .loom-head", has_text="4 pictures").wait_for()
    assert page.locator(".loom-report .loom-buckets i").count() == 1 and page.evaluate("() => window.loomNodes.load.size[1]") == height
    marked = page.locator(".thumbs [data-severity=warning]")
    assert "Cannot be used" in page.locator(".thumbs [data-severity=error]").get_attribute("title")
    assert any("3.png" in marked.nth(i).get_attribute("title") and "Same file twice" in marked.nth(i).get_attribute("title") for i in range(marked.count()))
    assert marked.first.evaluate("(e) => { const color = () => getComputedStyle(e, '::after').backgroundColor, bad = color(); e.dataset.severity = 'note'; const told = color(); e.dataset.severity = 'warning'; return bad !== told; }")
    keep(page, comfy, "dataset_thumbs")
    setting(page, more_resolutions="80", upscale=True)  # a chart of what will be trained, whatever setting says it
    page.wait_for_function("() => document.querySelectorAll('.loom-report .loom-buckets i').length === 2")
    (folder / "2.png").unlink()  # by hand, in another window
    page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    page.locator(".loom-report .loom-head", has_text="3 pictures").wait_for()
    assert page.locator(".lora-loom-zone .counts").inner_text() == "3 pictures · 1 with a caption · 1 unreadable" and page.locator(".thumbs [title*='Same file']").count() == 0
    setting(page, check_pictures=False)
    page.locator(".loom-report", has_text="The pictures are not checked").wait_for()
    setting(page, check_pictures=True)
    page.locator(".loom-report summary", has_text="Cannot be used").wait_for()
    page.locator(".thumbs button").nth(2).click()
    page.locator("dialog.editor .card").first.wait_for()
    close(page)
    page.evaluate("() => { window.loomNodes.load.widgets.find((w) => w.name === 'folder').value = 'gone away'; }")
    gone = page.locator(".lora-loom-zone .counts.wrong", has_text="gone away")
    gone.wait_for()
    assert not page.locator(".thumbs .row").is_visible() and gone.evaluate("(e) => e.scrollHeight <= e.clientHeight")
    keep(page, comfy, "dataset_gone")
    folder.rename(folder.with_name("gone away"))  # as the message says
    page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    page.locator(".loom-report .loom-head", has_text="3 pictures").wait_for()


def test_an_error_that_is_asked_about_again_keeps_its_button_in_focus(comfy, page):
    graph(page, pictures(comfy, "small ones", ["a"]).name)
    setting(page, resolution=64)
    button = page.locator(".loom-report button", has_text="min_size")
    button.focus()
    watch(page)
    try:
        page.evaluate("() => { window.loomNow = Date.now; Date.now = () => window.loomNow() + 11000; }")
        host.eventually(page, lambda: asked(page, "report?folder=small"))
        page.wait_for_timeout(1500)
        assert len(asked(page, "report?folder=small")) == 1 and button.evaluate("(e) => document.activeElement === e")
    finally:
        page.evaluate("() => { Date.now = window.loomNow; window.app.api.fetchApi = window.loomReal; }")


def test_chinese(comfy, page):
    page.evaluate("async () => window.app.extensionManager.setting.set('Comfy.Locale', 'zh')")
    page.wait_for_timeout(500)
    page.reload()
    page.wait_for_function("() => window.app?.graph && window.LiteGraph?.registered_node_types['TrainLoRA'] && document.querySelector('[data-testid=queue-button]')", timeout=60_000)
    page.wait_for_timeout(1500)
    graph(page)
    assert "上传图片" in page.locator(".lora-loom-zone").text_content()
    page.locator(".lora-loom-zone button").nth(1).click()
    page.locator("dialog.editor header", has_text="标注 · lora_loom_stars").wait_for()
    page.locator("dialog.editor .card").first.wait_for()
    keep(page, comfy, "editor_chinese")
    close(page)
