"""ComfyUI's loaded models as a TrainableModel. Only this file and comfy_toy.py import comfy.* in the trainer.

The base weights stay where ComfyUI holds them: no copy, no alias, no change. See frozen.py.
"""
from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import lru_cache

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_sampling
import comfy.ops
import comfy.sample
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
import torch.utils.checkpoint

from ..devices import fast_in_bf16, onto
from ..errors import LoomError
from ..layers import nf4, product
from ..layers.compiled import GONE, Blocks
from ..layers.on_demand import replaced_forward, weights_on_demand
from ..layers.recorded import Recorded
from .comfy_resident import Resident
from .families import FAMILIES, Family
from .identity import digest, parts_in
from .protocol import Batch, Conditioning, Fetch, Weights, ask_in_groups, is_linear, join_contexts

try:
    from comfy.quant_ops import QuantizedTensor
except ImportError:  # older than it
    QuantizedTensor = ()

_OFFLOADABLE = "offloadable" in inspect.signature(comfy.ops.cast_bias_weight).parameters  # newer than 0.3.64
_PRODUCTS = torch.nn.Linear, torch.nn.Conv2d
_NUMBERS = torch.float32, torch.bfloat16, torch.float16  # of any other kind are stored weights alone
_TEXT_ENCODERS = {"toy": ("clip_l",), "sd15": ("clip_l",), "sd2": ("clip_h",), "sdxl": ("clip_l", "clip_g")}


def fetch(layer: torch.nn.Module, like: torch.Tensor) -> AbstractContextManager[Weights]:
    """(weight, bias) as ComfyUI would use them now: paged in, dequantized, with stacked LoRAs, in `like`'s dtype."""
    held = layer._parameters  # asked hundreds of times a step: a module's attributes take ten times as long
    weight = held.get("weight")
    if weight is None or getattr(layer, "comfy_cast_weights", True) or layer.weight_function or layer.bias_function or isinstance(weight, QuantizedTensor) \
            or weight.dtype != like.dtype and not (isinstance(layer, _PRODUCTS) and product.can_take(weight, like)) or weight.device != like.device \
            or held.get("pre_quant_scale") is not None:
        return _cast(layer, like)
    return nullcontext((weight, held.get("bias")))  # ComfyUI's layer would take them as they lie


@contextmanager
def _cast(layer: torch.nn.Module, like: torch.Tensor) -> Iterator[Weights]:
    if getattr(layer, "weight", None) is None:
        yield None, None
        return
    if not hasattr(layer, "comfy_cast_weights"):  # not one of ComfyUI's layers
        cast = [None if p is None else p.detach().to(like) for p in (layer.weight, getattr(layer, "bias", None))]
        yield cast[0], cast[1]
        return
    if hasattr(layer, "cast_bias_weight"):  # other packs' layers, such as ComfyUI-GGUF's, unpack their weight themselves
        yield layer.cast_bias_weight(like)[:2]
        return
    got = comfy.ops.cast_bias_weight(layer, like, **({"offloadable": True} if _OFFLOADABLE else {}))
    try:
        yield _plain(layer, got[0]), got[1]
    finally:
        if len(got) > 2:
            comfy.ops.uncast_bias_weight(layer, *got)


def _plain(layer: torch.nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """The weight of a quantized layer as numbers, with the scales that some formats put beside it or on the layer's input."""
    if isinstance(weight, QuantizedTensor):
        weight = weight.dequantize()
    for name in ("scale_weight", "pre_quant_scale"):  # the former in ComfyUIs before QuantizedTensor, whose layers apply it themselves
        scale = getattr(layer, name, None)
        weight = weight if scale is None else weight * scale.to(weight)
    return weight


@lru_cache
def _linear_kind(kind: type) -> type:
    return type(kind.__name__, (kind, torch.nn.Linear), {"__module__": kind.__module__})


@contextmanager
def known_as_linear(root: torch.nn.Module) -> Iterator[None]:
    """Quantized linear layers of ComfyUI are no torch.nn.Linear: inside they are one too, for PEFT and for frozen.py."""
    found = [m for m in root.modules() if is_linear(m) and not isinstance(m, torch.nn.Linear)]
    before = [type(layer) for layer in found]
    try:
        for layer, kind in zip(found, before):
            layer.__class__ = _linear_kind(kind)
        yield
    finally:
        for layer, kind in zip(found, before):
            layer.__class__ = kind


def compute_dtype(precision: str, device: torch.device, cpu_bf16: bool) -> torch.dtype:
    """What that precision means there, auto as what it computes best in. cpu_bf16: the family's own."""
    if precision == "auto":
        bf16 = cpu_bf16 and fast_in_bf16(device) if device.type == "cpu" else comfy.model_management.should_use_bf16(device)
        precision = "bf16" if bf16 else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def open_model(model, clip, vae, name: str = "") -> ComfyModel:
    """MODEL, CLIP and VAE of any family that can be trained; LoomError for another."""
    from .comfy_flow import ComfyFlow, family_of

    family = family_of(model)
    return ComfyModel(model, clip, vae, name, detect(model)) if family is None else ComfyFlow(model, clip, vae, name, family)


def detect(model) -> Family:
    """The family of a ComfyUI MODEL with a UNet; LoomError where it is none that can be trained yet."""
    config, known = model.model.model_config, comfy.supported_models
    supported = "SD1.5, SD2.x, SDXL, SD3.x, Flux.1, Chroma, Flux.2, Qwen-Image, Lumina 2, Z-Image and Wan (text to image) base models"
    kind = type(config).__name__
    if not hasattr(model.model.diffusion_model, "input_blocks"):
        raise LoomError(f"MODEL is of the family {kind}, which LoRA Loom cannot train yet: TrainLoRA.model takes {supported}; load one of these")
    channels = config.unet_config.get("in_channels", 4)
    if channels != 4:
        raise LoomError(f"MODEL has {channels} input channels (an inpainting or edit model): TrainLoRA.model takes {supported} with 4; load the plain one")
    if "loom_family" in type(config).__dict__:
        return FAMILIES[type(config).loom_family]
    if isinstance(config, known.SDXL):
        return FAMILIES["sdxl"]
    if isinstance(config, known.SD20) and not config.unet_config.get("adm_in_channels"):
        return FAMILIES["sd2"]
    if isinstance(config, known.SD15):
        return FAMILIES["sd15"]
    raise LoomError(f"MODEL is of the family {kind}, which LoRA Loom cannot train yet: TrainLoRA.model takes {supported}; load one of these")


def _prediction(sampling, flow: bool) -> str:
    if flow and isinstance(sampling, comfy.model_sampling.CONST):
        return "flow"
    discrete = isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete) and len(sampling.sigmas) == 1000  # LCM's has 50
    if discrete and isinstance(sampling, comfy.model_sampling.V_PREDICTION) and not isinstance(sampling, comfy.model_sampling.EDM):
        return "v_prediction"
    if discrete and isinstance(sampling, comfy.model_sampling.EPS) and not isinstance(sampling, (comfy.model_sampling.V_PREDICTION, comfy.model_sampling.X0)):
        return "epsilon"
    kinds = ", ".join(c.__name__ for c in type(sampling).__mro__[1:] if c not in (torch.nn.Module, object))
    trained = "this family by rectified flow" if flow else "epsilon and v-prediction models with a discrete schedule"
    raise LoomError(f"MODEL samples by {kinds}: LoRA Loom trains {trained}; remove the ModelSampling node in front of TrainLoRA or load another checkpoint")


def sdpa(_func, *args, **kwargs):
    """ComfyUI's attention functions for inference may build the scores or lack a backward; torch's never does."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)


@contextmanager
def held(*patchers) -> Iterator[None]:
    """ComfyUI neither loads nor unloads those models inside, whatever else it makes room for: adapters are in their trees,
    where it would look for weights by name."""
    manage, ours = comfy.model_management, lambda other: any(other is p or p.is_clone(other) for p in patchers)
    load, kept = manage.load_models_gpu, [m for m in manage.current_loaded_models if m.model is not None and ours(m.model)]
    manage.current_loaded_models[:] = [m for m in manage.current_loaded_models if all(m is not k for k in kept)]
    manage.load_models_gpu = lambda models, *args, **kwargs: load([m for m in models if not ours(m)], *args, **kwargs)
    try:
        yield
    finally:
        manage.load_models_gpu = load
        manage.current_loaded_models.extend(kept)


def _vbar(patcher):
    """What pages that model's weights in on its device (dynamic VRAM); None where nothing does."""
    return patcher._vbar_get() if getattr(patcher, "is_dynamic", lambda: False)() and hasattr(patcher, "_vbar_get") else None


def _poll(*_) -> None:
    """Between a sampler's steps: older ComfyUIs look for an interrupt nowhere else."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def literal(caption: str) -> str:
    """A caption has no (emphasis:1.2); ComfyUI escapes parentheses alone."""
    return caption.replace("(", "\\(").replace(")", "\\)")


class ComfyModel:
    """MODEL, CLIP and VAE as any loader node hands them. `release` undoes what a run has changed."""

    attention = staticmethod(sdpa)

    def __init__(self, model, clip, vae, name: str, family: Family) -> None:
        self.family = family
        if clip is None:
            raise LoomError("clip is empty: the checkpoint has no text encoder; connect one (CLIPLoader, DualCLIPLoader) to TrainLoRA.clip")
        if vae is None or getattr(vae, "first_stage_model", None) is None:
            raise LoomError("vae is empty: the checkpoint has no VAE; connect one (VAELoader) to TrainLoRA.vae")
        self.patcher, self.clip, self.vae, self.name = model, clip, vae, name
        missing = [e for e in _TEXT_ENCODERS.get(self.family.id, ()) if not hasattr(clip.cond_stage_model, e)]
        if missing:
            raise LoomError(f"clip is a {type(clip.cond_stage_model).__name__} without {', '.join(missing)}: {self.family.title} needs "
                            f"{' and '.join(_TEXT_ENCODERS[self.family.id])}; connect the CLIP of the same checkpoint to TrainLoRA.clip")
        for owner, patcher in (("MODEL", model), ("CLIP", clip.patcher)):
            if getattr(patcher, "injections", None):
                raise LoomError(f"{owner} carries {', '.join(map(str, patcher.injections))}, which replaces its layers' own computation: "
                                "TrainLoRA trains on top of LoraLoader's LoRAs; put LoraLoader in place of LoraLoaderBypass")
        sampling = model.get_model_object("model_sampling")
        self.prediction = _prediction(sampling, family.flow)
        self.alphas_cumprod = None if family.flow else (1 / (1 + sampling.sigmas.double().cpu() ** 2)).float()
        self.device = torch.device(model.load_device)
        self.can_offload = self.device.type != "cpu"
        self._dtype = torch.float32
        self._text_trained = self._running = self._away = False
        self._packed: nf4.Packed | None = None
        self._most: int | None = None  # bytes of pages
        self._resident: list[Resident] = []
        self._faster: list[Blocks | Recorded] = []  # what counts on weights that lie on the device

    @property
    def unet(self) -> torch.nn.Module:
        return self.patcher.model.diffusion_model

    def modules(self, text_encoders: bool) -> dict[str, torch.nn.Module]:
        found = {"lora_unet": self.unet}
        if text_encoders:
            for prefix, encoder in zip(self.family.text_prefixes, _TEXT_ENCODERS[self.family.id]):
                found[prefix] = getattr(self.clip.cond_stage_model, encoder).transformer
        return found

    def device_of(self, prefix: str) -> torch.device:
        return self.device if prefix == "lora_unet" else torch.device(self.clip.patcher.load_device)

    def fetch(self, layer: torch.nn.Module, like: torch.Tensor):
        return fetch(layer, like)

    def layer_names(self, prefix: str) -> dict[str, str]:
        if prefix == "lora_unet":
            names = comfy.utils.unet_to_diffusers(self.patcher.model.model_config.unet_config)
            return {own[:-len(".weight")]: name[:-len(".weight")] for name, own in names.items() if own.endswith(".weight")}
        names = {name: name for name, _ in self.modules(True)[prefix].named_modules() if ".layers." in name}
        if self.family.id == "sd2":  # it reads the last layer but one; diffusers' has no other
            last = max(int(name.split(".layers.")[1].split(".")[0]) for name in names)
            names = {name: name for name in names if f".layers.{last}." not in f"{name}."}
        return names

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():  # see load
            # a video VAE takes a batch for the frames of one film
            parts = pixels.split(1) if getattr(self.vae, "latent_dim", 2) == 3 else [pixels]
            latents = torch.cat([self.vae.encode(part.movedim(1, -1)) for part in parts])
            if latents.ndim not in (4, 5) or latents.shape[1] != self.family.channels:
                raise LoomError(f"vae gives latents of shape {tuple(latents.shape)}, {self.family.title} takes (B, {self.family.channels}, …): "
                                "connect the VAE of the same checkpoint, or one of its family, to TrainLoRA.vae")
            latents = self.patcher.model.process_latent_in(latents.float()).cpu()
        return latents.clone()

    def loras_digest(self) -> str:
        return digest(parts_in(self.patcher.patches))

    def encoder_digests(self) -> tuple[str, str]:
        kind = type(self.patcher.model.latent_format).__name__  # which scales what the VAE gives
        return self._digest(self.vae.first_stage_model, getattr(self.vae, "patcher", None), kind, str(getattr(self.vae, "vae_dtype", ""))), \
            self._digest(self.clip.cond_stage_model, self.clip.patcher, getattr(self.clip, "layer_idx", None), getattr(self.clip, "tokenizer_options", None))

    def _digest(self, network: torch.nn.Module, patcher, *facts: object) -> str:
        """Weights as they are without the LoRAs stacked on them, which may be in force or not, and those LoRAs."""
        weights = dict(network.state_dict(keep_vars=True)) if isinstance(network, torch.nn.Module) else {}
        if not weights:
            return ""
        weights.update({name: getattr(kept, "weight", kept) for name, kept in getattr(patcher, "backup", {}).items()})
        return digest([*weights.items(), *parts_in(getattr(patcher, "patches", {}))], self.family.id, *facts)

    def encode_captions(self, captions: list[str]) -> list[Conditioning]:
        if torch.is_grad_enabled():  # in training: loaded already
            return self._encode(captions)
        with torch.inference_mode():
            found = self._encode(captions)
        return [Conditioning(c.context.clone(), None if c.pooled is None else c.pooled.clone(), {k: v.clone() for k, v in c.extra.items()}) for c in found]

    def _encode(self, captions: list[str]) -> list[Conditioning]:
        found = []
        for caption in captions:
            context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(literal(caption)), return_pooled=True)
            found.append(Conditioning(context.float(), pooled.float() if self.family.time_ids and pooled is not None else None))
        width = self.patcher.model.model_config.unet_config.get("context_dim")
        if found and width is not None and found[0].context.shape[-1] != width:
            raise LoomError(f"clip gives embeddings of width {found[0].context.shape[-1]}, the MODEL takes {width}: connect the CLIP of the same checkpoint")
        return found

    @torch.inference_mode()
    def encode_prompts(self, prompts: list[str], as_captions: bool = False) -> list:
        texts = map(literal, prompts) if as_captions else prompts
        with self._kept():
            return [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text)) for text in texts]

    def _patchers(self) -> list:
        """What is trained."""
        return [self.patcher, *([self.clip.patcher] if self._text_trained else [])]

    def _kept(self) -> AbstractContextManager[None]:
        """What is trained stays where it is inside, while it is trained."""
        return held(*self._patchers()) if self._running else nullcontext()

    def _first(self) -> None:
        """Pages that had to give way may come again: ComfyUI leaves them out until the model is loaded anew, which would disturb adapters."""
        for vbar in filter(None, map(_vbar, self._patchers())):
            vbar.prioritize()
        self._limit()

    def _limit(self) -> None:
        vbar = None if self._most is None else _vbar(self.patcher)
        if hasattr(vbar, "set_watermark"):  # newer comfy-aimdo
            vbar.set_watermark(self._most)

    @contextmanager
    def limited(self, most: int) -> Iterator[None]:
        self._most = most
        self._limit()
        try:
            yield
        finally:
            self._most = None
            self._first()

    @torch.inference_mode()
    def sample(self, positive: list, negative: list, shape: tuple[int, ...], seed: int, cfg: float) -> torch.Tensor:
        latents = torch.zeros(1, *shape)
        sampler, scheduler, steps = self.family.sampler
        with held(*self._patchers()), ExitStack() as stack:
            stack.callback(self._first)
            for resident in self._resident:  # the sampler and the VAE may need the room, and ComfyUI looks at every page that is pinned
                stack.enter_context(resident.given_back(self._missed))
            found = comfy.sample.sample(self.patcher, comfy.sample.prepare_noise(latents, seed), steps, cfg or self.family.cfg, sampler, scheduler,
                                        positive, negative, latents, disable_pbar=True, seed=seed, callback=_poll)
            pixels = self.vae.decode(found)
        return pixels.reshape(-1, *pixels.shape[-3:])[0, ..., :3].clone().cpu()  # a video VAE gives frames

    @torch.inference_mode()
    def release_encoders(self, text_encoders: bool) -> None:
        unload = getattr(comfy.model_management, "unload_model_and_clones", None)
        patchers = [self.vae.patcher] + ([self.clip.patcher] if text_encoders else [])
        for patcher in patchers:
            if unload is not None:
                unload(patcher, unload_additional_models=False, all_devices=True)
            else:  # 0.3.64 knows no unloading by model: keep everything but this one
                loaded = comfy.model_management.current_loaded_models
                others = [m for m in loaded if m.model is not None and not (m.model is patcher or m.model.is_clone(patcher))]
                comfy.model_management.free_memory(1e30, patcher.load_device, keep_loaded=others)
        comfy.model_management.soft_empty_cache()

    @torch.inference_mode()  # as nodes run: outside it ComfyUI would clone the weights that it puts back
    def load(self, text_encoders: bool = False, room: float = 0) -> None:
        """Bring the base model to its device as far as it fits beside `room` bytes, with the LoRAs stacked on it in force.

        Only while no adapter is in the tree: ComfyUI finds weights and their patches by name, and replaces parameters.
        """
        comfy.model_management.load_models_gpu([self.patcher, *([self.clip.patcher] if text_encoders else [])], memory_required=room)

    def memory(self) -> tuple[int, int | None]:
        packed = self._packed.bytes if self._packed else 0
        gives_way = self._away and getattr(self.patcher, "is_dynamic", lambda: False)()  # as soon as room is needed
        return (0 if gives_way else int(self.patcher.loaded_size())) + packed, self._free(() if gives_way else self._patchers())

    def _free(self, kept: Sequence) -> int:
        """Bytes that torch can still take on the device: also what is paged in there (dynamic VRAM), which gives way to it; not so that of `kept`."""
        manage = comfy.model_management
        pages = {id(vbar): vbar for one in manage.current_loaded_models if one.model is not None and one.model.load_device == self.patcher.load_device
                 for vbar in (_vbar(one.model),) if vbar is not None}
        ours = {id(_vbar(patcher)) for patcher in kept}
        return int(manage.get_free_memory(self.device)) + sum(vbar.loaded_size() for key, vbar in pages.items() if key not in ours)

    def _room(self, largest: tuple[int, ...], checkpointing: int) -> float:
        """Bytes that a step takes beside the weights, roughly: SD1.5 at 256x256 on the CPU took 0.28 (attention) to 0.4 MiB a latent
        cell and byte of its dtype, scratch space included (bench/RESULTS.md); a third of it with checkpointing, two thirds in every second block."""
        if not largest:
            return 0
        area = largest[0] * largest[-2] * largest[-1]
        per_cell = 0.3 * 2**20 * self._dtype.itemsize * getattr(self.patcher.model, "memory_usage_factor", 1.0)
        return area * per_cell / {0: 1, 1: 3}.get(checkpointing, 1.5)

    def _fits(self, text_encoders: bool, room: float) -> bool:
        """Whether what ComfyUI pages in on demand (dynamic VRAM) can stay on the device as a whole, beside `room` bytes; False where it pages nothing."""
        patchers = [p for p in (self.patcher, *([self.clip.patcher] if text_encoders else [])) if getattr(p, "is_dynamic", lambda: False)()]
        manage, missing = comfy.model_management, sum(max(0, p.model_size() - p.loaded_size()) for p in patchers)
        return bool(patchers) and self._free(patchers) - manage.extra_reserved_memory() >= missing + room

    @contextmanager
    def training(self, precision: str, text_encoders: bool, checkpointing: int, largest: tuple[int, ...] = (),
                 offload: bool = False, plain: bool = False, in_nf4: bool = False, blocks: Blocks | None = None,
                 recorded: Recorded | None = None) -> Iterator[None]:
        manage = comfy.model_management
        self._dtype = compute_dtype(precision, self.device, self.family.cpu_bf16)
        self._away, room = self.can_offload and (offload or in_nf4), self._room(largest, checkpointing)
        self.load(text_encoders, 1e30 if self._away else room)
        with ExitStack() as stack:
            stack.enter_context(getattr(manage, "cuda_device_context", nullcontext)(self.device))  # ComfyUI's streams are the current device's
            self._text_trained = text_encoders
            if not self._away and self._fits(text_encoders, room):
                for prefix, root in self.modules(text_encoders).items():
                    resident = Resident(root, self.device_of(prefix), self._first)
                    stack.callback(resident.release)
                    resident.hold(_poll)
                    self._resident.append(resident)
                stack.callback(self._resident.clear)
            self._faster = [one for one in (blocks, recorded) if one is not None]
            stack.enter_context(product.in_bf16(self.device.type == "cpu" and self._dtype == torch.bfloat16))
            self._running = True
            stack.callback(setattr, self, "_running", False)
            if text_encoders:  # it is asked for at every encoding
                stack.callback(self.clip.__dict__.pop, "load_model", None)
                self.clip.load_model = lambda *_, **__: self.clip.patcher
            if hasattr(manage, "in_training"):
                stack.callback(setattr, manage, "in_training", manage.in_training)
                manage.in_training = True
            for prefix, root in self.modules(text_encoders).items():
                stack.enter_context(known_as_linear(root))
                asked = self._pack(stack) if in_nf4 and prefix == "lora_unet" else fetch
                stack.enter_context(weights_on_demand(root, asked, inplace_inputs=prefix != "lora_unet", plain=plain))
            if blocks is not None:
                stack.enter_context(blocks.of(self._recomputed(1), self._lies_ready, _alike))
            for block in self._recomputed(checkpointing):
                stack.enter_context(replaced_forward(block, checkpointed(block.forward)))
            if recorded is not None:
                stack.enter_context(recorded.of(self.unet, self._lies_ready))
            yield

    def _missed(self) -> None:
        for faster in self._faster:
            faster.stop(GONE)

    def _lies_ready(self, layer: torch.nn.Module) -> bool:
        """Whether the layer's weight is on the device, as numbers, and what ComfyUI would compute with."""
        if getattr(layer, "comfy_cast_weights", False) or getattr(layer, "weight_function", None) or getattr(layer, "bias_function", None):
            return False
        held, place = [t for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None], torch.empty(0, device=self.device).device
        fits = all(not isinstance(t, QuantizedTensor) and t.device == place and t.dtype in _NUMBERS for t in held)
        return fits and "pre_quant_scale" not in layer._parameters

    def _pack(self, stack: ExitStack) -> Fetch:
        """How layers ask for their weights until the stack ends: those of the blocks lie packed on the device."""
        self._packed = nf4.Packed(nf4.packable(self._recomputed(1)), fetch, self.device, self._dtype, _poll)
        stack.callback(setattr, self, "_packed", None)
        return self._packed.fetch

    def _recomputed(self, every: int) -> list[torch.nn.Module]:
        """Every so many-th block of each kind that is worth computing again; none for 0."""
        kinds: dict[str, list[torch.nn.Module]] = {name: [] for name in self.family.checkpointed}
        for module in self.unet.modules():
            kinds.get(type(module).__name__, []).append(module)
        return [block for blocks in kinds.values() for block in (blocks[::every] if every else ())]

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, batch: Batch, conditioning: list[Conditioning]) -> torch.Tensor:
        return ask_in_groups(self._ask, noisy, timesteps, batch.sizes, conditioning)

    def _ask(self, noisy: torch.Tensor, timesteps: torch.Tensor, sizes: list, conditioning: list[Conditioning]) -> torch.Tensor:
        context = onto(join_contexts([c.context for c in conditioning]), self.device, self._dtype)
        y = None
        if self.family.time_ids:
            y = onto(torch.cat([self._adm(c, size) for c, size in zip(conditioning, sizes)]), self.device, self._dtype)
        options = {"optimized_attention_override": self.attention}
        out = self.unet(noisy.to(self._dtype), timesteps.float(), context=context, y=y, transformer_options=options)
        return out.float()

    def _adm(self, conditioning: Conditioning, size: tuple[int, ...]) -> torch.Tensor:
        height, width, top, left, target_height, target_width = size
        return self.patcher.model.encode_adm(
            pooled_output=conditioning.pooled, height=height, width=width, crop_h=top, crop_w=left,
            target_height=target_height, target_width=target_width, device=self.device)

    def with_lora(self, lora: dict[str, torch.Tensor]):
        """(MODEL, CLIP) clones with the LoRA applied as ComfyUI's LoraLoader does. They survive unloading."""
        return comfy.sd.load_lora_for_models(self.patcher, self.clip, lora, 1.0, 1.0)


def _alike(value):
    """What a block is given, without what tells ComfyUI's patches which block it is: here are none."""
    if isinstance(value, dict) and "optimized_attention_override" in value:
        return {"optimized_attention_override": value["optimized_attention_override"]}
    return value


def _copied(value):
    return value.clone() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def checkpointed(inner, preserve_rng_state: bool = True):
    """A `forward` that keeps its inputs alone and runs `inner` again in backward. It works on copies: some blocks add to their inputs in place."""

    def forward(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)

        def again(*own):
            return inner(*map(_copied, own), **{name: _copied(value) for name, value in kwargs.items()})

        return torch.utils.checkpoint.checkpoint(again, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)

    return forward
