"""Frozen layers that keep nothing: equal to torch's own layers, and what is kept is counted."""
from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from lora_loom.trainer.layers.frozen import function_for
from lora_loom.trainer.layers.on_demand import replaced_forward, weights_on_demand

LAYERS = {
    "linear": (lambda: torch.nn.Linear(6, 5), (3, 4, 6)),
    "linear without bias": (lambda: torch.nn.Linear(6, 5, bias=False), (3, 6)),
    "linear on four axes": (lambda: torch.nn.Linear(6, 2), (2, 3, 2, 6)),
    "conv": (lambda: torch.nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 5)),
    "conv 1x1 without bias": (lambda: torch.nn.Conv2d(4, 6, 1, bias=False), (2, 4, 5, 5)),
    "conv with stride, odd size": (lambda: torch.nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 6)),
    "conv with groups and dilation": (lambda: torch.nn.Conv2d(4, 8, 3, stride=(1, 2), padding=(2, 1), dilation=2, groups=2), (2, 4, 9, 8)),
    "group norm": (lambda: torch.nn.GroupNorm(2, 6), (3, 6, 4, 5)),
    "group norm without weights": (lambda: torch.nn.GroupNorm(3, 6, affine=False), (2, 6, 4, 4)),
    "group norm on three axes": (lambda: torch.nn.GroupNorm(2, 4), (3, 4, 7)),
    "layer norm": (lambda: torch.nn.LayerNorm(6), (3, 4, 6)),
    "layer norm over two axes": (lambda: torch.nn.LayerNorm((4, 6)), (3, 4, 6)),
    "layer norm without weights": (lambda: torch.nn.LayerNorm(6, elementwise_affine=False), (2, 6)),
    "rms norm": (lambda: torch.nn.RMSNorm(6, eps=1e-6), (3, 4, 6)),
    "rms norm over two axes, without weights": (lambda: torch.nn.RMSNorm((4, 6), elementwise_affine=False), (3, 4, 6)),
}


@contextmanager
def fetch(layer: torch.nn.Module, like: torch.Tensor):
    """As a backbone's: the weights in `like`'s dtype."""
    yield tuple(None if p is None else p.detach().to(like) for p in (layer.weight, getattr(layer, "bias", None)))


def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(5)
    make, shape = LAYERS[name]
    layer = make().to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer.requires_grad_(False), torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("name", LAYERS)
def test_equal_to_torch(name: str) -> None:
    layer, x = build(name)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = copy.deepcopy(layer)(theirs)
    with weights_on_demand(layer, fetch):
        got = layer(ours)
    assert isinstance(got.grad_fn, torch.autograd.function.BackwardCFunction)  # ours, not torch's own
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    grad = torch.randn_like(expected)
    got.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck_in_fp64(name: str) -> None:
    layer, x = build(name, torch.float64)
    with weights_on_demand(layer, fetch):
        assert torch.autograd.gradcheck(layer, (x.requires_grad_(),), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "conv", "group norm", "layer norm"])
def test_strided_inputs_and_gradients(name: str) -> None:
    layer, x = build(name)
    ours = x.transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    assert not ours.is_contiguous()
    theirs = x.clone().requires_grad_()
    plain = copy.deepcopy(layer)
    with weights_on_demand(layer, fetch):
        out = layer(ours)
        expected = plain(theirs)
        grad = torch.randn(*reversed(out.shape)).permute(*reversed(range(out.ndim)))
        out.backward(grad)
        expected.backward(grad.contiguous())
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_only_norms_keep_their_input(name: str) -> None:
    """Linear and convolution keep nothing; a norm its input and a mean and deviation a row; a layer norm without weights its output, an RMS norm its input."""
    layer, x = build(name)
    x.requires_grad_()
    kept: list[torch.Tensor] = []
    with weights_on_demand(layer, fetch), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = layer(x)
    if "norm" not in name:
        assert kept == []
    elif "rms" in name:
        assert [t.data_ptr() for t in kept] == [x.data_ptr()]
    elif name == "layer norm without weights":
        assert [t.numel() for t in kept] == [x.numel(), 2] and kept[0].data_ptr() == out.data_ptr()
    else:
        rows = x.shape[0] * layer.num_groups if "group" in name else x.numel() // torch.Size(layer.normalized_shape).numel()
        assert [t.numel() for t in kept] == [x.numel(), rows, rows] and kept[0].data_ptr() == x.data_ptr()
    out.sum().backward()
    assert x.grad is not None


def test_a_frozen_network_keeps_less_than_torch() -> None:
    """A base in bf16 that computes in fp32: torch's graph holds a cast copy of every weight, ours none."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 64)).bfloat16().requires_grad_(False)
    x = torch.randn(2, 64, requires_grad=True)

    def kept(run) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            run().sum().backward()
        return sum(sizes)

    def plain() -> torch.Tensor:
        h = x
        for layer in network:
            weight, bias = layer.weight.float(), layer.bias.float()
            h = torch.nn.functional.linear(h, weight, bias) if isinstance(layer, torch.nn.Linear) else torch.nn.functional.layer_norm(h, (64,), weight, bias)
        return h

    def ours() -> torch.Tensor:
        with weights_on_demand(network, fetch):
            return network(x)

    assert torch.equal(ours(), plain())
    assert kept(ours) == 2 * 64 + 4
    assert kept(plain) >= 2 * 64 * 64


def test_weights_are_asked_for_again_in_backward() -> None:
    """A pager may move them in between: backward uses what `fetch` yields then, and always gives back what it took."""
    layer, x = build("linear")
    open_now, asked = [], []

    @contextmanager
    def pager(layer, like):
        open_now.append(1)
        asked.append(like.shape)
        try:
            yield layer.weight.detach(), layer.bias.detach()
        finally:
            open_now.pop()

    x.requires_grad_()
    with weights_on_demand(layer, pager):
        out = layer(x)
    assert open_now == [] and asked == [x.shape]
    with torch.no_grad():
        layer.weight.copy_(torch.ones_like(layer.weight))
    out.backward(torch.ones_like(out))
    assert open_now == [] and asked == [x.shape, out.shape]
    assert torch.equal(x.grad, torch.full_like(x, 5.0))  # five outputs, weights of one


def test_inference_tensors_train() -> None:
    """What ComfyUI hands over: torch's own layer refuses it in backward, ours does not."""
    with torch.inference_mode():
        layer = torch.nn.Linear(4, 3).requires_grad_(False)
    x = torch.randn(2, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="[Ii]nference"):
        layer(x).sum().backward()

    @contextmanager
    def as_it_is(layer, like):
        yield layer.weight, layer.bias

    with weights_on_demand(layer, as_it_is):
        layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(2, 4))


def test_an_input_changed_in_place_after_a_layer_norm() -> None:
    """ComfyUI's CLIP does x += … on its residual stream: with `inplace_inputs` the gradient is right all the same."""
    layer, x = build("layer norm")

    def run(norm: torch.nn.Module) -> torch.Tensor:
        start = x.clone().requires_grad_()
        stream = start * 1.0
        out = norm(stream)
        stream += out.detach()
        (out.square().sum() + stream.sum()).backward()
        return start.grad

    expected = x.clone().requires_grad_()
    normed = copy.deepcopy(layer)(expected)
    (normed.square().sum() + expected.sum()).backward()
    with weights_on_demand(layer, fetch, inplace_inputs=True):
        torch.testing.assert_close(run(layer), expected.grad, rtol=1e-5, atol=1e-5)
    assert "loom_inplace_input" not in layer.__dict__
    with weights_on_demand(layer, fetch), pytest.raises(RuntimeError, match="inplace"):  # torch notices: no wrong gradient in silence
        run(layer)


def test_what_cannot_be_frozen_is_left_alone() -> None:
    reflect = torch.nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect").requires_grad_(False)
    same = torch.nn.Conv2d(2, 2, 3, padding="same").requires_grad_(False)
    hooked = torch.nn.Linear(2, 2).requires_grad_(False)
    hooked.forward = lambda x: x * 3  # another pack's doing
    network = torch.nn.ModuleList([reflect, same, hooked, torch.nn.SiLU(inplace=True)])
    assert function_for(reflect) is None and function_for(same) is None
    before = [dict(m.__dict__) for m in network]
    with weights_on_demand(network, fetch):
        assert [dict(m.__dict__) for m in network] == before
        assert torch.equal(hooked(torch.ones(2)), torch.full((2,), 3.0))


def test_weights_that_ask_for_gradients_do_so_again_afterwards() -> None:
    """ComfyUI's parameters do, made as they are inside inference mode."""
    with torch.inference_mode():
        network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Embedding(3, 2))
    network[1].weight.requires_grad = False
    with weights_on_demand(network, fetch):
        assert not any(p.requires_grad for p in network.parameters())
        x = torch.ones(1, 2, requires_grad=True)
        network[0](x).sum().backward()
        assert x.grad is not None and network[0].weight.grad is None
    assert [p.requires_grad for p in network.parameters()] == [True, True, False]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_forward_is_restored_after_an_error(error: type[BaseException]) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2), torch.nn.Conv2d(2, 2, 1)).requires_grad_(False)
    before = [sorted(m.__dict__) for m in network.modules()]
    with pytest.raises(error), weights_on_demand(network, fetch, inplace_inputs=True):
        assert all("forward" in m.__dict__ for m in network)
        raise error
    assert [sorted(m.__dict__) for m in network.modules()] == before
    assert all(m.forward.__func__ is type(m).forward for m in network)


def test_a_forward_that_was_replaced_before_comes_back() -> None:
    layer = torch.nn.Linear(2, 2)
    mine = lambda x: x
    layer.forward = mine
    with replaced_forward(layer, lambda self, x: x + 1):
        assert layer(torch.zeros(1)).item() == 1
    assert layer.__dict__["forward"] is mine
