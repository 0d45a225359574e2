"""User images in folders: one subfolder for each class, or `train/`, `val/` and `test/` with one for each class.

Classes and images are sorted by name. Images are grey if all training images are, else RGB; validation and test images
have the same channels. Only `read_test` opens files in `test/`. An unusable file is a DataError that names it. Names
that begin with a dot are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from hpo.data.examples import RawExamples
from hpo.data.user.arrays import encode_labels, user_examples
from hpo.data.user.image_files import decode_images
from hpo.errors import DataError

TRAINING, VALIDATION, TEST = "train", "val", "test"


@dataclass(frozen=True)
class FolderSource:
    """The folder with the images."""

    path: Path

    def read_training(self) -> RawExamples:
        """Read the training images of all classes."""
        root = self._training()
        names = _classes(root)
        if len(names) < 2:
            found = f"only one class ({names[0]})" if names else "no subfolders"
            raise DataError(f"{root}: {found}; each class must have a subfolder with its images")
        raw = self._read(root, names)
        own = self._beside_training(VALIDATION)
        if own is None:
            return raw
        assert isinstance(raw.inputs, np.ndarray), "images are arrays"
        return replace(raw, read_validation=partial(self._read_validation, own, raw.names, raw.inputs.shape[1]))

    def test_size(self) -> int:
        """Return the number of files in test/."""
        root = self._beside_training(TEST)
        return 0 if root is None else sum(len(_files(root / name)) for name in _classes(root))

    def check_test(self) -> None:
        """Raise DataError unless there are test images, all of training classes."""
        root = self._beside_training(TEST)
        if root is None:
            raise DataError(f"{self.path}: has no test set (folders {TRAINING} and {TEST})")
        _check_classes(root, _classes(self._training()))

    def read_test(self, names: tuple[str, ...], channels: int) -> RawExamples:
        """Read the images in test/, with the channels of training images."""
        self.check_test()
        root = self._beside_training(TEST)
        assert root is not None, "it was checked"
        return self._read(root, names, coloured=channels > 1)

    def _is_split(self) -> bool:
        """Return whether the classes are in train/; otherwise, train is a class itself."""
        return bool(_classes(self.path / TRAINING)) if TRAINING in _classes(self.path) else False

    def _training(self) -> Path:
        if not self._is_split():
            return self.path
        for name in _classes(self.path):
            if name not in (TRAINING, VALIDATION, TEST):
                raise DataError(f"{self.path / name}: only {VALIDATION} and {TEST} may be beside {TRAINING}")
        return self.path / TRAINING

    def _beside_training(self, name: str) -> Path | None:
        return self.path / name if self._is_split() and name in _classes(self.path) else None

    def _read_validation(self, root: Path, names: Sequence[str], channels: int) -> RawExamples:
        _check_classes(root, names)
        return self._read(root, names, coloured=channels > 1)

    def _read(self, root: Path, names: Sequence[str], coloured: bool | None = None) -> RawExamples:
        found = [(file, name) for name in names if (root / name).is_dir() for file in _files(root / name)]
        labels, known = encode_labels(np.array([name for _, name in found]), str(root), names)
        return user_examples(decode_images([file for file, _ in found], coloured), labels, known)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from error


def _classes(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _check_classes(root: Path, known: Sequence[str]) -> None:
    """Raise DataError unless the folder has images, all of known classes."""
    if not any(_files(root / name) for name in _classes(root)):
        raise DataError(f"{root}: has no images")
    for name in _classes(root):
        if name not in known:
            raise DataError(f"{root / name}: is not a class of the training images")


def _files(folder: Path) -> list[Path]:
    """Return the files of a class, sorted."""
    entries = _entries(folder)
    for entry in entries:
        if entry.is_dir():
            raise DataError(f"{entry.path}: is a folder in a class; move the images of a class into one folder")
    if not entries:
        raise DataError(f"{folder}: has no images")
    return [Path(entry.path) for entry in entries]
