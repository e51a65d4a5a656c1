"""What the page asks for. GET only; nothing is taken from the request but a preset's name."""
from __future__ import annotations

from aiohttp import web
from server import PromptServer

from ..trainer import presets
from .config import preset_widgets


def register() -> None:
    """Adds our routes to ComfyUI's. Without a server (tests) there is nothing to add to."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return

    @server.routes.get("/lora_loom/presets")
    async def all_presets(_request: web.Request) -> web.Response:
        return web.json_response({name: {"about": {"en": presets.about(name, "en"), "zh": presets.about(name, "zh")}, "values": preset_widgets(name)}
                                  for name in presets.names()})
