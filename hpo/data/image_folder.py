"""The user's own images in folders: one sub-folder a class, or `train/` and `test/` with one sub-folder a class each.

Classes are in the order of their names, images in that of theirs. Images are grey where all training images are, else
RGB, test images like them. Promises: no file beneath `test/` is opened but by `read_test`; what cannot be read as it is
meant is a DataError that names the file. Names that begin with a dot are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpo.data.image_files import decoded
from hpo.data.images import RawImages
from hpo.data.own import labels_of, own
from hpo.errors import DataError

TRAINING, TEST = "train", "test"


@dataclass(frozen=True)
class ImageFolder:
    """The folder."""

    path: Path

    def read_training(self) -> RawImages:
        """Read the training images of all classes."""
        root = self._training()
        names = _classes(root)
        if len(names) < 2:
            found = f"one class only ({names[0]})" if names else "no sub-folders"
            raise DataError(f"{root}: {found}; each class of images has a sub-folder of its own")
        return self._read(root, names)

    def test_size(self) -> int:
        """Return how many files there are beneath test/."""
        root = self._test()
        return 0 if root is None else sum(len(_files(root / name)) for name in _classes(root))

    def check_test(self) -> None:
        """Raise DataError unless there are test images, of classes that the training images have."""
        root = self._test()
        if root is None:
            raise DataError(f"{self.path}: has no sealed test images (no folder {TEST} beside one that is {TRAINING})")
        if not self.test_size():
            raise DataError(f"{root}: holds no images")
        for name in _classes(root):
            if name not in _classes(self._training()):
                raise DataError(f"{root / name}: is no class of the training images")

    def read_test(self, names: tuple[str, ...], channels: int) -> RawImages:
        """Read the images beneath test/, as many channels of each as a training image has."""
        self.check_test()
        root = self._test()
        assert root is not None, "it was checked"
        return self._read(root, names, coloured=channels > 1)

    def _is_split(self) -> bool:
        """Whether the classes lie beneath train/, and train is not a class itself."""
        return bool(_classes(self.path / TRAINING)) if TRAINING in _classes(self.path) else False

    def _training(self) -> Path:
        if not self._is_split():
            return self.path
        for name in _classes(self.path):
            if name not in (TRAINING, TEST):
                where = f"{self.path / name}: lies beside {TRAINING}"
                raise DataError(f"{where}; validation is carved from that, so only {TEST} may be beside it")
        return self.path / TRAINING

    def _test(self) -> Path | None:
        return self.path / TEST if self._is_split() and TEST in _classes(self.path) else None

    def _read(self, root: Path, names: Sequence[str], coloured: bool | None = None) -> RawImages:
        found = [(file, name) for name in names if (root / name).is_dir() for file in _files(root / name)]
        labels, known = labels_of(np.array([name for _, name in found]), str(root), names)
        return own(decoded([file for file, _ in found], coloured), labels, known)


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from error


def _classes(folder: Path) -> list[str]:
    return [entry.name for entry in _listed(folder) if entry.is_dir()]


def _files(folder: Path) -> list[Path]:
    """Return the files of a class."""
    entries = _listed(folder)
    for entry in entries:
        if entry.is_dir():
            raise DataError(f"{entry.path}: is a folder within a class; the images of a class lie in one folder")
    if not entries:
        raise DataError(f"{folder}: holds no images")
    return [Path(entry.path) for entry in entries]
