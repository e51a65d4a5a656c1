"""What every node says to ComfyUI: progress bar, text in the node, interrupt, websocket events. TrainLoRA's are in live.py."""
from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context

from ..trainer.errors import LoomError


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


def workflow_id(extra: dict | None) -> str:
    """Of the workflow that was queued, by which a page knows its own; "" for one queued by a program. extra: io.Hidden.extra_pnginfo."""
    workflow = (extra or {}).get("workflow")
    found = workflow.get("id") if isinstance(workflow, dict) else None
    return found if isinstance(found, str) else ""


def belongs_to(node_id: Any, workflow: str) -> dict[str, str]:
    """What every event carries, so that a page knows its own: node, prompt_id and workflow."""
    context = get_executing_context()
    return {"node": str(node_id), "prompt_id": context.prompt_id if context else "", "workflow": workflow}


def is_stop(error: BaseException) -> bool:
    """Whether somebody has stopped it, as against something that went wrong."""
    return not isinstance(error, Exception) or isinstance(error, comfy.model_management.InterruptProcessingException)


def send(event: str, data: dict[str, Any]) -> None:
    """A namespaced websocket event, `lora_loom.<event>`."""
    server = _server()
    if server is not None:
        server.send_sync(f"lora_loom.{event}", data)


def _server() -> Any:
    from server import PromptServer

    return getattr(PromptServer, "instance", None)
