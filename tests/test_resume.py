"""Runs that survive: killed, stopped, out of memory or resumed, they end where an undisturbed run ends, byte for byte."""
from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.data.augment import Augmentation
from lora_loom.trainer.data.cache import Cache
from lora_loom.trainer.data.folder import Dataset, read_dataset
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.fitting import Fitting
from lora_loom.trainer.hooks import Hooks, Progress
from lora_loom.trainer.job import Result, train
from lora_loom.trainer.optim import find
from lora_loom.trainer.runs import checkpoint, record
from lora_loom.trainer.toy import stars
from safetensors.torch import load_file

CONFIG = LoomConfig().replace(
    adapter={"rank": 2, "alpha": 2.0, "dropout": 0.2, "target_modules": (r"attn2\.to_[kv]$",)}, loss={"caption_dropout": 0.3, "noise_offset": 0.1},
    optim={"learning_rate": 2e-3, "scheduler": "cosine", "warmup_steps": 2}, train={"steps": 6, "precision": "fp32", "seed": 5, "batch_size": 2},
    output={"name": "toy", "save_dtype": "fp32", "save_minutes": 0.0},
)


@pytest.fixture(scope="module")
def model() -> backbone.DiffusersModel:
    return backbone.load("toy_base", "cpu", "fp32")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return read_dataset(stars.write(tmp_path / "stars", 5), resolution=64, min_size=64)


def run(model: backbone.DiffusersModel, dataset: Dataset, config: LoomConfig, folder: Path, resume: str = "", **hooks: object) -> Result:
    return train(model, dataset, config, loras_folder=folder / "loras", runs_folder=folder / "runs", hooks=Hooks(**hooks), resume=resume)


class Interrupt(BaseException):
    pass


def interrupted(model: backbone.DiffusersModel, dataset: Dataset, config: LoomConfig, folder: Path, polls: int) -> None:
    """Breaks off at that poll of the training itself, in the middle of a step where it accumulates."""
    left, training = [polls], []

    def poll() -> None:
        left[0] -= bool(training)
        if left[0] == 0:
            raise Interrupt

    with pytest.raises(Interrupt):
        run(model, dataset, config, folder, poll=poll, progress=lambda now: training.append(1) if now.phase == "train" else None)


# ---------------------------------------------------------------- resumed

VARIANTS = {
    "lora": {}, "accumulating": {"train": {"gradient_accumulation_steps": 3}}, "dora": {"adapter": {"algorithm": "dora"}},
    "lokr": {"adapter": {"algorithm": "lokr", "module_dropout": 0.2}}, "oft": {"adapter": {"algorithm": "oft", "dropout": 0.0, "module_dropout": 0.2}},
    "text encoder": {"adapter": {"train_text_encoder": True, "module_dropout": 0.1}}, "ema": {"optim": {"ema_decay": 0.9}},
    "validation": {"train": {"validation_steps": 1}}, "rates by pattern": {"adapter": {"target_modules": (r"attn2\.to_k$ learning_rate=1e-4", r"attn2\.to_v$ rank=3")}},
    "restarts": {"optim": {"scheduler": "cosine_with_restarts", "cycles": 2}}, "other noise": {"loss": {"multires_noise_discount": 0.3, "input_perturbation": 0.1}},
    **{name: {"optim": {"optimizer": name, "learning_rate": 1.0 if name == "prodigy" else 1e-3}} for name in ("adafactor", "lion", "prodigy", "schedule_free_adamw")},
    "adamw8bit": {"adapter": {"rank": 64}, "optim": {"optimizer": "adamw8bit"}},  # smaller tensors than 4096 values stay in 32 bits
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_ends_as_an_undisturbed_one(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, name: str) -> None:
    config = CONFIG.replace(**VARIANTS[name])
    try:
        find(config.optim.optimizer)
    except LoomError as error:
        pytest.skip(str(error))
    whole = run(model, dataset, config, tmp_path / "whole")
    accumulation = config.train.gradient_accumulation_steps
    interrupted(model, dataset, config, tmp_path / "parts", polls=2 * accumulation)  # in the third step, or the fourth where it accumulates
    torch.manual_seed(1)
    torch.rand(7)  # another process would have other random numbers too
    resumed = run(model, dataset, config, tmp_path / "parts", resume="toy")
    assert resumed.losses == whole.losses and resumed.steps == 6
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    lines = [[{k: v for k, v in json.loads(line).items() if k != "steps_per_second"} for line in (r.run_folder / "metrics.jsonl").read_text().splitlines()]
             for r in (whole, resumed)]
    assert lines[0] == lines[1] and len(lines[0]) == 6
    assert not (resumed.run_folder / checkpoint.FILE).exists(), "a run that is over has nothing to resume"


@pytest.mark.parametrize(("cache", "kept"), [(True, 0), (False, 2**30)], ids=["found again, read from disk", "made again, in memory"])
def test_variants_and_wordings_go_on_where_they_were(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     cache: bool, kept: int) -> None:
    monkeypatch.setattr(Cache.__init__, "__defaults__", (kept,))
    pictures = dataclasses.replace(dataset, augment=Augmentation(flip=0.5, rotation=10.0, hue=60.0, variants=3), repeats=2)
    config = CONFIG.replace(data={"shuffle_tags": True, "tag_dropout": 0.3, "keep_tokens": 0, "caption_variants": 4, "cache": cache})
    pictures = pictures.with_captions({p.name: p.caption.replace(" on ", ", on ") for p in pictures.pictures})
    whole = run(model, pictures, config, tmp_path / "whole")
    interrupted(model, pictures, config, tmp_path / "parts", polls=2)
    resumed = run(model, pictures, config, tmp_path / "parts", resume="toy")
    assert resumed.losses == whole.losses and resumed.path.read_bytes() == whole.path.read_bytes()
    assert resumed.losses != run(model, dataset, CONFIG, tmp_path / "plain").losses
    assert (tmp_path / "parts" / "runs" / ".cache").is_dir() == cache


@pytest.mark.parametrize(("algorithm", "setting"), [("lora", "first.safetensors"), ("dora", "")])
def test_the_file_that_a_run_began_from_may_be_gone(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, algorithm: str, setting: str) -> None:
    """Also for a DoRA out of a LoRA, which keeps the lengths that its rows began with; and whatever init_lora says by then."""
    start = CONFIG.replace(adapter={"dropout": 0.0}, optim={"learning_rate": 5e-2, "scheduler": "constant", "warmup_steps": 0}, train={"steps": 3})
    first = run(model, dataset, start, tmp_path / "first").path
    config = CONFIG.replace(adapter={"algorithm": algorithm, "init_lora": "first.safetensors"})
    whole = train(model, dataset, config, loras_folder=tmp_path / "whole", runs_folder=tmp_path / "whole" / "runs", init_lora=first)
    seen: list[int] = []
    hooks = Hooks(progress=lambda now: seen.append(now.step), should_stop=lambda: seen[-1:] == [3])
    train(model, dataset, config, loras_folder=tmp_path / "parts", runs_folder=tmp_path / "parts" / "runs", init_lora=first, hooks=hooks)
    lengths = [name for name in load_file(tmp_path / "parts" / "runs" / "toy" / checkpoint.FILE) if name.endswith(".lengths")]
    assert bool(lengths) == (algorithm == "dora")
    first.unlink()
    resumed = train(model, dataset, config.replace(adapter={"init_lora": setting}), loras_folder=tmp_path / "parts", runs_folder=tmp_path / "parts" / "runs",
                    init_lora=first, resume="toy")
    assert resumed.losses == whole.losses and resumed.path.read_bytes() == whole.path.read_bytes()
    assert checkpoint.configured(resumed.run_folder).adapter.init_lora == "first.safetensors"
    assert whole.losses != run(model, dataset, CONFIG.replace(adapter={"algorithm": algorithm}), tmp_path / "plain").losses


def test_a_stopped_run_goes_on_and_may_go_on_longer(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    config = CONFIG.replace(optim={"scheduler": "constant"})
    seen: list[int] = []
    stopped = run(model, dataset, config, tmp_path, progress=lambda now: seen.append(now.step), should_stop=lambda: seen[-1:] == [4])
    assert stopped.stopped and stopped.steps == 4
    longer = run(model, dataset, config.replace(train={"steps": 9}), tmp_path, resume="toy")
    assert longer.run_folder == stopped.run_folder and longer.path == stopped.path and longer.path.name == "toy.safetensors"
    assert [path.name for path in longer.path.parent.iterdir()] == ["toy.safetensors"]
    assert longer.lora.keys() == stopped.lora.keys()
    whole = run(model, dataset, config.replace(train={"steps": 9}), tmp_path / "whole")
    assert longer.path.read_bytes() == whole.path.read_bytes()


def _other(path: Path, folder: Path) -> None:
    """Another run's LoRA of the name, where the first was removed."""
    path.write_bytes(b"another's")


def _not_linked(path: Path, folder: Path) -> None:
    path.rename(folder / "elsewhere.safetensors")
    path.symlink_to(folder / "elsewhere.safetensors")


@pytest.mark.parametrize(("between", "name", "written"), [
    (None, "toy", "toy.safetensors"), (_other, "toy", "toy_2.safetensors"), (lambda path, folder: path.unlink(), "toy", "toy.safetensors"),
    (None, "renamed", "renamed.safetensors"), (_not_linked, "toy", "toy_2.safetensors"),
    (lambda path, folder: (folder / "runs" / "toy" / record.FILE).write_text('{"digests": 3, "final": ["x"]}'), "toy", "toy_2.safetensors"),
], ids=["its own", "another's", "removed", "another name", "a link", "a damaged record"])
def test_a_resumed_run_replaces_its_own_file_alone(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, between: object, name: str, written: str) -> None:
    config = CONFIG.replace(train={"steps": 3})
    interrupted(model, dataset, config, tmp_path, polls=2)
    first = tmp_path / "loras" / "toy.safetensors"
    if between:
        between(first, tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "loras").iterdir()}
    result = run(model, dataset, config.replace(output={"name": name}), tmp_path, resume="toy")
    assert result.path.name == written and load_file(result.path)
    facts = record.read(result.run_folder)
    assert facts["lora"] == facts["final"] == written and facts["status"] == "finished"
    for path, data in before.items():
        assert path == result.path or path.read_bytes() == data
    assert set((tmp_path / "loras").iterdir()) == {*before, result.path}


def test_its_earlier_file_stays_where_the_new_one_cannot_take_its_place(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.replace(train={"steps": 3})
    interrupted(model, dataset, config, tmp_path, polls=2)
    first, replace = tmp_path / "loras" / "toy.safetensors", os.replace
    before = first.read_bytes()

    def refuse(source: str, target: Path) -> None:
        if Path(target) == first:
            raise PermissionError(13, "used by another process")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    result = run(model, dataset, config, tmp_path, resume="toy")
    assert result.path.name == "toy_2.safetensors" and first.read_bytes() == before and load_file(result.path)
    assert {path.name for path in (tmp_path / "loras").iterdir()} == {"toy.safetensors", "toy_2.safetensors"}


@pytest.mark.parametrize(("change", "words"), [
    ({"adapter": {"rank": 4}, "optim": {"learning_rate": 1e-3}}, ["rank is 4, was 2", "learning_rate is 0.001, was 0.002", "set them back"]),
    ({"train": {"validation_steps": 3}}, ["validation_steps is 3, was 0"]),  # it would hold pictures out that were trained on
    ({"train": {"steps": 2}}, ["is at step 2 and steps is 2", "set TrainLoRA.steps higher"]),
])
def test_what_may_not_change_is_named(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, change: dict, words: list[str]) -> None:
    interrupted(model, dataset, CONFIG, tmp_path, polls=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(LoomError) as error:
        run(model, dataset, CONFIG.replace(**change), tmp_path, resume="toy")
    assert all(word in str(error.value) for word in words), error.value
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    mended = CONFIG.replace(**change)
    for part, values in mended.to_dict().items():
        mended = mended.replace(**{part: {name: value for name, value in error.value.fix.items() if name in values}})
    assert mended != CONFIG.replace(**change) and run(model, dataset, mended, tmp_path, resume="toy").steps == mended.train.steps


@pytest.mark.parametrize("metrics", [b"", None, bytes(200), b'\xff{"step": 1}\n'])
def test_a_resumption_that_is_broken_off_at_once_loses_nothing(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, metrics: bytes | None) -> None:
    """Whatever a power cut has left of the curve."""
    interrupted(model, dataset, CONFIG, tmp_path, polls=2)
    curve = tmp_path / "runs" / "toy" / "metrics.jsonl"
    curve.unlink() if metrics is None else curve.write_bytes(metrics)
    before = sorted(path for path in (tmp_path / "runs" / "toy" / "checkpoints").iterdir())

    def stop(kind: str, data: object) -> None:
        if kind == "started":
            raise Interrupt

    with pytest.raises(Interrupt):
        run(model, dataset, CONFIG, tmp_path, resume="toy", event=stop)
    assert before and sorted(path for path in (tmp_path / "runs" / "toy" / "checkpoints").iterdir()) == before
    assert run(model, dataset, CONFIG, tmp_path, resume="toy").steps == CONFIG.train.steps


def test_other_loras_on_the_model_are_named(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as stacked:
        stacked.setattr(model, "loras_digest", lambda: "of one")
        interrupted(model, dataset, CONFIG, tmp_path, polls=2)
    with monkeypatch.context() as stacked:
        stacked.setattr(model, "loras_digest", lambda: "of none")
        with pytest.raises(LoomError, match="resume 'toy' with other LoRAs on the model than it began with: connect the model that it had"):
            run(model, dataset, CONFIG, tmp_path, resume="toy")
    assert run(model, dataset, CONFIG, tmp_path, resume="toy").steps == CONFIG.train.steps  # where nobody can tell


@pytest.mark.parametrize("part,name", [("vae", "vae"), ("text_encoders", "text encoder")])
def test_another_encoder_is_named(dataset: Dataset, tmp_path: Path, part: str, name: str) -> None:
    model = backbone.load("toy_base", "cpu", "fp32")
    interrupted(model, dataset, CONFIG, tmp_path, polls=2)
    encoders = getattr(model, part)
    weight = next((encoders[0] if isinstance(encoders, (list, tuple)) else encoders).parameters())
    with torch.no_grad():
        weight.view(-1)[0] += 0.5
    with pytest.raises(LoomError, match=f"resume 'toy' with another {name} than it began with.*connect the one that it had"):
        run(model, dataset, CONFIG, tmp_path, resume="toy")
    with torch.no_grad():
        weight.view(-1)[0] -= 0.5
    assert run(model, dataset, CONFIG, tmp_path, resume="toy").steps == CONFIG.train.steps


def test_other_pictures_other_models_and_no_state_are_named(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(model, dataset, CONFIG, tmp_path, polls=2)
    with pytest.raises(LoomError, match="other pictures or captions than"):
        run(model, dataset.with_captions({dataset.pictures[0].name: "another"}), CONFIG, tmp_path, resume="toy")
    wider = dataclasses.replace(dataset, flip=True, resolution=72, name="stars of mine")
    with pytest.raises(LoomError, match=r"resume 'toy' with other settings \(folder is 'stars of mine', was 'stars'; resolution is 72, was 64; flip is True, was False\)") as told:
        run(model, wider, CONFIG, tmp_path, resume="toy")
    assert told.value.fix == {"folder": "stars", "resolution": 64, "flip": False}
    with pytest.raises(LoomError, match=r"augment is '2 variants of each picture, flip 0.5, seed 0', was ''") as told:
        run(model, dataclasses.replace(dataset, augment=Augmentation(flip=0.5, variants=2)), CONFIG, tmp_path, resume="toy")
    assert told.value.fix == {}
    recaptioned = dataset.with_captions({dataset.pictures[0].name: "another"})
    for change, said in (({"asked_source": "none"}, "caption_source is 'none', was 'auto'"), ({"min_size": 20}, "min_size is 20, was 64")):
        with pytest.raises(LoomError, match=rf"other settings \({said}; pictures or captions may be others too\)") as told:
            run(model, dataclasses.replace(recaptioned, **change), CONFIG, tmp_path, resume="toy")
        assert len(told.value.fix) == 1
    monkeypatch.setattr(model, "name", "another")
    with pytest.raises(LoomError, match="resume 'toy' on 'toy another epsilon'.*load that checkpoint"):
        run(model, dataset, CONFIG, tmp_path, resume="toy")
    monkeypatch.undo()
    with pytest.raises(LoomError, match="resume 'gone' is no run in .*Runs that can go on: toy"):
        run(model, dataset, CONFIG, tmp_path, resume="gone")
    with pytest.raises(LoomError, match="plain file name"):
        run(model, dataset, CONFIG, tmp_path, resume="../runs/toy")
    state = tmp_path / "runs" / "toy" / checkpoint.FILE
    whole = state.read_bytes()
    state.write_bytes(whole[:-100])
    with pytest.raises(LoomError, match="cannot be read.*damaged"):
        run(model, dataset, CONFIG, tmp_path, resume="toy")
    state.write_bytes(whole)
    run(model, dataset, CONFIG, tmp_path, resume="toy")
    with pytest.raises(LoomError, match="has no state to go on from.*it has finished"):
        run(model, dataset, CONFIG, tmp_path, resume="toy")


# ---------------------------------------------------------------- killed

ZYGOTE = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from lora_loom.trainer.backbones import diffusers as backbone
from lora_loom.trainer.config import LoomConfig
from lora_loom.trainer.data.folder import read_dataset
from lora_loom.trainer.job import train
pictures, folder, config = sys.argv[1:]
config, folder = LoomConfig.from_yaml(config), Path(folder)
model = backbone.load("toy_base", "cpu", "fp32")
dataset = read_dataset(pictures, resolution=64, min_size=64)
print("ready", flush=True)
for line in sys.stdin:
    resume = json.loads(line)
    child = os.fork()
    if not child:
        train(model, dataset, config, loras_folder=folder / "loras", runs_folder=folder / "runs", resume=resume)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs fork")
def test_twenty_kills_at_random_moments_change_no_byte(dataset: Dataset, tmp_path: Path) -> None:
    """Each attempt is killed after a random while, anywhere from reading pictures to writing files; then one is left to end."""
    config = CONFIG.replace(adapter={"targets": "attention", "target_modules": ()}, train={"steps": 40}, output={"save_steps": 3, "keep_checkpoints": 2})
    chance = random.Random(time.time_ns())  # new moments every time: what breaks is a bug, whichever moment it was

    def zygote(folder: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", ZYGOTE, str(dataset.folder), str(folder), config.to_yaml()]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert process.stdout.readline() == "ready\n"
        return process

    def attempt(process: subprocess.Popen, resume: str, after: float | None) -> int:
        process.stdin.write(json.dumps(resume) + "\n")
        process.stdin.flush()
        child = int(process.stdout.readline())
        if after is not None:
            time.sleep(after)
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return int(process.stdout.readline())

    with zygote(tmp_path / "whole") as process:
        began = time.perf_counter()
        assert attempt(process, "", None) == 0
        duration = time.perf_counter() - began
        process.stdin.close()
    [whole] = (tmp_path / "whole" / "loras").iterdir()
    expected = whole.read_bytes()

    kills, finished, steps = 0, 0, []
    with zygote(tmp_path / "killed") as process:
        while kills < 20 or not finished:
            states = list((tmp_path / "killed" / "runs").glob(f"*/{checkpoint.FILE}"))
            assert len(states) <= 1
            resume = states[0].parents[1].name if states else ""
            status = attempt(process, resume, chance.uniform(0, 0.7 * duration) if kills < 20 else None)
            assert status in (0, -signal.SIGKILL)
            kills += status != 0
            if status == 0:
                finished += 1
                newest = max((tmp_path / "killed" / "loras").iterdir(), key=lambda path: path.stat().st_mtime_ns)
                assert newest.read_bytes() == expected
            steps += [len(checkpoint.read(path.parents[1])[1]["history"]) for path in (tmp_path / "killed" / "runs").glob(f"*/{checkpoint.FILE}")]
        process.stdin.close()
    assert len(set(steps)) > 2, "the kills hit nothing"
    for path in (tmp_path / "killed" / "loras").iterdir():
        assert path.read_bytes() == expected
    left = [path for path in (tmp_path / "killed" / "runs").rglob("*.safetensors") if not path.name.startswith(".")]
    assert all(load_file(path) for path in left), "a file that is there is whole"


# ---------------------------------------------------------------- out of memory

def test_the_plans_get_cheaper_and_end() -> None:
    plan, seen = Fitting(), []
    while plan is not None:
        seen.append((plan.checkpointing, plan.split, plan.offload))
        plan = plan.cheaper(3, can_offload=True)
    assert seen == [(0, 1, False), (2, 1, False), (1, 1, False), (1, 2, False), (1, 3, False), (1, 3, True)]
    assert Fitting(1, 1).cheaper(1, can_offload=False) is None
    assert Fitting(1, 2).difference(Fitting(1, 1)) == "each micro-batch in 2 parts"


SECOND = ["gradient checkpointing in every second block", "gradient checkpointing in every block"]


class Small(backbone.DiffusersModel):
    """Has room for so many pictures at once; with checkpointing of every second block half of that is enough for one, of all a third. From the given
    call on."""

    room, calls, tight, checkpointing = 1.0, 0, 0, False

    def training(self, precision: str, text_encoders: bool, checkpointing: int, *rest: object, **more: object):
        self.checkpointing = checkpointing
        return super().training(precision, text_encoders, checkpointing, *rest, **more)

    def predict(self, noisy: torch.Tensor, *rest: object) -> torch.Tensor:
        self.calls += noisy.shape[-1] == 8  # smaller ones ask how much memory a step will take
        if self.calls >= self.tight and len(noisy) / {0: 1, 2: 2, 1: 3}[self.checkpointing] > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().predict(noisy, *rest)


@pytest.mark.parametrize(("room", "changes"), [
    (2.5, SECOND[:1]), (1.5, SECOND), (0.7, [*SECOND, "each micro-batch in 2 parts"]),
    (0.4, [*SECOND, "each micro-batch in 2 parts", "each micro-batch in 4 parts"]),
])
def test_out_of_memory_goes_on_in_a_cheaper_way(model: backbone.DiffusersModel, tmp_path: Path, room: float, changes: list[str]) -> None:
    """In the third step, as when another program takes memory: what was learned before it stays, and the rest comes out the same."""
    from lora_loom.trainer.backbones.diffusers_load import load_parts

    small = Small(load_parts("toy_base", torch.float32), torch.device("cpu"))
    small.room, small.tight = room, 3
    dataset = read_dataset(stars.write(tmp_path / "four", 4), resolution=64, min_size=64)
    config = CONFIG.replace(adapter={"dropout": 0.0}, train={"batch_size": 4})
    events: list[tuple[str, dict]] = []
    result = run(small, dataset, config, tmp_path, event=lambda name, data: events.append((name, data)))
    changed = [data for name, data in events if name in ("out of memory", "will not fit")]  # the latter where asking runs out of it
    assert [data["change"] for data in changed] == changes and all(data["step"] == 3 for data in changed)
    assert any(name == "out of memory" for name, _ in events)
    assert f"So that it fits into memory, these were changed: {', '.join(changes)}" in result.report and result.steps == 6
    plain = run(model, dataset, config, tmp_path / "plain")
    assert result.losses == pytest.approx(plain.losses, rel=1e-4)
    for key, value in plain.lora.items():
        torch.testing.assert_close(result.lora[key], value, rtol=0.02, atol=2e-4)


def test_where_nothing_is_cheap_enough_the_message_says_what_to_lower(dataset: Dataset, tmp_path: Path) -> None:
    from lora_loom.trainer.backbones.diffusers_load import load_parts

    small = Small(load_parts("toy_base", torch.float32), torch.device("cpu"))
    small.room, small.tight = 0.1, 3
    with pytest.raises(LoomError) as error:
        run(small, dataset, CONFIG, tmp_path)
    message = str(error.value)
    for words in ("ran out of memory at batch_size 2", f"after {', '.join(SECOND)}, each micro-batch in 2 parts", "lower the resolution (64)",
                  "What was learned in 2 steps is saved as toy.safetensors"):
        assert words in message, message
    assert not small.unet.training and not [m for m in small.unet.modules() if hasattr(m, "lora_A")]
    small.room = 4.0
    assert run(small, dataset, CONFIG, tmp_path, resume="toy").steps == 6  # and it goes on where there is room


# ---------------------------------------------------------------- averages, validation, what is kept

def test_the_average_is_that_of_the_steps(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    """By hand from the steps' own values: e += (1 - d)(w - e), d = min(decay, (1 + n)/(10 + n))."""
    config = CONFIG.replace(adapter={"dropout": 0.0}, output={"save_steps": 1})
    plain = run(model, dataset, config, tmp_path / "plain")
    folder = plain.run_folder / "checkpoints"
    steps = [*(load_file(folder / f"toy_step{n:06d}.safetensors") for n in range(1, 6)), plain.lora]
    start = {k: torch.zeros_like(v) if "lora_up" in k else None for k, v in steps[0].items()}
    averaged = run(model, dataset, config.replace(optim={"ema_decay": 0.5}), tmp_path / "averaged")
    assert averaged.losses == plain.losses  # the average is looked at, not trained on
    for key, value in start.items():
        if value is not None:
            for n, step in enumerate(steps):
                decay = min(0.5, (1 + n) / (10 + n))
                value = decay * value + (1 - decay) * step[key]
            torch.testing.assert_close(averaged.lora[key], value, rtol=1e-4, atol=1e-7)
            assert not torch.equal(averaged.lora[key], plain.lora[key])


def test_validation_is_the_same_each_time_and_changes_nothing(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    seen: list[Progress] = []
    config = CONFIG.replace(optim={"learning_rate": 1e-8, "scheduler": "constant"}, train={"validation_steps": 2, "validation_split": 0.0})
    checked = run(model, dataset, config, tmp_path, progress=lambda now: seen.append(now) if now.phase == "train" else None)
    losses = [now.validation_loss for now in seen]
    assert [value is None for value in losses] == [True, False, True, False, True, False]
    assert losses[1] == pytest.approx(losses[3], rel=1e-5) == pytest.approx(losses[5], rel=1e-5)  # the LoRA stands still, so does its loss
    plain = run(model, dataset, config.replace(train={"validation_steps": 0}), tmp_path / "plain")
    assert plain.losses == checked.losses and all(torch.equal(v, checked.lora[k]) for k, v in plain.lora.items())


def test_pictures_held_out_are_not_trained_on_and_overfitting_shows(model: backbone.DiffusersModel, tmp_path: Path) -> None:
    """Two pictures by heart: the loss on others falls while there is something in common to learn, then rises."""
    dataset = read_dataset(stars.write(tmp_path / "stars", 4), resolution=64, min_size=64)
    config = CONFIG.replace(
        adapter={"rank": 32, "dropout": 0.0, "targets": "all linear+conv", "target_modules": ()}, loss={"caption_dropout": 0.0, "noise_offset": 0.0},
        optim={"learning_rate": 1e-2, "scheduler": "constant"}, train={"steps": 150, "validation_steps": 10, "validation_split": 0.5})
    seen: list[Progress] = []
    captions: set[str] = set()
    predict = model.predict

    def watching(noisy, timesteps, batch, conditioning):
        if torch.is_grad_enabled():
            captions.update(batch.captions)
        return predict(noisy, timesteps, batch, conditioning)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "predict", watching)
        result = run(model, dataset, config, tmp_path, progress=lambda now: seen.append(now) if now.phase == "train" else None)
    losses = [now.validation_loss for now in seen if now.validation_loss is not None]
    assert len(captions) == 2 < len({dataset.caption(p) for p in dataset.pictures})
    assert losses[-1] > 1.1 * min(losses) and result.losses[-1] < min(losses), losses
    best = load_file(result.run_folder / "checkpoints" / "toy_best.safetensors")
    assert not all(torch.equal(v, result.lora[k]) for k, v in best.items()) and f"Best validation loss {min(losses):.4f}" in result.report
    assert "validation every 10 steps on 2 pictures held out" in (result.run_folder / "dataset.txt").read_text()


@pytest.mark.parametrize("change", [{"ema_decay": 0.99}, {"optimizer": "schedule_free_adamw"}], ids=["ema", "schedule-free"])
def test_what_is_validated_is_what_is_saved(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, change: dict) -> None:
    """The average, not the values that training stands at: a still run that begins with the best file finds the same loss."""
    try:
        find(change.get("optimizer", "adamw"))
    except LoomError as error:
        pytest.skip(str(error))
    config = CONFIG.replace(adapter={"dropout": 0.0}, optim={**change, "learning_rate": 2e-2, "scheduler": "constant"}, train={"validation_steps": 2})
    seen: list[float] = []
    watch = lambda now: seen.append(now.validation_loss) if now.validation_loss is not None else None
    result = run(model, dataset, config, tmp_path, progress=watch)
    best, found = min(seen), result.run_folder / "checkpoints" / "toy_best.safetensors"
    still = CONFIG.replace(adapter={"dropout": 0.0}, optim={"learning_rate": 1e-8, "scheduler": "constant"}, train={"validation_steps": 1, "steps": 1})
    train(model, dataset, still, loras_folder=tmp_path, runs_folder=tmp_path / "still", hooks=Hooks(progress=watch), init_lora=found)
    assert seen[-1] == pytest.approx(best, rel=1e-5)


def test_a_kill_while_the_result_is_written_leaves_a_state(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.replace(output={"save_steps": 4})
    whole = run(model, dataset, config, tmp_path / "whole")

    def killed(*_: object) -> None:
        raise Interrupt

    with monkeypatch.context() as patch, pytest.raises(Interrupt):
        patch.setattr("lora_loom.trainer.runs.saver._write", killed)
        run(model, dataset, config, tmp_path)
    resumed = run(model, dataset, config, tmp_path, resume="toy")
    assert resumed.path.read_bytes() == whole.path.read_bytes() and not (resumed.run_folder / checkpoint.FILE).exists()


def test_a_dora_that_began_from_a_lora_is_resumed_exactly(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    """Its rows keep the lengths that they began with."""
    first = run(model, dataset, CONFIG.replace(optim={"learning_rate": 5e-2, "scheduler": "constant"}), tmp_path / "first")
    config = CONFIG.replace(adapter={"algorithm": "dora", "init_lora": "toy.safetensors"})
    folders = lambda name: {"loras_folder": tmp_path / name, "runs_folder": tmp_path / name / "runs", "init_lora": first.path}
    whole, seen = train(model, dataset, config, **folders("whole")), []
    stopping = Hooks(progress=lambda now: seen.append(now.step), should_stop=lambda: seen[-1:] == [3])
    assert train(model, dataset, config, hooks=stopping, **folders("parts")).steps == 3
    resumed = train(model, dataset, config, resume="toy", **folders("parts"))
    assert resumed.losses == whole.losses and resumed.path.read_bytes() == whole.path.read_bytes()


def test_only_so_many_checkpoints_stay(model: backbone.DiffusersModel, dataset: Dataset, tmp_path: Path) -> None:
    config = CONFIG.replace(train={"validation_steps": 2}, output={"save_steps": 1, "keep_checkpoints": 2, "name": "a [1] b"})
    result = run(model, dataset, config, tmp_path)
    assert sorted(f.name for f in (result.run_folder / "checkpoints").iterdir()) == ["a [1] b_best.safetensors", "a [1] b_step000004.safetensors", "a [1] b_step000005.safetensors"]
