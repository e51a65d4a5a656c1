"""A run measures pictures before the pages that look at a folder do, and never beside them."""
from __future__ import annotations

import importlib.util
import threading
import time
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("loom_turns", Path(__file__).resolve().parents[1] / "nodes" / "turns.py")  # its package needs ComfyUI
turning = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(turning)


class Gone(Exception):
    pass


def nothing() -> None:
    pass


def test_a_page_stops_for_a_run_and_begins_again() -> None:
    turns, order, begun = turning.Turns(), [], threading.Event()

    def work(poll):
        order.append("page begins")
        begun.set()
        if order.count("page begins") == 1:
            try:
                while True:
                    poll()
                    time.sleep(0.01)
            finally:
                order.append("page stops")
        poll()
        return "report"

    answers = []
    page = threading.Thread(target=lambda: answers.append(turns.page(work, nothing)))
    page.start()
    assert begun.wait(10)
    with turns.run(nothing):
        order.append("run")
        time.sleep(0.5)
        order.append("run ends")
    page.join(10)
    assert answers == ["report"] and order == ["page begins", "page stops", "run", "run ends", "page begins"]


def test_nobody_is_in_the_way_of_those_who_come_after() -> None:
    turns, begun, go = turning.Turns(), threading.Event(), threading.Event()

    def gone() -> None:
        raise Gone

    with pytest.raises(Gone):
        turns.page(lambda poll: "report", gone)
    with pytest.raises(ValueError), turns.run(nothing):
        raise ValueError
    with pytest.raises(ValueError):
        turns.page(lambda poll: int("x"), nothing)

    def stubborn(poll):
        begun.set()
        assert go.wait(10)
        return 1

    page = threading.Thread(target=turns.page, args=(stubborn, nothing))
    page.start()
    assert begun.wait(10)
    with pytest.raises(Gone), turns.run(gone):  # interrupted while it waits
        raise AssertionError
    go.set()
    page.join(10)
    with turns.run(nothing):
        pass
    assert turns.page(lambda poll: "report", nothing) == "report"


def test_threads_that_stand_back_start_others_that_do() -> None:
    import os
    import sys
    if sys.platform != "linux":
        pytest.skip("threads have priorities of their own on Linux alone")
    found = []

    def look() -> None:
        turning.stand_back()
        child = threading.Thread(target=lambda: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
        child.start()
        child.join()

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [min(19, max(before, 10))] and os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
