"""Which pictures look like another one: rescaled, saved again, a little cropped, brighter or mirrored. Knows measures, no files."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .quality import Measures

HAMMING = 10  # of 64 bits: unrelated photos differ in 32, give or take 4; the same one saved again, in 0 to 10
ALIKE = 0.94  # correlation of the colours: half size, JPEG and brightness gave 0.95 and more, stars drawn alike in other colours up to 0.91
_LIGHTER = 64  # of 255: how far the mean colours may be apart, for plain areas correlate with any other
_PLAIN = 4.0  # variance that counts as none
_ROWS = 256  # compared at once with all others


@dataclass(frozen=True)
class Copy:
    """Number `index` looks like number `of`."""

    index: int
    of: int
    mirrored: bool


def find_copies(measures: Sequence[Measures], order: Sequence[int] | None = None, poll: Callable[[], object] | None = None) -> list[Copy]:
    """Each picture that looks like one before it in `order` (best first), which is no copy itself: no chain leads to what looks different.

    Hashes within HAMMING bits of each other, confirmed by the colours of the thumbnails. 10,000 pictures take a few seconds.
    """
    order = np.arange(len(measures)) if order is None else np.asarray(order, dtype=int)
    if len(order) < 2:
        return []
    look, mirrored = (_signs([getattr(measures[i], name) for i in order]) for name in ("look", "mirrored"))
    colours = np.stack([np.frombuffer(bytes.fromhex(measures[i].thumbnail), np.uint8) for i in order]).reshape(len(order), 8, 8, 3).astype(np.float32)
    flipped = colours[:, :, ::-1].reshape(len(order), -1)
    colours = colours.reshape(len(order), -1)
    taken, found = np.zeros(len(order), bool), []
    for start in range(0, len(order), _ROWS):
        if poll is not None:
            poll()
        rows = slice(start, start + _ROWS)
        near = [look[rows] @ others[start:].T >= 64 - 2 * HAMMING for others in (look, mirrored)]
        for row in range(len(near[0])):
            first = start + row
            for turned, (close, theirs) in enumerate(zip(near, (colours, flipped))):
                if taken[first]:
                    break
                others = np.flatnonzero(close[row, row + 1:]) + first + 1
                others = others[~taken[others]]
                others = others[_same(colours[first], theirs[others])] if len(others) else others
                taken[others] = True
                found += [Copy(int(order[i]), int(order[first]), bool(turned)) for i in others]
    return found


def _signs(hashes: list[int]) -> np.ndarray:
    """(N, 64) of 1 and -1: the product of two rows is 64 less twice their Hamming distance."""
    bits = np.unpackbits(np.array(hashes, dtype=">u8").view(np.uint8).reshape(-1, 8), axis=1)
    return bits.astype(np.float32) * 2 - 1


def _same(colours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of `others` (N, 192) have the colours at the same places, brighter or darker alike."""
    one, rest = colours - colours.mean(), others - others.mean(1, keepdims=True)
    plain = _PLAIN * len(colours)
    alike = (rest @ one + plain) / np.sqrt((one @ one + plain) * ((rest * rest).sum(1) + plain))
    return (alike >= ALIKE) & (np.abs(others - colours).mean(1) <= _LIGHTER)
