"""Sources of a study's examples: a known data set, or the user's files or function.

    CatalogueSource  digits, mnist, fashion_mnist, cifar10, breast_cancer, wine, diabetes
    TableSource      table:houses.csv
    NpzSource        npz:wine.npz
    FolderSource     folder:images
    FunctionSource   my_data.py:load
    ArraysSource     arrays:HASH, in memory; a table in memory is table:memory:HASH

Each reads training examples and, separately, the sealed test set, which only `read_test` reads. Paths of user data are
relative to the study file's folder or, if they do not exist there, to the current folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from hpo.data.examples import RawExamples
from hpo.data.known import scikit_learn
from hpo.data.known.catalogue import CATALOGUE, Dataset, known_dataset
from hpo.data.known.folders import FORMATS, require_folder
from hpo.data.user.function import FunctionSource
from hpo.data.user.image_folder import FolderSource
from hpo.data.user.memory_arrays import ArraysSource
from hpo.data.user.npz import NpzSource
from hpo.errors import DataError
from hpo.memory_code import is_in_memory
from hpo.studyfile import DataSettings, user_data
from hpo.usercode import split_reference


class Source(Protocol):
    """The examples of one data set."""

    def read_training(self) -> RawExamples:
        """Read the training examples, with the class names, the groups, and a reader of the validation set, if any."""
        ...

    def test_size(self) -> int | None:
        """Return the number of test examples; None if only opening their file would tell."""
        ...

    def check_test(self) -> None:
        """Raise DataError if there is no test set; it is not opened."""
        ...

    def read_test(self, names: tuple[str, ...], channels: int) -> RawExamples:
        """Read the sealed test set, given the class names and channels of the training examples.

        Raises DataError for other classes. The caller compares the shape with that of the training examples.
        """
        ...


@dataclass(frozen=True)
class CatalogueSource:
    """A data set of the catalogue."""

    dataset: Dataset

    def read_training(self) -> RawExamples:
        """Read the training files."""
        dataset = self.dataset
        if dataset.format == "scikit-learn":
            raw = scikit_learn.read_training(dataset.name, dataset.shape)
        else:
            raw = FORMATS[dataset.format].read_training(self._folder, dataset.shape, len(dataset.names))
        return replace(raw, names=dataset.names)

    def test_size(self) -> int | None:
        """Return the number of test examples by the size of their file."""
        if self.dataset.format == "scikit-learn":
            return scikit_learn.test_size(self.dataset.name)
        return FORMATS[self.dataset.format].test_size(self._folder, self.dataset.shape)

    def check_test(self) -> None:
        """Raise DataError if the test files are missing."""
        if self.dataset.format != "scikit-learn":
            FORMATS[self.dataset.format].check_test(self._folder, self.dataset.shape)

    def read_test(self, names: tuple[str, ...], channels: int) -> RawExamples:
        """Read the test files, which are in the folder of the training files."""
        if self.dataset.format == "scikit-learn":
            return scikit_learn.read_test(self.dataset.name, self.dataset.shape)
        return FORMATS[self.dataset.format].read_test(self._folder, self.dataset.shape, len(names))

    @cached_property
    def _folder(self) -> Path:
        return require_folder(self.dataset).folder


def source_of(data: DataSettings, folder: Path, task: str = "classification") -> Source:
    """Return the source of a study's data; `folder` is the study file's.

    Raises UsageError for an unknown name, and DataError if the user's file or folder does not exist, or cannot have
    groups or the targets of the task.
    """
    match user_data(data.dataset):
        case "table", path:
            return _table_source(path, data, folder, task)
        case "npz", path:
            return NpzSource(_base(path, folder) / path, data.groups, task)
        case "arrays", _:
            return ArraysSource(data.dataset, data.groups is not None, task)
        case "code", reference:
            return FunctionSource(reference, _base(split_reference(reference)[0], folder), data.groups, task)
    if data.groups is not None:
        problem = f"data.groups needs table:FILE, npz:FILE or FILE.py:FUNCTION (got {data.groups!r})"
        raise DataError(f"{data.dataset}: has no groups; {problem}")
    kind, path = user_data(data.dataset) or ("", "")
    known = None if kind else known_dataset(data.dataset, CATALOGUE)
    if task != ("classification" if known is None else known.task):
        has = "classes" if known is None or known.task == "classification" else "numbers as targets"
        problem = f"task.kind = {task} needs table:FILE, npz:FILE or FILE.py:FUNCTION"
        problem = 'set task.kind = "regression"' if has != "classes" else problem
        raise DataError(f"{data.dataset}: has {has}; {problem}")
    return FolderSource(_base(path, folder) / path) if known is None else CatalogueSource(known)


def _table_source(path: str, data: DataSettings, folder: Path, task: str) -> Source:
    from hpo.data.user.table import TableSource  # polars takes longer to import than a small data set to read

    if task == "classification" and len(data.targets) != 1:
        problem = "a classification has one target; several need another task.kind"
        raise DataError(f"{path}: data.target names {len(data.targets)} columns, but {problem}")
    file = _base(path, folder) / path
    validation = None if data.validation == "auto" else _file_or_fraction(data.validation, folder)
    test = None if data.test is None else _file_or_fraction(data.test, folder)
    for key, other, known in (("validation", validation, [file]), ("test", test, [file, validation])):
        if isinstance(other, Path) and any(isinstance(each, Path) and _is_same(other, each) for each in known):
            raise DataError(f"{other}: data.{key} is a file of other rows of the study, too: name a file of its own")
    return TableSource(
        path=file,
        task=task,
        targets=data.targets,
        features=None if data.features is None else tuple(data.features),
        categorical=tuple(data.categorical or ()),
        groups=data.groups,
        validation=validation,
        test=test,
        is_time_order=data.order == "time",
    )


def _file_or_fraction(given: str | float, folder: Path) -> Path | float:
    return _base(given, folder) / given if isinstance(given, str) else given


def _is_same(one: Path, other: Path) -> bool:
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def _base(path: str, folder: Path) -> Path:
    """Return the first folder, the study file's or the current one, that has the path; none for a table in memory."""
    if is_in_memory(path):
        return Path()
    folders = [folder.absolute(), Path.cwd()]
    for each in folders:
        if os.path.exists(each / path):  # False where Path.exists would raise
            return each
    searched = " or ".join(dict.fromkeys(map(str, folders)))
    raise DataError(f"{path}: not found in {searched}; copy it there, or run hpo in the folder that has it")
