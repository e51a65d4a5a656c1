"""GET /lora_loom/report: the quality report of a dataset folder as JSON, for programs and pages. Only folders that LoadDataset may read."""
from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from ..trainer import presets
from ..trainer.data.folder import read_dataset
from ..trainer.data.report import Training, examine
from ..trainer.errors import LoomError
from . import folders
from .answers import guarded
from .dataset import resolutions
from .dataset_routes import dataset_folder
from .turns import stand_back, turns

# read_dataset's own, as in LoadDataset, and what of the training the report asks for
_TEXTS = {"caption_source": "auto", "trigger_word": "", "masks": "none", "more_resolutions": ""}
_NUMBERS = {"resolution": 512, "min_size": 512, "repeats": 1, "batch_size": 1}
_SWITCHES = {"flip": False, "buckets": True, "upscale": False}
_NAMES = ("folder", "preset", *_TEXTS, *_NUMBERS, *_SWITCHES)


def report(query: Mapping[str, str], poll: Callable[[], object] | None = None) -> dict[str, Any]:
    """{folder=, resolution=512, …, preset=, batch_size=1} -> Report.to_dict(). LoomError for anything else. `poll` is called on the way and may raise."""
    values = _values(query)
    pictures = presets.merge(presets.load(query["preset"]), {}).train.pictures if query.get("preset") else (0, 0)
    settings = {name: value for name, value in values.items() if name != "batch_size"}
    folder = dataset_folder(query.get("folder"))
    with folders.called(folder, query["folder"]):
        dataset = read_dataset(folder, index=folders.cache() / "pictures", poll=poll, **settings)
    return examine(dataset, Training(batch_size=values["batch_size"], pictures=pictures), cache=folders.measures(), poll=poll).to_dict()


def _values(query: Mapping[str, str]) -> dict[str, Any]:
    unknown = sorted(set(query) - set(_NAMES))
    if unknown:
        raise LoomError(f"parameter {unknown[0]!r} is unknown: the report takes {', '.join(_NAMES)}")
    values: dict[str, Any] = {name: query.get(name, default) for name, default in _TEXTS.items()}
    for name, default in _NUMBERS.items():
        text = query.get(name, str(default))
        if not text.isascii() or not text.isdecimal() or len(text) > 9:
            raise LoomError(f"{name} is {text[:80]!r}, which is no whole number of at most nine digits: the report takes {name}={default}, for example")
        values[name] = int(text)
    for name, default in _SWITCHES.items():
        text = query.get(name, str(default)).lower()
        if text not in ("true", "false", "1", "0"):
            raise LoomError(f"{name} is {text[:80]!r}: the report takes {name}=true or {name}=false")
        values[name] = text in ("true", "1")
    values["more_resolutions"] = resolutions(values["more_resolutions"])
    if not 1 <= values["batch_size"] <= 256:
        raise LoomError(f"batch_size {values['batch_size']} is not within 1 to 256: give TrainLoRA's batch_size")
    return values


def register(routes: web.RouteTableDef) -> None:
    lookers = ThreadPoolExecutor(1, "lora_loom.report", stand_back)  # one at a time: each decodes pictures in threads of its own

    async def answer(request: web.Request) -> web.Response:
        def poll() -> None:
            if request.transport is None or request.transport.is_closing():
                raise LoomError("nobody waits for the report any more")

        made = asyncio.get_running_loop().run_in_executor(lookers, turns.page, functools.partial(report, request.rel_url.query), poll)
        return web.json_response(await made)

    routes.get("/lora_loom/report")(guarded(answer))
