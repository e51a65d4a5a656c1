"""Where ComfyUI is on this machine. Standard library only: it runs before any environment exists."""
from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]  # not resolved: a pack may be linked into custom_nodes
HOW = ("set COMFYUI_PATH to its folder, or install one with `comfy install` (pip install comfy-cli), "
       "or git clone https://github.com/comfyanonymous/ComfyUI into ~/comfy/ComfyUI")


def is_comfyui(folder: Path) -> bool:
    """Whether the folder holds ComfyUI's sources."""
    return (folder / "main.py").is_file() and (folder / "nodes.py").is_file() and (folder / "comfy" / "sd.py").is_file()


def candidates() -> list[Path]:
    """In this order: the ComfyUI whose custom_nodes holds the pack, then comfy-cli's default places."""
    packs = dict.fromkeys([ROOT, ROOT.resolve(), Path(os.environ.get("PWD") or ROOT)])  # PWD keeps links that getcwd resolves
    homes = [pack.parent.parent for pack in packs if pack.parent.name == "custom_nodes"]
    return [*homes, Path.home() / "comfy" / "ComfyUI", Path.home() / "Documents" / "comfy" / "ComfyUI"]


def find() -> Path | None:
    """ComfyUI's folder: COMFYUI_PATH alone where that is set, else the first of `candidates` that is one, else None."""
    given = os.environ.get("COMFYUI_PATH")
    if given:
        folder = Path(given).expanduser().absolute()
        if is_comfyui(folder):
            return folder
        print(f"COMFYUI_PATH is {given!r}, which holds no ComfyUI (main.py, nodes.py, comfy/): set it to ComfyUI's own folder", file=sys.stderr)
        return None
    return next((folder for folder in candidates() if is_comfyui(folder)), None)


if __name__ == "__main__":  # prints the folder; exit code 1 and how to get one where there is none
    found = find()
    print(found if found else f"ComfyUI not found: {HOW}", file=sys.stdout if found else sys.stderr)
    sys.exit(0 if found else 1)
