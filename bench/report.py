"""How the benchmarks write down what they measured: date, command, machine, versions, tables."""
from __future__ import annotations

import argparse
import contextlib
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
_GIVEN = sys.argv[1:]  # ComfyUI is given arguments of its own later
RESULTS = ROOT / "bench" / "RESULTS.md"


def at_least(least: int):
    """A number of that size or more, as argparse's `type`."""
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return int(text)
    return number


def table(*rows: list[str]) -> str:
    return "\n".join(["| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])])


def heading(program: str, *more: str) -> list[str]:
    """Date, the command as it was given, machine and versions; `more` versions, such as ComfyUI's."""
    packages = ", ".join([f"{name} {version(name)}" for name in ("torch", "peft", "diffusers")] + list(more))
    return [f"### {time.strftime('%Y-%m-%d %H:%M')}", f"`{program} {shlex.join(_GIVEN)}`".replace(" `", "`"),
            f"{_machine()}. Python {platform.python_version()}, {packages}, LoRA Loom {_commit()}"]


def write(parts: list[str], keep: bool) -> None:
    """Print, and append to RESULTS.md where it is to be kept."""
    text = "\n\n".join(parts) + "\n"
    print(text)
    if keep:
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write("\n" + text)


def _machine() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        name = next(line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if line.startswith("model name"))
    memory = psutil.virtual_memory().total / 2**30
    card = f"{torch.cuda.get_device_name()}; " if torch.cuda.is_available() else ""
    return f"{card}{name}, {psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}; torch uses {torch.get_num_threads()} threads"


def _commit() -> str:
    got = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    return got.stdout.strip() or "unknown"
