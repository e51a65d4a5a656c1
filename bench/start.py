"""From the press of Run to the first step, in a real ComfyUI: a first run, a second one on the same data, and one after the server has been started again.

`python bench/start.py` queues three trainings on SD1.5 at full size (random weights), `--only toy` on the toy base. Seconds are counted from the
queued prompt to the end of the first step, without what a step takes. Needs a ComfyUI, 16 GB of memory and 5 GB of temporary disk.
"""
from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import ROOT, heading, table, write

STEPS = 5
CHECKPOINT = "random_sd15.safetensors"
CASES = {"toy": ("toy base", 64, "all linear+conv"), "sd15": ("SD1.5 (random weights)", 256, "attention")}


def server_module():
    spec = importlib.util.spec_from_file_location("loom_host_server", ROOT / "tests" / "host" / "server.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def graph(case: str, seed: int) -> dict:
    _, size, targets = CASES[case]
    loader = {"class_type": "ToyBase", "inputs": {}} if case == "toy" else {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}}
    return {
        "1": loader,
        "2": {"class_type": "LoadDataset", "inputs": {"folder": "lora_loom_stars", "resolution": size, "min_size": 64, "caption_source": "auto",
                                                      "trigger_word": "star", "repeats": 1, "flip": False, "buckets": True}},
        "4": {"class_type": "LoRAConfig", "inputs": {"preset": "default", "targets": targets}},
        "5": {"class_type": "TrainLoRA", "inputs": {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "dataset": ["2", 0], "config": ["4", 0],
                                                    "steps": STEPS, "epochs": 0, "learning_rate": 1e-4, "batch_size": 1, "seed": seed, "name": "start"}},
    }


def timed(comfy, prompt: dict) -> dict[str, float]:
    """Seconds after the press of Run: `checked` (the run has begun), `first` (its first step has ended); `step`: of a later one."""
    seen, began = {}, time.perf_counter()

    def look(kind: str, data: dict) -> None:
        now = time.perf_counter() - began
        if kind == "executing" and data.get("node") == "5":
            seen.setdefault("node", now)
        elif kind == "lora_loom.started":
            seen["checked"] = now
        elif kind == "lora_loom.progress" and data.get("phase") == "train":
            seen.setdefault("first", now)
            seen["last"], seen["steps"] = now, data["step"]

    outcome = comfy.run(prompt, timeout=1800, on_message=look)
    if outcome.ending != "execution_success":
        raise RuntimeError(f"{outcome.error}\n{comfy.text()[-3000:]}")
    return {**seen, "step": (seen["last"] - seen["first"]) / max(1, seen["steps"] - 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--write", action="store_true", help="append the table to bench/RESULTS.md")
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)  # writes it and ends: ComfyUI's modules belong to a process of their own
    arguments = parser.parse_args()
    if arguments.checkpoint:
        from bases import start_comfyui, write_random

        start_comfyui(arguments.checkpoint.parent)
        write_random(arguments.checkpoint, "sd15")
        return
    sys.path.insert(0, str(ROOT / "tools"))
    import comfyui

    found = comfyui.find()
    if found is None:
        sys.exit(f"ComfyUI not found: {comfyui.HOW}")
    host, rows, comfy_version = server_module(), [], ""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "models" / "checkpoints").mkdir(parents=True)
        if "sd15" in arguments.only:
            subprocess.run([sys.executable, __file__, "--checkpoint", str(base / "models" / "checkpoints" / CHECKPOINT)], check=True)
        for case in arguments.only:
            shutil.rmtree(base / "output" / "lora_loom", ignore_errors=True)
            for label, seed, fresh in (("the first", 1, True), ("the second, another seed", 2, False), ("after the server has been started again", 3, True)):
                if fresh:
                    comfy = host.Comfy(found, base)
                    comfy.__enter__()
                    comfy_version = comfy.get("/system_stats")["system"]["comfyui_version"]
                try:
                    got = timed(comfy, graph(case, seed))
                except BaseException:
                    comfy.__exit__()
                    raise
                rows.append([CASES[case][0], label, *(f"{got[key]:.2f}" for key in ("node", "checked", "first", "step")),
                             f"**{got['first'] - got['step']:.2f}**"])
                print(rows[-1], flush=True)
                if label != "the first":
                    comfy.__exit__()
    write([*heading("python bench/start.py", f"ComfyUI {comfy_version}"),
           "**Start-up**, twenty pictures, batch 1, precision auto; seconds after the press of Run",
           table(["base model", "run", "Train LoRA's turn", "the run has begun", "the first step has ended", "a step takes", "start-up without the step"],
                 *rows)], arguments.write)


if __name__ == "__main__":
    main()
