"""Tags equal open_clip's own answer, nothing is downloaded, and no caption of the user's is ever lost."""
from __future__ import annotations

import json
import socket
import sys
import weakref
from pathlib import Path

import pytest
import torch
from lora_loom.trainer.captioners import clip_tags, methods, open_clip_files
from lora_loom.trainer.captioners.captioning import caption_dataset, save_captions
from lora_loom.trainer.captioners.labels import Group
from lora_loom.trainer.captioners.options import CaptionOptions
from lora_loom.trainer.captioners.wording import Wording
from lora_loom.trainer.data.folder import Dataset, open_picture, read_dataset
from lora_loom.trainer.errors import LoomError
from PIL import Image
from safetensors.torch import save_file
from skimage import data

LABELS = ["cat", "coffee", "woman", "rocket"]
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
MEAN = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def write_model(home: Path, change: dict | None = None, weights: str = "open_clip_model.safetensors") -> Path:
    """A tiny CLIP with random weights in the Hugging Face layout of open_clip."""
    import open_clip

    home.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**MODEL).state_dict(), home / weights)
    tree = {"model_cfg": {**MODEL, **(change or {})}, "preprocess_cfg": MEAN}
    (home / "open_clip_config.json").write_text(json.dumps(tree))
    return home


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    home = tmp_path / "set"
    (home / "sub").mkdir(parents=True)
    Image.fromarray(data.astronaut()).save(home / "astronaut.png")
    Image.fromarray(data.chelsea()).save(home / "chelsea.jpg")
    Image.fromarray(data.coffee()).save(home / "sub" / "咖啡.png")
    (home / "chelsea.txt").write_text("a tabby cat")
    return read_dataset(home, min_size=64)


class Words:
    """A captioner that needs no model: the labels from the position on that is the number of the call."""

    def __init__(self, labels: list[str] = LABELS) -> None:
        self.labels, self.calls = labels, 0

    def caption(self, image: Image.Image, poll: object = None) -> list[tuple[str, float]]:
        assert image.mode == "RGB"
        self.calls += 1
        return [(label, 1.0) for label in self.labels[self.calls - 1:]]


def texts(dataset: Dataset) -> dict[str, str]:
    return {p.name: p.caption for p in dataset.pictures}


def test_groups_equal_open_clip_and_torch(model: Path, offline: None) -> None:
    """Each group's probabilities are torch's softmax over its own labels of what open_clip itself says."""
    import open_clip

    if not hasattr(open_clip.factory, "parse_model_name"):
        pytest.skip("this open_clip reads no local folders, so it is no reference")
    tagger = clip_tags.load(model, options=CaptionOptions(labels="animal: cat, dog, bird\nred, blue\nplace max=1 threshold=0: beach, coffee shop, space station",
                                                         group_max_tags=2, group_threshold=0.3))
    reference, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{model}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{model}")
    for picture in (data.chelsea(), data.coffee(), data.camera()):
        image = Image.fromarray(picture)
        ranked, wanted = tagger.rank(image), []
        assert [len(part) for part in ranked] == [3, 2, 3]
        with torch.no_grad():
            seen = reference.encode_image(preprocess(image)[None], normalize=True)
            for group, part in zip(tagger.groups, ranked, strict=True):
                prompts = [tokenize([template.format(label) for template in clip_tags.TEMPLATES]) for label in group.labels]
                text = torch.stack([reference.encode_text(tokens, normalize=True).mean(0) for tokens in prompts])
                expected = (100 * seen @ torch.nn.functional.normalize(text, dim=-1).T).softmax(-1)[0]
                torch.testing.assert_close(part, expected, atol=1e-5, rtol=0)
                order = sorted(range(len(expected)), key=lambda i: -part[i])
                fitting = [(group.labels[i], part[i].item()) for i in order if part[i] >= (0.3 if group.threshold is None else group.threshold)]
                wanted += fitting[:group.most or 2]
        assert tagger.caption(image) == wanted and len(wanted) >= 3
    assert clip_tags.load(model, options=CaptionOptions(labels="a, b, c", group_threshold=1.0)).caption(image) == []


def test_empty_labels_are_the_lists_that_come_along(model: Path) -> None:
    tagger = clip_tags.load(model)
    assert [group.name for group in tagger.groups] == ["medium", "style", "subject", "light", "palette", "composition"]
    image = Image.fromarray(data.coffee())
    assert all(part.sum().item() == pytest.approx(1, abs=1e-4) for part in tagger.rank(image)) and sum(map(len, tagger.rank(image))) > 400


def test_file_named_after_its_architecture(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, offline: None) -> None:
    import open_clip

    assert set(open_clip_files.architectures()) == set(open_clip.list_models())
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(MODEL))
    real = open_clip_files.architectures()
    monkeypatch.setattr(open_clip_files, "architectures", lambda: {**real, "ViT-B-32": config})  # the real one weighs 600 MB
    file = tmp_path / "ViT-B-32.safetensors"
    file.write_bytes((model / "open_clip_model.safetensors").read_bytes())
    assert clip_tags.load(file, options=CaptionOptions(labels="a, b")).rank(Image.fromarray(data.coffee()))[0].shape == (2,)


def test_tokenizer_from_the_model_folder(tmp_path: Path, offline: None) -> None:
    home = write_model(tmp_path / "m", {"text_cfg": {**MODEL["text_cfg"], "hf_tokenizer_name": "somebody/else"}})
    words = {"[PAD]": 0, "a": 1, "photo": 2, "of": 3, "cat": 4, "[UNK]": 5}
    tokens = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "Whitespace"},
              "post_processor": None, "decoder": None, "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}}
    (home / "tokenizer.json").write_text(json.dumps(tokens))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (home / "tokenizer_config.json").write_text(json.dumps(settings))
    tagger = clip_tags.load(home, options=CaptionOptions(labels="cat, a photo"))
    assert tagger.clip.tokenizer(["a photo of cat"])[0, :6].tolist() == [1, 2, 3, 4, 0, 0]
    assert tagger.rank(Image.fromarray(data.coffee()))[0].shape == (2,)
    (home / "tokenizer.json").write_text("{}")
    (home / "tokenizer_config.json").unlink()
    with pytest.raises(LoomError, match="tokenizer beside model"):
        clip_tags.load(home)


@pytest.mark.parametrize("change,words", [
    ({"text_cfg": {"hf_model_name": "xlm-roberta-base", "hf_tokenizer_name": "xlm-roberta-base"}}, "nothing is downloaded"),
    ({"text_cfg": {"hf_model_name": "xlm-roberta-base"}}, "text tower 'xlm-roberta-base'"),
    ({"text_cfg": {**MODEL["text_cfg"], "hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}}, "tokenizer 'timm/ViT-B-16-SigLIP'"),
    ({"vision_cfg": {"timm_model_name": "hf-hub:timm/vit", "image_size": 32}}, "vision tower"),
    ({"embed_dim": 32}, "do not fit the architecture"),
    ({"text_cfg": {"no_such_option": 1}}, "cannot be built"),
    ({"text_cfg": None}, "no open_clip configuration"),
])
def test_models_that_cannot_be_used(tmp_path: Path, offline: None, change: dict, words: str) -> None:
    with pytest.raises(LoomError, match=words):
        clip_tags.load(write_model(tmp_path / "m", change))


def test_pickles_and_strangers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL}))
    for path, words in {"pickled": "has no open_clip_model.safetensors", "nowhere": "does not exist", "x.pt": "is a pickle",
                        "x.safetensors": "tells no architecture"}.items():
        if path.startswith("x."):
            (tmp_path / path).write_bytes(b"")
        with pytest.raises(LoomError, match=words):
            clip_tags.load(tmp_path / path)
    (tmp_path / "pickled" / "open_clip_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(LoomError, match="open_clip_pytorch_model.bin, a pickle.*take open_clip_model.safetensors"):
        clip_tags.load(tmp_path / "pickled")
    (tmp_path / "pickled" / "open_clip_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(LoomError, match="cannot be read"):
        clip_tags.load(tmp_path / "pickled")


def test_local_models(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "open_clip"
    for name in ("ViT-B-32.safetensors", "clip_l.safetensors", "ViT-L-14.pt"):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    write_model(folder / "laion" / "tiny", weights="open_clip_pytorch_model.safetensors")
    folders = [folder, model.parent, tmp_path / "nowhere"]
    assert methods.local_models(folders) == ["laion/tiny", "tiny", "ViT-B-32.safetensors"]
    assert methods.model_path("clip_tags", "tiny", folders) == model
    assert clip_tags.load(methods.model_path("clip_tags", "laion/tiny", folders)).groups
    with pytest.raises(LoomError, match=r"'../secret' is not there.*ViT-B-32.safetensors\).*tmp.*open_clip .*huggingface.*found for clip_tags: laion/tiny, tiny, ViT-B-32"):
        methods.model_path("clip_tags", "../secret", folders)
    with pytest.raises(LoomError, match="'tiny' is for clip_tags, not for coca: coca takes an open_clip CoCa"):
        methods.model_path("coca", "tiny", folders)
    with pytest.raises(LoomError, match="method 'magic' is unknown"):
        methods.model_path("magic", "tiny", folders)


def test_nothing_of_the_model_is_left(dataset: Dataset, model: Path) -> None:
    """Also where an error or a cancel ends it, and someone keeps the error."""

    class Interrupt(BaseException):
        pass

    def gone(poll: object = None, broken: bool = False) -> tuple[list[weakref.ref], BaseException | None]:
        living: list[weakref.ref] = []

        def load() -> clip_tags.Tagger:
            tagger = clip_tags.load(model, options=CaptionOptions(labels="a, b"))
            living.extend(weakref.ref(value) for value in (*tagger.clip.model.parameters(), *tagger.clip.model.buffers()))
            if broken:
                tagger.rank = None
            return tagger

        try:
            with methods.opened(load) as tagger:
                caption_dataset(dataset, tagger, Wording(existing="replace"), poll=poll)
        except BaseException as error:
            return living, error
        return living, None

    for ending, kind in (({}, type(None)), ({"poll": _raiser(Interrupt, 2)}, Interrupt), ({"broken": True}, TypeError)):
        living, error = gone(**ending)
        assert isinstance(error, kind) and len(living) > 10 and not any(ref() is not None for ref in living), kind


def _raiser(kind: type[BaseException], call: int):
    calls = []

    def poll() -> None:
        calls.append(1)
        if len(calls) == call:
            raise kind

    return poll


@pytest.mark.parametrize("existing,chelsea,calls", [
    ("keep", "a tabby cat", 2), ("replace", "pre, coffee, woman, post", 3), ("append", "pre, a tabby cat, coffee, woman, post", 3)])
def test_existing_captions(dataset: Dataset, existing: str, chelsea: str, calls: int) -> None:
    words, steps, polls = Words(), [], []
    captioned, report = caption_dataset(dataset, words, Wording("pre, ", "post", existing, 2),
                                        progress=lambda done, total: steps.append((done, total)), poll=lambda: polls.append(1))
    assert texts(captioned)["astronaut.png"] == "pre, cat, coffee, post" and texts(captioned)["chelsea.jpg"] == chelsea
    assert words.calls == calls and steps == [(1, 3), (2, 3), (3, 3)] and len(polls) == 3
    assert report.startswith(f"{calls} pictures captioned, {3 - calls} kept") and not (dataset.folder / "metadata.csv").exists()


def test_append_twice_says_nothing_twice(dataset: Dataset) -> None:
    once, _ = caption_dataset(dataset, Words(), Wording("pre", "x, post", "append"))
    twice, _ = caption_dataset(once, Words(), Wording("pre", "x, post", "append"))
    assert texts(once) == texts(twice)


def test_real_tagger_fills_a_dataset(dataset: Dataset, model: Path, offline: None) -> None:
    tagger = clip_tags.load(model, options=CaptionOptions(labels=", ".join(LABELS), group_threshold=0.0, group_max_tags=4))
    captioned, report = caption_dataset(dataset, tagger, Wording(max_tags=2))
    wanted = [label for label, _ in tagger.caption(open_picture(dataset.pictures[0].path))[:2]]
    assert texts(captioned)["astronaut.png"] == ", ".join(wanted) and "2 pictures captioned, 1 kept" in report
    assert "2 pictures have more tags than max_tags 2 lets through, up to 4" in report
    tagger.groups = [Group("all", tuple(LABELS), threshold=1.0)]
    captioned, report = caption_dataset(dataset, tagger, Wording(existing="replace"))
    assert "nothing was found for 3 pictures" in report and "astronaut.png" in report
    assert texts(captioned) == texts(dataset)  # a caption is not lost for nothing


@pytest.mark.parametrize("save_as", ["metadata.csv", "sidecar .txt"])
def test_saved_captions_are_read_again(dataset: Dataset, save_as: str) -> None:
    captioned, report = caption_dataset(dataset, Words(['"red" blue', "é 鸟", "x"]), Wording(existing="append"), save_as=save_as)
    again = read_dataset(dataset.folder, min_size=64)
    assert texts(again) == texts(captioned) and again.digest() == captioned.digest() and "saved 3 captions" in report
    assert again.caption_source == ("sidecar" if save_as == "sidecar .txt" else save_as)
    if save_as == "metadata.csv":
        assert (dataset.folder / save_as).read_text("utf-8").splitlines()[0] == "filename,prompt"
        assert (dataset.folder / "chelsea.txt").read_text() == "a tabby cat"
    else:
        assert (dataset.folder / "chelsea.txt.bak").read_text() == "a tabby cat"
    assert not [p.name for p in dataset.folder.rglob("*") if p.name.endswith(".tmp")]


def test_no_old_caption_is_lost(dataset: Dataset) -> None:
    table = dataset.folder / "metadata.csv"
    first = "file_name,text,stars\nastronaut.png,mine,5\ntoo_small.png,also mine,4\n"
    table.write_text(first)
    current = read_dataset(dataset.folder, min_size=64)
    save_captions(current.with_captions({"astronaut.png": "theirs"}), "metadata.csv")
    backup = dataset.folder / "metadata.csv.bak"
    assert backup.read_text() == first
    second = table.read_text()
    assert second == "file_name,text,stars\nastronaut.png,theirs,5\nchelsea.jpg,a tabby cat,\ntoo_small.png,also mine,4\n"
    save_captions(current.with_captions({"astronaut.png": "theirs"}), "metadata.csv")  # no change, no further copy
    save_captions(current.with_captions({"astronaut.png": "third"}), "metadata.csv")
    assert backup.read_text() == first and (dataset.folder / "metadata.csv.bak.1").read_text() == second
    assert not (dataset.folder / "metadata.csv.bak.2").exists()
    assert "reads metadata.csv before them" in save_captions(current, "sidecar .txt")


@pytest.mark.parametrize("save_as", ["metadata.csv", "sidecar .txt", "nothing"])
def test_interrupt_keeps_what_is_done(dataset: Dataset, save_as: str) -> None:
    class Interrupt(BaseException):
        pass

    words = Words()

    def poll() -> None:
        if words.calls == 2:
            raise Interrupt

    with pytest.raises(Interrupt):
        caption_dataset(dataset, words, Wording(existing="replace", max_tags=1), save_as=save_as, poll=poll)
    done = {} if save_as == "nothing" else {"astronaut.png": "cat", "chelsea.jpg": "coffee"}
    assert texts(read_dataset(dataset.folder, min_size=64)) == {"astronaut.png": "", "chelsea.jpg": "a tabby cat", "sub/咖啡.png": "", **done}


def test_what_was_made_is_handed_over_on_every_way_out(dataset: Dataset) -> None:
    handed: list[dict[str, str]] = []
    with pytest.raises(KeyboardInterrupt):
        caption_dataset(dataset, Words(), Wording(existing="replace", max_tags=1), poll=_raiser(KeyboardInterrupt, 3), keep=lambda d: handed.append(texts(d)))
    assert handed == [{"astronaut.png": "cat", "chelsea.jpg": "coffee", "sub/咖啡.png": ""}]
    dataset.pictures[0].path.unlink()  # gone meanwhile: the others do not suffer
    captioned, report = caption_dataset(dataset, Words(), Wording(existing="replace", max_tags=1), keep=lambda d: handed.append(texts(d)))
    assert handed[1] == texts(captioned) and texts(captioned)["astronaut.png"] == "" and texts(captioned)["chelsea.jpg"] == "cat"
    assert "1 pictures cannot be read any more and stay as they were: astronaut.png" in report


def test_what_the_user_writes_meanwhile_stays(dataset: Dataset) -> None:
    table = dataset.folder / "metadata.csv"
    table.write_text("filename,prompt\nastronaut.png,old\nchelsea.jpg,old\n")
    current, words = read_dataset(dataset.folder, min_size=64), Words()

    def poll() -> None:
        if words.calls == 0:
            table.write_text("filename,prompt\nastronaut.png,by hand\nchelsea.jpg,old\n")

    caption_dataset(current, words, Wording(max_tags=1), save_as="metadata.csv", poll=poll)
    assert texts(read_dataset(dataset.folder, min_size=64)) == {"astronaut.png": "by hand", "chelsea.jpg": "old", "sub/咖啡.png": "cat"}


def test_failed_write_leaves_the_old_file(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    table = dataset.folder / "metadata.csv"
    table.write_text("filename,prompt\nastronaut.png,mine\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(LoomError, match="No space left on device"):
        save_captions(dataset, "metadata.csv")
    assert table.read_text() == "filename,prompt\nastronaut.png,mine\n" and not list(dataset.folder.glob(".*"))


def test_bad_choices(dataset: Dataset) -> None:
    with pytest.raises(LoomError, match="save_as 'txt'"):
        caption_dataset(dataset, Words(), save_as="txt")
    Image.fromarray(data.coffee()).save(dataset.folder / "chelsea.png")
    words = Words()
    with pytest.raises(LoomError, match="chelsea.jpg and chelsea.png would share"):
        caption_dataset(read_dataset(dataset.folder, min_size=64), words, save_as="sidecar .txt")
    assert words.calls == 0


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_links_are_not_written_through(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.csv").write_text("filename,prompt\n")
    (dataset.folder / "metadata.csv").symlink_to(tmp_path / "elsewhere.csv")
    with pytest.raises(LoomError, match="is a link"):
        save_captions(dataset, "metadata.csv")
    assert (tmp_path / "elsewhere.csv").read_text() == "filename,prompt\n"
