"""Where a data set lies on this machine: HPO_DATA_DIR, a system package's folder, else the cache.

Promises: the first folder that has any training file is the place, and a folder whose training labels are known to be
another data set's is passed over (MNIST and Fashion-MNIST give their files the same names). No test file is opened.
Knows nothing of pixels; downloads write to `cache_folder` and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from hpo.data import cifar, idx
from hpo.data.catalogue import CATALOGUE, Catalogue, Dataset
from hpo.data.images import RawImages
from hpo.errors import DataError
from hpo.files import user_folder

VARIABLE = "HPO_DATA_DIR"


class Format(Protocol):
    """What a file format's module offers."""

    KIND: str

    def holds(self, folder: Path) -> bool: ...
    def read_training(self, folder: Path, shape: tuple[int, int, int], classes: int) -> RawImages: ...
    def read_test(self, folder: Path, shape: tuple[int, int, int], classes: int) -> RawImages: ...
    def check_test(self, folder: Path, shape: tuple[int, int, int]) -> None: ...
    def count_training(self, folder: Path, shape: tuple[int, int, int]) -> int: ...
    def test_size(self, folder: Path, shape: tuple[int, int, int]) -> int | None: ...


FORMATS: Mapping[str, Format] = MappingProxyType({"idx": idx, "cifar": cifar})


@dataclass(frozen=True)
class Place:
    """A folder that holds a data set's training files, and how it was found."""

    folder: Path
    origin: str


def cache_folder() -> Path:
    """Return the folder for downloads, one subfolder a data set; it need not exist."""
    return user_folder("cache", VARIABLE, DataError)


def find_place(dataset: Dataset, catalogue: Catalogue = CATALOGUE) -> Place | None:
    """Return where the data set is; None where no folder has it."""
    return next((place for place, problem in _candidates(dataset, catalogue) if not problem), None)


def required_place(dataset: Dataset, catalogue: Catalogue = CATALOGUE) -> Place:
    """Return where the data set is; where no folder has it, say where was looked and how to get it."""
    passed_over = []
    for place, problem in _candidates(dataset, catalogue):
        if not problem:
            return place
        if problem.startswith("holds"):
            passed_over.append(f"{place.folder} {problem}")
    named = os.environ.get(VARIABLE, "")
    state = "not set" if not named else named if _root(named).is_dir() else f"{named}: no such folder"
    looked = [f"{VARIABLE} ({state})", *map(str, dataset.system), str(cache_folder() / dataset.name)]
    raise DataError(
        f"{dataset.name}: not found in {', '.join(looked)}{''.join(f'; {text}' for text in passed_over)};"
        f" run `hpo data fetch {dataset.name}`, or name the folder that holds it in {VARIABLE}"
    )


def _candidates(dataset: Dataset, catalogue: Catalogue) -> Iterator[tuple[Place, str]]:
    """Yield each folder to look in with what keeps it from being the place ("" where nothing does)."""
    reader = FORMATS[dataset.format]
    for place in _folders(dataset):
        if not reader.holds(place.folder):
            yield place, "has none of the training files"
        elif owner := _other_owner(dataset, place.folder, catalogue):
            yield place, f"holds {owner}"
        else:
            yield place, ""


def _folders(dataset: Dataset) -> Iterator[Place]:
    named = os.environ.get(VARIABLE, "")
    if named:
        for name in dataset.folders:
            yield Place(_root(named) / name, VARIABLE)
    for folder in dataset.system:
        yield Place(folder, "system package")
    yield Place(cache_folder() / dataset.name, "cache")


def _root(named: str) -> Path:
    return Path(os.path.expanduser(named))


def _other_owner(dataset: Dataset, folder: Path, catalogue: Catalogue) -> str | None:
    """Return the other data set whose published training labels the folder holds, if it does."""
    if dataset.format != "idx":
        return None
    others = {
        download.sha256: other.name
        for other in catalogue.values()
        if other.format == "idx" and other.name != dataset.name
        for download in other.downloads
    }
    return others.get(idx.training_labels_sha256(folder) or "")
