"""What the page asks for of datasets: upload, listing, thumbnails, saved captions.

Folders go by the names of LoadDataset's widget, pictures by theirs inside the folder; nothing else of the disk can be named.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web
from aiohttp.http import HttpProcessingError

from ..trainer.data import edits, thumbnails, upload
from ..trainer.data.captions import SOURCES
from ..trainer.data.folder import Dataset, fingerprint
from ..trainer.data.pictures import SUFFIXES, header
from ..trainer.data.unpack import MAX_FILES, MAX_TOTAL
from ..trainer.errors import LoomError
from . import answers, folders

_MOST_EDITS = 64 * 2**20  # bytes of the request that saves captions
_PAGE = 1000  # pictures of one page of a listing
_BLOCK = 2**20
_makers = ThreadPoolExecutor(2, "lora_loom_thumbnails")  # a picture may take 300 MB while it is decoded
_listings: OrderedDict[tuple[str, str], edits.Listing] = OrderedDict()  # the last few, so that all pages are of one moment
_made: OrderedDict[Path, tuple[str, dict[str, str]]] = OrderedDict()  # folder -> (its fingerprint then, the captions made)


def remember_made(dataset: Dataset) -> None:
    """The captions that an AutoCaption has made, saved or not: the editor offers them as long as the folder stays as it is."""
    _made[dataset.folder] = fingerprint(dataset.folder), {picture.name: picture.caption for picture in dataset.pictures}
    _made.move_to_end(dataset.folder)
    while len(_made) > 8:
        _made.popitem(last=False)


async def upload_files(request: web.Request) -> web.Response:
    """multipart/form-data with files, ?name= of the new folder in input/ -> {folder, files, refused, notes}."""
    name = upload.check_folder_name(request.query.get("name", ""))
    if not request.content_type.startswith("multipart/"):
        raise LoomError(f"the request is {request.content_type}: an upload takes multipart/form-data")
    if (request.content_length or 0) > MAX_TOTAL:
        raise LoomError(f"the upload has {request.content_length / 2**30:.1f} GB: up to {MAX_TOTAL / 2**30:.0f} are taken; send it in parts")
    root = Path(folder_paths.get_input_directory())
    try:
        async with _work_folder(root) as work:
            files = await _receive(request, work)
            if not files:
                raise LoomError("the upload holds no file: choose pictures or a zip")
            done = await asyncio.to_thread(upload.make_folder, root, name, work, files)
    except OSError as error:
        raise LoomError(f"the upload cannot be written into {root.name} ({error.strerror}): make it writable, or free some space") from error
    answer = {"folder": done.folder and done.folder.name, "files": len(done.files), "refused": done.refused, "notes": done.notes}
    if done.folder is None:
        return web.json_response({**answer, "error": "nothing of the upload is a picture: no folder was made"}, status=400)
    return web.json_response(answer)


@contextlib.asynccontextmanager
async def _work_folder(root: Path) -> AsyncIterator[Path]:
    """`upload.work_folder` beside the server's loop: clearing thousands of files away takes its time."""
    folder = upload.work_folder(root)
    work = await asyncio.to_thread(folder.__enter__)
    try:
        yield work
    finally:
        await asyncio.to_thread(folder.__exit__, None, None, None)


async def _receive(request: web.Request, work: Path) -> list[tuple[str, Path]]:
    """The files of the request, one after the other onto the disk: [(name as it was given, where it lies now)]."""
    files, size = [], 0
    try:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if not hasattr(part, "read_chunk") or part.filename is None:
                continue
            if len(files) >= MAX_FILES:
                raise LoomError(f"the upload holds more than {MAX_FILES} files: send it in parts")
            path = work / str(len(files))
            with await asyncio.to_thread(open, path, "xb") as file:
                while chunk := await part.read_chunk(_BLOCK):
                    size += len(chunk)
                    if size > MAX_TOTAL:
                        raise LoomError(f"the upload has more than {MAX_TOTAL / 2**30:.0f} GB: send it in parts")
                    await asyncio.to_thread(file.write, chunk)
            files.append((part.filename, path))
    except (ValueError, AssertionError, HttpProcessingError) as error:
        raise error if isinstance(error, LoomError) else LoomError(f"the upload is no valid multipart/form-data ({error}): send it again") from error
    return files


async def list_dataset(request: web.Request) -> web.Response:
    """?folder= &source= &offset= &limit= &fingerprint= -> {total, fingerprint, save_as, warnings, pictures}; later pages name the first one's fingerprint."""
    query = request.query
    source = _one_of("source", query.get("source", "auto"), SOURCES)
    offset, limit = answers.number(query, "offset", 0, 0, 10**6), answers.number(query, "limit", _PAGE, 1, _PAGE)
    return web.json_response(await asyncio.to_thread(_page, query.get("folder"), source, offset, limit, query.get("fingerprint")))


def _page(name: str | None, source: str, offset: int, limit: int, shown: str | None) -> dict[str, Any]:
    folder = dataset_folder(name)
    key = str(folder), source
    listing = _listings.get(key)
    if listing is None or shown is None or listing.fingerprint != shown:
        with folders.called(folder, str(name)):
            listing = _listings[key] = edits.list_rows(folder, source)
        if shown is not None and listing.fingerprint != shown:
            raise edits.Changed(f"{folder.name} has changed on disk while it was listed: list it again from the start")
    _listings.move_to_end(key)
    while len(_listings) > 4:
        _listings.popitem(last=False)
    rows = [_row(row) for row in listing.rows[offset:offset + limit]]
    return {"total": len(listing.rows), "fingerprint": listing.fingerprint, "save_as": listing.save_as, "warnings": listing.warnings, "pictures": rows}


def _row(row: edits.Row) -> dict[str, Any]:
    """Sizes from the header, upright; 0 by 0 for what cannot be read."""
    width = height = size = version = 0
    try:
        stat = row.path.stat()
        size, version = stat.st_size, stat.st_mtime_ns
        width, height, _ = header(row.path)
    except Exception:  # Pillow's readers raise nearly every kind there is
        pass
    return {"name": row.name, "caption": row.caption, "source": row.source, "width": width, "height": height, "bytes": size, "version": f"{version}-{size}"}


async def give_thumbnail(request: web.Request) -> web.Response:
    """?folder= &name= &size= (and &v=, the picture's version) -> a small WebP, made beside the server's loop, two at a time."""
    query = request.query
    side = answers.number(query, "size", 192, 1, 10_000)
    path = await asyncio.to_thread(lambda: _picture(dataset_folder(query.get("folder")), query.get("name")))
    tag = f'"{await asyncio.to_thread(thumbnails.thumbnail_key, path, side)}"'
    # with a version in the address the picture is forever; without one the page asks whether it still is
    headers = {"ETag": tag, "Cache-Control": "private, max-age=31536000, immutable" if query.get("v") else "private, no-cache",
               "X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
    if request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers=headers)
    kept = Path(folder_paths.get_temp_directory(), "lora_loom_thumbnails")  # ComfyUI empties it when it starts

    def make() -> bytes:  # those that wait while the page scrolls on are not worth making any more
        return b"" if request.transport is None or request.transport.is_closing() else thumbnails.thumbnail(path, side, kept)

    data = await asyncio.get_running_loop().run_in_executor(_makers, make)
    return web.Response(body=data, content_type=thumbnails.KIND, headers=headers)


async def save_captions(request: web.Request) -> web.Response:
    """{folder, source, fingerprint, save_as, captions: {picture: caption}} -> {report, fingerprint}; 409 where the folder has changed since."""
    given = await answers.json_object(request, "folder, fingerprint, save_as and captions", _MOST_EDITS)
    captions = given.get("captions")
    if not isinstance(captions, dict) or not all(isinstance(caption, str) for caption in captions.values()):
        raise LoomError("captions is missing: it takes an object of picture names and captions")
    folder, source = dataset_folder(given.get("folder")), _one_of("source", given.get("source", "auto"), SOURCES)
    after, report = await asyncio.to_thread(edits.save_edits, folder, captions, listed_as=str(given.get("fingerprint")), caption_source=source,
                                            save_as=_one_of("save_as", given.get("save_as"), edits.SAVE_AS))
    _listings[str(folder), source] = after
    return web.json_response({"report": report, "fingerprint": after.fingerprint})


async def made_captions(request: web.Request) -> web.Response:
    """?folder= -> {captions: {picture: caption} that an AutoCaption made of the folder as it is now}."""
    return web.json_response({"captions": await asyncio.to_thread(_made_of, request.query.get("folder"))})


def _made_of(name: str | None) -> dict[str, str]:
    folder = dataset_folder(name)
    then, captions = _made.get(folder, ("", {}))
    return captions if captions and fingerprint(folder) == then else {}


def dataset_folder(name: Any) -> Path:
    if not isinstance(name, str) or any(ord(c) < 32 or 0xd800 <= ord(c) < 0xe000 for c in name):
        raise LoomError(f"folder {name!r} is no name: give a folder that LoadDataset lists")
    if name.startswith("/") or any(part.startswith(".") for part in name.replace("\\", "/").split("/")):
        raise LoomError(f"folder {name!r} is none that LoadDataset lists: give one of those")
    return folders.dataset(name)


def _picture(folder: Path, name: Any) -> Path:
    """The picture of that name inside the folder. Raises LoomError for every other file, and for links that lead out."""
    wrong = LoomError(f"picture {name!r} is not in {folder.name}: give a name from its listing")
    if not isinstance(name, str) or "\0" in name or not name.lower().endswith(SUFFIXES) or os.path.isabs(name):
        raise wrong
    if any(part.startswith(".") or not part for part in name.replace("\\", "/").split("/")):
        raise wrong
    path, root = Path(os.path.realpath(folder / name)), os.path.realpath(folder)
    try:
        if path.is_relative_to(root) and path.is_file():
            return path
    except OSError:  # a name too long for the system
        pass
    raise wrong


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise LoomError(f"{name} {value!r} is unknown: it is one of {', '.join(choices)}")
    return value


def register(routes: web.RouteTableDef) -> None:
    routes.post("/lora_loom/dataset/upload")(answers.guarded(upload_files))
    routes.get("/lora_loom/dataset")(answers.guarded(list_dataset))
    routes.get("/lora_loom/dataset/thumbnail")(answers.guarded(give_thumbnail))
    routes.post("/lora_loom/dataset/captions")(answers.guarded(save_captions))
    routes.get("/lora_loom/dataset/made")(answers.guarded(made_captions))
