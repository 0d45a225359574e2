"""Examples in memory: as read from files (`RawExamples`), for networks (`Examples`), and split (`Split`).

Inputs for networks are float32, bytes scaled to [0, 1], other numbers unchanged, and all of them preprocessed: images
have shape [N, C, H, W], a table of rows [N, features]. Integers, such as token ids, are int64 of any shape [N, ...].
Targets are labels, int64 of shape [N], or float64 of shape [N, columns]: 0 and 1 for several labels, numbers for a
regression. The SHA-256 of the content depends on inputs, before preprocessing, and targets only, not on their files
(plain or gzip, one file or five). This module opens no file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpo.data.preprocessing import FittedPreprocessing, Inputs
from hpo.data.table_rows import TableRows
from hpo.studyfile import DataSettings
from hpo.text import first_few

Targets = NDArray[np.int64] | NDArray[np.float64]
"""Labels, or the numbers of a regression and of several labels."""

MAX_NAMES = 5
"""Maximum number of class names in one message."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs of networks with their targets. The arrays belong to the caller."""

    inputs: NDArray[np.float32] | NDArray[np.int64]
    targets: Targets

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class SealedExamples(Examples):
    """The examples of the sealed test set, and the SHA-256 of their content."""

    content_sha256: str


@dataclass(frozen=True, eq=False)
class UnpreparedExamples:
    """Examples before preprocessing."""

    inputs: Inputs
    targets: Targets

    def preprocessed(self, preprocessing: FittedPreprocessing) -> Examples:
        """Return the examples as networks take them."""
        return Examples(preprocessing.apply(self.inputs), self.targets)


def joined(first: UnpreparedExamples, second: UnpreparedExamples) -> UnpreparedExamples:
    """Return the examples of both, in this order."""
    targets = np.concatenate([first.targets, second.targets])
    if isinstance(first.inputs, TableRows):
        assert isinstance(second.inputs, TableRows), "all examples of a data set are of one kind"
        return UnpreparedExamples(first.inputs.followed_by(second.inputs), targets)
    assert not isinstance(second.inputs, TableRows), "all examples of a data set are of one kind"
    return UnpreparedExamples(np.concatenate([first.inputs, second.inputs]), targets)


@dataclass(frozen=True, eq=False)
class RawExamples:
    """Examples as read from files: bytes, of which `white` becomes 1.0; unchanged numbers or integers; or table rows.

    `names` are the class names, if the files have them. `content` is added to the hash, for what the bytes do not show.
    `groups` has the number of each example's group, where the study names groups. `read_validation` reads the
    validation set of the data, where they have one.
    """

    inputs: NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.int64] | TableRows
    targets: NDArray[np.uint8] | NDArray[np.int64] | NDArray[np.float64]
    white: int | None = 255
    names: tuple[str, ...] = ()
    content: str = ""
    groups: NDArray[np.int64] | None = None
    read_validation: Callable[[], RawExamples] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: NDArray[np.int64]) -> UnpreparedExamples:
        """Return the examples at `indices`, in that order, scaled; only these are converted."""
        chosen = self.targets[indices]
        numbers = chosen.dtype == np.float64
        targets: Targets = chosen.astype(np.float64) if numbers else chosen.astype(np.int64)
        if isinstance(self.inputs, TableRows):
            return UnpreparedExamples(self.inputs.take(indices), targets)
        if self.inputs.dtype == np.int64:
            return UnpreparedExamples(self.inputs[indices].astype(np.int64, copy=False), targets)
        inputs = self.inputs[indices].astype(np.float32, copy=False)  # indexing has copied
        if self.white is not None:
            inputs /= self.white
        return UnpreparedExamples(inputs, targets)

    def content_sha256(self) -> str:
        """Return the SHA-256 of the shape, the input bytes and the target bytes.

        The shape of an array of rows counts as [N, 1, 1, features], as in the records of studies that stored it so.
        """
        if isinstance(self.inputs, TableRows):
            digest = hashlib.sha256(f"{self.inputs.sha256()} {json.dumps(self.names)}".encode())
        else:
            count, *shape = self.inputs.shape
            digest = hashlib.sha256("x".join(map(str, (count, *([1, 1] if len(shape) == 1 else []), *shape))).encode())
            digest.update(self.content.encode())
            digest.update(np.ascontiguousarray(self.inputs).data)
        digest.update(np.ascontiguousarray(self.targets).data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Fold:
    """Training and validation examples of one fold, and the preprocessing fitted on the training examples."""

    train: Examples
    validation: Examples
    preprocessing: FittedPreprocessing


@dataclass(frozen=True, eq=False)
class Split:
    """A study's training and validation examples; the test set stays sealed.

    `content_sha256` is the hash of all training data, `split_sha256` that of the validation and training indices.
    `test_size` is 0 without a test set, and None if only opening the sealed file would tell. `names` are the class
    or label names, `white` is the byte that becomes 1.0, or None for numbers. `folder` is the base of the relative path
    of user data, None for other data. `method` says how the split was made, `unused` what it leaves out that the user
    may expect, and `advice` how every class can get a validation example. With `data.folds`, `train` and `validation`
    are the first fold, and `split_sha256` is the hash of all folds.
    `preprocessing` was fitted on the training examples of this split, that of each fold on the fold's.
    `other_splits_sha256` are the hashes of the further splits of `data.splits`.
    """

    data: DataSettings
    names: tuple[str, ...]
    white: int | None
    folder: Path | None
    train: Examples
    validation: Examples
    content_sha256: str
    split_sha256: str
    test_size: int | None
    preprocessing: FittedPreprocessing
    method: str
    advice: str
    unused: str = ""
    task: str = "classification"
    other_folds: tuple[Fold, ...] = ()
    other_splits_sha256: tuple[str, ...] = ()

    @property
    def folds(self) -> tuple[Split, ...]:
        """Return a split for each fold; without `data.folds`, the split alone."""
        first = replace(self, other_folds=()) if self.other_folds else self
        others = (
            replace(first, train=each.train, validation=each.validation, preprocessing=each.preprocessing)
            for each in self.other_folds
        )
        return (first, *others)

    @property
    def dataset(self) -> str:
        """The name of the data set."""
        return self.data.dataset

    @property
    def classes(self) -> int:
        """The number of classes or labels; 0 for a regression."""
        return len(self.names)

    @property
    def columns(self) -> int:
        """The number of columns of the targets; 1 for classes."""
        return self.train.targets.shape[1] if self.train.targets.ndim > 1 else 1

    @property
    def warning(self) -> str:
        """A line on unused validation examples, and on classes without one, which do not affect any score; "" for none.

        A class without a training example is an error of the split.
        """
        lines = [self.unused] if self.unused else []
        if self.task == "regression":
            return ". ".join(lines)
        absent = [
            name for name, count in zip(self.names, class_counts(self.validation, self), strict=True) if not count
        ]
        if absent:
            lines.append(f"{self.dataset}: no validation example of {describe_classes(absent)}; {self.advice}")
        return ". ".join(lines)


def class_counts(examples: Examples, split: Split) -> NDArray[np.int64]:
    """Return the number of examples of each class, or with each label."""
    if examples.targets.ndim > 1:
        return np.asarray(np.count_nonzero(examples.targets, axis=0), np.int64)
    return np.bincount(examples.targets.astype(np.int64), minlength=split.classes)


def describe_classes(names: Sequence[str]) -> str:
    """Return words for classes in a message, with the first few names."""
    listed = first_few([f"'{name}'" for name in names], MAX_NAMES)
    return f"class {listed}" if len(names) == 1 else f"{len(names)} classes ({listed})"


def hash_split(validation: NDArray[np.int64], training: NDArray[np.int64], own: bool = False) -> str:
    """Return the SHA-256 of a split: its indices and their order, which decides the batches.

    With `own`, validation indices are those of the data's own validation set.
    """
    digest = hashlib.sha256(f"{'own ' * own}{len(validation)} {len(training)}\n".encode())
    digest.update(validation.astype("<i8").tobytes())
    digest.update(training.astype("<i8").tobytes())
    return digest.hexdigest()
