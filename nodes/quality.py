"""The quality report on the canvas: made with progress and interrupt, shown in the node, drawn by the page (web/js/report.js)."""
from __future__ import annotations

from typing import Any

from ..trainer.backbones.comfy_tokens import text_encoders
from ..trainer.data.folder import Dataset
from ..trainer.data.report import Training, about_training, examine, whole_text
from . import events, folders
from .turns import turns

UI = "lora_loom_report"  # what the page looks for in a node's outputs
_NAMES = 100  # pictures of a finding that the page gets: ComfyUI keeps outputs in its history


def report(dataset: Dataset, node_id: Any, clip: Any = None, made_of: dict[str, Any] | None = None) -> tuple[str, dict[str, list]]:
    """(text, the node's `ui` output) of the report on a dataset; every picture is looked at. made_of: the settings that it was read with, and the
    fingerprint of its folder then, by which the page knows whether the report is on what it shows."""
    with turns.run(events.interrupted):
        made = examine(dataset, Training(encoders=text_encoders(clip)), cache=folders.measures(), progress=events.counter(node_id), poll=events.interrupted)
    events.settle(node_id, made.summary())
    return whole_text(dataset, made), {UI: [{**made.to_dict(_NAMES), "of": made_of or {}}]}


def remarks(base: Any, dataset: Dataset, config: Any) -> list[str]:
    """What the report can say once model and settings are known."""
    training = Training(base.family.size_multiple, config.train.batch_size, config.train.pictures, text_encoders(base.clip))
    return [str(finding) for finding in about_training(dataset, training)]
