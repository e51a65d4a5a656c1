"""Pictures on the way: they change nothing of what is learned, show what the file will show, and end no run."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from lora_loom.trainer import samples
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.data.folder import Dataset, read_dataset
from lora_loom.trainer.hooks import Hooks
from lora_loom.trainer.job import Result, train
from lora_loom.trainer.toy import arch
from PIL import Image
from safetensors.torch import load_file

PROMPTS = ("a red circle on a white background", "a blue square on a green background")
CONFIG = LoomConfig().replace(
    adapter={"rank": 2, "alpha": 2.0, "dropout": 0.3, "module_dropout": 0.2}, optim={"learning_rate": 5e-3, "scheduler": "constant"}, loss={"caption_dropout": 0.2},
    train={"steps": 5, "precision": "fp32", "seed": 5}, output={"name": "toy", "save_dtype": "fp32"},
    samples={"sample_steps": 2, "sample_prompts": PROMPTS, "sample_seed": 3})


@pytest.fixture
def dataset(circles: Callable[..., Path]) -> Dataset:
    return read_dataset(circles(), resolution=64, min_size=32)


def run(dataset: Dataset, config: LoomConfig, folder: Path, model: backbone.DiffusersModel | None = None, **hooks: object) -> Result:
    return train(model or backbone.load("toy_base", "cpu", "fp32"), dataset, config, loras_folder=folder / "loras", runs_folder=folder / "runs", hooks=Hooks(**hooks))


@pytest.mark.parametrize("change", [
    {}, {"optim": {"ema_decay": 0.9}}, {"optim": {"optimizer": "schedule_free_adamw", "scheduler": "constant"}}, {"adapter": {"algorithm": "dora"}},
    {"adapter": {"train_text_encoder": True}}], ids=["dropout", "average", "schedule free", "dora", "text encoder"])
def test_they_change_nothing(dataset: Dataset, tmp_path: Path, change: dict) -> None:
    config = CONFIG.replace(**change)
    seen = run(dataset, config, tmp_path / "seen")
    blind = run(dataset, config.replace(samples={"sample_steps": 0}), tmp_path / "blind")
    mine, theirs = load_file(seen.path), load_file(blind.path)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert seen.losses == blind.losses
    drawn = sorted(path.name for path in (seen.run_folder / "samples").iterdir())
    assert drawn == [f"step{step:06d}_{number}.png" for step in (0, 2, 4, 5) for number in (1, 2)]
    assert [path.name for path in seen.samples] == drawn[-2:] and not blind.samples
    first, last = (np.asarray(Image.open(seen.run_folder / "samples" / f"step{step:06d}_1.png")).astype(int) for step in (0, 5))
    assert abs(first - last).mean() > 1


def test_the_last_one_is_what_diffusers_draws_from_the_file(dataset: Dataset, tmp_path: Path) -> None:
    """Before: the bare base; after: the saved file, loaded by diffusers, through its own pipeline, scheduler and VAE."""
    result = run(dataset, CONFIG, tmp_path)
    base = backbone.load("toy_base", "cpu", "fp32")
    pipeline = StableDiffusionPipeline(base.vae, base.text_encoders[0], base.tokenizers[0], base.unet, EulerDiscreteScheduler.from_config(DDIMScheduler(**arch.SCHEDULER).config),
                                       None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)

    def drawn(prompt: str) -> np.ndarray:
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        return pipeline(prompt, num_inference_steps=20, guidance_scale=3.0, latents=noise, height=64, width=64, output_type="np").images[0] * 255

    def kept(step: int, number: int) -> np.ndarray:
        return np.asarray(Image.open(result.run_folder / "samples" / f"step{step:06d}_{number}.png")).astype(float)

    before = [drawn(prompt) for prompt in PROMPTS]
    pipeline.load_lora_weights(str(result.path.parent), weight_name=result.path.name)
    after = [drawn(prompt) for prompt in PROMPTS]
    for number in (1, 2):
        assert abs(before[number - 1] - kept(0, number)).max() < 1.5
        assert abs(after[number - 1] - kept(5, number)).max() < 1.5
        assert abs(before[number - 1] - after[number - 1]).max() > 5


def test_without_prompts_the_first_captions_are_drawn(dataset: Dataset, tmp_path: Path) -> None:
    events: list[tuple[str, dict]] = []
    run(dataset, CONFIG.replace(samples={"sample_prompts": (), "sample_steps": 100}, train={"steps": 1}), tmp_path, event=lambda name, data: events.append((name, data)))
    drawn = [data for name, data in events if name == "sample"]
    assert [data["step"] for data in drawn] == [0, 1]
    assert drawn[0]["prompts"] == ["a blue circle", "a green circle"]
    facts = Image.open(drawn[0]["paths"][1]).text["lora_loom"]
    assert facts == "a green circle\nstep 0, seed 3"


@pytest.mark.parametrize("place", ["sample", "encode_prompts", "release_encoders"])
@pytest.mark.parametrize("error", [AssertionError("odd"), RecursionError("deep"), MemoryError()], ids=["assertion", "recursion", "memory"])
def test_whatever_goes_wrong_with_them_ends_no_run(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception) -> None:
    model, drawing, draw = backbone.load("toy_base", "cpu", "fp32"), [], samples.Samples.draw
    whole = getattr(model, place)

    def failing(*args: object, **more: object) -> object:
        if place == "release_encoders" and not drawing:  # before the training it must not fail
            return whole(*args, **more)
        raise error

    monkeypatch.setattr(model, place, failing)
    monkeypatch.setattr(samples.Samples, "draw", lambda self, state: (drawing.append(1), draw(self, state))[1])
    result = run(dataset, CONFIG, tmp_path, model)
    assert result.steps == 5 and f"Samples ended early: {type(error).__name__}" in result.report


def test_the_hosts_interrupt_goes_through_even_where_it_is_an_exception(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupt(Exception):
        pass

    model = backbone.load("toy_base", "cpu", "fp32")
    monkeypatch.setattr(model, "sample", lambda *_: (_ for _ in ()).throw(Interrupt()))
    with pytest.raises(Interrupt):
        run(dataset, CONFIG, tmp_path, model, interrupts=(Interrupt,))


def test_a_picture_of_no_numbers_is_no_picture(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = backbone.load("toy_base", "cpu", "fp32")
    monkeypatch.setattr(model, "sample", lambda *_: torch.full((64, 64, 3), torch.nan))
    result = run(dataset, CONFIG, tmp_path, model)
    assert "values that are no numbers" in result.report and not result.samples


class Failing(backbone.DiffusersModel):
    """Draws once, then fails."""

    drawn = 0

    def sample(self, *args: object) -> torch.Tensor:
        self.drawn += 1
        if self.drawn > 2:
            raise torch.OutOfMemoryError("no room for the VAE")
        return super().sample(*args)


def test_a_sampler_that_fails_ends_no_run(dataset: Dataset, tmp_path: Path) -> None:
    model, events = backbone.load("toy_base", "cpu", "fp32"), []
    model.__class__ = Failing
    result = run(dataset, CONFIG, tmp_path / "failing", model, event=lambda name, data: events.append((name, data)))
    failed = [data for name, data in events if name == "sample failed"]
    assert result.steps == 5 and len(failed) == 1 and failed[0]["step"] == 2 and "no room for the VAE" in failed[0]["reason"]
    assert "Samples ended early: OutOfMemoryError: no room for the VAE" in result.report
    assert len(list((result.run_folder / "samples").iterdir())) == 2
    blind = run(dataset, CONFIG.replace(samples={"sample_steps": 0}), tmp_path / "blind")
    mine, theirs = load_file(result.path), load_file(blind.path)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_an_interrupt_while_drawing_keeps_what_was_learned(dataset: Dataset, tmp_path: Path) -> None:
    class Interrupt(BaseException):
        pass

    steps: list[int] = []

    def poll() -> None:
        if steps and steps[-1] == 4:  # the first poll after step 4 is the sampler's
            raise Interrupt

    saved = []
    with pytest.raises(Interrupt):
        run(dataset, CONFIG, tmp_path, progress=lambda now: steps.append(now.step) if now.phase == "train" else None, poll=poll,
            event=lambda name, data: saved.append(data["steps"]) if name == "saved" else None)
    assert saved == [4]
