"""From the trainer's hooks to ComfyUI: progress bar, text in the node, interrupt, websocket events."""
from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
from PIL import Image

from ..trainer.errors import LoomError
from ..trainer.hooks import Hooks, Progress

_log = logging.getLogger("lora_loom")


def interrupted() -> None:
    """Raises ComfyUI's own interrupt where the user has asked for it."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def show(node_id: Any, text: str) -> None:
    """Text inside the node. Without a server (tests) it goes to the log alone."""
    server = _server()
    if server is not None and node_id is not None:
        server.send_progress_text(text, str(node_id))


_in_error: set[str] = set()  # nodes whose text is an error


def settle(node_id: Any, text: str) -> None:
    """`show`, for a node that draws its result elsewhere: the text is needed only in the place of an error."""
    if str(node_id) in _in_error:
        _in_error.discard(str(node_id))
        show(node_id, text)


def verdict(check: Callable[[Any], Any], value: Any) -> bool | str:
    """What validate_inputs answers: True, or why `check` refuses the value. None stands for a linked input, which execute checks."""
    try:
        if value is not None:
            check(value)
    except LoomError as error:
        return str(error)
    return True


def errors_shown(execute: Callable) -> Callable:
    """A node's execute that also shows in the node what went wrong: the page keeps messages behind a button."""

    @functools.wraps(execute)
    def shown(cls, *args: Any, **values: Any) -> Any:
        try:
            return execute(cls, *args, **values)
        except LoomError as error:
            show(cls.hidden.unique_id, f"Error: {error}")
            _in_error.add(str(cls.hidden.unique_id))
            raise

    return shown


def counter(node_id: Any, words: str = "") -> Callable[[int, int], None]:
    """A progress(done, total) that moves the node's bar and, where there are `words`, says `words done/total` in it, at most five times a second."""
    bar, last = [], [0.0]

    def progress(done: int, total: int) -> None:
        bar[:] = bar or [comfy.utils.ProgressBar(total, node_id=node_id)]
        bar[0].update_absolute(done, total)
        if words and (time.perf_counter() - last[0] > 0.2 or done == total):
            last[0] = time.perf_counter()
            show(node_id, f"{words} {done}/{total}")

    return progress


def strip(paths: list[Path], height: int = 256) -> Image.Image:
    """The pictures side by side, for a node's preview."""
    images = [Image.open(path).convert("RGB") for path in paths[:4]]
    images = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in images]
    found = Image.new("RGB", (sum(image.width for image in images), height))
    for number, image in enumerate(images):
        found.paste(image, (sum(before.width for before in images[:number]), 0))
    return found


def send(event: str, data: dict[str, Any]) -> None:
    """A namespaced websocket event, `lora_loom.<event>`."""
    server = _server()
    if server is not None:
        server.send_sync(f"lora_loom.{event}", data)


def _server() -> Any:
    from server import PromptServer

    return getattr(PromptServer, "instance", None)


def hooks(node_id: Any) -> Hooks:
    """Hooks for one node's run: at most five texts a second, so that the page stays quick."""
    bar: dict[str, Any] = {}
    last = [0.0]

    def progress(now: Progress) -> None:
        if bar.get("phase") != now.phase:
            bar.update(phase=now.phase, bar=comfy.utils.ProgressBar(now.total, node_id=node_id))
        bar["bar"].update_absolute(now.step, now.total)
        clock = time.perf_counter()
        if clock - last[0] > 0.2 or now.step == now.total:
            last[0] = clock
            show(node_id, now.line())
            send("progress", {"node": str(node_id), "phase": now.phase, "step": now.step, "total": now.total, "loss": now.loss,
                              "smoothed_loss": now.smoothed_loss, "steps_per_second": now.steps_per_second, "eta_seconds": now.eta_seconds})
        if now.phase == "train" and (now.step % 50 == 0 or now.step == now.total):
            _log.info("%s", now.line())

    def event(name: str, data: dict[str, Any]) -> None:
        _log.info("%s: %s", name, data)
        if name == "sample" and "bar" in bar:
            preview = strip(data["paths"])
            bar["bar"].update_absolute(bar["bar"].current, preview=("JPEG", preview, max(preview.size)))
        if name == "saved":  # also on an interrupt or an error, where no report follows
            show(node_id, f"Saved after {data['steps']} steps: {os.path.basename(data['path'])}")
        send(name.replace(" ", "_"), {"node": str(node_id), **{k: v for k, v in data.items() if k not in ("path", "paths")}})

    return Hooks(progress=progress, poll=interrupted, event=event, interrupts=(comfy.model_management.InterruptProcessingException,))
