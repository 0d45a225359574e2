"""Split the training data of a study into training and validation examples, or into folds; load the sealed test set.

`load_split` opens training files only, and one study always has the same split: the keys of `[data]` and its
`split_seed` decide it. Inputs are preprocessed as the training examples say, the test set as those of the split that it
is loaded for. Only `load_test` reads the sealed test set, from the folder of the training files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.examples import Fold, RawExamples, SealedExamples, Split, hash_split, joined
from hpo.data.preprocessing import Preprocessing, of_one_width
from hpo.data.row_splits import HoldOut, folds_of_rows, hold_out, with_own_validation
from hpo.data.sources import Source, source_of
from hpo.data.table_rows import TableRows
from hpo.errors import DataError, SettingError
from hpo.studyfile import user_data

if TYPE_CHECKING:
    from hpo.studyfile import Study
    from hpo.studyfile.data_settings import DataSettings


@dataclass(frozen=True, eq=False)
class _Data:
    """The training data of a study as read, before they are split.

    `own` is the validation set of the data, None where it has none or where it is not used, which `unused` then says.
    """

    source: Source
    raw: RawExamples
    own: RawExamples | None
    unused: str
    content_sha256: str


def load_split(study: Study) -> Split:
    """Read the training data of a study and split it; test files are not opened."""
    return _split(study, _read(study), whole=False)


def load_splits(study: Study, seeds: Sequence[int] = ()) -> list[Split]:
    """Read the training data once; return a split for each seed, by default for those of `data.splits`, or one split.

    The first split has the hashes of the others.
    """
    data, seed = _read(study), study.data.split_seed
    seeds = seeds or range(seed, seed + (study.data.splits or 1))
    first, *others = (_split(study.with_value("data", "split_seed", each), data, whole=False) for each in seeds)
    return [replace(first, other_splits_sha256=tuple(each.split_sha256 for each in others)), *others]


def load_whole(study: Study) -> Split:
    """Return the split with all examples outside the test set as training examples, those for validation first.

    The preprocessing is fitted on all of them.
    """
    return _split(study, _read(study), whole=True)


def _read(study: Study) -> _Data:
    source = source_of(study.data, study.folder, study.task.kind)
    raw = source.read_training()
    own, unused = _own_validation(study, raw)
    contents = [each.content_sha256() for each in (raw, own) if each is not None]
    return _Data(source, raw, own, unused, _joined_hash(contents))


def _split(study: Study, data: _Data, whole: bool) -> Split:
    settings, raw, own = study.data, data.raw, data.own
    try:
        parts = _hold_outs(settings, raw, own)
        first, *other_folds = _folds_of(study, parts, raw, own, whole)
    except SettingError as error:
        raise study.error(error.key, error.problem) from error
    hashes = [hash_split(each.validation, each.training, own is not None) for each in parts]
    return Split(
        data=settings,
        names=raw.names,
        white=raw.white,
        folder=None if user_data(settings.dataset) is None else study.folder.absolute(),
        train=first.train,
        validation=first.validation,
        content_sha256=data.content_sha256,
        split_sha256=_joined_hash(hashes),
        test_size=data.source.test_size(),
        preprocessing=first.preprocessing,
        method=parts[0].method,
        advice=parts[0].advice,
        unused=data.unused,
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
    given: dict[str, float | None] = {"folds": settings.folds, "splits": settings.splits}
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
        return folds_of_rows(settings, settings.folds, raw)
    if own is None:
        return [hold_out(settings, raw.targets, raw.names, raw.groups)]
    _check_alike(settings.dataset, "validation", own, raw)
    return [with_own_validation(settings, raw, len(own))]


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
