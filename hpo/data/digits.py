"""The digits data set: 1,797 8x8 images of handwritten digits inside scikit-learn, without a download.

The last 20% after a fixed shuffle are the sealed test set, the same for every study and seed. Only `read_test` returns
them, although the package has all images in one file, which is read completely. scikit-learn is not imported, because
that takes longer than a small search.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from hpo.data.examples import RawExamples
from hpo.errors import DataError

KIND = "scikit-learn"
FILE = Path("datasets", "data", "digits.csv.gz")
WHITE = 16
TOTAL = 1797
TEST_SIZE = round(0.2 * TOTAL)
TRAINING_SIZE = TOTAL - TEST_SIZE
_SEAL_SEED = 0  # defines the test set: never change it


def installed_folder() -> Path | None:
    """Return scikit-learn's folder without importing it; None if it is not installed."""
    spec = importlib.util.find_spec("sklearn")
    return Path(spec.origin).parent if spec and spec.origin else None


def read_training() -> RawExamples:
    """Return the images outside the sealed test set."""
    return _read(slice(0, TRAINING_SIZE))


def read_test() -> RawExamples:
    """Return the sealed test set."""
    return _read(slice(TRAINING_SIZE, TOTAL))


def _read(part: slice) -> RawExamples:
    folder = installed_folder()
    if folder is None:
        raise DataError("digits: these images are part of scikit-learn, which is not installed")
    try:
        rows = np.loadtxt(folder / FILE, delimiter=",", dtype=np.uint8)  # 64 pixels and the label
    except (OSError, ValueError) as error:
        raise DataError(f"digits: {folder / FILE} cannot be read ({error}); reinstall scikit-learn") from error
    if rows.shape != (TOTAL, 65):
        raise DataError(f"digits: scikit-learn has {len(rows)} of these images, {TOTAL} expected; reinstall it")
    rows = rows[np.random.Generator(np.random.PCG64(_SEAL_SEED)).permutation(TOTAL)[part]]
    return RawExamples(rows[:, :64].reshape(-1, 1, 8, 8).copy(), rows[:, 64].copy(), WHITE)
