"""The subgraph blueprint "Train & preview", made in ComfyUI's page as its own *Add to library* makes one. make_workflows.py writes it.

LoRA Config is inside, so that choosing a preset there fills Train LoRA's steps as everywhere; on the outside are only what no preset sets.
"""
from __future__ import annotations

import json
import uuid

NAME = "Train & preview"
ABOUT = ("Trains a LoRA on a dataset and shows your prompts before and after. Open it to choose a preset and the number of steps, and to watch the training.\n"
         "用数据集训练 LoRA，并按你的提示词画出训练前后的对比。双击标题进入子图，可选择预设和步数，并查看训练过程。")
ALIASES = ["lora", "training", "before after", "子图", "训练", "训练并预览", "预览", "前后对比"]
INSIDE = ("4", "5", "7")  # of the toy base's example: LoRA Config, Train LoRA, Preview Sample
PLACES = {"4": (60, 80, 370, 0), "5": (500, 80, 400, 720), "7": (970, 80, 400, 640)}
OUTSIDE = (("5", "name"), ("7", "prompt"), ("7", "width"), ("7", "height"))  # widgets on the node itself

PICTURES = "$$canvas-image-preview"  # what ComfyUI's page calls a node's pictures

BUILD = """
async ({prompt, inside, places, outside, name}) => {
  const {app} = window.comfyAPI.app;
  await app.loadApiJson(prompt, name);
  const byId = (id, graph) => graph._nodes.find((n) => String(n.id) === id);
  for (const id of inside) {
    const node = byId(id, app.graph), [x, y, width, height] = places[id], least = node.computeSize();
    node.setSize([Math.max(width, least[0]), Math.max(height, least[1])]);
    node.pos = [x, y];
  }
  const {subgraph, node} = app.graph.convertToSubgraph(new Set(inside.map((id) => byId(id, app.graph))));
  node.title = subgraph.name = name;
  await new Promise((done) => setTimeout(done, 500));
  for (const input of [...subgraph.inputs]) if (["INT", "FLOAT", "STRING"].includes(input.type)) subgraph.removeInput(input);  // the page's own choice
  for (const [id, widget] of outside) {
    const inner = byId(id, subgraph), slot = inner.inputs.find((input) => input.widget?.name === widget);
    subgraph.addInput(widget, String(slot.type)).connect(slot, inner);
  }
  await new Promise((done) => setTimeout(done, 500));
  node.setSize([360, 480]);
  node.pos = [0, 0];
  return JSON.stringify(app.canvas._serializeItems([node]));  // here, where what is undefined is left out
}
"""


def build(page, graphs) -> str:
    """The blueprint's JSON. Its ids are the same each time it is made."""
    consumers = {"20": graphs.node("PreviewImage", images=["7", 0]), "21": graphs.node("LossGraphNode", loss=["5", 3], filename_prefix="loss"),
                 "22": graphs.node("PreviewAny", source=["5", 4]), "23": graphs.node("CLIPTextEncode", clip=["5", 1], text=""),
                 "24": graphs.node("SaveLoRA", lora=["5", 2], prefix="lora"),
                 "25": graphs.node("KSampler", model=["5", 0], seed=0, steps=1, cfg=1.0, denoise=1.0, **graphs.SAMPLER)}  # outputs are made for these
    prompt = {key: value for key, value in graphs.toy().items() if key in ("1", "2", *INSIDE)}
    prompt["4"] = graphs.node("LoRAConfig", preset="default")
    prompt["5"]["inputs"] |= {"steps": 1000, "learning_rate": 1e-4, "batch_size": 1, "name": "my_lora", "sample_steps": 0, "sample_prompts": ""}
    prompt["7"]["inputs"] |= {"prompt": "", "cfg": 7.0, "width": 512, "height": 512}
    text = page.evaluate(BUILD, {"prompt": {**prompt, **consumers}, "inside": INSIDE, "places": PLACES, "outside": OUTSIDE, "name": NAME})
    made = json.loads(text)
    subgraph, = made["subgraphs"]
    own = {subgraph["id"]: NAME} | {slot["id"]: f"{NAME} {side} {slot['name']}" for side in ("inputs", "outputs") for slot in subgraph[side]}
    for given, name in own.items():
        text = text.replace(given, str(uuid.uuid5(uuid.NAMESPACE_URL, name)))
    made = json.loads(text)
    node, = made["nodes"]
    subgraph, = made["subgraphs"]
    node["title"] = subgraph["name"] = NAME
    node["properties"]["previewExposures"] = [{"name": PICTURES, "sourceNodeId": "7", "sourcePreviewName": PICTURES}]  # the pictures on the node itself
    subgraph |= {"category": "LoRA Loom", "description": ABOUT}
    saved = {"revision": 0, "last_node_id": node["id"], "last_link_id": 0, "nodes": [node], "links": [], "version": 0.4,
             "definitions": {"subgraphs": [subgraph]},
             "extra": {"BlueprintDescription": ABOUT, "BlueprintSearchAliases": ALIASES}}
    return json.dumps(saved, indent=1, ensure_ascii=False) + "\n"
