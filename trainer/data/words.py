"""Which words are common, by the vocabulary of CLIP that comes with open_clip: its pairs are in the order of how often they were met."""
from __future__ import annotations

import functools
import gzip
import importlib.util
import re
from pathlib import Path

_FILE = "bpe_simple_vocab_16e6.txt.gz"
# Of 48,894 pairs. "dragon" is 5,000th or so, "astronaut" 18,000th, "sks", which DreamBooth took for its rarity, 47,000th.
_COMMON = 40_000


@functools.cache
def common_words() -> frozenset[str]:
    """Words that CLIP reads as one token and has met often; none where open_clip is not installed."""
    spec = importlib.util.find_spec("open_clip")
    for home in (spec.submodule_search_locations if spec else None) or ():
        path = Path(home, _FILE)
        if path.is_file():
            lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1:_COMMON]
            return frozenset(pair.replace(" ", "")[:-len("</w>")] for pair in lines if pair.endswith("</w>"))
    return frozenset()


def is_common(phrase: str) -> bool:
    """Whether it is made of common words alone."""
    words = re.findall(r"[^\W_]+", phrase.casefold())
    return bool(words) and all(word in common_words() for word in words)
