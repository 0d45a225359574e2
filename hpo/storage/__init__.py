"""Where studies are kept: a URL becomes a storage that Optuna reads, and that takes a population in one transaction.

Everything lies in Optuna's own tables, as plain Optuna would have written it. This room knows SQL and Optuna's records;
it knows nothing of tensors, study files, samplers or pruners.
"""

from hpo.storage.location import mask
from hpo.storage.rows import Ending
from hpo.storage.storage import Storage, open_storage
from hpo.storage.studies import load_study, study_names

__all__ = ["Ending", "Storage", "load_study", "mask", "open_storage", "study_names"]
