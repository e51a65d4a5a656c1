"""Labels in groups as users write them, and captions that read as one would write them by hand."""
from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from lora_loom.trainer.captioners import labels, methods
from lora_loom.trainer.captioners.labels import parse_groups
from lora_loom.trainer.captioners.options import CaptionOptions
from lora_loom.trainer.captioners.wording import Wording, join, parse_ban, parse_replace
from lora_loom.trainer.errors import LoomError


def shape(text: str) -> list[tuple]:
    return [(group.name, group.labels, group.most, group.threshold) for group in parse_groups(text)]


def test_lines_are_groups() -> None:
    assert shape("cat, black  dog, Cat，鸟\n# no, comment\n\nanimal max=2 threshold=.3: a, b") == [
        ("group 1", ("cat", "black dog", "鸟"), None, None), ("animal", ("a", "b"), 2, 0.3)]
    assert shape("cat\ndog\ncat\nred, blue\nbird") == [("one a line", ("cat", "dog", "bird"), None, None), ("group 2", ("red", "blue"), None, None)]
    assert shape("re:zero, cat: b\n情绪：开心、难过") == [("group 1", ("re:zero", "cat: b"), None, None), ("情绪", ("开心", "难过"), None, None)]
    assert shape("mood: calm\nMood max=1: tense, Calm") == [("mood", ("calm", "tense"), 1, None)]


def test_lists_that_come_along() -> None:
    light = labels.shipped("light")
    assert shape("@light max=1\nlight: torchlight, daylight") == [("light", (*light, "torchlight"), 1, None)]
    for text in ("", " \n,, ", "# only a comment"):
        assert [group.name for group in parse_groups(text)] == list(labels.ORDER)
    for name in labels.ORDER:
        words = labels.shipped(name)
        assert 40 <= len(words) == len({word.casefold() for word in words}) and all(word == word.strip() and "," not in word for word in words), name
    assert sorted(path.stem for path in labels.LISTS.glob("*.txt")) == sorted(labels.ORDER)


@pytest.mark.parametrize("line, words", [("@nothing", "the list @nothing"), ("x max=0: a, b", "max=0"), ("x max=two: a", "max=two"), (": a, b", "': a, b'"),
                                         ("x threshold=2: a, b", "threshold=2"), ("@light threshold=nan", "threshold=nan")])
def test_lines_that_are_no_group(line: str, words: str) -> None:
    with pytest.raises(LoomError, match=words):
        parse_groups(line)


def caption(found: str | list[str], there: str = "", **settings) -> str:
    settings = {name: (parse_ban if name == "ban" else parse_replace)(value) if name in ("ban", "replace") else value for name, value in settings.items()}
    wording = Wording(**settings)
    words = wording.words(found if isinstance(found, str) else [(tag, 1 - place / 100) for place, tag in enumerate(found)])
    return wording.caption(words, there)


@pytest.mark.parametrize("found, there, settings, wanted", [
    (["cat", "Dog", "CAT", "dog"], "", {}, "cat, Dog"),
    (["cat", "dog"], "a tabby cat", {}, "cat, dog"),
    (["cat", "dog"], "dog, a tabby", {"existing": "append"}, "dog, a tabby, cat"),
    (["cat", "dog"], "", {"prefix": "zxmug, cat", "suffix": " by me,"}, "zxmug, cat, dog, by me"),
    (["cat", "dog"], "pre, dog, end", {"prefix": "pre", "suffix": "end", "existing": "append"}, "pre, dog, end, cat"),
    (["cat", "long hair", "grey hair", "!?"], "", {"ban": "* HAIR, \n cats"}, "cat, !?"),
    (["1girl", "solo", "grey_x", "woman"], "", {"replace": "1girl => woman\nSOLO =>\ngrey_x => gray, old"}, "woman, gray, old"),
    (["a", "b", "c", "d"], "", {"max_tags": 2, "ban": "a"}, "b, c"),
    (["a"], "mine", {"ban": "a"}, "mine"),
    ([], "", {"prefix": "zxmug"}, "zxmug"),
    (["猫", "狗", "1girl"], "触发词，狗、红色", {"existing": "append", "prefix": "触发词", "replace": "1girl ＝＞ 女孩，一人"}, "触发词，狗、红色, 猫, 女孩, 一人"),
    (["猫", "长发", "短发", "鸟"], "", {"ban": "*发，鸟"}, "猫"),
])
def test_tags(found: list[str], there: str, settings: dict, wanted: str) -> None:
    assert caption(found, there, **settings) == wanted


def test_the_likeliest_tags_are_kept_in_their_order() -> None:
    wording = Wording(max_tags=2)
    assert wording.caption([("last", 0.2), ("first", 0.9), ("second", 0.5)], "") == "first, second"
    assert wording.caption([("character", 0.86), ("low", 0.4), ("high", 0.99)], "") == "character, high"


TEXT = "A cat, black and white, sits on a sofa. There is a watermark. It looks up!"


@pytest.mark.parametrize("found, there, settings, wanted", [
    (TEXT, "", {}, TEXT),
    (TEXT, "", {"prefix": "zxmug", "suffix": "film grain"}, f"zxmug, {TEXT} film grain"),
    (TEXT, "", {"prefix": "A photo of zxmug.", "suffix": "Film grain."}, f"A photo of zxmug. {TEXT} Film grain."),
    ("a cat on a sofa", "", {"prefix": "zxmug", "suffix": "film grain"}, "zxmug, a cat on a sofa, film grain"),
    (TEXT, "", {"ban": "Watermark"}, "A cat, black and white, sits on a sofa. It looks up!"),
    (TEXT, "mine", {"ban": "cat, watermark, looks up"}, "mine"),
    ("The catalogue shows a cat.", "", {"replace": "cat => dog\nThe catalogue shows =>"}, "a dog."),
    ("A grey, very grey wall.", "", {"replace": "grey => gray\nvery gray =>"}, "A gray, wall."),
    ("A dog. A cat.", "A cat.", {"existing": "append"}, "A cat. A dog."),
    ("A dog runs.", "cat, sofa", {"existing": "append"}, "cat, sofa, A dog runs."),
    (TEXT, TEXT, {"existing": "append"}, TEXT),
    ("一只猫。它在睡觉。", "", {"ban": "睡觉", "prefix": "zxmug"}, "zxmug, 一只猫。"),
    ("一只猫坐在沙发上，看着窗外。", "", {"replace": "猫 => 狗\n，看着窗外 =>"}, "一只狗坐在沙发上。"),
    ("A cat at 2.5 m, e.g. here", "", {}, "A cat at 2.5 m, e.g. here"),
    ("line one\n\nline  two", "", {}, "line one line two"),
])
def test_texts_stay_sentences(found: str, there: str, settings: dict, wanted: str) -> None:
    assert caption(found, there, **settings) == wanted


@pytest.mark.parametrize("found", [TEXT, "a cat on a sofa", ["cat", "sofa"]])
@pytest.mark.parametrize("prefix, suffix", [("zxmug", "film grain"), ("A photo.", "The end."), ("", ""), ("a, b", "c, d")])
def test_appending_twice_says_nothing_twice(found: str | list[str], prefix: str, suffix: str) -> None:
    settings = {"prefix": prefix, "suffix": suffix, "existing": "append"}
    once = caption(found, "mine", **settings)
    assert caption(found, once, **settings) == once and "mine" in once


def test_joins() -> None:
    assert join("", "a", "", "b.", "c", "d") == "a, b. c, d" and join() == ""


@pytest.mark.parametrize("settings, words", [({"existing": "merge"}, "existing 'merge'"), ({"max_tags": 0}, "max_tags 0"), ({"max_tags": True}, "max_tags True"),
                                             ({"max_tags": 1001}, "max_tags 1001")])
def test_bad_wordings(settings: dict, words: str) -> None:
    with pytest.raises(LoomError, match=words):
        Wording(**settings)


@pytest.mark.parametrize("text", ["grey", "=> gray", "a => b\nnothing"])
def test_lines_that_are_no_replacement(text: str) -> None:
    with pytest.raises(LoomError, match="no replacement: write one a line"):
        parse_replace(text)


@pytest.mark.parametrize("settings, words", [
    ({"max_length": 0}, "max_length 0 is no whole number from 1 to 4096"), ({"group_threshold": 1.5}, "group_threshold 1.5"), ({"group_max_tags": 2.5}, "group_max_tags 2.5"),
    ({"general_threshold": "0.3"}, "general_threshold '0.3'"), ({"character_threshold": float("nan")}, "character_threshold nan")])
def test_bad_options(settings: dict, words: str) -> None:
    with pytest.raises(LoomError, match=words):
        CaptionOptions(**settings)


def test_the_node_s_help_says_what_the_methods_want() -> None:
    spec = importlib.util.spec_from_file_location("loom_make_help", Path(__file__).resolve().parents[1] / "tools" / "make_help.py")
    help_pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(help_pages)
    assert help_pages.LISTS == labels.ORDER and list(help_pages.METHODS) == list(methods.METHODS)
    for name, (folder, sources, _) in help_pages.METHODS.items():
        assert folder == methods.METHODS[name].home
        assert all(source.split("/")[-1] in methods.METHODS[name].source for source in sources.split(" \u00b7 "))
    for language in ("en", "zh"):
        page = (help_pages.DOCS / "AutoCaption" / f"{language}.md").read_text(encoding="utf-8")
        assert page == help_pages.filled(page, language), "run python tools/make_help.py"
        assert all(f"- `{name}`" in page for name in methods.METHODS) and all(f"`@{name}`" in page for name in labels.ORDER)
    assert [group.name for group in parse_groups(help_pages.EXAMPLE.strip("`"))] == ["medium", "light", "animal", "mood"]
