"""What a run writes down: every curve and picture on every board, and no board that fails stops it."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from lora_loom.trainer.hooks import Progress
from lora_loom.trainer.runs.logs import Log

STEPS = [Progress("train", 1, 3, 0.5, 0.5, 1e-4, 2.0, 1.0, 2.0), Progress("train", 2, 3, 0.25, 0.45, 2e-4, 1.0, 1.0, 1.0, validation_loss=0.3)]


def written(run: Path, **more: object) -> Log:
    run.mkdir(exist_ok=True)
    log = Log(run, **more)
    for progress in STEPS:
        log.step(progress)
    log.picture("samples/1", torch.full((4, 6, 3), 0.5), 2)
    log.close()
    return log


def test_tensorboard_holds_every_curve_and_the_samples(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    written(tmp_path / "run")
    found = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    values = {tag: [(e.step, round(e.value, 6)) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert values == {"train/loss": [(1, 0.5), (2, 0.25)], "train/smoothed_loss": [(1, 0.5), (2, 0.45)], "train/learning_rate": [(1, 0.0001), (2, 0.0002)],
                      "train/grad_norm": [(1, 2.0), (2, 1.0)], "train/validation_loss": [(2, 0.3)]}
    [image] = found.Images("samples/1")
    assert (image.step, image.width, image.height) == (2, 6, 4)
    written(tmp_path / "run", log_dir=tmp_path / "logs")
    assert list((tmp_path / "logs" / "run").glob("events*"))


class Wandb(ModuleType):
    """Weights & Biases as far as it is used: what came in."""

    def __init__(self, broken: str = "") -> None:
        super().__init__("wandb")
        self.told, self.broken = [], broken

    def init(self, **settings: object) -> Wandb:
        if self.broken == "init":
            raise RuntimeError("not logged in")
        self.told.append(("init", settings))
        return self

    def log(self, values: dict, step: int) -> None:
        if self.broken == "log":
            raise ConnectionError("no network")
        self.told.append((step, values))

    def Image(self, pixels: object) -> tuple:
        return ("image", pixels.shape, str(pixels.dtype))

    def finish(self) -> None:
        self.told.append("finished")


def test_weights_and_biases_only_where_it_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    written(tmp_path / "without")
    assert wandb.told == []
    monkeypatch.setenv("WANDB_PROJECT", "looms")
    written(tmp_path / "with")
    assert wandb.told[0] == ("init", {"project": "looms", "name": "with", "id": "with", "resume": "allow", "dir": str(tmp_path / "with")})
    assert wandb.told[1][0] == 1 and wandb.told[1][1]["train/loss"] == 0.5 and wandb.told[2][1]["train/validation_loss"] == 0.3
    assert wandb.told[3:] == [(2, {"samples/1": ("image", (4, 6, 3), "uint8")}), "finished"]


@pytest.mark.parametrize("broken", ["init", "log"])
def test_a_board_that_fails_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Wandb(broken))
    monkeypatch.setenv("WANDB_PROJECT", "looms")
    written(tmp_path / "run")
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert len([r for r in caplog.records if "WeightsAndBiases logs" in r.getMessage()]) == 1
