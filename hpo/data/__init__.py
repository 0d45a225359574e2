"""Images in, three splits out: the training and validation images of a study, the sealed test set, and downloads.

`load_split` gives a study its training and validation images and never opens a test file; `load_test` alone reads the
sealed test set. `fetch` downloads a data set into the cache, whole or not at all; `list_datasets` says what is where.
This room knows numpy and files. It knows nothing of tensors, networks or storages.
"""

from __future__ import annotations

from hpo.data.download import fetch
from hpo.data.images import Images, SealedImages, Split
from hpo.data.listing import Listing, list_datasets
from hpo.data.splits import check_test, load_split, load_test

__all__ = [
    "Images",
    "Listing",
    "SealedImages",
    "Split",
    "check_test",
    "fetch",
    "list_datasets",
    "load_split",
    "load_test",
]
