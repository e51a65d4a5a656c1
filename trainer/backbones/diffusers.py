"""diffusers' models as a TrainableModel: the same training without a server."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler

from ..devices import best_device, fast_in_bf16, free_memory, onto
from ..errors import LoomError
from ..layers import nf4
from ..layers.compiled import Blocks
from ..layers.on_demand import weights_on_demand
from ..layers.recorded import Recorded
from .diffusers_load import Parts, folder_tokenizers, load_parts
from .families import FAMILIES
from .identity import digest
from .protocol import Batch, Conditioning, Fetch, TextEncoder, Weights, ask_in_groups, join_contexts

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(base_model: str, device: str = "auto", precision: str = "auto") -> DiffusersModel:
    """A base model from local files. precision auto: bf16 on CUDA, fp32 elsewhere; see `training`."""
    device = best_device(device)
    return DiffusersModel(load_parts(base_model, _DTYPES[resolve(precision, device)]), torch.device(device))


def resolve(precision: str, device: str, cpu_bf16: bool = False) -> str:
    """precision, auto as what that device computes best in. cpu_bf16: the family's own."""
    if precision != "auto":
        return precision
    return "bf16" if str(device).startswith("cuda") or cpu_bf16 and fast_in_bf16(device) else "fp32"


class DiffusersModel:
    """UNet, VAE and text encoders held by the trainer itself."""

    can_offload = False

    def __init__(self, parts: Parts, device: torch.device) -> None:
        self.family, self.name, self.device = FAMILIES[parts.family], parts.name, device
        self.unet, self.vae = parts.unet.requires_grad_(False).eval(), parts.vae.requires_grad_(False).eval()
        self.text_encoders = [t.requires_grad_(False).eval() for t in parts.text_encoders]
        self.tokenizers = parts.tokenizers
        channels = self.unet.config.in_channels
        if channels != 4:
            raise LoomError(f"base_model has {channels} input channels (an inpainting or edit model): LoRA Loom trains those with 4; load the plain one")
        self.prediction = parts.scheduler.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction"):
            raise LoomError(f"base_model predicts {self.prediction!r}: LoRA Loom trains epsilon and v_prediction models")
        self._schedule = parts.scheduler.config
        self.alphas_cumprod = parts.scheduler.alphas_cumprod.float()
        self._dtype = self.unet.dtype
        self._packed: nf4.Packed | None = None

    def modules(self, text_encoders: bool) -> dict[str, torch.nn.Module]:
        found: dict[str, torch.nn.Module] = {"lora_unet": self.unet}
        if text_encoders:
            found.update(zip(self.family.text_prefixes, self.text_encoders))
        return found

    def device_of(self, prefix: str) -> torch.device:
        return self.device

    @contextmanager
    def fetch(self, layer: torch.nn.Module, like: torch.Tensor) -> Iterator[Weights]:
        yield layer.weight.detach().to(like), None if layer.bias is None else layer.bias.detach().to(like)

    def layer_names(self, prefix: str) -> dict[str, str]:
        names = [name for name, _ in self.modules(True)[prefix].named_modules() if name]
        if prefix == "lora_unet":
            return {name: name for name in names}
        return {name: name if name.startswith("text_model.") else f"text_model.{name}" for name in names if ".layers." in name}

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        self.vae.to(self.device)
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        found = []
        for one in pixels.split(1):  # a VAE takes gigabytes a megapixel: one at a time fits small cards
            encoded = self.vae.encode(one.to(self.device) * 2 - 1)
            latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
            found.append(((latents - shift) * self.vae.config.scaling_factor).float().cpu())
        return torch.cat(found)

    def loras_digest(self) -> str:
        return ""

    def encoder_digests(self) -> tuple[str, str]:
        text = [(f"{i}.{name}", tensor) for i, encoder in enumerate(self.text_encoders) for name, tensor in encoder.state_dict(keep_vars=True).items()]
        words = [(f"{i}.words", sorted(tokenizer.get_vocab().items())) for i, tokenizer in enumerate(self.tokenizers)]
        scale = self.vae.config.scaling_factor, getattr(self.vae.config, "shift_factor", None)
        return digest(self.vae.state_dict(keep_vars=True).items(), "diffusers", self.family.id, scale), digest([*text, *words], "diffusers", self.family.id)

    def encode_captions(self, captions: list[str]) -> list[Conditioning]:
        return [self._encode(caption) for caption in captions]

    def _encode(self, caption: str) -> Conditioning:
        contexts, pooled = [], None
        for encoder, tokenizer in zip(self.text_encoders, self.tokenizers):
            encoder.to(self.device)
            out = encoder(chunks(tokenizer, caption).to(self.device), output_hidden_states=True)
            # SDXL reads both encoders one layer early and pools the second; SD reads the last, normalised layer
            contexts.append(out.hidden_states[-2] if self.family.time_ids else out.last_hidden_state)
            if self.family.time_ids and getattr(out, "text_embeds", None) is not None:
                pooled = out.text_embeds[:1].float()
        length = max(c.shape[0] for c in contexts)
        joined = torch.cat([c[:length] for c in contexts], dim=-1).float()
        return Conditioning(joined.reshape(1, -1, joined.shape[-1]), pooled)

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str], as_captions: bool = False) -> list[Conditioning]:
        return [self._encode(prompt) for prompt in prompts]

    @torch.no_grad()
    def sample(self, positive: Conditioning, negative: Conditioning, shape: tuple[int, ...], seed: int, cfg: float) -> torch.Tensor:
        scheduler = EulerDiscreteScheduler.from_config(self._schedule)
        scheduler.set_timesteps(self.family.sampler[2], device=self.device)
        height, width = self.family.cell * shape[-2], self.family.cell * shape[-1]
        latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed)).to(self.device) * scheduler.init_noise_sigma
        batch = Batch(latents, ["", ""], sizes=[(height, width, 0, 0, height, width)] * 2)
        for t in scheduler.timesteps:
            noisy = scheduler.scale_model_input(latents, t).repeat(2, 1, 1, 1)
            without, wanted = self.predict(noisy, t.expand(2), batch, [negative, positive]).chunk(2)
            latents = scheduler.step(without + (cfg or self.family.cfg) * (wanted - without), t, latents).prev_sample
        self.vae.to(self.device)
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        pixels = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor + shift).sample
        return (pixels[0].movedim(0, -1).float() / 2 + 0.5).clamp(0, 1).cpu()

    def release_encoders(self, text_encoders: bool) -> None:
        self.vae.to("cpu")
        if text_encoders:
            for encoder in self.text_encoders:
                encoder.to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def training(self, precision: str, text_encoders: bool, checkpointing: int, largest: tuple[int, ...] = (),
                 offload: bool = False, plain: bool = False, in_nf4: bool = False, blocks: Blocks | None = None,
                 recorded: Recorded | None = None) -> Iterator[None]:
        self._dtype = _DTYPES[resolve(precision, str(self.device), self.family.cpu_bf16)]
        for part in self.modules(text_encoders).values():
            # adapters keep their fp32 masters: only the frozen weights follow the compute dtype
            for parameter in part.parameters():
                if not parameter.requires_grad and parameter.dtype != self._dtype:
                    parameter.data = parameter.data.to(self._dtype)
            part.to("cpu" if in_nf4 and part is self.unet else self.device)  # its blocks need never be there as they are
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
            kinds: dict[type, int] = {}
            for block in (m for m in self.unet.modules() if getattr(m, "gradient_checkpointing", False)):
                kinds[type(block)] = kinds.get(type(block), -1) + 1
                block.gradient_checkpointing = kinds[type(block)] % checkpointing == 0
            self.unet.train()  # diffusers checkpoints in train mode alone; these networks have no dropout of their own
        try:
            with ExitStack() as stack:
                for prefix, part in self.modules(text_encoders).items():
                    asked = self._pack(stack) if in_nf4 and prefix == "lora_unet" else self.fetch
                    stack.enter_context(weights_on_demand(part, asked, plain=plain))
                if blocks is not None:
                    stack.enter_context(blocks.of((m for m in self.unet.modules() if type(m).__name__ in self.family.checkpointed), lambda layer: True))
                if recorded is not None:
                    stack.enter_context(recorded.of(self.unet, lambda layer: all(p.device.type == self.device.type for p in layer.parameters(recurse=False))))
                yield
        finally:
            if checkpointing:
                self.unet.disable_gradient_checkpointing()
            self.unet.eval()

    def _pack(self, stack: ExitStack) -> Fetch:
        """How layers ask for their weights until the stack ends: those of the blocks lie packed on the device, as they are on the CPU alone."""
        layers = nf4.packable(m for m in self.unet.modules() if type(m).__name__ in self.family.checkpointed)
        self._packed = nf4.Packed(layers, self.fetch, self.device, self._dtype)
        stack.callback(setattr, self, "_packed", None)
        packed = set(layers)
        for module in self.unet.modules():
            if module not in packed:
                module._apply(lambda t: t.to(self.device), recurse=False)
        return self._packed.fetch

    def memory(self) -> tuple[int, int | None]:
        held = sum(p.numel() * p.element_size() for p in self.unet.parameters() if not p.requires_grad and p.device.type == self.device.type)
        return held + (self._packed.bytes if self._packed else 0), free_memory(self.device)

    def limited(self, most: int) -> AbstractContextManager[None]:
        return nullcontext()  # nothing comes by itself

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, batch: Batch, conditioning: list[Conditioning]) -> torch.Tensor:
        return ask_in_groups(self._ask, noisy, timesteps, batch.sizes, conditioning)

    def _ask(self, noisy: torch.Tensor, timesteps: torch.Tensor, sizes: list, conditioning: list[Conditioning]) -> torch.Tensor:
        context = onto(join_contexts([c.context for c in conditioning]), self.device, self._dtype)
        added = None
        if self.family.time_ids:
            pooled = onto(torch.cat([c.pooled for c in conditioning]), self.device, self._dtype)
            added = {"text_embeds": pooled, "time_ids": onto(torch.tensor(sizes), self.device, self._dtype)}
        out = self.unet(noisy.to(self._dtype), timesteps, encoder_hidden_states=context, added_cond_kwargs=added)
        return out.sample.float()


WINDOW = 75  # tokens of a caption beside the start and the end


def text_encoders(base_model: str, family: str) -> tuple[TextEncoder, ...]:
    """How the text encoders of a base model read captions; no weights are loaded."""

    def counting(tokenizer):
        return lambda captions: [len(_ids(tokenizer, caption)) for caption in captions]

    return tuple(TextEncoder(f"CLIP-{name}", counting(tokenizer), WINDOW, True)
                 for tokenizer, name in zip(folder_tokenizers(Path(base_model), family), "H" if family == "sd2" else "LG"))


def _ids(tokenizer, caption: str) -> list[int]:
    return tokenizer(caption, add_special_tokens=False, truncation=False, verbose=False).input_ids


def chunks(tokenizer, caption: str) -> torch.Tensor:
    """Token ids (n, 77): long captions fill several windows of 75 tokens, as ComfyUI and kohya do."""
    ids = _ids(tokenizer, caption)
    rows = []
    for start in range(0, max(len(ids), 1), WINDOW):
        row = [tokenizer.bos_token_id, *ids[start:start + WINDOW], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (77 - len(row)))
    return torch.tensor(rows)
