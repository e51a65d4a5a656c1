"""The trainings of this server, as a page sees them: what runs now, what ended last, and the buttons that reach into a run.

Every event `lora_loom.<name>` carries node, prompt_id, workflow and, once there is one, run; a page that comes late asks for `states()`.
"""
from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections import deque
from typing import Any

import comfy.model_management
import comfy.utils
import psutil
import torch

from ..trainer.errors import LoomError
from ..trainer.hooks import Hooks, Progress
from . import events, folders
from .config import as_widgets

ACTIONS = ("stop", "save", "sample")
_BETWEEN = 0.2  # seconds between two events of progress, so that the page stays quick
_KEPT = 16  # trainings that the server remembers
_log = logging.getLogger("lora_loom")


class Training:
    """One TrainLoRA at work, from its checks to its result. `state` is fit for JSON and replaced as a whole, so that other threads may read it."""

    def __init__(self, node_id: Any, name: str, workflow: str = "", queued: list[list[Any]] | None = None) -> None:
        """name: the LoRA's, as the node has it; workflow: the id of the queued one, "" where a program sent it without; queued: graph.values."""
        self._who = {**events.belongs_to(node_id, workflow), "name": name}
        self._node_id, self._queued, self._asked, self._lock = node_id, queued, set(), threading.Lock()
        self._bar: Any = None
        self._last, self._points = 0.0, []
        self.state: dict[str, Any] = {**self._who, "run": "", "status": "preparing", "phase": "", "step": 0, "steps": 0, "since": time.time(), "messages": []}

    def __enter__(self) -> Training:
        gc.freeze()  # what ComfyUI holds need not be looked through: half a million objects stop all its threads for 100 ms and more each time
        _remember(self)
        self._send("preparing", {})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        gc.unfreeze()
        facts: dict[str, Any] = {}
        if self.state["run"] and "lora" not in self.state and not (folders.runs() / self.state["run"]).is_dir():  # it has come to nothing
            self._change(run="", step=0)
        if error is not None:
            facts = {"status": "interrupted"} if events.is_stop(error) else {
                "status": "failed", "error": str(error) or type(error).__name__, "fix": as_widgets(error.fix) if isinstance(error, LoomError) else {}}
            if facts["status"] == "failed" and not self.state["run"]:  # by which a page knows whether it still is as it was
                facts["queued"] = self._queued or []
        elif self.state["status"] not in ("finished", "stopped"):
            facts = {"status": "finished"}
        self._tell("ended", {"status": self.state["status"], **facts, "ended": time.time()})

    def warn(self, warnings: list[str]) -> None:
        """What is remarkable about pictures and settings, before anything is computed."""
        self._tell("warnings", {"warnings": warnings})

    def ended(self, stopped: bool, report: str, lora: str) -> None:
        """Before the block ends well: how."""
        self._change(status="stopped" if stopped else "finished", report=report, lora=lora)

    @property
    def over(self) -> bool:
        return "ended" in self.state

    def ask(self, action: str) -> None:
        """One of ACTIONS, which the run does after the step in hand. LoomError where it does not train."""
        if self.over or self.state["status"] != "running":
            raise LoomError(f"run {self.state['run'] or 'of this node'!r} does not train now ({self.state['status']}): {action} is for a run on its way")
        with self._lock:
            self._asked.add(action)

    def _take(self, action: str) -> bool:
        with self._lock:
            found = action in self._asked
            self._asked.discard(action)
        return found

    def hooks(self) -> Hooks:
        return Hooks(progress=self._progress, poll=events.interrupted, event=self._event, wanted=self._take, should_stop=lambda: self._take("stop"),
                     interrupts=(comfy.model_management.InterruptProcessingException,), about=self._who)

    def _progress(self, now: Progress) -> None:
        if self._bar is None or self.state["phase"] != now.phase:
            self._bar = comfy.utils.ProgressBar(now.total, node_id=self._node_id)
        self._bar.update_absolute(now.step, now.total)
        if now.phase == "train":
            self._points.append([now.step, now.loss, now.smoothed_loss, now.learning_rate, now.validation_loss])
        clock = time.perf_counter()
        if clock - self._last > _BETWEEN or now.step == now.total or self.state["phase"] != now.phase:
            self._last = clock
            points, self._points = self._points, []
            facts = {"phase": now.phase, "step": now.step, "steps": now.total}
            if now.phase == "train":
                facts.update(loss=now.loss, smoothed_loss=now.smoothed_loss, learning_rate=now.learning_rate, grad_norm=now.grad_norm,
                             steps_per_second=now.steps_per_second, eta_seconds=now.eta_seconds, memory=_memory())
            self._tell("progress", facts, points=points)
        if now.phase == "train" and (now.step % 50 == 0 or now.step == now.total):
            _log.info("%s", now.line())

    def _event(self, name: str, data: dict[str, Any]) -> None:
        _log.info("%s: %s", name, data)
        facts = {key: value for key, value in data.items() if key not in ("path", "paths")}
        if name == "started":
            self._tell("started", {**facts, "status": "running"})
        elif name == "saved":  # also on an interrupt or an error
            self._tell("saved", {"step": facts.pop("steps"), "lora": os.path.basename(data["path"])})
        elif name in ("memory", "estimate"):  # "memory" of the state is what is in use
            self._change(**{"needs" if name == "memory" else name: facts})
            self._send(name, facts)
        elif name == "sample":
            self._change(sampled=facts["step"], prompts=facts["prompts"])
            self._send(name, facts)
        else:  # checkpoint, step skipped, out of memory …: what the user may want to read later too
            name = name.replace(" ", "_")
            self._change(messages=[*self.state["messages"], {"id": name, **facts}][-50:])
            self._send(name, facts)

    def _change(self, **facts: Any) -> None:
        self.state = {**self.state, **facts}

    def _tell(self, name: str, facts: dict[str, Any], **more: Any) -> None:
        """An event whose facts are the state's too; `more` is in the event alone."""
        self._change(**facts)
        self._send(name, {**facts, **more})

    def _send(self, name: str, facts: dict[str, Any]) -> None:
        events.send(name, {**self._who, "run": self.state["run"], **facts})


_trainings: deque[Training] = deque(maxlen=_KEPT)  # the oldest first; a node that is given a list trains several times in one prompt
_turn = threading.Lock()


def _remember(training: Training) -> None:
    with _turn:
        _trainings.append(training)


def states() -> list[dict[str, Any]]:
    """Of every training that this server remembers, the newest first."""
    with _turn:
        return [training.state for training in reversed(_trainings)]


def renamed(run: str, to: str) -> None:
    """A run that is over has another name."""
    with _turn:
        for training in _trainings:
            if training.over and training.state["run"] == run:
                training.state = {**training.state, "run": to}


def running() -> set[str]:
    """Names of the runs that are on their way in this server."""
    return {state["run"] for state in states() if state["run"] and "ended" not in state}


def find(run: str) -> Training:
    """The training of that run, on its way in this server. LoomError where there is none."""
    with _turn:
        for training in reversed(_trainings):
            if run and training.state["run"] == run and not training.over:
                return training
    raise LoomError(f"run {run!r} does not train in this server now: choose one that does")


def _paged() -> int:
    """Bytes that dynamic VRAM counts, torch's and the pages of models beside them; 0 where there is none."""
    if not getattr(getattr(comfy, "memory_management", None), "aimdo_enabled", False):
        return 0
    import comfy_aimdo.control

    return comfy_aimdo.control.get_total_vram_usage()


def _memory() -> dict[str, Any]:
    """{device, used, total}, bytes: what this process holds on the GPU, or in memory where there is none."""
    device = comfy.model_management.get_torch_device()
    total = comfy.model_management.get_total_memory(device)
    if device.type == "cuda":
        return {"device": "GPU", "used": max(torch.cuda.memory_reserved(device), _paged()), "total": total}
    return {"device": "RAM", "used": psutil.Process().memory_info().rss, "total": total}
