"""A worker: takes whatever study of the queue has trials left, a population at a time, until it is told to stop.

Promises: the most urgent study goes first, equals in turn, and among them the one that the fewest work on; a study that
this machine cannot train (its images are missing, its networks do not fit) is left to others for a while and the rest
goes on; one whose training raises the same again and again is stopped for all, with the reason. After a stop the epoch
in hand ends and unfinished trials go back to the queue. A worker remembers nothing that the storage does not know: the
searches that it keeps at hand only save it from reading them again.
"""

from __future__ import annotations

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
from hpo.results.unranked import no_best
from hpo.search.events import Note, Reason
from hpo.search.launch import ended, join
from hpo.search.loop import Search
from hpo.search.study_records import foreign_study_error, trial_target
from hpo.service.dashboard.figures import Drawing, Listener
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
    summary,
)
from hpo.storage.connections import TransientError
from hpo.storage.heartbeats import HEARTBEAT_TIMEOUT_S
from hpo.text import hpo_command
from hpo.training.devices import find_device

POLL_S = 1.0
"""How often a worker that has nothing to do looks into the queue."""

ASIDE_S = 60.0
"""How long a study that cannot be trained here is left to others."""

AT_HAND_BYTES = 2**30
"""Images on the device that a worker keeps at hand, by the studies they belong to, while it works on others."""

log = logging.getLogger(__name__)

Key = tuple[int, str]
"""A study: its id, which another may have had before, and what tells it from that one."""


@dataclass(frozen=True)
class Duty:
    """What a worker is to do: on these studies, by name or id (none: on all), on which device, with how many threads
    (None: a share of the machine's cores), whether it ends when nothing is left to do, and whether a study's own code
    may differ here."""

    names: tuple[str | int, ...] = ()
    device: str = "auto"
    threads: int | None = None
    until_idle: bool = False
    changed_code: bool = False


def work(storage: Storage, duty: Duty, on_event: Listener, stop: threading.Event) -> None:
    """Work until `stop` is set or, where the duty says so, until nothing is left to do.

    Raises UsageError for a device that is not there, HpoError for a study by name that is not there or not hpo's, and
    at the end of a duty until idle the HpoError of a study that could not be trained here.
    """
    find_device(duty.device)
    worker = _Worker(storage, duty, Drawing(storage, on_event), stop)
    for name in duty.names:
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
        log.warning("%s is away: what was in hand goes back to the queue by itself", storage.shown)
    if duty.until_idle and worker.refused and not stop.is_set():
        raise next(iter(worker.refused.values()))


@dataclass
class _Worker:
    storage: Storage
    duty: Duty
    on_event: Listener
    stop: threading.Event
    refused: dict[Key, HpoError] = field(default_factory=dict)  # by study: why it cannot be trained here
    _searches: OrderedDict[Key, tuple[float, Search]] = field(default_factory=OrderedDict)
    named: set[Key] = field(default_factory=set)  # the studies of the duty, whatever they are called by now
    _aside: dict[Key, float] = field(default_factory=dict)  # study -> until when, by the monotonic clock
    _turns: Counter[Key] = field(default_factory=Counter)
    _raised: dict[Key, list[str]] = field(default_factory=dict)  # what training raised in its last populations
    _cores: int = field(default_factory=torch.get_num_threads)

    def run(self) -> None:
        while not self.stop.is_set():
            studies = self._studies()
            running = self._running(studies)
            if study := self._next(studies, running):
                self._serve(study)
            elif self.duty.until_idle and not any(self._left(study, running) for study in studies):
                return
            else:
                self.stop.wait(POLL_S)

    def _studies(self) -> list[StudySummary]:
        """The studies that this worker may have to do with; what it remembers of others it forgets."""
        names = self.duty.names
        found = [study for study in open_summaries(self.storage) if trial_target(study.user_attrs) is not None]
        self.named |= {_key(study) for study in found if study.name in names}
        found = [study for study in found if not names or _key(study) in self.named]
        keys = set(map(_key, found))
        for remembered in (self.refused, self._searches, self._aside, self._turns, self._raised):
            for key in remembered.keys() - keys:
                del remembered[key]
        return found

    def _running(self, studies: Sequence[StudySummary]) -> list[RunningTrial]:
        """The trials in hand, after those were taken back that died with a worker of a study that is closed by now."""
        running = running_trials(self.storage)
        open_ones = {study.study_id for study in studies}
        requeue_orphaned(
            self.storage, [trial for trial in running if trial.orphaned and trial.study_id not in open_ones]
        )
        return [trial for trial in running if trial.study_id in open_ones]

    def _left(self, study: StudySummary, running: Sequence[RunningTrial]) -> bool:
        """Whether there is anything left to do, or to wait for."""
        if _key(study) in self.refused:
            return False
        if _key(study) in self._aside:  # what others had in hand may have come back since
            return True
        held = any(trial.study_id == study.study_id for trial in running)
        return held or study.states.get(TrialState.WAITING, 0) > 0 or _missing(study) > 0

    def _next(self, studies: Sequence[StudySummary], running: Sequence[RunningTrial]) -> StudySummary | None:
        """The study whose turn it is, of those that have trials to take, or whose end nobody has noted."""
        at_work = {(trial.study_id, trial.worker) for trial in running if not trial.orphaned}
        held = Counter(study_id for study_id, _ in at_work)
        lost = Counter(trial.study_id for trial in running if trial.orphaned)
        now = time.monotonic()
        self._aside = {key: until for key, until in self._aside.items() if until > now}

        def to_take(study: StudySummary) -> bool:
            waiting = study.states.get(TrialState.WAITING, 0)
            return bool(_missing(study) > 0 or waiting or lost[study.study_id] or not held[study.study_id])

        def turn(study: StudySummary) -> tuple[float, int, int]:
            priority = study.user_attrs.get(PRIORITY, 0)
            return -priority, held[study.study_id], self._turns[_key(study)]

        candidates = [study for study in studies if _key(study) not in self._aside and to_take(study)]
        return min(candidates, key=turn, default=None)

    def _serve(self, study: StudySummary) -> None:
        """Train a population of the study, or note that there is none left."""
        key, name = _key(study), study.name
        self._turns[key] = 1 + max(self._turns.values(), default=0)
        try:
            start, search = self._search(study)
            self.refused.pop(key, None)
            torch.set_num_threads(self.duty.threads or self._share())
            if search.step():
                return
            if reason := search.end_if_done():
                self._leave(study, search, reason, start)
            else:
                self._aside[key] = time.monotonic() + POLL_S  # others have all of its trials in hand
        except StudyClosedError as closed:
            entered = self._searches.get(key)
            if entered is not None:
                self._leave(study, entered[1], closed.how, entered[0])
        except UnknownStudyError:  # deleted since this worker looked
            self._searches.pop(key, None)
        except TrainingError as error:
            set_state(self.storage, study.study_id, StudyState.STOPPED, error.raised)
            self._searches.pop(key, None)
            self._note(name, f"{error.raised}; the study is stopped, go on with `{hpo_command('resume', name)}`")
        except StorageError:
            raise
        except HpoError as error:
            self._aside[key] = time.monotonic() + ASIDE_S
            self._searches.pop(key, None)
            self.refused[key] = error.with_traceback(None)  # which would keep the images
            if not self.duty.until_idle or len(self.duty.names) != 1:  # else it is all that the end has to say
                self._note(name, f"{error}; left to other workers for {ASIDE_S:.0f} s")

    @staticmethod
    def _is_current(search: Search, study: StudySummary) -> bool:
        """Whether the study is still what it was when its search was entered, and still has its name."""
        return search.claim_conditions.name == study.name and search.claim_conditions.match(study.user_attrs)

    def _search(self, study: StudySummary) -> tuple[float, Search]:
        """When this worker entered the study, and its search; made anew where that has changed, or its name has."""
        entered = self._searches.pop(_key(study), None)
        if entered is None or not self._is_current(entered[1], study):
            while sum(search.idle_bytes for _, search in self._searches.values()) > AT_HAND_BYTES:
                self._searches.popitem(last=False)
            say = functools.partial(self.on_event, study.name)
            search = join(
                study.name,
                self.storage,
                device=self.duty.device,
                on_event=say,
                stop=self.stop,
                recent_errors=self._raised.setdefault(_key(study), []),
                changed_code=self.duty.changed_code,
            )
            entered = time.perf_counter(), search
        self._searches[_key(study)] = entered
        return entered

    def _leave(self, study: StudySummary, search: Search, reason: Reason, start: float) -> None:
        del self._searches[_key(study)]
        if reason != "changed":  # it is entered again as it is now
            say = functools.partial(self.on_event, study.name)
            done = ended(search.study, study.study_id, self.storage, reason, time.perf_counter() - start, say)
            say(done)
            if done.all_failed:
                say(Note(str(no_best(self.storage, study.name)), "warning"))

    def _share(self) -> int:
        """This worker's part of the cores: all who work on the storage from this machine have equal ones."""
        mine = self.storage.worker
        known = [each for each in registered_workers(self.storage) if each.silent_s < HEARTBEAT_TIMEOUT_S]
        workers = {each.worker.key for each in known if each.worker.machine == mine.machine} | {mine.key}
        return max(1, self._cores // len(workers))

    def _note(self, name: str, text: str) -> None:
        self.on_event(name, Note(text, "warning"))


def _key(study: StudySummary) -> Key:
    return study.study_id, str(study.user_attrs.get(IDENTITY))


def _missing(study: StudySummary) -> int:
    return (trial_target(study.user_attrs) or 0) - sum(study.states.values())
