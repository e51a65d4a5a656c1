"""YAML that people write and share: plain data out of it, or a LoomError that names the line."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import LoomError


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses aliases, a few lines of which can stand for gigabytes, and a key given twice, where YAML would silently take the last."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not taken, write the value out", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise LoomError(f"key {key.value!r} is given twice, in lines {seen[key.value]} and {key.start_mark.line + 1}: keep one")
            seen[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def text_of(path: Path, called: str = "") -> str:
    """The file's text; `called` is its name in messages."""
    try:
        return path.read_bytes().decode("utf-8-sig")  # Windows' Notepad writes a byte order mark
    except OSError as error:
        raise LoomError(f"{called or path} cannot be read ({error.strerror}): give the path of a YAML file that is there") from None
    except UnicodeDecodeError as error:
        raise LoomError(f"{called or path.name} is not UTF-8 (byte {error.start}): save it as UTF-8 in your editor") from None


def mapping(text: str, called: str, wanted: str) -> dict[str, Any]:
    """What the text holds; `called` is its name in messages, `wanted` what it should be."""
    try:
        tree = yaml.load(text, _Loader)
    except LoomError as error:
        raise LoomError(f"{called}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        hint = "; in double quotes a backslash starts an escape: write Windows paths with / or in single quotes" if "escape" in str(error) else ""
        raise LoomError(f"{called} is not YAML{line}: {getattr(error, 'problem', None) or error}{hint}. It must hold {wanted}") from None
    except (ValueError, OverflowError, RecursionError) as error:  # dates and numbers that are none
        raise LoomError(f"{called} holds a value that is none ({error}): put it in quotes if it is meant as text") from None
    if not isinstance(tree, dict):
        raise LoomError(f"{called} holds {str(tree)[:80]!r}: it must hold {wanted}")
    return tree
