"""A network's frozen layers, for the length of a run, as functions that keep little and ask for their weight when they compute."""
from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F

from . import pointwise, product, recipes
from .frozen import Fetch, as_it_lies, function_for
from .low_rank import fusible
from .recipes import Recipe, note, recipe

CHEAP = 512  # inputs of a linear layer: two operations each for a value of the output, which takes no longer than reading many such values from memory


def _group_norm(layer: torch.nn.GroupNorm, x: torch.Tensor, fetch: Fetch) -> torch.Tensor:
    with fetch(layer, x) as (weight, bias):
        return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)


def _layer_norm(layer: torch.nn.LayerNorm, x: torch.Tensor, fetch: Fetch) -> torch.Tensor:
    with fetch(layer, x) as (weight, bias):
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)


def _again(layer: torch.nn.Module) -> Callable | None:
    """How the layer's output is made once more from its input, which its function keeps."""
    if isinstance(layer, torch.nn.GroupNorm) and layer.num_channels >= recipes.WIDE:
        return _group_norm
    if isinstance(layer, torch.nn.LayerNorm) and layer.elementwise_affine and "loom_inplace_input" not in layer.__dict__:
        return _layer_norm if layer.normalized_shape[-1] >= recipes.WIDE else None
    return None


def _activation(layer: torch.nn.Module) -> Callable | None:
    """The same from pointwise.py. GEGLU is known by its name: ComfyUI and diffusers have one each."""
    if isinstance(layer, torch.nn.SiLU) and not layer.inplace:
        return lambda self, x: pointwise.silu(x)
    if isinstance(layer, torch.nn.GELU):
        return lambda self, x: pointwise.gelu(x, self.approximate)
    if type(layer).__name__ == "GEGLU" and isinstance(getattr(layer, "proj", None), torch.nn.Linear):
        return _geglu
    return None


def _geglu(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Its projection is four times as wide as what it makes it from, twice over: where it is cheap it is made again rather than kept."""
    proj = self.proj
    if not fusible(proj) or proj.in_features > CHEAP:
        return pointwise.geglu(proj(x))

    fetch, source = proj.loom_fetch, recipe(x)

    def halves(made: torch.Tensor) -> torch.Tensor:
        with fetch(proj, made) as (weight, bias):
            return product.linear(made, weight, bias)

    return pointwise.geglu(proj(x), recipes.then(source, halves))
@contextmanager
def replaced_forward(module: torch.nn.Module, forward: Callable) -> Iterator[None]:
    """`module.forward` is `forward(module, …)` inside, and exactly what it was outside."""
    had, before = "forward" in module.__dict__, module.__dict__.get("forward")
    module.forward = types.MethodType(forward, module)
    try:
        yield
    finally:
        if had:
            module.forward = before
        else:
            del module.forward


def replaced(layer: torch.nn.Module) -> bool:
    """Whether somebody else's `forward` stands in for the layer's own. Some put the layer's own back as an attribute."""
    forward = layer.__dict__.get("forward")
    own = getattr(forward, "__self__", None) is layer and getattr(forward, "__func__", None) is type(layer).forward
    return forward is not None and not own


@torch.inference_mode()  # outside it the flag of an inference tensor cannot be set again
def _ask_for_gradients(parameters: list[torch.nn.Parameter], wanted: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad = wanted


@contextmanager
def usable(module: torch.nn.Module) -> Iterator[None]:
    """Parameters and buffers that a module uses by itself, seen through normal tensors on the same storage: autograd refuses to keep inference tensors."""
    before = {(store, name): value for store in ("_parameters", "_buffers") for name, value in getattr(module, store).items()
              if value is not None and value.is_inference()}
    for (store, name), value in before.items():
        plain = torch.empty(0, dtype=value.dtype, device=value.device).set_(value.untyped_storage(), value.storage_offset(), value.size(), value.stride())
        getattr(module, store)[name] = torch.nn.Parameter(plain, requires_grad=False) if store == "_parameters" else plain
    try:
        yield
    finally:
        for (store, name), value in before.items():
            getattr(module, store)[name] = value


@contextmanager
def weights_on_demand(root: torch.nn.Module, fetch: Fetch, inplace_inputs: bool = False, plain: bool = False) -> Iterator[None]:
    """Inside, every layer below `root` that can runs as its frozen function, and no weight asks for a gradient.

    To be entered before adapters are in the tree. A layer whose `forward` somebody has replaced already (another pack's
    hook) is left to them. `plain`: only that, each layer for itself: no recipes, no activations, no fused adapters, torch's convolutions.
    """
    with ExitStack() as stack:
        asking = [p for p in root.parameters() if p.requires_grad]
        stack.callback(_ask_for_gradients, asking, True)
        _ask_for_gradients(asking, False)
        for layer in root.modules():
            if inplace_inputs and isinstance(layer, torch.nn.LayerNorm):
                _marked(stack, layer, "loom_inplace_input", True)
            forward = None if replaced(layer) else _frozen(layer, fetch, plain)
            if forward is None:
                stack.enter_context(usable(layer))
                continue
            if not plain:
                _marked(stack, layer, "loom_fetch", fetch)
            stack.enter_context(replaced_forward(layer, forward))
        yield


def _marked(stack: ExitStack, layer: torch.nn.Module, name: str, value: object) -> None:
    layer.__dict__[name] = value
    stack.callback(layer.__dict__.pop, name, None)


def _frozen(layer: torch.nn.Module, fetch: Fetch, plain: bool) -> Callable | None:
    """The `forward` that takes the place of the layer's own, or None where only its own will do."""
    function, again = function_for(layer), None if plain else _again(layer)
    if function is None:
        return None if plain else _activation(layer)

    def alone(self, x):
        return as_it_lies(self, x) if torch.compiler.is_compiling() else function.apply(x, self, fetch)

    def forward(self, x):
        if torch.compiler.is_compiling():
            return as_it_lies(self, x)
        x = x.contiguous()  # what the function keeps
        return note(function.apply(x, self, fetch), Recipe((x,), lambda kept: again(self, kept, fetch)))

    return forward if again else alone
