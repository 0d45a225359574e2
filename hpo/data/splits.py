"""Split the training data of a study into training and validation examples; load the sealed test set.

`load_split` opens training files only, and one study always has the same split: a seeded shuffle decides it. A split
that cannot be used for training is an error at the study file's key. Only `load_test` reads the sealed test set, from
the folder of the training files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpo.data.examples import SealedExamples, Split, hash_split
from hpo.data.sources import source_of
from hpo.errors import DataError
from hpo.studyfile import user_data

if TYPE_CHECKING:
    from hpo.studyfile import Study


def load_split(study: Study) -> Split:
    """Read the training data of a study and split it; test files are not opened."""
    name = study.data.dataset
    source = source_of(name, study.folder)
    raw = source.read_training()
    validation, training = split_indices(study, raw.targets, raw.names)
    return Split(
        dataset=name,
        names=raw.names,
        white=raw.white,
        folder=None if user_data(name) is None else study.folder.absolute(),
        train=raw.take(training),
        validation=raw.take(validation),
        content_sha256=raw.content_sha256(),
        split_sha256=hash_split(validation, training),
        test_size=source.test_size(),
    )


def check_test(name: str, folder: Path = Path()) -> None:
    """Raise DataError if the data set called `name` has no test set on this machine; it is not read.

    `folder` is the study file's.
    """
    source_of(name, folder).check_test()


def load_test(split: Split) -> SealedExamples:
    """Read the sealed test set of a study's data set."""
    source = source_of(split.dataset, split.folder or Path())
    expected = split.train.inputs.shape[1:]
    raw = source.read_test(split.names, expected[0])
    shape = raw.inputs.shape[1:]
    if (shape, raw.white) != (expected, split.white):
        test, training = (
            f"{' x '.join(map(str, each))} {'numbers' if white is None else 'bytes'}"
            for each, white in ((shape, raw.white), (expected, split.white))
        )
        raise DataError(f"{split.dataset}: test examples are {test}, but training examples {training}")
    examples = raw.take(np.arange(len(raw)))
    return SealedExamples(examples.inputs, examples.targets, raw.content_sha256())


def split_indices(
    study: Study, labels: NDArray[np.uint8] | NDArray[np.int64], names: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return validation and training indices: shuffle, take `train_size`, and use the first fraction for validation."""
    settings, total = study.data, len(labels)
    if settings.train_size is not None and settings.train_size > total:
        raise study.error(
            "data.train_size",
            f"must be at most {total}, the training examples of {settings.dataset} (got {settings.train_size})",
        )
    order = np.random.Generator(np.random.PCG64(settings.split_seed)).permutation(total)
    used = order[: settings.train_size]
    size = round(settings.validation * len(used))
    for empty, part in ((size == 0, "validation"), (size == len(used), "training")):
        if empty:
            problem = f"leaves no {part} examples of {len(used)} (got {settings.validation:g})"
            raise study.error("data.validation", problem)
    validation, training = used[:size], used[size:]
    absent = _absent_class(labels[training], len(names))
    if absent is not None:
        if absent not in labels:
            raise DataError(f"{settings.dataset}: no training example of class {names[absent]}")
        key = "data.validation" if absent in labels[used] else "data.train_size"
        problem = f"leaves no training example of class {names[absent]} (of {len(training)} training examples)"
        raise study.error(key, problem)
    return validation, training


def _absent_class(labels: NDArray[np.uint8] | NDArray[np.int64], classes: int) -> int | None:
    absent = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    return int(absent[0]) if len(absent) else None
