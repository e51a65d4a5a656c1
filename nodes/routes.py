"""What the page asks for: presets, their saving, and a run's config.yaml as widget values. No path is taken from a request."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from server import PromptServer

from ..trainer import presets
from ..trainer.backbones.families import FAMILIES
from ..trainer.errors import LoomError
from . import config, dataset_routes, train

_MOST = 200_000  # bytes of a request


def answered(handler: Callable[[bytes], Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
    """The handler's answer to the request's body as JSON, worked out beside the server's loop; what it refuses as 400 with the reason."""

    async def answer(request: web.Request) -> web.Response:
        data = bytearray()
        async for chunk in request.content.iter_any():
            data += chunk
            if len(data) > _MOST:
                raise LoomError(f"the request is larger than {_MOST} bytes: give a run's config.yaml or a preset")
        return web.json_response(await asyncio.to_thread(handler, bytes(data)))

    return dataset_routes.guarded(answer)


def _preset(name: str) -> dict[str, Any]:
    """{about, values: LoRAConfig's widget values, train: TrainLoRA's, families: {family: the values of both that differ there}}"""
    preset = presets.Preset(name)

    def both(family: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
        values = preset.values(family)
        whole = presets.merge(values, {})
        return config.widgets(whole), train.widgets(whole, values)

    (plain, trained), families = both(), {}
    for family in FAMILIES:
        found = {key: value for own, usual in zip(both(family), (plain, trained)) for key, value in own.items() if value != usual.get(key)}
        if found:
            families[family] = found
    about = {language: preset.about(language) for language in presets.LANGUAGES}
    return {"about": about, "values": plain, "train": trained, "families": families}


def all_presets(_body: bytes) -> dict[str, Any]:
    found = {}
    for name in presets.names():
        try:
            found[name] = _preset(name)
        except LoomError as error:  # one of the user's own files: the others stay of use
            found[name] = {"error": str(error)}
    return found


def save_preset(body: bytes) -> dict[str, Any]:
    """{name, values: widget values, replace} -> {name}: a file of the user's own; {exists: name} where there is one that is not to be replaced."""
    try:
        given = json.loads(body)
        name, values, replace = given["name"], given["values"], given.get("replace") is True
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        name = values = replace = None
    if not isinstance(name, str) or not isinstance(values, dict):
        raise LoomError("the request holds no preset: it takes JSON with name (text) and values (LoRAConfig's inputs)")
    path = presets.save(name, config.tree(values), replace)
    return {"exists": name} if path is None else {"name": path.stem.replace("_", " ")}


def read_config(body: bytes) -> dict[str, Any]:
    """The text of a run's config.yaml or of a preset -> {node: widget values} for LoRAConfig and TrainLoRA."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise LoomError("the file is no UTF-8 text: give a run's config.yaml or a preset") from None
    values = presets.parse(text, "the file")
    whole = presets.merge(values, {})
    return {"LoRAConfig": config.widgets(whole), "TrainLoRA": train.widgets(whole, values)}


def register() -> None:
    """Adds our routes to ComfyUI's. Without a server (tests) there is nothing to add to."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    server.routes.get("/lora_loom/presets")(answered(all_presets))
    server.routes.post("/lora_loom/presets")(answered(save_preset))
    server.routes.post("/lora_loom/config")(answered(read_config))
    dataset_routes.register(server.routes)
