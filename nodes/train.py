"""TrainLoRA: trains on the checkpoint that ComfyUI holds, and hands the result to the same graph."""
from __future__ import annotations

import math

from ..trainer import job
from ..trainer.config import LoomConfig, SampleConfig, TrainConfig
from ..trainer.errors import LoomError
from ..trainer.names import check_name
from ..trainer.runs import checkpoint
from . import events, folders, graph, live, quality
from .schema import NONE, Config, Dataset, LoraModel, LossMap, Open, io, output, schema, widget

UI = "lora_loom_run"  # what the page looks for in the node's outputs
_LOADERS = ("ckpt_name", "unet_name", "model_name", "base")


_WIDGETS = {  # by part of LoomConfig
    "train": ("steps", "epochs", "batch_size", "seed"), "optim": ("learning_rate",), "output": ("name",),
    "samples": ("sample_steps", "sample_prompts", "sample_negative", "sample_seed", "sample_cfg"),
}


def widgets(config: LoomConfig, given: dict[str, dict]) -> dict:
    """This node's widget values for what `given`, a part of LoomConfig's tree, says."""
    whole = config.to_dict()
    found = {name: whole[part][name] for part, names in _WIDGETS.items() for name in names if name in (given.get(part) or {})}
    return found | ({"sample_prompts": "\n".join(found["sample_prompts"])} if "sample_prompts" in found else {})


class TrainLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        train, optim, samples = TrainConfig(), LoomConfig().optim, SampleConfig()
        return schema(
            "TrainLoRA", "Train LoRA", is_output_node=True,
            search_aliases=["lora trainer", "finetune", "dreambooth", "kohya", "training", "训练", "炼丹", "学习率", "微调", "模型训练",
                             "lora训练", "继续训练", "断点续训"],
            description="Trains a LoRA on the connected model without copying it. Interrupt at any time: what was learned is saved.",
            inputs=[
                widget(io.Model, "model", tooltip="The base to train on; it is not changed. LoRAs that are applied to it stay in force."),
                widget(io.Clip, "clip", tooltip="The text encoder that belongs to it."),
                widget(io.Vae, "vae", tooltip="The VAE that belongs to it: it encodes the pictures once."),
                widget(Dataset, "dataset", tooltip="Pictures and captions: Load Dataset's, or what the nodes behind it have made of them."),
                widget(Config, "config", tooltip="LoRA Config's: what is trained, and how."),
                widget(io.Int, "steps", default=train.steps, min=0, max=1_000_000,
                       tooltip="Optimizer steps. 1500-3000 suit 10-30 pictures. 0: count by epochs."),
                widget(io.Int, "epochs", default=train.epochs, min=0, max=100_000, tooltip="Used where steps is 0: how often all pictures are seen."),
                widget(io.Float, "learning_rate", default=optim.learning_rate, min=0.0000001, max=1.0, step=0.0000001, round=0.0000001,
                       tooltip="1e-4 suits most. Too high: noise and burnt colours. Too low: nothing is learned."),
                widget(io.Int, "batch_size", default=train.batch_size, min=1, max=256,
                       tooltip="Pictures at once. More is steadier and needs more memory."),
                widget(io.Int, "seed", default=train.seed, min=0, max=2**63 - 1, control_after_generate=False,
                       tooltip="The same seed, data and settings give the same LoRA."),
                widget(io.String, "name", default=LoomConfig().output.name,
                       tooltip="File name of the LoRA in output/loras. Another run's is never overwritten: the new file gets a number."),
                widget(io.Combo, "resume", options=Open([NONE, *folders.run_names()]), default=NONE, optional=True, advanced=True,
                       tooltip="A run that was stopped or that crashed goes on where its last save left it, with the settings that it began with."),
                widget(io.Int, "sample_steps", default=samples.sample_steps, min=0, max=1_000_000, optional=True,
                       tooltip="Draw sample pictures every so many steps, to see how it learns; they cost time. 0: none."),
                widget(io.String, "sample_prompts", default="", multiline=True, optional=True, placeholder="sample prompts, one a line",
                       tooltip="One sample picture a line. Empty: the captions of the first two pictures."),
                widget(io.String, "sample_negative", default="", optional=True, advanced=True, tooltip="What the samples should not show."),
                widget(io.Int, "sample_seed", default=samples.sample_seed, min=0, max=2**63 - 1, control_after_generate=False, optional=True, advanced=True,
                       tooltip="The samples' noise, the same each time, so that they compare."),
                widget(io.Float, "sample_cfg", default=samples.sample_cfg, min=0.0, max=100.0, step=0.1, optional=True, advanced=True,
                       tooltip="The samples' guidance scale; 0: as the model's family likes it."),
            ],
            outputs=[output(io.Model, "model"), output(io.Clip, "clip"), output(LoraModel, "lora"), output(LossMap, "loss"), output(io.String, "path")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, name) -> bool | str:  # one input alone: ComfyUI repeats the message for each that is named
        return events.verdict(check_name, name)

    @classmethod
    def fingerprint_inputs(cls, resume=NONE, **values) -> str:
        """A run that has been stopped again goes on again; one that is over is taken from the cache, as long as it is there."""
        return "" if resume in (None, NONE) else _state_of(resume)

    @classmethod
    def execute(cls, model, clip, vae, dataset, config, steps, epochs, learning_rate, batch_size, seed, name, resume=NONE,
                sample_steps=0, sample_prompts="", sample_negative="", sample_seed=0, sample_cfg=0.0) -> io.NodeOutput:
        from ..trainer.backbones.comfy import open_model

        queued = graph.values(cls.hidden.prompt, cls.hidden.unique_id)
        with live.Training(cls.hidden.unique_id, name, events.workflow_id(cls.hidden.extra_pnginfo), queued) as training:
            config = config.replace(train={"steps": steps, "epochs": epochs, "batch_size": batch_size, "seed": seed},
                                    optim={"learning_rate": learning_rate}, output={"name": name},
                                    samples={"sample_steps": sample_steps, "sample_prompts": tuple(p.strip() for p in sample_prompts.splitlines() if p.strip()),
                                             "sample_negative": sample_negative, "sample_seed": sample_seed, "sample_cfg": sample_cfg})
            base = open_model(model, clip, vae, _checkpoint(cls.hidden.prompt, cls.hidden.unique_id))
            training.warn(quality.remarks(base, dataset, config))
            resume = "" if resume in (None, NONE) else resume
            if resume:
                _taken_up[resume] = _state_of(resume)
            # a run that goes on has all that it needs of init_lora
            result = job.train(base, dataset, config, loras_folder=folders.loras(), runs_folder=folders.runs(), hooks=training.hooks(),
                               init_lora=None if resume else folders.lora(config.adapter.init_lora), resume=resume)
            training.ended(result.stopped, result.report, result.path.name)
            trained, trained_clip = base.with_lora(result.lora)
            told = {"run": result.run_folder.name, "lora": result.path.name, "report": result.report, "samples": [path.name for path in result.samples]}
            return io.NodeOutput(trained, trained_clip, result.lora, {"loss": _plottable(result.losses)}, str(result.path), ui={UI: [told]})


_taken_up: dict[str, str] = {}  # run -> the state that it was taken up from last, by which ComfyUI knows the result


def _state_of(run: str) -> str:
    """Changes with the state that the run would go on from; never raises."""
    try:
        stat = (folders.run(run) / checkpoint.FILE).stat()
    except LoomError:
        return "gone"
    except OSError:  # it has finished
        return _taken_up.get(run, "finished")
    return f"{stat.st_mtime_ns} {stat.st_size}"


def _plottable(losses: list[float]) -> list[float]:
    """ComfyUI's own plot divides by the range of the losses: where they are all the same, as that of a single step, one is the next larger number."""
    return losses if len(set(losses)) != 1 else [*losses, math.nextafter(losses[-1], math.inf)]


def _checkpoint(prompt: dict | None, node_id) -> str:
    """The checkpoint's file name, found by following the `model` links of the graph upstream; "" where no loader is met."""
    node, seen = (prompt or {}).get(str(node_id)), set()
    while isinstance(node, dict) and id(node) not in seen:
        seen.add(id(node))
        inputs = node.get("inputs", {})
        for key in _LOADERS:
            if isinstance(inputs.get(key), str):
                return inputs[key]
        if node.get("class_type") == "ToyBase":
            return "toy_base"
        link = inputs.get("model")
        node = prompt.get(str(link[0])) if isinstance(link, list) and link else None
    return ""
