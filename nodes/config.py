"""LoRAConfig: what is trained and how, as one LORA_CONFIG."""
from __future__ import annotations

import re

from ..trainer import presets
from ..trainer.backbones.families import FAMILIES
from ..trainer.config import (
    ALGORITHMS,
    BASE_PRECISIONS,
    COMPILE,
    HUBER_SCHEDULES,
    LOSS_TYPES,
    OPTIMIZERS,
    PRECISIONS,
    SAVE_DTYPES,
    SCHEDULERS,
    TARGETS,
    TIMESTEP_SAMPLINGS,
    TIMESTEP_SHIFTS,
    WEIGHTINGS,
    LoomConfig,
)
from ..trainer.data.captions import COMMAS
from . import events, folders
from .schema import NONE, Config, io, output, schema, widget

# What the widgets set, by part of LoomConfig; the presets fill the same widgets. Those of TrainLoRA are its own.
_WIDGETS = {
    "adapter": ("rank", "alpha", "dropout", "module_dropout", "algorithm", "targets", "train_text_encoder"),
    "optim": ("text_encoder_lr", "optimizer", "scheduler", "warmup_steps", "cycles", "weight_decay", "beta1", "beta2", "max_grad_norm", "ema_decay"),
    "loss": ("weighting", "min_snr_gamma", "p2_gamma", "loss_type", "huber_c", "huber_schedule", "noise_offset", "multires_noise_discount",
             "multires_noise_iterations", "input_perturbation", "timestep_sampling", "logit_mean", "logit_std", "mode_scale", "timestep_shift", "shift",
             "unmasked_weight", "caption_dropout", "preservation"),
    "data": ("shuffle_tags", "keep_tokens", "tag_dropout", "caption_variants", "cache"),
    "train": ("gradient_accumulation_steps", "precision", "base_precision", "gradient_checkpointing", "memory_budget", "plain_layers", "compile",
              "validation_steps", "validation_split"),
    "output": ("save_steps", "keep_checkpoints", "save_minutes", "save_dtype"),
}
FIELDS = {name: (part, name) for part, names in _WIDGETS.items() for name in names}


_TEXTS = {"target_modules": ("adapter", r"\n", "\n"), "preservation_words": ("loss", COMMAS, ", ")}  # lists, as one text: what parts it, and is put between
ANY = "any"  # what the combo of families says for none


def widgets(config: LoomConfig) -> dict:
    """A configuration as this node's widget values: the page writes them into the node, so that what is shown is what runs."""
    whole = config.to_dict()
    texts = as_widgets({name: whole[part][name] for name, (part, *_) in _TEXTS.items()})
    return {name: whole[part][field] for name, (part, field) in FIELDS.items()} | texts | {"init_lora": config.adapter.init_lora or NONE}


def tree(values: dict) -> presets.Values:
    """Widget values as a part of LoomConfig's tree; None and names that are no setting are left out."""
    found: presets.Values = {}
    for name, value in values.items():
        if name in FIELDS and value is not None:
            part, field = FIELDS[name]
            found.setdefault(part, {})[field] = value
        elif name in _TEXTS and value is not None:
            part, parting, _ = _TEXTS[name]
            found.setdefault(part, {})[name] = [word.strip() for word in re.split(parting, str(value)) if word.strip()]
    return found


def as_widgets(fix: dict) -> dict:
    """LoomError.fix as widget values."""
    return {name: _TEXTS[name][2].join(value) if name in _TEXTS else value for name, value in fix.items()}


class LoRAConfig(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        d, tree = LoomConfig(), LoomConfig().to_dict()
        default = {name: tree[part][field] for name, (part, field) in FIELDS.items()}

        def option(kind, name, tooltip, **values):
            return widget(kind, name, default=default[name], tooltip=tooltip, optional=True, **values)

        return schema(
            "LoRAConfig", "LoRA Config", search_aliases=["lora settings", "rank", "network dim", "trainer", "训练设置", "预设", "学习率",
                                                        "微调", "画风", "网络"],
            description="What is trained and how. Choosing a preset fills the widgets below it; every widget can then be changed.",
            inputs=[
                widget(io.Combo, "preset", options=presets.names(), default=presets.FIRST,
                       tooltip="Fills the widgets below, and Train LoRA's steps and learning rate. Over the API, inputs that are left out come"
                               " from the preset."),
                widget(io.Combo, "family", options=[ANY, *FAMILIES], default=ANY, optional=True,
                       tooltip="The model's family: changes what the preset has for it. What was set by hand stays."),
                option(io.Int, "rank",
                       "Size of the LoRA: 4-8 for one object, 16-32 for a character or a style. Higher learns more, and more easily"
                       " by heart.", min=1, max=512),
                option(io.Float, "alpha", "alpha / rank scales the LoRA. Equal to the rank is neutral.", min=0.1, max=4096.0, step=0.5, round=0.1),
                option(io.Float, "dropout",
                       "Share of the LoRA's inputs switched off at random. 0.1 helps against learning by heart.", min=0.0, max=0.9, step=0.05),
                option(io.Combo, "algorithm",
                       "lora is fastest and works everywhere. dora also learns each layer's magnitude; rslora suits ranks above 64; loha and lokr are"
                       " LyCORIS's, strong for styles in small files; oft turns the weights and keeps their lengths.", options=list(ALGORITHMS)),
                option(io.Combo, "targets",
                       "Which layers learn. attention is light; attention+ff suits most; + conv for fine texture.", options=list(TARGETS)),
                option(io.Boolean, "train_text_encoder",
                       "Also train the text encoder. Helps a new word, easily spoils other prompts; costs time and memory."),
                option(io.Combo, "optimizer",
                       "adamw suits most. adamw8bit and paged_adamw8bit save memory; lion wants a third of the learning rate; prodigy and"
                       " schedule_free_adamw need no schedule, prodigy a learning rate of 1. Some need a package, which"
                       " the message names.", options=list(OPTIMIZERS)),
                option(io.Combo, "scheduler", "How the learning rate moves over the run.", options=list(SCHEDULERS)),
                option(io.Int, "warmup_steps", "Steps in which the learning rate rises from 0.", min=0, max=1_000_000),
                option(io.Float, "min_snr_gamma",
                       "Evens out the timesteps' loss; 5 is the usual value, 0 switches it off.", min=0.0, max=100.0, step=0.5),
                option(io.Float, "caption_dropout",
                       "Share of captions left out, so that guidance keeps working. 0.05 is usual.", min=0.0, max=1.0, step=0.01),
                option(io.Float, "preservation",
                       "Keeps what the model makes of prompts without the trigger word: 1 is usual, 0 is off. Needs LoadDataset's trigger word; "
                       "more than doubles a step's time.", min=0.0, max=100.0, step=0.1),
                widget(io.String, "preservation_words", default="", optional=True,
                       tooltip="What stands for the trigger word in those prompts, with commas: woman, person. Empty: it is left out."),
                option(io.Int, "gradient_accumulation_steps",
                       "Micro-batches a step: a larger batch without more memory, in more time.", min=1, max=1024),
                option(io.Boolean, "gradient_checkpointing", "Far less memory for more time. Turned on by itself where memory would run out."),
                option(io.Float, "module_dropout",
                       "Share of passes that leave a whole layer's LoRA out. 0.1 helps against learning by heart.",
                       min=0.0, max=0.9, step=0.05, advanced=True),
                option(io.Combo, "precision",
                       "auto: bf16 on GPUs and on CPUs with bf16 instructions, else fp32. The LoRA itself is always fp32.",
                       options=list(PRECISIONS), advanced=True),
                option(io.Float, "text_encoder_lr",
                       "Learning rate of the text encoder.", min=0.0, max=1.0, step=0.0000001, round=0.0000001, advanced=True),
                option(io.Int, "cycles", "Restarts of cosine_with_restarts.", min=1, max=1000, advanced=True),
                option(io.Float, "weight_decay", "AdamW's weight decay.", min=0.0, max=10.0, step=0.001, advanced=True),
                option(io.Float, "max_grad_norm",
                       "Gradients longer than this are shortened to it; 0 switches it off.", min=0.0, max=1_000_000.0, step=0.1, advanced=True),
                option(io.Float, "beta1", "How slowly the mean of the gradients moves.", min=0.0, max=0.9999, step=0.0001, round=0.0001, advanced=True),
                option(io.Float, "beta2", "How slowly the mean of their squares moves.", min=0.0, max=0.999999, step=0.000001, round=0.000001, advanced=True),
                option(io.Float, "ema_decay",
                       "Saves a moving average of the LoRA, which is steadier: 0.99 is usual, 0 is off.", min=0.0, max=0.99999, step=0.00001, round=0.00001,
                       advanced=True),
                option(io.Combo, "weighting",
                       "How timesteps are balanced (epsilon and v models): min_snr suits most; debiased and p2 stress the noisy ones more.",
                       options=list(WEIGHTINGS), advanced=True),
                option(io.Float, "p2_gamma", "Strength of the p2 weighting.", min=0.0, max=10.0, step=0.1, advanced=True),
                option(io.Combo, "loss_type", "mse suits most. huber minds odd pictures and broken captions less.", options=list(LOSS_TYPES), advanced=True),
                option(io.Float, "huber_c", "Errors above this count less than squared. Smaller is milder.", min=0.0001, max=10.0, step=0.01, round=0.0001,
                       advanced=True),
                option(io.Combo, "huber_schedule", "How huber_c moves with the noise.", options=list(HUBER_SCHEDULES), advanced=True),
                option(io.Float, "multires_noise_discount",
                       "Adds noise of coarser grids, for strong darks and lights: 0.3 is usual, 0 is off.", min=0.0, max=0.99, step=0.01, advanced=True),
                option(io.Int, "multires_noise_iterations", "How many coarser grids.", min=1, max=10, advanced=True),
                option(io.Float, "input_perturbation",
                       "More noise in the input than the model is to find, against learning by heart: 0.1 is usual, 0 is off.",
                       min=0.0, max=1.0, step=0.01, advanced=True),
                option(io.Combo, "timestep_sampling",
                       "Which noise levels are trained most. auto: as the model's family likes it.", options=list(TIMESTEP_SAMPLINGS), advanced=True),
                option(io.Float, "logit_mean", "logit_normal's centre: above 0 is noisier.", min=-5.0, max=5.0, step=0.1, advanced=True),
                option(io.Float, "logit_std", "logit_normal's width.", min=0.01, max=5.0, step=0.1, round=0.01, advanced=True),
                option(io.Float, "mode_scale", "mode's strength.", min=-1.0, max=1.75, step=0.01, advanced=True),
                option(io.Combo, "timestep_shift",
                       "Moves the noise levels: auto as the family likes it, constant by shift, resolution: more noise for larger pictures.",
                       options=list(TIMESTEP_SHIFTS), advanced=True),
                option(io.Float, "shift", "For timestep_shift constant: above 1 is noisier.", min=0.01, max=100.0, step=0.1, round=0.01, advanced=True),
                option(io.Float, "unmasked_weight", "What counts of a picture outside its mask, where there are masks.", min=0.0, max=1.0, step=0.01,
                       advanced=True),
                option(io.Int, "validation_steps",
                       "Loss on pictures held out, every so many steps: it rises when the LoRA learns by heart. The best one is kept. 0 is off.",
                       min=0, max=1_000_000, advanced=True),
                option(io.Float, "validation_split",
                       "Share of the pictures held out for it; 0: on the training pictures.", min=0.0, max=0.5, step=0.01, advanced=True),
                option(io.Float, "noise_offset",
                       "Helps very dark and very bright pictures; 0.05 is usual, 0 is off.", min=0.0, max=1.0, step=0.001, advanced=True),
                option(io.Int, "save_steps",
                       "Save the LoRA every so many steps into the run's folder; 0: only at the end.", min=0, max=1_000_000, advanced=True),
                option(io.Int, "keep_checkpoints", "How many of them stay; the best by validation stays too. 0: all.", min=0, max=10_000, advanced=True),
                option(io.Float, "save_minutes",
                       "Save it every so many minutes too, over the one before, so that a crash costs no more; 0: off.",
                       min=0.0, max=100_000.0, step=1.0, advanced=True),
                option(io.Combo, "save_dtype", "Number format of the file.", options=list(SAVE_DTYPES), advanced=True),
                widget(io.String, "target_modules", default="\n".join(d.adapter.target_modules), multiline=True, optional=True, advanced=True,
                       tooltip="For experts: regular expressions over diffusers' layer names, one a line, instead of targets. "
                               "Example: attn2\\.to_(k|v)$ rank=32 learning_rate=5e-5"),
                widget(io.Combo, "init_lora", options=[NONE, *folders.lora_names()], default=NONE, optional=True, advanced=True,
                       tooltip="Go on from this LoRA instead of a new one: kohya's, diffusers', ComfyUI's and LyCORIS's files are read."),
                option(io.Boolean, "shuffle_tags",
                       "Shuffle the tags of captions, so that none is learned by its place. For tags with commas, not for sentences.", advanced=True),
                option(io.Int, "keep_tokens",
                       "So many tags at the beginning stay in their place, as does one with the trigger word.", min=0, max=100, advanced=True),
                option(io.Float, "tag_dropout", "Share of the other tags that is left out, each time others.", min=0.0, max=1.0, step=0.01, advanced=True),
                option(io.Int, "caption_variants", "How many wordings of a caption there are where tags are shuffled or dropped; each is encoded once.",
                       min=1, max=100, advanced=True),
                option(io.Boolean, "cache", "Keep encoded pictures and captions in output/lora_loom/.cache, so that the next run on them starts at once.",
                       advanced=True),
                # new ones come last: saved workflows know widgets by their place
                option(io.Float, "memory_budget",
                       "GB that the training may take, base model included: it gives up speed until it fits, and says what. 0: what is free.",
                       min=0.0, max=1024.0, step=0.5, round=0.1, advanced=True),
                option(io.Boolean, "plain_layers",
                       "Computes with torch's and PEFT's own layers: slower, with more memory. To compare, or where the faster ones fail.", advanced=True),
                option(io.Combo, "base_precision",
                       "nf4 holds the base model's blocks in 4 bits while it trains: a quarter of the memory on a GPU, slower. Needs bitsandbytes.",
                       options=list(BASE_PRECISIONS), advanced=True),
                option(io.Combo, "compile",
                       "Faster steps by CUDA graphs and by torch.compile for the base model's blocks. auto: on a GPU, each where it pays within the run.",
                       options=list(COMPILE), advanced=True),
            ],
            outputs=[output(Config, "config")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, preset, init_lora=NONE) -> bool | str:  # named, for the file may be gone where a run is resumed; TrainLoRA asks for it
        return events.verdict(presets.load, preset)

    @classmethod
    def fingerprint_inputs(cls, init_lora=NONE, **values) -> str:
        return folders.lora_fingerprint("" if init_lora in (None, NONE) else init_lora)

    @classmethod
    @events.errors_shown
    def execute(cls, preset, family=ANY, init_lora=NONE, **values) -> io.NodeOutput:
        given = tree(values)
        given.setdefault("adapter", {})["init_lora"] = "" if init_lora in (None, NONE) else init_lora  # the widget's, never a preset's
        config = presets.merge(presets.load(preset, family), given)
        a = config.adapter
        events.settle(cls.hidden.unique_id, f"{a.algorithm} rank {a.rank} alpha {a.alpha:g} on {', '.join(a.target_modules) or a.targets}, "
                                            f"{config.optim.optimizer}, {config.optim.scheduler}")
        return io.NodeOutput(config)
