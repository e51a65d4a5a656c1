"""POST /lora_loom/estimate: what a run with these settings will take, while they are being chosen. Nothing is loaded, nothing is run.

Checkpoints go by the names of the loaders' widgets and are looked up in ComfyUI's own folders; of a file its header alone is read.
"""
from __future__ import annotations

import asyncio
import contextlib
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
from aiohttp import web

from ..trainer import job, presets
from ..trainer.backbones.comfy_shapes import open_shapes
from ..trainer.backbones.families import FAMILIES, Family
from ..trainer.config import LoomConfig
from ..trainer.data.dataset import Dataset
from ..trainer.data.folder import fingerprint, list_dataset
from ..trainer.errors import LoomError
from ..trainer.light import Light
from ..trainer.validation import divided
from . import config as lora_config
from . import folders
from .answers import guarded, json_object
from .dataset import resolutions
from .dataset_routes import dataset_folder

_MOST = 100_000  # bytes of a request
_KINDS = {"checkpoint": "checkpoints", "diffusion_model": "diffusion_models"}
_DATASET = {"resolution": int, "min_size": int, "repeats": int, "flip": bool, "buckets": bool, "upscale": bool,
            "caption_source": str, "trigger_word": str, "masks": str}
_UNKNOWN = (AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
_lights: OrderedDict[tuple, Light | str] = OrderedDict()  # the last few models; a text says why nothing is known of one
_datasets: OrderedDict[tuple, Dataset] = OrderedDict()


def estimate(given: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
    """({layers, parameters, file_bytes, steps, steps_per_epoch, pictures, memory, checkpointing, notes}, what to do after it is said so that
    the next is said sooner). LoomError for settings that cannot be, and for a checkpoint or folder that is not there."""
    config = _config(given)
    light = _light(_part(given, "loader"), config.train.precision)
    family = None if isinstance(light, str) else light.model.family
    notes = [light] if isinstance(light, str) else []
    asked = _part(given, "dataset")
    dataset = _dataset(asked) if asked.get("folder") else None
    answer = {"layers": None, "parameters": None, "file_bytes": None, "memory": None, "checkpointing": False, "notes": notes,
              "family": family and family.id, **_steps(dataset, config, family or FAMILIES["sd15"])}
    if family is None:
        return answer, lambda: None
    answer["layers"], answer["parameters"], answer["file_bytes"] = light.size(config)
    cells = _largest(dataset, _whole(asked, "resolution", family.resolution), family)
    rows = config.train.batch_size if dataset is None else min(config.train.batch_size, max(1, len(dataset.pictures)))
    try:
        answer["memory"], answer["checkpointing"] = _memory(light, config, cells, rows, notes)
    except _UNKNOWN as error:  # ComfyUI's own code, which need not know of weights without numbers
        if isinstance(error, LoomError):
            raise
        notes.append(f"the memory of a step is not known before the run ({type(error).__name__}: {error})")
        return answer, lambda: None
    return answer, lambda: light.prepare(config, cells, config.train.gradient_checkpointing)


def _config(given: dict[str, Any]) -> LoomConfig:
    """Of both nodes' widget values; those of neither are left out."""
    tree = lora_config.tree(_part(given, "config"))
    values = _part(given, "train")
    for part, names in (("train", ("steps", "epochs", "batch_size", "seed")), ("optim", ("learning_rate",)), ("output", ("name",))):
        tree.setdefault(part, {}).update({name: values[name] for name in names if values.get(name) is not None})
    return presets.merge({}, tree)


def _memory(light: Light, config: LoomConfig, cells: tuple[int, int], rows: int, notes: list[str]) -> tuple[dict[str, Any], bool]:
    """(bytes of each part and of the device, whether the trainer will turn checkpointing on by itself)."""
    wanted = config.train.gradient_checkpointing
    device, total, free = _device()
    if config.train.memory_budget:
        free = min(free or 2**62, round(config.train.memory_budget * 2**30))
    found = light.memory(config, cells, wanted, rows)
    needed = found.total
    parts = {"base": found.base, "lora": found.lora, "optimizer": found.optimizer, "step": found.step}
    told = {**parts, "needed": needed, "total": total, "free": free, "device": device}
    if wanted or free is None or needed <= free:
        return told, False
    for every in (2, 1):  # as fitting.py has it
        told["checkpointed"] = light.memory(config, cells, every, rows).total
        if told["checkpointed"] <= free:
            break
    notes.append(f"this needs about {needed / 2**30:.1f} GB and {free / 2**30:.1f} GB are free: gradient checkpointing will be turned on, which then takes "
                 f"about {told['checkpointed'] / 2**30:.1f} GB")
    return told, True


def _device() -> tuple[str, int | None, int | None]:
    """("GPU" or "RAM", its bytes, those that ComfyUI could give: what its loaded models hold can be freed)."""
    manage = comfy.model_management
    device = manage.get_torch_device()
    free = manage.get_free_memory(device)
    if device.type != "cpu":
        free += sum(loaded.model_loaded_memory() for loaded in list(manage.current_loaded_models) if loaded.model is not None and loaded.device == device)
    return "RAM" if device.type == "cpu" else "GPU", int(manage.get_total_memory(device)), int(free)


def _light(loader: dict[str, Any], precision: str) -> Light | str:
    """What is known of the model that this loader gives, remembered for as long as its file stays as it is."""
    kind, name, dtype = loader.get("kind"), loader.get("name"), loader.get("weight_dtype", "default")
    if not kind:
        return "no checkpoint is chosen"
    path = None if kind == "toy" else _file(kind, name)
    if path is not None and path.suffix.lower() not in (".safetensors", ".sft"):
        return f"{path.name} is not in the format safetensors: nothing is known of it before it is loaded"
    stat = None if path is None else path.stat()
    key = path, stat and (stat.st_mtime_ns, stat.st_size), precision, str(dtype)
    if key not in _lights:
        try:
            _lights[key] = Light(open_shapes(path, precision, str(dtype)))
        except LoomError as error:
            _lights[key] = str(error)
        while len(_lights) > 3:
            _lights.popitem(last=False)
    _lights.move_to_end(key)
    return _lights[key]


def _file(kind: Any, name: Any) -> Path:
    """The file of that name in ComfyUI's folders of that kind."""
    if not isinstance(kind, str) or kind not in _KINDS:
        raise LoomError(f"loader.kind {str(kind)[:80]!r} is unknown: it is one of {', '.join(('toy', *_KINDS))}")
    if not isinstance(name, str) or name not in folder_paths.get_filename_list(_KINDS[kind]):
        raise LoomError(f"{kind} {str(name)[:80]!r} is not there: choose one that the loader node lists")
    return Path(folder_paths.get_full_path(_KINDS[kind], name))


def _dataset(asked: dict[str, Any]) -> Dataset:
    """By the pictures' headers; remembered for as long as the folder stays as it is."""
    settings: dict[str, Any] = {}
    for name, kind in _DATASET.items():
        if name in asked:
            if not isinstance(asked[name], kind) or kind is int and isinstance(asked[name], bool):
                raise LoomError(f"dataset.{name} is {str(asked[name])[:80]!r}: give LoadDataset's value")
            settings[name] = asked[name]
    settings["more_resolutions"] = resolutions(asked.get("more_resolutions", ""))
    folder = dataset_folder(asked.get("folder"))
    key = str(folder), fingerprint(folder), json.dumps(settings, sort_keys=True)
    if key not in _datasets:
        with folders.called(folder, asked["folder"]):
            _datasets[key] = list_dataset(folder, **settings)
        while len(_datasets) > 4:
            _datasets.popitem(last=False)
    _datasets.move_to_end(key)
    return _datasets[key]


def _steps(dataset: Dataset | None, config: LoomConfig, family: Family) -> dict[str, int | None]:
    if dataset is None:
        return {"steps": config.train.steps or None, "steps_per_epoch": None, "pictures": None}
    training, _ = divided(dataset, config.train.validation_split if config.train.validation_steps else 0, config.train.seed)
    steps, each = job.total_steps(training, config, family), job.steps_per_epoch(training, config, family)
    return {"steps": steps, "steps_per_epoch": each, "pictures": len(training.pictures)}


def _largest(dataset: Dataset | None, resolution: int, family: Family) -> tuple[int, int]:
    """(height, width) in latent cells of the largest picture that will come."""
    if dataset is None:
        side = max(1, round(resolution / family.size_multiple)) * family.size_multiple
        return side // family.cell, side // family.cell
    width, height = max(job.buckets(dataset, family), key=lambda size: size[0] * size[1])
    return height // family.cell, width // family.cell


def _part(given: dict[str, Any], name: str) -> dict[str, Any]:
    found = given.get(name) or {}
    if not isinstance(found, dict):
        raise LoomError(f"{name} is {str(found)[:80]!r}: it takes an object of widget names and values")
    return found


def _whole(given: dict[str, Any], name: str, default: int) -> int:
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 64 <= value <= 4096:
        raise LoomError(f"dataset.{name} is {str(value)[:80]!r}: it takes 64 to 4096")
    return value


def register(routes: web.RouteTableDef) -> None:
    turn = asyncio.Lock()  # a model's shapes are asked one thing at a time
    going: set[asyncio.Task] = set()

    async def prepare(work: Callable[[], None]) -> None:
        await asyncio.sleep(0.4)
        if not turn.locked():  # nobody waits
            async with turn:
                with contextlib.suppress(*_UNKNOWN):  # asked for in vain: the next question will say so
                    await asyncio.to_thread(work)

    async def answer(request: web.Request) -> web.Response:
        given = await json_object(request, "loader, config, train and dataset", _MOST)
        async with turn:
            found, after = await asyncio.to_thread(estimate, given)
        task = asyncio.get_running_loop().create_task(prepare(after))
        going.add(task)
        task.add_done_callback(going.discard)
        return web.json_response(found)

    routes.post("/lora_loom/estimate")(guarded(answer))
