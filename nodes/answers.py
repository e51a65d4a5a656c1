"""How our routes are asked and answer: by our own page or a program, in requests of a limited size, beside the server's loop, refusals as JSON."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from ..trainer.data import edits
from ..trainer.errors import LoomError
from .config import as_widgets

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PICTURE = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}  # headers of every picture that we give
_MOST = 200_000  # bytes of a request


def cross_site(request: web.Request) -> bool:
    """Whether a page of another origin asks: browsers say so, programs say nothing. ComfyUI's own check is off where it allows CORS."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("Origin")
    hosts = {request.headers[name].lower() for name in ("Host", "X-Forwarded-Host") if request.headers.get(name)}
    return origin is not None and urlsplit(origin).netloc.lower() not in hosts  # a sandboxed page says "null"


def guarded(handler: Handler) -> Handler:
    """The handler for our own page alone; what it refuses becomes JSON with the reason."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if cross_site(request):
            return web.json_response({"error": "the request comes from another site: open ComfyUI's own page"}, status=403)
        try:
            return await handler(request)
        except edits.Changed as error:
            return web.json_response({"error": str(error), "changed": True}, status=409)
        except LoomError as error:
            return web.json_response({"error": str(error), **({"fix": as_widgets(error.fix)} if error.fix else {})}, status=400)

    return answer


async def body(request: web.Request, remedy: str, most: int = _MOST) -> bytes:
    """The request's body. LoomError, which ends in `remedy`, where it has more than `most` bytes."""
    data = bytearray()
    async for chunk in request.content.iter_any():
        data += chunk
        if len(data) > most:
            raise LoomError(f"the request is larger than {most} bytes: {remedy}")
    return bytes(data)


async def json_object(request: web.Request, takes: str, most: int = _MOST, what: str = "JSON object") -> dict[str, Any]:
    """The body as a JSON object of what it `takes`; LoomError for anything else."""
    data = await body(request, f"it takes {takes}", most)
    try:
        given = await asyncio.to_thread(json.loads, data)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise LoomError(f"the request holds no {what}: it takes {takes}")
    return given


def read(handler: Callable[[Mapping[str, str]], dict[str, Any]]) -> Handler:
    """A GET: the handler's answer to the address's parameters, worked out beside the server's loop."""

    async def answer(request: web.Request) -> web.Response:
        found = await asyncio.to_thread(lambda: json.dumps(handler(request.rel_url.query)))
        return web.Response(text=found, content_type="application/json", headers={"Cache-Control": "no-store"})

    return guarded(answer)


def write(handler: Callable[[dict[str, Any]], dict[str, Any]], takes: str, what: str = "JSON object") -> Handler:
    """A POST of a JSON object, worked out beside the server's loop."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(handler, await json_object(request, takes, what=what)))

    return guarded(answer)


def number(query: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """A parameter of the address that is a whole number; LoomError for anything else."""
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and low <= int(text) <= high):
        raise LoomError(f"{name} {text[:80]!r} is no whole number from {low} to {high}")
    return int(text)
