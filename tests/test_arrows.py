"""The house's arrows (which part may import which), read from the sources: a new file is held to them from its first line."""
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for folder in ("trainer", "nodes") for p in (ROOT / folder).rglob("*.py")) + [ROOT / "__init__.py"]
NAMES = {path: path.relative_to(ROOT).as_posix() for path in FILES}

COMFYUI = {"comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras", "app", "api_server", "cuda_malloc",
           "execution", "folder_paths", "latent_preview", "main", "middleware", "node_helpers", "nodes", "protocol", "server", "utils"}
COMFY_BACKBONE = {f"trainer/backbones/comfy{kind}.py" for kind in ("", "_flow", "_toy", "_resident", "_shapes")}  # the only importers of comfy.* in trainer/
OWN = {"lora_loom", "trainer", "tests", "tools", "bench", "web"}  # the pack's own folders, which ComfyUI or pip may call anything
SERVER_DRIVER = "trainer/toy/demo_server.py"  # drives a ComfyUI server for `make demo`: the single exception to the two rules it is named in

BANNED_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "pip", "ensurepip", "runpy", "pty", "code", "requests", "httpx",
                  "urllib3", "ftplib", "telnetlib", "smtplib", "xmlrpc", "wget", "gdown", "huggingface_hub", "torch.hub"}
DRIVER_MODULES = {"subprocess", "multiprocessing", "socket", "ssl", "http", "http.client", "http.server", "urllib.request", "urllib.error",
                  "websocket", "websockets", "asyncio.subprocess"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.startfile", "torch.load", "torch.hub.load", "torch.save",
                "numpy.load", "np.load", "aiohttp.ClientSession", "aiohttp.request", "torch.hub.load_state_dict_from_url", "yaml.unsafe_load",
                "yaml.full_load", "importlib.reload"}


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path):
    """[(line, absolute name inside or outside the pack, is it relative?)]; `from . import x` of trainer/job.py is trainer.x."""
    package = path.relative_to(ROOT).parent.parts
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[:len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found += [(node.lineno, f"{module}.{alias.name}".strip("."), bool(node.level)) for alias in node.names]
    return found


def outside(path):
    return [(line, name) for line, name, relative in imports(path) if not relative]


def inside(path):
    return [(line, name) for line, name, relative in imports(path) if relative]


def offences(rows, wrong):
    return [f"line {line}: {name}" for line, name in rows if wrong(name)]


def under(name, *prefixes):
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def calls(path):
    """[(line, dotted name of what is called)]"""
    return [(node.lineno, ast.unparse(node.func)) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", FILES, ids=NAMES.get)
def test_only_relative_imports_inside_the_pack(path):
    assert offences(outside(path), lambda name: under(name, *OWN)) == []
    own_nodes = [f"nodes.{p.stem}" for p in (ROOT / "nodes").glob("*.py")]  # `nodes` alone is ComfyUI's own module
    assert offences(outside(path), lambda name: under(name, *own_nodes)) == []


@pytest.mark.parametrize("path", [p for p in FILES if NAMES[p].startswith("trainer/")], ids=NAMES.get)
def test_the_trainer_knows_no_canvas(path):
    assert offences(inside(path), lambda name: not under(name, "trainer")) == []
    if NAMES[path] in COMFY_BACKBONE:
        assert offences(outside(path), lambda name: name.split(".")[0] in COMFYUI - {"comfy"}) == []
    else:
        assert offences(outside(path), lambda name: name.split(".")[0] in COMFYUI) == []


@pytest.mark.parametrize("path", [p for p in FILES if NAMES[p].startswith("nodes/")], ids=NAMES.get)
def test_comfy_api_has_one_door(path):
    if NAMES[path] != "nodes/schema.py":
        assert offences(outside(path), lambda name: under(name, "comfy_api")) == []


# What each part of the trainer may import of the trainer; the arrows of the design, from top to bottom.
BOTTOM = ("trainer.errors", "trainer.files", "trainer.names", "trainer.devices", "trainer.config", "trainer.hooks", "trainer.backbones.protocol", "trainer.backbones.families",
          "trainer.layers")
MIDDLE = ("trainer.loss", "trainer.optim", "trainer.adapters", "trainer.runs", "trainer.data")
ARROWS = {
    "trainer/errors.py": (),
    "trainer/files.py": (),
    "trainer/config.py": ("trainer.errors", "trainer.names"),
    "trainer/names.py": ("trainer.errors",),
    "trainer/devices.py": ("trainer.errors",),
    "trainer/hooks.py": (),
    "trainer/layers/": ("trainer.layers", "trainer.errors"),
    "trainer/loss.py": BOTTOM,
    "trainer/optim.py": (*BOTTOM, "trainer.adapters"),
    "trainer/adapters.py": (*BOTTOM, "trainer.adapter_kinds", "trainer.adapter_layers"),
    "trainer/adapter_kinds.py": (*BOTTOM, "trainer.adapter_layers"),
    "trainer/adapter_layers.py": BOTTOM,
    "trainer/objective.py": (*BOTTOM, "trainer.loss", "trainer.adapters"),
    "trainer/state.py": (*BOTTOM, "trainer.optim", "trainer.adapters"),
    "trainer/validation.py": (*BOTTOM, "trainer.objective", "trainer.adapters", "trainer.data"),
    "trainer/fitting.py": (),
    "trainer/compiling.py": ("trainer.hooks", "trainer.layers"),
    "trainer/recording.py": ("trainer.hooks", "trainer.layers"),
    "trainer/loop.py": (*BOTTOM, "trainer.optim", "trainer.objective", "trainer.state"),
    "trainer/job.py": (*BOTTOM, *MIDDLE, "trainer.attempts", "trainer.objective", "trainer.state", "trainer.validation"),
    "trainer/attempts.py": (*BOTTOM, *MIDDLE, "trainer.loop", "trainer.objective", "trainer.state", "trainer.validation", "trainer.fitting",
                            "trainer.samples", "trainer.estimate", "trainer.compiling", "trainer.recording"),
    "trainer/estimate.py": (*BOTTOM, "trainer.data", "trainer.fitting", "trainer.objective", "trainer.optim", "trainer.state"),
    "trainer/light.py": (*BOTTOM, "trainer.adapters", "trainer.estimate", "trainer.objective", "trainer.optim", "trainer.runs.export"),
    "trainer/samples.py": (*BOTTOM, "trainer.adapters", "trainer.data", "trainer.runs.logs", "trainer.state"),
    "trainer/presets/": (*BOTTOM, "trainer.yaml_text"),
    "trainer/data/": (*BOTTOM, "trainer.data"),
    "trainer/captioners/": (*BOTTOM, "trainer.data", "trainer.captioners"),
    "trainer/runs/": (*BOTTOM, "trainer.runs", "trainer.adapters", "trainer.data", "trainer.state"),
    "trainer/yaml_config.py": (*BOTTOM, "trainer.presets", "trainer.yaml_text", "trainer.yaml_values", "trainer.data.augment"),
    "trainer/yaml_text.py": ("trainer.errors",),
    "trainer/yaml_values.py": (*BOTTOM, "trainer.presets", "trainer.data.captions", "trainer.data.masks"),
    "trainer/backbones/protocol.py": ("trainer.backbones.families", "trainer.errors", "trainer.layers.frozen", "trainer.layers.compiled",
                                      "trainer.layers.recorded"),
    "trainer/backbones/families.py": (),
    "trainer/backbones/": (*BOTTOM, "trainer.backbones", "trainer.toy.arch", "trainer.toy.tokens"),
}


def arrows_of(name):
    """The most particular row for a file: its own, else its folder's."""
    return max((key for key in ARROWS if name == key or key.endswith("/") and name.startswith(key)), key=len, default=None)


@pytest.mark.parametrize("path", [p for p in FILES if arrows_of(NAMES[p])], ids=NAMES.get)
def test_arrows_point_one_way(path):
    allowed = ARROWS[arrows_of(NAMES[path])]
    assert offences(inside(path), lambda name: not under(name, *allowed)) == []


@pytest.mark.parametrize("name", ["trainer/job.py", "trainer/attempts.py", "trainer/loop.py"])
def test_job_and_loop_are_handed_their_backbone(name):
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} does not exist yet")
    known = ("trainer.backbones.protocol", "trainer.backbones.families",
          "trainer.layers")
    assert offences(inside(path), lambda n: under(n, "trainer.backbones") and not under(n, *known)) == []


def test_the_door_imports_the_nodes_only_when_asked():
    tree = tree_of(ROOT / "__init__.py")
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert top == []
    [entry] = [node for node in tree.body if isinstance(node, ast.AsyncFunctionDef)]
    assert entry.name == "comfy_entrypoint"
    assert len(imports(ROOT / "__init__.py")) == sum(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(entry))


@pytest.mark.parametrize("path", FILES, ids=NAMES.get)
def test_no_pickle_no_network_no_processes(path):
    modules = BANNED_MODULES | (set() if NAMES[path] == SERVER_DRIVER else DRIVER_MODULES)
    assert offences(outside(path), lambda name: under(name, *modules)) == []
    assert offences(calls(path), lambda name: name in BANNED_CALLS or name.split(".")[-1] in ("hf_hub_download", "snapshot_download")) == []
    if NAMES[path] != SERVER_DRIVER:
        assert offences(calls(path), lambda name: re.match(r"(os\.(exec|spawn|fork|posix_spawn)|asyncio\.create_subprocess)", name)) == []


@pytest.mark.parametrize("source, caught", [
    ("import comfy.utils", True), ("from comfy import utils", True), ("import comforting", False), ("def f():\n    import nodes", True),
    ("from . import errors", False),
])
def test_the_reader_of_imports_sees_what_it_must(tmp_path, monkeypatch, source, caught):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "trainer").mkdir()
    path = tmp_path / "trainer" / "x.py"
    path.write_text(source)
    assert bool(offences(outside(path), lambda name: name.split(".")[0] in COMFYUI)) == caught


def test_relative_imports_are_resolved(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "trainer" / "data").mkdir(parents=True)
    path = tmp_path / "trainer" / "data" / "x.py"
    path.write_text("from . import a\nfrom ..errors import LoomError\nfrom ...nodes import b\n")
    assert [name for _, name in inside(path)] == ["trainer.data.a", "trainer.errors.LoomError", "nodes.b"]


def test_requirements_are_the_packs_dependencies():
    """ComfyUI-Manager reads requirements.txt, pip and the registry read pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert re.findall(r'"(.+?)"', listed) == [line for line in lines if line and not line.startswith("#")]
    assert not any(line.startswith("torch") for line in lines)


def test_packages_are_named_one_by_one():
    """setuptools finds nothing by itself in this layout: a folder that is not named is not installed."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = set(re.findall(r'"(lora_loom[\w.]*)"', re.search(r"^packages = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]))
    folders = {".".join(("lora_loom", *p.relative_to(ROOT).parent.parts)) for p in FILES if p.name == "__init__.py"}
    assert named == folders
