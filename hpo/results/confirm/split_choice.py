"""Choose the splits of a confirmation: fresh ones where the luck of the split matters, else the split of the search.

One split shares its luck among all configurations: their means are off by it together, and no interval shows that. On
sets of up to a few thousand validation examples this error was larger than that of the seeds
(docs/explanation/benchmarks.md). Larger sets stay at one split: a split is a further copy of the data in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpo.errors import UsageError
from hpo.studyfile import AnyStudy, ObjectiveStudy

SPLITS, RUNS_A_SPLIT = 5, 2
"""The splits of a confirmation by default; one run on a split cannot tell its luck from that of the seed."""

MANY_EXAMPLES = 5000
"""From this number of validation examples on, a confirmation has one split by default."""

OWN_VALIDATION = "the data have a validation set"


@dataclass(frozen=True)
class SplitChoice:
    """The number of fresh splits, None for the split of the search, and the reason; "" for an objective function."""

    splits: int | None
    why: str


def choose_splits(study: AnyStudy, data: Mapping[str, Any], seeds: int, given: int | None) -> SplitChoice:
    """Return the splits of a confirmation of a study with this data record; `given` is the user's number, if any.

    Raises UsageError for a number that the study or the seeds do not allow.
    """
    if given is not None and given > seeds:
        raise UsageError(f"--splits: must be at most --seeds, {seeds} (got {given})")
    if isinstance(study, ObjectiveStudy):
        if given not in (None, 1):
            raise UsageError(f"--splits: not possible with study '{study.name}', whose function splits the data itself")
        return SplitChoice(None, "")
    if given is not None:
        return SplitChoice(None if given == 1 else given, "as requested")
    if study.data.order is not None:
        return SplitChoice(None, "the examples are in time order")
    if study.data.folds is not None:
        return SplitChoice(None, "together they validate on every training example")
    if seeds < SPLITS * RUNS_A_SPLIT:
        return SplitChoice(None, f"fewer than {SPLITS * RUNS_A_SPLIT} seeds")
    if data["validation"] >= MANY_EXAMPLES:
        return SplitChoice(None, f"{data['validation']:,} validation examples")
    return SplitChoice(SPLITS, f"only {data['validation']:,} validation examples")
