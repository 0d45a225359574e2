"""Sources of a study's examples: a known data set, or the user's files or function.

    CatalogueSource  digits, mnist, fashion_mnist, cifar10
    NpzSource        npz:wine.npz
    FolderSource     folder:images
    FunctionSource   my_data.py:load

Each reads training examples and, separately, the sealed test set, which only `read_test` reads. Paths of user data are
relative to the study file's folder or, if they do not exist there, to the current folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from hpo.data import digits
from hpo.data.catalogue import CATALOGUE, Dataset, known_dataset
from hpo.data.examples import RawExamples
from hpo.data.folders import FORMATS, require_folder
from hpo.data.function import FunctionSource
from hpo.data.image_folder import FolderSource
from hpo.data.npz import NpzSource
from hpo.errors import DataError
from hpo.studyfile import user_data
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
            raw = digits.read_training()
        else:
            raw = FORMATS[dataset.format].read_training(self._folder, dataset.shape, len(dataset.names))
        return replace(raw, names=dataset.names)

    def test_size(self) -> int | None:
        """Return the number of test examples by the size of their file."""
        if self.dataset.format == "scikit-learn":
            return digits.TEST_SIZE
        return FORMATS[self.dataset.format].test_size(self._folder, self.dataset.shape)

    def check_test(self) -> None:
        """Raise DataError if the test files are missing."""
        if self.dataset.format != "scikit-learn":
            FORMATS[self.dataset.format].check_test(self._folder, self.dataset.shape)

    def read_test(self, names: tuple[str, ...], channels: int) -> RawExamples:
        """Read the test files, which are in the folder of the training files."""
        if self.dataset.format == "scikit-learn":
            return digits.read_test()
        return FORMATS[self.dataset.format].read_test(self._folder, self.dataset.shape, len(names))

    @cached_property
    def _folder(self) -> Path:
        return require_folder(self.dataset).folder


def source_of(name: str, folder: Path, groups: str | None = None, task: str = "classification") -> Source:
    """Return the source of `data.dataset`; `folder` is the study file's, `groups` the name of its groups.

    Raises UsageError for an unknown name, and DataError if the user's file or folder does not exist, or cannot have
    groups or the targets of the task.
    """
    match user_data(name):
        case "npz", path:
            return NpzSource(_base(path, folder) / path, groups, task)
        case "code", reference:
            return FunctionSource(reference, _base(split_reference(reference)[0], folder), groups, task)
    if groups is not None:
        raise DataError(f"{name}: has no groups; data.groups needs npz:FILE or FILE.py:FUNCTION (got {groups!r})")
    if task != "classification":
        raise DataError(f"{name}: has classes; task.kind = {task} needs npz:FILE or FILE.py:FUNCTION")
    match user_data(name):
        case "folder", path:
            return FolderSource(_base(path, folder) / path)
        case _:
            return CatalogueSource(known_dataset(name, CATALOGUE))


def _base(path: str, folder: Path) -> Path:
    """Return the first folder, the study file's or the current one, that has the path."""
    folders = [folder.absolute(), Path.cwd()]
    for each in folders:
        if os.path.exists(each / path):  # False where Path.exists would raise
            return each
    searched = " or ".join(dict.fromkeys(map(str, folders)))
    raise DataError(f"{path}: not found in {searched}; copy it there, or run hpo in the folder that has it")
