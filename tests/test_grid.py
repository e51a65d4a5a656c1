"""Saved steps of a run and the grid that compares them, on files made here."""
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.runs import grid, record, saved
from safetensors.torch import save_file


def lora(path: Path, step: int, value: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": torch.full((2,), value)}, path, {"ss_steps": str(step), "sshs_model_hash": f"{value}"})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 50 steps that has saved every tenth, and by hand at 25; 30 was the best."""
    home = tmp_path / "runs" / "cat"
    for step in (10, 20, 30, 40):
        lora(home / "checkpoints" / f"cat_step{step:06d}.safetensors", step, step)
    lora(home / "checkpoints" / "cat_saved000025.safetensors", 25, 25)
    lora(home / "checkpoints" / "cat_best.safetensors", 30, 30)
    lora(tmp_path / "loras" / "cat_2.safetensors", 50, 50)
    (home / "config.yaml").write_text("{}")
    (home / record.FILE).write_text(json.dumps({"lora": "cat_2.safetensors", "started": 5.0}))
    return home


def loras(run: Path) -> Path:
    return run.parents[1] / "loras"


def test_each_step_once_and_the_last_one_is_the_result(run):
    found, damaged = saved.saved_steps(run, loras(run))
    assert [(one.step, one.kind, one.best) for one in found] == [(10, "step", False), (20, "step", False), (25, "saved", False), (30, "step", True), (40, "step", False), (50, "final", False)]
    assert damaged == [] and found[-1].path == loras(run) / "cat_2.safetensors"
    (run / "checkpoints" / "cat_step000020.safetensors").write_bytes(b"\xff" * 100)
    (loras(run) / "cat_2.safetensors").unlink()
    found, damaged = saved.saved_steps(run, loras(run))
    assert [one.step for one in found] == [10, 25, 30, 40] and damaged == ["cat_step000020.safetensors"]


def test_links_are_none_of_the_run(run):
    (run / "checkpoints" / "cat_step000045.safetensors").symlink_to(loras(run) / "cat_2.safetensors")
    assert [one.step for one in saved.saved_steps(run, loras(run))[0]] == [10, 20, 25, 30, 40, 50]


def test_a_best_between_two_saves_has_a_row_of_its_own(run):
    lora(run / "checkpoints" / "cat_best.safetensors", 33, 33)
    found, _ = saved.saved_steps(run, loras(run))
    assert [(one.step, one.kind) for one in found if one.best] == [(33, "best")]


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", 7, None])
def test_a_record_that_names_another_place_is_not_followed(run, name):
    (run / record.FILE).write_text(json.dumps({"lora": name}))
    assert saved.final_lora(run) == "" and [one.step for one in saved.saved_steps(run, loras(run))[0]] == [10, 20, 25, 30, 40]


@pytest.mark.parametrize("count, most, wanted", [(3, 8, [1, 2, 3]), (9, 3, [1, 5, 9]), (9, 1, [9]), (9, 2, [1, 9]), (10, 4, [1, 4, 7, 10]), (1, 1, [1])])
def test_evenly(count, most, wanted):
    steps = [saved.Saved(step, "", Path(), "step", "") for step in range(1, count + 1)]
    assert [one.step for one in saved.evenly(steps, most)] == wanted


def test_the_run_is_found_by_what_training_gave_also_after_a_choice(run):
    runs = run.parent
    assert saved.run_of(runs, str(loras(run) / "cat_2.safetensors")) == run and saved.run_of(runs, "C:\\loras\\cat_2.safetensors") == run
    (run / record.FILE).write_text(json.dumps({"lora": "cat_step000010.safetensors", "final": "cat_2.safetensors", "started": 5.0}))
    assert saved.run_of(runs, "cat_2.safetensors") == run and saved.saved_steps(run, loras(run))[0][-1].step == 50
    for wrong in ("", "/x/other.safetensors", "x/"):
        with pytest.raises(LoomError, match="is the LoRA of no run here"):
            saved.run_of(runs, wrong)


def test_newest_is_what_began_last_not_what_was_touched_last(run):
    older = run.parent / "dog"
    lora(older / "checkpoints" / "dog_step000001.safetensors", 1)
    (older / "config.yaml").write_text("{}")
    (older / record.FILE).write_text(json.dumps({"lora": "", "started": 4.0}))
    os.utime(older, (9e9, 9e9))
    empty = run.parent / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text("{}")
    (empty / record.FILE).write_text(json.dumps({"started": 6.0}))
    assert saved.newest(run.parent, loras(run)) == run
    with pytest.raises(LoomError, match="no run has saved a LoRA yet"):
        saved.newest(run.parent / "nowhere", loras(run))


@pytest.mark.parametrize("text, wanted", [("0.6, 0.8, 1.0", [0.6, 0.8, 1.0]), ("1", [1.0]), (" -0.5;0 ,, 1 1 ", [-0.5, 0.0, 1.0]), ("0.6，0.8、1", [0.6, 0.8, 1.0])])
def test_strengths(text, wanted):
    assert grid.strengths_in(text) == wanted


@pytest.mark.parametrize("text, said", [("", "0 numbers"), ("a lot", "'a'"), ("1, inf", "out of bounds"), ("nan", "out of bounds"), ("-11", "out of bounds"),
                                        (", ".join(map(str, range(-6, 8))), "14 numbers")])
def test_wrong_strengths(text, said):
    with pytest.raises(LoomError, match=f"{said}.*takes 1 to 12 numbers from -10 to 10"):
        grid.strengths_in(text)


def test_prompts():
    assert grid.prompts_in(" a cat \n\na cat\na dog", ["other"]) == ["a cat", "a dog"]
    assert grid.prompts_in(" \n", [f"usual {n}" for n in range(20)]) == [f"usual {n}" for n in range(12)]
    for text, said in (("", "prompts is empty"), ("\n".join(map(str, range(13))), "13 lines")):
        with pytest.raises(LoomError, match=said):
            grid.prompts_in(text, [])


def test_a_choice_is_read_as_it_is_written():
    for choice in (grid.Choice("cat", "cat_step000010.safetensors", 0.8), grid.Choice("a@b", "a@b_best.safetensors", -1.0), grid.Choice("猫 x", "猫 x.safetensors", 0.123456)):
        assert grid.choice_in(str(choice)) == choice
    assert grid.choice_in("  ") is None
    for wrong in ("cat", "cat/x", "cat@1", "cat/x @ much", "cat/x @ nan", "cat/x @ 99", "/x @ 1", "cat/ @ 1"):
        with pytest.raises(LoomError, match="cannot be read"):
            grid.choice_in(wrong)


def plan(run: Path, compare: str = "strengths", strengths=(0.5, 1.0), prompts=("a", "b", "c"), facts="seed 1", width: int = 64) -> grid.Grid:
    return grid.plan(run, compare, saved.saved_steps(run, loras(run))[0], list(strengths), list(prompts), width, 64, facts)


def test_pictures_of_others_beside_the_grid_stay(run):
    (run / grid.FOLDER).mkdir()
    for number in range(60):
        (run / grid.FOLDER / f"mine{number}.json").write_text("{}")
    plan(run).keep()
    assert len(list((run / grid.FOLDER).glob("mine*.json"))) == 60 and len(list((run / grid.FOLDER).glob("*.json"))) == 61


def test_a_grid_that_is_a_link_is_neither_written_nor_read(run, tmp_path):
    (tmp_path / "outside").mkdir()
    wanted = plan(run)
    (tmp_path / "outside" / f"{wanted.keys[0][0]}.jpg").write_bytes(b"theirs")
    (tmp_path / "outside" / f"{wanted.id}.json").write_text(json.dumps(wanted.written()))
    (run / grid.FOLDER).symlink_to(tmp_path / "outside")
    with pytest.raises(LoomError, match="is a link"):
        wanted.keep()
    for asked in ("", wanted.id):
        with pytest.raises(LoomError, match="no such grid"):
            grid.read(run, asked)
    with pytest.raises(LoomError, match="is not in run"):
        grid.picture(run, wanted.keys[0][0])
    assert len(list((tmp_path / "outside").iterdir())) == 2


def test_a_key_stands_for_all_that_the_picture_depends_on(run):
    first = plan(run)
    assert (len(first.keys), len(first.keys[0])) == (6, 2) and len({key for row in first.keys for key in row}) == 12
    assert plan(run).id == first.id
    for other in (plan(run, facts="seed 2"), plan(run, width=128), plan(run, prompts=("b",))):
        assert not {key for row in other.keys for key in row} & {key for row in first.keys for key in row}
    prompts = plan(run, "prompts")  # at the last strength: its first column is drawn already
    assert len(prompts.columns) == 3 and [row[0] for row in prompts.keys] == [row[1] for row in first.keys]
    lora(run / "checkpoints" / "cat_step000010.safetensors", 10, 11)  # another file of the same name
    assert [a == b for a, b in zip(plan(run).keys, first.keys)] == [False, True, True, True, True, True]


def test_what_is_drawn_stays_and_is_told(run):
    first = plan(run)
    first.keep()
    assert len(first.missing()) == 12
    first.draw(0, 1, b"picture")
    found = grid.read(run)
    assert found["id"] == first.id and found["drawn"][0] == [False, True] and found["rows"][3] == {"step": 30, "file": "cat_step000030.safetensors", "kind": "step", "best": True}
    assert grid.picture(run, first.keys[0][1]) == b"picture" and (0, 1) not in plan(run).missing()
    (run / "grid" / f"{'a' * 32}.json").write_text("{")
    (run.parent / "secret.jpg").write_bytes(b"x")
    (run / "grid" / f"{'b' * 32}.jpg").symlink_to(run.parent / "secret.jpg")
    for wrong in ("../run", "a" * 32, "b" * 31, "é" * 32):
        with pytest.raises(LoomError, match="no such grid"):
            grid.read(run, wrong)
    for wrong in ("../../secret", "b" * 32, "c" * 32, None, 3):
        with pytest.raises(LoomError, match="is not in run"):
            grid.picture(run, wrong)


def test_old_pictures_go_but_never_those_of_the_grid(run, monkeypatch):
    monkeypatch.setattr(grid, "_KEPT", {".jpg": 3, ".json": 2})
    first = plan(run)
    first.keep()
    for number in range(6):
        first.draw(number, 0, b"mine")
        (run / "grid" / f"{number:032x}.jpg").write_bytes(b"old")
        os.utime(run / "grid" / f"{number:032x}.jpg", (number, number))
    first.keep()
    assert sorted(path.stem for path in (run / "grid").glob("*.jpg")) == sorted(row[0] for row in first.keys)
