"""Where ComfyUI is, for every test here: `comfy_path` for tests that start a server, `comfy_modules` for those in this process.

Test modules import server.py and pages.py as `loom_host_server` and `loom_host_pages`: ComfyUI has a module `server` of its own.
"""
from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent


def _by_path(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


comfyui = _by_path("loom_tools_comfyui", HERE.parents[1] / "tools" / "comfyui.py")
try:
    _by_path("loom_host_server", HERE / "server.py")
    _by_path("loom_host_pages", HERE / "pages.py")
except ImportError:  # websocket-client comes with the extra `test`; server tests say pytest.importorskip("loom_host_server")
    pass


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.host)


@pytest.fixture(scope="session")
def comfy_path() -> Path:
    """ComfyUI's folder; skips where there is none, and says how to get one."""
    found = comfyui.find()
    if found is None:
        pytest.skip(f"needs a ComfyUI: {comfyui.HOW}")
    return found


@pytest.fixture(scope="session")
def comfy_modules(comfy_path: Path) -> Iterator[ModuleType]:
    """The package `comfy` of that ComfyUI, imported into this process for the CPU. Its folder stays first on sys.path."""
    sys.path.insert(0, str(comfy_path))  # before the working directory, whose `nodes` is ours
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import comfy.options

    before = sys.argv
    comfy.options.enable_args_parsing()
    sys.argv = ["pytest", "--cpu"]
    try:
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = before
        comfy.options.enable_args_parsing(False)
    importlib.import_module("comfy.sd")
    assert Path(comfy.options.__file__).is_relative_to(comfy_path), f"another comfy is imported already: {comfy.options.__file__}"
    yield sys.modules["comfy"]
    sys.path.remove(str(comfy_path))
