"""What may be wrong with the captions: missing, all the same, without the trigger word, too long; and too few pictures."""
from __future__ import annotations

from collections.abc import Iterator

from .findings import Finding, Seen, pictures_
from .folder import word_pattern
from .words import is_common

SAME = 3  # pictures with one caption: two may well show the same
MANY = 3  # times what the preset is made for
USUAL = (10, 30)  # pictures that suit a character, an object or a style


def missing(seen: Seen) -> Iterator[Finding]:
    dataset = seen.dataset
    found = tuple((p.name, "") for p in dataset.pictures if not p.caption.strip())
    if found:
        taught = f"the trigger word {dataset.trigger_word!r} alone" if dataset.trigger_word else "an empty caption"
        remedy = "write captions for what should be able to change" if dataset.trigger_word else "write captions, or give a trigger word"
        yield Finding("no_caption", "warning", f"{pictures_(len(found))} of {len(dataset.pictures)} {'has' if len(found) == 1 else 'have'} no caption, "
                      f"trained with {taught}: {remedy}", found, {"n": len(found), "of": len(dataset.pictures), "trigger": dataset.trigger_word})


def identical(seen: Seen) -> Iterator[Finding]:
    groups: dict[str, list[str]] = {}
    for picture in seen.dataset.pictures:
        if picture.caption.strip():
            groups.setdefault(" ".join(picture.caption.split()).casefold(), []).append(picture.name)
    groups = {caption: names for caption, names in groups.items() if len(names) >= SAME}
    count = sum(map(len, groups.values()))
    if groups:
        yield Finding("same_caption", "warning", f"{pictures_(count)} share their caption with others: whatever differs between them cannot be told "
                      "apart by words; caption what each one shows", tuple((name, caption[:60]) for caption, names in groups.items() for name in names),
                      {"n": count, "captions": len(groups)})


def trigger(seen: Seen) -> Iterator[Finding]:
    dataset = seen.dataset
    if not dataset.trigger_word:
        yield Finding("no_trigger", "note", "no trigger word: the LoRA is called by its captions' words alone; "
                      "give a rare one, such as zxmug, for a subject of its own")
        return
    pattern = word_pattern(dataset.trigger_word)
    found = tuple((p.name, p.caption[:60]) for p in dataset.pictures if p.caption.strip() and not pattern.search(p.caption))
    if found:
        yield Finding("without_trigger", "note", f"{pictures_(len(found))} lack{'s' * (len(found) == 1)} the trigger word {dataset.trigger_word!r} "
                      "in the caption: it is put in front; write it where it belongs for better sentences", found,
                      {"n": len(found), "trigger": dataset.trigger_word})
    if is_common(dataset.trigger_word):
        yield Finding("common_trigger", "note", f"trigger word {dataset.trigger_word!r} is a word that models know: what they know of it mixes in, "
                      "and it changes for other prompts too; a rare one, such as zxmug, keeps them apart", (), {"trigger": dataset.trigger_word})


def long_captions(seen: Seen) -> Iterator[Finding]:
    """Captions over a text encoder's limit; where one reads them whole, those that read in parts do not matter much."""
    encoders = [one for one in seen.training.encoders if not one.windows] or list(seen.training.encoders)
    captions = {p.name: seen.dataset.caption(p) for p in seen.dataset.pictures}
    texts = list(dict.fromkeys(captions.values()))
    said_of: list[tuple] = []
    for encoder in encoders:
        counts = dict(zip(texts, encoder.count(texts)))
        rows = sorted(((name, counts[text]) for name, text in captions.items() if counts[text] > encoder.limit), key=lambda row: -row[1])
        found = tuple((name, f"{count} tokens") for name, count in rows)
        if not found or found in said_of:
            continue  # SDXL's two encoders share their tokens
        said_of.append(found)
        most = max(counts.values())
        parts = -(-most // encoder.limit)
        said = (f"each is read in up to {parts} parts that do not see each other, as ComfyUI reads long prompts (other programs cut there); "
                "put what matters first, or shorten" if encoder.windows else "nothing is cut, but the model was hardly trained on texts as long; shorten")
        yield Finding("long_captions", "warning" if encoder.windows else "note",
                      f"{pictures_(len(found))} {'has a caption' if len(found) == 1 else 'have captions'} "
                      f"above the {encoder.limit} tokens that {encoder.name} reads at once, up to {most}: {said}", found,
                      {"n": len(found), "limit": encoder.limit, "encoder": encoder.name, "most": most, "windows": encoder.windows, "parts": parts})


def how_many(seen: Seen) -> Iterator[Finding]:
    count, known = len(seen.dataset.pictures), any(seen.training.pictures)
    low, high = seen.training.pictures if known else USUAL
    wanted = f"{'the preset is made for' if known else 'most subjects want'} {low} to {high}"
    values = {"n": count, "low": low, "high": high, "known": known}
    if count < low:
        yield Finding("few_pictures", "warning" if known else "note", f"{pictures_(count, True)} few: {wanted}; "
                      "fewer are learned by heart, so add some or train fewer steps", (), values)
    elif known and count > MANY * high:
        yield Finding("many_pictures", "note", f"{pictures_(count, True)} many: {wanted}; raise steps, so that each is seen often enough", (), values)
