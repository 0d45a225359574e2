"""Splits: a study's training and validation images, carved from the training files by a seeded shuffle.

Promises: `load_split` opens training files only, and the same study gives the same split; a split that training could
not use is an error at the study file's key. `load_test` is the one way to the sealed test set, which always comes from
the folder that the training files come from. Knows nothing of file formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpo.data.images import SealedImages, Split, indices_sha256
from hpo.data.sources import source_of
from hpo.errors import DataError
from hpo.studyfile import user_data

if TYPE_CHECKING:
    from hpo.studyfile import Study


def load_split(study: Study) -> Split:
    """Read the training files of the study's data set and split them; test files are not opened."""
    name = study.data.dataset
    source = source_of(name, study.folder)
    raw = source.read_training()
    validation, training = split_indices(study, raw.labels, raw.names)
    return Split(
        dataset=name,
        names=raw.names,
        white=raw.white,
        folder=None if user_data(name) is None else study.folder.absolute(),
        train=raw.take(training),
        validation=raw.take(validation),
        content_sha256=raw.content_sha256(),
        split_sha256=indices_sha256(validation, training),
        test_size=source.test_size(),
    )


def check_test(name: str, folder: Path = Path()) -> None:
    """Raise DataError where the data set called `name` has no sealed test set here; nothing of it is read.

    `folder` is the study file's.
    """
    source_of(name, folder).check_test()


def load_test(split: Split) -> SealedImages:
    """Read the sealed test set that belongs to a study's images."""
    source = source_of(split.dataset, split.folder or Path())
    known = split.train.pixels.shape[1:]
    raw = source.read_test(split.names, known[0])
    found = raw.pixels.shape[1:]
    if (found, raw.white) != (known, split.white):
        kinds = ["numbers" if white is None else "bytes" for white in (raw.white, split.white)]
        told = [f"{' x '.join(map(str, shape))} {kind}" for shape, kind in zip((found, known), kinds, strict=True)]
        raise DataError(f"{split.dataset}: test images are {told[0]}, and training images {told[1]}")
    images = raw.take(np.arange(len(raw)))
    return SealedImages(images.pixels, images.labels, raw.content_sha256())


def split_indices(
    study: Study, labels: NDArray[np.uint8] | NDArray[np.int64], names: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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
    absent = _absent_class(labels[training], len(names))
    if absent is not None:
        if absent not in labels:
            raise DataError(f"{settings.dataset}: its files hold no training image of class {names[absent]}")
        key = "data.validation" if absent in labels[kept] else "data.train_size"
        raise study.error(
            key, f"leaves no training image of class {names[absent]} (of {len(training)} training images)"
        )
    return validation, training


def _absent_class(labels: NDArray[np.uint8] | NDArray[np.int64], classes: int) -> int | None:
    absent = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    return int(absent[0]) if len(absent) else None
