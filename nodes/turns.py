"""Who measures pictures: one at a time, and a run before the pages that want to look at a folder.

Both remember what they measured only when they end, so that two at once would do everything twice.
"""
from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
_LOOK = 0.1  # s
_BEHIND = 10  # as in nice(1)


class _Later(Exception):
    """A run wants to measure."""


class Turns:
    def __init__(self) -> None:
        self._measuring, self._nobody_runs = threading.Lock(), threading.Event()
        self._nobody_runs.set()

    @contextlib.contextmanager
    def run(self, poll: Callable[[], object]) -> Iterator[None]:
        """Inside, no page measures; one that does stops first, and keeps what it has. `poll` is called meanwhile and may raise."""
        self._nobody_runs.clear()
        try:
            while not self._measuring.acquire(timeout=_LOOK):
                poll()
            try:
                yield
            finally:
                self._measuring.release()
        finally:
            self._nobody_runs.set()

    def page(self, work: Callable[[Callable[[], object]], T], poll: Callable[[], object]) -> T:
        """What `work(poll)` gives, begun again where a run came between. `poll` is called often and may raise."""

        def still_mine() -> None:
            poll()
            if not self._nobody_runs.is_set():
                raise _Later

        while True:
            poll()
            if not self._nobody_runs.wait(_LOOK) or not self._measuring.acquire(timeout=_LOOK):
                continue
            try:
                return work(still_mine)
            except _Later:
                pass
            finally:
                self._measuring.release()


def stand_back() -> None:
    """This thread and those that it starts get what others leave of the processor, where that can be said of a thread: on Linux."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BEHIND)


turns = Turns()
