"""Where a study's images come from: a data set that hpo knows, or the user's own files or function.

    Known           digits, mnist, fashion_mnist, cifar10
    Npz             npz:images.npz
    ImageFolder     folder:path
    Function        my_data.py:load

Each gives training images and, separately, the sealed test set; none touches that before `read_test`. Paths of the
user's own data are relative to the study file's folder; where they are not there, to the current one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from hpo.data import digits
from hpo.data.catalogue import CATALOGUE, Dataset, known_dataset
from hpo.data.function import Function
from hpo.data.image_folder import ImageFolder
from hpo.data.images import RawImages
from hpo.data.npz import Npz
from hpo.data.places import FORMATS, required_place
from hpo.errors import DataError
from hpo.studyfile import user_data
from hpo.usercode import split_reference


class Source(Protocol):
    """Images of one data set."""

    def read_training(self) -> RawImages:
        """Read the training images, with the names of their classes."""
        ...

    def test_size(self) -> int | None:
        """Return how many test images there are; None where only opening their file would tell."""
        ...

    def check_test(self) -> None:
        """Raise DataError where there is no sealed test set; it is not opened."""
        ...

    def read_test(self, names: tuple[str, ...], channels: int) -> RawImages:
        """Read the sealed test set; `names` are those of the classes, `channels` those of a training image.

        Raises DataError where they are no images of these classes. Whether their shape is that of the training images
        is for the caller to see.
        """
        ...


@dataclass(frozen=True)
class Known:
    """A data set of the catalogue."""

    dataset: Dataset

    def read_training(self) -> RawImages:
        """Read the training files."""
        dataset = self.dataset
        if dataset.format == "scikit-learn":
            raw = digits.read_training()
        else:
            raw = FORMATS[dataset.format].read_training(self._place, dataset.shape, len(dataset.names))
        return replace(raw, names=dataset.names)

    def test_size(self) -> int | None:
        """Return what the size of the test file says."""
        if self.dataset.format == "scikit-learn":
            return digits.TEST_SIZE
        return FORMATS[self.dataset.format].test_size(self._place, self.dataset.shape)

    def check_test(self) -> None:
        """Raise DataError where the test files are missing."""
        if self.dataset.format != "scikit-learn":
            FORMATS[self.dataset.format].check_test(self._place, self.dataset.shape)

    def read_test(self, names: tuple[str, ...], channels: int) -> RawImages:
        """Read the test files, which lie in the folder of the training files."""
        if self.dataset.format == "scikit-learn":
            return digits.read_test()
        return FORMATS[self.dataset.format].read_test(self._place, self.dataset.shape, len(names))

    @cached_property
    def _place(self) -> Path:
        return required_place(self.dataset).folder


def source_of(name: str, folder: Path) -> Source:
    """Return the source of the data set that a study file names; `folder` is the study file's.

    Raises UsageError for a name that nothing has, DataError where the user's own files are nowhere.
    """
    match user_data(name):
        case "npz", path:
            return Npz(_base(path, folder) / path)
        case "folder", path:
            return ImageFolder(_base(path, folder) / path)
        case "code", reference:
            return Function(reference, _base(split_reference(reference)[0], folder))
        case _:
            return Known(known_dataset(name, CATALOGUE))


def _base(path: str, folder: Path) -> Path:
    """Return the folder in which the path of a study file leads to something."""
    folders = [folder.absolute(), Path.cwd()]
    for each in folders:
        if os.path.exists(each / path):  # which is False where Path.exists raises
            return each
    looked = " or ".join(dict.fromkeys(map(str, folders)))
    raise DataError(f"{path}: not found in {looked}; bring it there, or work in the folder that has it")
