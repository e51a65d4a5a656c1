"""A real ComfyUI for the tests: started on a free port with a base folder of its own, spoken to over HTTP and websocket."""
from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import websocket

PACK = Path(__file__).resolve().parents[2]
KEPT = PACK / "artefacts"  # screenshots, to be looked at
OLDEST = "0.3.64"
# Views whose tests take their time are tested on the newest ComfyUI; LORA_LOOM_HEAVY=1 tests them on the oldest that is supported too.
PAGES = ["newest", *(["oldest"] if os.environ.get("LORA_LOOM_HEAVY") else [])]


def by_path(name: str, path: Path) -> ModuleType:
    """The module of that file under that name: files of tests and tools are in no package, and ComfyUI has modules of such names too."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def eventually(page, holds: Callable[[], bool], seconds: float = 10) -> None:
    """Waits until that holds or the time is over, with the page at work meanwhile; the test says then what it wanted."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        page.wait_for_timeout(100)


def oldest() -> tuple[Path, Path | None]:
    """(the oldest ComfyUI's folder, its site folder or None); skips where there is none."""
    import pytest

    path = Path(os.environ.get("COMFYUI_OLDEST_PATH") or Path.home() / "comfy" / f"ComfyUI-{OLDEST}").expanduser()
    site = Path(os.environ.get("COMFYUI_OLDEST_SITE") or path.parent / f"site-{OLDEST}").expanduser()
    if not (path / "main.py").is_file():
        pytest.skip(f"needs ComfyUI {OLDEST} (tag v{OLDEST}): set COMFYUI_OLDEST_PATH to it, and COMFYUI_OLDEST_SITE to a folder with its frontend packages")
    return path, site if site.is_dir() else None


def asked_for(request) -> tuple[Path, Path | None]:
    """(folder, site folder or None) of the ComfyUI that a fixture's parameter names: the oldest, or the one that is found."""
    return oldest() if request.param == "oldest" else (request.getfixturevalue("comfy_path"), None)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Comfy:
    """`with Comfy(path, base) as comfy: comfy.run(prompt)`. `site` goes first on PYTHONPATH (other frontend packages)."""

    def __init__(self, path: Path, base: Path, site: Path | None = None, options: tuple[str, ...] = ()) -> None:
        self.path, self.base, self.port = Path(path), Path(base), _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        for folder in ("custom_nodes", "input", "output", "temp", "user", "models"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        link = self.base / "custom_nodes" / "comfyui-lora-loom"
        if not link.exists():
            link.symlink_to(PACK, target_is_directory=True)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        if site is not None:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), environment.get("PYTHONPATH")]))
        self.log = self.base / "comfyui.log"
        command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(self.base),
                   "--disable-auto-launch", *options]
        self.process = subprocess.Popen(command, cwd=self.path, env=environment, stdout=self.log.open("w"), stderr=subprocess.STDOUT)

    def __enter__(self) -> Comfy:
        for _ in range(240):
            if self.process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                return self
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        self.__exit__()
        raise RuntimeError(f"ComfyUI did not start:\n{self.text()[-4000:]}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def get(self, route: str) -> dict:
        with urllib.request.urlopen(self.url + route, timeout=30) as answer:
            return json.load(answer)

    def post(self, route: str, data: dict) -> dict:
        request = urllib.request.Request(self.url + route, json.dumps(data).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                body = answer.read()
                return json.loads(body) if body else {}
        except urllib.error.HTTPError as error:
            return {"status": error.code, **json.loads(error.read() or b"{}")}

    def run(self, prompt: dict, timeout: float = 300, on_message=None) -> Outcome:
        """Queue the prompt and follow it to its end. `on_message(event, data)` sees every websocket message."""
        client = uuid.uuid4().hex
        ws = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client}", timeout=timeout)
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": client})
            outcome = Outcome(answer)
            if "prompt_id" not in answer:
                return outcome
            deadline = time.time() + timeout
            while time.time() < deadline:
                message = ws.recv()
                if isinstance(message, bytes):
                    outcome.binary.append(message)
                    continue
                event = json.loads(message)
                kind, data = event["type"], event.get("data", {})
                outcome.messages.append((kind, data))
                if on_message is not None:
                    on_message(kind, data)
                if data.get("prompt_id") == answer["prompt_id"]:
                    if kind in ("execution_success", "execution_error", "execution_interrupted"):
                        outcome.ending = kind
                        time.sleep(0.3)  # the history is written just after the last message
                        outcome.history = self.get(f"/history/{answer['prompt_id']}").get(answer["prompt_id"], {})
                        return outcome
            raise TimeoutError(f"prompt not finished in {timeout} s:\n{self.text()[-3000:]}")
        finally:
            ws.close()


class Outcome:
    """What came of a prompt: validation's answer, websocket messages, the last event, its history."""

    def __init__(self, answer: dict) -> None:
        self.answer, self.messages, self.binary, self.ending, self.history = answer, [], [], "", {}

    @property
    def executed(self) -> list[str]:
        """Node ids that really ran (cached ones are not among them)."""
        return [d["node"] for kind, d in self.messages if kind == "executing" and d.get("node")]

    @property
    def cached(self) -> list[str]:
        return [n for kind, d in self.messages if kind == "execution_cached" for n in d.get("nodes", [])]

    @property
    def error(self) -> str:
        """The message that the failing node showed, or what validation said."""
        for kind, data in self.messages:
            if kind == "execution_error":
                return data["exception_message"]
        return json.dumps(self.answer.get("node_errors") or self.answer.get("error") or "", ensure_ascii=False)

    @property
    def texts(self) -> list[str]:
        """Texts that nodes showed, newest last."""
        found = []
        for message in self.binary:
            if int.from_bytes(message[:4], "big") == 3:
                length = int.from_bytes(message[4:8], "big")
                found.append(message[8 + length:].decode("utf-8", "replace"))
        return found

    def images(self, base: Path) -> list[Path]:
        """Files of the pictures that output nodes left."""
        return [base / i["type"] / i.get("subfolder", "") / i["filename"] for out in self.history.get("outputs", {}).values() for i in out.get("images", [])]
