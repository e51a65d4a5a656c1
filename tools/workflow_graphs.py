"""The example workflows as data: each graph as a prompt in the API form, how it lies on the canvas, which files it wants, its note.

A graph needs every value that shall be on the canvas: `config` fills in what a preset sets. Notes are workflow_notes/<name>.md.
"""
from __future__ import annotations

from pathlib import Path

NOTES = Path(__file__).resolve().parent / "workflow_notes"
SAMPLER = {"sampler_name": "euler", "scheduler": "normal"}
HUB = "https://huggingface.co"
SD15 = {"name": "v1-5-pruned-emaonly-fp16.safetensors", "directory": "checkpoints",
        "url": f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors"}
SDXL = {"name": "sd_xl_base_1.0.safetensors", "directory": "checkpoints",
        "url": f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors"}
FLUX = {"name": "flux1-dev.safetensors", "directory": "diffusion_models", "url": f"{HUB}/Comfy-Org/flux1-dev/resolve/main/flux1-dev.safetensors"}
CLIP_L = {"name": "clip_l.safetensors", "directory": "text_encoders", "url": f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main/clip_l.safetensors"}
T5 = {"name": "t5xxl_fp8_e4m3fn_scaled.safetensors", "directory": "text_encoders",
      "url": f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main/t5xxl_fp8_e4m3fn_scaled.safetensors"}
AE = {"name": "ae.safetensors", "directory": "vae", "url": f"{HUB}/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/ae.safetensors"}
OPEN_CLIP = "ViT-B-32.safetensors"
CHECKPOINT = (["1", 0], ["1", 1], ["1", 2])  # the outputs of a loader that gives all three


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def preset(name: str, family: str = "any", **changed) -> tuple[dict, dict]:
    """(LoRAConfig's inputs, TrainLoRA's) as choosing that preset and family would set them."""
    from lora_loom.trainer import presets

    values = presets.load(name, "" if family == "any" else family)
    train, rest = values.pop("train", {}), {key: value for part in values.values() for key, value in part.items()}
    mine = {"steps": train.pop("steps", 1000), "batch_size": train.pop("batch_size", 1), "learning_rate": rest.pop("learning_rate", 1e-4)}
    train.pop("pictures", None)
    return {"preset": name, "family": family, **rest, **train, **changed}, mine


def loader(checkpoint: dict) -> dict:
    return node("CheckpointLoaderSimple", ckpt_name=checkpoint["name"])


def load(**given) -> dict:
    return node("LoadDataset", **{"folder": "my_pictures", "resolution": 512, "min_size": 384, "caption_source": "auto", "trigger_word": "", "repeats": 1,
                                  "flip": False, "buckets": True, **given})


def train_and_generate(base: dict, dataset: dict, config: dict, train: dict, preview: dict, sampler: dict, size: int, links=CHECKPOINT) -> dict:
    """The train-and-generate graphs: they differ in their loaders (links: where model, clip and vae come from) and their numbers."""
    model, clip, vae = links
    first = preview["prompt"].splitlines()[0]
    graph = {
        "1": base,
        "2": load(**dataset),
        "3": node("PreviewImage", images=["2", 1]),
        "4": node("LoRAConfig", **config),
        "5": node("TrainLoRA", model=model, clip=clip, vae=vae, dataset=["2", 0], config=["4", 0], **{"epochs": 0, "seed": 0, **train}),
        "6": node("LossGraphNode", loss=["5", 3], filename_prefix="loss_graph"),
        "7": node("PreviewSample", model=["5", 0], clip=["5", 1], vae=vae, base_model=model, width=size, height=size, **{**SAMPLER, **preview}),
        "8": node("CLIPTextEncode", clip=["5", 1], text=first),
        "9": node("CLIPTextEncode", clip=["5", 1], text=preview["negative"]),
        "10": node("EmptyLatentImage", width=size, height=size, batch_size=1),
        "11": node("KSampler", model=["5", 0], positive=["8", 0], negative=["9", 0], latent_image=["10", 0], denoise=1.0, **{**SAMPLER, **sampler}),
        "12": node("VAEDecode", samples=["11", 0], vae=vae),
        "13": node("PreviewImage", images=["12", 0]),
    }
    if size < 256:  # small pictures are shown enlarged
        graph["13"] = node("PreviewImage", images=["14", 0])
        graph["14"] = node("ImageScaleBy", image=["12", 0], upscale_method="nearest-exact", scale_by=5.0)
        graph["15"] = node("ImageScaleBy", image=["7", 0], upscale_method="nearest-exact", scale_by=3.0)
        graph["16"] = node("PreviewImage", images=["15", 0])
    return graph


# ---------------------------------------------------------------- the graphs

STAR = {"preset": "default", "rank": 16, "alpha": 16.0, "targets": "all linear+conv", "scheduler": "cosine", "warmup_steps": 20, "caption_dropout": 0.0,
        "preservation": 1.0, "preservation_words": "circle, square, triangle, cross, ring, diamond"}


def toy() -> dict:
    return train_and_generate(
        node("ToyBase"), {"folder": "lora_loom_stars", "resolution": 64, "min_size": 64, "trigger_word": "star"}, STAR,
        {"steps": 400, "learning_rate": 0.002, "batch_size": 4, "name": "toy_star", "sample_steps": 100,
         "sample_prompts": "a red star on a blue background\na red circle on a blue background"},
        {"prompt": "a red star on a blue background\na yellow star on a purple background\na white star on a green background\n"
                   "a red circle on a blue background", "negative": "", "seed": 1, "steps": 20, "cfg": 3.0},
        {"seed": 7, "steps": 20, "cfg": 3.0}, 64)


def sd15() -> dict:
    prompts = "zxmug, on a wooden table, daylight\nzxmug, in the snow"
    return train_and_generate(
        loader(SD15), {"trigger_word": "zxmug"}, {"preset": "default"},
        {"steps": 1500, "learning_rate": 0.0001, "batch_size": 1, "name": "my_lora", "sample_steps": 250, "sample_prompts": prompts},
        {"prompt": prompts, "negative": "blurry, low quality", "seed": 1, "steps": 20, "cfg": 7.0}, {"seed": 7, "steps": 20, "cfg": 7.0}, 512)


def character() -> dict:
    """Copies are left out first; half of the prompts are without the character, to see that others stay themselves."""
    prompts = "zxhero, standing in a park, full body\nzxhero, smiling, upper body, city at night\na girl reading in a library"
    config, train = preset("anime character", "sd15", save_steps=500, preservation_words="1girl, girl")
    graph = train_and_generate(
        loader(SD15), {"trigger_word": "zxhero"}, config, {**train, "name": "my_character", "sample_steps": 250, "sample_prompts": prompts},
        {"prompt": prompts, "negative": "lowres, bad hands, blurry", "seed": 1, "steps": 24, "cfg": 7.0}, {"seed": 7, "steps": 24, "cfg": 7.0}, 512)
    graph["14"] = node("FilterDataset", dataset=["2", 0], duplicates=True, blurred=False, badly_exposed=False, model="none", prompt="", min_similarity=0.2)
    graph["5"]["inputs"]["dataset"] = ["14", 0]
    return graph


def style() -> dict:
    """No trigger word: the look goes with any prompt. Variants keep composition out of it."""
    prompts = "a lighthouse on a cliff\na portrait of an old man\na cat on a window sill"
    config, train = preset("illustration style", "sd15", save_steps=500)
    graph = train_and_generate(
        loader(SD15), {}, config, {**train, "name": "my_style", "sample_steps": 250, "sample_prompts": prompts},
        {"prompt": prompts, "negative": "", "seed": 1, "steps": 24, "cfg": 6.0}, {"seed": 7, "steps": 24, "cfg": 6.0}, 512)
    graph["14"] = node("AugmentDataset", dataset=["2", 0], flip=0.5, crop=0.1, rotation=0.0, brightness=0.0, contrast=0.0, hue=0.0, variants=4, seed=0)
    graph["3"]["inputs"]["images"] = ["14", 1]
    graph["5"]["inputs"]["dataset"] = ["14", 0]
    return graph


def sdxl() -> dict:
    prompts = "photo of zxmug on a wooden table, daylight\nphoto of zxmug in the snow"
    config, train = preset("one object", "sdxl", gradient_checkpointing=True)
    return train_and_generate(
        loader(SDXL), {"resolution": 1024, "min_size": 512, "trigger_word": "zxmug"}, config,
        {**train, "name": "my_sdxl_lora", "sample_steps": 250, "sample_prompts": prompts},
        {"prompt": prompts, "negative": "", "seed": 1, "steps": 25, "cfg": 6.0}, {"seed": 7, "steps": 25, "cfg": 6.0}, 1024)


def flux() -> dict:
    """fp8 weights, small pictures, gradient checkpointing: what a card of little memory can hold of Flux."""
    prompts = "a photo of zxmug on a wooden table, daylight\na photo of zxmug in the snow"
    config, train = preset("low vram", "flux")
    graph = train_and_generate(
        node("UNETLoader", unet_name=FLUX["name"], weight_dtype="fp8_e4m3fn"), {"trigger_word": "zxmug"}, config,
        {**train, "name": "my_flux_lora", "sample_steps": 250, "sample_prompts": prompts},
        {"prompt": prompts, "negative": "", "seed": 1, "steps": 20, "cfg": 1.0, "scheduler": "simple"},
        {"seed": 7, "steps": 20, "cfg": 1.0, "scheduler": "simple"}, 512, links=(["1", 0], ["15", 0], ["16", 0]))
    graph["15"] = node("DualCLIPLoader", clip_name1=CLIP_L["name"], clip_name2=T5["name"], type="flux")
    graph["16"] = node("VAELoader", vae_name=AE["name"])
    graph["14"] = node("FluxGuidance", conditioning=["8", 0], guidance=3.5)
    graph["11"]["inputs"]["positive"] = ["14", 0]
    return graph


def resume() -> dict:
    """The toy base's training, which can be stopped and taken up again: what follows is only before and after."""
    graph = {key: value for key, value in toy().items() if key in ("1", "2", "3", "4", "5", "6", "7", "15", "16")}
    graph["4"]["inputs"] |= {"save_minutes": 1.0, "save_steps": 100}
    graph["5"]["inputs"] |= {"name": "toy_star_resumed", "resume": "none", "steps": 600}
    return graph


def choose() -> dict:
    """The toy base's training with a saved LoRA every 50 steps, and the grid to choose from; generating goes on with the chosen one."""
    graph = {key: value for key, value in toy().items() if key in ("1", "2", "3", "4", "5", "8", "9", "10", "11", "12", "13", "14")}
    graph["4"]["inputs"] |= {"save_steps": 50, "keep_checkpoints": 0}
    graph["5"]["inputs"] |= {"name": "toy_star_choose"}
    graph["7"] = node("ChooseCheckpoint", model=["1", 0], clip=["1", 1], vae=["1", 2], path=["5", 4], run="newest", compare="strengths", choice="", most=8,
                      strengths="0.4, 0.7, 1.0, 1.3", prompts="a yellow star on a purple background\na red circle on a blue background", negative="",
                      seed=1, steps=20, cfg=3.0, width=64, height=64, **SAMPLER)
    for key, number in (("8", 1), ("9", 1), ("11", 0)):
        graph[key]["inputs"]["clip" if number else "model"] = ["7", number]
    return graph


def caption() -> dict:
    return {
        "1": load(min_size=64),
        "2": node("PreviewImage", images=["1", 1]),
        "3": node("AutoCaption", dataset=["1", 0], method="clip_tags", model=OPEN_CLIP, max_tags=8, prefix="", suffix="",
                  existing="keep", save_as="metadata.csv"),
        "4": node("PreviewAny", source=["3", 2]),
    }


def check() -> dict:
    return {
        "1": load(min_size=64),
        "2": node("PreviewImage", images=["1", 1]),
        "3": node("FilterDataset", dataset=["1", 0], duplicates=True, blurred=True, badly_exposed=True, model="none", prompt="", min_similarity=0.2),
        "4": node("PreviewAny", source=["3", 1]),
        "5": node("AugmentDataset", dataset=["3", 0], flip=0.5, crop=0.1, rotation=5.0, brightness=0.1, contrast=0.0, hue=0.0, variants=4, seed=0),
        "6": node("PreviewImage", images=["5", 1]),
    }


# ---------------------------------------------------------------- on the canvas

TITLES = {"3": "Your pictures \u00b7 你的图片", "13": "A picture with the LoRA \u00b7 用 LoRA 生成的图片", "8": "Prompt \u00b7 提示词",
          "9": "Negative prompt \u00b7 反向提示词"}


def rows(first: list, second: list, note: int, between: tuple = (), after: tuple = ()) -> list:
    """Pictures and training above, before and after and generating below. `between` and `after`: nodes below the pictures, and the prompt."""
    return [[("1 \u00b7 Pictures and model \u00b7 图片和模型", [("note", 400, note), *first]), ("", [*second, ("3", 340, 330)]),
             ("2 \u00b7 Training \u00b7 训练", [("4", 370, 0), *between]), ("", [("5", 400, 720), ("6", 400, 330)])],
            [("3 \u00b7 Before and after \u00b7 前后对比", [("7", 890, 820)]),
             ("4 \u00b7 Generate with it \u00b7 用它生成", [("8", 330, 150), *after, ("9", 330, 130), ("10", 330, 0), ("12", 330, 0)]),
             ("", [("11", 370, 0), ("13", 370, 430)])]]


# title: {node: its title}; rows of columns of (node, width, height); models: what the page offers to download where it is missing, by node
# What ComfyUI's new nodes need, which are taller than the classic ones, and pictures after a run.
HEIGHTS = {"LoadDataset": 770, "TrainLoRA": 840, "LoRAConfig": 620, "AugmentDataset": 620}
WORKFLOWS = {
    "toy_base_train_and_generate": {
        "graph": toy, "title": {**TITLES, "3": "Its twenty pictures \u00b7 二十张图片", "16": "Before | after \u00b7 训练前 | 训练后"},
        "rows": [
            [("1 \u00b7 Pictures \u00b7 图片", [("note", 400, 480), ("1", 400, 0)]), ("", [("2", 340, 720), ("3", 340, 310)]),
             ("2 \u00b7 Training \u00b7 训练", [("4", 370, 0)]), ("", [("5", 370, 720), ("6", 370, 330)])],
            [("3 \u00b7 Before and after \u00b7 前后对比", [("7", 400, 760), ("15", 400, 0)]), ("", [("16", 440, 940)]),
             ("4 \u00b7 Generate with it \u00b7 用它生成", [("8", 330, 130), ("9", 330, 110), ("10", 330, 0), ("12", 330, 0), ("14", 330, 0)]),
             ("", [("11", 370, 0), ("13", 370, 430)])]]},
    "sd15_train_and_generate": {"graph": sd15, "title": TITLES, "rows": rows([("1", 400, 0)], [("2", 340, 720)], 530), "models": {"1": [SD15]}},
    "character": {"graph": character, "title": TITLES, "rows": rows([("1", 400, 0)], [("2", 340, 640)], 640, [("14", 370, 0)]), "models": {"1": [SD15]}},
    "style": {"graph": style, "title": {**TITLES, "3": "As they are trained on \u00b7 训练时的样子"},
              "rows": rows([("1", 400, 0)], [("2", 340, 640)], 600, [("14", 370, 0)]),
              "models": {"1": [SD15]}},
    "sdxl": {"graph": sdxl, "title": TITLES, "rows": rows([("1", 400, 0)], [("2", 340, 720)], 540), "models": {"1": [SDXL]}},
    "flux_low_vram": {"graph": flux, "title": TITLES, "models": {"1": [FLUX], "15": [CLIP_L, T5], "16": [AE]},
                      "rows": rows([("1", 400, 0), ("15", 400, 0), ("16", 400, 0)], [("2", 340, 720)], 740, after=(("14", 330, 0),))},
    "resume": {
        "graph": resume, "title": {"3": "Its twenty pictures \u00b7 二十张图片", "16": "Before | after \u00b7 训练前 | 训练后"},
        "rows": [[("1 \u00b7 Pictures \u00b7 图片", [("note", 400, 620), ("1", 400, 0)]), ("", [("2", 340, 720), ("3", 340, 310)]),
                  ("2 \u00b7 Training: stop it, then resume \u00b7 训练：先停止，再继续", [("4", 370, 0)]), ("", [("5", 400, 720), ("6", 400, 330)]),
                  ("3 \u00b7 Before and after \u00b7 前后对比", [("7", 360, 640), ("15", 360, 0)]), ("", [("16", 440, 940)])]]},
    "choose_checkpoint": {
        "graph": choose, "title": {**TITLES, "3": "Its twenty pictures \u00b7 二十张图片"},
        "rows": [[("1 \u00b7 Pictures \u00b7 图片", [("note", 400, 620), ("1", 400, 0)]), ("", [("2", 340, 720), ("3", 340, 310)]),
                  ("2 \u00b7 Training, saved every 50 steps \u00b7 训练，每 50 步保存", [("4", 370, 0)]), ("", [("5", 400, 900)])],
                 [("3 \u00b7 Click the best one \u00b7 点选最好的一张", [("7", 560, 1100)]),
                  ("4 \u00b7 Generate with it \u00b7 用它生成", [("8", 330, 130), ("9", 330, 110), ("10", 330, 0), ("12", 330, 0), ("14", 330, 0)]),
                  ("", [("11", 370, 0), ("13", 370, 430)])]]},
    "caption_only": {
        "graph": caption, "title": {"2": "The pictures \u00b7 图片", "4": "What was captioned \u00b7 打标结果"},
        "rows": [[("Pictures \u00b7 图片", [("note", 400, 560)]), ("", [("1", 340, 720), ("2", 340, 430)]),
                  ("Captions \u00b7 标注", [("3", 420, 740)]), ("", [("4", 400, 400)])]]},
    "dataset_check": {
        "graph": check, "title": {"2": "The pictures \u00b7 图片", "4": "What was left out, and why \u00b7 剔除了什么，为什么",
                                    "6": "As they would be trained on \u00b7 训练时的样子"},
        "rows": [[("Pictures \u00b7 图片", [("note", 400, 600)]), ("", [("1", 340, 720), ("2", 340, 430)]),
                  ("Filter \u00b7 筛选", [("3", 400, 560), ("4", 400, 560)]), ("Variants \u00b7 变体", [("5", 360, 0), ("6", 360, 700)])]]},
}


def note(name: str) -> str:
    return (NOTES / f"{name}.md").read_text(encoding="utf-8")


def files() -> list[tuple[str, str]]:
    """(folder below models, name) of every file that the workflows want."""
    wanted = {(m["directory"], m["name"]) for layout in WORKFLOWS.values() for models in layout.get("models", {}).values() for m in models}
    return sorted({*wanted, ("open_clip", OPEN_CLIP)})
