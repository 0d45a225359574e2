"""Find the folder of a known data set, in HPO_DATA_DIR, in a system package or in the cache; list all known data sets.

The first folder with any training file is used, unless its training labels are those of another known data set: the
files of MNIST and Fashion-MNIST have the same names. The list is made from headers and sizes only, so it is fast and
finds no damage within a file. No test file is opened. Downloads are written to `cache_folder`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from hpo.data.examples import RawExamples
from hpo.data.known import cifar, idx, scikit_learn
from hpo.data.known.catalogue import CATALOGUE, Catalogue, Dataset
from hpo.errors import DataError
from hpo.files import user_folder

VARIABLE = "HPO_DATA_DIR"


class Format(Protocol):
    """The functions of a file format's module."""

    KIND: str

    def has_training_files(self, folder: Path) -> bool: ...
    def read_training(self, folder: Path, shape: tuple[int, ...], classes: int) -> RawExamples: ...
    def read_test(self, folder: Path, shape: tuple[int, ...], classes: int) -> RawExamples: ...
    def check_test(self, folder: Path, shape: tuple[int, ...]) -> None: ...
    def count_training(self, folder: Path, shape: tuple[int, ...]) -> int: ...
    def test_size(self, folder: Path, shape: tuple[int, ...]) -> int | None: ...


FORMATS: Mapping[str, Format] = MappingProxyType({"idx": idx, "cifar": cifar})


@dataclass(frozen=True)
class DataFolder:
    """A folder that may have a data set's training files, and where it was searched."""

    folder: Path
    origin: str


def cache_folder() -> Path:
    """Return the folder for downloads, one subfolder a data set; it need not exist."""
    return user_folder("cache", VARIABLE, DataError)


def find_folder(dataset: Dataset, catalogue: Catalogue = CATALOGUE) -> DataFolder | None:
    """Return the folder of the data set; None if there is none."""
    return next((found for found, has, other in _candidates(dataset, catalogue) if has and not other), None)


def require_folder(dataset: Dataset, catalogue: Catalogue = CATALOGUE) -> DataFolder:
    """Return the folder of the data set; raise DataError with the searched folders and a remedy if there is none."""
    skipped = ""
    for candidate, has_files, other in _candidates(dataset, catalogue):
        if has_files and not other:
            return candidate
        if other:
            skipped += f"; {candidate.folder} has {other}"
    variable = os.environ.get(VARIABLE, "")
    state = "not set" if not variable else variable if _expand(variable).is_dir() else f"{variable}: no such folder"
    searched = [f"{VARIABLE} ({state})", *map(str, dataset.system), str(cache_folder() / dataset.name)]
    raise DataError(
        f"{dataset.name}: not found in {', '.join(searched)}{skipped};"
        f" run `hpo data fetch {dataset.name}`, or name its folder in {VARIABLE}"
    )


def _candidates(dataset: Dataset, catalogue: Catalogue) -> Iterator[tuple[DataFolder, bool, str | None]]:
    """Yield each folder to search, whether it has training files, and the other data set that they are of."""
    reader = FORMATS[dataset.format]
    for candidate in _searched_folders(dataset):
        has_files = reader.has_training_files(candidate.folder)
        yield candidate, has_files, _other_dataset(dataset, candidate.folder, catalogue) if has_files else None


def _searched_folders(dataset: Dataset) -> Iterator[DataFolder]:
    variable = os.environ.get(VARIABLE, "")
    if variable:
        for name in dataset.folders:
            yield DataFolder(_expand(variable) / name, VARIABLE)
    for folder in dataset.system:
        yield DataFolder(folder, "system package")
    yield DataFolder(cache_folder() / dataset.name, "cache")


def _expand(folder: str) -> Path:
    return Path(os.path.expanduser(folder))


def _other_dataset(dataset: Dataset, folder: Path, catalogue: Catalogue) -> str | None:
    """Return the name of another data set if the folder has its published training labels."""
    if dataset.format != "idx":
        return None
    others = {
        download.sha256: other.name
        for other in catalogue.values()
        if other.format == "idx" and other.name != dataset.name
        for download in other.downloads
    }
    return others.get(idx.training_labels_sha256(folder) or "")


@dataclass(frozen=True)
class Listing:
    """One data set; `place`, its folder, and `train_images` are None if it is missing or cannot be read."""

    name: str
    place: Path | None
    kind: str
    train_images: int | None
    note: str


def list_datasets(catalogue: Catalogue = CATALOGUE) -> list[Listing]:
    """Return all known data sets, found or not, in the order of the catalogue."""
    return [_listing(dataset, catalogue) for dataset in catalogue.values()]


def _listing(dataset: Dataset, catalogue: Catalogue) -> Listing:
    if dataset.format == "scikit-learn":
        folder = scikit_learn.installed_folder()
        count = scikit_learn.training_size(dataset.name) if folder else None
        return Listing(dataset.name, folder, scikit_learn.KIND, count, "installed" if folder else "not installed")
    reader, folder = FORMATS[dataset.format], None
    try:
        found = find_folder(dataset, catalogue)
        if found is None:
            return Listing(dataset.name, None, reader.KIND, None, f"not found: hpo data fetch {dataset.name}")
        folder = found.folder
        return Listing(dataset.name, folder, reader.KIND, reader.count_training(folder, dataset.shape), found.origin)
    except DataError as error:
        return Listing(dataset.name, folder, reader.KIND, None, str(error) if folder else f"not found: {error}")
