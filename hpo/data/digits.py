"""The 1,797 real 8x8 images of handwritten digits that come inside scikit-learn: a data set with nothing to download.

Promises: the last 20% after a fixed shuffle are the sealed test set, the same for every study and seed, and no function
but `read_test` hands them out (the package holds all images in one file, so that file is read whole).
Knows nothing of splits. The file is read where it lies: importing scikit-learn takes longer than a small search.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from hpo.data.images import RawImages
from hpo.errors import DataError

KIND = "scikit-learn"
FILE = Path("datasets", "data", "digits.csv.gz")
WHITE = 16
TOTAL = 1797
TEST_SIZE = round(0.2 * TOTAL)
TRAINING_SIZE = TOTAL - TEST_SIZE
_SEAL_SEED = 0  # part of what "the digits test set" means: never change it


def place() -> Path | None:
    """Return scikit-learn's folder without importing it; None where it is not installed."""
    spec = importlib.util.find_spec("sklearn")
    return Path(spec.origin).parent if spec and spec.origin else None


def read_training() -> RawImages:
    """Return the images outside the sealed test set."""
    return _read(slice(0, TRAINING_SIZE))


def read_test() -> RawImages:
    """Return the sealed test set."""
    return _read(slice(TRAINING_SIZE, TOTAL))


def _read(part: slice) -> RawImages:
    folder = place()
    if folder is None:
        raise DataError("digits: scikit-learn, which holds these images, is not installed")
    try:
        rows = np.loadtxt(folder / FILE, delimiter=",", dtype=np.uint8)  # 64 pixels and the label
    except (OSError, ValueError) as error:
        raise DataError(f"digits: {folder / FILE} cannot be read ({error}); install scikit-learn anew") from error
    if rows.shape != (TOTAL, 65):
        raise DataError(f"digits: scikit-learn holds {len(rows)} of these images, {TOTAL} expected")
    rows = rows[np.random.Generator(np.random.PCG64(_SEAL_SEED)).permutation(TOTAL)[part]]
    return RawImages(rows[:, :64].reshape(-1, 1, 8, 8).copy(), rows[:, 64].copy(), WHITE)
