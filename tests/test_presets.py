"""Presets are data: all of them load, read well in both languages, and say what they change."""
import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from lora_loom.trainer import presets
from lora_loom.trainer.backbones.families import FAMILIES
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.errors import LoomError


def test_names():
    assert presets.names() == ["default", "anime character", "illustration style", "ink landscape", "low vram", "one object", "person", "product photo", "quick look"]


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
    for text in presets.Preset(name).about("en"):
        assert text and text.isascii()
    for text in presets.Preset(name).about("zh"):
        assert re.search("[\u4e00-\u9fff]", text)
    assert presets.Preset(name).about("fr") == presets.Preset(name).about("en")


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_holds_plain_numbers(name):
    """YAML reads 1e-4 as text: a preset that is shown in a node must hold what it means."""
    default = LoomConfig().to_dict()
    for part, fields in presets.load(name).items():
        for field, value in fields.items():
            assert isinstance(value, str) == isinstance(default[part][field], str), (part, field, value)


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_s_description_and_its_number_of_pictures_agree(name):
    low, high = presets.merge(presets.load(name), {}).train.pictures
    said = [int(n) for text in [presets.Preset(name).about("en")[1]] for n in re.findall(r"(\d+)(?= (?:to|or more)[^.;]*(?:pictures|photos|paintings))", text)]
    assert not said or said[0] == low <= high


def test_given_values_win():
    config = presets.merge(presets.load("low vram"), {"adapter": {"rank": 4}, "optim": {"learning_rate": "5e-5"}})
    assert (config.adapter.rank, config.adapter.alpha) == (4, 8.0)
    assert config.optim.learning_rate == 5e-5 and config.train.gradient_checkpointing


def test_mistakes_are_named():
    with pytest.raises(LoomError, match="'persn' is unknown.*did you mean 'person'"):
        presets.load("persn")
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


# ---------------------------------------------------------------- families, and presets of one's own

@pytest.mark.parametrize("name", presets.names())
def test_each_preset_suits_each_family(name):
    plain = presets.load(name)
    for family in FAMILIES:
        config = presets.merge(presets.load(name, family), {})
        assert config.adapter.alpha == config.adapter.rank and config.optim.warmup_steps <= config.train.steps / 10
    own = yaml.safe_load((presets.FOLDER / f"{name.replace(' ', '_')}.yaml").read_text(encoding="utf-8")).get("families") or {}
    for family, values in own.items():
        assert family in FAMILIES and presets.load(name, family) != plain
        for part, fields in values.items():
            assert all(presets.load(name, family)[part][field] == value for field, value in fields.items())
            assert all(isinstance(value, str) == isinstance(LoomConfig().to_dict()[part][field], str) for field, value in fields.items())


def test_a_family_that_a_preset_does_not_know_takes_its_plain_values():
    assert presets.load("default", "sd15") == presets.load("default", "none such") == presets.load("default")
    assert presets.load("default", "qwen_image")["optim"]["learning_rate"] == 5e-5


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "_own", [tmp_path / "own"])
    return tmp_path / "own"


def test_ones_own_preset_is_saved_listed_and_loaded(own):
    path = presets.save("我的 角色", {"adapter": {"rank": 24, "target_modules": ["to_q$"]}, "loss": {"preservation_words": ["dog"]}})
    assert path == own / "我的_角色.yaml" and presets.names()[-1] == "我的 角色"
    assert presets.load("我的 角色") == {"adapter": {"rank": 24, "target_modules": ["to_q$"]}, "loss": {"preservation_words": ["dog"]}}
    assert presets.merge(presets.load("我的 角色"), {}).adapter.target_modules == ("to_q$",)
    assert presets.Preset("我的 角色").about() == ("我的 角色", "")
    assert presets.save("我的 角色", {"adapter": {"rank": 8}}) is None and presets.load("我的 角色")["adapter"]["rank"] == 24  # not without asking
    assert presets.save("我的__角色", {"adapter": {"rank": 8}}, replace=True) == path
    assert presets.load("我的 角色") == {"adapter": {"rank": 8}}


@pytest.mark.parametrize("name, values, message", [
    ("Person", {}, "is one of LoRA Loom's own"), ("low vram", {}, "is one of LoRA Loom's own"), ("low_vram", {}, "is one of LoRA Loom's own"),
    ("../evil", {}, "'/'"), ("", {}, "is empty"), ("con", {}, "reserved by Windows"), ("mine", {"adapter": {"rank": 0}}, "below 1"), ("mine", {"adaptor": {}}, "did you mean 'adapter'"),
])
def test_what_cannot_be_saved_says_why(own, name, values, message):
    with pytest.raises(LoomError, match=message):
        presets.save(name, values)
    assert not own.exists() or not list(own.iterdir())


def test_a_run_s_config_and_a_preset_are_read_alike():
    config = LoomConfig().replace(adapter={"rank": 7, "alpha": 7.0}, train={"steps": 33}, output={"name": "again"})
    assert presets.merge(presets.parse(config.to_yaml(), "the file"), {}) == config
    assert presets.parse("values: {adapter: {rank: 5}}\nfamilies: {flux: {adapter: {rank: 6}}}", "x", "flux") == {"adapter": {"rank": 6}}


@pytest.mark.parametrize("text, message", [
    ("- 1\n- 2", "holds"), ("{", "not YAML"), ("a: 1", "no preset"), ("adapter: {rnak: 2}", "did you mean 'rank'"), ("adapter: {rank: many}", "whole number"),
    ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases"), ("!!python/object/apply:os.system ['true']", "not YAML"),
])
def test_a_file_that_is_none_says_why(text, message):
    with pytest.raises(LoomError, match=message):
        presets.parse(text, "the file")


@pytest.mark.parametrize("text, message", [
    ("adapter: {rnak: 2}", r"preset 'my look' \(my_look.yaml\): key 'rnak' in adapter is unknown: did you mean 'rank'"),
    ("values: {adapter: {rank: many}}", r"preset 'my look' \(my_look.yaml\): adapter.rank is 'many': it must be a whole number"),
    ("values: {}\nfamilies: {sdxl: {adapter: {rank: 0}}}", r"preset 'my look' \(my_look.yaml\) for the family 'sdxl': rank 0 is below 1"),
])
def test_a_mistake_in_a_file_of_ones_own_names_the_file(own, text, message):
    own.mkdir()
    (own / "my_look.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(LoomError, match=message):
        presets.load("my look")
    with pytest.raises(LoomError, match="^preset 'look.yaml'.*: (key|adapter.rank|rank) "):  # as the command line reads one by its path
        presets.parse(text, "preset 'look.yaml'")


@pytest.mark.parametrize("text", [
    "families: [sdxl]\nvalues: {}", "families: {sdxl: {adapter: [1]}}\nvalues: {}", "families: {Toy: {adapter: {rank: 9}}}\nvalues: {}", "values: {adapter: {rank: 2026-13-01}}",
    "values: " + "[" * 2000, "title: {en: 2026-01-01}\nvalues: {}", "values: {adapter: {rank: 0b_}}", "values: 3", "values: {adapter: 3}", "title: 3\nvalues: {}",
    "families: {sdxl: {adapter: {rank: 0}}}\nvalues: {}", "values: {adapter: {rank: " + "9" * 5000 + "}}"])
def test_whatever_a_file_of_ones_own_holds_is_refused_in_words(own, text):
    own.mkdir()
    (own / "odd.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(LoomError):
        presets.Preset("odd")
    assert presets.Preset("person").values()["adapter"]["rank"] == 16


def test_a_title_of_ones_own_may_be_plain_text(own):
    own.mkdir()
    (own / "mine.yaml").write_text("title: My preset\nvalues:\n", encoding="utf-8")
    assert presets.Preset("mine").about("zh") == ("mine", "") and presets.Preset("mine").about() == ("My preset", "") and presets.load("mine") == {}


def test_a_broken_file_of_ones_own_hides_no_other(own):
    own.mkdir()
    (own / "broken.yaml").write_bytes(b"\xff\xfe{")
    assert "broken" in presets.names() and presets.load("person")
    with pytest.raises(LoomError, match=r"'broken' \(broken.yaml\) is not UTF-8"):
        presets.load("broken")


def test_the_node_s_help_says_what_the_presets_hold():
    spec = importlib.util.spec_from_file_location("loom_make_help", Path(__file__).resolve().parents[1] / "tools" / "make_help.py")
    help_pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(help_pages)
    for language in presets.LANGUAGES:
        page = (help_pages.DOCS / "LoRAConfig" / f"{language}.md").read_text(encoding="utf-8")
        assert page == help_pages.filled(page, language), "run python tools/make_help.py"
        assert all(presets.Preset(name).about(language)[1] in page for name in presets.names())
