"""Pictures that many tests train on."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw


@pytest.fixture
def circles(tmp_path: Path) -> Callable[..., Path]:
    """circles(caption, colours, side): a folder of drawn circles with captions beside them; {} in the caption stands for the colour."""

    def draw(caption: str = "a {} circle", colours: tuple[str, ...] = ("red", "green", "blue"), side: int = 64) -> Path:
        folder = tmp_path / f"形 circles {side}"
        folder.mkdir()
        for colour in colours:
            image = Image.new("RGB", (side, side), "white")
            ImageDraw.Draw(image).ellipse((side // 5, side // 4, side * 4 // 5, side * 5 // 6), fill=colour)
            image.save(folder / f"{colour}.png")
            (folder / f"{colour}.txt").write_text(caption.format(colour), encoding="utf-8")
        return folder

    return draw
