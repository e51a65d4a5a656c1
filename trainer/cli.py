"""`lora-loom train · caption · demo`: the trainer without a canvas.

Knows arguments, a terminal and Ctrl-C; what a training is, it leaves to job.py. torch and its kin are imported inside the
commands, so that `--help` and a mistake in the YAML answer at once.
"""
from __future__ import annotations

import argparse
import dataclasses
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
    try:
        options = _parser().parse_args(argv)
        return options.command(options)
    except LoomError as error:
        print(f"lora-loom: error: {error}", file=sys.stderr)
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
    commands = parser.add_subparsers(required=True, metavar="train | caption | demo")

    train = commands.add_parser("train", help="train a LoRA as a YAML file describes it")
    train.add_argument("config", type=Path, help="YAML with lora-scripts' keys: train_data_dir, base_model, lora_rank …")
    train.add_argument("--keys", action=_Keys, nargs=0, help="list the YAML's keys with their defaults, and leave")
    train.add_argument("--dry-run", action="store_true", help="print the resolved plan; load no weights, train nothing")
    train.set_defaults(command=train_command)

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
    if dry_run:
        from .job import check, plan

        check(dataset, job.config)
        print(describe(job), dataset.report(), "", plan(job.family, dataset, job.config, best_device(job.device)), sep="\n")
        return 0

    for note in job.notes:
        print(f"note: {note}")
    print(dataset.report(), flush=True)
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
        elif name == "sample":
            self.end_line()
            print(f"samples of step {data['step']}: {', '.join(map(str, data['paths']))}")
        elif name == "sample failed":
            self.end_line()
            print(f"warning: the samples of step {data['step']} could not be drawn ({data['reason']}); the run goes on without", file=sys.stderr)
        elif name == "checkpoint failed":
            self.end_line()
            print(f"warning: the checkpoint of step {data['step']} could not be written ({data['reason']}); the run goes on", file=sys.stderr)

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


# ---------------------------------------------------------------- demo

def demo_command(options: argparse.Namespace) -> int:
    if options.steps is not None and options.steps < 1:
        raise LoomError(f"--steps {options.steps} is below 1: give 1 or more, or leave it out")
    from .toy.demo import run_demo

    return run_demo(options.out, options.steps)


if __name__ == "__main__":
    sys.exit(main())
