"""What the Makefile does, for machines without make: `python tools/dev.py env|demo|test|test-fast|comfyui|lint|clean`.

Standard library only. Everything else runs inside the environment that `env` makes (VENV, default .venv).
"""
from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path

import comfyui

ROOT = Path(__file__).resolve().parents[1]
VENV = Path(os.environ.get("VENV") or ".venv").expanduser()
VENV = VENV if VENV.is_absolute() else ROOT / VENV
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "lora-loom.stamp"
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
EXTRAS = "standalone,test,dev,logs,optimizers"
NEEDED = "torch, torchvision, diffusers, transformers, peft, accelerate, open_clip, safetensors, yaml, pytest, pytest_timeout, xdist, lora_loom"


def run(*command: str | Path, check: bool = True, **more) -> int:
    """Run in the repository's root; leave with the command's exit code where it fails."""
    code = subprocess.call([str(c) for c in command], cwd=ROOT, **more)
    if code and check:
        sys.exit(code if code > 0 else 1)
    return code


def inside() -> dict[str, str]:
    """The environment variables for what runs inside: the ComfyUI found here, text in UTF-8 also on Windows."""
    found = comfyui.find()
    return {**os.environ, "PYTHONUTF8": "1", **({"COMFYUI_PATH": str(found)} if found else {})}


def env() -> None:
    """Make or update the environment; nothing happens while pyproject.toml and ComfyUI's requirements stay as they are."""
    found = comfyui.find()
    requirements = found / "requirements.txt" if found else None
    sources = [ROOT / "pyproject.toml", *([requirements] if requirements and requirements.is_file() else [])]
    wanted = hashlib.sha256(b"".join([*(s.read_bytes() for s in sources), " ".join(TORCH).encode(), str(ROOT).encode()])).hexdigest()
    if PYTHON.is_file() and STAMP.is_file() and STAMP.read_text() == wanted:
        return
    if not PYTHON.is_file():
        if sys.version_info < (3, 10):  # noqa: UP036 - this file runs before anything has checked it
            sys.exit(f"Python {sys.version.split()[0]} is too old: LoRA Loom takes 3.10 or later; run with PYTHON=python3.12, for example")
        print(f"making the environment {VENV}", flush=True)
        run(sys.executable, "-m", "venv", VENV)
    index = os.environ.get("TORCH_INDEX_URL")  # for example https://download.pytorch.org/whl/cpu, which is smaller
    pip = (PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    steps = [[*pip, *TORCH, *(["--index-url", index] if index else [])], [*pip, "-e", f".[{EXTRAS}]"], *([*pip, "-r", s] for s in sources[1:])]
    print("installing what is missing (PyTorch is large: the first time takes minutes)", flush=True)
    for step in steps:
        if run(*step, check=False):
            if run(PYTHON, "-c", f"import {NEEDED}", check=False, stderr=subprocess.DEVNULL):
                sys.exit("the installation failed, see pip's lines above: check the network (pip's PIP_INDEX_URL sets a mirror) and try again")
            print("pip failed, but everything needed is installed: going on with it, and trying again next time", flush=True)
            return
    STAMP.write_text(wanted)


def demo(arguments: list[str]) -> None:
    """Train on the toy base and show before and after: through the ComfyUI found here, else by the command line."""
    env()
    run(PYTHON, "-m", "lora_loom.trainer.cli", "demo", *arguments, env=inside())


def test(arguments: list[str], fast: bool = False) -> None:
    """pytest; the last lines say whether the host tests ran. LORA_LOOM_NEED_COMFYUI=1 makes their absence a failure."""
    env()
    found = comfyui.find()
    selection = ["-m", "not slow and not host and not browser"] if fast else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # two processes of one thread each: the models here are too small for a second thread to be of use
        both = [] if arguments or (os.cpu_count() or 1) < 2 else ["-n", "2", "--dist", "loadfile"]
        code = run(PYTHON, "-m", "pytest", *both, *selection, f"--junitxml={report}", *arguments, check=False, env={"OMP_NUM_THREADS": "1", **inside()})
        ran, skipped = host_tests(report)
    if fast:
        print("fast tests only: host, browser and slow tests were NOT run; `make test` runs all")
    elif not found:
        print(f"ComfyUI not found: the host tests were NOT run. To run them, {comfyui.HOW}")
    elif ran:
        print(f"ComfyUI found at {found}: {ran} host tests ran, {skipped} were skipped")
    else:
        print(f"ComfyUI found at {found}, but NO host test ran ({skipped} were skipped): see pytest's lines above")
    if not code and os.environ.get("LORA_LOOM_NEED_COMFYUI") == "1" and not (found and ran) and not arguments and not fast:
        code = 1
    sys.exit(code)


def host_tests(report: Path) -> tuple[int, int]:
    """(ran, skipped) among tests/host, from pytest's own report."""
    cases = [case for case in xml.parse(report).iter("testcase") if ".host." in f".{case.get('classname')}."] if report.is_file() else []
    skipped = sum(case.find("skipped") is not None for case in cases)
    return len(cases) - skipped, skipped


def install_comfyui(arguments: list[str]) -> None:
    """comfy-cli's own installer, into its default place; needs the internet. Arguments go to `comfy install`, such as --nvidia."""
    env()
    run(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "comfy-cli")
    comfy = PYTHON.with_name("comfy.exe" if os.name == "nt" else "comfy")
    home = comfyui.candidates()[-2].parent
    home.mkdir(parents=True, exist_ok=True)
    sys.exit(subprocess.call([str(comfy), "--here", "--skip-prompt", "install", *(arguments or ["--cpu"])], cwd=home))


def lint() -> None:
    """ruff's rules of pyproject.toml."""
    env()
    run(PYTHON, "-m", "ruff", "check", ".")


def clean() -> None:
    """Remove what builds and tests leave behind; the environment stays (remove it by hand)."""
    for name in ("build", "dist", "out", ".pytest_cache", ".ruff_cache"):
        shutil.rmtree(ROOT / name, ignore_errors=True)
    for folder in ROOT.rglob("__pycache__"):
        if VENV not in folder.parents:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/dev.py", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("env", "demo", "test", "test-fast", "comfyui", "lint", "clean"))
    command, arguments = parser.parse_known_args()
    name = command.command
    if name in ("env", "lint", "clean") and arguments:
        parser.error(f"{name} takes no arguments, not {' '.join(arguments)}")
    {"env": env, "lint": lint, "clean": clean, "demo": lambda: demo(arguments), "test": lambda: test(arguments),
     "test-fast": lambda: test(arguments, fast=True), "comfyui": lambda: install_comfyui(arguments)}[name]()


if __name__ == "__main__":
    main()
