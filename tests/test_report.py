"""The report says what is wrong with a set of pictures, and nothing of a good one; filters leave out what it names, and delete nothing."""
from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_loom.trainer import cli
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.backbones.families import FAMILIES
from lora_loom.trainer.backbones.protocol import TextEncoder
from lora_loom.trainer.captioners import open_clip_files, scores
from lora_loom.trainer.data.filters import leave_out, leave_out_below, leave_out_reported
from lora_loom.trainer.data.findings import SEVERITIES, usual_multiple
from lora_loom.trainer.data.folder import Dataset, read_dataset
from lora_loom.trainer.data.report import Report, Training, about_training, examine, look, whole_text
from lora_loom.trainer.data.words import is_common
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.toy.tokens import clip_tokenizer
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from safetensors.torch import save_file
from skimage import data

PHOTOS = {name: Image.fromarray(getattr(data, name)()).convert("RGB") for name in ("astronaut", "chelsea", "coffee", "camera", "rocket")}
WORDS = TextEncoder("words", lambda captions: [len(caption.split()) for caption in captions], 10, True)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Ten sharp and different pictures, each with a caption of its own."""
    home = tmp_path / "好 good"
    home.mkdir()
    crops = [(name, image, part) for name, image in PHOTOS.items() for part in ("left", "right")]
    for number, (name, image, part) in enumerate(crops):
        side = min(image.width // 2, image.height)
        left = 0 if part == "left" else image.width - side
        image.crop((left, 0, left + side, side)).resize((256, 256), Image.Resampling.LANCZOS).save(home / f"{name} {part}.png")
        (home / f"{name} {part}.txt").write_text(f"zxmug, {name}, number {number}", encoding="utf-8")
    return home


def report(folder: Path, training: Training | None = None, **settings) -> Report:
    return examine(read_dataset(folder, **{"resolution": 256, "min_size": 64, "trigger_word": "zxmug", **settings}), training)


def found(made: Report) -> dict[str, tuple]:
    return {finding.id: finding for finding in made.findings}


def names(made: Report, id_: str) -> list[str]:
    return [name for name, _ in found(made)[id_].pictures]


def test_a_good_set_is_let_be(good: Path) -> None:
    made = report(good)
    assert made.findings == () and made.summary() == "10 pictures: nothing to complain of"
    assert [(b.width, b.height, b.pictures, b.cropped) for b in made.buckets] == [(256, 256, 10, 0.0)]


# ---------------------------------------------------------------- pictures

SPOILED = {
    "copies": lambda home, image: (home / "copy.png").write_bytes((home / "astronaut left.png").read_bytes()),
    "alike": lambda home, image: image.save(home / "copy.jpg", quality=60),
    "mirrored": lambda home, image: ImageOps.mirror(image).save(home / "copy.png"),
    "blurred": lambda home, image: PHOTOS["rocket"].crop((100, 50, 400, 350)).filter(ImageFilter.GaussianBlur(5)).save(home / "copy.png"),
    "dark": lambda home, image: ImageEnhance.Brightness(PHOTOS["rocket"].crop((100, 0, 400, 300))).enhance(0.1).save(home / "copy.png"),
    "bright": lambda home, image: Image.fromarray(255 - np.asarray(PHOTOS["coffee"].crop((0, 50, 350, 400))) // 8).save(home / "copy.png"),
    "flat": lambda home, image: ImageEnhance.Contrast(PHOTOS["coffee"].crop((0, 50, 350, 400))).enhance(0.1).save(home / "copy.png"),
    "clipped": lambda home, image: ImageOps.expand(PHOTOS["coffee"].crop((200, 100, 400, 300)), 80, "white").save(home / "copy.png"),
    "too_small": lambda home, image: PHOTOS["coffee"].resize((60, 40)).save(home / "copy.png"),
    "smaller": lambda home, image: PHOTOS["coffee"].resize((150, 150)).save(home / "copy.png"),
    "cropped": lambda home, image: PHOTOS["coffee"].crop((0, 100, 600, 250)).resize((1200, 300)).save(home / "copy.png"),
    "broken": lambda home, image: (home / "copy.png").write_bytes(b"GIF89a, it says"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_what_is_wrong_is_named_alone(good: Path, what: str) -> None:
    SPOILED[what](good, Image.open(good / "astronaut left.png"))
    for path in good.glob("copy.*"):
        path.with_suffix(".txt").write_text("zxmug, one more", encoding="utf-8")
    made = report(good)
    assert set(found(made)) == {what}
    assert {name.rsplit(".", 1)[0] for name in names(made, what)} <= {"copy", "astronaut left"}
    assert len(names(made, what)) == 1 and found(made)[what].values.get("n") == 1
    assert ":" in found(made)[what].text and "1 " in found(made)[what].text


def test_the_larger_of_two_alike_is_kept(good: Path) -> None:
    Image.open(good / "astronaut left.png").resize((512, 512), Image.Resampling.BICUBIC).save(good / "large.png")
    assert found(report(good))["alike"].pictures == (("astronaut left.png", "like large.png"),)


def test_mirror_images_matter_more_where_flip_makes_them(good: Path) -> None:
    ImageOps.mirror(Image.open(good / "coffee left.png")).save(good / "turned.png")
    assert found(report(good))["mirrored"].severity == "note"
    finding = found(report(good, flip=True))["mirrored"]
    assert finding.severity == "warning" and "turn flip off" in finding.text


def test_pictures_that_are_enlarged(good: Path) -> None:
    PHOTOS["coffee"].resize((90, 30)).save(good / "strip.png")
    made = report(good, min_size=0)
    assert found(made)["enlarged"].pictures == (("strip.png", "90x30, trained at 64x64"),)


def test_squares_crop_and_the_remedy_is_buckets(good: Path) -> None:
    PHOTOS["coffee"].save(good / "wide.png")
    finding = found(report(good, buckets=False))["cropped"]
    assert finding.pictures == (("wide.png", "33%, 600x400 to 256x256"),) and "turn buckets on" in finding.text


def test_buckets_are_counted_as_they_are_trained(good: Path) -> None:
    from lora_loom.trainer.job import buckets

    PHOTOS["coffee"].save(good / "wide.png")
    dataset = read_dataset(good, resolution=256, min_size=64)
    for family in ("sd15", "flux"):
        made = examine(dataset, Training(multiple=FAMILIES[family].size_multiple))
        assert {(b.width, b.height): b.pictures for b in made.buckets} == buckets(dataset, FAMILIES[family])
    assert [usual_multiple(resolution) for resolution in (64, 128, 512, 768, 1024, 4096)] == [16, 16, 64, 64, 64, 64]


def test_batches_that_cannot_be_filled(good: Path) -> None:
    PHOTOS["coffee"].save(good / "wide.png")
    (good / "wide.txt").write_text("zxmug in a cup")
    assert found(report(good, Training(batch_size=4)))["short_batches"].pictures == (("wide.png", "320x192"),)
    assert "short_batches" not in found(report(good, Training(batch_size=4), repeats=4))
    assert "short_batches" not in found(report(good, Training(batch_size=1)))


# ---------------------------------------------------------------- captions

def test_captions(good: Path) -> None:
    texts = sorted(good.glob("*.txt"))
    for path in texts[:3]:
        path.write_text("A  photo\n")
    texts[3].write_text("")
    texts[4].unlink()
    made = report(good)
    missing = [path.with_suffix(".png").name for path in texts[3:5]]
    assert set(found(made)) == {"no_caption", "same_caption", "without_trigger"}
    assert names(made, "no_caption") == missing and "the trigger word 'zxmug' alone" in found(made)["no_caption"].text
    assert names(made, "same_caption") == names(made, "without_trigger") == [path.with_suffix(".png").name for path in texts[:3]]
    assert "an empty caption" in found(report(good, trigger_word=""))["no_caption"].text


def test_the_trigger_word(good: Path) -> None:
    assert set(found(report(good, trigger_word=""))) == {"no_trigger"}
    made = found(report(good, trigger_word="cat"))
    assert set(made) == {"without_trigger", "common_trigger"} and "'cat'" in made["common_trigger"].text
    assert [word for word in ("cat", "Dragon", "red hat", "astronaut", "sks", "zxmug", "ohwx", "zxmug cat", "水墨", "") if is_common(word)] == \
        ["cat", "Dragon", "red hat", "astronaut"]


def test_long_captions_say_what_really_happens(good: Path) -> None:
    (good / "coffee left.txt").write_text("zxmug " + "very " * 23 + "long")
    made = found(report(good, Training(encoders=(WORDS,))))["long_captions"]
    assert made.pictures == (("coffee left.png", "25 tokens"),) and made.severity == "warning"
    assert "above the 10 tokens that words reads at once, up to 25: each is read in up to 3 parts" in made.text
    whole = dataclasses.replace(WORDS, windows=False, name="T5")
    made = [finding for finding in report(good, Training(encoders=(WORDS, whole, WORDS))).findings if finding.id == "long_captions"]
    assert len(made) == 1 and "T5" in made[0].text and "nothing is cut" in made[0].text  # what T5 reads whole, CLIP's parts hardly matter for
    assert len([f for f in report(good, Training(encoders=(WORDS, WORDS))).findings if f.id == "long_captions"]) == 1
    (good / "coffee left.txt").write_text("one two three four five six seven eight nine")  # ten with the trigger word in front
    assert "long_captions" not in found(report(good, Training(encoders=(WORDS,))))


def test_tokens_of_the_command_line_are_clip_s() -> None:
    captions = ["", "a cat", "水墨画，山 and 🐱 " * 30, "naïve (emphasis:1.2) [x] <lora:y>", "zxmug " * 80]
    for family, count in (("sd15", ["CLIP-L"]), ("sd2", ["CLIP-H"]), ("sdxl", ["CLIP-L", "CLIP-G"])):
        encoders = backbone.text_encoders("toy_base", family)
        assert [encoder.name for encoder in encoders] == count and all(encoder.limit == 75 and encoder.windows for encoder in encoders)
        expected = [len(clip_tokenizer()(caption).input_ids) - 2 for caption in captions]
        assert encoders[0].count(captions) == expected and max(expected) > 75
        assert [len(backbone.chunks(clip_tokenizer(), caption)) for caption in captions] == [max(1, -(-n // 75)) for n in expected]


def test_how_many_pictures_the_preset_is_made_for(good: Path) -> None:
    dataset = read_dataset(good, resolution=256, min_size=64)
    said = lambda low, high: [(f.id, f.severity) for f in about_training(dataset, Training(pictures=(low, high)))]
    assert said(11, 20) == [("few_pictures", "warning")] and said(10, 20) == said(4, 5) == said(0, 0) == []
    assert said(1, 3) == [("many_pictures", "note")]
    few = dataclasses.replace(dataset, pictures=dataset.pictures[:4])
    assert [(f.id, f.severity) for f in about_training(few, Training())] == [("few_pictures", "note")]


# ---------------------------------------------------------------- as text and as JSON

def test_json_is_plain_and_whole(good: Path) -> None:
    for spoil in SPOILED.values():
        spoil(good, Image.open(good / "astronaut left.png"))
        for path in good.glob("copy.*"):
            path.rename(path.with_name(f"{len(list(good.iterdir()))}{path.suffix}"))
    made = report(good, Training(batch_size=8, pictures=(50, 90), encoders=(WORDS,)))
    tree = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert set(tree) == {"version", "folder", "pictures", "resolution", "counts", "buckets", "findings"}
    assert tree["version"] == 1 and tree["pictures"] == made.pictures and tree["folder"] == "好 good"
    assert sum(tree["counts"].values()) == len(tree["findings"]) > 10 and tuple(tree["counts"]) == SEVERITIES
    assert sum(bucket["pictures"] for bucket in tree["buckets"]) == made.pictures
    assert all(set(bucket) == {"width", "height", "pictures", "cropped", "most_cropped"} and 0 <= bucket["cropped"] <= bucket["most_cropped"] < 1
               for bucket in tree["buckets"])
    for finding in tree["findings"]:
        assert set(finding) == {"id", "severity", "text", "values", "count", "pictures"} and finding["count"] == len(finding["pictures"])
        assert all(set(picture) == {"name", "detail"} for picture in finding["pictures"])
    assert [f["severity"] for f in tree["findings"]] == sorted((f["severity"] for f in tree["findings"]), key=SEVERITIES.index)
    short = made.to_dict(most=1)["findings"]
    assert all(len(s["pictures"]) <= 1 and s["count"] == f["count"] for s, f in zip(short, tree["findings"]))
    text = whole_text(read_dataset(good, resolution=256, min_size=64), made)
    assert all(finding["text"] in text for finding in tree["findings"]) and "pictures x 1 repeats" in text


def test_the_page_has_words_for_every_finding(good: Path) -> None:
    """Titles, by the findings' ids; their sentences are messages like any other (test_messages.py)."""
    import re

    root = Path(cli.__file__).parents[1]
    checks = "".join((root / "trainer" / "data" / name).read_text(encoding="utf-8") for name in ("picture_checks.py", "caption_checks.py"))
    ids = set(re.findall(r'Finding\("(\w+)"', checks)) | {"dark", "bright", "flat", "clipped"}
    words = (root / "web" / "js" / "report_words.mjs").read_text(encoding="utf-8")
    assert set(re.findall(r'^    (\w+): \["[^"]+", "[^"]+"\],$', words, re.MULTILINE)) == ids


# ---------------------------------------------------------------- filters

def test_filters_leave_out_what_is_reported_and_keep_every_file(good: Path) -> None:
    for what in ("alike", "blurred", "dark"):
        SPOILED[what](good, Image.open(good / "astronaut left.png"))
        copy = next(good.glob("copy.*"))
        copy.rename(good / f"x {what}{copy.suffix}")
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in good.iterdir()}
    dataset = read_dataset(good, resolution=256, min_size=64)
    seen = look(dataset)
    assert leave_out_reported(seen, set()) is dataset
    for switch, name in (("duplicates", "x alike.jpg"), ("blurred", "x blurred.png"), ("badly_exposed", "x dark.png")):
        kept = leave_out_reported(seen, {switch})
        assert name in {row[0] for row in kept.left_out} and name not in {p.name for p in kept.pictures}
    kept = leave_out_reported(seen, {"duplicates", "blurred", "badly_exposed"})
    assert len(kept.pictures) == 10 and dict(kept.left_out)["x alike.jpg"] == "Filter Dataset: looks like astronaut left.png"
    assert len(dataset.pictures) == 13 and dataset.left_out == ()  # a Dataset does not change
    assert found(examine(kept))["filtered"].values == {"n": 3} and "broken" not in found(examine(kept))
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in good.iterdir()} == before
    with pytest.raises(LoomError, match="'nonsense' is unknown"):
        leave_out_reported(seen, {"nonsense"})


def test_a_filter_leaves_something(good: Path) -> None:
    dataset = read_dataset(good, resolution=256, min_size=64)
    kept = leave_out_below(dataset, {p.name: i / 10 for i, p in enumerate(dataset.pictures)}, 0.35, "similarity")
    assert [p.name for p in kept.pictures] == [p.name for p in dataset.pictures[4:]]
    assert kept.left_out[0] == (dataset.pictures[0].name, "Filter Dataset: similarity 0 is below 0.35")
    with pytest.raises(LoomError, match="leaves out all 10 pictures.*lower its thresholds"):
        leave_out(dataset, {p.name: "why not" for p in dataset.pictures})


MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> open_clip_files.OpenClip:
    """A tiny CLIP with random weights in open_clip's format."""
    import open_clip

    home = tmp_path_factory.mktemp("models") / "tiny"
    home.mkdir()
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**MODEL).state_dict(), home / "open_clip_model.safetensors")
    (home / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": {}}))
    return open_clip_files.load(home)


def test_similarity_is_open_clip_s_own(good: Path, clip: open_clip_files.OpenClip) -> None:
    import open_clip

    dataset, polled, done = read_dataset(good, resolution=256, min_size=64), [], []
    features = scores.image_features(clip, dataset, "cpu", lambda *now: done.append(now), lambda: polled.append(1), batch=4)
    assert features.shape == (10, 16) and len(polled) == 10 and done == [(4, 10), (8, 10), (10, 10)]
    with torch.no_grad():
        pixels = torch.stack([clip.preprocess(Image.open(p.path).convert("RGB")) for p in dataset.pictures])
        text = clip.model.encode_text(open_clip.SimpleTokenizer()(["a cup of coffee"]), normalize=True)
        expected = (clip.model.encode_image(pixels, normalize=True) @ text.T)[:, 0]
    assert torch.allclose(torch.tensor(scores.similarities(clip, features, " a cup of coffee ")), expected, atol=1e-5)
    with pytest.raises(LoomError, match="prompt is empty"):
        scores.similarities(clip, features, " ")


def linear(width: int) -> torch.nn.Module:
    return torch.nn.Linear(width, 1)


def mlp(width: int) -> torch.nn.Module:
    """As github.com/christophschuhmann/improved-aesthetic-predictor has it."""
    drop = torch.nn.Dropout(0.2)
    layers = torch.nn.Sequential(torch.nn.Linear(width, 1024), drop, torch.nn.Linear(1024, 128), drop, torch.nn.Linear(128, 64), drop, torch.nn.Linear(64, 16),
                                 torch.nn.Linear(16, 1))
    return torch.nn.ModuleDict({"layers": layers}).eval()


@pytest.mark.parametrize("kind", [linear, mlp])
def test_aesthetic_heads_give_what_their_networks_give(tmp_path: Path, kind) -> None:
    torch.manual_seed(1)
    net = kind(16).eval()
    save_file(net.state_dict(), tmp_path / "head.safetensors")
    head, features = scores.load_head(tmp_path / "head.safetensors"), torch.randn(7, 16)
    with torch.no_grad():
        expected = (net if kind is linear else net["layers"])(features)[:, 0]
    assert head.width == 16 and torch.allclose(torch.tensor(scores.aesthetics(head, features, "tiny")), expected, atol=1e-5)
    with pytest.raises(LoomError, match="takes features of width 16, and model 'tiny' gives 512"):
        scores.aesthetics(head, torch.randn(2, 512), "tiny")


@pytest.mark.parametrize("state", [{}, {"weight": torch.zeros(1, 768)}, {"weight": torch.zeros(2, 768), "bias": torch.zeros(2)}, {"weight": torch.zeros(()), "bias": torch.zeros(())},
                                   {"layers.0.weight": torch.zeros(1024, 768), "layers.0.bias": torch.zeros(1024)}])
def test_other_heads_are_refused(tmp_path: Path, state: dict) -> None:
    save_file(state, tmp_path / "head.safetensors")
    with pytest.raises(LoomError, match="width is 768 for CLIP ViT-L/14"):
        scores.load_head(tmp_path / "head.safetensors")
    (tmp_path / "head.safetensors").write_bytes(b"nothing")
    with pytest.raises(LoomError, match="cannot be read"):
        scores.load_head(tmp_path / "head.safetensors")
    with pytest.raises(LoomError, match="is a pickle"):
        scores.load_head(tmp_path / "sac+logos+ava1-l14-linearMSE.pth")


# ---------------------------------------------------------------- on the command line

def test_check_prints_the_report(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    SPOILED["alike"](good, Image.open(good / "astronaut left.png"))
    given = ["check", str(good), "--resolution", "256", "--trigger-word", "zxmug", "--preset", "person", "--batch-size", "4"]
    assert cli.main([*given, "--cache", str(tmp_path / "cache")]) == 0
    text = capsys.readouterr().out
    assert "11 pictures x 1 repeats" in text and "warning: 1 picture looks almost like another" in text and "made for 15 to 30" in text
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert cli.main([*given, "--json"]) == 0
    assert {f["id"] for f in json.loads(capsys.readouterr().out)["findings"]} == {"alike", "no_caption", "few_pictures"}
    for wrong, said in ((["--batch-size", "0"], "--batch-size 0"), (["--preset", "persn"], "did you mean 'person'"), (["--resolution", "9"], "below 64")):
        assert cli.main([*given, *wrong]) == 2 and said in capsys.readouterr().err


def test_the_dry_run_reports_too(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (good / "coffee left.txt").write_text("zxmug " + "very " * 100 + "long")
    config = tmp_path / "run.yaml"
    config.write_text(f"train_data_dir: {json.dumps(str(good))}\nbase_model: toy_base\nresolution: 64\npreset: person\ntrigger_word: zxmug\n")
    assert cli.main(["train", str(config), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "above the 75 tokens that CLIP-L reads at once" in text and "made for 15 to 30" in text and not (tmp_path / "output").exists()


def test_a_dataset_without_pictures_has_a_report() -> None:
    made = examine(Dataset(Path("nowhere"), (), 512, 0, "", 1, False, True, "none"))
    assert made.buckets == () and made.summary() == "0 pictures: 2 notes" and set(found(made)) == {"no_trigger", "few_pictures"}
