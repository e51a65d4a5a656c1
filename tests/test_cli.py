"""The command line: instant where nothing is computed, one line for a mistake, and Ctrl-C keeps what was learned."""
import csv
import dataclasses
import os
import random
import signal
import subprocess
import sys

import pytest
from lora_loom.trainer import cli, cli_caption
from lora_loom.trainer.captioners import methods
from lora_loom.trainer.captioners.labels import parse_groups
from lora_loom.trainer.captioners.options import CaptionOptions
from lora_loom.trainer.toy import arch, shapes
from lora_loom.trainer.yaml_config import KEYS, load_job
from safetensors import safe_open

needs_toy_base = pytest.mark.skipif(not arch.WEIGHTS.is_file(), reason="the toy base's weights are not there")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    rng, rows = random.Random(0), []
    for number, scene in enumerate(shapes.split()[0][:4]):
        shapes.draw(scene, rng).save(tmp_path / "pictures" / f"图 {number}.png")
        rows.append((f"图 {number}.png", scene.caption))
    with (tmp_path / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("filename", "prompt"), *rows])
    return tmp_path


def config(folder, text=""):
    path = folder / "run.yaml"
    path.write_text("train_data_dir: pictures\nbase_model: toy_base\ndevice: cpu\nlora_rank: 2\nlora_alpha: 2\nmetadata_path: captions.csv\n"
                    "output_dir: results\noutput_name: 织机\n" + text, encoding="utf-8")
    return path


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return dict(list(csv.reader(file))[1:])


def start(*arguments, **more):
    return subprocess.Popen([sys.executable, "-m", "lora_loom.trainer.cli", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}, **more)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["caption", "--help"], ["demo", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = ("import sys\nfrom lora_loom.trainer import cli\ntry:\n    cli.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
            "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'open_clip', 'numpy'} & set(sys.modules)\nassert not heavy, heavy")
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: lora-loom" in done.stdout, done.stderr


def test_the_keys_are_listed_with_their_defaults(capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["train", "--keys"])
    lines = capsys.readouterr().out.splitlines()
    assert leaving.value.code == 0 and [line.split()[0] for line in lines] == [key.name for key in KEYS]
    assert next(line for line in lines if line.startswith("lora_rank ")).endswith("(16)")


def test_what_the_pictures_show_is_told_in_the_keys_of_the_yaml(folder, capsys):
    assert cli.main(["train", str(config(folder, "min_size: 900\n"))]) == 2
    message = capsys.readouterr().err
    assert "min_size" in message and "LoadDataset" not in message and "LoRAConfig" not in message


def test_a_mistake_is_one_line_and_code_2(folder, capsys):
    assert cli.main(["train", str(config(folder, "lora_rnak: 8\n"))]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("lora-loom: error: key 'lora_rnak'") and captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.parametrize("name", ["peft", "lora_loom.trainer.nothing"])
def test_a_package_that_is_missing(folder, capsys, monkeypatch, name):
    def missing(*_):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(cli, "train_from", missing)
    if name != "peft":  # our own: no pip would mend it
        with pytest.raises(ModuleNotFoundError):
            cli.main(["train", str(folder)])
        return
    assert cli.main(["train", str(folder)]) == 2
    assert "the package peft is missing" in capsys.readouterr().err


def test_dry_run_shows_the_plan_and_loads_no_weights(folder, capsys, monkeypatch):
    from lora_loom.trainer.backbones import diffusers as backbone

    monkeypatch.setattr(backbone, "load", lambda *_: pytest.fail("weights were loaded"))
    assert cli.main(["train", str(config(folder, "epochs: 3\n")), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "lora_rank: 2" in out and "epochs: 3" in out and "captions: 4 of 4 pictures" in out and "12 steps" in out
    assert not (folder / "results").exists()


@needs_toy_base
def test_train_writes_the_lora_and_its_run(folder, capsys):
    path = config(folder, "max_train_steps: 2\nlog_dir: logs\n")
    assert cli.main(["train", str(path)]) == 0
    out = capsys.readouterr().out
    lora = folder / "results" / "织机.safetensors"
    assert f"LoRA: {lora}" in out and "step 2/2" in out
    with safe_open(str(lora), "pt") as file:
        assert any(key.startswith("lora_unet_") for key in file.keys())
    run = folder / "results" / "lora_loom" / "织机"
    assert (run / "config.yaml").read_text(encoding="utf-8") == load_job(path).config.to_yaml()
    assert any((folder / "logs").rglob("events.out.tfevents.*"))


@needs_toy_base
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one child process")
def test_ctrl_c_ends_after_the_step_and_saves(folder):
    process = start("train", config(folder, "max_train_steps: 1000000\n"))
    for line in process.stdout:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping after this step" in err and "Stopped at step" in out
    assert (folder / "results" / "织机.safetensors").is_file()


@needs_toy_base
def test_an_error_on_the_way_names_what_was_saved(folder, capsys):
    """A learning rate of 1 throws a toy run into numbers that are none; what was learned until then is kept."""
    from lora_loom.trainer.loss import Diffusion

    add_noise, calls = Diffusion.add_noise, []

    def poisoned(self, latents, *rest):
        calls.extend([1] * (latents.shape[-1] == 8))  # smaller ones ask how much memory a step will take
        return add_noise(self, latents, *rest) * (float("nan") if len(calls) > 2 else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Diffusion, "add_noise", poisoned)
        assert cli.main(["train", str(config(folder, "max_train_steps: 5\n"))]) == 2
    err = capsys.readouterr().err
    lora = folder / "results" / "织机.safetensors"
    assert lora.is_file() and f"what was learned is saved as {lora}" in err and "lora-loom: error: loss nan" in err


class Labels:
    """A captioner that is sure of the first labels, and breaks where told."""

    def __init__(self, breaks_at=None):
        self.breaks_at, self.seen = breaks_at, 0

    def caption(self, image, poll=None):
        self.seen += 1
        if self.seen == self.breaks_at:
            raise KeyboardInterrupt
        labels = [label for group in parse_groups(self.options.labels) for label in group.labels]
        return [(label, 1 / (1 + place)) for place, label in enumerate(labels)]

    def close(self):
        self.closed = True


@pytest.fixture
def captioner(monkeypatch):
    tagger = Labels()

    def load(folder, device, options):
        tagger.options = options
        return tagger

    monkeypatch.setitem(methods.METHODS, "clip_tags", dataclasses.replace(methods.METHODS["clip_tags"], load=load))
    return tagger


def caption(folder, *arguments):
    return cli.main(["caption", "--input", str(folder / "pictures"), "--model", str(folder), "--device", "cpu", *arguments])


def test_caption_writes_into_the_folder(folder, captioner):
    assert caption(folder, "--labels", "red, blue, green", "--max-tags", "2", "--prefix", "shape") == 0
    assert set(rows_of(folder / "pictures" / "metadata.csv").values()) == {"shape, red, blue"}
    assert len(rows_of(folder / "pictures" / "metadata.csv")) == 4


def test_captions_that_were_kept_stand_in_the_table_at_once(folder, captioner):
    first = min((folder / "pictures").glob("*.png"))
    first.with_suffix(".txt").write_text("my own", encoding="utf-8")
    assert caption(folder, "--labels", "red", "--existing", "keep") == 0
    rows = rows_of(folder / "pictures" / "metadata.csv")
    assert rows.pop(first.name) == "my own" and set(rows.values()) == {"red"} and len(rows) == 3
    assert not (folder / "pictures" / "metadata.csv.bak").exists()  # there was no older table


def test_caption_writes_elsewhere_and_keeps_the_older_text(folder, captioner, capsys):
    (folder / "labels.txt").write_text("# colours\n红\n", encoding="utf-8")
    output = folder / "new" / "my captions.csv"
    assert caption(folder, "--output", str(output), "--labels", str(folder / "labels.txt")) == 0
    assert set(rows_of(output).values()) == {"红"}
    first = output.read_bytes()
    assert caption(folder, "--output", str(output), "--labels", "blue") == 0
    assert set(rows_of(output).values()) == {"blue"}
    assert sorted(p.name for p in output.parent.iterdir()) == ["my captions.csv", "my captions.csv.bak"]
    assert output.with_name("my captions.csv.bak").read_bytes() == first
    assert caption(folder, "--output", str(output), "--labels", "green") == 0
    assert sorted(p.name for p in output.parent.iterdir()) == ["my captions.csv", "my captions.csv.bak", "my captions.csv.bak.1"]
    assert not (folder / "pictures" / "metadata.csv").exists()
    assert f"captions: {output}" in capsys.readouterr().out


def test_captions_made_before_ctrl_c_are_kept(folder, captioner):
    captioner.breaks_at = 3
    assert caption(folder, "--output", str(folder / "half.csv"), "--labels", "red") == 130
    assert len(rows_of(folder / "half.csv")) == 2 and captioner.closed


def test_caption_beside_the_pictures_and_kept_captions(folder, captioner):
    (folder / "pictures" / "图 0.txt").write_text("an own caption", encoding="utf-8")
    assert caption(folder, "--sidecar", "--labels", "red") == 0
    assert [(folder / "pictures" / f"图 {n}.txt").read_text(encoding="utf-8").strip() for n in range(2)] == ["an own caption", "red"]
    assert caption(folder, "--output", str(folder / "all.csv"), "--labels", "blue") == 0  # every one is kept: they are written all the same
    assert sorted(rows_of(folder / "all.csv").values()) == ["an own caption", "red", "red", "red"]


def test_caption_has_labels_of_its_own_and_refuses_other_tables(folder, captioner, capsys):
    assert caption(folder) == 0
    assert next(iter(rows_of(folder / "pictures" / "metadata.csv").values())).startswith("photograph, film photograph, black and white photograph")
    assert caption(folder, "--output", "captions.json") == 2
    assert "does not end in .csv" in capsys.readouterr().err
    assert caption(folder, "--labels", "gone.txt") == 2
    assert cli.main(["caption", "--input", str(folder / "pictures"), "--model", "gone", "--method", "wd14"]) == 2
    assert "model 'gone' does not exist: wd14 takes a tagger's folder (selected_tags.csv" in (said := capsys.readouterr().err) and "SmilingWolf" in said


def test_caption_options_reach_the_method(folder, captioner, capsys):
    assert caption(folder, "--labels", "red, blue, grey, x", "--ban", "x", "--replace", "grey => gray\nred =>", "--group-threshold", "0.5", "--no-character-tags",
                   "--instruction", "say it", "--max-length", "9") == 0
    assert set(rows_of(folder / "pictures" / "metadata.csv").values()) == {"blue, gray"}
    told = captioner.options
    assert (told.group_threshold, told.character_tags, told.rating_tags, told.instruction, told.max_length) == (0.5, False, False, "say it", 9)
    (folder / "words.txt").write_text("blue => azure", encoding="utf-8")
    assert caption(folder, "--labels", "red, blue", "--replace", str(folder / "words.txt"), "--existing", "append") == 0
    assert set(rows_of(folder / "pictures" / "metadata.csv").values()) == {"blue, gray, red, azure"}
    for wrong, words in {"--replace grey": "no replacement", "--group-threshold 2": "group_threshold 2.0", "--max-length 0": "max_length 0", "--max-tags 0": "max_tags 0",
                         "--labels @nothing": "@nothing"}.items():
        assert caption(folder, *wrong.split()) == 2
        assert words in capsys.readouterr().err


def test_caption_knows_every_method_and_option():
    assert set(cli_caption.METHODS) == set(methods.METHODS)
    given = cli._parser().parse_args(["caption", "--input", "x", "--model", "y"])
    assert {field.name for field in dataclasses.fields(CaptionOptions)} <= vars(given).keys()


def test_demo_is_handed_on(monkeypatch, capsys):
    pytest.importorskip("lora_loom.trainer.toy.demo")
    from lora_loom.trainer.toy import demo

    monkeypatch.setattr(demo, "run_demo", lambda out, steps: 1 if (out.name, steps) == ("here", 3) else 0)
    assert cli.main(["demo", "--out", "here", "--steps", "3"]) == 1
    assert cli.main(["demo", "--steps", "0"]) == 2
