"""Rows of the training data for training and for validation: one split, or the folds of a cross-validation.

scikit-learn's splitters choose the rows; only a split that is neither stratified, nor by group, nor in time order is
hpo's own shuffle. A split that cannot be used for training is an error at the study file's key. Reads no file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.examples import RawExamples
from hpo.errors import DataError, SettingError

if TYPE_CHECKING:
    from hpo.studyfile.data_settings import DataSettings

Indices = NDArray[np.int64]
Targets = NDArray[Any]

MAX_PARTS = 10
"""Parts of the data of which whole ones become the validation split, with groups and `stratify`."""


@dataclass(frozen=True, eq=False)
class HoldOut:
    """Indices of the validation and the training split.

    `method` says how they were chosen, `advice` how each class can get a validation example.
    """

    validation: Indices
    training: Indices
    method: str
    advice: str = "try another data.split_seed or a larger data.validation"


def with_own_validation(settings: DataSettings, raw: RawExamples, validation: int) -> HoldOut:
    """Return the split with the validation set of the data: all its examples, and the rows that `train_size` leaves."""
    for key, given in (("groups", settings.groups), ("order", settings.order), ("splits", settings.splits)):
        if given is not None:
            raise SettingError(f"data.{key}", f"is not used: {settings.dataset} has a validation set (got {given!r})")
    if settings.stratify is True and settings.train_size is None:
        raise SettingError("data.stratify", f"is not used: {settings.dataset} has a validation set (got true)")
    training, _, _ = _kept_rows(settings, raw.targets, raw.names, each=2, side=_size(settings, len(raw)) // 2)
    _check_classes(settings, raw.targets, training, training, raw.names, "data.train_size")
    advice = "add some to the validation set"
    return HoldOut(np.arange(validation), training, "the validation set of the data", advice)


def hold_out(
    settings: DataSettings, targets: Targets, names: Sequence[str] = (), groups: Indices | None = None
) -> HoldOut:
    """Return the validation and the training split: so many rows as `train_size` says, split by `validation`.

    `groups` has the number of each row's group. Raises SettingError for a split that cannot be used.
    """
    size = _size(settings, len(targets))
    wanted = round(settings.fraction * size)
    for empty, part in ((wanted == 0, "validation"), (wanted == size, "training")):
        if empty:
            raise SettingError("data.validation", f"leaves no {part} examples of {size} (got {settings.fraction:g})")
    _, whole = (1, 2) if groups is None else _parts(settings.fraction, len(np.unique(groups)))
    side = min(wanted, size - wanted)
    rows, stratified, problem = _kept_rows(settings, targets, names, whole, side)
    key, seed, advice = "data.validation", f"seed {settings.split_seed}", HoldOut.advice
    if settings.order == "time":
        validation, training = rows[size - wanted :], rows[: size - wanted]
        key, advice = "data.order", "use a larger data.validation"
        method = "in time order, the last rows for validation"
    elif groups is not None:
        key = "data.groups"
        validation, training = _split_groups(settings, rows, targets, groups, stratified)
        counts = [len(np.unique(groups[each])) for each in (training, validation)]
        method = f"by group ({settings.groups}), {counts[0]} groups for training and {counts[1]} for validation"
        method += f", {'stratified by class, ' * stratified}{seed}"
    elif stratified:
        training, validation = _stratified_sides(settings, targets[rows], size - wanted, wanted)
        validation, training = rows[validation], rows[training]
        method = f"stratified by class, {seed}"
    else:
        rows = _shuffled(settings, len(targets))[:size]
        validation, training = rows[:wanted], rows[wanted:]
        method = f"random, {seed}"
    _check_classes(settings, targets, training, rows, names, key)
    note = f"; not stratified: {problem}" if problem else ""
    return HoldOut(validation, training, method + note, advice)


def folds_of_rows(settings: DataSettings, folds: int, raw: RawExamples) -> list[HoldOut]:
    """Return the split of each fold."""
    indices = fold_indices(settings, folds, raw.targets, raw.groups, raw.names)
    way = "in time order" if settings.order else f"seed {settings.split_seed}"
    if settings.groups is not None:
        way = f"by group ({settings.groups}), {way}"
    method = f"{folds} folds, {way}"
    advice = f"use fewer than {folds} folds, or data.stratify = true"
    return [HoldOut(validation, training, method, advice) for validation, training in indices]


def fold_indices(
    settings: DataSettings,
    folds: int,
    targets: Targets,
    groups: Indices | None = None,
    names: Sequence[str] = (),
) -> list[tuple[Indices, Indices]]:
    """Return validation and training indices of each fold, of the rows that `train_size` leaves.

    In time order, the training rows of a fold are all rows before its validation rows. Raises SettingError for folds
    that cannot be used.
    """
    from sklearn import model_selection as sklearn  # takes a second to import

    size = _size(settings, len(targets))
    rows, stratified, why_not = _kept_rows(settings, targets, names, folds, size)
    if why_not:
        advice = f"use fewer folds, or data.stratify = false (got {folds})"
        raise SettingError("data.folds", f"{why_not}, one in each fold; {advice}")
    if settings.order == "time":
        if size <= folds:
            raise SettingError(
                "data.order", f"needs {folds + 1} rows or more for {folds} folds (got {size} rows); use fewer folds"
            )
        splitter = sklearn.TimeSeriesSplit(folds)
    else:
        if size < folds:
            raise SettingError("data.folds", f"must be at most {size}, the number of examples (got {folds})")
        random = {"shuffle": True, "random_state": _random_state(settings)}
        if groups is not None:
            count = len(np.unique(groups[rows]))
            if count < folds:
                raise SettingError(
                    "data.groups", f"{settings.groups!r} has {count} groups, fewer than {folds} folds; use fewer folds"
                )
            splitter = (sklearn.StratifiedGroupKFold if stratified else sklearn.GroupKFold)(folds, **random)
        else:
            splitter = (sklearn.StratifiedKFold if stratified else sklearn.KFold)(folds, **random)
    found = [
        (rows[validation], rows[training])
        for training, validation in splitter.split(rows, targets[rows], None if groups is None else groups[rows])
    ]
    for _, training in found:
        _check_classes(settings, targets, training, rows, names, "data.folds")
    return found


def _size(settings: DataSettings, total: int) -> int:
    """Return the number of rows to split. Raises SettingError for a `train_size` above the total."""
    if settings.train_size is not None and settings.train_size > total:
        problem = f"must be at most {total}, the training examples of {settings.dataset} (got {settings.train_size})"
        raise SettingError("data.train_size", problem)
    return settings.train_size or total


def _kept_rows(
    settings: DataSettings, targets: Targets, names: Sequence[str], each: int, side: int
) -> tuple[Indices, bool, str]:
    """Return the rows that `train_size` leaves, in order; whether the split is stratified; and why it cannot be, or "".

    Stratifying needs `each` rows of each class, and no more classes than `side`, the rows of the smaller side.
    """
    total = len(targets)
    size, problem = _size(settings, total), ""
    if settings.order == "time":
        return np.arange(total - size, total), False, ""
    if settings.stratify is True and not _are_classes(targets):
        raise SettingError("data.stratify", "must be false: the targets are not classes (got true)")
    if settings.stratify is not False and _are_classes(targets):
        problem, rows = _why_not_stratified(targets, names, each, side), np.arange(total)
        if not problem and size < total:
            rows = np.sort(np.concatenate(_stratified_sides(settings, targets, size // 2, size - size // 2)))
            problem = _why_not_stratified(targets[rows], names, each, side)
        if not problem:
            return rows, True, ""
        if settings.stratify is True:
            raise SettingError("data.stratify", f"{problem}; use stratify = false (got true)")
    return np.sort(_shuffled(settings, total)[:size]), False, problem


def _are_classes(targets: Targets) -> bool:
    return targets.ndim == 1 and targets.dtype.kind in "iu"


def _why_not_stratified(classes: Targets, names: Sequence[str], each: int, side: int) -> str:
    counts = np.bincount(classes)
    present = np.flatnonzero(counts)
    rarest = present[counts[present].argmin()]
    if counts[rarest] < each:
        return f"class {_class(rarest, names)} has {counts[rarest]} of the {each} examples that it needs"
    return f"{side} examples on one side are fewer than the {len(present)} classes" if side < len(present) else ""


def _stratified_sides(settings: DataSettings, classes: Targets, training: int, validation: int) -> tuple[Indices, ...]:
    """Return the indices of so many training and so many validation rows, as scikit-learn stratifies them."""
    from sklearn.model_selection import StratifiedShuffleSplit

    splitter = StratifiedShuffleSplit(
        1, train_size=training, test_size=validation, random_state=_random_state(settings)
    )
    return tuple(next(splitter.split(np.zeros(len(classes)), classes)))


def _parts(fraction: float, groups: int) -> tuple[int, int]:
    """Return how many of how many parts come nearest to a fraction: 0.3 is 3 of 10. At most one part a group."""
    finest = min(max(MAX_PARTS, math.ceil(1 / min(fraction, 1 - fraction))), groups)
    found = Fraction(fraction).limit_denominator(finest) if finest > 1 else Fraction(0)
    if found.denominator > 1:
        return found.numerator, found.denominator
    return (finest - 1 if found else 1), finest


def _split_groups(
    settings: DataSettings, rows: Indices, targets: Targets, groups: Indices, stratified: bool
) -> tuple[Indices, Indices]:
    """Return validation and training indices without a group on both sides."""
    from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold

    known = groups[rows]
    count = len(np.unique(known))
    if count < 2:
        raise SettingError("data.groups", f"{settings.groups!r} has only one group; a split needs at least two")
    if not stratified:
        wanted = min(max(round(settings.fraction * count), 1), count - 1)
        splitter = GroupShuffleSplit(1, test_size=wanted, random_state=_random_state(settings))
        training, validation = next(splitter.split(rows, groups=known))
        return rows[validation], rows[training]
    parts, whole = _parts(settings.fraction, count)
    folds = StratifiedGroupKFold(whole, shuffle=True, random_state=_random_state(settings))
    chosen = [validation for _, validation in folds.split(rows, targets[rows], known)][:parts]
    held_out = np.isin(np.arange(len(rows)), np.concatenate(chosen))
    if held_out.all() or not held_out.any():
        raise SettingError("data.groups", f"the groups of {settings.groups!r} are too unequal: one side has no rows")
    return rows[held_out], rows[~held_out]


def _shuffled(settings: DataSettings, total: int) -> Indices:
    return np.random.Generator(np.random.PCG64(settings.split_seed)).permutation(total)


def _random_state(settings: DataSettings) -> int | np.random.RandomState:
    """Return the seed as scikit-learn takes it: below 2**32, or a generator with a larger seed."""
    seed = settings.split_seed
    return seed if seed < 2**32 else np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))


def _check_classes(
    settings: DataSettings, targets: Targets, training: Indices, rows: Indices, names: Sequence[str], key: str
) -> None:
    """Raise SettingError for a class without a training example, at `key` if it has an example among the rows."""
    if not names or not _are_classes(targets):
        return
    absent = np.flatnonzero(np.bincount(targets[training], minlength=len(names)) == 0)
    if not len(absent):
        return
    if absent[0] not in targets:
        raise DataError(f"{settings.dataset}: no training example of class {names[absent[0]]}")
    problem = f"leaves no training example of class {names[absent[0]]} (of {len(training)} training examples)"
    raise SettingError(key if absent[0] in targets[rows] else "data.train_size", problem)


def _class(label: int, names: Sequence[str]) -> str:
    return f"'{names[label]}'" if names else str(label)
