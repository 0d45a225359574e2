"""Where studies are kept: a URL becomes a storage that Optuna reads, and that takes a population in one transaction.

Everything lies in Optuna's own tables, as plain Optuna would have written it. This room knows SQL and Optuna's records;
it knows nothing of tensors, study files, samplers or pruners.
"""

from hpo.storage.claim_conditions import (
    IDENTITY,
    PRIORITY,
    STATE,
    STATE_REASON,
    ClaimConditions,
    StudyState,
    identity,
    state_of,
)
from hpo.storage.copying import Copied, copy_study
from hpo.storage.dashboard_figures import Drawn, keep_figures, last_drawn
from hpo.storage.heartbeats import (
    ATTEMPTS,
    REASON,
    Running,
    attempt,
    heartbeats,
    registered_workers,
    retake,
    running_trials,
    unfinished,
)
from hpo.storage.location import mask
from hpo.storage.rows import Ending, Parts
from hpo.storage.statements import WORKER
from hpo.storage.storage import Storage, open_storage
from hpo.storage.studies import (
    StudySummary,
    best_trials,
    last_epochs,
    load_study,
    open_summaries,
    paces,
    study_names,
    study_of,
    summaries,
    summary,
)
from hpo.storage.study_changes import change_idle_study, check_open, end_study, rename_study, set_state
from hpo.storage.workers import RegisteredWorker, Worker

__all__ = [
    "ATTEMPTS",
    "IDENTITY",
    "PRIORITY",
    "REASON",
    "STATE",
    "STATE_REASON",
    "WORKER",
    "ClaimConditions",
    "Copied",
    "Drawn",
    "Ending",
    "Parts",
    "RegisteredWorker",
    "Running",
    "Storage",
    "StudyState",
    "StudySummary",
    "Worker",
    "attempt",
    "best_trials",
    "change_idle_study",
    "check_open",
    "copy_study",
    "end_study",
    "heartbeats",
    "identity",
    "keep_figures",
    "last_drawn",
    "last_epochs",
    "load_study",
    "mask",
    "open_storage",
    "open_summaries",
    "paces",
    "registered_workers",
    "rename_study",
    "retake",
    "running_trials",
    "set_state",
    "state_of",
    "study_names",
    "study_of",
    "summaries",
    "summary",
    "unfinished",
]
