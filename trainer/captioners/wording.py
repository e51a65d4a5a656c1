"""How what a method says becomes a caption: replacements, bans, prefix and suffix, and the caption that is there already.

Tags are lists, joined with commas; texts are sentences, and stay sentences.
"""
from __future__ import annotations

import re
from dataclasses import dataclass

from ..data.folder import word_pattern
from ..errors import LoomError

Tag = tuple[str, float]  # a tag and how sure the method is of it
EXISTING = ("keep", "replace", "append")
_ENDS = (".", "!", "?", ":", ";", "\u3002", "\uff01", "\uff1f", "\uff1a", "\uff1b")
_SENTENCE = re.compile(r".+?(?:[.!?](?=\s|$)|[\u3002\uff01\uff1f]|$)\s*", re.DOTALL)
_EDGES = " ,\n\uff0c\u3001"
_COMMA = re.compile("[,\uff0c\u3001]")  # Chinese ones part tags too


def parse_ban(text: str) -> tuple[str, ...]:
    """Words or phrases from lines and commas; * stands for anything."""
    return tuple(" ".join(part.split()) for part in re.split(r"[,\n\uff0c\u3001]", text) if part.strip())


def parse_replace(text: str) -> tuple[tuple[str, str], ...]:
    """(old, new) from lines `old => new`; an empty new removes. Raises LoomError for other lines."""
    pairs = []
    for line in text.splitlines():
        old, arrow, new = (" ".join(part.split()) for part in line.replace("\uff1d\uff1e", "=>").partition("=>"))
        if not line.strip():
            continue
        if not arrow or not old:
            raise LoomError(f"replace has the line {line.strip()[:80]!r}, which is no replacement: write one a line, as in grey => gray")
        pairs.append((old, new))
    return tuple(pairs)


@dataclass(frozen=True)
class Wording:
    """What holds for every method. Raises LoomError for a value out of its range."""

    prefix: str = ""
    suffix: str = ""
    existing: str = "keep"
    max_tags: int = 8
    ban: tuple[str, ...] = ()
    replace: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.existing not in EXISTING:
            raise LoomError(f"existing {self.existing!r} is unknown: AutoCaption.existing is one of {', '.join(EXISTING)}")
        if isinstance(self.max_tags, bool) or not isinstance(self.max_tags, int) or not 1 <= self.max_tags <= 1000:
            raise LoomError(f"max_tags {self.max_tags!r} is not a whole number from 1 to 1000: AutoCaption.max_tags takes 1 to 1000")

    def words(self, found: str | list[Tag]) -> list[Tag] | str:
        """What the method found, replaced and without what is banned; of tags each once, in order."""
        return self._sentences(found) if isinstance(found, str) else self._tags(found)

    def caption(self, words: str | list[Tag], there: str) -> str:
        """prefix, the caption that is there (where it is appended to), the words, suffix; what is said already is not said again."""
        prefix, suffix = self.prefix.strip(_EDGES), self.suffix.strip(_EDGES)
        there = there.strip(_EDGES) if self.existing == "append" or not words else ""
        new = _new_sentences(words, there) if isinstance(words, str) else self._best(words, (prefix, there, suffix))
        # Appending twice must not repeat them; they may be comma lists themselves, so whole parts are compared.
        return join("" if _begins(there, prefix) else prefix, there, new, "" if _ends(there, suffix) else suffix)

    def _tags(self, found: list[Tag]) -> list[Tag]:
        changes = {old.casefold(): new for old, new in self.replace}
        banned = [re.compile(re.escape(ban).replace(r"\*", ".*"), re.IGNORECASE) for ban in self.ban]  # whole tags
        kept: dict[str, Tag] = {}
        for tag, score in found:
            for word in (" ".join(part.split()) for part in _COMMA.split(changes.get(tag.casefold(), tag))):
                if word and not any(ban.fullmatch(word) for ban in banned):
                    kept.setdefault(word.casefold(), (word, score))
        return list(kept.values())

    def _sentences(self, text: str) -> str:
        for old, new in self.replace:
            text = word_pattern(old).sub(lambda _, new=new: new, text)
        text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))
        banned = [word_pattern(ban) for ban in self.ban]
        kept = [sentence for sentence in _SENTENCE.findall(text) if not any(ban.search(sentence) for ban in banned)]
        return "".join(kept).strip(_EDGES)

    def _best(self, tags: list[Tag], around: tuple[str, ...]) -> str:
        said = {part.strip().casefold() for text in around for part in _COMMA.split(text)}
        new = [row for row in tags if row[0].casefold() not in said]
        best = sorted(range(len(new)), key=lambda index: -new[index][1])[:self.max_tags]
        return ", ".join(new[index][0] for index in sorted(best))


def join(*parts: str) -> str:
    """The parts that are not empty, with commas between them; after the end of a sentence with a space alone."""
    text = ""
    for part in parts:
        if part:
            text += part if not text else f" {part}" if text.endswith(_ENDS) else f", {part}"
    return text


def _new_sentences(text: str, there: str) -> str:
    return "".join(sentence for sentence in _SENTENCE.findall(text) if sentence.strip().casefold() not in there.casefold()).strip()


def _begins(text: str, part: str) -> bool:
    return bool(re.match(re.escape(part) + (r"(\s|$)" if part.endswith(_ENDS) else r"\s*([,\uff0c]|$)"), text, re.IGNORECASE))


def _ends(text: str, part: str) -> bool:
    before = "|".join(map(re.escape, _ENDS))
    return not part or bool(re.search(rf"(^|[,\uff0c]|{before})\s*{re.escape(part)}$", text, re.IGNORECASE))
