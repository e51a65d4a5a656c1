"""Where things lie: names in widgets are relative to ComfyUI's own folders, never absolute, and never lead out of them."""
from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths

from ..trainer import presets
from ..trainer.data.cache import FOLDER
from ..trainer.errors import LoomError
from ..trainer.names import check_name
from ..trainer.runs import checkpoint, reading
from .schema import NONE

EXAMPLE = "lora_loom_stars"  # the twenty pictures that the example workflow trains on
_ASSETS = Path(__file__).resolve().parents[1] / "assets"
_CAPTIONERS = ("open_clip", "captioners", "LLM")  # LLM is where other packs keep vision-language models too
_DEPTH = 3
_MOST = 2000
_log = logging.getLogger("lora_loom")


def register() -> None:
    """Folders that users may put in extra_model_paths.yaml: `datasets`, `aesthetic`, and those of the captioning models; and theirs for presets."""
    for kind in ("datasets", "aesthetic", *_CAPTIONERS):
        folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))
    presets.add_folder(Path(folder_paths.get_user_directory(), "lora_loom", "presets"))


def bring_example() -> None:
    """The example pictures in ComfyUI's input folder, whole or not at all; a folder of that name is left as it is."""
    target = Path(folder_paths.get_input_directory(), EXAMPLE)
    if os.path.lexists(target) or not (_ASSETS / EXAMPLE).is_dir():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
        try:
            shutil.copytree(_ASSETS / EXAMPLE, temporary / EXAMPLE)
            os.rename(temporary / EXAMPLE, target)
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(temporary)
    except OSError as error:  # a read-only input folder stops no one from training on other pictures
        _log.info("example pictures not copied to input/%s: %s", EXAMPLE, error)


def loras() -> Path:
    """<output>/loras, which ComfyUI itself registers for LoraLoader; else the first registered loras folder."""
    own = os.path.join(folder_paths.get_output_directory(), "loras")
    known = folder_paths.get_folder_paths("loras")
    return Path(own if own in known or not known else known[0])


def lora(name: str) -> Path | None:
    """The LoRA file of that name in a registered loras folder, None for "". LoomError where it is missing."""
    if not name:
        return None
    found = folder_paths.get_full_path("loras", name)
    if found is None:
        raise LoomError(f"init_lora {name!r} is not there: LoRAConfig.init_lora takes a file from ComfyUI's loras folders; copy it there, or choose none",
                        {"init_lora": NONE})
    return Path(found)


def lora_fingerprint(name: str) -> str:
    """Changes with the file of that name; never raises."""
    found = folder_paths.get_full_path("loras", name) if name else None
    with contextlib.suppress(OSError):
        return f"{os.path.getsize(found)} {os.stat(found).st_mtime_ns}" if found else ""
    return "unreadable"


def lora_names() -> list[str]:
    return folder_paths.get_filename_list("loras")


def runs() -> Path:
    return Path(folder_paths.get_output_directory(), "lora_loom")


def cache() -> Path:
    return runs() / FOLDER


def run(name: Any) -> Path:
    """The folder of the run of that name. LoomError for anything else."""
    gone = LoomError(f"run {str(name)[:80]!r} is not there, or has another name by now: choose one of those in the list of runs (GET /lora_loom/runs)")
    if not isinstance(name, str):
        raise gone
    try:
        check_name(name, "run", 240)
    except LoomError:
        raise gone from None
    path = runs() / name
    if not reading.is_run(path) or os.path.realpath(path) != os.path.join(os.path.realpath(runs()), name):
        raise gone
    return path


def run_names() -> list[str]:
    """Names of the runs that can go on, newest first."""
    found = [path.parents[1] for path in runs().glob(f"*/{checkpoint.FILE.as_posix()}")]
    return [run.name for run in sorted(found, key=lambda run: -run.stat().st_mtime)][:_MOST]


def all_run_names() -> list[str]:
    """Names of all runs, newest first."""
    return reading.names(runs())[:_MOST]


def _roots() -> list[tuple[str, Path]]:
    """(prefix of the name, root). Folders in input/ go by their bare name."""
    return [("", Path(folder_paths.get_input_directory()))] + [("datasets/", Path(p)) for p in folder_paths.get_folder_paths("datasets")]


def dataset_names() -> list[str]:
    """Every sub-folder of the roots, three levels deep, in natural order; hidden ones are left out."""
    found: list[str] = []
    for prefix, root in _roots():
        for here, below, _ in os.walk(root):
            inside = Path(here).relative_to(root)
            below[:] = sorted(b for b in below if not b.startswith(".")) if len(inside.parts) < _DEPTH else []
            if inside.parts:
                found.append(prefix + inside.as_posix())
            if len(found) >= _MOST:
                return found
    return list(dict.fromkeys(found))


def dataset(name: str) -> Path:
    """The folder of that name. LoomError where it is missing or leads out of the roots."""
    rule = "LoadDataset.folder takes a folder inside ComfyUI's input folder, or inside a registered datasets folder"
    if not name or not str(name).strip():
        raise LoomError(f"folder is empty: {rule}; make one there, put pictures into it and refresh the page")
    for prefix, root in _roots():
        if not name.startswith(prefix):
            continue
        path = os.path.realpath(root / name[len(prefix):])
        base = os.path.realpath(root)
        with contextlib.suppress(ValueError):  # two drives of Windows have no common path
            if path != base and os.path.commonpath([base, path]) == base and os.path.isdir(path):
                return Path(path)
    raise LoomError(f"folder {name!r} is not there: {rule}; copy it there, or choose another")


@contextlib.contextmanager
def called(path: Path, name: str) -> Iterator[None]:
    """Errors on this folder call it as LoadDataset lists it: where it lies on the server helps nobody on the page."""
    try:
        yield
    except LoomError as error:
        error.args = (str(error).replace(repr(str(path)), repr(name)),)
        raise


def caption_models() -> list[Path]:
    """Where captioning models lie; every method looks in all of them."""
    return [Path(path) for kind in _CAPTIONERS for path in folder_paths.get_folder_paths(kind)]


def clip_folders() -> list[Path]:
    return [Path(p) for p in folder_paths.get_folder_paths("open_clip")]


def measures() -> Path:
    """Where the report remembers what it has measured of pictures."""
    return cache() / "measures"


def aesthetic_heads() -> list[str]:
    """Names of the heads that FilterDataset may take; pickles are not among them."""
    return [name for name in folder_paths.get_filename_list("aesthetic") if name.endswith(".safetensors")]


def aesthetic_head(name: str) -> Path:
    """The head of that name. LoomError where it is missing."""
    found = folder_paths.get_full_path("aesthetic", name)
    if found is None:
        raise LoomError(f"aesthetic_head {name!r} is not there: FilterDataset.aesthetic_head takes a .safetensors file from models/aesthetic; "
                        "copy LAION's head there (as safetensors), or choose none")
    return Path(found)
