"""Whole runs on the toy base: repeatable to the byte, equal to a training step written out by hand, nothing lost on any way out."""
from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr
from lora_loom.trainer import loop
from lora_loom.trainer import loss as losses
from lora_loom.trainer.adapters import adapted
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.backbones.protocol import Batch
from lora_loom.trainer.config import SCHEDULERS, LoomConfig
from lora_loom.trainer.data.batches import batches
from lora_loom.trainer.data.encoding import encode, without_concept
from lora_loom.trainer.data.folder import Dataset, read_dataset
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.hooks import Hooks, Progress
from lora_loom.trainer.job import Result, total_steps, train
from lora_loom.trainer.objective import Objective
from lora_loom.trainer.state import State
from safetensors.torch import load_file

CONFIG = LoomConfig().replace(
    adapter={"rank": 2, "alpha": 2.0}, optim={"learning_rate": 1e-3, "scheduler": "constant"}, loss={"caption_dropout": 0.0},
    train={"steps": 3, "precision": "fp32", "seed": 5}, output={"name": "toy", "save_dtype": "fp32"},
)
COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture
def pictures(circles: Callable[..., Path]) -> Path:
    """Four drawn shapes with captions beside them."""
    return circles(colours=COLOURS)


@pytest.fixture
def dataset(pictures: Path) -> Dataset:
    return read_dataset(pictures, resolution=64, min_size=32)


@pytest.fixture
def model() -> backbone.DiffusersModel:
    model = backbone.load("toy_base", "cpu", "fp32")
    model.encode_captions([""])  # transformers marks a text encoder at its first call
    return model


def run(model: backbone.DiffusersModel, dataset: Dataset, config: LoomConfig, folder: Path, **hooks: object) -> Result:
    return train(model, dataset, config, loras_folder=folder / "loras", runs_folder=folder / "runs", hooks=Hooks(**hooks))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


# ---------------------------------------------------------------- repeatable

SCRIPT = """
import sys
from functools import partial
from pathlib import Path
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.data.folder import read_dataset
from lora_loom.trainer.job import train
pictures, folder, config = sys.argv[1:]
result = train(backbone.load("toy_base", "cpu", "fp32"), read_dataset(pictures, resolution=64, min_size=32), LoomConfig.from_yaml(config),
               loras_folder=Path(folder, "loras"), runs_folder=Path(folder, "runs"))
print(result.path)
"""


def test_the_same_seed_gives_the_same_bytes(model: backbone.DiffusersModel, dataset: Dataset, pictures: Path, tmp_path: Path) -> None:
    config = CONFIG.replace(adapter={"train_text_encoder": True, "dropout": 0.1}, train={"batch_size": 2}, loss={"caption_dropout": 0.3, "noise_offset": 0.1})
    first = run(model, dataset, config, tmp_path / "first").path.read_bytes()

    moved = tmp_path / "elsewhere" / pictures.name
    shutil.copytree(pictures, moved)
    torch.manual_seed(999)
    torch.rand(3)  # whatever the process has drawn before
    again = run(backbone.load("toy_base", "cpu", "fp32"), read_dataset(moved, resolution=64, min_size=32), config, tmp_path / "second")
    assert again.path.read_bytes() == first
    with torch.inference_mode():  # where ComfyUI executes nodes; and with the model of the first run
        assert run(model, dataset, config, tmp_path / "third").path.read_bytes() == first

    command = [sys.executable, "-c", SCRIPT, str(pictures), str(tmp_path / "fresh"), config.to_yaml()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip().splitlines()[-1]).read_bytes() == first

    other = run(model, dataset, config.replace(train={"seed": 6}), tmp_path / "other")
    assert not same(other.lora, again.lora)


def test_a_run_leaves_the_process_random_state_alone(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    run(model, dataset, CONFIG.replace(adapter={"dropout": 0.5}), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- against the step written out

def by_hand(model: backbone.DiffusersModel, dataset: Dataset, config: LoomConfig, steps: int) -> tuple[dict[str, torch.Tensor], list[float], list[float]]:
    """(values, losses, gradient norms): each optimizer step as ONE large batch, by diffusers' DDPMScheduler and torch's AdamW."""
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    encoded = encode(model, dataset, False, lambda done, total: None)
    source = batches(encoded, 1, config.train.batch_size, config.train.seed, 0.0)
    generator = torch.Generator().manual_seed(config.train.seed)
    losses, norms = [], []
    with adapted(model, config.adapter, config.train.seed) as adapters:
        parameters = [p for a in adapters for p in a.parameters()]
        optimizer = torch.optim.AdamW(parameters, config.optim.learning_rate, weight_decay=config.optim.weight_decay)
        for _ in range(steps):
            latents, timesteps, noise, contexts = [], [], [], []
            for _ in range(config.train.gradient_accumulation_steps):
                batch = next(source)
                latents.append(batch.latents)
                timesteps.append((torch.rand(len(batch.latents), generator=generator).double() * 1000).long())
                noise.append(torch.randn(batch.latents.shape, generator=generator))
                contexts += [c.context for c in batch.conditioning]
            x, t, e = torch.cat(latents), torch.cat(timesteps), torch.cat(noise)
            predicted = model.unet(scheduler.add_noise(x, e, t), t, encoder_hidden_states=torch.cat(contexts)).sample
            snr = compute_snr(scheduler, t)
            loss = ((predicted - e).square().mean((1, 2, 3)) * snr.clamp(max=5) / snr).mean()
            optimizer.zero_grad()
            loss.backward()
            norms.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())
            if config.optim.max_grad_norm:
                for p in parameters:
                    p.grad *= min(1.0, config.optim.max_grad_norm / (norms[-1] + 1e-6))
            optimizer.step()
            losses.append(loss.item())
        return {f"{a.key}.lora_up.weight": a.named()["lora_up.weight"].detach().clone() for a in adapters}, losses, norms


@pytest.mark.parametrize("max_grad_norm", [0.0, 1e-4])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(2, 2), (4, 1), (1, 4)])
def test_equal_to_the_step_by_hand(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, batch_size: int, accumulation: int, max_grad_norm: float) -> None:
    """Accumulating 2 x 2 pictures is one batch of 4; clipping cuts the norm of the whole gradient."""
    config = CONFIG.replace(optim={"max_grad_norm": max_grad_norm, "learning_rate": 1e-2, "weight_decay": 0.1},
                            train={"batch_size": batch_size, "gradient_accumulation_steps": accumulation})
    expected, losses, norms = by_hand(model, dataset, config, 3)
    seen: list[Progress] = []
    result = run(model, dataset, config, tmp_path, progress=lambda p: seen.append(p) if p.phase == "train" else None)
    assert result.losses == pytest.approx(losses, rel=1e-5)
    assert [p.grad_norm for p in seen] == pytest.approx(norms, rel=1e-4)
    assert min(norms) > 1e-4  # so that clipping really cut
    ours = {k: v for k, v in result.lora.items() if "lora_up" in k}
    assert ours.keys() == expected.keys()
    # AdamW divides by the gradient's own size, so that rounding in the tiniest of them shows: 0.03 is how far it has moved
    moved = torch.cat([expected[k].flatten() for k in expected])
    difference = torch.cat([ours[k].flatten() for k in expected]) - moved
    assert (difference.norm() / moved.norm()).item() < 1e-3


def test_accumulated_gradients_equal_one_large_batch(model: backbone.DiffusersModel, dataset: Dataset) -> None:
    """The same rows, noise and timesteps as 4 x 1 and as 1 x 4: with one latent and one timestep for all, the draws coincide."""
    encoded = encode(model, dataset, False, lambda done, total: None)
    gradients = []
    for batch_size, accumulation in ((1, 4), (4, 1)):
        config = CONFIG.replace(train={"batch_size": batch_size, "gradient_accumulation_steps": accumulation, "steps": 1})
        with adapted(model, config.adapter, 0) as adapters:
            total = {a.key: torch.zeros_like(a.named()["lora_up.weight"]) for a in adapters}
            for a in adapters:
                a.named()["lora_up.weight"].register_hook(lambda grad, sum_=total[a.key]: sum_.add_(grad))
            alphas, model.alphas_cumprod = model.alphas_cumprod, model.alphas_cumprod[400:401]  # one timestep
            with pytest.MonkeyPatch.context() as patch:  # noise of zero: what differs between the two is then only how rows are grouped
                patch.setattr(losses, "draw_noise", lambda latents, config, generator: torch.zeros_like(latents))
                try:
                    objective = Objective(model, adapters, config.loss)
                finally:
                    model.alphas_cumprod = alphas
                loop.train(State(adapters, config, 1, model.device), objective, partial(batches, encoded, 1, batch_size, 5, 0.0), config, Hooks())
            gradients.append(torch.cat([g.flatten() for _, g in sorted(total.items())]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)
    assert gradients[0].abs().max() > 1e-4


@pytest.mark.parametrize("name", SCHEDULERS)
def test_learning_rates_are_those_of_diffusers(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, name: str) -> None:
    config = CONFIG.replace(optim={"scheduler": name, "warmup_steps": 3, "cycles": 2, "learning_rate": 2e-3}, train={"steps": 12},
                            adapter={"target_modules": (r"mid_block.*attn2\.to_v$",)})
    seen: list[float] = []
    run(model, dataset, config, tmp_path, progress=lambda p: seen.append(p.learning_rate) if p.phase == "train" else None)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=12, num_cycles=2)
    expected = []
    for _ in range(12):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx(expected, abs=1e-12)
    assert name == "constant" or expected[0] == 0 and expected[3] == pytest.approx(2e-3)


def test_a_rate_below_the_polynomial_schedules_end() -> None:
    with pytest.raises(LoomError, match="1e-08 is not above 1e-07"):
        CONFIG.replace(optim={"scheduler": "polynomial", "learning_rate": 1e-8}).validate()


def test_text_encoders_have_a_rate_of_their_own(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    """AdamW's first step moves every value by its learning rate (less the decay of what is zero: none)."""
    config = CONFIG.replace(adapter={"train_text_encoder": True}, optim={"learning_rate": 1e-2, "text_encoder_lr": 1e-4, "weight_decay": 0.0}, train={"steps": 1, "batch_size": 4})
    lora = run(model, dataset, config, tmp_path).lora
    for prefix, rate in (("lora_unet_", 1e-2), ("lora_te_", 1e-4)):
        ups = torch.cat([v.flatten() for k, v in lora.items() if k.startswith(prefix) and "lora_up" in k]).abs()
        assert ups.max().item() == pytest.approx(rate, rel=1e-3) and ups.median().item() == pytest.approx(rate, rel=0.05)


# ---------------------------------------------------------------- how long

@pytest.mark.parametrize(("options", "train_options", "expected"), [
    ({}, {"epochs": 3}, 12), ({}, {"epochs": 3, "batch_size": 3}, 6), ({"repeats": 2, "flip": True}, {"epochs": 1, "batch_size": 4}, 4),
    ({}, {"epochs": 2, "batch_size": 2, "gradient_accumulation_steps": 2}, 2), ({}, {"epochs": 2, "gradient_accumulation_steps": 3}, 4),
    ({}, {"epochs": 9, "steps": 2}, 2),
])
def test_steps_and_epochs(model: backbone.DiffusersModel, pictures: Path, tmp_path: Path, options: dict, train_options: dict, expected: int) -> None:
    dataset = read_dataset(pictures, resolution=64, min_size=32, **options)
    config = CONFIG.replace(train={"steps": 0, **train_options}, adapter={"target_modules": (r"mid_block.*attn2\.to_v$",)})
    assert total_steps(dataset, config, model.family) == expected
    result = run(model, dataset, config, tmp_path)
    assert result.steps == len(result.losses) == expected and not result.stopped


def test_an_epoch_shows_every_picture_once(model: backbone.DiffusersModel, dataset: Dataset) -> None:
    encoded = encode(model, dataset, False, lambda done, total: None)
    source = batches(encoded, 1, 1, 5, 0.0)
    for _ in range(3):
        assert sorted(next(source).captions[0] for _ in range(4)) == sorted(f"a {c} circle" for c in COLOURS)


def test_metrics_and_checkpoints(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    events: list[tuple[str, dict]] = []
    result = run(model, dataset, CONFIG.replace(train={"steps": 5}, output={"save_steps": 2}), tmp_path, event=lambda name, data: events.append((name, data)))
    lines = [json.loads(line) for line in (result.run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5] and [line["loss"] for line in lines] == result.losses
    assert {"loss", "smoothed_loss", "learning_rate", "grad_norm", "steps_per_second"} <= lines[0].keys()
    assert lines[1]["smoothed_loss"] == pytest.approx(0.95 * result.losses[0] + 0.05 * result.losses[1])
    assert LoomConfig.from_yaml((result.run_folder / "config.yaml").read_text()).train.steps == 5
    assert sorted(f.name for f in (result.run_folder / "checkpoints").iterdir()) == ["toy_step000002.safetensors", "toy_step000004.safetensors"]
    assert [name for name, _ in events] == ["started", "memory", "checkpoint", "estimate", "checkpoint", "saved"]
    shorter = run(model, dataset, CONFIG.replace(train={"steps": 2}), tmp_path)
    assert same(load_file(result.run_folder / "checkpoints" / "toy_step000002.safetensors"), shorter.lora)


def test_a_crash_costs_no_more_than_save_minutes(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    """What lies on disk while the run goes on is what a kill would leave; after its end the result has taken its place."""
    found: list[dict[str, torch.Tensor]] = []

    def progress(now: Progress) -> None:
        if now.phase == "train":
            found.extend(load_file(path) for path in tmp_path.rglob("*_latest.safetensors"))

    result = run(model, dataset, CONFIG.replace(train={"steps": 3}, output={"save_minutes": 1e-9}), tmp_path, progress=progress)
    assert same(found[-1], run(model, dataset, CONFIG.replace(train={"steps": 2}), tmp_path).lora)
    assert not list((result.run_folder / "checkpoints").iterdir())
    run(model, dataset, CONFIG.replace(train={"steps": 2}, output={"save_minutes": 0}), tmp_path / "off", progress=progress)
    assert not list((tmp_path / "off").rglob("*_latest*"))


def test_a_run_that_ends_before_its_first_step_leaves_nothing(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    def progress(now: Progress) -> None:
        if now.phase == "encode":
            raise Interrupt

    with pytest.raises(Interrupt):
        run(model, dataset, CONFIG, tmp_path / "out", progress=progress)
    left = [p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if ".cache" not in p.parts]  # what was encoded serves the next run
    assert sorted(map(str, left)) == ["loras", "runs"]


def test_a_lora_is_never_overwritten(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "toy_2.safetensors").write_bytes(b"somebody's own")
    results = [run(model, dataset, CONFIG.replace(train={"steps": 1, "seed": seed}), tmp_path) for seed in range(3)]
    assert [r.path.name for r in results] == ["toy.safetensors", "toy_3.safetensors", "toy_4.safetensors"]
    assert len({r.run_folder for r in results}) == 3
    assert all(same(load_file(r.path), r.lora) for r in results)
    assert (tmp_path / "loras" / "toy_2.safetensors").read_bytes() == b"somebody's own"
    assert len(list((tmp_path / "loras").iterdir())) == 4  # nothing temporary is left


# ---------------------------------------------------------------- every way out

class Interrupt(BaseException):
    """As ComfyUI's own since 0.20."""


def tree(model: backbone.DiffusersModel) -> list[tuple]:
    roots = [model.unet, *model.text_encoders]
    ignored = {"_gradient_checkpointing_func"}  # diffusers' own way of switching it off leaves this
    return [(name, id(m), sorted(m.__dict__.keys() - ignored), m.training, sorted(m._modules), [(id(p), p.requires_grad, p.data_ptr(), p.sum().item()) for p in m._parameters.values() if p is not None])
            for root in roots for name, m in root.named_modules()]


def test_should_stop_ends_the_run_well(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    seen: list[int] = []
    stopped = run(model, dataset, CONFIG.replace(train={"steps": 6}), tmp_path, progress=lambda p: seen.append(p.step) if p.phase == "train" else None, should_stop=lambda: seen[-1:] == [2])
    assert stopped.stopped and stopped.steps == 2 and seen == [1, 2] and "Stopped at step 2 of 6, smoothed loss" in stopped.report
    assert same(load_file(stopped.path), run(model, dataset, CONFIG.replace(train={"steps": 2}), tmp_path).lora)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_interrupt_keeps_what_was_learned(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, checkpointing: bool) -> None:
    """9 polls while encoding (4 pictures, 5 captions), then one a micro-step: the poll at any of them may raise."""
    config = CONFIG.replace(adapter={"targets": "all linear+conv"}, train={"gradient_accumulation_steps": 2, "steps": 6, "gradient_checkpointing": checkpointing})
    before = tree(model)
    for nth in (int(torch.randint(12, 22, (1,))), 11, 3):
        polls: list[int] = []

        def poll(nth: int = nth, polls: list[int] = polls) -> None:
            polls.append(1)
            if len(polls) == nth:
                raise Interrupt

        folder = tmp_path / str(nth)
        with pytest.raises(Interrupt):
            run(model, dataset, config, folder, poll=poll)
        assert tree(model) == before
        steps = max(0, (nth - 10) // 2)
        if steps == 0:
            assert list((folder / "loras").iterdir()) == []  # nothing learned, nothing left, the reserve neither
            continue
        [kept] = (folder / "loras").iterdir()
        assert same(load_file(kept), run(model, dataset, config.replace(train={"steps": steps}), folder).lora)
        assert len((folder / "runs" / "toy" / "metrics.jsonl").read_text().splitlines()) == steps


def test_an_error_in_a_hook_keeps_what_was_learned(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    before = tree(model)

    def progress(now: Progress) -> None:
        if now.phase == "train" and now.step == 2:
            raise RuntimeError("the page is gone")

    with pytest.raises(RuntimeError, match="the page is gone"):
        run(model, dataset, CONFIG, tmp_path, progress=progress)
    assert tree(model) == before
    assert same(load_file(tmp_path / "loras" / "toy.safetensors"), run(model, dataset, CONFIG.replace(train={"steps": 2}), tmp_path).lora)


class Poisoned(backbone.DiffusersModel):
    """Answers no numbers at the calls of these numbers, as a model that overflows does."""

    calls: list[int] = []
    bad: tuple[int, ...] = ()

    def predict(self, noisy: torch.Tensor, *args: object) -> torch.Tensor:
        if noisy.shape[-1] < 8:  # not yet a step: how much memory one will take
            return super().predict(noisy, *args)
        self.calls.append(1)
        return super().predict(noisy, *args) * (torch.nan if len(self.calls) in self.bad else 1)


@pytest.fixture
def poisoned() -> Poisoned:
    from lora_loom.trainer.backbones.diffusers_load import load_parts

    found = Poisoned(load_parts("toy_base", torch.float32), torch.device("cpu"))
    found.encode_captions([""])  # see model
    found.calls = []
    return found


def test_a_loss_that_stays_no_number(poisoned: Poisoned, model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    poisoned.bad = (4, 6, 7, 8)
    before = tree(poisoned)
    events: list[tuple[str, dict]] = []
    with pytest.raises(LoomError) as error:
        run(poisoned, dataset, CONFIG.replace(train={"steps": 8, "seed": 7}), tmp_path, event=lambda name, data: events.append((name, data)))
    message = str(error.value)
    assert "nan" in message and "at step 5, 3 times in a row" in message and "learning rate (0.001)" in message and "saved as toy.safetensors" in message
    assert [data["step"] for name, data in events if name == "step skipped"] == [4, 5, 5, 5]
    kept = load_file(tmp_path / "loras" / "toy.safetensors")
    assert all(v.isfinite().all() for v in kept.values())
    first = run(model, dataset, CONFIG.replace(train={"steps": 3, "seed": 7}), tmp_path)
    assert not same(kept, first.lora) and tree(poisoned) == before  # the fourth step came after the one that was skipped


def test_single_bad_steps_are_skipped(poisoned: Poisoned, dataset: Dataset, tmp_path: Path) -> None:
    poisoned.bad = (3, 5, 6)
    result = run(poisoned, dataset, CONFIG.replace(train={"steps": 6}), tmp_path)
    assert result.steps == len(result.losses) == 6 and all(math.isfinite(x) for x in result.losses) and len(poisoned.calls) == 9
    assert "3 steps were skipped" in result.report
    assert all(v.isfinite().all() for v in result.lora.values())


def test_an_exploding_loss_is_skipped(poisoned: Poisoned, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Poisoned.predict
    monkeypatch.setattr(Poisoned, "predict", lambda self, *args: plain(self, *args) * (1000 if len(self.calls) == 13 else 1))
    result = run(poisoned, dataset, CONFIG.replace(train={"steps": 15}), tmp_path)
    assert len(poisoned.calls) == 16 and max(result.losses) < 50 and "1 steps were skipped" in result.report


def test_a_vae_that_overflows_is_named_before_training(dataset: Dataset, poisoned: Poisoned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_images, factors = Poisoned.encode_images, iter((1.0, 1.0, torch.nan, 1.0))
    monkeypatch.setattr(Poisoned, "encode_images", lambda self, pixels: encode_images(self, pixels) * next(factors))
    with pytest.raises(LoomError, match=f"no numbers for {dataset.pictures[2].name}.*fp32-vae"):
        run(poisoned, dataset, CONFIG, tmp_path)
    assert not list((tmp_path / "loras").iterdir()) and [p.name for p in (tmp_path / "runs").iterdir()] == [".cache"]


def test_checkpointing_changes_no_number(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    plain = run(model, dataset, CONFIG.replace(adapter={"targets": "all linear+conv"}), tmp_path)
    saving = run(model, dataset, CONFIG.replace(adapter={"targets": "all linear+conv"}, train={"gradient_checkpointing": True}), tmp_path)
    assert saving.losses == pytest.approx(plain.losses, rel=1e-6)
    for key, value in plain.lora.items():
        torch.testing.assert_close(saving.lora[key], value, rtol=1e-4, atol=1e-5)


def test_pictures_without_a_caption_need_a_trigger_word(model: backbone.DiffusersModel, pictures: Path, tmp_path: Path) -> None:
    for text in pictures.glob("*.txt"):
        text.unlink()
    with pytest.raises(LoomError, match="none of the 4 pictures has one and trigger_word is empty.*LoadDataset.trigger_word"):
        run(model, read_dataset(pictures, resolution=64, min_size=32), CONFIG, tmp_path)
    assert not (tmp_path / "runs").exists()
    assert run(model, read_dataset(pictures, resolution=64, min_size=32, trigger_word="zx"), CONFIG, tmp_path).steps == 3


# ---------------------------------------------------------------- preservation

def test_captions_without_the_concept() -> None:
    assert without_concept("a red Star on a blue background", "star", ("ring", "cross")) == ["a red ring on a blue background", "a red cross on a blue background"]
    assert without_concept("zxmug, on a table", "zxmug", ()) == ["on a table"]
    assert without_concept("a zxmug mug", "zxmug", ()) == ["a mug"]
    assert without_concept("", "zxmug", ("mug",)) == [""]


@pytest.mark.parametrize("algorithm", ["lora", "dora", "lokr", "oft"])
def test_preservation_keeps_the_answer_to_other_captions(model: backbone.DiffusersModel, pictures: Path, tmp_path: Path, algorithm: str) -> None:
    """The same run with and without: what the base says to captions without the word changes several times less."""
    dataset = read_dataset(pictures, resolution=64, min_size=32, trigger_word="circle")
    noisy, timesteps = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([100, 400, 700, 950])
    with torch.no_grad():
        other = [model.encode_captions([f"a {c} ring"])[0] for c in COLOURS]
        batch = Batch(noisy, [""] * 4, other)
        base = model.predict(noisy, timesteps, batch, other)
    changes = []
    for weight in (0.0, 5.0):
        config = CONFIG.replace(adapter={"algorithm": algorithm, "targets": "all linear+conv", "rank": 4}, optim={"learning_rate": 2e-3},
                                loss={"preservation": weight, "preservation_words": ("ring", "cross")}, train={"steps": 40, "batch_size": 4})
        seen: dict[str, torch.Tensor] = {}

        def look(now: Progress, seen: dict[str, torch.Tensor] = seen) -> None:
            if now.phase == "train" and now.step == now.total:
                with torch.no_grad():
                    seen["answer"] = model.predict(noisy, timesteps, batch, other)

        run(model, dataset, config, tmp_path, progress=look)
        changes.append((seen["answer"] - base).square().mean().item())
    assert changes[1] < changes[0] / 2 and changes[0] > 1e-5, changes


@pytest.mark.parametrize("text", [False, True], ids=["unet", "text encoder too"])
def test_preservation_asks_together_or_apart_alike(model: backbone.DiffusersModel, pictures: Path, tmp_path: Path, text: bool) -> None:
    """One forward for both captions, or two where blocks are computed again anyway: the same losses, and the same LoRA."""
    dataset = read_dataset(pictures, resolution=64, min_size=32, trigger_word="circle")
    config = CONFIG.replace(adapter={"train_text_encoder": text}, loss={"preservation": 2.0, "preservation_words": ("ring",)}, train={"steps": 3, "batch_size": 2})
    asked: list[int] = []
    predict = type(model).predict

    def counted(self, noisy, *rest):
        asked.append(len(noisy))
        return predict(self, noisy, *rest)

    results = []
    for checkpointing in (False, True):
        asked.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model), "predict", counted)
            results.append(run(model, dataset, config.replace(train={"gradient_checkpointing": checkpointing}), tmp_path))
        assert max(asked) == (2 if checkpointing else 4), asked
    assert results[1].losses == pytest.approx(results[0].losses, rel=1e-4)
    for key, value in results[0].lora.items():
        torch.testing.assert_close(results[1].lora[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("windows", [((1, 1), (1, 1)), ((5, 1), (7, 2)), ((6, 7), (5, 4)), ((9, 9), (1, 8))], ids=str)
def test_preservation_begins_at_zero_whatever_the_captions_lengths(model: backbone.DiffusersModel, windows: tuple, together: bool) -> None:
    """windows of 75 tokens: of the captions, and of those without the concept. 5 and 7 of them have no common length that would do for both."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    texts, others = ([f"{word} " * (75 * count - 5) for count in counts] for word, counts in zip(("red", "blue"), windows))
    with torch.no_grad():
        given, preserved = model.encode_captions(texts), model.encode_captions(others)
    assert [c.context.shape[1] for c in given + preserved] == [77 * count for counts in windows for count in counts]
    batch = Batch(latents, texts, given, preserved=others, preserved_conditioning=preserved)
    with model.training("fp32", False, False), adapted(model, CONFIG.adapter, 0) as adapters, torch.enable_grad():
        found = []
        for weight in (0.0, 1000.0):
            objective = Objective(model, adapters, CONFIG.replace(loss={"preservation": weight}).loss, together)
            found.append(objective(objective.draw(batch, torch.Generator().manual_seed(1))))
        assert abs(found[1] - found[0]).item() < 1e-6 and found[0].item() > 0.01
        found[1].backward()
        assert max(a.named()["lora_up.weight"].grad.abs().max() for a in adapters) > 0


def test_rows_of_all_lengths_are_answered_as_if_they_were_alone(model: backbone.DiffusersModel) -> None:
    noisy, timesteps = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([100, 400, 0, 950, 700])
    with torch.no_grad():
        given = model.encode_captions([f"{colour} " * (75 * count - 5) for colour, count in zip((*COLOURS, "white"), (7, 1, 5, 7, 2))])
        whole = model.predict(noisy, timesteps, Batch(noisy, [""] * 5, given), given)
        for i, own in enumerate(given):
            row = slice(i, i + 1)
            alone = model.predict(noisy[row], timesteps[row], Batch(noisy[row], [""], [own]), [own])
            torch.testing.assert_close(whole[row], alone, rtol=0, atol=1e-5)


def test_preservation_needs_a_trigger_word(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(LoomError, match="preservation 1 without a trigger word.*LoadDataset.trigger_word"):
        run(model, dataset, CONFIG.replace(loss={"preservation": 1.0}), tmp_path)
