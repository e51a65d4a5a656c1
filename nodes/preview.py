"""PreviewSample: several prompts, before and after, through ComfyUI's own sampler."""
from __future__ import annotations

import comfy.samplers
import torch

from ..trainer.errors import LoomError
from . import events
from .schema import io, output, schema, ui, widget


class PreviewSample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "PreviewSample", "Preview Sample", is_output_node=True, search_aliases=["sample", "before after", "test lora", "compare", "样图", "训练"],
            description="One picture a prompt line. With base_model connected, each picture shows before (left) and after (right) from the same noise.",
            inputs=[
                widget(io.Model, "model", tooltip="The model with the LoRA: Train LoRA's."),
                widget(io.Clip, "clip", tooltip="Its text encoder: Train LoRA's."),
                widget(io.Vae, "vae", tooltip="The VAE that turns latents into pictures."),
                widget(io.String, "prompt", multiline=True, default="", tooltip="One picture a line."),
                widget(io.String, "negative", multiline=True, default="", tooltip="What the pictures should not show."),
                widget(io.Int, "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False,
                       tooltip="The same noise for every line, so that lines compare."),
                widget(io.Int, "steps", default=20, min=1, max=1000, tooltip="Sampling steps a picture: more are finer and take longer."),
                widget(io.Float, "cfg", default=7.0, min=0.0, max=100.0, step=0.1,
                       tooltip="How strictly the prompt is followed: 7 suits SD1.5 and SDXL, 1 Flux."),
                widget(io.Combo, "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="euler", tooltip="As in KSampler."),
                widget(io.Combo, "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="normal",
                       tooltip="As in KSampler: how the noise falls from step to step."),
                widget(io.Int, "width", default=512, min=16, max=8192, step=8, tooltip="Of each picture, in pixels: what the base was made for."),
                widget(io.Int, "height", default=512, min=16, max=8192, step=8, tooltip="Of each picture, in pixels."),
                widget(io.Model, "base_model", optional=True, tooltip="The model before training: shows before and after side by side."),
                widget(io.Clip, "base_clip", optional=True, tooltip="Its CLIP, where the text encoder was trained too."),
            ],
            outputs=[output(io.Image, "images")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    @events.errors_shown
    def execute(cls, model, clip, vae, prompt, negative, seed, steps, cfg, sampler_name, scheduler, width, height,
                base_model=None, base_clip=None) -> io.NodeOutput:
        prompts = [line.strip() for line in prompt.splitlines() if line.strip()]
        if not prompts:
            raise LoomError("prompt is empty: PreviewSample.prompt takes one picture a line; write at least one")
        settings = {"seed": seed, "steps": steps, "cfg": cfg, "sampler_name": sampler_name, "scheduler": scheduler}
        pairs = ([(base_model, base_clip or clip)] if base_model is not None else []) + [(model, clip)]
        sides = []
        for number, (side, text) in enumerate(pairs):
            events.show(cls.hidden.unique_id, f"sampling {'' if len(pairs) == 1 else 'after ' if number else 'before '}(prompts: {len(prompts)})")
            sides.append(sample(side, text, vae, prompts, negative, width, height, settings))
        count = f"{len(prompts)} prompt{'s' * (len(prompts) > 1)}"
        events.show(cls.hidden.unique_id, f"{count}, {'before and after' if len(pairs) > 1 else 'with this model'}")
        images = torch.cat(sides, dim=2)
        return io.NodeOutput(images, ui=ui.PreviewImage(images, cls=cls))


def sample(model, clip, vae, prompts: list[str], negative: str, width: int, height: int, settings: dict) -> torch.Tensor:
    """(prompts, H, W, 3) in 0..1."""
    check_parts(clip, vae, "PreviewSample")
    without = embed(clip, negative)
    return torch.stack([draw(model, vae, embed(clip, prompt), without, width, height, settings) for prompt in prompts])


def check_parts(clip, vae, node: str) -> None:
    """A checkpoint may come without them."""
    if clip is None or vae is None:
        raise LoomError(f"{'clip' if clip is None else 'vae'} is empty: {node} needs it; the checkpoint may lack one, connect CLIPLoader or VAELoader")


def embed(clip, text: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def draw(model, vae, positive: list, negative: list, width: int, height: int, settings: dict) -> torch.Tensor:
    """(H, W, 3) in 0..1, from the noise of settings["seed"]. settings: of ComfyUI's KSampler."""
    from nodes import common_ksampler  # ComfyUI's own

    events.interrupted()
    latent = {"samples": torch.zeros(1, 4, max(1, height // 8), max(1, width // 8))}
    found, = common_ksampler(model, positive=positive, negative=negative, latent=latent, **settings)
    pixels = vae.decode(found["samples"])
    return pixels.reshape(-1, *pixels.shape[-3:])[0, ..., :3]  # a video VAE gives frames
