"""Presets are data: all of them load, read well in both languages, and say what they change."""
import re

import pytest
import yaml
from lora_loom.trainer import presets
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.errors import LoomError


def test_names():
    assert presets.names() == ["default", "character", "low vram", "object", "quick look", "style"]


def test_the_default_preset_is_the_default_and_shows_every_value():
    values = presets.load("default")
    assert presets.merge(values, {}) == LoomConfig()
    used = {(part, name) for preset in presets.names() for part, fields in presets.load(preset).items() for name in fields}
    assert used <= {(part, name) for part, fields in values.items() for name in fields}


@pytest.mark.parametrize("name", presets.names())
def test_each_preset_is_valid_and_bilingual(name):
    config = presets.merge(presets.load(name), {})
    assert isinstance(config, LoomConfig) and config.adapter.alpha == config.adapter.rank  # the rate then means what it says
    assert config.optim.warmup_steps <= config.train.steps / 10
    for text in presets.about(name, "en"):
        assert text and text.isascii()
    for text in presets.about(name, "zh"):
        assert re.search("[\u4e00-\u9fff]", text)
    assert presets.about(name, "fr") == presets.about(name, "en")


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_holds_plain_numbers(name):
    """YAML reads 1e-4 as text: a preset that is shown in a node must hold what it means."""
    default = LoomConfig().to_dict()
    for part, fields in presets.load(name).items():
        for field, value in fields.items():
            assert isinstance(value, str) == isinstance(default[part][field], str), (part, field, value)


def test_given_values_win():
    config = presets.merge(presets.load("low vram"), {"adapter": {"rank": 4}, "optim": {"learning_rate": "5e-5"}})
    assert (config.adapter.rank, config.adapter.alpha) == (4, 8.0)
    assert config.optim.learning_rate == 5e-5 and config.train.gradient_checkpointing


def test_mistakes_are_named():
    with pytest.raises(LoomError, match="'charcter' is unknown.*did you mean 'character'"):
        presets.load("charcter")
    with pytest.raises(LoomError, match="unknown"):
        presets.load("../../secrets")
    with pytest.raises(LoomError, match="rank 0 is below 1"):
        presets.merge({"adapter": {"rank": 0}}, {})


@pytest.mark.parametrize("tree, message", [
    ({"title": {"en": "A"}}, "no title in zh"),
    ({"title": {"en": "A", "zh": "甲"}, "description": {"en": "a", "zh": "甲"}}, "no values"),
    ({"title": {"en": "A", "zh": "甲"}, "description": {"en": "a", "zh": "甲"}, "values": {"adapter": {"rank": 0}}}, "below 1"),
])
def test_a_faulty_preset_file_says_what_is_wrong(tmp_path, monkeypatch, tree, message):
    (tmp_path / "my_own.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    with pytest.raises(LoomError, match=message):
        presets.load("my own")
