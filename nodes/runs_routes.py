"""What pages and programs ask of the runs: what trains now, what lies in the runs' folder, and what is to be done with it.

Names come in as parameters and are looked up among what is there; nothing outside the runs' folder is read, and nothing is deleted for good.
"""
from __future__ import annotations

import asyncio
import contextlib
import glob
import io
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web
from PIL import Image

from ..trainer.config import LoomConfig
from ..trainer.errors import LoomError
from ..trainer.files import write_whole
from ..trainer.names import check_name
from ..trainer.runs import held, reading, record, saved, store
from . import choose_routes, folders, live
from .answers import PICTURE, guarded, number, read, write
from .config import as_widgets

TRASH = ".trash"  # below the runs' folder; what is in it is no run
_SIDES = (96, 192, 384, 768)
_keeping = threading.Lock()


def _failed(what: str, error: OSError) -> LoomError:
    return LoomError(f"{what} ({error.strerror or error}): close what has its files open, and see that the disk has room and ComfyUI may write to it")


def all_runs(_query: Mapping[str, str]) -> dict[str, Any]:
    """{runs: [summary], running: [names], trash: [{name, bytes}]}; a run that was killed is "lost", not running."""
    now, found = live.running(), []
    for name in reading.names(folders.runs()):
        try:
            found.append(_told(folders.runs() / name, now))
        except OSError:  # removed meanwhile
            continue
    bin_ = folders.runs() / TRASH
    return {"runs": found, "running": sorted(now), "trash": [{"name": name, "bytes": reading.size(bin_ / name)} for name in reading.names(bin_)]}


def one_run(query: Mapping[str, str]) -> dict[str, Any]:
    """?name= -> its summary with settings, samples, prompts and checkpoints."""
    run = folders.run(query.get("name"))
    text = reading.config_text(run)
    try:
        told = {**_told(run, live.running()), "samples": reading.samples(run), "prompts": reading.prompts(run), "checkpoints": reading.checkpoints(run)}
    except FileNotFoundError:
        folders.run(run.name)  # says that it was removed meanwhile
        raise
    try:
        settings = {"dataset": record.dataset(run), **LoomConfig.from_yaml(text).to_dict()}
    except LoomError:  # of another version: shown as it is
        settings = None
    return {**told, "settings": settings, "config": text}


def curve(query: Mapping[str, str]) -> dict[str, Any]:
    """?name= &points=800 &after=0 -> reading.curve"""
    return reading.curve(folders.run(query.get("name")), number(query, "points", 800, 2, reading.MOST_POINTS), number(query, "after", 0, 0, 10**9))


def _told(run: Path, now: set[str]) -> dict[str, Any]:
    found = reading.summary(run)
    if run.name in now:
        found["status"] = "running"
    elif found["status"] == "running":
        found["elsewhere"] = held.is_held(run)  # by the command line, or by another server
        found["status"] = "running" if found["elsewhere"] else "lost"
    found["lora"], found["lora_bytes"] = _lora(found.get("lora"))
    if found.get("fix"):
        try:
            found["fix"] = as_widgets(found["fix"])
        except TypeError:  # of another hand
            found["fix"] = {}
    return {name: value for name, value in found.items() if name not in ("host", "digests", "version")}  # of no use outside


def _lora(file: Any) -> tuple[str, int]:
    """(what LoraLoader calls the run's file, its bytes); ("", 0) where it is no longer there."""
    path = folder_paths.get_full_path("loras", file) if isinstance(file, str) and file else None
    try:
        return (file, os.path.getsize(path)) if path else ("", 0)
    except OSError:
        return "", 0


async def sample(request: web.Request) -> web.Response:
    """?name= &file= &size= -> the picture as PNG, or a small WebP with its larger side `size`."""
    query = request.rel_url.query
    side = number(query, "size", 0, 0, max(_SIDES))
    data = await asyncio.to_thread(_picture, query.get("name"), query.get("file"), side)
    # a sample is never drawn anew under its name, but a run may be: the page asks again after a while
    return web.Response(body=data, content_type="image/webp" if side else "image/png",
                        headers={**PICTURE, "Cache-Control": "private, max-age=60"})


def _picture(name: Any, file: Any, side: int) -> bytes:
    run = folders.run(name)
    if file not in {found["file"] for found in reading.samples(run)}:
        raise LoomError(f"sample {str(file)[:80]!r} is not in run {run.name!r}: give a file that GET /lora_loom/run lists")
    path = run / "samples" / file
    if path.is_symlink():
        raise LoomError(f"sample {file!r} is a link: only pictures of the run itself are given")
    try:
        if not side:
            return path.read_bytes()
        side = next(known for known in _SIDES if known >= side)
        with Image.open(path, formats=["PNG"]) as image:
            image = image.convert("RGB")
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            made = io.BytesIO()
            image.save(made, "WEBP", quality=85)
            return made.getvalue()
    except OSError as error:
        raise LoomError(f"sample {file!r} of run {run.name!r} cannot be read ({error}): it is damaged or was removed") from error


def control(given: dict[str, Any]) -> dict[str, Any]:
    """{run, action: stop | save | sample}: done after the step in hand; events tell of it."""
    action = given.get("action")
    if action not in live.ACTIONS:
        raise LoomError(f"action {str(action)[:80]!r} is unknown: it is one of {', '.join(live.ACTIONS)}")
    live.find(str(given.get("run") or "")).ask(action)
    return {"run": given["run"], "action": action}


def rename(given: dict[str, Any]) -> dict[str, Any]:
    """{run, to} -> {name}. The LoRA file keeps its name, for workflows refer to it."""
    run, to = folders.run(given.get("run")), check_name(given.get("to"), "a run's name")
    try:
        with _claimed(run) as hold:
            _undrawn(run)
            if os.path.lexists(run.parent / to):
                raise LoomError(f"name {to!r} is taken: choose another name for the run")
            hold.moved(run.parent / to)
    except OSError as error:
        raise _failed(f"run {run.name!r} cannot be renamed", error) from error
    live.renamed(run.name, to)
    choose_routes.renamed(run.name, to)
    return {"name": to}


def trash(given: dict[str, Any]) -> dict[str, Any]:
    """{run} -> {name, trashed}: moved to the trash in the runs' folder, from which `restore` brings it back. The LoRA file stays."""
    run, place, bin_ = folders.run(given.get("run")), None, _bin()
    try:
        with _claimed(run) as hold:
            _undrawn(run)
            bin_.mkdir(exist_ok=True)
            place = store.new_run(bin_, run.name)
            hold.moved(place)  # onto the empty folder
    except OSError as error:
        _unused(place)
        raise _failed(f"run {run.name!r} cannot be moved to the trash", error) from error
    return {"name": run.name, "trashed": place.name}


def restore(given: dict[str, Any]) -> dict[str, Any]:
    """{trashed} -> {name}: back among the runs, under its name or the next that is free."""
    name, bin_ = given.get("trashed"), _bin()
    if not isinstance(name, str) or name.startswith(".") or name not in (os.listdir(bin_) if bin_.is_dir() else []):
        raise LoomError(f"run {str(name)[:80]!r} is not in the trash: give a name that `trash` has given")
    wrong, place = f"run {name!r} cannot be brought back", None
    if not reading.is_run(bin_ / name):
        raise LoomError(f"{wrong}: what is called so in the trash is no run")
    try:
        place = store.new_run(folders.runs(), name)
        os.rename(bin_ / name, place)
    except OSError as error:
        _unused(place)
        raise _failed(wrong, error) from error
    return {"name": place.name}


def _bin() -> Path:
    path = folders.runs() / TRASH
    if path.is_symlink():
        raise LoomError(f"the trash {TRASH!r} in the runs' folder is a link: remove the link, and a folder will be made in its place")
    return path


def _unused(place: Path | None) -> None:
    """What was to take a run in goes, as long as it is empty."""
    if place is not None:
        with contextlib.suppress(OSError):
            place.rmdir()


def empty_trash(_given: dict[str, Any]) -> dict[str, Any]:
    """Removes for good what was moved to the trash."""
    bin_, failed = _bin(), []
    if bin_.is_dir():
        shutil.rmtree(bin_, onerror=lambda _call, path, info: failed.append((path, info[1])))
    if failed:
        path, error = failed[0]
        raise _failed(f"the trash cannot be emptied, {os.path.basename(path)!r} stays", error)
    return {}


def keep_checkpoint(given: dict[str, Any]) -> dict[str, Any]:
    """{run, file} -> {lora}: see `keep`."""
    return {"lora": keep(folders.run(given.get("run")), given.get("file")).name}


def keep(run: Path, file: Any) -> Path:
    """A LoRA of the run's way becomes its result: copied into the loras folder, named for run and step, and noted in the record. So does again the
    one that the run ended with. Returns where LoraLoader finds it; doing it twice changes nothing. LoomError for a run that is being trained."""
    with _keeping:
        try:
            with _claimed(run):
                return _keep(run, file)
        except OSError as error:
            raise _failed(f"checkpoint {str(file)[:80]!r} cannot be made the run's result", error) from error


def _keep(run: Path, file: Any) -> Path:
    loras, final = folders.loras(), saved.final_lora(run)
    source = run / "checkpoints" / str(file)
    known = isinstance(file, str) and file in {c["file"] for c in reading.checkpoints(run)} and not source.is_symlink()
    if not known and not (final and file == final and (loras / final).is_file()):
        raise LoomError(f"checkpoint {str(file)[:80]!r} is not in run {run.name!r}: give a file that GET /lora_loom/run lists")
    if known and not saved.readable(source):
        raise LoomError(f"checkpoint {file!r} cannot be read: it is damaged; choose another")
    path = _copied(source, loras) if known else loras / final
    facts = record.read(run)
    if facts.get("lora") != path.name:
        write_whole(run / record.FILE, json.dumps({**facts, "lora": path.name, "final": final}, ensure_ascii=False, indent=1).encode())
    return path


def _copied(source: Path, folder: Path) -> Path:
    """The file in the folder: the one of that name, or of that name and a number, which holds these bytes already; else a new one."""
    data = source.read_bytes()
    for path in sorted(folder.glob(f"{glob.escape(source.stem)}*{source.suffix}")):
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return path
    return store.write_new(folder, source.stem, source.suffix, data)


@contextlib.contextmanager
def _claimed(run: Path) -> Iterator[held.Hold]:
    """Nobody trains the run inside."""
    if run.name in live.running() or held.is_held(run):
        raise LoomError(f"run {run.name!r} is training: wait for its end, or stop it")
    hold = held.Hold(run)
    try:
        yield hold
    finally:
        hold.release()


def _undrawn(run: Path) -> None:
    if run.name in choose_routes.drawing():
        raise LoomError(f"run {run.name!r} is being drawn by ChooseCheckpoint: wait for its end, or stop it")


def register(routes: web.RouteTableDef) -> None:
    routes.get("/lora_loom/state")(read(lambda query: {"trainings": live.states()}))
    routes.get("/lora_loom/runs")(read(all_runs))
    routes.get("/lora_loom/run")(read(one_run))
    routes.get("/lora_loom/run/curve")(read(curve))
    routes.get("/lora_loom/run/sample")(guarded(sample))
    routes.post("/lora_loom/control")(write(control, "run and action"))
    routes.post("/lora_loom/run/rename")(write(rename, "run and to"))
    routes.post("/lora_loom/run/trash")(write(trash, "run"))
    routes.post("/lora_loom/run/restore")(write(restore, "trashed"))
    routes.post("/lora_loom/run/keep")(write(keep_checkpoint, "run and file"))
    routes.post("/lora_loom/trash/empty")(write(empty_trash, "nothing, {}"))
