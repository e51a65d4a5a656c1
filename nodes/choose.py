"""ChooseCheckpoint: a run's saved steps against strengths or prompts, in a grid; the one that is clicked goes on."""
from __future__ import annotations

import io as files
import logging
from pathlib import Path
from typing import Any

import comfy.samplers
import comfy.sd
import comfy.utils
import torch
from PIL import Image

from ..trainer.config import LoomConfig
from ..trainer.errors import LoomError
from ..trainer.runs import grid, reading, saved
from . import choose_routes, events, folders, graph, preview, runs_routes
from .schema import Open, io, output, schema, widget

UI = "lora_loom_grid"  # what the page looks for in the node's outputs
NEWEST = "newest"
COMPARE = ("strengths", "prompts")
_log = logging.getLogger("lora_loom")


class ChooseCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ChooseCheckpoint", "Choose Checkpoint", is_output_node=True,
            search_aliases=["xy plot", "x/y grid", "compare lora", "best epoch", "lora strength", "检查点", "比较", "对比", "XY图", "训练"],
            description="Draws a run's saved steps side by side. Click the best one: it becomes the run's result, and sampling goes on with it. "
                        "Set save_steps in LoRAConfig to have steps to choose from.",
            inputs=[
                widget(io.Model, "model", tooltip="The base model, as TrainLoRA has it."),
                widget(io.Clip, "clip", tooltip="Its CLIP, as TrainLoRA has it."), widget(io.Vae, "vae", tooltip="Its VAE, which makes the pictures."),
                widget(io.Combo, "run", options=Open([NEWEST, *folders.all_run_names()]), default=NEWEST,
                       tooltip="Which training to choose from, newest first. Not used where path is connected."),
                widget(io.Combo, "compare", options=list(COMPARE), default=COMPARE[0],
                       tooltip="What each step is drawn with. strengths: the first prompt at each strength. prompts: each prompt at the last strength."),
                widget(io.String, "strengths", default="0.6, 0.8, 1.0", tooltip="LoRA strengths, with commas between them."),
                widget(io.String, "prompts", multiline=True, default="", placeholder="prompts, one a line",
                       tooltip="One prompt a line. Empty: the run's sample prompts."),
                widget(io.String, "negative", default="", tooltip="What the pictures should not show."),
                widget(io.Int, "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False,
                       tooltip="The same noise for every cell, so that they compare."),
                widget(io.Int, "steps", default=20, min=1, max=1000, tooltip="Sampling steps of each picture."),
                widget(io.Float, "cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance scale, as you generate with it."),
                widget(io.Combo, "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="euler", advanced=True, tooltip="As you generate with it."),
                widget(io.Combo, "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="normal", advanced=True, tooltip="As you generate with it."),
                widget(io.Int, "width", default=512, min=16, max=8192, step=8, tooltip="Of each picture; the size that the model was made for."),
                widget(io.Int, "height", default=512, min=16, max=8192, step=8, tooltip="Of each picture."),
                widget(io.Int, "most", default=8, min=1, max=grid.MOST_ROWS, advanced=True,
                       tooltip="How many saved steps at most: evenly chosen, the last one always."),
                widget(io.String, "choice", default="", optional=True, advanced=True,
                       tooltip="Filled by a click in the grid: run/file @ strength. Empty: the newest step at strength 1."),
                widget(io.String, "path", optional=True, force_input=True, tooltip="TrainLoRA's path: waits for the training, and chooses from its run."),
            ],
            outputs=[output(io.Model, "model"), output(io.Clip, "clip"), output(io.String, "path"), output(io.String, "lora_name")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, strengths) -> bool | str:  # before TrainLoRA trains for it
        return events.verdict(grid.strengths_in, strengths)

    @classmethod
    def fingerprint_inputs(cls, run=NEWEST, path="", **values) -> str:
        """None stands for a linked input: a run that comes with `path` is known by what made it."""
        try:
            return "" if path is None else saved.fingerprint(_run(run, path or None), folders.loras())
        except (LoomError, OSError):
            return "missing"

    @classmethod
    @events.errors_shown
    def execute(cls, model, clip, vae, run, compare, strengths, prompts, negative, seed, steps, cfg, sampler_name, scheduler, width, height, most,
                choice="", path=None) -> io.NodeOutput:
        preview.check_parts(clip, vae, "ChooseCheckpoint")
        hidden = cls.hidden
        _no_second_time(hidden.prompt, hidden.unique_id)
        wanted, folder = grid.choice_in(choice or ""), _run(run, path)
        found, damaged = saved.saved_steps(folder, folders.loras())
        if not found:
            raise LoomError(f"run {folder.name!r} has saved no LoRA{f' that can be read ({damaged[0]})' if damaged else ''}: "
                            "choose another run, or train with LoRAConfig.save_steps above 0")
        settings = {"seed": seed, "steps": steps, "cfg": cfg, "sampler_name": sampler_name, "scheduler": scheduler}
        base = graph.signature(hidden.prompt, hidden.unique_id, ("model", "clip", "vae"))
        plan = grid.plan(folder, compare, saved.evenly(found, most), grid.strengths_in(strengths), grid.prompts_in(prompts, _usual(folder)), width, height,
                         [base or hidden.unique_id, negative, settings])
        handed, chosen, notes = _handed(folder, found, wanted)
        notes += [_note("damaged", f"{name} cannot be read and is left out", file=name) for name in damaged]
        if len(found) == 1:
            notes.append(_note("alone", "the run has saved one LoRA alone: set LoRAConfig.save_steps to have steps to choose from"))
        lora = _load(handed.path)
        trained = applied(model, clip, lora, wanted.strength if chosen else 1.0)  # before anything is drawn: it may not fit the model
        plan.keep()
        with choose_routes.Drawing(hidden.unique_id, events.workflow_id(hidden.extra_pnginfo), plan) as drawing:
            _draw(plan, drawing, model, clip, vae, negative, settings)
            out = runs_routes.keep(folder, handed.file) if chosen else handed.path
            strength = wanted.strength if chosen else 1.0
            told = drawing.finished(grid.Choice(folder.name, handed.file, strength), chosen, notes)
        said = f"{'chosen' if chosen else 'nothing is chosen yet, so the newest'}: step {handed.step} at strength {strength:g}"
        _log.info("ChooseCheckpoint: %s", ". ".join([said, *(note["text"] for note in notes)]))
        events.settle(hidden.unique_id, said)
        name = out.name if out.parent == folders.loras() else ""
        return io.NodeOutput(*trained, str(out), name, ui={UI: [told]})


def _run(run: str | None, path: str | None) -> Path:
    runs, loras = folders.runs(), folders.loras()
    if path is not None:
        return saved.run_of(runs, path)
    return saved.newest(runs, loras) if run in (None, NEWEST) else folders.run(run)


def _usual(run: Path) -> list[str]:
    """The run's sample prompts."""
    try:
        return list(LoomConfig.from_yaml(reading.config_text(run)).samples.sample_prompts)
    except LoomError:  # of another version
        return []


def _no_second_time(prompt: dict | None, node_id: Any) -> None:
    for origin in graph.origins(prompt, node_id, ("model", "clip")):
        if prompt[origin].get("class_type") == "TrainLoRA":
            raise LoomError("model comes out of TrainLoRA with its LoRA applied: ChooseCheckpoint.model and clip take the base model; "
                            "connect what TrainLoRA.model and clip come from")


def _note(id_: str, text: str, **values: str) -> dict[str, str]:
    """The page says it in its own language by `id`."""
    return {"id": id_, "text": text, **values}


def _handed(run: Path, found: list[saved.Saved], wanted: grid.Choice | None) -> tuple[saved.Saved, bool, list[dict[str, str]]]:
    """(the LoRA to go on with, whether it was chosen, remarks)."""
    newest = found[-1]
    if wanted is None:
        return newest, False, []
    if wanted.run != run.name:
        return newest, False, [_note("other_run", f"the choice is of run {wanted.run!r}, this is {run.name!r}: click again", chosen=wanted.run, run=run.name)]
    one = next((one for one in found if one.file == wanted.file), None)
    return (one, True, []) if one else (newest, False, [_note("gone", f"{wanted.file} was chosen and is no longer there: click again", file=wanted.file)])


def _load(path: Path) -> dict[str, torch.Tensor]:
    return comfy.utils.load_torch_file(str(path), safe_load=True)


def applied(model, clip, lora: dict[str, torch.Tensor], strength: float) -> tuple[Any, Any]:
    """(model, clip) with the LoRA, by ComfyUI's own code for its files. What it leaves alone comes back as it is."""
    if not strength:
        return model, clip
    with_lora = comfy.sd.load_lora_for_models(model, clip, lora, strength, strength)
    grown = [_patches(new) > _patches(old) for new, old in zip(with_lora, (model, clip))]
    if not any(grown):
        raise LoomError("no layer of the run's LoRA is in this model: it was trained on another family; connect the model that it was trained on")
    return tuple(new if more else old for new, old, more in zip(with_lora, (model, clip), grown))


def _patches(model: Any) -> int:
    return sum(map(len, getattr(model, "patcher", model).patches.values()))


def _draw(plan: grid.Grid, drawing: choose_routes.Drawing, model, clip, vae, negative: str, settings: dict) -> None:
    """What is missing of the grid. Each file is read once, texts are encoded before the model is needed, and once where no LoRA touches their encoder."""
    missing, plain = plan.missing(), {}
    for row, rest in enumerate(plan.rows):
        cells = [column for r, column in missing if r == row]
        lora = _load(rest.path) if cells else None
        for strength in dict.fromkeys(plan.columns[c].strength for c in cells):
            events.interrupted()
            its = [c for c in cells if plan.columns[c].strength == strength]
            patched, text_encoder = applied(model, clip, lora, strength)
            texts = plain if text_encoder is clip else {}
            for text in dict.fromkeys([negative, *(plan.columns[c].prompt for c in its)]):
                texts[text] = texts.get(text) or preview.embed(text_encoder, text)
            for column in its:
                pixels = preview.draw(patched, vae, texts[plan.columns[column].prompt], texts[negative], plan.width, plan.height, settings)
                plan.draw(row, column, _jpeg(pixels))
                drawing.cell(row, column)


def _jpeg(pixels: torch.Tensor) -> bytes:
    """pixels (H, W, 3) in 0..1"""
    image = Image.fromarray((pixels.float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
    data = files.BytesIO()
    image.save(data, "JPEG", quality=95, subsampling=0)  # colours as sharp as shapes
    return data.getvalue()
