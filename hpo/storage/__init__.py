"""Storage: open a database by URL, and read and write studies and trials in it.

All data is in Optuna's own tables, as plain Optuna would have written it. This room knows SQL and Optuna's records; it
knows nothing of tensors, study files, samplers or pruners.
"""

from hpo.storage.copying import CopyCounts, copy_study
from hpo.storage.dashboard_figures import figures_record, save_figures, save_note
from hpo.storage.heartbeats import (
    ATTEMPTS,
    FAILURE_REASON,
    RunningTrial,
    attempt_record,
    count_unfinished,
    deaths_without_progress,
    heartbeats,
    registered_workers,
    requeue_orphaned,
    running_trials,
)
from hpo.storage.location import mask, storage_option
from hpo.storage.sql.claim_conditions import (
    IDENTITY,
    PRIORITY,
    STATE,
    STATE_REASON,
    ClaimConditions,
    StudyState,
    identity,
    state_of,
)
from hpo.storage.sql.rows import TrialFields, TrialResult
from hpo.storage.sql.statements import FROZEN, RUNG, WORKER
from hpo.storage.storage import Storage, open_storage
from hpo.storage.studies import (
    StudySummary,
    best_trials,
    frozen_counts,
    last_epochs,
    load_study,
    open_summaries,
    study_id_of,
    study_names,
    summaries,
    summary,
    trial_rates,
)
from hpo.storage.study_changes import (
    REOPENED,
    ReopenedTrials,
    change_idle_study,
    check_open,
    end_study,
    rename_study,
    set_state,
)
from hpo.storage.workers import RegisteredWorker, Worker

__all__ = [
    "ATTEMPTS",
    "FAILURE_REASON",
    "FROZEN",
    "IDENTITY",
    "PRIORITY",
    "REOPENED",
    "RUNG",
    "STATE",
    "STATE_REASON",
    "WORKER",
    "ClaimConditions",
    "CopyCounts",
    "RegisteredWorker",
    "ReopenedTrials",
    "RunningTrial",
    "Storage",
    "StudyState",
    "StudySummary",
    "TrialFields",
    "TrialResult",
    "Worker",
    "attempt_record",
    "best_trials",
    "change_idle_study",
    "check_open",
    "copy_study",
    "count_unfinished",
    "deaths_without_progress",
    "end_study",
    "figures_record",
    "frozen_counts",
    "heartbeats",
    "identity",
    "last_epochs",
    "load_study",
    "mask",
    "open_storage",
    "open_summaries",
    "registered_workers",
    "rename_study",
    "requeue_orphaned",
    "running_trials",
    "save_figures",
    "save_note",
    "set_state",
    "state_of",
    "storage_option",
    "study_id_of",
    "study_names",
    "summaries",
    "summary",
    "trial_rates",
]
