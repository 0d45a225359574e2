"""What data is where: one line a data set, for people who wonder what they have.

Promises: quick, since it reads headers and sizes only (so damage within a file shows when the data is loaded), and a
data set that is missing or damaged is a note, never an exception. Opens no test file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpo.data import digits
from hpo.data.catalogue import CATALOGUE, Catalogue, Dataset
from hpo.data.places import FORMATS, find_place
from hpo.errors import DataError


@dataclass(frozen=True)
class Listing:
    """One data set: `place` and `train_images` are None where it is not there or cannot be read."""

    name: str
    place: Path | None
    kind: str
    train_images: int | None
    note: str


def list_datasets(catalogue: Catalogue = CATALOGUE) -> list[Listing]:
    """Return every known data set, found or not, in the catalogue's order."""
    return [_listing(dataset, catalogue) for dataset in catalogue.values()]


def _listing(dataset: Dataset, catalogue: Catalogue) -> Listing:
    if dataset.format == "scikit-learn":
        folder = digits.place()
        count = digits.TRAINING_SIZE if folder else None
        return Listing(dataset.name, folder, digits.KIND, count, "installed" if folder else "not installed")
    reader = FORMATS[dataset.format]
    try:
        place = find_place(dataset, catalogue)
    except DataError as error:
        return Listing(dataset.name, None, reader.KIND, None, f"not found: {error}")
    if place is None:
        return Listing(dataset.name, None, reader.KIND, None, f"not found: hpo data fetch {dataset.name}")
    try:
        count = reader.count_training(place.folder, dataset.shape)
    except DataError as error:
        return Listing(dataset.name, place.folder, reader.KIND, None, str(error))
    return Listing(dataset.name, place.folder, reader.KIND, count, place.origin)
