"""Worker: trains the studies of the queue, a population at a time, until a stop.

The study with the highest priority comes first; among equals the one with the fewest workers, then each in turn. A
study that cannot be trained on this machine (its data is missing, its networks do not fit) is skipped for `SKIP_S`
seconds. A study whose training raises the same error in several populations in a row is stopped, with the reason. After
a stop the worker finishes the current epoch and requeues the unfinished trials. All state is in the storage: the cached
searches only save reading it again, but for the training states of frozen trials. A search that is dropped from the
cache writes these to files and requeues the trials.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from optuna.trial import TrialState

from hpo.errors import HpoError, StorageError, StudyClosedError, TrainingError, UnknownStudyError
from hpo.results.no_best_trial import no_best_trial
from hpo.search.events import Note, Reason
from hpo.search.launch import ended, join
from hpo.search.loop import Search
from hpo.search.study_records import foreign_study_error, trial_target
from hpo.service.dashboard.figures import FigureUpdater, Listener
from hpo.storage import (
    IDENTITY,
    PRIORITY,
    RunningTrial,
    Storage,
    StudyState,
    StudySummary,
    heartbeats,
    open_summaries,
    registered_workers,
    requeue_orphaned,
    running_trials,
    set_state,
    state_of,
    summary,
)
from hpo.storage.connections import TransientError
from hpo.storage.heartbeats import HEARTBEAT_TIMEOUT_S
from hpo.text import hpo_command
from hpo.training.devices import find_device

POLL_S = 1.0
"""Seconds between two reads of the queue while there is nothing to train."""

SKIP_S = 60.0
"""Seconds for which a worker skips a study that it cannot train."""

CACHED_BYTES = 2**30
"""Most bytes of data on the device that a worker caches for other studies than the one that it trains."""

log = logging.getLogger(__name__)

Key = tuple[int, str]
"""Key of a study: its id, which a deleted study may have had before, and its identity, which is unique."""


@dataclass(frozen=True)
class WorkerOptions:
    """Options of a worker, with the defaults of `hpo work`.

    names: the studies to train, by name or id; empty for all.
    device: auto, cpu, cuda, cuda:1 or mps.
    threads: threads for training; None for an equal share of the machine's cores.
    until_idle: return when no trials are left.
    changed_code: train studies whose user code differs on this machine.
    """

    names: tuple[str | int, ...] = ()
    device: str = "auto"
    threads: int | None = None
    until_idle: bool = False
    changed_code: bool = False


def work(storage: Storage, options: WorkerOptions, on_event: Listener, stop: threading.Event) -> None:
    """Train trials of the queue until `stop` is set or, with `until_idle`, until none are left.

    Raises UsageError for a missing device, HpoError for a name that is no study of hpo, and, with `until_idle`, at the
    end the HpoError of a study that could not be trained on this machine.
    """
    find_device(options.device)
    worker = _Worker(storage, options, FigureUpdater(storage, on_event), stop)
    for name in options.names:
        study = summary(storage, name)
        if trial_target(study.user_attrs) is None:
            raise foreign_study_error(study.name)
        worker.named.add(_key(study))
    try:
        with storage.retry_policy.override(stop, math.inf), heartbeats(storage):
            worker.run()
    except TransientError:
        if not stop.is_set():
            raise
        log.warning("%s cannot be reached: another worker will requeue the running trials", storage.shown)
    if options.until_idle and worker.untrainable and not stop.is_set():
        raise next(iter(worker.untrainable.values()))


@dataclass
class _Worker:
    storage: Storage
    options: WorkerOptions
    on_event: Listener
    stop: threading.Event
    untrainable: dict[Key, HpoError] = field(default_factory=dict)  # studies, with the reason
    _searches: OrderedDict[Key, tuple[float, Search]] = field(default_factory=OrderedDict)  # with the time of the start
    named: set[Key] = field(default_factory=set)  # the studies of `options.names`, which may have been renamed since
    _skipped_until: dict[Key, float] = field(default_factory=dict)  # by the monotonic clock
    _turns: Counter[Key] = field(default_factory=Counter)  # the number of the turn in which a study was trained last
    _recent_errors: dict[Key, list[str]] = field(default_factory=dict)  # of the last populations
    _cores: int = field(default_factory=torch.get_num_threads)

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                studies = self._studies()
                running = self._running(studies)
                if study := self._next(studies, running):
                    self._train_population(study)
                elif self.options.until_idle and not any(self._has_trials(study, running) for study in studies):
                    return
                else:
                    self.stop.wait(POLL_S)
        finally:
            with contextlib.ExitStack() as closing:  # closes all of them, also where closing one raises
                for key in list(self._searches):
                    closing.callback(self._drop, key)

    def _studies(self) -> list[StudySummary]:
        """Return the studies that this worker may train: open ones, and stopped ones with its frozen trials.

        Forget all others.
        """
        names = self.options.names
        found = [study for study in open_summaries(self.storage) if trial_target(study.user_attrs) is not None]
        self.named |= {_key(study) for study in found if study.name in names}
        found = [study for study in found if not names or _key(study) in self.named]
        found += [study for key in self._searches.keys() - set(map(_key, found)) if (study := self._stopped(key))]
        keys = set(map(_key, found))
        for key in self._searches.keys() - keys:
            self._drop(key)
        for by_study in (self.untrainable, self._skipped_until, self._turns, self._recent_errors):
            for key in by_study.keys() - keys:
                del by_study[key]
        return found

    def _stopped(self, key: Key) -> StudySummary | None:
        """Return a stopped study of which this worker has frozen trials, which are finished; None for any other."""
        with contextlib.suppress(UnknownStudyError):
            study = summary(self.storage, key[0])
            if _key(study) == key and study.frozen and state_of(study.user_attrs) == StudyState.STOPPED:
                frozen = {trial.trial_id for trial in running_trials(self.storage, key[0]) if trial.frozen is not None}
                return study if frozen & self.storage.claimed_ids else None
        return None

    def _running(self, studies: Sequence[StudySummary]) -> list[RunningTrial]:
        """Return the running trials of open studies; requeue the orphaned trials of closed ones."""
        running = running_trials(self.storage)
        open_ones = {study.study_id for study in studies}
        requeue_orphaned(
            self.storage, [trial for trial in running if trial.orphaned and trial.study_id not in open_ones]
        )
        return [trial for trial in running if trial.study_id in open_ones]

    def _has_trials(self, study: StudySummary, running: Sequence[RunningTrial]) -> bool:
        """Return whether the study has trials to train, or running ones that may be requeued."""
        if _key(study) in self.untrainable:
            return False
        if _key(study) in self._skipped_until:  # other workers may have requeued trials since
            return True
        return (
            any(trial.study_id == study.study_id for trial in running)
            or study.states.get(TrialState.WAITING, 0) > 0
            or _missing(study) > 0
        )

    def _next(self, studies: Sequence[StudySummary], running: Sequence[RunningTrial]) -> StudySummary | None:
        """Return the next study of those that have trials to claim, or whose end is not stored yet.

        A study with frozen trials counts as one of them: its search knows whether some of them can be promoted.
        """
        trained = [trial for trial in running if trial.frozen is None and not trial.orphaned]
        workers = Counter(study_id for study_id, _ in {(trial.study_id, trial.worker) for trial in trained})
        to_claim = {trial.study_id for trial in running if trial.frozen is not None or trial.orphaned}
        now = time.monotonic()
        self._skipped_until = {key: until for key, until in self._skipped_until.items() if until > now}

        def is_due(study: StudySummary) -> bool:
            waiting = study.states.get(TrialState.WAITING, 0)
            return bool(_missing(study) > 0 or waiting or study.study_id in to_claim or not workers[study.study_id])

        def turn(study: StudySummary) -> tuple[float, int, int]:
            priority = study.user_attrs.get(PRIORITY, 0)
            return -priority, workers[study.study_id], self._turns[_key(study)]

        candidates = [study for study in studies if _key(study) not in self._skipped_until and is_due(study)]
        return min(candidates, key=turn, default=None)

    def _train_population(self, study: StudySummary) -> None:
        """Train a population of the study, or store its end if no trials are left."""
        key, name = _key(study), study.name
        self._turns[key] = 1 + max(self._turns.values(), default=0)
        try:
            start, search = self._search(study)
            self.untrainable.pop(key, None)
            torch.set_num_threads(self.options.threads or self._share_of_cores())
            if search.step():
                return
            if reason := search.end_if_done():
                self._leave(study, search, reason, start)
            else:
                self._skipped_until[key] = time.monotonic() + POLL_S  # other workers train all of its trials
        except StudyClosedError as closed:
            if cached := self._searches.get(key):
                self._leave(study, cached[1], closed.how, cached[0])
        except UnknownStudyError:  # deleted meanwhile
            self._drop(key)
        except TrainingError as error:
            set_state(self.storage, study.study_id, StudyState.STOPPED, error.raised)
            self._drop(key)
            self._note(name, f"{error.raised}; the study is stopped, go on with `{hpo_command('resume', name)}`")
        except StorageError:
            raise
        except HpoError as error:
            self._skipped_until[key] = time.monotonic() + SKIP_S
            self._drop(key)
            self.untrainable[key] = error.with_traceback(None)  # its frames would keep the data in memory
            if not self.options.until_idle or len(self.options.names) != 1:  # else the error at the end is enough
                self._note(name, f"{error}; this worker skips the study for {SKIP_S:.0f} s")

    @staticmethod
    def _is_current(search: Search, study: StudySummary) -> bool:
        """Return whether the study's file, code and name are unchanged since its search began."""
        return search.claim_conditions.name == study.name and search.claim_conditions.match(study.user_attrs)

    def _search(self, study: StudySummary) -> tuple[float, Search]:
        """Return the cached search of the study, and its start; begin a new one if the study has changed."""
        key = _key(study)
        if key in self._searches and not self._is_current(self._searches[key][1], study):
            self._drop(key)
        if key not in self._searches:
            while sum(search.idle_bytes for _, search in self._searches.values()) > CACHED_BYTES:
                self._drop(next(iter(self._searches)))
            say = functools.partial(self.on_event, study.name)
            search = join(
                study.name,
                self.storage,
                device=self.options.device,
                on_event=say,
                stop=self.stop,
                recent_errors=self._recent_errors.setdefault(key, []),
                changed_code=self.options.changed_code,
            )
            self._searches[key] = time.perf_counter(), search
        self._searches.move_to_end(key)
        return self._searches[key]

    def _drop(self, key: Key) -> None:
        """Drop a search from the cache, if it is there: its frozen trials are requeued."""
        if cached := self._searches.pop(key, None):
            cached[1].close()

    def _leave(self, study: StudySummary, search: Search, reason: Reason, start: float) -> None:
        self._drop(_key(study))
        if reason != "changed":  # a changed study is not over: a new search of it begins
            say = functools.partial(self.on_event, study.name)
            done = ended(search.study, study.study_id, self.storage, reason, time.perf_counter() - start, say)
            say(done)
            if done.all_failed:
                say(Note(str(no_best_trial(self.storage, study.name)), "warning"))

    def _share_of_cores(self) -> int:
        """Return the number of this worker's cores: all workers of the storage on this machine get equally many."""
        this = self.storage.worker
        alive = [each.worker for each in registered_workers(self.storage) if each.silent_s < HEARTBEAT_TIMEOUT_S]
        workers = {each.key for each in alive if each.machine == this.machine} | {this.key}
        return max(1, self._cores // len(workers))

    def _note(self, name: str, text: str) -> None:
        self.on_event(name, Note(text, "warning"))


def _key(study: StudySummary) -> Key:
    return study.study_id, str(study.user_attrs.get(IDENTITY))


def _missing(study: StudySummary) -> int:
    return (trial_target(study.user_attrs) or 0) - sum(study.states.values())
