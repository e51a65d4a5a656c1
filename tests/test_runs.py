"""A run's record and what others read of runs: how each ended, curves in few points, files that a crash has cut short, buttons that reach in."""
from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lora_loom.trainer import loop
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.data.folder import Dataset, read_dataset
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.hooks import Hooks
from lora_loom.trainer.job import Result, train
from lora_loom.trainer.runs import held, reading, record
from lora_loom.trainer.runs.saved import final_lora
from safetensors.torch import load_file

CONFIG = LoomConfig().replace(adapter={"rank": 2, "alpha": 2.0}, optim={"scheduler": "constant"}, train={"steps": 4, "precision": "fp32"},
                              output={"name": "toy"})


class Halt(Exception):
    """A host's own interrupt."""


@pytest.fixture
def dataset(circles: Callable[..., Path]) -> Dataset:
    return read_dataset(circles(), resolution=64, min_size=32)


def run(dataset: Dataset, folder: Path, config: LoomConfig = CONFIG, resume: str = "", **hooks: object) -> Result:
    return train(backbone.load("toy_base", "cpu", "fp32"), dataset, config, loras_folder=folder / "loras", runs_folder=folder / "runs", resume=resume,
                 hooks=Hooks(**hooks))


def test_the_record_of_a_run_that_ends_well(dataset: Dataset, tmp_path: Path) -> None:
    seen = []

    def progress(now: object) -> None:
        if now.phase == "train":
            seen.append(record.read(tmp_path / "runs" / "toy")["status"])

    result = run(dataset, tmp_path, progress=progress, about={"node": "5"})
    found = reading.summary(result.run_folder)
    assert set(seen) == {"running"} and found["status"] == "finished" and found["host"] == {"node": "5"}
    assert (found["step"], found["steps"], found["pictures"], found["lora"]) == (4, 4, len(dataset.pictures), "toy.safetensors")
    assert found["report"] == result.report and found["ended"] >= found["started"] and found["seconds"] > 0
    assert [step for step, _ in found["curve"]] == [1, 2, 3, 4] and not found["resumable"] and found["sample"] is None
    assert found["bytes"] == sum(path.stat().st_size for path in result.run_folder.rglob("*") if path.is_file())
    assert reading.names(tmp_path / "runs") == ["toy"] and reading.checkpoints(result.run_folder) == []


@pytest.mark.parametrize("raised,status", [(Halt(), "interrupted"), (KeyboardInterrupt(), "interrupted"), (LoomError("bad 1: set 2", {"learning_rate": 2}), "failed")])
def test_the_record_of_a_run_that_is_broken_off(dataset: Dataset, tmp_path: Path, raised: BaseException, status: str) -> None:
    def progress(now: object) -> None:
        if now.phase == "train" and now.step == 2:
            raise raised

    with pytest.raises(type(raised)):
        run(dataset, tmp_path, progress=progress, interrupts=(Halt,))
    found = reading.summary(tmp_path / "runs" / "toy")
    assert found["status"] == status and found["step"] == 2 and found["resumable"] and found["lora"] == "toy.safetensors"
    assert (found.get("error", ""), found.get("fix")) == ((str(raised) + "." + " What was learned in 2 steps is saved as toy.safetensors", {"learning_rate": 2})
                                                           if status == "failed" else ("", None))
    first = found["started"]
    again = run(dataset, tmp_path, resume="toy")
    found = reading.summary(again.run_folder)
    assert found["status"] == "finished" and found["started"] == first and [step for step, _ in found["curve"]] == [1, 2, 3, 4] and "error" not in found


def test_a_run_is_held_by_the_process_that_trains_it(dataset: Dataset, tmp_path: Path) -> None:
    """Nobody else takes it up meanwhile; and one that was killed holds nothing, though its file is still there."""
    home, seen = tmp_path / "runs" / "toy", []

    def progress(now: object) -> None:
        if now.phase == "train" and now.step == 1:
            seen.append(held.is_held(home))
            with pytest.raises(LoomError, match="run 'toy' is being trained by another process: wait for its end"):
                held.Hold(home)

    result = run(dataset, tmp_path, CONFIG.replace(train={"steps": 2}), progress=progress)
    assert seen == [True] and result.run_folder == home and not held.is_held(home) and not (home / held.FILE).exists()
    code = f"import time; from pathlib import Path; from lora_loom.trainer.runs.held import Hold; h = Hold(Path({str(home)!r})); print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n" and held.is_held(home)
        with pytest.raises(LoomError, match="another process"):
            held.Hold(home)
    finally:
        other.kill()
        other.wait()
    assert (home / held.FILE).exists() and not held.is_held(home)
    held.Hold(home).release()


def test_what_the_host_asks_for_comes_after_the_step(dataset: Dataset, tmp_path: Path) -> None:
    """Saved: what a run of so many steps gives. Drawn: without sample_steps, and nothing of the training changes."""
    asked, events = {"save": [1], "sample": [1]}, []
    steps = []

    def wanted(what: str) -> bool:
        return len(steps) == 2 and bool(asked[what]) and bool(asked[what].pop())

    result = run(dataset, tmp_path / "asked", progress=lambda now: now.phase == "train" and steps.append(now.step), wanted=lambda what: len(steps) >= 1 and wanted(what),
                 event=lambda name, data: events.append((name, data)))
    plain = run(dataset, tmp_path / "plain")
    assert all(load_file(result.path)[key].equal(value) for key, value in load_file(plain.path).items())
    kept = reading.checkpoints(result.run_folder)
    assert [(c["kind"], c["step"]) for c in kept] == [("saved", 3)]
    short = run(dataset, tmp_path / "short", CONFIG.replace(train={"steps": 3}))
    saved = load_file(result.run_folder / "checkpoints" / kept[0]["file"])
    assert all(saved[key].equal(value) for key, value in load_file(short.path).items())
    drawn = reading.samples(result.run_folder)
    assert {(s["step"], s["number"]) for s in drawn} == {(2, 1), (2, 2)} and [data["step"] for name, data in events if name == "sample"] == [2]
    assert reading.prompts(result.run_folder) == next(data["prompts"] for name, data in events if name == "sample")


def test_stop_ends_well_and_says_so(dataset: Dataset, tmp_path: Path) -> None:
    result = run(dataset, tmp_path, should_stop=lambda: True)
    found = reading.summary(result.run_folder)
    assert result.stopped and found["status"] == "stopped" and found["step"] == 1 and found["resumable"]


def lines(folder: Path, steps: int, **more: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG.to_yaml())
    text = "".join(json.dumps({"step": i, "loss": float(i), "smoothed_loss": i / 2, "learning_rate": 1e-4, "grad_norm": 1.0,
                               "validation_loss": i / 10 if i % 100 == 0 else None, **more}) + "\n" for i in range(1, steps + 1))
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_a_curve_in_few_points(tmp_path: Path) -> None:
    folder = lines(tmp_path / "long", 1000)
    found = reading.curve(folder, 100)
    assert found["step"] == list(range(10, 1001, 10)) and found["smoothed_loss"] == [s / 2 for s in found["step"]]
    assert found["loss"] == [pytest.approx(s - 4.5) for s in found["step"]] and found["validation"] == [[s, s / 10] for s in range(100, 1001, 100)]
    late = reading.curve(folder, 100, after=990)
    assert late["step"] == list(range(991, 1001)) and late["loss"][0] == 991 and late["validation"] == [[1000, 100.0]]
    assert reading.curve(folder, 5000)["step"] == list(range(1, 1001))


def test_a_curve_grows_and_begins_anew(tmp_path: Path) -> None:
    folder = lines(tmp_path / "run", 3)
    path = folder / "metrics.jsonl"
    whole = path.read_text()
    assert reading.curve(folder, 100)["step"] == [1, 2, 3]
    path.open("a").write('{"step": 4, "loss": 4.0, "smoothed')  # a line on its way
    assert reading.curve(folder, 100)["step"] == [1, 2, 3]
    path.open("a").write('_loss": NaN, "learning_rate": 1, "grad_norm": 1}\nnonsense\n[]\n{"step": "x"}\n')
    found = reading.curve(folder, 100)
    assert found["step"] == [1, 2, 3, 4] and found["smoothed_loss"][-1] is None and not any(isinstance(v, float) and math.isnan(v) for v in found["loss"])
    path.unlink()  # as a resumed run does it: another file of the name
    path.write_text(whole[: whole.index("\n") + 1])
    assert reading.curve(folder, 100)["step"] == [1]
    path.unlink()
    assert reading.curve(lines(tmp_path / "none", 0), 100)["step"] == []


def test_the_best_sample_is_the_one_nearest_to_the_best_validation(tmp_path: Path) -> None:
    folder = lines(tmp_path / "long", 400)  # validated at 100, 200 …, the first time best
    assert reading.summary(folder)["best_sample"] is None
    (folder / "samples").mkdir()
    for step in (20, 90, 160, 400):
        for number in (1, 2):
            (folder / "samples" / f"step{step:06d}_{number}.png").write_bytes(b"")
    found = reading.summary(folder)
    assert (found["best_step"], found["best_sample"], found["sample"]) == (100, "step000090_1.png", "step000400_1.png")
    assert reading.prompts(folder) == ["", ""]  # pictures that cannot be read say nothing
    (folder / "run.json").write_text(json.dumps({"curve": [[1, 0.5]], "best_step": 380}))  # an ended run's record knows
    assert reading.summary(folder)["best_sample"] == "step000400_1.png"
    assert reading.summary(lines(tmp_path / "short", 50))["best_step"] is None


def test_the_step_of_a_run_whose_curve_a_full_disk_has_cut_short(dataset: Dataset, tmp_path: Path) -> None:
    home = run(dataset, tmp_path).run_folder
    facts = record.read(home)
    (home / record.FILE).write_text(json.dumps({**facts, "curve": facts["curve"][:2]}))
    assert facts["step"] == 4 and reading.summary(home)["step"] == 4


def test_a_run_without_a_result_has_none_after_a_checkpoint_became_it(tmp_path: Path) -> None:
    (tmp_path / record.FILE).write_text('{"lora": "begun_step000020.safetensors", "final": ""}')
    assert final_lora(tmp_path) == ""
    (tmp_path / record.FILE).write_text('{"lora": "old.safetensors"}')  # of an earlier version
    assert final_lora(tmp_path) == "old.safetensors"


def test_what_is_no_run_and_what_is_damaged(tmp_path: Path) -> None:
    lines(tmp_path / "a", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "file").write_text("x")
    for text in ("", "{", "[]", "[" * 100_000, "\xff"):
        (tmp_path / "a" / "run.json").write_text(text, encoding="latin-1")
        found = reading.summary(tmp_path / "a")
        assert found["status"] == "finished" and found["name"] == "a" and found["curve"] == [[1, 0.5], [2, 1.0]]
    assert reading.names(tmp_path) == ["a"] and reading.names(tmp_path / "nowhere") == []
    (tmp_path / "a" / "samples").mkdir()
    for name in ("step000010_1.png", "step000002_2.png", "step000002_1.png", "other.png", "step1_1.png.partial"):
        (tmp_path / "a" / "samples" / name).write_bytes(b"")
    assert [s["file"] for s in reading.samples(tmp_path / "a")] == ["step000002_1.png", "step000002_2.png", "step000010_1.png"]
    (tmp_path / "a" / "checkpoints").mkdir()
    for name in ("x_step000010.safetensors", "x_best.safetensors", "x_saved000003.safetensors", "resume.safetensors", "x_latest.safetensors"):
        (tmp_path / "a" / "checkpoints" / name).write_bytes(b"12")
    assert [(c["kind"], c["step"]) for c in reading.checkpoints(tmp_path / "a")] == [("saved", 3), ("step", 10), ("best", None), ("latest", None)]


_ODD = ("text", 3, 1.5, -1, True, [], {}, [1], [[1]], [[1, "x"]], [[1, None]], {"a": {}}, None, 10**400, 1e30)


def _strict(found: object) -> object:
    return json.loads(json.dumps(found, allow_nan=False))


def test_a_record_of_another_hand_takes_no_list_away(tmp_path: Path) -> None:
    lines(tmp_path / "a", 2)
    written = tmp_path / "a" / "run.json"
    for name in (*record._FIELDS, "unknown"):
        for value in _ODD:
            written.write_text(json.dumps({name: value}))
            found = _strict(reading.summary(tmp_path / "a"))
            assert found["name"] == "a" and isinstance(found["step"], int) and isinstance(found["curve"], list) and isinstance(found["started"], (int, float)) and isinstance(found["status"], str)
            assert isinstance(record.Record(tmp_path / "a").facts["seconds"], float)
        for text in ("NaN", "-Infinity", "1e999"):
            written.write_text(f'{{"{name}": {text}, "fix": {{"rank": {text}}}, "curve": [[1, {text}]]}}')
            _strict(reading.summary(tmp_path / "a"))


def test_settings_of_pictures_that_another_hand_wrote_are_not_handed_on(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"dataset": {
        "resolution": "hello", "min_size": -5, "flip": "maybe", "masks": "<img>", "upscale": 7, "repeats": True, "caption_source": "none", "buckets": False,
        "constructor": "x", "__proto__": "y", "folder": 3, "trigger_word": "zxmug", "more_resolutions": [768]}}))
    assert record.dataset(tmp_path) == {"caption_source": "none", "buckets": False, "trigger_word": "zxmug"}


def test_links_lead_out_of_no_run(tmp_path: Path) -> None:
    outside = lines(tmp_path / "outside", 3)
    (outside / "run.json").write_text('{"report": "theirs"}')
    (outside / "samples").mkdir()
    (outside / "samples" / "step000001_1.png").write_bytes(b"")
    (outside / "checkpoints").mkdir()
    (outside / "checkpoints" / "x_step000001.safetensors").write_bytes(b"")
    runs = tmp_path / "runs"
    runs.mkdir()
    home = lines(runs / "a", 0)
    for name in ("run.json", "samples", "checkpoints", "metrics.jsonl"):
        (home / name).unlink(missing_ok=True)
        (home / name).symlink_to(outside / name)
    found = reading.summary(home)
    assert "report" not in found and found["curve"] == [] and found["sample"] is None
    assert reading.samples(home) == [] and reading.checkpoints(home) == [] and reading.curve(home, 10)["step"] == []
    (runs / "whole").symlink_to(outside)
    (runs / "b").mkdir()
    (runs / "b" / "config.yaml").symlink_to(outside / "config.yaml")
    assert reading.names(runs) == ["a"]
    (home / held.FILE).symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError):
        held.Hold(home)
    assert not (tmp_path / "nowhere").exists()


def test_metrics_of_another_hand_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    folder = lines(tmp_path / "a", 2)
    with open(folder / "metrics.jsonl", "a") as file:
        for value in ("1e30", "1e999", "NaN", '"3"', "null", "[]", "true", "1" * 400, "[" * 3000):
            for name in ("step", *reading.CURVES, "validation_loss"):
                file.write(json.dumps({"step": 3, "loss": 0.5}).replace("}", f', "{name}": {value}}}\n'))
        file.write('{"step": 4, "loss": 1e308}\n{"step": 4, "loss": 1e308}\n{"step": 4, "loss": Infinity}\n{"step": 4, "loss": -Infinity}\n')
        file.write('{"step": 5, "loss": 0.25, "validation_loss": 0.0}\n')
    for points in (1, 2, 5, 1000):
        found = _strict(reading.curve(folder, points))
        assert len(found["step"]) <= points and found["step"][-1] == 5
    assert found["validation"][-1] == [5, 0.0] and found["loss"][-1] == 0.25
    assert _strict(reading.summary(folder))["best_step"] == 5


def test_a_loss_that_explodes_names_a_rate_to_set(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop._Steps, "bad", lambda self, total, norm: True)
    with pytest.raises(LoomError, match="lower the learning rate") as caught:
        run(dataset, tmp_path, CONFIG.replace(optim={"learning_rate": 2e-3}))
    assert caught.value.fix == {"learning_rate": 5e-4}
