"""Data sets: downloads, files and user data in; training, validation and sealed test examples out.

`load_split` returns a study's training and validation examples and opens no test file, `load_splits` those of several
splits; `load_whole` returns all of them
for training, under a preprocessing fitted on all. `load_test` alone reads the
sealed test set. `fetch` downloads a data set into the cache, completely or not at all. `list_datasets` lists the known
data sets. This room uses numpy and files, not tensors, networks or storages.
"""

from __future__ import annotations

from hpo.data.examples import Examples, SealedExamples, Split
from hpo.data.known.download import fetch
from hpo.data.known.folders import Listing, list_datasets
from hpo.data.splits import check_test, load_split, load_splits, load_test, load_whole

__all__ = [
    "Examples",
    "Listing",
    "SealedExamples",
    "Split",
    "check_test",
    "fetch",
    "list_datasets",
    "load_split",
    "load_splits",
    "load_test",
    "load_whole",
]
