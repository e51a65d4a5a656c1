"""The same caption in other words' order: tags shuffled and dropped, so that none is learned by its place or its company."""
from __future__ import annotations

import hashlib
import random
import re

from ..config import DataConfig
from .captions import COMMAS
from .dataset import word_pattern


def wordings(caption: str, trigger_word: str, config: DataConfig, seed: int) -> list[str]:
    """The captions that stand for this one, in `caption_variants` drawings from the seed, likely ones more than once; itself alone where
    nothing is varied.

    The first `keep_tokens` tags and those with the trigger word stay, and stay in front. Tags are what commas part, Chinese ones too.
    """
    tags = [tag for tag in (part.strip() for part in re.split(COMMAS, caption)) if tag]
    if len(tags) < 2 or not (config.shuffle_tags or config.tag_dropout):
        return [caption]
    trigger = word_pattern(trigger_word) if trigger_word else None
    fixed = [i < config.keep_tokens or trigger is not None and trigger.search(tag) is not None for i, tag in enumerate(tags)]
    front = [tag for tag, stays in zip(tags, fixed) if stays]
    loose = [tag for tag, stays in zip(tags, fixed) if not stays]
    found = []
    for number in range(config.caption_variants):
        chance = random.Random(hashlib.sha256(f"{seed}:{caption}:{number}".encode()).digest())
        kept = [tag for tag in loose if chance.random() >= config.tag_dropout]
        if config.shuffle_tags:
            chance.shuffle(kept)
        found.append(", ".join(front + kept))
    return found
