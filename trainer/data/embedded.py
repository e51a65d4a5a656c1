"""Prompts that picture generators have written into their files: ComfyUI's graph, and the parameters of A1111, Forge and their kin."""
from __future__ import annotations

import json
import re
from typing import Any

_LARGEST = 4_000_000  # characters of a graph that is read
_DEPTH = 50  # links that are followed
_TEXTS = ("text", "text_g", "clip_l", "t5xxl", "prompt", "positive_prompt", "string", "value", "wildcard_text", "populated_text")
_END = re.compile(r"\n(Negative prompt:|Steps: \d)")
_LORAS = re.compile(r"<(?:lora|lyco|hypernet):[^>]*>")


def from_pictures(infos: dict[str, dict[str, Any]]) -> dict[str, str]:
    """{name: prompt} of the pictures whose `info` (Pillow's) holds one."""
    return {name: text for name, info in infos.items() if (text := prompt_of(info))}


def prompt_of(info: dict[str, Any]) -> str:
    """The positive prompt, or ""; damaged or strange data is none."""
    parameters = info.get("parameters") or _user_comment(info.get("exif"))
    if isinstance(parameters, str) and parameters.strip():
        return _a1111(parameters)
    graph = info.get("prompt")
    if isinstance(graph, str) and len(graph) <= _LARGEST:
        try:
            return _comfyui(json.loads(graph))
        except (ValueError, RecursionError):
            pass
    return ""


def _a1111(parameters: str) -> str:
    """What stands before "Negative prompt:" and the line of settings; without LoRA tags, which are no words."""
    text = _END.split("\n" + parameters, maxsplit=1)[0]
    return " ".join(_LORAS.sub("", text).split()).strip(" ,")


def _user_comment(exif: Any) -> str:
    """The EXIF UserComment, where A1111 puts its parameters in JPEG and WebP files."""
    if not isinstance(exif, bytes):
        return ""
    at = exif.find(b"UNICODE\0")
    if at < 0:
        return ""
    raw = exif[at + 8:]
    for encoding in ("utf-16-be", "utf-16-le"):
        text = raw[:len(raw) // 2 * 2].decode(encoding, "ignore").split("\0")[0]
        if "Steps:" in text:
            return text
    return ""


def _comfyui(graph: Any) -> str:
    """The text that reaches the `positive` of the graph's first sampler."""
    if not isinstance(graph, dict):
        return ""
    for node in graph.values():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if not isinstance(inputs, dict):
            continue
        for socket in ("positive", "conditioning", "guider"):
            if isinstance(inputs.get(socket), list) and (socket == "positive" or "Sampler" in str(node.get("class_type"))
                                                         or "Guider" in str(node.get("class_type"))):
                text = _upstream(graph, inputs[socket], 0)
                if text:
                    return text
    return ""


def _upstream(graph: dict, link: Any, depth: int) -> str:
    """The first text found against the direction of the links."""
    node = graph.get(str(link[0])) if isinstance(link, list) and link else None
    inputs = node.get("inputs") if isinstance(node, dict) else None
    if not isinstance(inputs, dict) or depth > _DEPTH:
        return ""
    for name in _TEXTS:
        if isinstance(inputs.get(name), str) and inputs[name].strip():
            return " ".join(inputs[name].split())
    wanted = [name for name in (*_TEXTS, "positive", "conditioning", "conditioning_1") if isinstance(inputs.get(name), list)]
    for name in wanted or [name for name, value in inputs.items() if isinstance(value, list) and name not in ("clip", "model", "vae", "negative", "image")]:
        text = _upstream(graph, inputs[name], depth + 1)
        if text:
            return text
    return ""
