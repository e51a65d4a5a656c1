"""What the page and programs ask for: every route of ours, on ComfyUI's server."""
from __future__ import annotations

from server import PromptServer

from . import choose_routes, dataset_routes, estimate_routes, presets_routes, report_routes, runs_routes


def register() -> None:
    """Adds our routes to ComfyUI's. Without a server (tests) there is nothing to add to."""
    server = getattr(PromptServer, "instance", None)
    for part in (presets_routes, dataset_routes, report_routes, runs_routes, choose_routes, estimate_routes) if server else ():
        part.register(server.routes)
