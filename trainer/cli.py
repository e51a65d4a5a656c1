"""`lora-loom train · check · caption · demo`: the trainer without a canvas.

Knows arguments, a terminal and Ctrl-C; what a training is, it leaves to job.py. torch and its kin are imported inside the
commands, so that `--help` and a mistake in the YAML answer at once.
"""
from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from .cli_caption import add_parser
from .devices import best_device
from .errors import LoomError

INTERRUPTED = 130  # what shells expect after Ctrl-C


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 the demo's score is too low, 2 bad input (one line on stderr), 130 Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a Windows console may lack the letters of a file's name
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # a faster kernel that it may download, and does without
    try:
        options = _parser().parse_args(argv)
        return options.command(options)
    except LoomError as error:
        print(f"lora-loom: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == "lora_loom":
            raise
        print(f"lora-loom: error: the package {error.name} is missing: install all that the command line needs with "
              "`python -m pip install \"comfyui-lora-loom[standalone]\"`", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lora-loom: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # as of `lora-loom train --keys | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("comfyui-lora-loom")
    except PackageNotFoundError:
        return "from a folder, not installed"


class _Keys(argparse.Action):
    """As --version: print and leave."""

    def __call__(self, parser, *_):
        from .yaml_config import keys_table

        print(keys_table())
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lora-loom", description="Train LoRAs from the command line; the same trainer as on ComfyUI's canvas.")
    parser.add_argument("--version", action="version", version=f"lora-loom {_version()}")
    commands = parser.add_subparsers(required=True, metavar="train | check | caption | demo")

    train = commands.add_parser("train", help="train a LoRA as a YAML file describes it")
    train.add_argument("config", type=Path, help="YAML with lora-scripts' keys: train_data_dir, base_model, lora_rank …")
    train.add_argument("--keys", action=_Keys, nargs=0, help="list the YAML's keys with their defaults, and leave")
    train.add_argument("--dry-run", action="store_true", help="print the plan with every value; load no weights, train nothing")
    train.set_defaults(command=train_command)

    checking = commands.add_parser("check", help="report on a folder of pictures and captions")
    checking.add_argument("folder", type=Path, metavar="DIR", help="folder with the pictures")
    checking.add_argument("--resolution", type=int, default=512, help="that they are to be trained at (512)")
    checking.add_argument("--min-size", type=int, help="smaller pictures are left out (the smaller of 512 and the resolution, as in training; 0: none)")
    checking.add_argument("--trigger-word", default="", help="the word that is to call what is learned")
    checking.add_argument("--preset", default="", help="whose number of pictures is to be kept")
    checking.add_argument("--batch-size", type=int, default=1, help="pictures at once (1)")
    checking.add_argument("--cache", type=Path, metavar="DIR", help="remember what was measured there, for the next time")
    checking.add_argument("--json", action="store_true", help="print it as JSON")
    checking.set_defaults(command=check_command)

    add_parser(commands)

    demo = commands.add_parser("demo", help="train on the toy base that comes with LoRA Loom and show before and after")
    demo.add_argument("--out", type=Path, default=Path("out") / "demo", metavar="DIR", help="where the pictures go (out/demo)")
    demo.add_argument("--steps", type=int, metavar="N", help="train so many steps instead of the demo's own")
    demo.set_defaults(command=demo_command)
    return parser


# ---------------------------------------------------------------- train

def train_command(options: argparse.Namespace) -> int:
    from .yaml_config import in_keys

    try:
        return train_from(options.config, options.dry_run)
    except LoomError as error:
        raise LoomError(in_keys(str(error))) from error


def train_from(config: Path, dry_run: bool = False) -> int:
    """Train as the YAML file describes it, or print what would run."""
    from .yaml_config import describe, load_job

    job = load_job(config)
    dataset = read_pictures(job)
    training = training_of(job)
    if dry_run:
        from .data.report import examine, whole_text
        from .job import check, plan

        check(dataset, job.config)
        report = examine(dataset, training, cache=measures(job.output_dir))
        print(describe(job), whole_text(dataset, report), "", plan(job.family, dataset, job.config, best_device(job.device)), sep="\n")
        return 0

    from .data.report import about_training

    for note in job.notes:
        print(f"note: {note}")
    print(dataset.report(), *about_training(dataset, training), sep="\n", flush=True)
    print(f"loading {Path(job.base_model).name}", flush=True)
    from .backbones import diffusers as backbone
    from .job import Hooks, train

    model = backbone.load(job.base_model, job.device, job.config.train.precision)
    terminal = Terminal()
    hooks = Hooks(progress=terminal.progress, poll=terminal.poll, should_stop=lambda: terminal.stopping, event=terminal.event)
    with terminal.ctrl_c():
        result = train(model, dataset, job.config, loras_folder=job.output_dir, runs_folder=job.output_dir / "lora_loom", hooks=hooks,
                       log_dir=job.log_dir, init_lora=Path(job.config.adapter.init_lora) if job.config.adapter.init_lora else None,
                       resume=job.resume)
    print(result.report)
    print(f"LoRA: {result.path}")
    if result.stopped:
        print(f"to go on: `resume: {result.run_folder.name}` in {config.name}")
    return INTERRUPTED if terminal.stopping else 0


def read_pictures(job):
    """The job's Dataset; captions of its metadata_path go before those that lie in the folder."""
    from .data.captions import from_metadata
    from .data.folder import read_dataset

    dataset = read_dataset(job.data, **job.dataset)
    if job.metadata is None:
        return dataset
    captions, notes = from_metadata(job.metadata, [picture.name for picture in dataset.pictures])
    dataset = dataset.with_captions(captions)
    return dataclasses.replace(dataset, warnings=(*dataset.warnings, *notes))


def training_of(job):
    """What the report has to know of a job."""
    from .backbones.diffusers import text_encoders
    from .data.report import Training

    return Training(job.family.size_multiple, job.config.train.batch_size, job.config.train.pictures, text_encoders(job.base_model, job.family.id))


def measures(output: Path) -> Path | None:
    """Where a report remembers what it has measured; None where there is no such folder yet, for a look leaves nothing behind."""
    return output / "lora_loom" / ".cache" / "measures" if output.is_dir() else None


class Terminal:
    """Progress on one line, and Ctrl-C as a wish: the step in hand is finished, so that no half step is saved."""

    def __init__(self) -> None:
        self.stopping, self.twice, self.training, self.saved, self.shown, self.width = False, False, False, "", 0.0, 0

    @contextmanager
    def ctrl_c(self):
        """Ctrl-C is ours inside. Where an error ends the run, what was saved on the way out is named."""
        signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # also `kill` and a closed terminal
        before = {number: signal.signal(number, self._asked) for number in signals}
        try:
            yield
        except BaseException:
            self.end_line()
            if self.saved:
                print(f"what was learned is saved as {self.saved}", file=sys.stderr)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if self.twice else handler)  # an impatient third cannot cut the ending short
            self.end_line()

    def _asked(self, *_) -> None:
        if self.twice:
            return
        if self.stopping:
            self.twice = True
            raise KeyboardInterrupt
        self.stopping = True
        self.end_line()
        print("stopping after this step, what was learned is saved; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    def poll(self) -> None:
        if self.stopping and not self.training:  # nothing is learned yet
            raise KeyboardInterrupt

    def event(self, name: str, data: dict) -> None:
        if name == "saved":
            self.saved = data["path"]
        elif name == "started":
            print(data["plan"], flush=True)
        elif name == "memory":
            print(f"memory: {data['text']}; disk: up to {data['disk'] / 2**20:,.0f} MiB", flush=True)
        elif name == "estimate":
            self.end_line()
            print(f"about {duration(data['seconds'])} in all, {data['seconds_per_step']:.2f} s a step", flush=True)
        elif name in ("out of memory", "will not fit"):
            self.end_line()
            print(f"note: {name}, so {data['change']}; a step needs {data['needed']}", flush=True)
        elif name == "compiling":
            self.end_line()
            print(f"note: {data['change']}", flush=True)
        elif name == "sample":
            self.end_line()
            print(f"samples of step {data['step']}: {', '.join(map(str, data['paths']))}")
        elif name == "sample failed":
            self.end_line()
            print(f"warning: the samples of step {data['step']} could not be drawn ({data['reason']}); the run goes on without", file=sys.stderr)
        elif name == "checkpoint failed":
            self.end_line()
            print(f"warning: the checkpoint of step {data['step']} could not be written ({data['reason']}); the run goes on", file=sys.stderr)
        elif name == "state failed":
            self.end_line()
            print(f"warning: the state of step {data['step']}, to resume from, could not be written ({data['reason']})", file=sys.stderr)

    def progress(self, progress) -> None:
        self.training = progress.phase == "train"
        now, last = time.monotonic(), progress.step >= progress.total
        live = sys.stdout.isatty()
        if now - self.shown < (0.1 if live else 10) and not last:  # a log file gets a line every ten seconds
            return
        self.shown = now
        line = progress.line()
        print(f"\r{line:<{self.width}}" if live else line, end="" if live else "\n", flush=True)
        self.width = len(line) if live else 0
        if last:
            self.end_line()

    def end_line(self) -> None:
        if self.width:
            print(flush=True)
        self.width = 0


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


# ---------------------------------------------------------------- check

def check_command(options: argparse.Namespace) -> int:
    import json

    from . import presets
    from .data.folder import read_dataset
    from .data.report import Training, examine, whole_text

    if not 1 <= options.batch_size <= 256:
        raise LoomError(f"--batch-size {options.batch_size} is not within 1 to 256: give the training's batch_size")
    pictures = presets.merge(presets.load(options.preset), {}).train.pictures if options.preset else (0, 0)
    least = min(512, options.resolution) if options.min_size is None else options.min_size
    dataset = read_dataset(options.folder, resolution=options.resolution, min_size=least, trigger_word=options.trigger_word)
    live = sys.stderr.isatty()
    show = lambda done, total: print(f"\rlooking at pictures {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    report = examine(dataset, Training(batch_size=options.batch_size, pictures=pictures), cache=options.cache, progress=show if live else None)
    print(json.dumps(report.to_dict(), ensure_ascii=False, indent=2) if options.json else whole_text(dataset, report))
    return 0


# ---------------------------------------------------------------- demo

def demo_command(options: argparse.Namespace) -> int:
    if options.steps is not None and options.steps < 1:
        raise LoomError(f"--steps {options.steps} is below 1: give 1 or more, or leave it out")
    from .toy.demo import run_demo

    return run_demo(options.out, options.steps)


if __name__ == "__main__":
    sys.exit(main())
