"""Layers that keep less and compute in one go: equal to torch's and PEFT's own, value and gradient, and what they keep is counted."""
from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from lora_loom.trainer.adapters import adapted
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.backbones.protocol import Batch, Conditioning
from lora_loom.trainer.config import AdapterConfig, LossConfig
from lora_loom.trainer.layers import conv, pointwise, product, recipes
from lora_loom.trainer.layers.low_rank import fusible, low_rank
from lora_loom.trainer.layers.on_demand import CHEAP, weights_on_demand
from lora_loom.trainer.layers.recipes import Recipe, note, recipe
from lora_loom.trainer.objective import Objective
from peft import LoraConfig, inject_adapter_in_model


@pytest.fixture(autouse=True)
def nothing_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "WIDE", 0)


@contextmanager
def fetch(layer: torch.nn.Module, like: torch.Tensor):
    yield tuple(None if p is None else p.detach().to(like) for p in (layer.weight, getattr(layer, "bias", None)))


@contextmanager
def counted(known: list[torch.Tensor]):
    """Bytes of the storages that are saved for backward inside, without those of `known`."""
    storages = {}
    ours = {t.untyped_storage().data_ptr() for t in known}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage()  # held, so that no address comes twice
        return t

    found: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield found
    found.append(sum(s.nbytes() for pointer, s in storages.items() if pointer not in ours))


CONVOLUTIONS = {  # (in, out, kernel), settings, (B, H, W); weights above LEAST_WEIGHT
    "3x3": ((160, 192, 3), {"padding": 1}, (1, 8, 8)),
    "batch": ((160, 192, 3), {"padding": 1}, (3, 5, 7)),
    "stride": ((160, 192, 3), {"padding": 1, "stride": 2}, (2, 9, 8)),
    "uneven stride and padding": ((160, 192, (3, 5)), {"padding": (0, 2), "stride": (1, 2), "bias": False}, (2, 6, 9)),
    "no padding": ((160, 192, 3), {}, (1, 4, 4)),
    "1x1": ((640, 640, 1), {}, (2, 3, 4)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_as_a_product(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "FEW_CELLS", conv.MOST_CELLS)
    torch.manual_seed(1)
    (inside, outside, kernel), settings, (b, h, w) = CONVOLUTIONS[name]
    layer = torch.nn.Conv2d(inside, outside, kernel, **settings).double().requires_grad_(False)
    x = torch.randn(b, inside, h, w, dtype=torch.float64, requires_grad=True)
    theirs = x.detach().clone().requires_grad_()
    expected = copy.deepcopy(layer)(theirs)
    grad = torch.randn_like(expected).movedim(1, -1).contiguous().movedim(-1, 1)
    with weights_on_demand(layer, fetch):
        assert conv.as_product(layer, x.shape, x)
        got = layer(x)
        got.backward(grad)
    expected.backward(grad)
    assert got.is_contiguous()
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(x.grad, theirs.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("held", [torch.bfloat16, torch.float32], ids=["held in bf16", "held in fp32"])
def test_a_convolution_as_a_product_in_bf16(name: str, held: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "LEAST_IN_BF16", 0)
    torch.manual_seed(1)
    (inside, outside, kernel), settings, (b, h, w) = CONVOLUTIONS[name]
    layer = torch.nn.Conv2d(inside, outside, kernel, **settings).to(held).requires_grad_(False)
    x = torch.randn(b, inside, h, w).bfloat16().requires_grad_()
    theirs = x.detach().double().requires_grad_()
    expected = copy.deepcopy(layer).double()(theirs)
    grad = torch.randn_like(expected).bfloat16()
    with product.in_bf16(True), weights_on_demand(layer, as_it_lies):
        assert conv.as_product(layer, x.shape, x)
        got = layer(x)
        got.backward(grad)
    expected.backward(grad.double())
    assert got.dtype == x.grad.dtype == torch.bfloat16 and got.is_contiguous()
    for mine, reference in ((got, expected), (x.grad, theirs.grad)):
        assert (mine.double() - reference).norm() <= 1e-2 * reference.norm()


@pytest.mark.parametrize("sizes", [(16, 2), (8, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("rank", [0, 4])
def test_a_column_of_cells_in_bf16(sizes: tuple[int, int], rank: int) -> None:
    """What SD1.5 makes of pictures 64 pixels wide: torch's own convolution gives something else there on CPUs with AMX."""
    torch.manual_seed(1)
    layer = torch.nn.Conv2d(64, 32, 3, stride=2, padding=1).bfloat16().requires_grad_(False)
    x = torch.randn(2, 64, *sizes).bfloat16().requires_grad_()
    branch = [torch.randn(rank, 64, 3, 3, requires_grad=True), torch.randn(32, rank, 1, 1, requires_grad=True)] if rank else []
    exact = [t.detach().double().requires_grad_() for t in (x, *branch)]
    expected = F.conv2d(exact[0], layer.weight.double(), layer.bias.double(), 2, 1)
    if rank:
        expected = expected + 0.5 * F.conv2d(F.conv2d(exact[0], exact[1], None, 2, 1), exact[2])
    with weights_on_demand(layer, fetch):
        got = low_rank(x, layer, *branch, 0.5) if rank else layer(x)
        found = torch.autograd.grad(got, [x, *branch[1:]], torch.ones_like(got))
    for mine, reference in zip((got, *found), (expected, *torch.autograd.grad(expected, [exact[0], *exact[2:]], torch.ones_like(expected)))):
        assert (mine.double() - reference).norm() <= 1e-2 * reference.norm()


@contextmanager
def as_it_lies(layer: torch.nn.Module, like: torch.Tensor):
    """As ComfyUI's backbone hands weights out on a CPU in bf16: those that it can multiply with as they are."""
    yield tuple(None if p is None else p.detach() if p.dtype == like.dtype or product.can_take(p, like) else p.detach().to(like)
                for p in (layer.weight, getattr(layer, "bias", None)))


@pytest.mark.parametrize(("rows", "taken"), [(4, True), (400, False)], ids=["few rows: the weight as it lies", "many: the weight is narrowed"])
def test_a_weight_that_is_held_in_fp32_computes_in_bf16(rows: int, taken: bool) -> None:
    """The same as one that is held in bf16, to bf16's rounding, forward and backward, with and without a branch; nothing wide is given or kept."""
    torch.manual_seed(2)
    layer, seen = torch.nn.Linear(160, 120).requires_grad_(False), []
    down, up = torch.randn(4, 160, requires_grad=True), torch.randn(120, 4, requires_grad=True)
    x, grad = torch.randn(rows, 160).bfloat16(), torch.randn(rows, 120).bfloat16()
    found = {}
    for held in (torch.float32, torch.float64):
        own = copy.deepcopy(layer).to(held)
        a, b, given = (t.detach().to(held if held == torch.float64 else t.dtype).requires_grad_() for t in (down, up, x))
        with product.in_bf16(True), weights_on_demand(own, as_it_lies):
            out = low_rank(given, own, a, b, 0.5) + own(given)
            out.backward(grad.to(out.dtype))
        found[held] = out, given.grad, a.grad, b.grad
        seen.append(out.dtype)
    assert seen == [torch.bfloat16, torch.float64]
    for mine, reference in zip(*found.values()):
        assert (mine.double() - reference).norm() <= 1e-2 * reference.norm()
    with product.in_bf16(True):
        assert product.can_take(layer.weight, x) and (product._narrowed(layer.weight, x) is layer.weight) is taken
    assert not product.can_take(layer.weight, x)


def test_how_torch_multiplies_is_changed_for_one_product_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What DoRA and OFT compute in fp32 stays in fp32, and an error leaves nothing behind."""
    before, seen = torch.get_float32_matmul_precision(), []
    x, weight = torch.randn(2, 64).bfloat16(), torch.randn(64, 64)

    def broken(*args):
        seen.append(torch.get_float32_matmul_precision())
        raise KeyboardInterrupt

    with product.in_bf16(True):
        assert product.can_take(weight, x) and torch.get_float32_matmul_precision() == before
        with monkeypatch.context() as changed, pytest.raises(KeyboardInterrupt):
            changed.setattr(F, "linear", broken)
            product.linear(x, weight, None)
        assert torch.get_float32_matmul_precision() == before
        product.back(x, weight)
        assert torch.get_float32_matmul_precision() == before
    assert seen == ["medium"] and not product.can_take(weight, x)
    with product.in_bf16(False):
        assert not product.can_take(weight, x)


@pytest.mark.parametrize("shape", [(8,), (2, 12), (1, 1, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_few_rows_times_a_large_weight(shape: tuple[int, ...], bias: bool) -> None:
    """The weight as the product's first factor: the same numbers to rounding, in the same layout."""
    torch.manual_seed(3)
    layer, x = torch.nn.Linear(1024, 1030, bias=bias).requires_grad_(False), torch.randn(*shape, 1024)
    assert product._is_few(x, layer.weight)
    found, exact = product.linear(x, layer.weight, layer.bias), layer.double()(x.double())
    assert found.is_contiguous() and found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    for other, weight in ((x, torch.randn(64, 1024)), (x.bfloat16(), torch.randn(1030, 1024).bfloat16()), (torch.randn(49, 1024), torch.randn(1030, 1024)),
                          (torch.randn(7, 1024), torch.randn(1030, 1024)), (torch.randn(0, 1024), torch.randn(1030, 1024))):
        assert not product._is_few(other, weight) and product.linear(other, weight, None).equal(F.linear(other, weight))


def test_which_convolutions_are_products() -> None:
    x, large = torch.randn(1, 160, 16, 16), torch.nn.Conv2d(1000, 1000, 3, padding=1)
    wide, one, grouped = torch.nn.Conv2d(160, 192, 3, padding=1), torch.nn.Conv2d(640, 640, 1), torch.nn.Conv2d(160, 320, 3, groups=1, dilation=2)
    assert not conv.as_product(wide, x.shape, x)  # not on demand
    with ExitStack() as stack:
        for layer in (wide, one, grouped, large):
            stack.enter_context(weights_on_demand(layer, fetch))
        assert conv.as_product(wide, (1, 160, 8, 8), x) and not conv.as_product(wide, x.shape, x) and not conv.as_product(wide, (2, 160, 8, 8), x)
        assert conv.as_product(large, (1, 1000, 16, 16), x) and not conv.as_product(large, (1, 1000, 16, 15), x.bfloat16())  # 36 MB
        assert not conv.as_product(large, (1, 1000, 17, 16), x) and not conv.as_product(large, (2, 1000, 16, 16), x)  # more than 256 cells
        assert not conv.as_product(wide, x.shape, x.half()) and not conv.as_product(wide, x.shape, x.to("meta"))
        assert not conv.as_product(wide, (1, 160, 4, 4), x.bfloat16()) and conv.as_product(wide, (1, 160, 2, 2), x.bfloat16())  # 69,120 values a cell
        assert conv.as_product(one, (1, 640, 8, 8), x) and conv.as_product(one, (1, 640, 16, 16), x.bfloat16())  # no windows to gather
        assert not conv.as_product(grouped, x.shape, x)
    with weights_on_demand(wide, fetch, plain=True):
        assert not conv.as_product(wide, x.shape, x)


BASES = {
    "linear": (lambda: torch.nn.Linear(6, 5), (2, 3, 6)),
    "linear, no bias, two axes": (lambda: torch.nn.Linear(6, 5, bias=False), (4, 6)),
    "conv": (lambda: torch.nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 4)),
    "conv with stride": (lambda: torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 6, 7)),
    "conv 1x1": (lambda: torch.nn.Conv2d(4, 6, 1), (2, 4, 3, 3)),
}


def adapted_by_peft(name: str, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(3)
    make, shape = BASES[name]
    network = torch.nn.Sequential(make().to(dtype).requires_grad_(False))
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=2.1, target_modules=["0"]), network)
    layer = network[0]
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    return layer.to(dtype), torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=["fp32", "bf16"])
def test_a_layer_with_its_branch_equals_peft(name: str, dtype: torch.dtype, within: float) -> None:
    layer, x = adapted_by_peft(name, dtype)
    wide = copy.deepcopy(layer).double()  # what both round
    theirs, ours = x.double().requires_grad_(), x.clone().requires_grad_()
    down, up = (layer.lora_A["default"].weight.detach().float().requires_grad_(), layer.lora_B["default"].weight.detach().float().requires_grad_())
    expected = wide(theirs)
    grad = torch.randn(expected.shape).to(dtype)
    expected.backward(grad.double())
    with weights_on_demand(layer.base_layer, fetch):
        got = low_rank(ours, layer.base_layer, down, up, layer.scaling["default"])
        got.backward(grad)
    pairs = [(got, expected), (ours.grad, theirs.grad), (down.grad, wide.lora_A["default"].weight.grad), (up.grad, wide.lora_B["default"].weight.grad)]
    assert down.grad.dtype == up.grad.dtype == torch.float32 and got.dtype == dtype
    for mine, reference in pairs:
        assert (mine.double() - reference).norm() <= within * reference.norm()


@pytest.mark.parametrize("name", BASES)
def test_gradcheck(name: str) -> None:
    layer, x = adapted_by_peft(name, torch.float64)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with weights_on_demand(layer.base_layer, fetch):
        assert torch.autograd.gradcheck(lambda *a: low_rank(a[0], layer.base_layer, a[1], a[2], 0.7), (x.requires_grad_(), down, up))


def test_strided_inputs_and_gradients_and_changes_in_place() -> None:
    layer, x = adapted_by_peft("linear", torch.float32)
    theirs, ours = (x.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for _ in range(2))
    expected = layer(theirs).transpose(0, 1) * 2
    with weights_on_demand(layer.base_layer, fetch):
        out = low_rank(ours, layer.base_layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"])
        out *= 2  # as blocks do
        got = out.transpose(0, 1)
    grad = torch.randn(got.shape).flip(0)
    expected.backward(grad)
    got.backward(grad)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_layers_on_one_input_keep_it_once_and_nothing_beside() -> None:
    norm, layers = torch.nn.LayerNorm(64), [torch.nn.Linear(64, 64) for _ in range(3)]
    root = torch.nn.ModuleList([norm, *layers]).requires_grad_(False)
    x = torch.randn(2, 50, 64, requires_grad=True)
    branches = [(torch.randn(4, 64, requires_grad=True), torch.randn(64, 4, requires_grad=True)) for _ in layers]
    with weights_on_demand(root, fetch), counted([x, *(t for pair in branches for t in pair)]) as kept:
        y = norm(x)
        out = [low_rank(y, layer, down, up, 0.5) for layer, (down, up) in zip(layers, branches)]
    assert kept == [2 * 50 * 2 * 4]  # the norm's mean and deviation; x is kept anyway, y and the inner products are not
    torch.stack(out).sum().backward()
    plain = x.detach().clone().requires_grad_()
    sum((F.linear(norm(plain), layer.weight, layer.bias) + 0.5 * norm(plain) @ down.t() @ up.t()).sum()
        for layer, (down, up) in zip(layers, branches)).backward()
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-4, atol=1e-4)


def test_a_hooked_or_plain_layer_is_not_fused() -> None:
    layer = torch.nn.Linear(4, 4)
    assert not fusible(layer)
    with weights_on_demand(layer, fetch):
        assert fusible(layer)
        handle = layer.register_forward_hook(lambda *_: None)
        assert not fusible(layer)
        handle.remove()
    with weights_on_demand(layer, fetch, plain=True):
        assert not fusible(layer) and "forward" in layer.__dict__
    assert not {"loom_fetch", "forward"} & set(layer.__dict__)


# ---------------------------------------------------------------- activations and recipes

ACTIVATIONS = {"silu": (lambda x: pointwise._Silu.apply(x, recipe(x)), F.silu), "gelu": (pointwise.gelu, F.gelu),
               "gelu, tanh": (lambda x: pointwise.gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh")),
               "geglu": (pointwise.geglu, lambda x: x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1]))}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_torch(name: str) -> None:
    ours, theirs = ACTIVATIONS[name]
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.equal(ours(x), theirs(x))
    assert torch.autograd.gradcheck(ours, (x,))
    with counted([x]) as kept:
        ours(x)
    assert kept == [0]
    if name == "silu":
        return  # without a recipe it is torch's own
    again = recipe(ours(x))
    assert [t.data_ptr() for t in again.tensors] == [x.data_ptr()] and torch.equal(again.make(*again.tensors), theirs(x))


def test_a_recipe_is_for_the_tensor_as_it_was() -> None:
    x = torch.randn(4, requires_grad=True)
    y = x * 2
    note(y, Recipe((x,), lambda kept: kept * 2))
    assert recipe(y).tensors[0] is x
    y += 1
    assert recipe(y).tensors[0] is y
    with torch.no_grad():
        assert not hasattr(note(x * 2, Recipe((x,), lambda kept: kept * 2)), "loom_recipe")  # nobody will ask, and x would be held


def test_narrow_networks_keep_what_torch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "WIDE", 8)
    for norm, shape in ((torch.nn.LayerNorm, (3, 7)), (torch.nn.LayerNorm, (3, 8)), (lambda c: torch.nn.GroupNorm(1, c), (3, 7, 2)), (lambda c: torch.nn.GroupNorm(1, c), (3, 8, 2))):
        layer, x = norm(shape[1]).requires_grad_(False), torch.randn(shape, requires_grad=True)
        with weights_on_demand(layer, fetch):
            y = layer(x)
        assert (recipe(y).tensors[0] is y) == (shape[1] == 7)
    for activation in (pointwise.gelu, pointwise.geglu):
        for width in (30, 32):
            out = activation(torch.randn(2, width, requires_grad=True))
            assert (recipe(out).tensors[0] is out) == (width == 30)


class GEGLU(torch.nn.Module):
    """As ComfyUI and diffusers have it; theirs are tried in the whole networks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(width, 8 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


@pytest.mark.parametrize(("width", "cells"), [(64, 0), (CHEAP + 8, 8 * (CHEAP + 8))], ids=["cheap, made again", "dear, kept once"])
def test_a_gated_projection(width: int, cells: int) -> None:
    torch.manual_seed(2)
    network = torch.nn.Sequential(torch.nn.LayerNorm(width), GEGLU(width)).requires_grad_(False)
    x = torch.randn(2, 5, width, requires_grad=True)
    plain = x.detach().clone().requires_grad_()
    expected = copy.deepcopy(network)(plain)
    with weights_on_demand(network, fetch), counted([x]) as kept:
        got = network(x)
    assert kept == [2 * 5 * 4 * (2 + cells)]  # the norm's two numbers a row
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(got)
    got.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-5, atol=1e-5)


def test_a_norm_an_activation_and_an_adapted_convolution_keep_one_tensor() -> None:
    network = torch.nn.Sequential(torch.nn.GroupNorm(2, 8), torch.nn.SiLU(), torch.nn.Conv2d(8, 8, 3, padding=1)).requires_grad_(False)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    down, up = torch.randn(2, 8, 3, 3, requires_grad=True), torch.randn(8, 2, 1, 1, requires_grad=True)
    with weights_on_demand(network, fetch), counted([x, down, up]) as kept:
        out = low_rank(network[1](network[0](x)), network[2], down, up, 1.0)
    assert kept == [2 * 2 * 2 * 4]
    out.square().sum().backward()
    ours = down.grad.clone(), up.grad.clone(), x.grad.clone()
    down.grad = up.grad = x.grad = None
    inner = F.silu(network[0](x))
    (network[2](inner) + F.conv2d(F.conv2d(inner, down, padding=1), up)).square().sum().backward()
    for mine, theirs in zip(ours, (down.grad, up.grad, x.grad)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_recipe_holds_no_tensor_beside_those_that_are_saved() -> None:
    """Checkpointing frees what is saved, and could not free what a function holds."""
    network = torch.nn.Sequential(torch.nn.GroupNorm(2, 8), torch.nn.SiLU(), torch.nn.GELU(), GEGLU(8)).requires_grad_(False)

    def held(function: object, depth: int = 0) -> list[object]:
        cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        return [c for c in cells if isinstance(c, (torch.Tensor, Recipe, tuple))] + [t for c in cells if callable(c) and depth < 9 for t in held(c, depth + 1)]

    x = torch.randn(2, 8, 8, 8, requires_grad=True)
    with weights_on_demand(network, fetch):
        for layer in network:
            x = layer(x)
            made = recipe(x)
            assert made.tensors[0] is not x and held(made.make) == []
            assert torch.equal(made.make(*made.tensors), x)


def test_a_checkpointed_block_keeps_its_input_alone() -> None:
    from lora_loom.trainer.estimate import Peak

    blocks = [torch.nn.Sequential(torch.nn.GroupNorm(2, 8), torch.nn.SiLU(), torch.nn.Conv2d(8, 8, 3, padding=1)).requires_grad_(False) for _ in range(6)]
    down, up = torch.randn(2, 8, 3, 3, requires_grad=True), torch.randn(8, 2, 1, 1, requires_grad=True)
    x = torch.randn(1, 8, 16, 16, requires_grad=True)
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(weights_on_demand(block, fetch))
        with Peak() as seen:
            y = x * 1
            for block in blocks:
                y = torch.utils.checkpoint.checkpoint(lambda x, b=block: x + low_rank(b[1](b[0](x)), b[2], down, up, 1.0), y, use_reentrant=False)
            assert seen.live <= 7.5 * x.numel() * 4
        y.sum().backward()
    assert down.grad is not None


def test_what_a_small_convolution_gives_may_be_changed_in_place() -> None:
    layer = torch.nn.Conv2d(160, 192, 3, padding=1).requires_grad_(False)
    down, up = torch.randn(2, 160, 3, 3, requires_grad=True), torch.randn(192, 2, 1, 1, requires_grad=True)
    x = torch.randn(1, 160, 4, 4, requires_grad=True)
    with weights_on_demand(layer, fetch):
        for out in (layer(x), low_rank(x, layer, down, up, 1.0)):
            out += 1
            out.sum().backward()


# ---------------------------------------------------------------- a whole network

@pytest.mark.parametrize("checkpointing", [0, 2, 1])
def test_a_whole_step_fast_and_plain(checkpointing: int) -> None:
    """The toy UNet with everything adapted: the same loss and gradients to 1e-5, and less kept."""
    model = backbone.load("toy_base", "cpu", "fp32")
    generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.randn(2, 4, 8, 8, generator=generator), ["", ""], [Conditioning(torch.randn(1, 77, 64, generator=generator)) for _ in range(2)])
    config = AdapterConfig(rank=4, alpha=4.0, targets="all linear+conv")
    found, kept = {}, {}
    for plain in (True, False):
        with model.training("fp32", False, checkpointing, plain=plain), adapted(model, config, 1) as adapters, torch.enable_grad():
            with torch.no_grad():
                for adapter in adapters:
                    adapter.named()["lora_up.weight"].normal_(std=0.05, generator=generator.manual_seed(len(adapter.key)))
            objective = Objective(model, adapters, LossConfig())
            question = objective.draw(batch, torch.Generator().manual_seed(5))
            with counted(list(model.unet.parameters())) as count:
                loss = objective(question)
            loss.backward()
            found[plain] = [loss.detach(), *(p.grad.clone() for a in adapters for p in a.parameters())]
            kept[plain] = count[0]
    for mine, theirs in zip(found[False], found[True]):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()
    assert kept[False] <= {0: 0.6, 2: 0.7, 1: 1.0}[checkpointing] * kept[True]
