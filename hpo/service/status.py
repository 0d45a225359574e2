"""What the service is doing: its studies, and who works on them, from the storage alone.

`Status` is of one moment for the studies and of one for the workers. It knows how it looks as a table and as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import TrialState

from hpo.errors import StorageError
from hpo.results.display.progress import duration, pace
from hpo.results.display.tables import table
from hpo.results.result import Output
from hpo.results.states import by_word
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
from hpo.text import printable

PACE_S = 300.0
"""A study's pace is that of the last five minutes."""

UNREADABLE = "unreadable"


@dataclass(frozen=True)
class StudyStatus:
    """A study: `trials` is how many it shall have, `counts` how many of them are in each state.

    Where its study file or its state cannot be read, `trials` is None and `state` "unreadable". `per_second` is None
    where none has ended lately, and with it `left_s`, the seconds left at that pace.
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


@dataclass(frozen=True)
class WorkerStatus:
    """A worker: `study` is "" where it holds no trial, `epoch` the last one that its members have ended.

    `silent_s` is how long ago its last heartbeat was, `lost` why it no longer counts, or "".
    """

    host: str
    pid: int
    device: str
    study: str
    population: int
    epoch: int
    silent_s: float
    lost: str


@dataclass(frozen=True)
class Status(Output):
    """All studies and workers of a storage, or one study and those who work on it."""

    studies: tuple[StudyStatus, ...]
    workers: tuple[WorkerStatus, ...]

    def tree(self) -> dict[str, Any]:
        """Return the studies and the workers as lists of dictionaries."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the lines of both tables."""
        return self.text().split("\n")

    def text(self, most_lines: int | None = None) -> str:
        """Return two tables, one below the other; where they take more lines, without the studies that have ended."""
        text = self._text(self.studies)
        if most_lines is not None and text.count("\n") >= most_lines:
            text = self._text(tuple(study for study in self.studies if study.state != StudyState.ENDED))
        return text

    def _text(self, studies: Sequence[StudyStatus]) -> str:
        rows: list[tuple[str, ...]] = [("study", "state", "trials", "best", "pace", "left", "priority")]
        rows += [_study_row(study) for study in studies]
        workers: list[tuple[str, ...]] = [("worker", "device", "study", "population", "last heartbeat")]
        workers += [_worker_row(worker) for worker in self.workers]
        parts = [table(rows), table(workers) if self.workers else "no workers: start some with `hpo work`"]
        if len(studies) < len(self.studies):
            parts.insert(1, f"and {len(self.studies) - len(studies)} that have ended")
        reasons = [f"{study.name} is {study.state}: {study.why}" for study in self.studies if _is_closed(study)]
        if reasons:
            parts.insert(1, "\n".join(map(printable, reasons)))
        return "\n\n".join(parts)


def status(storage: Storage, which: str | int | None = None) -> Status:
    """Return what the storage knows of its studies, or of the one of that name or id, and of the workers."""
    of_hpo = [summary(storage, which)] if which is not None else summaries(storage)
    if which is not None and STUDY not in of_hpo[0].user_attrs:
        raise foreign_study_error(of_hpo[0].name)
    of_hpo = [study for study in of_hpo if STUDY in study.user_attrs]
    by_study = trial_rates(storage, PACE_S)
    studies = [_study(study, by_study.get(study.study_id)) for study in sorted(of_hpo, key=lambda each: each.name)]
    found = workers(storage, {study.study_id: study.name for study in of_hpo})
    return Status(tuple(studies), tuple(each for each in found if which is None or each.study == studies[0].name))


def workers(storage: Storage, names: Mapping[int, str]) -> list[WorkerStatus]:
    """Return who works on the storage, or holds a trial of it; `names` are those of the studies, by id."""
    running = running_trials(storage)
    epochs = last_epochs(storage, [trial.trial_id for trial in running])
    holding: dict[tuple[str, int], list[RunningTrial]] = {}
    for trial in running:
        if trial.worker is not None and trial.study_id in names:
            holding.setdefault((trial.worker.key, trial.study_id), []).append(trial)
    found = []
    for (_, study_id), trials in holding.items():
        reached = max(epochs.get(trial.trial_id, 0) for trial in trials)
        first = trials[0]
        assert first.worker is not None
        found.append(_worker(first.worker, names[study_id], len(trials), reached, first.silent_s, first.orphaned or ""))
    at_work = {key for key, _ in holding}
    idle = [each for each in registered_workers(storage) if each.worker.key not in at_work]
    for each in idle:
        lost = f"silent for {duration(each.silent_s)}" if each.silent_s > HEARTBEAT_TIMEOUT_S else ""
        found.append(_worker(each.worker, "", 0, 0, each.silent_s, lost))
    return found


def _worker(worker: Worker, study: str, population: int, epoch: int, silent_s: float, lost: str) -> WorkerStatus:
    return WorkerStatus(worker.host, worker.pid, worker.device, study, population, epoch, silent_s, lost)


def _study(study: StudySummary, per_second: float | None) -> StudyStatus:
    trials, states = trial_target(study.user_attrs), study.states
    state, why = _state(study)
    done = sum(count for state, count in states.items() if state.is_finished())
    unfinished = states.get(TrialState.RUNNING, 0) + states.get(TrialState.WAITING, 0)
    if state == StudyState.OPEN and trials is not None and done >= trials and not unfinished:
        state, why = StudyState.ENDED, "finished"  # whoever finished it did not live to note it
    runs = states.get(TrialState.RUNNING, 0) and per_second
    return StudyStatus(
        name=study.name,
        state=state,
        why=why,
        priority=study.user_attrs.get(PRIORITY, 0),
        trials=trials,
        counts=by_word(states),
        best=study.best,
        per_second=per_second,
        left_s=max(0, (trials or 0) - done) / per_second if runs and per_second else None,
    )


def _state(study: StudySummary) -> tuple[str, str]:
    """The study's state and why it is in it; a study that somebody damaged does not hide the others."""
    if trial_target(study.user_attrs) is None:
        return UNREADABLE, "its study file cannot be read"
    try:
        return state_of(study.user_attrs), str(study.user_attrs.get(STATE_REASON) or "")
    except StorageError as error:
        return UNREADABLE, str(error)


def _is_closed(study: StudyStatus) -> bool:
    return bool(study.why) and study.state != StudyState.ENDED


def _study_row(study: StudyStatus) -> tuple[str, ...]:
    states = ", ".join(f"{count} {word}" for word, count in study.counts.items() if count) or "none"
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
    population = f"{worker.population} members, epoch {worker.epoch}" if worker.population else "-"
    heartbeat = worker.lost or f"{duration(max(0.0, worker.silent_s))} ago"
    name = f"{worker.host}:{worker.pid}"
    return name, worker.device or "-", worker.study or "-", population, heartbeat
