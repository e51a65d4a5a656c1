"""The trainers that are compared: ComfyUI's own TrainLoraNode, the training step of diffusers' and PEFT's example scripts, and LoRA Loom's node."""
from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from bases import Base


@dataclass(frozen=True)
class Run:
    """What all trainers are told. Everything else stays at the trainer's own default."""

    folder: Path  # pictures with captions
    size: int
    rank: int
    steps: int
    rate: float
    seed: int
    precision: str = "fp32"
    batch: int = 1
    device: str = "cpu"


Tick = Callable[[int], None]  # called with 0 when the pictures are encoded, then with the number of each finished step
Trainer = Callable[[Base, Run, Tick], dict[str, torch.Tensor]]


def native(changed: dict, base: Base, run: Run, tick: Tick) -> dict[str, torch.Tensor]:
    """TrainLoraNode with its own defaults but for what is changed, on pictures encoded as VAEEncode and CLIPTextEncode do it."""
    from comfy_extras import nodes_train

    latents, positive = encoded(base, run.folder, run.size)

    class Ticks:  # ComfyUI's own progress bar leaves out steps
        def __init__(self, total: int) -> None:
            self.done = 0

        def update(self, value: int) -> None:
            self.done += value
            tick(self.done)

    given = dict(
        model=base.model, batch_size=run.batch, grad_accumulation_steps=1, steps=run.steps, learning_rate=run.rate, rank=run.rank, optimizer="AdamW",
        loss_function="MSE", seed=run.seed, training_dtype=run.precision, lora_dtype=run.precision, quantized_backward=False, algorithm="LoRA",
        gradient_checkpointing=True, checkpoint_depth=1, offloading=False, existing_lora="[None]", bucket_mode=False, bypass_mode=False) | changed
    tick(0)
    torch.manual_seed(run.seed)  # the node draws its adapters and timesteps from the global generator, which it does not seed
    before, nodes_train.ProgressBar = nodes_train.ProgressBar, Ticks
    try:
        output = nodes_train.TrainLoraNode.execute(
            latents=[{"samples": z[None]} for z in latents], positive=positive, **{name: [value] for name, value in given.items()})
    finally:
        nodes_train.ProgressBar = before
    return output.args[0]


def example(base: Base, run: Run, tick: Tick) -> dict[str, torch.Tensor]:
    """The step of diffusers' examples/text_to_image/train_text_to_image_lora.py, or _sdxl.py (loss in epsilon, no weighting), on the same inputs."""
    import comfy.model_management
    from diffusers import DDPMScheduler
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    latents, positive = encoded(base, run.folder, run.size)
    comfy.model_management.unload_all_models()  # the script has its inputs encoded beforehand
    latents = [base.model.model.process_latent_in(z).clone() for z in latents]
    unet, schedule = base.in_diffusers(run.precision).to(run.device), DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    unet.requires_grad_(False)
    with torch.inference_mode(False), torch.enable_grad():
        latents, context = [z.to(run.device, copy=True)[None] for z in latents], [c[0][0].to(run.device, copy=True) for c in positive]
        added = [{"text_embeds": c[0][1]["pooled_output"].to(run.device, copy=True),
                  "time_ids": torch.tensor([[run.size, run.size, 0, 0, run.size, run.size]], device=run.device)}
                 if unet.config.addition_embed_type == "text_time" else {} for c in positive]
        torch.manual_seed(run.seed)
        unet.add_adapter(LoraConfig(r=run.rank, lora_alpha=run.rank, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
        try:
            cast_training_params(unet, torch.float32)
            trained = [p for p in unet.parameters() if p.requires_grad]
            half = torch.autocast(run.device, torch.bfloat16, enabled=run.precision == "bf16")
            optimizer = torch.optim.AdamW(trained, lr=run.rate)
            unet.train()
            tick(0)
            for step in range(run.steps):
                rows = [(step * run.batch + row) % len(latents) for row in range(run.batch)]
                clean = torch.cat([latents[row] for row in rows])
                noise, times = torch.randn_like(clean), torch.randint(0, 1000, (run.batch,), device=run.device)
                with half:
                    told = torch.cat([context[row] for row in rows])
                    more = {name: torch.cat([added[row][name] for row in rows]) for name in added[0]}
                    predicted = unet(schedule.add_noise(clean, noise, times), times, told, added_cond_kwargs=more or None, return_dict=False)[0]
                loss = torch.nn.functional.mse_loss(predicted.float(), noise.float(), reduction="mean")
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                tick(step + 1)
            return {name: value.detach().clone() for name, value in get_peft_model_state_dict(unet).items()}
        finally:
            unet.delete_adapters("default")
            unet.to("cpu")


def ours(targets: str, changed: dict, base: Base, run: Run, tick: Tick) -> dict[str, torch.Tensor]:
    """What the node TrainLoRA runs, with LoRAConfig's defaults but for rank, targets and precision."""
    from lora_loom.trainer import job
    from lora_loom.trainer.backbones.comfy import open_model
    from lora_loom.trainer.config import LoomConfig
    from lora_loom.trainer.data.folder import read_dataset

    config = LoomConfig().replace(
        adapter={"rank": run.rank, "alpha": float(run.rank), "targets": targets}, optim={"learning_rate": run.rate},
        train={"steps": run.steps, "batch_size": run.batch, "precision": run.precision, "seed": run.seed, **changed.get("train", {})},
        loss=changed.get("loss", {}), output={"name": "bench", "save_dtype": "fp32"})

    def progress(now: job.Progress) -> None:
        if now.phase == "train":
            tick(now.step)
        elif now.step == now.total:
            tick(0)

    dataset = read_dataset(run.folder, resolution=run.size, min_size=0, trigger_word=changed.get("trigger_word", ""))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        return job.train(open_model(base.model, base.clip, base.vae), dataset, config, loras_folder=out / "loras", runs_folder=out / "runs",
                         hooks=job.Hooks(progress=progress)).lora


CASES: dict[str, tuple[str, Trainer]] = {
    "default": ("TrainLoraNode, defaults", partial(native, {})),
    "depth2": ("TrainLoraNode, checkpoint_depth 2", partial(native, {"checkpoint_depth": 2})),
    "bypass": ("TrainLoraNode, bypass_mode", partial(native, {"bypass_mode": True})),
    "diffusers": ("diffusers + PEFT, attention", example),
    "attention": ("LoRA Loom, attention", partial(ours, "attention", {})),
    "plain": ("LoRA Loom, attention, plain_layers", partial(ours, "attention", {"train": {"plain_layers": True}})),
    "compiled": ("LoRA Loom, attention, compile always", partial(ours, "attention", {"train": {"compile": "always"}})),
    "nf4": ("LoRA Loom, attention, base in 4 bits", partial(ours, "attention", {"train": {"base_precision": "nf4"}})),
    "checkpointing": ("LoRA Loom, attention, gradient_checkpointing", partial(ours, "attention", {"train": {"gradient_checkpointing": True}})),
    "everything": ("LoRA Loom, all linear+conv", partial(ours, "all linear+conv", {})),
}


def encoded(base: Base, folder: Path, size: int) -> tuple[list[torch.Tensor], list]:
    """(latents as VAEEncode gives them, CONDITIONING as CLIPTextEncode gives it), one a picture."""
    from lora_loom.trainer.data.buckets import fit, to_tensor
    from lora_loom.trainer.data.folder import open_picture, read_dataset

    pictures = read_dataset(folder, resolution=size, min_size=0).pictures
    pixels = torch.stack([to_tensor(fit(open_picture(p.path), (size, size))[0]) for p in pictures])
    latents = torch.cat([base.vae.encode(part.movedim(1, -1)) for part in pixels.split(4)])
    return list(latents), [base.clip.encode_from_tokens_scheduled(base.clip.tokenize(p.caption)) for p in pictures]
