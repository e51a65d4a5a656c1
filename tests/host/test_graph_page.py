"""What our views take for the graph in front of a node is what a run takes: through subgraphs, reroutes, primitives, bypassed and muted nodes."""
from __future__ import annotations

import pytest

host = pytest.importorskip("loom_host_server", reason="needs websocket-client, from the extra `test`")
pages = pytest.importorskip("loom_host_pages", reason="needs websocket-client, from the extra `test`")
pytest.importorskip("playwright.sync_api", reason="needs playwright, from the extra `test`")

pytestmark = pytest.mark.browser


workflows = pages.workflows


@pytest.fixture(scope="module", params=host.PAGES)
def page(request, tmp_path_factory: pytest.TempPathFactory):
    path, site = host.asked_for(request)
    base = tmp_path_factory.mktemp(f"graph_{request.param}")
    workflows.settle(base)
    with host.Comfy(path, base, site) as server, pages.opened(server.url, (1500, 1000)) as page:
        yield page


# Load Dataset -> Filter Dataset -> Auto Caption -> Train LoRA <- LoRA Config, with the toy base; `work` changes it and is given all that it needs.
ASK = """async (work) => {
    const {app} = window, ours = "/extensions/comfyui-lora-loom/";
    const graph = await import(ours + "graph.mjs"), widgets = await import(ours + "widgets.mjs"), {requestFor} = await import(ours + "estimate_graph.mjs");
    await app.loadGraphData({nodes: [], links: [], last_node_id: 0, last_link_id: 0, version: 0.4});
    const made = {}, add = (kind, at = app.graph) => { const node = LiteGraph.createNode(kind); node.pos = [400 * at._nodes.length, 100]; at.add(node); return node; };
    for (const kind of ["ToyBase", "LoadDataset", "FilterDataset", "AutoCaption", "LoRAConfig", "TrainLoRA"]) made[kind] = add(kind);
    const slot = (node, name) => node.inputs.findIndex((input) => input.name === name);
    const join = (from, out, to, name) => from.connect(out, to, slot(to, name));
    const {ToyBase: toy, LoadDataset: load, FilterDataset: filter, AutoCaption: caption, LoRAConfig: config, TrainLoRA: train} = made;
    for (const [i, name] of ["model", "clip", "vae"].entries()) join(toy, i, train, name);
    join(load, 0, filter, "dataset"); join(filter, 0, caption, "dataset"); join(caption, 0, train, "dataset"); join(config, 0, train, "config");
    const widget = (node, name) => node.widgets.find((w) => w.name === name), set = (node, name, value) => { widget(node, name).value = value; };
    const other = add("LoadDataset");
    set(load, "folder", "lora_loom_stars"); set(load, "resolution", 128);
    widgets.list(widget(other, "folder"), "elsewhere"); set(other, "folder", "elsewhere");
    const reroute = (from, out, to, name) => { const node = add("Reroute"); from.connect(out, node, 0); node.connect(0, to, slot(to, name)); return node; };
    const one = (kind) => graph.everyNode(app.graph).find((node) => node.comfyClass === kind);  // nodes that go into a subgraph are made anew there
    const inside = (...nodes) => app.graph.convertToSubgraph(new Set(nodes)).node;
    const folder = (node) => graph.folderOf(node)?.folder ?? null;
    const queued = async (name) => {
        const {output} = await app.graphToPrompt(), value = Object.values(output).find((n) => n.class_type === "LoadDataset" && n.inputs.folder !== "elsewhere").inputs[name];
        return Array.isArray(value) ? output[value[0]].inputs.value : value;
    };
    return await (new Function("g", `return (async () => { with (g) { ${work} } })()`))({...graph, ...widgets, requestFor, app, ...made, toy, load, filter, caption, config, train, other, add, join, slot, widget, set, reroute, one, inside, folder, queued});
}"""


@pytest.mark.parametrize("change, found", [
    ("", "lora_loom_stars"),
    ("reroute(load, 0, filter, 'dataset'); reroute(caption, 0, train, 'dataset');", "lora_loom_stars"),
    ("caption.mode = 4; filter.mode = 4;", "lora_loom_stars"),  # bypassed
    ("filter.mode = 2;", None),  # muted: nothing comes
    ("load.mode = 2;", None),
    ("load.mode = 4;", None),  # it has nothing to pass on
    ("config.mode = 4;", "lora_loom_stars"),
    ("inside(load);", "lora_loom_stars"),
    ("inside(load, filter, caption);", "lora_loom_stars"),
    ("inside(train);", "lora_loom_stars"),
    ("inside(caption, train);", "lora_loom_stars"),
    ("inside(caption);", "lora_loom_stars"),  # in and out again
    ("inside(inside(caption), train);", "lora_loom_stars"),  # one in another
    ("inside(caption).mode = 4;", "lora_loom_stars"),
    ("inside(load).mode = 2;", None),
    ("inside(reroute(load, 0, filter, 'dataset'), filter);", "lora_loom_stars"),
    ("join(other, 0, filter, 'dataset');", "elsewhere"),
])
def test_the_folder_is_found(page, change, found):
    assert page.evaluate(ASK, f"{change} return [folder(one('TrainLoRA')), folder(one('AutoCaption'))];") == [found, found]


@pytest.mark.parametrize("change, found", [
    ("", 128),
    ("const p = add('PrimitiveInt'); widget(p, 'value').value = 192; join(p, 0, load, 'resolution');", 192),
    ("const p = add('PrimitiveInt'); widget(p, 'value').value = 192; reroute(p, 0, load, 'resolution'); inside(load);", 192),
    ("const p = add('PrimitiveNode'); join(p, 0, load, 'resolution'); p.widgets[0].value = 320;", 320),
    # a widget that the subgraph shows outside says what is inside
    ("const p = add('PrimitiveInt'); join(p, 0, load, 'resolution'); const s = inside(load); s.disconnectInput(slot(s, 'resolution')); widget(s, 'resolution').value = 256;", 256),
])
def test_a_value_is_that_of_what_is_linked(page, change, found):
    got = page.evaluate(ASK, f"{change} return [requestFor(train).dataset.resolution, await queued('resolution'), valueOf(datasetOf(train), 'resolution')];")
    assert got == [found] * 3, "the estimate asks for what a run would take"


@pytest.mark.parametrize("text", ["mine", "fixed", "randomize"])
def test_a_text_may_be_called_as_a_way_to_change_numbers(page, text):
    assert page.evaluate(ASK, f"const p = add('PrimitiveString'); widget(p, 'value').value = {text!r}; join(p, 0, train, 'name'); return valueOf(here(train), 'name');") == text


@pytest.mark.parametrize("change, values", [
    ("", ["my_lora"]), ("const p = add('PrimitiveString'); widget(p, 'value').value = 'given'; join(p, 0, train, 'name');", ["given"]),
    ("const text = add('StringConcatenate'); join(text, 0, train, 'name');", [None]),  # computed
    ("""set(train, 'name', 'first'); const place = inside(train), inner = one('TrainLoRA'), made = place.subgraph.addInput('name', 'STRING');
        made.connect(inner.inputs[slot(inner, 'name')], inner);
        const again = place.clone(); app.graph.add(again); widget(place, 'name').value = 'first'; widget(again, 'name').value = 'second';""", ["first", "second"]),
])
def test_a_node_of_a_subgraph_has_a_value_for_each_place(page, change, values):
    assert page.evaluate(ASK, f"{change}; return possible(one('TrainLoRA'), 'name').map((value) => value ?? null);") == values


def test_a_value_is_set_where_it_comes_from(page):
    got = page.evaluate(ASK, """const p = add('PrimitiveInt'); widget(p, 'value').value = 192; join(p, 0, load, 'resolution');
        const told = setValue(load, 'resolution', 448), new_one = setValue(load, 'folder', 'not in the list'), none = setValue(load, 'nothing', 1);
        return [told, new_one, none, [await queued('resolution'), await queued('folder'), widget(other, 'folder').options.values.includes('not in the list')]];""")
    told, new_one, none, sent = got
    assert told == {"there": True, "known": True} and new_one == {"there": True, "known": False} and none["there"] is False
    assert sent == [448, "not in the list", False]


def test_what_is_computed_on_the_way_is_not_set(page):
    """Of a node with several settings, or several outputs, no widget says what comes out of it."""
    got = page.evaluate(ASK, """const text = add('StringConcatenate'); widget(text, 'string_a').value = 'good'; widget(text, 'string_b').value = ':bad'; join(text, 0, train, 'name');
        const size = add('GetImageSize'); load.connect(1, size, 0); size.connect(0, config, slot(config, 'rank'));
        const told = [setValue(train, 'name', 'x').there, setValue(config, 'rank', 4).there, settable(train, 'steps'), settable(train, 'name')];
        return [told, widget(text, 'string_a').value, widget(train, 'name').value === 'x'];""")
    assert got == [[False, False, True, False], "good", False]


@pytest.mark.parametrize("primitive, changed", [("", False), ("PrimitiveNode", True), ("PrimitiveInt", True)])
def test_a_queued_graph_is_known_again(page, primitive, changed):
    """By its values; a seed that the page draws anew after each run is none."""
    got = page.evaluate(ASK, f"""const kind = {primitive!r};
        if (kind) {{ const p = add(kind); join(p, 0, train, 'seed'); p.widgets[0].value = 5; if (p.widgets[1]) p.widgets[1].value = 'randomize'; }} else widget(train, 'seed').value = 5;
        const {{output}} = await app.graphToPrompt(), links = (v) => Array.isArray(v);
        const queued = Object.entries(output).filter(([, n]) => n.inputs.folder !== 'elsewhere').map(([id, n]) => [id, n.class_type, Object.fromEntries(Object.entries(n.inputs).filter(([, v]) => !links(v)))]);
        const before = sameAs(train, queued);
        setValue(train, 'seed', 6);
        const drawn = sameAs(train, queued);
        setValue(train, 'seed', 5); widget(config, 'rank').value = 9;
        const other = sameAs(train, queued);
        widget(config, 'rank').value = queued.find((n) => n[1] === 'LoRAConfig')[2].rank;
        const again = sameAs(train, queued);
        filter.mode = 4;
        return [before, drawn, other, again, sameAs(train, queued)];""")
    assert got == [True, changed, False, True, False]


def test_configs_know_their_trainers(page):
    count = "trainersOf(one('LoRAConfig')).length"
    assert page.evaluate(ASK, f"return {count};") == 1
    assert page.evaluate(ASK, f"inside(train); return [{count}, Boolean(requestFor(one('TrainLoRA')))];") == [1, True]
    assert page.evaluate(ASK, f"inside(config); return [{count}, configOf(train).node === one('LoRAConfig')];") == [1, True]
    assert page.evaluate(ASK, f"const two = add('TrainLoRA'); reroute(config, 0, two, 'config'); inside(two); return {count};") == 2
    assert page.evaluate(ASK, f"config.mode = 2; return [{count}, configOf(train)];") == [0, None]


def test_one_subgraph_at_two_places(page):
    """Each place has its own values and its own way out."""
    got = page.evaluate(ASK, """const s = inside(caption), two = LiteGraph.createNode(s.type); app.graph.add(two);
        const more = add('TrainLoRA'); other.connect(0, two, 0); two.connect(0, more, slot(more, 'dataset'));
        return [folder(train), folder(more), folder(one('AutoCaption')), everyNode(app.graph).filter((n) => n.comfyClass === 'AutoCaption').length];""")
    assert got[:2] == ["lora_loom_stars", "elsewhere"] and got[2] in got[:2] and got[3] == 1


def test_a_circle_ends(page):
    assert page.evaluate(ASK, "const a = reroute(load, 0, filter, 'dataset'); const b = add('Reroute'); a.connect(0, b, 0); b.connect(0, a, 0); return [folder(train), ancestors(here(train)).length > 3];") == [None, True]


def test_auto_caption_inside_a_subgraph_shows_the_folder_outside(page):
    page.evaluate(ASK, """const sub = inside(caption); app.canvas.openSubgraph(sub.subgraph, sub); await new Promise((done) => setTimeout(done, 300));
        const at = one('AutoCaption').pos; app.canvas.ds.scale = 1; [app.canvas.ds.offset[0], app.canvas.ds.offset[1]] = [200 - at[0], 200 - at[1]]; app.canvas.setDirty(true, true);""")
    page.locator(".lora-loom-strip .item:visible").first.wait_for(timeout=20_000)
    assert "Edit 20 captions" in page.locator(".lora-loom-strip:visible button").first.inner_text()
