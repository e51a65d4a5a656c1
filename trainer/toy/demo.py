"""The demo: a LoRA on the toy base from twenty pictures of a star, which the base has never seen; then a grid with its score.

Where a ComfyUI is found the example workflow runs through its server, headless; else the diffusers backbone does it here.
"""
from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..config import LoomConfig
from ..errors import LoomError
from . import arch, shapes, stars

WORKFLOW = Path(__file__).resolve().parents[2] / "example_workflows" / "toy_base_train_and_generate.json"
# What the example workflow's nodes say too. Shapes alone are all that the base knows: without preservation every one would become a star.
CONFIG = LoomConfig().replace(
    adapter={"targets": "all linear+conv"}, optim={"learning_rate": 2e-3, "scheduler": "cosine", "warmup_steps": 20},
    loss={"caption_dropout": 0.0, "preservation": 1.0, "preservation_words": shapes.SHAPES}, train={"steps": 400, "batch_size": 4},
    output={"name": "toy_star"}, samples={"sample_steps": 100, "sample_prompts": ("a red star on a blue background", "a red circle on a blue background")})
CONCEPTS, OTHERS = 20, 40  # pictures that are scored
CFG, SAMPLING_STEPS, SEED = 3.0, 20, 11


def prompts() -> tuple[list[shapes.Scene], list[shapes.Scene]]:
    """(stars in colours and backgrounds that the twenty pictures lack, other shapes), fixed."""
    rng = random.Random(5)
    seen = {(s.colour, s.background) for s in stars.scenes()}
    new = [s for s in shapes.scenes((shapes.CONCEPT,)) if (s.colour, s.background) not in seen]
    return rng.sample(new, CONCEPTS), rng.sample(shapes.scenes(), OTHERS)


def run_demo(out: Path, steps: int | None = None) -> int:
    """Train, draw, score, save the grid in `out`. Returns 0 where the score meets the demo's own marks, else 1."""
    out = Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    pictures = out / "lora_loom_stars"
    shutil.rmtree(pictures, ignore_errors=True)
    stars.write(pictures)
    comfyui = os.environ.get("COMFYUI_PATH")
    started = time.time()
    concept, others = prompts()
    if comfyui and not WORKFLOW.is_file():
        print(f"{WORKFLOW.name} is not installed with the package: ComfyUI is not used; a git clone has it", flush=True)
        comfyui = None
    if comfyui:
        print(f"ComfyUI found: training through its server with {WORKFLOW.name}", flush=True)
        from .demo_server import through_server

        before, after, first, kept = through_server(Path(comfyui), WORKFLOW, out, pictures, concept, others, steps or CONFIG.train.steps)
    else:
        print("no ComfyUI found: training by the command line's diffusers backbone", flush=True)
        before, after, first, kept = through_diffusers(out, pictures, concept, others, steps or CONFIG.train.steps)

    present = sum(_is_star(i) for i in after) / len(after)
    without = sum(_is_star(i) for i in before) / len(before)
    known = [(was, i, s) for was, i, s in zip(first, kept, others) if shapes.right(was, s)]  # what the base draws right by itself
    still = sum(shapes.right(i, s) for _, i, s in known) / max(1, len(known))
    path = out / "demo.png"
    grid([(s.caption, was, i, _is_star(i)) for was, i, s in zip(before, after, concept)]
         + [(s.caption, was, i, shapes.right(i, s)) for was, i, s in known]).save(path)
    print(f"concept present with the LoRA {present:.0%} (at least 80 %), without it {without:.0%} (at most 10 %), "
          f"other captions still right {still:.0%} of {len(known)} (at least 90 %)")
    print(f"{time.time() - started:.0f} s in all. Grid: {path}", flush=True)
    good = present >= 0.8 and without <= 0.1 and still >= 0.9
    if not good:
        few = f", which {steps} steps instead of {CONFIG.train.steps} can do" if steps and steps < CONFIG.train.steps else ""
        print(f"the score is below its marks{few}", file=sys.stderr)
    return 0 if good else 1


def _is_star(image: Image.Image) -> bool:
    seen = shapes.read(image)
    return seen is not None and seen.shape == shapes.CONCEPT


def through_diffusers(out: Path, pictures: Path, concept: list, others: list, steps: int):
    """(before, after, others before, others after) pictures, with the file loaded as diffusers' users would."""
    import torch

    from .. import job
    from ..backbones import diffusers as backbone
    from ..data.folder import read_dataset
    from .make_base import sample

    model = backbone.load(arch.NAME)
    dataset = read_dataset(pictures, resolution=arch.SIZE, min_size=arch.SIZE, trigger_word=shapes.CONCEPT)
    config = CONFIG.replace(train={"steps": steps})
    shown = [0.0]

    def progress(now) -> None:
        if time.time() - shown[0] > 5 or now.step == now.total:
            shown[0] = time.time()
            print(now.line(), flush=True)

    draw = lambda scenes: sample(model.unet, model.text_encoders[0], model.vae.to(model.device), [s.caption for s in scenes],
                                 steps=SAMPLING_STEPS, cfg=CFG, seed=SEED)
    with torch.no_grad():
        before, first = draw(concept), draw(others)
    result = job.train(model, dataset, config, loras_folder=out / "loras", runs_folder=out / "lora_loom", hooks=job.Hooks(progress=progress))
    print(result.report, flush=True)
    pipeline_with(model, result.path)
    with torch.no_grad():
        return before, draw(concept), first, draw(others)


def pipeline_with(model, lora: Path):
    """diffusers' own pipeline around the model's networks, with the file loaded into them as its users do."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(model.vae, model.text_encoders[0], model.tokenizers[0], model.unet, DDIMScheduler(**arch.SCHEDULER), None, None,
                                       requires_safety_checker=False)
    pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
    return pipeline


def grid(rows: list[tuple[str, Image.Image, Image.Image, bool]], columns: int = 4, scale: int = 2) -> Image.Image:
    """prompt | without | with, a row each, in columns; the frame says whether the picture with the LoRA counts as right."""
    side, text, gap, head = arch.SIZE * scale, 300, 12, 28
    tall = -(-len(rows) // columns)
    wide = text + 2 * (side + gap) + gap
    sheet = Image.new("RGB", (columns * wide, head + tall * (side + gap)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (caption, before, after, right) in enumerate(rows):
        left, y = number // tall * wide, head + number % tall * (side + gap)
        if number % tall == 0:
            for x, word in ((8, "prompt"), (text, "without"), (text + side + gap, "with")):
                pen.text((left + x, 6), word, fill="black", font=font)
        pen.text((left + 8, y + side // 2 - 8), caption, fill="black", font=font)
        for x, image in ((left + text, before), (left + text + side + gap, after)):
            sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (x, y))
        pen.rectangle((x - 4, y - 4, x + side + 3, y + side + 3), outline="#2a9d3a" if right else "#d12f2f", width=3)
    return sheet


def api_form(workflow: dict, object_info: dict) -> dict:
    """A workflow as the page saves it -> the API's form, for the plain graphs of our examples (no sub-graphs)."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] not in object_info:  # notes
            continue
        if node.get("mode", 0) in (2, 4):
            raise LoomError(f"node {node['id']} ({node['type']}) is muted or bypassed: the demo runs plain graphs alone")
        given = {i["name"]: links[i["link"]] for i in node.get("inputs", []) if i.get("link") is not None}
        values = node.get("widgets_values") or []
        info = object_info[node["type"]]
        names = [name for group in ("required", "optional") for name in info.get("input_order", info["input"]).get(group, [])]
        specs = {name: spec for group in ("required", "optional") for name, spec in info["input"].get(group, {}).items()}
        position = 0
        for name in names:
            kind, options = specs[name][0], (specs[name][1] if len(specs[name]) > 1 else {})
            if not (isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")):
                continue
            if position < len(values):
                given.setdefault(name, values[position])
            position += 2 if options.get("control_after_generate") else 1
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": given}
    return prompt


def by_class(prompt: dict, class_type: str) -> dict:
    """The inputs of the prompt's first node of that class."""
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == class_type)


def load_workflow(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
