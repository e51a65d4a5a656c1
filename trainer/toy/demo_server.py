"""The demo through a real ComfyUI: starts its server headless, queues the example workflow, fetches the pictures."""
from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from io import BytesIO
from pathlib import Path

from PIL import Image

from ..errors import LoomError
from . import arch

PACK = Path(__file__).resolve().parents[2]


def through_server(comfyui: Path, workflow: Path, out: Path, pictures: Path, concept: list, others: list, steps: int):
    """(before, after, others before, others after) pictures. The server has its own base folder below `out` and ends with the demo."""
    base = out / "comfyui"
    for folder in ("custom_nodes", "input", "output", "user", "models"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(base / "input" / pictures.name, ignore_errors=True)
    shutil.copytree(pictures, base / "input" / pictures.name)
    _add_pack(base / "custom_nodes" / "comfyui-lora-loom")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (out / "comfyui.log").open("w", encoding="utf-8")
    command = [sys.executable, "main.py", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base), "--disable-auto-launch"]
    if not _has_gpu():
        command.append("--cpu")
    server = subprocess.Popen(command, cwd=comfyui, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        url = f"http://127.0.0.1:{port}"
        info = _wait(server, url, out)
        return _queue(server, url, info, workflow, pictures.name, concept, others, steps, out)
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _add_pack(place: Path) -> None:
    """The pack itself as a custom node: a link, or a copy where links are not allowed (Windows)."""
    if place.is_symlink() or place.exists():
        return
    try:
        place.symlink_to(PACK, target_is_directory=True)
    except OSError:
        shutil.copytree(PACK, place, ignore=shutil.ignore_patterns(".git", ".venv", "out", "__pycache__"))


def _get(url: str):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def _wait(server: subprocess.Popen, url: str, out: Path) -> dict:
    for _ in range(360):
        if server.poll() is not None:
            break
        try:
            return _get(f"{url}/object_info")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise LoomError(f"ComfyUI did not start: its own requirements may be missing in this environment; see {out / 'comfyui.log'}")


def _queue(server, url: str, info: dict, workflow: Path, folder: str, concept: list, others: list, steps: int, out: Path):
    from .demo import CFG, SAMPLING_STEPS, SEED, api_form, by_class, load_workflow

    missing = {"ToyBase", "LoadDataset", "TrainLoRA", "PreviewSample"} - set(info)
    if missing:
        raise LoomError(f"ComfyUI runs without {', '.join(sorted(missing))}: the pack failed to load there; see {out / 'comfyui.log'}")
    prompt = api_form(load_workflow(workflow), info)
    by_class(prompt, "LoadDataset")["folder"] = folder
    by_class(prompt, "TrainLoRA")["steps"] = steps
    preview = next(k for k, node in prompt.items() if node["class_type"] == "PreviewSample")
    shared = {"steps": SAMPLING_STEPS, "cfg": CFG, "seed": SEED, "width": arch.SIZE, "height": arch.SIZE}
    prompt[preview]["inputs"].update(shared, prompt="\n".join(s.caption for s in concept))
    prompt["others"] = {"class_type": "PreviewSample", "inputs": {**prompt[preview]["inputs"], "prompt": "\n".join(s.caption for s in others)}}
    request = urllib.request.Request(f"{url}/prompt", json.dumps({"prompt": prompt}).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            number = json.load(answer)["prompt_id"]
    except urllib.error.HTTPError as error:
        raise LoomError(f"ComfyUI refused the example workflow: {error.read().decode('utf-8', 'replace')[:2000]}") from error
    print(f"queued; training and sampling (ComfyUI's own words go to {out / 'comfyui.log'})", flush=True)
    shown = ""
    while True:
        line = _last_step(out / "comfyui.log")
        if line != shown:
            print(line, flush=True)
            shown = line
        if server.poll() is not None:
            raise LoomError(f"ComfyUI ended with code {server.returncode}; see {out / 'comfyui.log'}")
        history = _get(f"{url}/history/{number}").get(number)
        if history:
            break
        time.sleep(1)
    if history["status"]["status_str"] != "success":
        failed = next((data for kind, data in history["status"]["messages"] if kind == "execution_error"), {})
        raise LoomError(f"the workflow failed in {failed.get('node_type')}: {failed.get('exception_message')}")
    pairs, kept = (_images(url, history["outputs"][node]["images"]) for node in (preview, "others"))
    left, right = (0, 0, arch.SIZE, arch.SIZE), (arch.SIZE, 0, 2 * arch.SIZE, arch.SIZE)
    return tuple([image.crop(side) for image in images] for images in (pairs, kept) for side in (left, right))


def _last_step(log: Path) -> str:
    """The newest line of the training in the server's log, without its colours."""
    text = log.read_bytes()[-20_000:].decode("utf-8", "replace")
    found = re.findall(r"step \d+/\d+  loss [^\r\n]+", text)
    return found[-1] if found else ""


def _images(url: str, entries: list[dict]) -> list[Image.Image]:
    found = []
    for entry in entries:
        query = urllib.parse.urlencode({k: entry[k] for k in ("filename", "subfolder", "type")})
        with urllib.request.urlopen(f"{url}/view?{query}", timeout=60) as answer:
            found.append(Image.open(BytesIO(answer.read())).convert("RGB"))
    return found
