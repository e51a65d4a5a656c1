"""One description of a run: it round-trips, and each bad value's message holds the value and the rule."""
import dataclasses

import pytest
from lora_loom.trainer.config import LoomConfig, OutputConfig, TrainConfig, coerce
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.names import check_name

CHANGED = LoomConfig().replace(
    adapter={"algorithm": "dora", "rank": 3, "alpha": 1.5, "dropout": 0.25, "module_dropout": 0.125, "init_lora": "old.safetensors", "targets": "all linear", "target_modules": ("a$", "b"),
             "train_text_encoder": True},
    optim={"optimizer": "lion", "learning_rate": 3e-4, "text_encoder_lr": 2e-6, "scheduler": "cosine_with_restarts", "warmup_steps": 7, "cycles": 2,
           "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.95, "max_grad_norm": 0.0, "ema_decay": 0.9},
    loss={"weighting": "p2", "p2_gamma": 0.5, "loss_type": "huber", "huber_c": 0.2, "huber_schedule": "constant", "multires_noise_discount": 0.3,
          "multires_noise_iterations": 3, "input_perturbation": 0.1, "timestep_sampling": "mode", "logit_mean": 1.0, "logit_std": 2.0, "mode_scale": 0.5,
          "timestep_shift": "constant", "shift": 2.0, "unmasked_weight": 0.5,
          "min_snr_gamma": 0.0, "noise_offset": 0.1, "caption_dropout": 0.5, "preservation": 2.0, "preservation_words": ("dog", "cat")},
    data={"shuffle_tags": True, "keep_tokens": 2, "tag_dropout": 0.2, "caption_variants": 5, "cache": False},
    train={"steps": 0, "epochs": 3, "batch_size": 4, "gradient_accumulation_steps": 2, "precision": "bf16",
           "gradient_checkpointing": True, "memory_budget": 7.5, "base_precision": "nf4", "compile": "always", "plain_layers": True, "seed": 2**64 - 1, "validation_steps": 5, "validation_split": 0.25, "pictures": (3, 300)},
    output={"name": "织机 v1.0", "save_steps": 10, "keep_checkpoints": 2, "save_minutes": 2.5, "save_dtype": "fp32"},
    samples={"sample_steps": 50, "sample_prompts": ("a cat", "一只狗"), "sample_negative": "blurry", "sample_seed": 4, "sample_cfg": 5.5},
)


def test_every_field_differs_in_the_changed_config():
    """So that the round trip below proves each of them."""
    default, changed = LoomConfig().to_dict(), CHANGED.to_dict()
    same = [f"{part}.{name}" for part in default for name in default[part] if default[part][name] == changed[part][name]]
    assert same == []


@pytest.mark.parametrize("config", [LoomConfig(), CHANGED])
def test_round_trips(config):
    assert LoomConfig.from_dict(config.to_dict()) == config
    assert LoomConfig.from_yaml(config.to_yaml()) == config
    assert config.validate() is config


def test_parts_may_be_left_out():
    assert LoomConfig.from_dict({}) == LoomConfig.from_yaml("") == LoomConfig()
    assert LoomConfig.from_dict({"adapter": {"rank": 4}}) == LoomConfig().replace(adapter={"rank": 4})
    assert LoomConfig.from_dict({"adapter": None}) == LoomConfig()


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LoomConfig().train.steps = 5


@pytest.mark.parametrize("change", [{"algorithm": "oft", "rank": 1}, {"algorithm": "dora", "rank": 1}, {"algorithm": "dora", "target_modules": ("to_v$ rank=1",)}])
def test_what_turns_needs_a_plane(change):
    with pytest.raises(LoomError, match=f"rank 1 with {change['algorithm']}: .*set rank to 2 or more"):
        LoomConfig().replace(adapter=change).validate()


@pytest.mark.parametrize("part, name, value, rule", [
    ("adapter", "algorithm", "lor", "one of lora, dora, rslora, loha, lokr, oft; did you mean 'lora'?"),
    ("adapter", "rank", 0, "below 1: LoRAConfig.rank takes 1 to 512"),
    ("adapter", "rank", 513, "above 512: LoRAConfig.rank takes 1 to 512"),
    ("adapter", "rank", True, "not a number"),
    ("adapter", "alpha", 0, "below 0.001: LoRAConfig.alpha takes 0.001 to 4096"),
    ("adapter", "alpha", float("nan"), "not a number"),
    ("adapter", "dropout", 1.0, "above 0.9: LoRAConfig.dropout takes 0 to 0.9"),
    ("adapter", "targets", "attentoin", "LoRAConfig.targets is one of attention"),
    ("optim", "optimizer", "adam", "one of adamw, adamw8bit, paged_adamw8bit, adafactor, lion, prodigy, schedule_free_adamw; did you mean 'adamw'?"),
    ("optim", "learning_rate", 0, "below 1e-08: TrainLoRA.learning_rate takes 1e-08 to 1"),
    ("optim", "learning_rate", float("inf"), "not a number"),
    ("optim", "learning_rate", "1e-4", "not a number"),
    ("optim", "text_encoder_lr", -1, "below 0"),
    ("optim", "scheduler", "cosin", "did you mean 'cosine'?"),
    ("train", "base_precision", "NF4", "did you mean 'nf4'?"),
    ("optim", "warmup_steps", -1, "below 0"),
    ("optim", "cycles", 0, "below 1"),
    ("optim", "weight_decay", -0.1, "below 0"),
    ("optim", "beta1", 1.0, "above 0.9999"),
    ("optim", "beta2", -1.0, "below 0"),
    ("optim", "max_grad_norm", -1.0, "below 0"),
    ("loss", "min_snr_gamma", -5.0, "below 0"),
    ("loss", "noise_offset", 2.0, "above 1"),
    ("loss", "weighting", "minsnr", "did you mean 'min_snr'?"),
    ("loss", "loss_type", "l2", "one of mse, huber"),
    ("loss", "timestep_sampling", "logit", "did you mean 'logit_normal'?"),
    ("loss", "huber_c", 0.0, "below 0.0001"),
    ("loss", "multires_noise_discount", 1.0, "above 0.99"),
    ("optim", "ema_decay", 1.0, "above 0.99999"),
    ("train", "validation_split", 0.9, "above 0.5"),
    ("output", "keep_checkpoints", -1, "below 0"),
    ("loss", "caption_dropout", 1.5, "above 1"),
    ("train", "steps", -1, "below 0: TrainLoRA.steps takes 0 to"),
    ("train", "steps", 0, "nothing to train"),
    ("train", "epochs", -1, "below 0"),
    ("train", "batch_size", 0, "below 1: TrainLoRA.batch_size takes 1 to 256"),
    ("train", "gradient_accumulation_steps", 0, "below 1"),
    ("train", "precision", "fp16", "one of auto, fp32, bf16"),
    ("train", "seed", -1, "below 0"),
    ("output", "save_steps", -1, "below 0"),
    ("output", "save_dtype", "f16", "one of fp16, bf16, fp32"),
    ("samples", "sample_steps", -1, "below 0"),
    ("samples", "sample_cfg", 101.0, "above 100: TrainLoRA.sample_cfg takes 0 to 100"),
    ("samples", "sample_seed", -1, "below 0"),
    ("output", "name", "", "is empty: TrainLoRA.name takes a plain file name"),
])
def test_a_bad_value_is_named_with_its_rule(part, name, value, rule):
    with pytest.raises(LoomError) as caught:
        LoomConfig().replace(**{part: {name: value}}).validate()
    message = str(caught.value)
    shown = f"{value:g}" if isinstance(value, float) and value == value else repr(value)
    assert name in message and rule in message and (shown in message or repr(value) in message), message


def test_every_limited_field_has_a_bad_value_above():
    """A field that is added without a check shows here: each field refuses what it cannot be."""
    unchecked = []
    for part in dataclasses.fields(LoomConfig):
        for field in dataclasses.fields(part.default_factory):
            if field.type == "bool" or field.name == "target_modules":
                continue
            try:
                LoomConfig().replace(**{part.name: {field.name: object()}}).validate()
                unchecked.append(field.name)
            except (LoomError, TypeError):
                pass
    assert unchecked == []


@pytest.mark.parametrize("tree, parts", [
    ({"adaptor": {}}, ["'adaptor'", "did you mean 'adapter'?", "adapter, optim, loss, data, train, output"]),
    ({"adapter": {"rnak": 1}}, ["'rnak'", "did you mean 'rank'?"]),
    ({"adapter": {"rank": "x"}}, ["adapter.rank is 'x'", "whole number"]),
    ({"adapter": 3}, ["adapter is 3", "mapping"]),
    ({"train": {"gradient_checkpointing": "perhaps"}}, ["train.gradient_checkpointing is 'perhaps'", "true or false"]),
    ({"output": {"name": None}}, ["output.name is None", "text"]),
    ([], ["mapping"]),
])
def test_unknown_keys_and_types(tree, parts):
    with pytest.raises(LoomError) as caught:
        LoomConfig.from_dict(tree)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize("value, like, result", [
    ("1e-4", 0.5, 1e-4), (3, 0.5, 3.0), ("7", 1, 7), (7.0, 1, 7), (2**63 + 1, 1, 2**63 + 1), ("Yes", False, True), (0, True, False),
    ("a", (), ("a",)), (["a", 1], (), ("a", "1")), (5, "", "5"),
])
def test_coerce(value, like, result):
    got = coerce("it", value, like)
    assert got == result and type(got) is type(result)


@pytest.mark.parametrize("name", ["my_lora", "织机 v1.0", "Ünïcode-LoRA", "a" * 120, "comet", "null", "x..y"])
def test_good_names(name):
    assert check_name(name) == name
    OutputConfig(name=name).validate()


@pytest.mark.parametrize("name, parts", [
    ("../evil", ["'../evil'", "'/'"]), ("..\\evil", ["'\\\\'"]), ("a/b", ["'/'"]), ("C:x", ["':'"]), ("a*?", ["'*'", "'?'"]),
    ('say "hi"', ["'\"'"]), ("a<b>|c", ["'<'", "'>'", "'|'"]), ("line\nbreak", ["'\\n'"]), ("nul\0", ["'\\x00'"]), ("del\x7f", ["'\\x7f'"]),
    ("", ["empty"]), ("   ", ["empty"]), (None, ["None", "empty"]), (".hidden", ["dot or a space"]), ("..", ["dot or a space"]),
    ("trailing.", ["dot or a space"]), ("trailing ", ["dot or a space"]),
    ("none", ["stands for", "my_none"]), ("Newest", ["stands for", "my_newest"]), ("con", ["reserved by Windows", "my_con"]), ("NUL.lora", ["reserved by Windows"]), ("Com1", ["reserved by Windows"]),
    ("lpt9.v2", ["reserved by Windows"]), ("织" * 41, ["123 bytes", "up to 120"]),
])
def test_bad_names(name, parts):
    with pytest.raises(LoomError) as caught:
        check_name(name)
    assert all(part in str(caught.value) for part in parts), caught.value
    mended = caught.value.fix["name"]
    assert check_name(mended) == mended and (mended == "my_lora" or any(letter in mended for letter in str(name) if letter.isalnum()))
    with pytest.raises(LoomError) as caught:  # of another input there is nothing to set
        check_name(name, "a run's name")
    assert caught.value.fix == {}


def test_what_stands_for_no_run_may_be_the_name_of_anything_else():
    assert check_name("none", "an uploaded file") == "none" and check_name("newest", "TrainLoRA.resume") == "newest"


def test_steps_zero_is_fine_with_epochs():
    TrainConfig(steps=0, epochs=1).validate()
