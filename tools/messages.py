"""What the server says to the page, found in the sources: every text has its Chinese in web/js/messages.zh.json.

    python tools/messages.py    # texts without Chinese, and Chinese without a text

A text is written as its f-string with the expressions left out: {} for what is put in as it is, {!r} for what is quoted, {:g} for a
number, {is|are} for one of several words. All modules are read that nodes/ imports, however far: what only the command line says is not there.
"""
from __future__ import annotations

import ast
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "web" / "js" / "messages.zh.json"
# Calls whose words are no messages: schemas are in locales/, logs are the console's, patterns and paths are nobody's
SILENT = {"schema", "widget", "output", "info", "warning", "debug", "exception", "compile", "findall", "fullmatch", "sub", "_TIPS"}
# What reads like a message and reaches no page: headers, names and values that stay as they are, prompts for models, the log, ComfyUI's own errors
OTHERS = {
    "private, max-age=31536000, immutable", "private, no-cache", "private, max-age=60", "{} again {}",
    "all linear", "all linear+conv", "as loaded", "Stable Diffusion 1.5", "Stable Diffusion 2.x", "Stable Diffusion 3.x", "folder name",
    "of this node", "aesthetic score", "Trained with LoRA Loom", "{}\nstep {}, seed {}", "a photo of {{}}", "a picture of {{}}", "an image with {{}}",
    "Write a descriptive caption for this image in one paragraph.", "step skipped", "will not fit", "out of memory", "sample failed", "checkpoint failed",
    "state failed",
    "step {}/{}  loss {:.4f}{}  lr {:.2e}  {:.2f} it/s  {:d}:{:02d} left", "  validation {:.4f}", "encoding pictures and captions {}/{}",
    "PEFT has not adapted {}", "no measures", "one a line", "group {}", "none", "no folder",
    "it would have to be recorded too often", "what it is given is not on the device alone, or is trained itself", "{} records nothing",
    "the recording gave other gradients than the network itself", "a layer waits for the device",
    "time_in in_layer out_layer", "vector_in in_layer out_layer", "guidance_in in_layer out_layer",
}
_WORDS = re.compile(r"[A-Za-z']{2,}[,;:]? [a-z(]|[a-z]{2,}[,;:]? (?:\{|[A-Z])|\} [a-z]{2,}|^ ?[a-z]{2,} \{|^an? \w{2,}")
_MOST = 16  # wordings of what stands in a hole


def modules(start: Path = ROOT / "nodes") -> list[Path]:
    """The files of `start` and all that they import of the pack."""
    found, waiting = set(), sorted(start.glob("*.py"))
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = path.parents[node.level - 1].joinpath(*(node.module or "").split(".")) if node.module else path.parents[node.level - 1]
                places = [folder, *(folder / name.name for name in node.names)]
                waiting += [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
    return sorted(found)


def messages(path: Path) -> dict[str, int]:
    """{text: its line} of a module: what LoomError is given, and whatever else reads like words."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    for node in _texts(tree):
        for text in [*filter(_WORDS.search, written(node)), *inside(node)]:
            found.setdefault(text, node.lineno)
    for node in ast.walk(tree):
        choices = _choices(node)
        if any(map(_WORDS.search, choices)) and any(text in found for text in choices):
            found.update(dict.fromkeys((text for text in choices if text and text not in found), node.lineno))
    return found


def _texts(tree: ast.AST) -> Iterator[ast.expr]:
    """Every string that stands by itself, or in a hole of another."""
    quiet: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            quiet.add(id(node.body[0].value))
        called = isinstance(node, ast.Call) and (getattr(node.func, "id", None) or getattr(node.func, "attr", None))
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in SILENT:
            quiet |= {id(child) for child in ast.walk(node)}
        if id(node) in quiet:
            continue
        if called in SILENT:
            quiet |= {id(child) for given in [*node.args, *node.keywords] for child in ast.walk(given)}
        elif isinstance(node, (ast.JoinedStr, ast.Constant)) or isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            if isinstance(node, ast.Constant) and not isinstance(node.value, str) or not any(True for _ in written(node)):
                continue
            quiet |= {id(child) for child in _own(node)}
            yield node


def _own(node: ast.expr) -> Iterator[ast.AST]:
    """What `written` has taken up of a string: its pieces, and not what is in its holes."""
    yield node
    if isinstance(node, ast.JoinedStr):
        for value in node.values:
            yield value
            if isinstance(value, ast.FormattedValue):
                if value.format_spec is not None:
                    yield from ast.walk(value.format_spec)
                if _choices(value.value):
                    yield from ast.walk(value.value)
    elif isinstance(node, ast.BinOp):
        yield from _own(node.left)
        yield from _own(node.right)
    elif _choices(node):
        yield from ast.walk(node)


def written(node: ast.expr) -> Iterator[str]:
    """The string as texts are written here; nothing where it is none."""
    parts = _parts(node)
    if parts is not None and any(not part.startswith("{") for part in parts):
        yield "".join(parts)


def inside(node: ast.expr) -> Iterator[str]:
    """Single words that stand in for something in a hole, as in {found or 'none'}: others are found by themselves."""
    for hole in (value.value for value in ast.walk(node) if isinstance(value, ast.FormattedValue)):
        last = hole.values[-1] if isinstance(hole, ast.BoolOp) else hole.orelse if isinstance(hole, ast.IfExp) and not _choices(hole) else None
        if isinstance(last, ast.Constant) and isinstance(last.value, str) and re.search("[a-z]{2}", last.value):
            yield last.value


def _parts(node: ast.expr) -> list[str] | None:
    if isinstance(node, ast.Constant):
        return [node.value.replace("{", "{{").replace("}", "}}")] if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return [part for value in node.values for part in (_hole(value) if isinstance(value, ast.FormattedValue) else _parts(value))]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _piece(node.left), _piece(node.right)
        return left + right if _parts(node.left) or _parts(node.right) else None
    return None


def _piece(node: ast.expr) -> list[str]:
    choices = _choices(node)
    return ["{" + "|".join(choices) + "}"] if choices else _parts(node) or ["{}"]


def _hole(value: ast.FormattedValue) -> list[str]:
    if value.conversion == ord("r"):
        return ["{!r}"]
    if value.format_spec is not None:
        return ["{:" + "".join(part.value for part in value.format_spec.values) + "}"]
    choices = _choices(value.value)
    return ["{" + "|".join(choices) + "}"] if choices else ["{}"]


def _choices(node: ast.expr) -> list[str]:
    """The texts between which an expression chooses, where it holds no value: 's' * (n != 1), 'is' if n == 1 else 'are'."""
    if isinstance(node, ast.IfExp):
        branches = [_wordings(branch) for branch in (node.body, node.orelse)]
        return list(dict.fromkeys(itertools.chain(*branches)))[:_MOST] if all(branches) else []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and isinstance(node.left, ast.Constant) and isinstance(node.left.value, str):
        return ["", node.left.value]
    return []


def _wordings(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        pieces = [[value.value] if isinstance(value, ast.Constant) else _choices(value.value) for value in node.values]
        return ["".join(words) for words in itertools.product(*pieces)] if all(pieces) else []
    return _choices(node)


def found() -> dict[str, str]:
    """{text: file:line} of all that can reach the page."""
    every: dict[str, str] = {}
    for path in modules():
        for text, line in sorted(messages(path).items(), key=lambda row: row[1]):
            every.setdefault(text, f"{path.relative_to(ROOT).as_posix()}:{line}")
    return {text: place for text, place in every.items() if text not in OTHERS}


if __name__ == "__main__":
    table, texts = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}, found()
    for text, place in texts.items():
        if text not in table:
            print(f"{place}: {json.dumps(text, ensure_ascii=False)}")
    print(*(f"no text any more: {text}" for text in table if text not in texts), sep="\n")
    sys.exit(set(table) != set(texts))
