"""Images in memory: as their files hold them (`RawImages`), as networks want them (`Images`), and split (`Split`).

Promises: pixels handed out are float32 of shape [N, C, H, W], bytes scaled to [0, 1] and numbers as they are; labels
int64 of shape [N]; the content's SHA-256 depends on the images and labels alone, not on the container (plain or gzip,
one file or five). Knows nothing of files, folders or formats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NAMED = 5
"""So many names of classes are in a line that could have any number of them."""


@dataclass(frozen=True, eq=False)
class Images:
    """Pixels as networks want them, and their labels. The arrays belong to the caller."""

    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class SealedImages(Images):
    """The images of the sealed test set, and the SHA-256 of their content."""

    content_sha256: str


@dataclass(frozen=True, eq=False)
class RawImages:
    """Images as their files hold them: bytes, of which `white` is the brightest, or numbers, which are taken as given.

    `names` are those of the classes, where the files say them. `content` is what else tells these images from others
    of the same bytes.
    """

    pixels: NDArray[np.uint8] | NDArray[np.float32]
    labels: NDArray[np.uint8] | NDArray[np.int64]
    white: int | None = 255
    names: tuple[str, ...] = ()
    content: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Images:
        """Return the images at `indices`, in that order, scaled; only those are converted."""
        pixels = self.pixels[indices].astype(np.float32, copy=False)  # the indexing has copied
        if self.white is not None:
            pixels /= self.white
        return Images(pixels, self.labels[indices].astype(np.int64))

    def content_sha256(self) -> str:
        """Return the SHA-256 of the shape, the pixel bytes and the label bytes."""
        digest = hashlib.sha256("x".join(map(str, self.pixels.shape)).encode())
        digest.update(self.content.encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Split:
    """A study's training and validation images; the test set stays sealed.

    `content_sha256` is of the data set's whole training content, before any image is left out; `split_sha256` is of
    the validation and training indices into it. `test_size` is 0 where there is no test set, None where only opening
    the sealed file would tell. `names` are those of the classes, `white` is the byte that stands for 1, None where
    pixels are numbers as given. `folder` is what the path of the user's own data is relative to, None for other data.
    """

    dataset: str
    names: tuple[str, ...]
    white: int | None
    folder: Path | None
    train: Images
    validation: Images
    content_sha256: str
    split_sha256: str
    test_size: int | None

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.names)

    @property
    def warning(self) -> str:
        """A line that names the classes without a validation image, of which no score says anything; "" for none.

        A class without a training image is an error of the split.
        """
        counts = np.bincount(self.validation.labels, minlength=self.classes)
        absent = [name for name, count in zip(self.names, counts, strict=True) if count == 0]
        if not absent:
            return ""
        advice = "another data.split_seed or a larger data.validation may have some"
        return f"{self.dataset}: no validation image of {these_classes(absent)}; {advice}"


def these_classes(names: Sequence[str]) -> str:
    """Return how a line speaks of classes, the first few of them by name."""
    named = ", ".join([*(f"'{name}'" for name in names[:NAMED]), *(["..."] if len(names) > NAMED else [])])
    return f"class {named}" if len(names) == 1 else f"{len(names)} classes ({named})"


def indices_sha256(validation: NDArray[np.int64], training: NDArray[np.int64]) -> str:
    """Return the SHA-256 of a split: which images, in which order (the order decides the batches)."""
    digest = hashlib.sha256(f"{len(validation)} {len(training)}\n".encode())
    digest.update(validation.astype("<i8").tobytes())
    digest.update(training.astype("<i8").tobytes())
    return digest.hexdigest()
