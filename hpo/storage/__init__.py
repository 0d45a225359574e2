"""Where studies are kept: a URL becomes a storage that Optuna reads, and that takes a population in one transaction.

Everything lies in Optuna's own tables, as plain Optuna would have written it. This room knows SQL and Optuna's records;
it knows nothing of tensors, study files, samplers or pruners.
"""

from hpo.storage.attempts import ATTEMPTS, REASON, attempt
from hpo.storage.copying import Copied, copy_study
from hpo.storage.heartbeats import Running, heartbeats, retake, running_trials, unfinished
from hpo.storage.location import mask
from hpo.storage.rows import Ending, Parts
from hpo.storage.statements import WORKER
from hpo.storage.storage import Storage, open_storage
from hpo.storage.studies import StudySummary, best_trials, load_study, study_names, summaries, summary

__all__ = [
    "ATTEMPTS",
    "REASON",
    "WORKER",
    "Copied",
    "Ending",
    "Parts",
    "Running",
    "Storage",
    "StudySummary",
    "attempt",
    "best_trials",
    "copy_study",
    "heartbeats",
    "load_study",
    "mask",
    "open_storage",
    "retake",
    "running_trials",
    "study_names",
    "summaries",
    "summary",
    "unfinished",
]
