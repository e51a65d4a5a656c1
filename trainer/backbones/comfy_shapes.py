"""A checkpoint's network as shapes alone, on torch's meta device, from the header of its file: what a run on it will take can be asked before
anything is loaded. ComfyUI's own detection says what it is; the trainer's own backbone asks it.

It is asked while ComfyUI does other things: no state of ComfyUI or torch that others see is changed, and its layers, which look for an interrupt
and take it away from whom it is meant for, are torch's plain ones here.
"""
from __future__ import annotations

import functools
import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import comfy.ldm.flux.math
import comfy.model_detection
import comfy.model_management
import comfy.utils
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import LoomError
from ..layers import nf4
from ..layers.frozen import RMSNorm
from ..layers.on_demand import replaced_forward, weights_on_demand
from . import comfy_toy
from .comfy import _TEXT_ENCODERS, ComfyModel, checkpointed, compute_dtype, detect
from .comfy_flow import ComfyFlow, family_of
from .families import Family
from .protocol import Batch, Conditioning, Weights

META = torch.device("meta")
_MOST_HEADER = 100 * 2**20  # bytes, as safetensors itself has it
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
           "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
_TOLD = re.compile(r"(comfy_quant|scaled_fp8|scale_(weight|input)|(weight|input)_scale(_2)?)$")  # how weights are quantized, which changes no shape
_READ = "output_blocks.11.1.transformer_blocks.0.norm1.bias"  # SD2.x: its numbers say whether the model predicts v, which takes the same memory
_FP8 = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e4m3fn_fast": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}  # UNETLoader's own choices
# The layer that takes a family's text, how many tokens ComfyUI gives it for a common caption, and the layer that takes the pooled text.
_TEXT = {
    "sd3": ("context_embedder", 154, "y_embedder.mlp.0"), "flux": ("txt_in", 256, "vector_in.in_layer"), "chroma": ("txt_in", 256, ""),
    "flux2": ("txt_in", 512, ""), "qwen_image": ("txt_in", 48, ""), "lumina2": ("cap_embedder.1", 64, ""), "z_image": ("cap_embedder.1", 64, ""),
    "wan": ("text_embedding.0", 512, ""),
}


def _bare(kind: type) -> type:
    """That layer without its first values, which are no values here and take their time."""
    own = {"reset_parameters": lambda self: None, "weight_function": [], "bias_function": []}  # ComfyUI looks for LoRAs there
    return type(kind.__name__, (kind,), own | ({"bias": None} if kind is torch.nn.RMSNorm else {}))


class _Embedding(_bare(torch.nn.Embedding)):
    def forward(self, tokens: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        found = super().forward(tokens)
        return found if out_dtype is None else found.to(out_dtype)


class _Layers:
    """torch's layers where ComfyUI's networks ask for theirs."""

    Embedding = _Embedding
    Linear, Conv1d, Conv2d, Conv3d = map(_bare, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d))
    GroupNorm, LayerNorm, RMSNorm = map(_bare, (torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.RMSNorm))
    ConvTranspose1d, ConvTranspose2d = map(_bare, (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d))

    @classmethod
    def conv_nd(cls, dims: int, *args, **kwargs) -> torch.nn.Module:
        return {2: cls.Conv2d, 3: cls.Conv3d}[dims](*args, **kwargs)


@dataclass(frozen=True)
class Header:
    """What a file says of itself: its tensors as meta tensors, its metadata, and how many bytes they take there."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    quantized: bool

    def bytes(self, prefix: str) -> int:
        return sum(t.numel() * t.element_size() for name, t in self.tensors.items() if name.startswith(prefix))


def read_header(path: Path) -> Header:
    """The header of a .safetensors file; no weight is read. LoomError for a file that has none."""
    wrong = LoomError(f"{path.name} has no header of safetensors that can be read: it is damaged, not wholly downloaded, or of another format")
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            rows = json.loads(file.read(size)) if 2 <= size <= _MOST_HEADER else None
        metadata = rows.pop("__metadata__", None) or {}
        tensors = {name: torch.empty(row["shape"], dtype=_DTYPES.get(row["dtype"], torch.uint8), device=META) for name, row in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise wrong from error
    quantized = "_quantization_metadata" in metadata or any(_TOLD.search(name) for name in tensors)
    return Header({name: t for name, t in tensors.items() if not _TOLD.search(name)}, metadata, quantized)


@contextmanager
def _without_its_log() -> Iterator[None]:
    """ComfyUI logs what it loads; this thread loads nothing."""
    own, root = threading.get_ident(), logging.getLogger()
    keep = lambda record: record.thread != own or record.levelno > logging.WARNING
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)


def _config(tensors: dict[str, torch.Tensor], metadata: dict[str, str]):
    """(ComfyUI's configuration, the tensors as it would take them, their prefix), also for files in diffusers' names. LoomError for an unknown one."""
    detection = comfy.model_detection
    prefix = detection.unet_prefix_from_state_dict(tensors)
    if not any(name.startswith(prefix) for name in tensors):
        prefix = ""
    config = detection.model_config_from_unet(tensors, prefix, metadata=metadata)
    if config is not None:
        return config, tensors, prefix
    renamed = detection.convert_diffusers_mmdit(dict(tensors), "")
    config = detection.model_config_from_unet(renamed, "") if renamed is not None else detection.model_config_from_diffusers_unet(tensors)
    if config is None:
        raise LoomError("the file is of no family that ComfyUI knows: LoRA Loom cannot train on it")
    return config, renamed if renamed is not None else tensors, ""


def _toy():
    return comfy_toy.ToyBase(comfy_toy.ToyBase.unet_config), {}, ""


def open_shapes(path: Path | None, precision: str, weight_dtype: str = "default") -> Shapes:
    """The model in that file as it would be trained in `precision`; None for the toy base. `weight_dtype`: as UNETLoader's widget says.
    LoomError for what cannot be trained, or not be known from the header."""
    manage = comfy.model_management
    device = manage.get_torch_device()
    compute = compute_dtype(precision, device, cpu_bf16=path is not None)
    with _without_its_log():
        try:
            header = Header({}, {}, False) if path is None else read_header(path)
            config, tensors, prefix = _toy() if path is None else _config(header.tensors, header.metadata)
            own = {name: t for name, t in tensors.items() if name.startswith(prefix)}
            stored = torch.float32 if path is None else _FP8.get(weight_dtype) or manage.unet_dtype(
                model_params=sum(t.numel() for t in own.values()), supported_dtypes=list(config.supported_inference_dtypes),
                weight_dtype=None if header.quantized else comfy.utils.weight_dtype(tensors, prefix))
            config.set_inference_dtype(compute, None)
            config.custom_operations, config.quant_config = _Layers, None
            network = config.get_model({name: t for name, t in own.items() if not name.endswith(_READ)}, prefix, device=META)
            patcher = SimpleNamespace(model=network, load_device=META, get_model_object=lambda name: getattr(network, name))
            family = family_of(patcher)
            kind, family = (_Unet, detect(patcher)) if family is None else (_Flow, family)
            texts = _text_encoders(config, header, family)
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, LoomError):
                raise
            raise LoomError(f"nothing is known of {path.name if path else 'the toy base'} before it is loaded ({type(error).__name__}: {error})") from error
    held = header.bytes(prefix) if header.quantized else sum(p.numel() for p in network.diffusion_model.parameters()) * stored.itemsize
    return kind(family, patcher, texts, compute, stored != compute or header.quantized, held, device.type != "cpu")


def _text_encoders(config, header: Header, family: Family) -> dict[str, torch.nn.Module]:
    """The text encoders that can be trained, by ComfyUI's name of them."""
    names = _TEXT_ENCODERS.get(family.id, ())
    if not names:
        return {}
    options = {"custom_operations": _Layers, **({"clip_l_model_config": dict(comfy_toy.arch.TEXT)} if family.id == "toy" else {})}
    with torch.device(META):
        whole = config.clip_target(state_dict=header.tensors).clip(device=META, dtype=torch.float32, model_options=options)
    return {name: getattr(whole, name).transformer.requires_grad_(False) for name in names}


class Shapes(ComfyModel):
    """A model whose weights are shapes: everything can be asked of it except for numbers."""

    attention = staticmethod(lambda *args, **kwargs: _attention(*args, **kwargs))

    def __init__(self, family: Family, patcher, texts: dict[str, torch.nn.Module], dtype: torch.dtype, cast: bool, held: int, apart: bool) -> None:
        self.family, self.patcher, self.name, self.device, self.can_offload = family, patcher, "", META, False
        self.clip = SimpleNamespace(cond_stage_model=SimpleNamespace(**{name: SimpleNamespace(transformer=t) for name, t in texts.items()}))
        self.texts, self._dtype, self._twice, self._held, self.repeated = texts, dtype, cast, held, Repeated()
        self._packed: frozenset[torch.nn.Module] = frozenset()
        self._apart = apart  # whether the device is not where ComfyUI keeps what it unloads
        self.prediction, self.alphas_cumprod = ("flow", None) if family.flow else ("epsilon", torch.ones(1000, device=META))

    def device_of(self, prefix: str) -> torch.device:
        return META

    @contextmanager
    def fetch(self, layer: torch.nn.Module, like: torch.Tensor) -> Iterator[Weights]:
        """A weight that is held in another dtype than it computes in is there twice for as long as it is used."""
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if weight is not None:
            weight = torch.empty_like(weight, dtype=like.dtype) if self._twice or layer in self._packed else weight.to(like.dtype)
        yield weight, None if bias is None else bias.to(like.dtype)

    def memory(self, in_nf4: bool = False) -> tuple[int, int | None]:
        if not in_nf4:
            return self._held, None
        layers = nf4.packable(self._recomputed(1))
        packed = sum(nf4.packed_bytes(m.weight.numel()) + (0 if m.bias is None else m.bias.numel() * self._dtype.itemsize) for m in layers)
        return packed + (0 if self._apart else self._held), None

    @contextmanager
    def training(self, precision: str, text_encoders: bool, checkpointing: int, largest: tuple[int, ...] = (), offload: bool = False,
                 plain: bool = False, in_nf4: bool = False, blocks: None = None, recorded: None = None) -> Iterator[None]:
        self._packed = frozenset(nf4.packable(self._recomputed(1)) if in_nf4 else ())
        with ExitStack() as stack:
            stack.callback(setattr, self, "_packed", frozenset())
            for prefix, root in self.modules(text_encoders).items():
                stack.enter_context(weights_on_demand(root, self.fetch, inplace_inputs=prefix != "lora_unet", plain=plain))
            for block in self._recomputed(checkpointing):
                # the random numbers of this process are somebody else's
                stack.enter_context(replaced_forward(block, checkpointed(_as_in_training(block.forward), preserve_rng_state=False)))
            with self.repeated:
                yield

    def batch(self, height: int, width: int, rows: int, live_text: bool, preserved: bool) -> Batch:
        """One micro-batch of latents (rows, C, height, width) with common captions."""
        shape = (rows, self.family.channels, *[1] * self._frames, height, width)
        told = None if live_text else [self._caption()] * rows
        pixels = height * self.family.cell, width * self.family.cell
        others = ([""] * rows, told) if preserved else ([], None)
        return Batch(torch.empty(shape, device=META), [""] * rows, told, [(*pixels, 0, 0, *pixels)] * rows, *others)

    @property
    def _frames(self) -> int:
        return int(self.family.id in ("qwen_image", "wan"))

    def _caption(self) -> Conditioning:
        """Zeros on the CPU, for some of ComfyUI's code brings the pooled text there."""
        if self.family.id in _TEXT:
            layer, tokens, pooled = _TEXT[self.family.id]
            width = lambda name: self.unet.get_submodule(name).in_features
            return Conditioning(torch.zeros(1, tokens, width(layer), device="cpu"), torch.zeros(1, width(pooled), device="cpu") if pooled else None)
        width = self.patcher.model.model_config.unet_config["context_dim"]
        return Conditioning(torch.zeros(1, 77, width, device="cpu"), torch.zeros(1, 1280, device="cpu") if self.family.time_ids else None)

    def encode_captions(self, captions: list[str]) -> list[Conditioning]:
        """One row a caption, as text encoders read them while they are trained."""
        found = []
        for _ in captions:
            tokens = torch.zeros(1, 77, dtype=torch.int64, device=META)
            last = self.family.id in ("toy", "sd15")
            with _AsInTraining():
                out = [text(tokens, intermediate_output=None if last else -2) for text in self.texts.values()]
            found.append(Conditioning(torch.cat([one[0] if last else one[1] for one in out], -1), self._caption().pooled))
        return found


def _attention(_func, q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False, **_kwargs):
    """ComfyUI's attention functions take (B, rows, heads * width), or the heads apart."""
    if not skip_reshape:
        width = q.shape[-1] // heads
        q, k, v = (t.reshape(*t.shape[:2], -1, width).transpose(1, 2) for t in (q, k, v))
    out = _Scores.apply(q, k, v)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


class _Unet(Shapes):
    pass


class _Flow(Shapes, ComfyFlow):
    def predict(self, *args) -> torch.Tensor:
        return _as_in_training(super().predict)(*args)


def _rows_together(shape: torch.Size, like: torch.Tensor) -> torch.Tensor:
    """(B, heads, rows, width) that lies as (B, rows, heads, width), as fused kernels give it: the heads are joined without a copy."""
    return torch.empty(shape[0], *shape[-2:-4:-1], shape[-1], dtype=like.dtype, device=like.device).transpose(1, 2)


class _Scores(torch.autograd.Function):
    """Attention as fused kernels keep it: what goes in, what comes out, and one number a row; never the scores."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = _rows_together(torch.Size([*q.shape[:-1], v.shape[-1]]), q)
        ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device))
        return out

    @staticmethod
    def backward(ctx, grad):
        return tuple(_rows_together(t.shape, t) for t in ctx.saved_tensors[:3])


class _AsInTraining(TorchFunctionMode):
    """Where ComfyUI would take kernels for inference: it asks a global switch whether it trains, which is not ours to turn. Nor does torch know
    on the meta device another attention than the one that builds the scores."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:  # of text encoders, which take no attention from outside
            return _Scores.apply(*args[:3])
        if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)) and str(func).startswith("comfy_kitchen."):
            kernel = _KERNELS.get(str(func).split(".")[1])
            if kernel is not None:
                return kernel(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _rope(x: torch.Tensor, freqs: torch.Tensor, scale: torch.Tensor | None = None, eps: float | None = None) -> torch.Tensor:
    """Turned as in training, after its norm where there is a scale for it."""
    if scale is not None:
        layer = SimpleNamespace(weight=scale, normalized_shape=tuple(scale.shape), eps=eps)
        x = RMSNorm.apply(x, layer, lambda layer, like: nullcontext((layer.weight.to(like.dtype), None)))
    return comfy.ldm.flux.math._apply_rope1(x, freqs)


_KERNELS = {
    "apply_rope1": _rope, "apply_rope": lambda q, k, freqs: (_rope(q, freqs), _rope(k, freqs)),
    "rms_rope1": _rope, "rms_rope": lambda q, k, freqs, q_scale, k_scale, eps: (_rope(q, freqs, q_scale, eps), _rope(k, freqs, k_scale, eps)),
}


def _as_in_training(inner):
    """A `forward` inside that mode, also where it runs again in backward, when no mode is on."""

    def forward(*args, **kwargs):
        with _AsInTraining():
            return inner(*args, **kwargs)

    return forward


class Repeated(TorchDispatchMode):
    """What an operation gives for inputs of certain shapes is worked out once: torch does so in Python, and networks repeat their blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[tuple, list[tuple | None]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        key = (func, _key(args), _key(tuple(kwargs.items()))) if _makes_new(func) else None
        rows = self.known.get(key)
        if rows is None:
            made = func(*args, **kwargs)
            if key is None:
                return made
            found = made if isinstance(made, (tuple, list)) else (made,)
            given = {id(t.untyped_storage()) for t in _tensors((args, tuple(kwargs.values())))}
            if all(t is None or isinstance(t, torch.Tensor) and t.is_meta and id(t.untyped_storage()) not in given for t in found):
                self.known[key] = [None if t is None else (t.shape, t.stride(), t.dtype) for t in found] + [type(made)]
            return made
        *rows, kind = rows
        made = [None if row is None else torch.empty_strided(row[0], row[1], dtype=row[2], device=META) for row in rows]
        return kind(made) if kind in (tuple, list) else made[0]


@functools.cache
def _makes_new(func) -> bool:
    """Whether the operation neither writes into its inputs nor gives a view of them, as far as it says so itself."""
    return not any(part.alias_info for part in (*func._schema.arguments, *func._schema.returns))


def _tensors(values) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _key(value):
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.is_meta, value.is_conj()
    return tuple(map(_key, value)) if isinstance(value, (tuple, list)) else value
