"""The user's own images in folders: one sub-folder a class, or `train/` and `test/` with one sub-folder a class each.

Classes are in the order of their names, images in that of theirs. Images are grey where all are, else RGB, and without
transparency. Promises: no file beneath `test/` is opened but by `read_test`; sizes are compared before any image is
decoded, and each is decoded once; what is no image, or not of the others' size, is a DataError that names the file.
Names that begin with a dot are passed over. Pillow is imported only when images are read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpo.data.images import RawImages
from hpo.data.own import labels_of, own
from hpo.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

TRAINING, TEST = "train", "test"

_GREY = ("1", "L", "LA")
_COLOURED = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


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

    def read_test(self, names: tuple[str, ...]) -> RawImages:
        """Read the images beneath test/."""
        self.check_test()
        root = self._test()
        assert root is not None, "it was checked"
        return self._read(root, names)

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

    def _read(self, root: Path, names: Sequence[str]) -> RawImages:
        found = [(file, name) for name in names if (root / name).is_dir() for file in _files(root / name)]
        labels, known = labels_of(np.array([name for _, name in found]), str(root), names)
        return own(_decoded([file for file, _ in found]), labels, known)


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


def _decoded(files: Sequence[Path]) -> NDArray[np.uint8]:
    """Return images as [N, C, H, W], of three channels where any has colours."""
    modes: set[str] = set()
    width, height = 0, 0
    for file in files:
        with _opened(file) as image:
            if file == files[0]:
                width, height = image.size
            if image.size != (width, height):
                size = f"{image.width} x {image.height} pixels"
                raise DataError(f"{file}: has {size}, {files[0]} has {width} x {height}; bring all to one size")
            if image.mode not in (*_GREY, *_COLOURED):
                raise DataError(f"{file}: has pixels of more than 8 bits (mode {image.mode}); give such images as .npz")
            modes.add(image.mode)
    grey = modes <= set(_GREY)
    pixels = np.empty((len(files), 1 if grey else 3, height, width), np.uint8)
    for index, file in enumerate(files):
        with _opened(file) as image:
            if image.mode in ("P", "PA"):  # whose transparency only this takes without a warning
                image = image.convert("RGBA")
            decoded = np.asarray(image.convert("L" if grey else "RGB"))
            pixels[index] = decoded[None] if grey else decoded.transpose(2, 0, 1)
    return pixels


@contextmanager
def _opened(file: Path) -> Iterator[Image]:
    """Open an image; every failure to read or decode it is a DataError naming it."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            yield image
    except UnidentifiedImageError as error:
        raise DataError(f"{file}: is no image that Pillow can read; take it away") from error
    except (SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: is a damaged image ({error})") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
