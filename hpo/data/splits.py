"""Splits: a study's training and validation images, carved from the training files by a seeded shuffle.

Promises: `load_split` opens training files only, and the same study gives the same split; a split that training could
not use is an error at the study file's key. `load_test` is the one way to the sealed test set, which always comes from
the folder that the training files come from. Knows nothing of file formats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpo.data import digits
from hpo.data.catalogue import CATALOGUE, Dataset, known_dataset
from hpo.data.images import RawImages, SealedImages, Split, indices_sha256
from hpo.data.places import FORMATS, required_place
from hpo.errors import DataError

if TYPE_CHECKING:
    from hpo.studyfile import Study


def load_split(study: Study) -> Split:
    """Read the training files of the study's data set and split them; test files are not opened."""
    dataset = known_dataset(study.data.dataset, CATALOGUE)
    raw, test_size = _read_training(dataset)
    validation, training = split_indices(study, raw.labels, dataset.classes)
    return Split(
        dataset=dataset.name,
        classes=dataset.classes,
        train=raw.take(training),
        validation=raw.take(validation),
        content_sha256=raw.content_sha256(),
        split_sha256=indices_sha256(validation, training),
        test_size=test_size,
    )


def check_test(name: str) -> None:
    """Raise DataError where the sealed test set of the data set called `name` is missing; nothing is opened."""
    dataset = known_dataset(name, CATALOGUE)
    if dataset.format != "scikit-learn":
        FORMATS[dataset.format].check_test(required_place(dataset).folder, dataset.shape)


def load_test(name: str) -> SealedImages:
    """Read the sealed test set of the data set called `name`."""
    dataset = known_dataset(name, CATALOGUE)
    if dataset.format == "scikit-learn":
        raw = digits.read_test()
    else:
        folder = required_place(dataset).folder
        raw = FORMATS[dataset.format].read_test(folder, dataset.shape, dataset.classes)
    images = raw.take(np.arange(len(raw)))
    return SealedImages(images.pixels, images.labels, raw.content_sha256(), raw.white)


def split_indices(study: Study, labels: NDArray[np.uint8], classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the validation and the training indices: shuffle, keep `train_size`, give the first part to validation."""
    settings, total = study.data, len(labels)
    if settings.train_size is not None and settings.train_size > total:
        raise study.error(
            "data.train_size",
            f"must be at most {total}, the training images of {settings.dataset} (got {settings.train_size})",
        )
    order = np.random.Generator(np.random.PCG64(settings.split_seed)).permutation(total)
    kept = order[: settings.train_size]
    carved = round(settings.validation * len(kept))
    for empty, part in ((carved == 0, "validation"), (carved == len(kept), "training")):
        if empty:
            raise study.error("data.validation", f"leaves no {part} image of {len(kept)} (got {settings.validation:g})")
    validation, training = kept[:carved], kept[carved:]
    absent = _absent_class(labels[training], classes)
    if absent is not None:
        if absent not in labels:
            raise DataError(f"{settings.dataset}: its files hold no training image of class {absent}")
        key = "data.validation" if absent in labels[kept] else "data.train_size"
        raise study.error(key, f"leaves no training image of class {absent} (of {len(training)} training images)")
    return validation, training


def _absent_class(labels: NDArray[np.uint8], classes: int) -> int | None:
    absent = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    return int(absent[0]) if len(absent) else None


def _read_training(dataset: Dataset) -> tuple[RawImages, int | None]:
    """Return the training images and how many test images there are, where that shows without opening them."""
    if dataset.format == "scikit-learn":
        return digits.read_training(), digits.TEST_SIZE
    folder, reader = required_place(dataset).folder, FORMATS[dataset.format]
    return reader.read_training(folder, dataset.shape, dataset.classes), reader.test_size(folder, dataset.shape)
