"""Presets for the page, their saving, and a run's config.yaml as widget values. No path is taken from a request."""
from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from ..trainer import presets
from ..trainer.backbones.families import FAMILIES
from ..trainer.errors import LoomError
from . import config, train
from .answers import body, guarded, read, write

_PRESET = "JSON with name (text) and values (LoRAConfig's inputs)"


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


def all_presets(_query: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name in presets.names():
        try:
            found[name] = _preset(name)
        except LoomError as error:  # one of the user's own files: the others stay of use
            found[name] = {"error": str(error)}
    return found


def save_preset(given: dict[str, Any]) -> dict[str, Any]:
    """{name, values: widget values, replace} -> {name}: a file of the user's own; {exists: name} where there is one that is not to be replaced."""
    name, values, replace = given.get("name"), given.get("values"), given.get("replace") is True
    if not isinstance(name, str) or not isinstance(values, dict):
        raise LoomError(f"the request holds no preset: it takes {_PRESET}")
    path = presets.save(name, config.tree(values), replace)
    return {"exists": name} if path is None else {"name": path.stem.replace("_", " ")}


def read_config(data: bytes) -> dict[str, Any]:
    """The text of a run's config.yaml or of a preset -> {node: widget values} for LoRAConfig and TrainLoRA."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise LoomError("the file is no UTF-8 text: give a run's config.yaml or a preset") from None
    values = presets.parse(text, "the file")
    whole = presets.merge(values, {})
    return {"LoRAConfig": config.widgets(whole), "TrainLoRA": train.widgets(whole, values)}


def register(routes: web.RouteTableDef) -> None:
    async def config_text(request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(read_config, await body(request, "give a run's config.yaml or a preset")))

    routes.get("/lora_loom/presets")(read(all_presets))
    routes.post("/lora_loom/presets")(write(save_preset, _PRESET, "preset"))
    routes.post("/lora_loom/config")(guarded(config_text))
