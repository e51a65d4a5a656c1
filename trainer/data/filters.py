"""Pictures left out of a dataset by what the report or a model says of them: listed with the reason, never deleted."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ..errors import LoomError
from .findings import Finding, Seen
from .folder import Dataset
from .picture_checks import FILTERED, blurred, copies, exposure

# The switches, and what of the report each leaves out.
REPORTED = {
    "duplicates": (copies, ("copies", "alike", "mirrored")), "blurred": (blurred, ("blurred",)), "badly_exposed": (exposure, ("dark", "bright", "flat")),
}


def leave_out_reported(seen: Seen, switches: set[str]) -> Dataset:
    """The dataset without what the report finds under those names of REPORTED. Raises LoomError where nothing would be left."""
    unknown = sorted(switches - set(REPORTED))
    if unknown:
        raise LoomError(f"filter {unknown[0]!r} is unknown: it is one of {', '.join(REPORTED)}")
    reasons: dict[str, str] = {}
    for check, ids in (REPORTED[name] for name in REPORTED if name in switches):
        for finding in check(seen):
            for name, detail in finding.pictures if finding.id in ids else ():
                reasons.setdefault(name, _reason(finding, detail))
    return leave_out(seen.dataset, reasons)


def leave_out_below(dataset: Dataset, scores: dict[str, float], least: float, called: str) -> Dataset:
    """The dataset without the pictures whose score is below `least`; `called`: what the score is, for the reason."""
    return leave_out(dataset, {name: f"{called} {score:.3g} is below {least:g}" for name, score in scores.items() if score < least})


def leave_out(dataset: Dataset, reasons: dict[str, str]) -> Dataset:
    """The dataset without the named pictures, which are in its left_out now. Raises LoomError where nothing would be left."""
    if not reasons:
        return dataset
    kept = tuple(p for p in dataset.pictures if p.name not in reasons)
    if not kept:
        first, why = next(iter(reasons.items()))
        raise LoomError(f"the filter leaves out all {len(dataset.pictures)} pictures (such as {first}: {why}): lower its thresholds, or turn switches off")
    rows = tuple((p.name, FILTERED + reasons[p.name]) for p in dataset.pictures if p.name in reasons)
    return dataclasses.replace(dataset, pictures=kept, left_out=dataset.left_out + rows)


def _reason(finding: Finding, detail: str) -> str:
    words: dict[str, Callable[[str], str]] = {
        "copies": lambda d: f"the same file {d}", "alike": lambda d: f"looks {d}", "mirrored": lambda d: f"mirrored, {d}", "blurred": lambda d: f"blurred, {d}",
    }
    return words.get(finding.id, lambda d: f"badly exposed, {d}")(detail)
