"""hpo: hyperparameter search for PyTorch networks that trains whole populations of trials at once.

    import hpo

    study = hpo.launch("studies/digits.toml")
    print(study.best.value, study.best.params)

Importing hpo is fast: functions import torch, Optuna and the database when they are called. `__all__` lists the public
names; docs/how-to/python.md shows how to use them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpo.api.comparing import Comparison, compare
    from hpo.api.loading import load, studies
    from hpo.api.machine import dashboard, datasets, doctor, fetch, versions
    from hpo.api.models import predict, replay
    from hpo.api.proposal import Proposal
    from hpo.api.running import launch, status, submit, watch, work
    from hpo.api.sections import Data, Network, Optimizer, Preprocess, Search, Task, Training
    from hpo.api.stored_study import StoredStudy
    from hpo.api.study import Study, init, read, study_schema
    from hpo.api.trials import Trial
    from hpo.data import Listing
    from hpo.errors import (
        CodeError,
        DataError,
        HpoError,
        InterruptionError,
        SettingError,
        StorageError,
        StudyBusyError,
        StudyClosedError,
        StudyFileError,
        TrainingError,
        UnknownStudyError,
        UsageError,
    )
    from hpo.results.confirm.result import Confirmation
    from hpo.results.doctor.finding import Finding
    from hpo.results.ensemble.record import Ensemble
    from hpo.results.final_test.predict import Predictions, TargetPredictions
    from hpo.results.final_test.result import Tested
    from hpo.results.output import Result
    from hpo.results.reproduce.replay import Replay
    from hpo.search import events
    from hpo.service.status import Status
    from hpo.studyfile.searched import Choices, Range

__version__ = "0.1.0"

_NAMES_BY_MODULE = {
    "hpo.api.comparing": ["Comparison", "compare"],
    "hpo.api.loading": ["load", "studies"],
    "hpo.api.machine": ["dashboard", "datasets", "doctor", "fetch", "versions"],
    "hpo.api.models": ["predict", "replay"],
    "hpo.api.proposal": ["Proposal"],
    "hpo.api.running": ["launch", "status", "submit", "watch", "work"],
    "hpo.api.sections": ["Data", "Network", "Optimizer", "Preprocess", "Search", "Task", "Training"],
    "hpo.api.stored_study": ["StoredStudy"],
    "hpo.api.study": ["Study", "init", "read", "study_schema"],
    "hpo.api.trials": ["Trial"],
    "hpo.data": ["Listing"],
    "hpo.errors": [
        "CodeError",
        "DataError",
        "Ensemble",
        "HpoError",
        "InterruptionError",
        "SettingError",
        "StorageError",
        "StudyBusyError",
        "StudyClosedError",
        "StudyFileError",
        "TrainingError",
        "UnknownStudyError",
        "UsageError",
    ],
    "hpo.results.confirm.result": ["Confirmation"],
    "hpo.results.doctor.finding": ["Finding"],
    "hpo.results.final_test.predict": ["Predictions", "TargetPredictions"],
    "hpo.results.ensemble.record": ["Ensemble"],
    "hpo.results.final_test.result": ["Tested"],
    "hpo.results.reproduce.replay": ["Replay"],
    "hpo.results.output": ["Result"],
    "hpo.service.status": ["Status"],
    "hpo.studyfile.searched": ["Choices", "Range"],
}
_MODULES = {"events": "hpo.search.events"}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}

__all__ = [
    "Choices",
    "CodeError",
    "Comparison",
    "Confirmation",
    "Data",
    "DataError",
    "Ensemble",
    "Finding",
    "HpoError",
    "InterruptionError",
    "Listing",
    "Network",
    "Optimizer",
    "Predictions",
    "Preprocess",
    "Proposal",
    "Range",
    "Replay",
    "Result",
    "Search",
    "SettingError",
    "Status",
    "StorageError",
    "StoredStudy",
    "Study",
    "StudyBusyError",
    "StudyClosedError",
    "StudyFileError",
    "TargetPredictions",
    "Task",
    "Tested",
    "Training",
    "TrainingError",
    "Trial",
    "UnknownStudyError",
    "UsageError",
    "__version__",
    "compare",
    "dashboard",
    "datasets",
    "doctor",
    "events",
    "fetch",
    "init",
    "launch",
    "load",
    "predict",
    "read",
    "replay",
    "status",
    "studies",
    "study_schema",
    "submit",
    "versions",
    "watch",
    "work",
]


def __getattr__(name: str) -> Any:
    """Import a public name on its first use."""
    if name in _MODULES:
        value = import_module(_MODULES[name])
    elif name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
    else:
        raise AttributeError(f"module 'hpo' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
