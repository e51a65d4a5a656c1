"""Does the page stay quick while a long run tells of itself? A real ComfyUI and Chromium; 10,000 steps whose events come at full rate.

`python bench/live.py` measures frames and memory of the page, delays of the server's event loop, and what telling costs a step. The steps themselves
are empty (`--pause` seconds each), so that what is measured is ours. Needs a ComfyUI and Chromium (`CHROMIUM=` names its program).
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from report import ROOT, heading, table, write

# A node of the benchmark's own: it tells of steps as a training does, and watches the server's loop meanwhile.
NODE = '''
import asyncio, gc, json, sys, time
from server import PromptServer

class LoomBench:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"steps": ("INT", {"default": 1, "max": 10**9}), "pause": ("FLOAT", {"default": 0.0, "step": 1e-6}),
                                                        "to": ("STRING", {}), "name": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "test", True

    def run(self, steps, pause, to, name):
        live = next(m for n, m in sys.modules.items() if n.endswith("nodes.live"))
        Progress = next(m for n, m in sys.modules.items() if n.endswith("trainer.hooks")).Progress
        loop, late, on = PromptServer.instance.loop, [], [True]

        async def watch():
            while on[0]:
                before = loop.time()
                await asyncio.sleep(0.005)
                late.append(loop.time() - before - 0.005)

        asyncio.run_coroutine_threadsafe(watch(), loop)
        time.sleep(20)
        idle, late[:] = list(late), []
        collecting, began = [], [0.0]

        def collected(phase, info):
            if phase == "start":
                began[0] = time.perf_counter()
            else:
                collecting.append(time.perf_counter() - began[0])

        gc.callbacks.append(collected)
        took, started = 0.0, time.perf_counter()
        with live.Training("1", name) as training:
            hooks = training.hooks()
            hooks.event("started", {"run": name, "steps": steps, "step": 0, "steps_per_epoch": 100, "plan": ""})
            for step in range(1, steps + 1):
                time.sleep(pause)
                now = Progress("train", step, steps, 0.1 + 0.05 * ((step * 7919) % 101) / 101, 0.1 + 1 / (10 + step), 1e-4, 0.5, 100.0, (steps - step) / 100,
                               0.1 + step / 1e6 if step % 250 == 0 else None)
                before = time.perf_counter()
                hooks.poll()
                hooks.progress(now)
                hooks.wanted("save"), hooks.wanted("sample"), hooks.should_stop()
                took += time.perf_counter() - before
            training.ended(False, "", "")
        on[0] = False
        gc.callbacks.remove(collected)
        with open(to, "w") as file:
            json.dump({"telling": took / steps, "seconds": time.perf_counter() - started, "late": late, "idle": idle, "collecting": collecting}, file)
        return ()

NODE_CLASS_MAPPINGS = {"LoomBench": LoomBench}
'''
# Frames by requestAnimationFrame, and tasks that held the page up for more than 50 ms.
WATCH = """() => { window.loomFrames = []; window.loomLong = []; let before = performance.now();
    const frame = (now) => { window.loomFrames.push(now - before); before = now; requestAnimationFrame(frame); }; requestAnimationFrame(frame);
    new PerformanceObserver((list) => window.loomLong.push(...list.getEntries().map((e) => e.duration))).observe({ type: "longtask" }); }"""
TAKE = "() => { const found = [window.loomFrames.slice(1), window.loomLong]; window.loomFrames = []; window.loomLong = []; return found; }"
STEP = "() => Number((document.querySelector('.loom-live .numbers').textContent.match(/\\d+/) ?? [0])[0])"


def by_path(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def heap(session) -> float:
    """MiB of the page's JavaScript after a collection."""
    session.send("HeapProfiler.collectGarbage")
    return session.send("Runtime.getHeapUsage")["usedSize"] / 2**20


def frames(found: list) -> list[str]:
    times, long = found
    times = sorted(times) or [0.0]
    at = lambda share: f"{times[min(len(times) - 1, int(share * len(times)))]:.1f}"
    return [f"{1000 * len(times) / max(1e-9, sum(times)):.0f}", at(0.5), at(0.99), at(1.0), str(len(long)), f"{max(long, default=0):.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--pause", type=float, default=0.01, help="seconds of a step")
    parser.add_argument("--write", action="store_true", help="append the tables to bench/RESULTS.md")
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    host = by_path("loom_host_server", ROOT / "tests" / "host" / "server.py")
    comfyui = by_path("loom_comfyui", ROOT / "tools" / "comfyui.py").find()
    workflows = by_path("loom_make_workflows", ROOT / "tools" / "make_workflows.py")
    rows = [["page", "frames a second", "median, ms", "99 %, ms", "longest, ms", "tasks over 50 ms", "longest task, ms"]]
    with tempfile.TemporaryDirectory() as home:
        base = Path(home)
        workflows.settle(base)
        (base / "custom_nodes").mkdir(exist_ok=True)
        (base / "custom_nodes" / "loom_bench.py").write_text(NODE)
        with host.Comfy(comfyui, base) as server, sync_playwright() as playwright:
            browser, page = workflows.open_page(playwright, server.url)
            session = page.context.new_cdp_session(page)
            page.evaluate("() => { const node = window.LiteGraph.createNode('TrainLoRA'); window.app.graph.clear(); window.app.graph.add(node); node.id = 1; "
                          "node.widgets.find((w) => w.name === 'name').value = 'bench'; }")
            page.wait_for_timeout(3000)
            page.evaluate(WATCH)
            page.wait_for_timeout(5000)
            rows.append(["idle", *frames(page.evaluate(TAKE))])
            heaps = [heap(session)]
            inputs = {"steps": given.steps, "pause": given.pause, "to": str(base / "told.json"), "name": "bench"}
            server.post("/prompt", {"prompt": {"9": {"class_type": "LoomBench", "inputs": inputs}}})
            page.evaluate(TAKE)
            for part in range(1, 5):
                page.wait_for_function(f"() => ({STEP})() >= {given.steps * part // 4}", timeout=given.steps * 1000)
                found = page.evaluate(TAKE)
                heaps.append(heap(session))
                page.evaluate(TAKE)  # the collection is not the page's
                rows.append([f"steps {given.steps * (part - 1) // 4} to {given.steps * part // 4}", *frames(found)])
            while not (base / "told.json").exists():
                time.sleep(0.2)
            time.sleep(0.5)
            told = json.loads((base / "told.json").read_text())
            browser.close()
            version = server.get("/system_stats")["system"]["comfyui_version"]
    late, idle = ([1000 * seconds for seconds in sorted(told[part])] for part in ("late", "idle"))
    each, step = told["telling"], told["seconds"] / given.steps
    report = [*heading("python bench/live.py", f"ComfyUI {version}"),
              f"**The live panel**, {given.steps:,} steps in {told['seconds']:.0f} s, drawn by Chromium without a GPU on the same machine", table(*rows),
              f"JavaScript heap after a collection, MiB: {heaps[0]:.1f} idle, then {', '.join(f'{h:.1f}' for h in heaps[1:])} after each quarter.",
              f"The server's event loop, asked every 5 ms: late by {statistics.median(late):.1f} ms in the median, "
              f"{late[int(0.999 * len(late))]:.1f} ms at 99.9 %, {late[-1]:.1f} ms at most; "
              f"idle before it {statistics.median(idle):.1f}, {idle[int(0.999 * len(idle))]:.1f} and {idle[-1]:.1f}. "
              f"Python's collections of garbage took {1000 * max(told['collecting'], default=0):.1f} ms at most.",
              f"Telling the page costs a step {1e6 * each:.0f} us: {100 * each / step:.2f} % of these steps, {100 * each / 0.1:.3f} % of one of 100 ms."]
    write(report, given.write)


if __name__ == "__main__":
    main()
