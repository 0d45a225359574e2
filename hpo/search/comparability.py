"""Comparability: which changes of study file or data keep old and new trials comparable.

`--extend` and `search.start_from` use the same rule: ranges, choices and a few keys may differ, everything else that
is fixed must be the same. `--extend` may also raise a fixed number of epochs, where no schedule depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hpo.errors import UsageError
from hpo.search.space import misread
from hpo.studyfile import AnyStudy, Study, differing_keys
from hpo.studyfile.keys import SEARCHABLE, unused_keys
from hpo.studyfile.models import SCHEDULES_OF_ALL_EPOCHS
from hpo.studyfile.objective import ObjectiveSearchSettings
from hpo.studyfile.trees import equal_json, removed, replaced, value_at

EXTENDABLE_KEYS = (
    "description",
    "baseline",
    "data.dataset",  # where the data are; their SHA-256 tells whether they are the same
    *(f"training.{key}" for key in ("keep", "keep_trials", "checkpoint")),
    *(
        f"search.{key}"
        for key in (
            "trials",
            "sampler",
            "pruner",
            "rung",
            "factor",
            "random_share",
            "population",
            "retries",
            "trial_timeout",
            "timeout",
            "patience",
        )
    ),
)
"""Keys of a network study that `--extend` may change, besides ranges and choices."""

FIXED_KEYS_OF_OBJECTIVES = ("direction", "seed", "points", "repeats")

EXTENDABLE_KEYS_OF_OBJECTIVES = (
    "description",
    "baseline",
    *(f"search.{key}" for key in ObjectiveSearchSettings.model_fields if key not in FIXED_KEYS_OF_OBJECTIVES),
)
"""Keys of an objective study that `--extend` may change; its ranges are in its code."""


EPOCHS, SCHEDULE = ("training", "epochs"), ("optimizer", "schedule")


def check_change(study: AnyStudy, stored: AnyStudy, extend: bool) -> None:
    """Raise UsageError where a study's file differs from the stored one, unless `extend` allows the difference."""
    differences = differing_keys(stored, study)
    if differences and not extend:
        raise UsageError(
            f"{study.source}: differs from the stored study '{study.name}' in {'; '.join(differences)}; "
            "start another study with --name, or continue with the change with --extend"
        )
    if isinstance(study, Study) and isinstance(stored, Study):
        _check_epochs(study, stored)
        free = (*EXTENDABLE_KEYS, ".".join(EPOCHS)) if raises_epochs(stored, study) else EXTENDABLE_KEYS
        incompatible = incomparable(stored, study, free)
        allowed = ("ranges", "choices", "training.epochs (upwards)", *EXTENDABLE_KEYS)
        if problem := misread(stored, study):
            raise UsageError(f"{study.source}: {problem}; start another study with --name")
    else:
        allowed = EXTENDABLE_KEYS_OF_OBJECTIVES
        changed = [(line, line.split(": ")[0]) for line in differences]
        incompatible = [line for line, key in changed if key not in allowed and key.split(".")[0] not in allowed]
    for difference in incompatible:
        raise UsageError(
            f"{study.source}: {difference}: --extend can change {', '.join(allowed)}; with this change old and new "
            "trials would not be comparable, so start another study with --name"
        )


def raises_epochs(old: Study, new: Study) -> bool:
    """Return whether both studies have a fixed number of epochs, and the new one a higher number."""
    before, after = _fixed_epochs(old), _fixed_epochs(new)
    return before is not None and after is not None and after > before


def _fixed_epochs(study: Study) -> int | None:
    """Return the number of epochs of every trial; None where it is searched, or conditional."""
    epochs = study.definitions(EPOCHS)
    fixed = epochs[EPOCHS] if epochs.keys() == {EPOCHS} else None
    return fixed if isinstance(fixed, int) else None


def _check_epochs(study: Study, stored: Study) -> None:
    """Raise UsageError for a lower number of epochs, and for another number where a schedule depends on it."""
    before, after = _fixed_epochs(stored), _fixed_epochs(study)
    if before is None or after is None or before == after:
        return
    difference = f"{study.source}: training.epochs: {before} -> {after}"
    if after < before:
        raise UsageError(
            f"{difference}: --extend can only raise the number of epochs, because trials have been trained for "
            f"{before} epochs; start another study with --name"
        )
    schedules = [value for each in (stored, study) for value in each.possible_values(SCHEDULE).values()]
    if found := [schedule for schedule in SCHEDULES_OF_ALL_EPOCHS if schedule in schedules]:
        raise UsageError(
            f"{difference}: the {found[0]} schedule (optimizer.schedule) depends on the number of epochs, so trials of "
            f"{before} epochs cannot continue to epoch {after}, and old and new trials would not be comparable; start "
            "another study with --name"
        )


def incomparable(old: Study, new: Study, free: Iterable[str]) -> list[str]:
    """Return the differences, one a line, that make trials incomparable: all but ranges, choices and `free` keys."""
    before, after = _fixed_part(old, new, free), _fixed_part(new, old, free)
    paths = {line: tuple(line.split(": ")[0].split("."))[:2] for line in differing_keys(old, new)}
    return [line for line, path in paths.items() if not equal_json(value_at(before, path), value_at(after, path))]


def same_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two data records have the same examples and the same split."""
    # The size of the test set is left out: whether the test file is on this machine does not matter to a search.
    return all(one.get(key) == other.get(key) for key in ("sha256", "split_sha256", "other_splits_sha256"))


def _fixed_part(study: Study, other: Study, free: Iterable[str]) -> dict[str, Any]:
    """Return the study's tree without the values that may differ from the other study's."""
    tree, others = study.resolved(), other.resolved()
    for key in free:
        tree = replaced(tree, tuple(key.split(".")), None)
    searched_by_both = {(parameter.path, parameter.integer) for parameter in other.parameters}
    for parameter in study.parameters:
        if (parameter.path, parameter.integer) in searched_by_both:
            tree = replaced(tree, parameter.path, None)
    # A new choice brings its own keys and its own conditional table; trials of the old choices never used them.
    for case in study.conditional_tables:
        choices = value_at(others, (case.section, case.key, "choices"))
        if isinstance(choices, list) and case.value not in choices:
            tree = removed(tree, case.path)
    searched = {parameter.path[:2] for parameter in study.parameters}
    for section in SEARCHABLE:
        for key in unused_keys(section, others[section]):
            if (section, key) not in searched:
                tree[section].pop(key, None)
    return tree
