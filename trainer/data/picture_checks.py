"""What may be wrong with the pictures themselves: files, sizes, copies, blur, exposure, cropping."""
from __future__ import annotations

import re
from collections.abc import Iterator

from .duplicates import find_copies
from .findings import Finding, Seen, cropped, pictures_

# At an area of 512x512, 267 photos, drawings and renderings gave 0.10 to 0.50, skimage.data.clock, which moved while it was taken, 0.70,
# and all of them under a Gaussian blur of 3 pixels 0.53 to 0.88.
BLURRED = 0.52
DARK, BRIGHT = 64, 192  # 99 % of all values below, or above, shows little of a subject
FLAT = 48  # of 255 between the darkest and the brightest hundredth, in the channel where they are farthest apart
CLIPPED = 0.5  # of all pixels quite black or quite white
CROPPED = 0.2  # of the area
FAR_SMALLER = 0.5  # of the area that the resolution asks for

_SMALL, _CAPTIONLESS = re.compile("is below min_size"), re.compile("have no caption and are trained with")
FILTERED = "Filter Dataset: "  # what filters.py puts before its reasons


def left_out(seen: Seen) -> Iterator[Finding]:
    rows = seen.dataset.left_out
    filtered = tuple((name, why.removeprefix(FILTERED)) for name, why in rows if why.startswith(FILTERED))
    small = tuple((name, why) for name, why in rows if _SMALL.search(why) and not why.startswith(FILTERED))
    broken = tuple(row for row in rows if row not in small and not row[1].startswith(FILTERED))
    broken += tuple((name, look.error) for name, look in seen.looks.items() if look.error)
    if broken:
        yield Finding("broken", "error", f"{len(broken)} file{'s' * (len(broken) != 1)} cannot be used: replace by intact ones, or take them out of the folder",
                      broken, {"n": len(broken)})
    if small:
        yield Finding("too_small", "warning", f"{pictures_(len(small), True)} left out as too small: min_size {seen.dataset.min_size} is the least that the "
                      "shorter side may have; add larger ones, or lower min_size", small, {"n": len(small), "min_size": seen.dataset.min_size})
    if filtered:
        yield Finding("filtered", "note", f"{pictures_(len(filtered), True)} left out by a filter, not deleted", filtered, {"n": len(filtered)})


def reading(seen: Seen) -> Iterator[Finding]:
    """What the reader of the folder has said; of missing captions there is a check of its own."""
    for warning in seen.dataset.warnings:
        if not _CAPTIONLESS.search(warning):
            yield Finding("reading", "warning", warning)


def small(seen: Seen) -> Iterator[Finding]:
    """Pictures that are enlarged, or that reach a smaller bucket than the others."""
    enlarged, smaller, far = [], [], 0
    for picture in seen.dataset.pictures:
        (width, height), full = seen.sizes[picture.name], seen.full_size(picture)
        detail = f"{picture.width}x{picture.height}, trained at {width}x{height}"
        if width > picture.width or height > picture.height:
            enlarged.append((picture.name, detail))
        elif width * height < full[0] * full[1]:
            smaller.append((picture.name, detail))
            far += width * height < FAR_SMALLER * full[0] * full[1]
    resolution = seen.dataset.resolution
    if enlarged:
        yield Finding("enlarged", "warning", f"{pictures_(len(enlarged), True)} enlarged, which teaches blur: {resolution}x{resolution} asks for more "
                      "than they have; add larger ones, or raise min_size to leave them out", tuple(enlarged), {"n": len(enlarged), "resolution": resolution})
    if smaller:
        yield Finding("smaller", "warning" if far else "note", f"{pictures_(len(smaller), True)} trained smaller than {resolution}x{resolution}: "
                      "nothing is enlarged; for finer detail add larger ones, or lower the resolution for all", tuple(smaller),
                      {"n": len(smaller), "resolution": resolution})


def copies(seen: Seen) -> Iterator[Finding]:
    """The same file twice, the same picture twice, and mirror images."""
    first: dict[str, str] = {}
    same = [(name, f"as {first[look.digest]}") for name, look in seen.looks.items() if look.digest and first.setdefault(look.digest, name) != name]
    if same:
        yield Finding("copies", "warning", f"{pictures_(len(same), True)} the same file as another: it counts twice, and is soon learned by heart; "
                      "take copies out and set repeats instead", tuple(same), {"n": len(same)})
    alike, mirrored = near_copies(seen)
    if alike:
        yield Finding("alike", "warning", f"{pictures_(len(alike))} look{'s' * (len(alike) == 1)} almost like another (rescaled, saved again "
                      "or a little changed): it counts twice; keep the best of each", tuple(alike.items()), {"n": len(alike)})
    if mirrored:
        flip = seen.dataset.flip
        yield Finding("mirrored", "warning" if flip else "note", f"{pictures_(len(mirrored), True)} the mirror image of another"
                      + (", and flip makes them once more: take them out, or turn flip off" if flip else ": flip does that without files"),
                      tuple(mirrored.items()), {"n": len(mirrored), "flip": flip})


def near_copies(seen: Seen) -> tuple[dict[str, str], dict[str, str]]:
    """({name: what it looks like}, the same of mirror images); of each the largest is kept. Copies of whole files are not among them."""
    once: dict[str, tuple] = {}
    for picture, measures in seen.measured():
        once.setdefault(seen.looks[picture.name].digest, (picture, measures))
    rows = list(once.values())
    order = sorted(range(len(rows)), key=lambda i: -rows[i][0].width * rows[i][0].height)
    found: tuple[dict[str, str], dict[str, str]] = {}, {}
    for copy in find_copies([measures for _, measures in rows], order):
        found[copy.mirrored][rows[copy.index][0].name] = f"like {rows[copy.of][0].name}"
    return found


def blurred(seen: Seen) -> Iterator[Finding]:
    found = sorted(((p.name, m.blur) for p, m in seen.measured() if m.blur is not None and m.blur >= BLURRED), key=lambda row: -row[1])
    if found:
        yield Finding("blurred", "warning", f"{pictures_(len(found), True)} blurred ({BLURRED:g} or more on a scale to 1) even where sharpest: "
                      "the LoRA learns the blur; replace by sharp ones", tuple((name, f"{blur:.2f}") for name, blur in found), {"n": len(found)})


def exposure(seen: Seen) -> Iterator[Finding]:
    rows = list(seen.measured())
    dark = {p.name: f"99 % below {m.bright} of 255" for p, m in rows if m.bright < DARK}
    bright = {p.name: f"99 % above {m.dark} of 255" for p, m in rows if m.dark > BRIGHT}
    flat = {p.name: f"{m.contrast} of 255" for p, m in rows if m.contrast < FLAT and p.name not in {**dark, **bright}}
    clipped = {p.name: f"{m.black:.0%} black, {m.white:.0%} white" for p, m in rows
               if m.black + m.white > CLIPPED and p.name not in {**dark, **bright, **flat}}
    for id_, severity, found, said in (
            ("dark", "warning", dark, "nearly black: little can be learned from them; brighten or replace them"),
            ("bright", "warning", bright, "nearly white: little can be learned from them; darken or replace them"),
            ("flat", "warning", flat, "almost without contrast: the LoRA learns a grey look; raise their contrast or replace them"),
            ("clipped", "note", clipped, "for the most part pure black or white: good for a plain background, else badly exposed")):
        if found:
            yield Finding(id_, severity, f"{pictures_(len(found), True)} {said}", tuple(found.items()), {"n": len(found)})


def cropping(seen: Seen) -> Iterator[Finding]:
    rows = [(p, cropped(p, seen.sizes[p.name])) for p in seen.dataset.pictures]
    found = sorted(((p, share) for p, share in rows if share > CROPPED), key=lambda row: -row[1])
    if found:
        buckets = seen.dataset.buckets
        advice = "crop them by hand around what matters" if buckets else "turn buckets on, or crop them by hand"
        detail = lambda p, share: (p.name, f"{share:.0%}, {p.width}x{p.height} to {'x'.join(map(str, seen.sizes[p.name]))}")
        yield Finding("cropped", "warning", f"{pictures_(len(found))} lose{'s' * (len(found) == 1)} more than {CROPPED:.0%} to the crop to the centre"
                      f"{', for buckets reach from 1:2 to 2:1' if buckets else ''}: {advice}", tuple(detail(*row) for row in found),
                      {"n": len(found), "buckets": buckets})


def batches(seen: Seen) -> Iterator[Finding]:
    """Buckets that cannot fill a batch, in an epoch with all its repeats."""
    times, size = seen.dataset.repeats * (2 if seen.dataset.flip else 1), seen.training.batch_size
    names: dict[tuple[int, int], list[str]] = {}
    counts: dict[tuple[int, int], int] = {}
    for picture in seen.dataset.pictures:
        for bucket in seen.dataset.sizes(picture, seen.multiple):
            names.setdefault(bucket, []).append(picture.name)
            counts[bucket] = counts.get(bucket, 0) + picture.repeats * times
    short = {bucket: found for bucket, found in names.items() if counts[bucket] < size}
    if short:
        count = sum(map(len, short.values()))
        yield Finding("short_batches", "note", f"{len(short)} of {len(names)} buckets hold fewer pictures than batch_size {size}, so "
                      f"{pictures_(count, True)} trained in smaller batches: raise repeats, lower batch_size, or crop them to the shape of the others",
                      tuple((name, "x".join(map(str, bucket))) for bucket, found in short.items() for name in found),
                      {"n": len(short), "of": len(names), "batch_size": size, "pictures": count})
