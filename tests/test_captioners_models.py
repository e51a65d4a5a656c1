"""CoCa and WD14 on tiny random models in their real formats: the same tokens and probabilities as open_clip, onnxruntime and timm themselves."""
from __future__ import annotations

import csv
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_loom.trainer.captioners import clip_tags, coca, methods, open_clip_files, wd14
from lora_loom.trainer.captioners.options import CaptionOptions
from lora_loom.trainer.errors import LoomError
from PIL import Image
from safetensors.torch import save_file
from skimage import data

PICTURES = [Image.fromarray(data.chelsea()), Image.fromarray(data.coffee()), Image.fromarray(data.camera()).convert("RGB")]
COCA = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1, "attn_pooler_heads": 2},
    "custom_text": True,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# ---------------------------------------------------------------- CoCa

@pytest.fixture(scope="module")
def coca_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import open_clip

    home = tmp_path_factory.mktemp("models") / "coca"
    home.mkdir()
    torch.manual_seed(0)
    model = open_clip.CoCa(**{name: value for name, value in COCA.items() if name != "custom_text"})
    for name, value in model.named_parameters():  # fresh weights say the same of every picture
        scale = 0.0 if "bias" in name or "query" in name else 1.0 if "visual" in name or "cross_attn" in name else 0.1
        value.data = torch.randn_like(value) * scale
    save_file(model.state_dict(), home / "open_clip_model.safetensors")
    (home / "open_clip_config.json").write_text(json.dumps({"model_cfg": COCA, "preprocess_cfg": {}}))
    return home


def test_coca_writes_what_open_clip_writes(coca_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedily, for open_clip's own search needs a class that transformers has dropped. Random weights never end a sentence."""
    import transformers
    from open_clip import coca_model as theirs

    for name in ("LogitsProcessorList", "TopKLogitsWarper", "RepetitionPenaltyLogitsProcessor", "MinLengthLogitsProcessor", "MaxLengthCriteria", "StoppingCriteriaList"):
        monkeypatch.setattr(theirs, name, getattr(transformers, name), raising=False)
    monkeypatch.setattr(theirs, "_has_transformers", True)
    monkeypatch.setitem(theirs.GENERATION_TYPES, "top_k", transformers.TopKLogitsWarper)
    writer = coca.load(coca_model, options=CaptionOptions(max_length=12))
    found = []
    for picture in PICTURES:
        pixels = writer.clip.preprocess(picture)[None]
        expected = writer.clip.model.generate(pixels, generation_type="top_k", top_k=1, seq_len=13, min_seq_len=5)[0].tolist()
        assert writer.tokens(picture, beams=1) == expected[:12] and len(expected) == 13
        found.append(expected[:12])
    assert len(set(map(tuple, found))) > 1  # the pictures count
    text = writer.caption(PICTURES[0])
    words = [token for token in writer.tokens(PICTURES[0]) if token not in (coca.START, coca.END)]
    assert text == " ".join(writer.clip.tokenizer.decode(words).split()) and "_of_text" not in text
    assert len(coca.load(coca_model).tokens(PICTURES[0])) <= 20  # max_length 256, the model's context 20


def test_beam_search_finds_the_likeliest_of_all() -> None:
    """Wide enough it is an exhaustive search: compared with every sequence there is."""
    start, end, vocabulary, longest, shortest = 0, 1, 4, 5, 3

    def next_tokens(rows: torch.Tensor) -> torch.Tensor:
        seeds = [torch.Generator().manual_seed(sum(token * 7**place for place, token in enumerate(row))) for row in rows.tolist()]
        return torch.stack([torch.randn(vocabulary, generator=seed).mul(2).log_softmax(-1) for seed in seeds])

    def mean(row: tuple[int, ...]) -> float:
        return sum(next_tokens(torch.tensor([row[:i]]))[0, row[i]].item() for i in range(1, len(row))) / len(row)

    every = [(start, *middle, end) for size in range(shortest - 1, longest - 1) for middle in itertools.product((0, 2, 3), repeat=size)]
    best = max(every, key=mean)
    assert coca.beam_search(next_tokens, start, end, longest, 1000, shortest) == list(best)
    narrow = [tuple(coca.beam_search(next_tokens, start, end, longest, beams, shortest)) for beams in range(1, 20)]
    ended = [mean(row) for row in narrow if row[-1] == end]
    assert len(ended) > 10 and ended[-1] == pytest.approx(mean(best)) and max(ended) <= mean(best) + 1e-6
    never = lambda rows: next_tokens(rows).index_fill(1, torch.tensor(end), -math.inf)
    assert len(coca.beam_search(never, start, end, longest, 3)) == longest


def test_coca_polls_at_every_word_and_refuses_others(coca_model: Path, tmp_path: Path) -> None:
    polls: list[int] = []
    coca.load(coca_model, options=CaptionOptions(max_length=7)).caption(PICTURES[0], lambda: polls.append(1))
    assert len(polls) == 6
    assert coca.fits(coca_model) and open_clip_files.fits(coca_model)
    plain = tmp_path / "plain"
    plain.mkdir()
    config = {name: {k: v for k, v in COCA["vision_cfg"].items() if "att" not in k and k != "output_tokens"} if name == "vision_cfg" else value
              for name, value in COCA.items() if name in ("embed_dim", "vision_cfg")}
    config["text_cfg"] = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    import open_clip

    save_file(open_clip.CLIP(**config).state_dict(), plain / "open_clip_model.safetensors")
    (plain / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    assert not coca.fits(plain)
    with pytest.raises(LoomError, match="writes no sentences: method coca takes a CoCa"):
        coca.load(plain)
    assert clip_tags.load(coca_model, options=CaptionOptions(labels="a, b")).rank(PICTURES[0])[0].sum().item() == pytest.approx(1)  # a CoCa ranks labels too


# ---------------------------------------------------------------- WD14

ROWS = [("general", 9), ("sensitive", 9), ("questionable", 9), ("explicit", 9), ("1girl", 0), ("long_hair", 0), ("^_^", 0), ("solo", 0), ("some_one_(series)", 4), ("b_c", 4)]
NAMES = ["general", "sensitive", "questionable", "explicit", "1girl", "long hair", "^_^", "solo", "some one (series)", "b c"]
SIDE = 24


def write_tags(path: Path, rows: list = ROWS) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("tag_id", "name", "category", "count"), *((i, name, category, 9) for i, (name, category) in enumerate(rows))])


def write_onnx(path: Path, shape: tuple = ("batch", SIDE, SIDE, 3), tags: int = len(ROWS)) -> Path:
    """Mean colour of each half, a random layer and a sigmoid: enough to tell channels, padding and order."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    pixels = int(np.prod(shape[1:]))
    weights = numpy_helper.from_array(random.normal(0, 1e-4, (pixels, tags)).astype(np.float32), "weights")
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["flat"], axis=1), helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
         helper.make_node("Sigmoid", ["logits"], ["output"])], "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)], [helper.make_tensor_value_info("output", TensorProto.FLOAT, ("batch", tags))], [weights])
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def squared(image: Image.Image) -> Image.Image:
    """As numpy would pad it: white, the picture in the middle."""
    pixels = np.asarray(image)
    side = max(pixels.shape[:2])
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - pixels.shape[0]) // 2, (side - pixels.shape[1]) // 2
    square[top:top + pixels.shape[0], left:left + pixels.shape[1]] = pixels
    return Image.fromarray(square)


def test_wd14_in_onnx_equals_onnxruntime(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = write_onnx(tmp_path / "tagger" / "model.onnx")
    write_tags(path.parent / "selected_tags.csv")
    tagger = wd14.load(path.parent)
    assert tagger.names == NAMES
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for picture in PICTURES:
        pixels = np.asarray(squared(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.float32)[:, :, [2, 1, 0]]
        expected = session.run(None, {"input": pixels[None]})[0][0]
        np.testing.assert_allclose(tagger.probabilities(picture), expected, rtol=0, atol=1e-6)
    write_onnx(tmp_path / "wd-v1-4-moat-tagger-v2.onnx")  # as other packs keep them: a file with its table beside it
    write_tags(tmp_path / "wd-v1-4-moat-tagger-v2.csv")
    np.testing.assert_array_equal(wd14.load(tmp_path / "wd-v1-4-moat-tagger-v2.onnx").probabilities(picture), tagger.probabilities(picture))


def write_timm(home: Path, tags: int = len(ROWS), **change: object) -> Path:
    import timm

    home.mkdir(parents=True, exist_ok=True)
    arguments = {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2, "global_pool": "avg", "class_token": False, "fc_norm": False}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=tags, **arguments)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    save_file(model.state_dict(), home / "model.safetensors")
    settings = {"custom_load": False, "input_size": [3, 32, 32], "fixed_input_size": False, "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center",
                "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "num_classes": tags, "pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head"}
    (home / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "num_classes": tags, "num_features": 16, "global_pool": "avg",
                                                  "model_args": arguments, "pretrained_cfg": settings, **change}))
    return home


def test_wd14_in_safetensors_equals_timm(tmp_path: Path) -> None:
    import timm
    from timm.data import create_transform, resolve_data_config

    home = write_timm(tmp_path / "tagger")
    write_tags(home / "selected_tags.csv")
    tagger = wd14.load(home)
    reference = timm.create_model(f"local-dir:{home}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(reference.pretrained_cfg, model=reference))
    for picture in PICTURES:
        with torch.no_grad():
            expected = reference(transform(squared(picture))[None][:, [2, 1, 0]]).sigmoid()[0]
        torch.testing.assert_close(torch.from_numpy(tagger.probabilities(picture)), expected, rtol=0, atol=1e-6)
    assert not np.allclose(tagger.probabilities(PICTURES[0]), tagger.probabilities(PICTURES[1]), atol=1e-3)


def test_wd14_chooses_by_category(tmp_path: Path) -> None:
    values = [0.7, 0.2, 0.9, 0.1, 0.5, 0.95, 0.36, 0.34, 0.86, 0.84]

    def tags(**options: object) -> list[str]:
        tagger = wd14.Tagger(lambda square: np.array(values, np.float32), NAMES, [str(category) for _, category in ROWS], CaptionOptions(**options))
        return [name for name, _ in tagger.caption(PICTURES[0])]

    assert tags() == ["some one (series)", "long hair", "1girl", "^_^"]
    assert tags(character_tags=False, rating_tags=True) == ["long hair", "1girl", "^_^", "questionable"]
    assert tags(general_threshold=0.9, character_threshold=0.8) == ["some one (series)", "b c", "long hair"]
    assert tags(general_threshold=1, character_threshold=1) == []


@pytest.mark.parametrize("case, words", [
    ("table", "selected_tags.csv is no WD14 tag table"), ("fewer tags", "knows 10 tags, but its selected_tags.csv lists 9"),
    ("channels first", r"shape \['batch', 3, 24, 24\].*tagger of another kind"), ("broken onnx", "'model.onnx' cannot be read"), ("no model", "is no WD14 tagger"),
    ("hub", "no architecture of this timm"), ("broken weights", "cannot be built"), ("other weights", "cannot be built"), ("timm with fewer tags", "knows 10 tags")])
def test_wd14_models_that_cannot_be_used(tmp_path: Path, case: str, words: str) -> None:
    write_tags(tmp_path / "selected_tags.csv", ROWS[:-1] if "fewer" in case else ROWS)
    if case in ("table", "fewer tags", "channels first", "broken onnx"):
        pytest.importorskip("onnxruntime")
        write_onnx(tmp_path / "model.onnx", ("batch", 3, SIDE, SIDE) if case == "channels first" else ("batch", SIDE, SIDE, 3))
    elif case != "no model":
        write_timm(tmp_path, **({"architecture": "hf-hub:somebody/else"} if case == "hub" else {}))
    {"table": lambda: (tmp_path / "selected_tags.csv").write_text("a,b\n1,2\n"), "broken onnx": lambda: (tmp_path / "model.onnx").write_bytes(b"nonsense"),
     "broken weights": lambda: (tmp_path / "model.safetensors").write_bytes(b"nonsense"),
     "other weights": lambda: save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")}.get(case, lambda: None)()
    with pytest.raises(LoomError, match=words):
        wd14.load(tmp_path)


def test_wd14_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    write_tags(tmp_path / "selected_tags.csv")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(LoomError, match="needs onnxruntime, which is not installed: install it .pip install onnxruntime.*model.safetensors"):
        wd14.load(tmp_path)


def test_models_are_told_apart(tmp_path: Path, coca_model: Path) -> None:
    home = write_timm(tmp_path / "captioners" / "SmilingWolf" / "wd")
    write_tags(home / "selected_tags.csv")
    folders = [tmp_path / "captioners", coca_model.parent]
    assert {name: list(methods.models(name, folders)) for name in methods.METHODS} == {
        "clip_tags": ["coca"], "coca": ["coca"], "wd14": ["SmilingWolf/wd"], "vision_llm": []}
    assert methods.local_models(folders) == ["coca", "SmilingWolf/wd"] and methods.size(home) == (home / "model.safetensors").stat().st_size
    with pytest.raises(LoomError, match="'coca' is for clip_tags, coca, not for wd14: wd14 takes a tagger's folder .*captioners .from huggingface.co/SmilingWolf.*: SmilingWolf/wd"):
        methods.model_path("wd14", "coca", folders)
