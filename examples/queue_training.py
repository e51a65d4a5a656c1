"""Queue a training through ComfyUI's API, follow it, and fetch its samples: HTTP and websocket alone, nothing of ComfyUI or LoRA Loom is imported.

    pip install websocket-client
    python queue_training.py my_pictures --checkpoint v1-5-pruned.safetensors --steps 1000 --name my_lora

`my_pictures` is a folder in ComfyUI's input. Ctrl-C stops the training and keeps what it has learned; again, it ends this program alone.
"""
from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import websocket


def ask(server: str, route: str, body: dict | None = None) -> dict:
    """The server's answer as JSON. What it refuses ends the program with its reason."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://{server}{route}", data, {"Content-Type": "application/json"})) as answer:
            return json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        sys.exit(f"{route}: {error.read().decode(errors='replace')}")


def graph(given: argparse.Namespace) -> dict:
    """Inputs that are left out come from the preset."""
    base = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2]}
    loader = {"class_type": "ToyBase", "inputs": {}}
    if given.checkpoint:
        loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": given.checkpoint}}
    return {
        "base": loader,
        "pictures": {"class_type": "LoadDataset", "inputs": {
            "folder": given.folder, "resolution": given.resolution, "min_size": min(given.resolution, 512), "caption_source": "auto",
            "trigger_word": given.trigger, "repeats": 1, "flip": False, "buckets": True}},
        "settings": {"class_type": "LoRAConfig", "inputs": {"preset": given.preset}},
        "training": {"class_type": "TrainLoRA", "inputs": {
            **base, "dataset": ["pictures", 0], "config": ["settings", 0], "steps": given.steps, "epochs": 0, "learning_rate": given.rate,
            "batch_size": given.batch, "seed": given.seed, "name": given.name, "sample_steps": given.sample_steps}},
    }


def stop(server: str, prompt_id: str, run: str) -> None:
    """A run that trains ends well; before that the job is taken out of the queue or broken off, and no other one."""
    if run:
        ask(server, "/lora_loom/control", {"run": run, "action": "stop"})
        return
    ask(server, "/queue", {"delete": [prompt_id]})
    if any(job[1] == prompt_id for job in ask(server, "/queue")["queue_running"]):
        ask(server, "/interrupt", {"prompt_id": prompt_id})
    else:
        sys.exit("taken out of the queue: the training had not begun")


def noticed() -> threading.Event:
    """Set by Ctrl-C, which breaks nothing off by itself; a second one ends the program."""
    pressed = threading.Event()

    def first(*_) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, first)
    return pressed


def follow(server: str, wire: websocket.WebSocket, prompt_id: str, pressed: threading.Event) -> dict:
    """Prints how it goes until it is over; Ctrl-C stops it. Returns what the last event says."""
    run, last = "", {}
    wire.settimeout(0.5)
    while True:
        if pressed.is_set():
            pressed.clear()
            stop(server, prompt_id, run)
        try:
            message = wire.recv()
        except websocket.WebSocketTimeoutException:
            continue
        if isinstance(message, bytes):  # previews
            continue
        event = json.loads(message)
        kind, data = event["type"], event.get("data") or {}
        if data.get("prompt_id") != prompt_id:
            continue
        if kind == "executed" and data["node"] == "pictures":
            for finding in data["output"]["lora_loom_report"][0]["findings"]:
                if finding["severity"] != "note":
                    print("{severity}: {text}".format(**finding))
        elif kind == "lora_loom.warnings":
            for warning in data["warnings"]:
                print(warning)
        elif kind == "lora_loom.started":
            run = data["run"]
            print(data["plan"])
        elif kind == "lora_loom.progress" and data["phase"] == "train":
            print("step {step}/{steps}  loss {smoothed_loss:.4f}  {steps_per_second:.2f} it/s  {eta_seconds:.0f} s left".format(**data))
        elif kind in ("lora_loom.sample", "lora_loom.checkpoint", "lora_loom.saved"):
            print(kind.removeprefix("lora_loom."), {name: data[name] for name in ("step", "files", "kind", "lora") if name in data})
        elif kind == "lora_loom.ended":
            last = data
        elif kind == "execution_error":
            sys.exit(f"{data['node_type']}: {data['exception_message']}")
        elif kind in ("execution_success", "execution_interrupted"):
            return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a folder in ComfyUI's input")
    parser.add_argument("--server", default="127.0.0.1:8188")
    parser.add_argument("--checkpoint", default="", help="a file in ComfyUI's checkpoints; without one the toy base is trained")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--name", default="my_lora")
    parser.add_argument("--trigger", default="")
    parser.add_argument("--resolution", type=int, help="512; of the toy base 64")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample-steps", type=int, default=0)
    parser.add_argument("--samples", type=Path, help="a folder for the sample pictures")
    given = parser.parse_args()
    given.resolution = given.resolution or (512 if given.checkpoint else 64)
    client = uuid.uuid4().hex
    wire = websocket.create_connection(f"ws://{given.server}/ws?clientId={client}")
    pressed = noticed()
    prompt_id = ask(given.server, "/prompt", {"prompt": graph(given), "client_id": client})["prompt_id"]
    end = follow(given.server, wire, prompt_id, pressed)
    wire.close()
    if not end.get("run"):
        sys.exit("the training did not begin")
    run = ask(given.server, "/lora_loom/run?" + urllib.parse.urlencode({"name": end["run"]}))
    print(f"{run['status']}: {run.get('report') or run.get('error') or ''}\nrun {run['name']}, LoRA {run['lora']}")
    for sample in run["samples"] if given.samples else []:
        query = urllib.parse.urlencode({"name": run["name"], "file": sample["file"]})
        given.samples.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(f"http://{given.server}/lora_loom/run/sample?{query}") as answer:
            (given.samples / sample["file"]).write_bytes(answer.read())


if __name__ == "__main__":
    main()
