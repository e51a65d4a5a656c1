"""Our adapters against plain PEFT: the same numbers forward and backward, and nothing left behind."""
from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from lora_loom.trainer import optim
from lora_loom.trainer.adapters import Adapter, adapted, eject, select, size
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.backbones.diffusers_load import Parts
from lora_loom.trainer.backbones.protocol import Batch, Conditioning
from lora_loom.trainer.config import ALGORITHMS, TARGETS, AdapterConfig, LoomConfig, OptimConfig
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.runs.export import for_diffusers
from lora_loom.trainer.runs.lora_names import read
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

LINEAR = (r"attn[12]\.to_", r"ff\.net", r"time_emb_proj")
CONV = (r"conv[12]$", r"conv_shortcut", r"samplers\.0\.conv", r"proj_in$")  # SD1.5 projects by 1 x 1 convolutions


@pytest.fixture
def model() -> backbone.DiffusersModel:
    return backbone.load("toy_base", "cpu", "fp32")


def inputs(rows: int = 2) -> tuple[torch.Tensor, torch.Tensor, Batch]:
    """Noisy latents (rows, 4, 8, 8), timesteps, and a batch with text embeddings of the toy base's width."""
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(rows, 4, 8, 8, generator=generator)
    conditioning = [Conditioning(torch.randn(1, 77, 64, generator=generator)) for _ in range(rows)]
    return latents, torch.tensor([10, 900, 400, 0])[:rows], Batch(latents, [""] * rows, conditioning)


def fill(adapters: list[Adapter]) -> None:
    """Values as after some training: B is no longer zero, a magnitude no longer the weight's norm."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for adapter in adapters:
            adapter.named()["lora_up.weight"].copy_(torch.randn(adapter.named()["lora_up.weight"].shape, generator=generator) * 0.05)
            adapter.settle()
            if "dora_scale" in adapter.named():
                adapter.named()["dora_scale"].mul_(1 + 0.1 * torch.rand(adapter.named()["dora_scale"].shape, generator=generator))


def reference(root: torch.nn.Module, names: dict[str, str], config: AdapterConfig, adapters: list[Adapter]) -> dict[str, LoraLayer]:
    """{kohya key: PEFT's layer} in `root`, adapted by PEFT alone, with our adapters' values."""
    peft = LoraConfig(r=config.rank, lora_alpha=config.alpha, use_dora=config.algorithm == "dora", target_modules=list(names))
    inject_adapter_in_model(peft, root)
    root.eval()
    found = {names[own]: m for own, m in root.named_modules() if isinstance(m, LoraLayer)}
    for adapter in adapters:
        theirs = found[adapter.key]
        with torch.no_grad():
            theirs.lora_A["default"].weight.copy_(adapter.named()["lora_down.weight"])
            theirs.lora_B["default"].weight.copy_(adapter.named()["lora_up.weight"])
            if "dora_scale" in adapter.named():
                theirs.lora_magnitude_vector["default"].weight.copy_(adapter.named()["dora_scale"].reshape(theirs.lora_magnitude_vector["default"].weight.shape))
    return found


@pytest.mark.parametrize("algorithm", ["lora", "dora"])
@pytest.mark.parametrize("patterns", [LINEAR, CONV], ids=["linear", "conv"])
def test_equal_to_peft_forward_and_backward(model: backbone.DiffusersModel, algorithm: str, patterns: tuple[str, ...]) -> None:
    config = AdapterConfig(algorithm=algorithm, rank=3, alpha=5.0, target_modules=patterns)
    names = select(model, config)["lora_unet"]
    plain = copy.deepcopy(model.unet)
    noisy, timesteps, batch = inputs()
    with model.training("fp32", False, False), adapted(model, config, seed=1) as adapters, torch.enable_grad():
        fill(adapters)
        assert len(adapters) == len(names) > 5 and {a.key for a in adapters} == set(names.values())
        theirs = reference(plain, names, config, adapters)
        ours = model.predict(noisy, timesteps, batch, batch.conditioning)
        expected = plain(noisy, timesteps, encoder_hidden_states=torch.cat([c.context for c in batch.conditioning])).sample
        torch.testing.assert_close(ours, expected, rtol=0, atol=5e-6)
        ours.square().mean().backward()
        expected.square().mean().backward()
        for adapter in adapters:
            layer = theirs[adapter.key]
            pairs = [(adapter.named()["lora_down.weight"], layer.lora_A["default"].weight), (adapter.named()["lora_up.weight"], layer.lora_B["default"].weight)]
            if algorithm == "dora":
                pairs.append((adapter.named()["dora_scale"], layer.lora_magnitude_vector["default"].weight))
            for mine, their in pairs:
                torch.testing.assert_close(mine.grad, their.grad.reshape(mine.grad.shape), rtol=1e-5, atol=1e-6)
                assert mine.grad.abs().max() > 0
        assert len(pairs) == (3 if algorithm == "dora" else 2) == len(adapters[0].parameters())


@pytest.mark.parametrize("algorithm", ["lora", "dora"])
def test_equal_to_peft_in_the_text_encoder(model: backbone.DiffusersModel, algorithm: str) -> None:
    config = AdapterConfig(algorithm=algorithm, rank=2, alpha=2.0, train_text_encoder=True)
    names = select(model, config)["lora_te"]
    assert len(names) == 2 * 6  # two layers: q k v out fc1 fc2
    plain = copy.deepcopy(model.text_encoders[0])
    with model.training("fp32", True, False), adapted(model, config, seed=1) as adapters, torch.enable_grad():
        fill(adapters)
        text = [a for a in adapters if a.key.startswith("lora_te_")]
        theirs = reference(plain, names, config, text)
        tokens = backbone.chunks(model.tokenizers[0], "a red circle")
        ours, expected = model.encode_captions(["a red circle"])[0].context, plain(tokens).last_hidden_state
        torch.testing.assert_close(ours, expected, rtol=0, atol=5e-6)
        ours.square().mean().backward()
        expected.square().mean().backward()
        for adapter in text:
            torch.testing.assert_close(adapter.named()["lora_up.weight"].grad, theirs[adapter.key].lora_B["default"].weight.grad, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(adapter.named()["lora_down.weight"].grad, theirs[adapter.key].lora_A["default"].weight.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1.0), (4, 1.0), (4, 16.0), (8, 0.5)])
def test_scale_is_alpha_over_rank(model: backbone.DiffusersModel, rank: int, alpha: float) -> None:
    """A linear layer's output is W x + b + alpha/rank B A x."""
    config = AdapterConfig(rank=rank, alpha=alpha, target_modules=(r"down_blocks\.0.*attn1\.to_out\.0$",))
    with adapted(model, config, seed=0) as [adapter], torch.no_grad():
        fill([adapter])
        base = adapter.layer.get_base_layer()
        x = torch.randn(5, base.in_features, generator=torch.Generator().manual_seed(0))
        expected = x @ base.weight.T + base.bias + alpha / rank * (x @ adapter.named()["lora_down.weight"].T @ adapter.named()["lora_up.weight"].T)
        torch.testing.assert_close(adapter.layer(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["lora", "dora"])
def test_a_new_adapter_changes_nothing_yet(model: backbone.DiffusersModel, algorithm: str) -> None:
    noisy, timesteps, batch = inputs()
    with torch.no_grad():
        before = model.predict(noisy, timesteps, batch, batch.conditioning)
        with adapted(model, AdapterConfig(algorithm=algorithm, targets="all linear+conv"), seed=0):
            torch.testing.assert_close(model.predict(noisy, timesteps, batch, batch.conditioning), before, rtol=0, atol=2e-5 if algorithm == "dora" else 0)


def test_first_values_depend_on_seed_and_name_alone(model: backbone.DiffusersModel) -> None:
    """A is PEFT's Kaiming-uniform with a = √5: uniform between ±1/√fan_in."""
    def start(seed: int, **config: object) -> dict[str, torch.Tensor]:
        with adapted(model, AdapterConfig(rank=16, **config), seed) as adapters:
            return {a.key: a.named()["lora_down.weight"].detach().clone() for a in adapters}

    first, again, other, wider = start(1), start(1), start(2), start(1, targets="all linear+conv")
    assert len(first) == 32  # 4 transformer blocks x 2 attentions x 4
    for key, weight in first.items():
        assert torch.equal(weight, again[key]) and torch.equal(weight, wider[key]) and not torch.equal(weight, other[key])
    for weight in wider.values():
        bound = weight[0].numel() ** -0.5
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def real(family: str) -> backbone.DiffusersModel:
    """A full-size UNet on the meta device, from diffusers' own configuration of that family."""
    sd15 = {"cross_attention_dim": 768}
    sdxl = {
        "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True, "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    }
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**(sdxl if family == "sdxl" else sd15)), AutoencoderTiny()
        text = [CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12))]
    return backbone.DiffusersModel(Parts(family, family, unet, vae, text * (2 if family == "sdxl" else 1), [], DDPMScheduler()), torch.device("meta"))


def expected_layers(unet: torch.nn.Module, targets: str) -> set[str]:
    """The layers' names by diffusers' classes, not by patterns."""
    own = {id(m): name for name, m in unet.named_modules()}
    found: list[torch.nn.Module | None] = []
    for m in unet.modules():
        if isinstance(m, Attention):
            found += [m.to_q, m.to_k, m.to_v, m.to_out[0]]
        if isinstance(m, FeedForward) and targets != "attention":
            found += [m.net[0].proj, m.net[2]]
        if targets.startswith("all"):
            if isinstance(m, Transformer2DModel):
                found += [m.proj_in, m.proj_out]
            if isinstance(m, ResnetBlock2D):
                found += [m.time_emb_proj]
        if targets == "all linear+conv":
            if isinstance(m, ResnetBlock2D):
                found += [m.conv1, m.conv2, m.conv_shortcut]
            if isinstance(m, (Downsample2D, Upsample2D)):
                found += [m.conv]
    return {own[id(m)] for m in found if m is not None}


@pytest.mark.parametrize(("family", "counts"), [("sd15", (128, 160, 214, 278)), ("sdxl", (560, 700, 739, 788))])
def test_targets_select_the_layers_of_full_size_unets(family: str, counts: tuple[int, ...]) -> None:
    model = real(family)
    for targets, count in zip(TARGETS, counts):
        chosen = select(model, AdapterConfig(targets=targets))["lora_unet"]
        assert set(chosen) == expected_layers(model.unet, targets)
        assert len(chosen) == len(set(chosen.values())) == count
        assert all(key == "lora_unet_" + own.replace(".", "_") for own, key in chosen.items())
    text = select(model, AdapterConfig(train_text_encoder=True))
    prefixes = ["lora_te"] if family == "sd15" else ["lora_te1", "lora_te2"]
    assert list(text) == ["lora_unet", *prefixes] and [len(text[p]) for p in prefixes] == [12 * 6] * len(prefixes)
    assert f"{prefixes[0]}_text_model_encoder_layers_11_self_attn_q_proj" in text[prefixes[0]].values()


def snapshot(root: torch.nn.Module) -> list[tuple]:
    """Everything that could be left behind: modules by identity, their attributes, parameters by identity and flag."""
    return [(name, id(m), type(m), sorted(m.__dict__), sorted(m._modules), [(k, id(p), p.requires_grad, p.data_ptr()) for k, p in m._parameters.items() if p is not None])
            for name, m in root.named_modules()]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_ejected_trees_are_the_very_same(model: backbone.DiffusersModel, error: type[BaseException] | None) -> None:
    roots = [model.unet, *model.text_encoders]
    before, values = [snapshot(r) for r in roots], {k: v.clone() for k, v in model.unet.state_dict().items()}
    config = AdapterConfig(algorithm="dora", targets="all linear+conv", dropout=0.1, train_text_encoder=True)
    try:
        with adapted(model, config, seed=0):
            assert any(isinstance(m, LoraLayer) for r in roots for m in r.modules()) and [snapshot(r) for r in roots] != before
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert [snapshot(r) for r in roots] == before
    assert not any("peft" in type(m).__module__ for r in roots for m in r.modules())
    assert all(torch.equal(v, values[k]) for k, v in model.unet.state_dict().items())
    eject(model.unet)  # harmless where nothing is injected
    assert snapshot(model.unet) == before[0]


@pytest.mark.parametrize(("pattern", "words"), [("attn1.(", ("invalid pattern", "regular expressions")), ("no_such_layer", ("no_such_layer", "finds no layer", "correct or remove"))])
def test_bad_patterns(model: backbone.DiffusersModel, pattern: str, words: tuple[str, ...]) -> None:
    with pytest.raises(LoomError) as error:
        select(model, AdapterConfig(target_modules=("attn1.to_q rank=4", pattern)))
    assert all(word in str(error.value) for word in words) and error.value.fix == {"target_modules": ["attn1.to_q rank=4"]}


@pytest.mark.parametrize("algorithm", ["lora", "dora"])
def test_bf16_compute_keeps_fp32_masters(algorithm: str) -> None:
    gradients = {}
    for precision in ("fp32", "bf16"):
        model = backbone.load("toy_base", "cpu", precision)
        noisy, timesteps, batch = inputs(4)
        with model.training(precision, False, False), adapted(model, AdapterConfig(algorithm=algorithm, targets="all linear+conv", rank=4, alpha=4), 1) as adapters:
            with torch.enable_grad():
                fill(adapters)
                assert adapters[0].layer.get_base_layer().weight.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
                out = model.predict(noisy, timesteps, batch, batch.conditioning)
                (out - batch.latents).square().mean().backward()
            assert {p.dtype for a in adapters for p in a.parameters()} == {p.grad.dtype for a in adapters for p in a.parameters()} == {torch.float32}
            gradients[precision] = torch.cat([p.grad.flatten() for a in adapters for p in a.parameters()]).double()
    exact, low = gradients["fp32"], gradients["bf16"]
    assert ((low - exact).norm() / exact.norm()).item() < 0.03
    assert 0 < (low - exact).norm()  # the computation was really in bf16


# ---------------------------------------------------------------- LoHa, LoKr, OFT, rsLoRA

def filled(adapters: list[Adapter]) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for adapter in adapters:
            for parameter in adapter.named().values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            adapter.settle()


@pytest.mark.parametrize("patterns", [LINEAR, CONV], ids=["linear", "conv"])
@pytest.mark.parametrize(("algorithm", "kind", "rank"), [("loha", LoHaConfig, 3), ("lokr", LoKrConfig, 2), ("lokr", LoKrConfig, 64)])
def test_lycoris_equals_peft(model: backbone.DiffusersModel, algorithm: str, kind: type, rank: int, patterns: tuple[str, ...]) -> None:
    """The same numbers as PEFT's layers, which build the whole difference of the weights."""
    config = AdapterConfig(algorithm=algorithm, rank=rank, alpha=5.0, target_modules=patterns)
    names = select(model, config)["lora_unet"]
    plain = copy.deepcopy(model.unet)
    inject_adapter_in_model(kind(r=rank, alpha=5.0, target_modules=list(names)), plain)
    noisy, timesteps, batch = inputs()
    with model.training("fp32", False, False), adapted(model, config, seed=1) as adapters, torch.enable_grad():
        filled(adapters)
        theirs = {names[own]: m for own, m in plain.named_modules() if own in names}
        for adapter in adapters:
            for name, parameter in adapter.named().items():
                getattr(theirs[adapter.key], name)["default"].data.copy_(parameter.data)
        ours = model.predict(noisy, timesteps, batch, batch.conditioning)
        expected = plain.eval()(noisy, timesteps, encoder_hidden_states=torch.cat([c.context for c in batch.conditioning])).sample
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        ours.square().mean().backward()
        expected.square().mean().backward()
        for adapter in adapters:
            for name, parameter in adapter.named().items():
                other = getattr(theirs[adapter.key], name)["default"].grad
                assert (parameter.grad - other).norm() <= 1e-3 * other.norm() + 1e-7


def test_oft_turns_the_rows_of_the_weight(model: backbone.DiffusersModel) -> None:
    for pattern in (r"down_blocks\.0.*attn1\.to_out\.0$", r"down_blocks\.0\.resnets\.0\.conv1$"):
        with adapted(model, AdapterConfig(algorithm="oft", rank=8, target_modules=(pattern,)), seed=0) as [adapter], torch.no_grad():
            filled([adapter])
            base, blocks = adapter.layer.get_base_layer(), adapter.named()["oft_blocks"]
            assert blocks.shape == (8, 8, 8)
            q = blocks - blocks.transpose(1, 2)
            eye = torch.eye(8)
            turn = torch.block_diag(*((eye + q) @ torch.linalg.inv(eye - q)))
            assert torch.allclose(turn @ turn.T, torch.eye(64), atol=1e-5)
            weight = (turn.T @ base.weight.flatten(1)).reshape(base.weight.shape)  # out[m] = sum over n of R[n, m] W[n]
            conv = isinstance(base, torch.nn.Conv2d)
            x = torch.randn((2, base.in_channels, 8, 8) if conv else (5, base.in_features), generator=torch.Generator().manual_seed(0))
            expected = torch.nn.functional.conv2d(x, weight, base.bias, padding=1) if conv else torch.nn.functional.linear(x, weight, base.bias)
            torch.testing.assert_close(adapter.layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("patterns", [LINEAR, CONV], ids=["linear", "conv"])
def test_doras_directions_keep_the_length_of_the_weights_rows(model: backbone.DiffusersModel, patterns: tuple[str, ...]) -> None:
    """So that PEFT, which divides by |W + sBA|, and ComfyUI, which divides by |W|, say the same."""
    config = AdapterConfig(algorithm="dora", rank=3, alpha=2.0, target_modules=patterns)
    with adapted(model, config, seed=1) as adapters, torch.no_grad():
        filled(adapters)
        for adapter in adapters:
            weight, mine = adapter.layer.get_base_layer().weight.flatten(1), adapter.named()
            low = 2 / 3 * mine["lora_up.weight"].flatten(1) @ mine["lora_down.weight"].flatten(1)
            assert low.norm() > 0.01 * weight.norm()
            torch.testing.assert_close((weight + low).norm(dim=1), weight.norm(dim=1), rtol=1e-4, atol=1e-5)


def test_rslora_divides_by_the_root_of_the_rank(model: backbone.DiffusersModel) -> None:
    config = AdapterConfig(algorithm="rslora", rank=9, alpha=6.0, target_modules=(r"down_blocks\.0.*attn1\.to_q$",))
    with adapted(model, config, seed=0) as [adapter], torch.no_grad():
        fill([adapter])
        base, mine = adapter.layer.get_base_layer(), adapter.named()
        x = torch.randn(5, base.in_features, generator=torch.Generator().manual_seed(0))
        expected = x @ base.weight.T + 6 / 3 * (x @ mine["lora_down.weight"].T @ mine["lora_up.weight"].T)
        torch.testing.assert_close(adapter.layer(x), expected, rtol=0, atol=1e-5)
        assert adapter.tensors()["alpha"].item() / 9 == pytest.approx(2.0)


@pytest.mark.parametrize("algorithm", ["loha", "lokr", "oft", "rslora"])
def test_new_adapters_of_every_kind_change_nothing_yet(model: backbone.DiffusersModel, algorithm: str) -> None:
    noisy, timesteps, batch = inputs()
    with torch.no_grad():
        before = model.predict(noisy, timesteps, batch, batch.conditioning)
        with adapted(model, AdapterConfig(algorithm=algorithm, targets="all linear+conv"), seed=0):
            torch.testing.assert_close(model.predict(noisy, timesteps, batch, batch.conditioning), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_count_of_values_is_that_of_the_tensors(model: backbone.DiffusersModel, algorithm: str) -> None:
    for rank in (2, 8, 32):
        config = AdapterConfig(algorithm=algorithm, rank=rank, targets="all linear+conv")
        layers, values = size(model, config)
        with adapted(model, config, seed=0) as adapters:
            held = sum(p.numel() for a in adapters for p in a.parameters())
            assert layers == len(adapters) and held <= values <= 1.2 * held


def test_patterns_set_ranks_and_rates(model: backbone.DiffusersModel) -> None:
    config = AdapterConfig(rank=4, alpha=4.0, target_modules=(r"attn2\.to_k$ rank=8 learning_rate=5e-3", r"attn2\.to_[kv]$", r"attn1\.to_q$ alpha=2"))
    config.validate()
    noisy, timesteps, batch = inputs()
    with adapted(model, config, seed=0) as adapters, torch.no_grad():
        seen = {(a.key.rsplit("_", 2)[-2] + "_" + a.key.rsplit("_", 1)[-1], a.config.rank, a.config.alpha, a.learning_rate) for a in adapters}
        assert {s[1:] for s in seen if s[0].endswith("_k")} == {(8, 4.0, 5e-3)}
        assert {s[1:] for s in seen if s[0].endswith("_v")} == {(4, 4.0, None)}
        assert {s[1:] for s in seen if s[0].endswith("_q")} == {(4, 2.0, None)}
        for adapter in adapters:
            assert adapter.named()["lora_down.weight"].shape[0] == adapter.config.rank
            assert adapter.tensors()["alpha"].item() == adapter.config.alpha
            assert adapter.layer.scaling["default"] == adapter.config.alpha / adapter.config.rank
        optimizer, _ = optim.build(adapters, OptimConfig(learning_rate=1e-3), 10)
        assert [g["lr"] for g in optimizer.param_groups] == [1e-3, 5e-3]
        assert sum(len(g["params"]) for g in optimizer.param_groups) == sum(len(a.parameters()) for a in adapters)
        model.predict(noisy, timesteps, batch, batch.conditioning)


@pytest.mark.parametrize(("text", "words"), [
    ("to_k rank=0", ("rank 0 is below 1",)), ("to_k rank=x", ("rank of the pattern 'to_k' is 'x'", "whole number")), ("to_k fast", ("'fast' behind 'to_k'", "rank=")),
    ("to_k learning_rate=2", ("learning_rate 2 is above 1",)), (" ", ("empty pattern",)),
])
def test_bad_settings_of_patterns(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(LoomError) as error:
        AdapterConfig(target_modules=(text,)).validate()
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_saved_can_be_gone_on_from(model: backbone.DiffusersModel, algorithm: str) -> None:
    """Also with another alpha, and for LoRA with a larger rank: the model says the same."""
    noisy, timesteps, batch = inputs()
    target = (r"attn2", r"conv1$")
    for first, second in (((4, 4.0), (4, 1.0)), ((4, 2.0), (4, 4.0)), *([((4, 4.0), (6, 3.0))] if "lora" in algorithm or algorithm == "dora" else [])):
        with torch.no_grad():
            with adapted(model, AdapterConfig(algorithm=algorithm, rank=first[0], alpha=first[1], target_modules=target), seed=0) as adapters:
                filled(adapters)
                saved = {a.key: {k: v.clone() for k, v in a.tensors().items()} for a in adapters}
                wanted = model.predict(noisy, timesteps, batch, batch.conditioning)
            with adapted(model, AdapterConfig(algorithm=algorithm, rank=second[0], alpha=second[1], target_modules=target), seed=5) as adapters:
                for adapter in adapters:
                    adapter.load(saved[adapter.key])
                torch.testing.assert_close(model.predict(noisy, timesteps, batch, batch.conditioning), wanted, rtol=1e-4, atol=1e-4)
    with adapted(model, AdapterConfig(algorithm=algorithm, rank=2, target_modules=target), seed=5) as adapters:
        with pytest.raises(LoomError, match="rank 2 is below init_lora's 4|init_lora has"):
            for adapter in adapters:
                adapter.load(saved[adapter.key])


@pytest.mark.parametrize("algorithm", ["lora", "dora", "loha", "lokr"])
def test_module_dropout_leaves_whole_adapters_out(model: backbone.DiffusersModel, algorithm: str) -> None:
    config = AdapterConfig(algorithm=algorithm, rank=4, module_dropout=0.5, target_modules=(r"down_blocks\.0.*attn1\.to_q$",))
    with adapted(model, config, seed=1) as [adapter], torch.no_grad():
        filled([adapter])
        base = adapter.layer.get_base_layer()
        x = torch.randn(5, base.in_features, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        changed = [not torch.allclose(adapter.layer(x), base(x) if algorithm != "dora" else _rescaled(adapter, x), atol=1e-6) for _ in range(60)]
        assert 15 < sum(changed) < 45


def _rescaled(adapter: Adapter, x: torch.Tensor) -> torch.Tensor:
    """DoRA's layer whose low-rank branch is left out: only the magnitudes act."""
    base, mine = adapter.layer.get_base_layer(), adapter.named()
    return x @ base.weight.T * (mine["dora_scale"] / base.weight.norm(dim=1))


def test_dropout_works_though_the_base_is_in_eval_mode(model: backbone.DiffusersModel) -> None:
    noisy, timesteps, batch = inputs()
    with model.training("fp32", False, False), adapted(model, AdapterConfig(dropout=0.5, rank=4), seed=1) as adapters, torch.no_grad():
        fill(adapters)
        outs = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            outs.append(model.predict(noisy, timesteps, batch, batch.conditioning))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def _peft_dora(model: backbone.DiffusersModel, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """(a DoRA as PEFT leaves it after some training, its rows of other lengths than the weight's; what PEFT answers with it)."""
    noisy, timesteps, batch = inputs()
    theirs = copy.deepcopy(model.unet)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, use_dora=True, target_modules=r".*(attn2\.to_k|resnets\.0\.conv1)"), theirs)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            if "magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.rand(parameter.shape, generator=generator))
        wanted = theirs.eval()(noisy, timesteps, encoder_hidden_states=torch.cat([c.context for c in batch.conditioning])).sample
    path = tmp_path / "dora.safetensors"
    save_file({f"unet.{k}": v.contiguous() for k, v in get_peft_model_state_dict(theirs).items()}, path)
    return path, wanted


def test_a_dora_goes_on_from_what_peft_and_others_have_made(model: backbone.DiffusersModel, tmp_path: Path) -> None:
    """The first answer is that of the file, a LoRA's too; and what is saved says the same to PEFT, which divides by |W + sBA|, and to ComfyUI, by |W|."""
    noisy, timesteps, batch = inputs()
    target = (r"attn2\.to_k$", r"resnets\.0\.conv1$")
    path, wanted = _peft_dora(model, tmp_path)
    found = read(path, model.layer_names("lora_unet"), model.family)
    predict = lambda: model.predict(noisy, timesteps, batch, batch.conditioning)
    with torch.no_grad():
        plain = predict()
        with adapted(model, AdapterConfig(algorithm="dora", rank=6, alpha=3.0, target_modules=target), seed=0) as adapters:
            for adapter in adapters:
                adapter.load(found[adapter.key])
                adapter.settle()
            torch.testing.assert_close(predict(), wanted, rtol=0, atol=1e-5)
            assert (wanted - plain).abs().max() > 0.01
            theirs = for_diffusers(adapters, LoomConfig().replace(adapter={"algorithm": "dora"}, output={"save_dtype": "fp32"}))
            for adapter in adapters:
                weight, tensors = adapter.layer.get_base_layer().weight, adapter.tensors()
                whole = weight + 0.5 * (tensors["lora_up.weight"].flatten(1) @ tensors["lora_down.weight"].flatten(1)).reshape(weight.shape)
                rows = lambda t, shape=weight.shape: t.reshape(-1, *[1] * (len(shape) - 1))
                by_comfyui = whole * tensors["dora_scale"] / rows(weight.flatten(1).norm(dim=1))
                magnitude = theirs[f"{adapter.diffusers.theirs[0]}.lora_magnitude_vector.weight"]
                torch.testing.assert_close(by_comfyui, whole * rows(magnitude) / rows(whole.flatten(1).norm(dim=1)), rtol=1e-4, atol=1e-6)
            again = {a.key: {k: v.clone() for k, v in a.tensors().items()} for a in adapters}
        with adapted(model, AdapterConfig(algorithm="dora", rank=6, target_modules=target), seed=0) as adapters:
            for adapter in adapters:
                adapter.load(again[adapter.key])
            torch.testing.assert_close(predict(), wanted, rtol=0, atol=1e-5)
        loras = {key: {k: v for k, v in tensors.items() if k != "magnitude"} for key, tensors in found.items()}
        answers = []
        for algorithm in ("lora", "dora"):
            with adapted(model, AdapterConfig(algorithm=algorithm, rank=4, target_modules=target), seed=0) as adapters:
                for adapter in adapters:
                    adapter.load(loras[adapter.key])
                answers.append(predict())
        torch.testing.assert_close(*answers, rtol=0, atol=1e-5)
        with adapted(model, AdapterConfig(algorithm="dora", rank=4, target_modules=(r"down_blocks\.0.*attn1\.to_q$",)), seed=0) as [adapter]:
            with pytest.raises(LoomError, match="init_lora has"):  # magnitudes of columns, as LyCORIS's wd_on_out=False has them
                adapter.load({**{k: v.clone() for k, v in adapter.tensors().items()}, "dora_scale": torch.ones(1, 64)})
