"""The one import of comfy_api, and what older ComfyUIs lack: fields that they do not know are left out quietly."""
from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import ComfyExtension, io, ui

CATEGORY = "LoRA Loom"
NONE = "none"  # what a combo of files and runs says for nothing
Dataset = io.Custom("TRAIN_DATASET")
Config = io.Custom("LORA_CONFIG")
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")

__all__ = ["CATEGORY", "ComfyExtension", "Config", "NONE", "Dataset", "LoraModel", "LossMap", "Open", "io", "output", "schema", "ui", "widget"]


class Open(list):
    """What a combo of runs offers. Any name passes ComfyUI's check of the list: a run that is no longer there may still be in ComfyUI's cache, and where
    it is not the node says what is wrong, with the way out."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) or super().__contains__(name)


def _known(callable_: Any, values: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(callable_).parameters
    return {name: value for name, value in values.items() if name in parameters}


def schema(node_id: str, display_name: str, **values: Any) -> io.Schema:
    """A node's schema in our category. `search_aliases` and the like exist only in newer ComfyUIs; has_intermediate_output: the
    page is told of the node's `ui` again where its result comes from the cache."""
    return io.Schema(**_known(io.Schema, {"node_id": node_id, "display_name": display_name, "category": CATEGORY, **values}))


def widget(kind: Any, name: str, **values: Any) -> Any:
    """One input. `advanced` folds it away; 0.3.64 has no such parameter, and hands what it does not know on to its page."""
    made = kind.Input(name, **_known(kind.Input.__init__, values))
    if values.get("advanced") and not hasattr(made, "advanced"):
        made.extra_dict = {**made.extra_dict, "advanced": True}
    return made


def output(kind: Any, name: str, **values: Any) -> Any:
    """One output, shown as `name`. 0.3.64 wants ids that no input has."""
    return kind.Output(f"{name}_out", display_name=name, **values)
