"""Split the training data of a study into training and validation examples, or into folds; load the sealed test set.

`load_split` opens training files only, and one study always has the same split: the keys of `[data]` and its
`split_seed` decide it. scikit-learn's splitters choose the rows; only a split that is neither stratified, nor by group,
nor in time order is hpo's own shuffle. A split that cannot be used for training is an error at the study file's key.
Inputs are preprocessed as the training examples say, the test set as those of the split that it is loaded for. Only
`load_test` reads the sealed test set, from the folder of the training files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.examples import Fold, RawExamples, SealedExamples, Split, hash_split, joined
from hpo.data.preprocessing import Preprocessing, of_one_width
from hpo.data.sources import source_of
from hpo.data.table_rows import TableRows
from hpo.errors import DataError, SettingError
from hpo.studyfile import user_data

if TYPE_CHECKING:
    from hpo.studyfile import Study
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


def load_split(study: Study) -> Split:
    """Read the training data of a study and split it; test files are not opened."""
    return _load(study, whole=False)


def load_whole(study: Study) -> Split:
    """Return the split with all examples outside the test set as training examples, those for validation first.

    The preprocessing is fitted on all of them.
    """
    return _load(study, whole=True)


def _load(study: Study, whole: bool) -> Split:
    settings = study.data
    source = source_of(settings, study.folder, study.task.kind)
    raw = source.read_training()
    own, unused = _own_validation(study, raw)
    try:
        parts = _hold_outs(settings, raw, own)
        first, *other_folds = _folds_of(study, parts, raw, own, whole)
    except SettingError as error:
        raise study.error(error.key, error.problem) from error
    hashes = [hash_split(each.validation, each.training, own is not None) for each in parts]
    contents = [each.content_sha256() for each in (raw, own) if each is not None]
    return Split(
        data=settings,
        names=raw.names,
        white=raw.white,
        folder=None if user_data(settings.dataset) is None else study.folder.absolute(),
        train=first.train,
        validation=first.validation,
        content_sha256=_joined_hash(contents),
        split_sha256=_joined_hash(hashes),
        test_size=source.test_size(),
        preprocessing=first.preprocessing,
        method=parts[0].method,
        advice=parts[0].advice,
        unused=unused,
        other_folds=tuple(other_folds),
        task=study.task.kind,
    )


def _own_validation(study: Study, raw: RawExamples) -> tuple[RawExamples | None, str]:
    """Return the validation set of the data, None where there is none or it is not used; in that case a line says so.

    Raises StudyFileError for keys that the validation set rules out.
    """
    name, settings = study.data.dataset, study.data
    if raw.read_validation is None:
        return None, ""
    fraction = None if isinstance(settings.validation, str) else settings.validation
    given: dict[str, float | None] = {"folds": settings.folds}
    if settings.stratify is not False:
        given["validation"] = fraction
    for key, value in given.items():
        if value is not None:
            raise study.error(f"data.{key}", f"must not be given: {name} has a validation set (got {value:g})")
    if fraction is None:
        return raw.read_validation(), ""
    return None, f"{name}: its validation set is not used, because data.validation is {fraction:g}"


def _hold_outs(settings: DataSettings, raw: RawExamples, own: RawExamples | None) -> list[HoldOut]:
    """Return the split, or that of each fold. `own` is the validation set of the data."""
    if settings.folds is not None:
        return _folds(settings, settings.folds, raw)
    if own is None:
        return [hold_out(settings, raw.targets, raw.names, raw.groups)]
    _check_alike(settings.dataset, "validation", own, raw)
    return [_with_own_validation(settings, raw, len(own))]


def _folds_of(
    study: Study, parts: Sequence[HoldOut], raw: RawExamples, own: RawExamples | None, whole: bool
) -> list[Fold]:
    """Return the preprocessed examples of each split; with `whole`, those for validation are training examples too."""
    held_out = raw if own is None else own
    used = parts[-1:] if whole else parts  # in time order only the last fold has all examples
    taken = [(raw.take(each.training), held_out.take(each.validation)) for each in used]
    if whole:
        taken = [(joined(validation, training), validation) for training, validation in taken]
    fitted = of_one_width([Preprocessing(study.preprocess).fit(train.inputs) for train, _ in taken])
    return [
        Fold(train.preprocessed(each), validation.preprocessed(each), each)
        for (train, validation), each in zip(taken, fitted, strict=True)
    ]


def _joined_hash(hashes: Sequence[str]) -> str:
    """Return the only hash, or the SHA-256 of several."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def check_test(study: Study) -> None:
    """Raise DataError if a study's data has no test set on this machine; it is not read."""
    source_of(study.data, study.folder, study.task.kind).check_test()


def load_test(split: Split) -> SealedExamples:
    """Read the sealed test set of a study's data set, preprocessed as the split's examples are."""
    source = source_of(split.data, split.folder or Path(), split.task)
    channels = split.train.inputs.shape[1]
    raw = source.read_test(split.names, channels)
    _check_alike(split.dataset, "test", raw, split)
    examples = raw.take(np.arange(len(raw))).preprocessed(split.preprocessing)
    return SealedExamples(examples.inputs, examples.targets, raw.content_sha256())


def _check_alike(name: str, part: str, raw: RawExamples, training: RawExamples | Split) -> None:
    """Raise DataError where examples have another shape or type than the training examples.

    The columns of a table have been checked when it was read.
    """
    examples = training.train if isinstance(training, Split) else training
    if raw.targets.shape[1:] != examples.targets.shape[1:]:
        shapes = (raw.targets.shape[1:], examples.targets.shape[1:])
        found, known = (" x ".join(map(str, shape)) or "1" for shape in shapes)
        raise DataError(f"{name}: {part} examples have {found} target columns, but training examples {known}")
    inputs = examples.inputs
    if isinstance(raw.inputs, TableRows) or isinstance(inputs, TableRows):
        return
    found, known = (
        f"{' x '.join(map(str, each.shape[1:]))} {_kind(each, white)}"
        for each, white in ((raw.inputs, raw.white), (inputs, training.white))
    )
    if found != known or raw.white != training.white:
        raise DataError(f"{name}: {part} examples are {found}, but training examples {known}")


def _kind(inputs: NDArray[Any], white: int | None) -> str:
    return "integers" if inputs.dtype == np.int64 else "numbers" if white is None else "bytes"


def _with_own_validation(settings: DataSettings, raw: RawExamples, validation: int) -> HoldOut:
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


def _folds(settings: DataSettings, folds: int, raw: RawExamples) -> list[HoldOut]:
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
