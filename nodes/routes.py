"""What the page asks for: presets, their saving, and a run's config.yaml as widget values. No path is taken from a request."""
from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from server import PromptServer

from ..trainer import presets
from ..trainer.backbones.families import FAMILIES
from ..trainer.errors import LoomError
from . import config, train

_MOST = 200_000  # bytes of a file that is dropped in


def _answered(handler: Callable[[web.Request], Awaitable[Any]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    """The handler's answer as JSON; what it refuses as 400 with the reason."""

    async def answer(request: web.Request) -> web.Response:
        try:
            return web.json_response(await handler(request))
        except LoomError as error:
            return web.json_response({"error": str(error)}, status=400)

    return answer


def _preset(name: str) -> dict[str, Any]:
    """{about, values: widget values, families: {family: the widget values that differ there}}"""
    plain = config.widgets(presets.merge(presets.load(name), {}))
    families = {}
    for family in FAMILIES:
        own = config.widgets(presets.merge(presets.load(name, family), {}))
        if own != plain:
            families[family] = {key: value for key, value in own.items() if value != plain[key]}
    about = {language: presets.about(name, language) for language in presets.LANGUAGES}
    return {"about": about, "values": plain, "families": families}


async def all_presets(_request: web.Request) -> dict[str, Any]:
    found = {}
    for name in presets.names():
        try:
            found[name] = _preset(name)
        except LoomError as error:  # one of the user's own files: the others stay of use
            found[name] = {"error": str(error)}
    return found


async def save_preset(request: web.Request) -> dict[str, Any]:
    """{name, values: widget values} -> {name}: a file of the user's own."""
    try:
        given = await request.json()
        name, values = given["name"], given["values"]
    except (ValueError, KeyError, TypeError):
        name = values = None
    if not isinstance(name, str) or not isinstance(values, dict):
        raise LoomError("the request holds no preset: it takes JSON with name (text) and values (LoRAConfig's inputs)")
    path = presets.save(name, config.tree(values))
    return {"name": path.stem.replace("_", " ")}


async def read_config(request: web.Request) -> dict[str, Any]:
    """The text of a run's config.yaml or of a preset -> {node: widget values} for LoRAConfig and TrainLoRA."""
    data = await request.content.read(_MOST + 1)
    if len(data) > _MOST:
        raise LoomError(f"the file is larger than {_MOST} bytes: give a run's config.yaml or a preset")
    try:
        text = data.decode("utf-8-sig")
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
    server.routes.get("/lora_loom/presets")(_answered(all_presets))
    server.routes.post("/lora_loom/presets")(_answered(save_preset))
    server.routes.post("/lora_loom/config")(_answered(read_config))
