"""The grids of ChooseCheckpoint, as a page sees them: what is being drawn now, what lies on disk, and their pictures.

Events, each with node, prompt_id, workflow, run and grid (the grid's id): lora_loom.grid {status, done, total, layout, …} when it begins and ends,
lora_loom.cell {row, column, key, done, total} for each picture.
"""
from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from ..trainer.runs import grid
from . import events, folders
from .answers import PICTURE, guarded, read

_KEPT = 16  # drawings that the server remembers
_states: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()  # by workflow and node, the oldest first
_turn = threading.Lock()


class Drawing:
    """A ChooseCheckpoint at work. Tells pages of each cell, and how it ended."""

    def __init__(self, node_id: Any, workflow: str, drawn: grid.Grid) -> None:
        self._who = {**events.belongs_to(node_id, workflow), "run": drawn.run.name, "grid": drawn.id}
        self._grid, self._facts = drawn, {"status": "drawing", "total": len(drawn.rows) * len(drawn.columns)}

    def __enter__(self) -> Drawing:
        self._tell(layout=grid.read(self._grid.run, self._grid.id))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if error is None:
            return
        stopped = events.is_stop(error)
        self._tell(status="interrupted" if stopped else "failed", error="" if stopped else str(error) or type(error).__name__)

    def cell(self, row: int, column: int) -> None:
        key = self._grid.keys[row][column]
        events.send("cell", {**self._who, "row": row, "column": column, "key": key, "total": self._facts["total"], "done": self._done()})

    def finished(self, handed: grid.Choice, chosen: bool, notes: list[dict[str, str]]) -> dict[str, Any]:
        """handed: what the node's outputs hold; chosen: by the user; notes: {id, text, …}. Returns the last state."""
        return self._tell(status="finished", handed=vars(handed), chosen=chosen, notes=notes)

    def _done(self) -> int:
        return self._facts["total"] - len(self._grid.missing())

    def _tell(self, layout: dict[str, Any] | None = None, **facts: Any) -> dict[str, Any]:
        self._facts = {**self._facts, **facts, "done": self._done()}
        state = {**self._who, **self._facts}
        with _turn:
            _states[self._who["workflow"], self._who["node"]] = state
            _states.move_to_end((self._who["workflow"], self._who["node"]))
            while len(_states) > _KEPT:
                _states.popitem(last=False)
        events.send("grid", {**state, "layout": layout} if layout else state)
        return state


def drawing() -> set[str]:
    """Names of the runs whose steps are being drawn."""
    with _turn:
        return {state["run"] for state in _states.values() if state["status"] == "drawing"}


def renamed(run: str, to: str) -> None:
    """A run has another name: what was drawn of it bears that."""
    with _turn:
        for place, state in _states.items():
            if state["run"] == run:
                handed = {"handed": {**state["handed"], "run": to}} if state.get("handed") else {}
                _states[place] = {**state, "run": to, **handed}


def all_grids(_query: Mapping[str, str]) -> dict[str, Any]:
    """{grids: [state]}, the newest first: what each ChooseCheckpoint of this server drew last."""
    with _turn:
        return {"grids": list(reversed(_states.values()))}


def one_grid(query: Mapping[str, str]) -> dict[str, Any]:
    """?name=run &id= -> the layout {id, run, compare, rows, columns, keys, drawn, width, height}; the newest without an id."""
    return grid.read(folders.run(query.get("name")), query.get("id", ""))


async def cell(request: web.Request) -> web.Response:
    """?name=run &key= -> the picture as JPEG. The key stands for all it was drawn from, so it is forever the same."""
    query = request.rel_url.query
    data = await asyncio.to_thread(lambda: grid.picture(folders.run(query.get("name")), query.get("key")))
    return web.Response(body=data, content_type="image/jpeg", headers={**PICTURE, "Cache-Control": "private, max-age=31536000, immutable"})


def register(routes: web.RouteTableDef) -> None:
    routes.get("/lora_loom/grids")(read(all_grids))
    routes.get("/lora_loom/run/grid")(read(one_grid))
    routes.get("/lora_loom/run/cell")(guarded(cell))
