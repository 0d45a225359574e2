"""List the known data sets and their folders.

Only headers and sizes are read, so it is fast and damage within a file is not found. A missing or damaged data set is a
note, not an exception. No test file is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpo.data import digits
from hpo.data.catalogue import CATALOGUE, Catalogue, Dataset
from hpo.data.folders import FORMATS, find_folder
from hpo.errors import DataError


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
        folder = digits.installed_folder()
        count = digits.TRAINING_SIZE if folder else None
        return Listing(dataset.name, folder, digits.KIND, count, "installed" if folder else "not installed")
    reader = FORMATS[dataset.format]
    try:
        place = find_folder(dataset, catalogue)
    except DataError as error:
        return Listing(dataset.name, None, reader.KIND, None, f"not found: {error}")
    if place is None:
        return Listing(dataset.name, None, reader.KIND, None, f"not found: hpo data fetch {dataset.name}")
    try:
        count = reader.count_training(place.folder, dataset.shape)
    except DataError as error:
        return Listing(dataset.name, place.folder, reader.KIND, None, str(error))
    return Listing(dataset.name, place.folder, reader.KIND, count, place.origin)
