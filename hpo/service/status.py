"""Status of a storage's studies and workers, read from the storage alone, as tables and as JSON.

All studies are read at one moment, and all workers at another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import TrialState

from hpo.errors import StorageError
from hpo.results.display.event_lines import pace
from hpo.results.output import Output
from hpo.results.study_facts import counts_by_state, counts_line
from hpo.search.study_records import STUDY, foreign_study_error, trial_target
from hpo.storage import (
    PRIORITY,
    STATE_REASON,
    RunningTrial,
    Storage,
    StudyState,
    StudySummary,
    Worker,
    last_epochs,
    registered_workers,
    running_trials,
    state_of,
    summaries,
    summary,
    trial_rates,
)
from hpo.storage.heartbeats import HEARTBEAT_TIMEOUT_S
from hpo.text import columns, duration, printable

PACE_S = 300.0
"""Seconds over which a study's pace is measured."""

UNREADABLE = "unreadable"


@dataclass(frozen=True)
class StudyStatus:
    """Status of a study: `trials` is the number that it asks for, `counts` the number of its trials in each state.

    `frozen` is the number of trials that are frozen, by the epochs that they have trained; `running` counts them too.
    If the study file or the state cannot be read, `trials` is None and `state` "unreadable". `per_second` (trials) and
    `left_s` (seconds left at that pace) are None if no trial has ended in the last `PACE_S` seconds.
    """

    name: str
    state: str
    why: str
    priority: float
    trials: int | None
    counts: Mapping[str, int]
    best: float | None
    per_second: float | None
    left_s: float | None
    frozen: Mapping[int, int]


@dataclass(frozen=True)
class WorkerStatus:
    """Status of a worker: `study` is "" if it has claimed no trial, `epoch` the last epoch that its members have ended.

    `population` is the number of trials that it trains, `frozen` the number of frozen trials that it has claimed.
    `silent_s` is the age of its last heartbeat, `lost` the reason why it counts as dead, or "".
    """

    host: str
    pid: int
    device: str
    study: str
    population: int
    epoch: int
    silent_s: float
    lost: str
    frozen: int


@dataclass(frozen=True)
class Status(Output):
    """Status of a storage: all its studies and workers, or one study and its workers."""

    studies: tuple[StudyStatus, ...]
    workers: tuple[WorkerStatus, ...]

    def tree(self) -> dict[str, Any]:
        """Return the studies and the workers as lists of dictionaries."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the lines of both tables."""
        return self.text().split("\n")

    def text(self, most_lines: int | None = None) -> str:
        """Return a table of studies and one of workers; leave out finished studies if that takes over `most_lines`."""
        text = self._text(self.studies)
        if most_lines is not None and text.count("\n") >= most_lines:
            text = self._text(tuple(study for study in self.studies if study.state != StudyState.ENDED))
        return text

    def _text(self, studies: Sequence[StudyStatus]) -> str:
        rows: list[tuple[str, ...]] = [("study", "state", "trials", "best", "pace", "left", "priority")]
        rows += [_study_row(study) for study in studies]
        workers: list[tuple[str, ...]] = [("worker", "device", "study", "population", "last heartbeat")]
        workers += [_worker_row(worker) for worker in self.workers]
        parts = [columns(rows), columns(workers) if self.workers else "no workers: start some with `hpo work`"]
        if len(studies) < len(self.studies):
            parts.insert(1, f"and {len(self.studies) - len(studies)} finished")
        reasons = [f"{study.name} is {study.state}: {study.why}" for study in self.studies if _is_closed(study)]
        if reasons:
            parts.insert(1, "\n".join(map(printable, reasons)))
        return "\n\n".join(parts)


def status(storage: Storage, which: str | int | None = None) -> Status:
    """Return the status of all studies of hpo, or of the one of that name or id, and of their workers."""
    found = [summary(storage, which)] if which is not None else summaries(storage)
    if which is not None and STUDY not in found[0].user_attrs:
        raise foreign_study_error(found[0].name)
    found = [study for study in found if STUDY in study.user_attrs]
    by_study = trial_rates(storage, PACE_S)
    studies = [_study(study, by_study.get(study.study_id)) for study in sorted(found, key=lambda each: each.name)]
    at_work = workers(storage, {study.study_id: study.name for study in found})
    return Status(tuple(studies), tuple(each for each in at_work if which is None or each.study == studies[0].name))


def workers(storage: Storage, names: Mapping[int, str]) -> list[WorkerStatus]:
    """Return the storage's workers, idle ones too, and every process with a claimed trial; `names`: id -> name."""
    running = running_trials(storage)
    epochs = last_epochs(storage, [trial.trial_id for trial in running if trial.frozen is None])
    claimed: dict[tuple[str, int], list[RunningTrial]] = {}
    for trial in running:
        if trial.worker is not None and trial.study_id in names:
            claimed.setdefault((trial.worker.key, trial.study_id), []).append(trial)
    found = []
    for (_, study_id), trials in claimed.items():
        trained = [trial for trial in trials if trial.frozen is None]
        reached = max((epochs.get(trial.trial_id, 0) for trial in trained), default=0)
        first = trials[0]
        assert first.worker is not None
        counts = len(trained), reached, first.silent_s, first.orphaned or "", len(trials) - len(trained)
        found.append(_worker(first.worker, names[study_id], *counts))
    busy = {key for key, _ in claimed}
    for each in (each for each in registered_workers(storage) if each.worker.key not in busy):
        lost = f"silent for {duration(each.silent_s)}" if each.silent_s > HEARTBEAT_TIMEOUT_S else ""
        found.append(_worker(each.worker, "", 0, 0, each.silent_s, lost))
    return found


def _worker(
    worker: Worker, study: str, population: int, epoch: int, silent_s: float, lost: str, frozen: int = 0
) -> WorkerStatus:
    return WorkerStatus(worker.host, worker.pid, worker.device, study, population, epoch, silent_s, lost, frozen)


def _study(study: StudySummary, per_second: float | None) -> StudyStatus:
    trials, states = trial_target(study.user_attrs), study.states
    state, why = _state(study)
    done = sum(count for state, count in states.items() if state.is_finished())
    unfinished = states.get(TrialState.RUNNING, 0) + states.get(TrialState.WAITING, 0)
    if state == StudyState.OPEN and trials is not None and done >= trials and not unfinished:
        state, why = StudyState.ENDED, "finished"  # its last worker died before it stored the end
    runs = states.get(TrialState.RUNNING, 0) and per_second
    return StudyStatus(
        name=study.name,
        state=state,
        why=why,
        priority=study.user_attrs.get(PRIORITY, 0),
        trials=trials,
        counts=counts_by_state(states),
        best=study.best,
        per_second=per_second,
        left_s=max(0, (trials or 0) - done) / per_second if runs and per_second else None,
        frozen=study.frozen,
    )


def _state(study: StudySummary) -> tuple[str, str]:
    """Return the study's state and the reason for it; damaged attributes of one study do not hide the others."""
    if trial_target(study.user_attrs) is None:
        return UNREADABLE, "its study file cannot be read"
    try:
        return state_of(study.user_attrs), str(study.user_attrs.get(STATE_REASON) or "")
    except StorageError as error:
        return UNREADABLE, str(error)


def _is_closed(study: StudyStatus) -> bool:
    return bool(study.why) and study.state != StudyState.ENDED


def _study_row(study: StudyStatus) -> tuple[str, ...]:
    states = counts_line(study.counts, study.frozen)
    return (
        study.name,
        study.state if study.state != StudyState.ENDED else study.why or "ended",
        f"{states} of {'-' if study.trials is None else study.trials}",
        "-" if study.best is None else f"{study.best:.4f}",
        "-" if study.per_second is None else pace(study.per_second),
        "-" if study.left_s is None else duration(study.left_s),
        str(study.priority),
    )


def _worker_row(worker: WorkerStatus) -> tuple[str, ...]:
    parts = [f"{worker.population} members, epoch {worker.epoch}"] if worker.population else []
    population = ", ".join(parts + ([f"{worker.frozen} frozen"] if worker.frozen else [])) or "-"
    heartbeat = worker.lost or f"{duration(max(0.0, worker.silent_s))} ago"
    name = f"{worker.host}:{worker.pid}"
    return name, worker.device or "-", worker.study or "-", population, heartbeat
