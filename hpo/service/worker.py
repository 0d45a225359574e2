"""A worker: takes whatever study of the queue has trials left, a population at a time, until it is told to stop.

Promises: the most urgent study goes first, equals in turn, and among them the one that the fewest work on; a study that
this machine cannot train (its images are missing, its networks do not fit) is left to others for a while and the rest
goes on; one whose training raises the same again and again is stopped for all, with the reason. After a stop the epoch
in hand ends and unfinished trials go back to the queue. A worker remembers nothing that the storage does not know: the
searches that it keeps at hand only save it from reading them again.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from optuna.trial import TrialState

from hpo.errors import HpoError, StorageError, StudyClosedError, TrainingError
from hpo.search.events import Event, Note, Reason
from hpo.search.launch import ended, join
from hpo.search.loop import Search
from hpo.search.records import STUDY
from hpo.storage import (
    PRIORITY,
    Running,
    Storage,
    StudyState,
    StudySummary,
    heartbeats,
    open_summaries,
    processes,
    running_trials,
    set_state,
    summary,
)
from hpo.storage.connections import TransientError
from hpo.storage.heartbeats import GRACE_S

POLL_S = 1.0
"""How often a worker that has nothing to do looks into the queue."""

ASIDE_S = 60.0
"""How long a study that cannot be trained here is left to others."""

AT_HAND = 4
"""Studies whose search, and images on the device, a worker keeps while it works on others."""

log = logging.getLogger(__name__)

Listener = Callable[[str, Event], None]
"""Called with the name of a study and what happened to it."""


@dataclass(frozen=True)
class Duty:
    """What a worker is to do: on these studies (none: on all), on which device, with how many threads (None: a share of
    the machine's cores), and whether it ends when nothing is left to do."""

    names: tuple[str, ...] = ()
    device: str = "auto"
    threads: int | None = None
    until_idle: bool = False


def work(storage: Storage, duty: Duty, on_event: Listener, stop: threading.Event) -> None:
    """Work until `stop` is set or, where the duty says so, until nothing is left to do.

    Raises UnknownStudyError for a study that the storage has not, and at the end of a duty until idle the HpoError of a
    study that could not be trained here.
    """
    storage.patience.stop = stop
    for name in duty.names:
        summary(storage, name)
    worker = _Worker(storage, duty, on_event, stop)
    try:
        with heartbeats(storage):
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
    refused: dict[int, HpoError] = field(default_factory=dict)  # by study: why it cannot be trained here
    _searches: OrderedDict[int, tuple[str, float, Search]] = field(default_factory=OrderedDict)
    _aside: dict[int, float] = field(default_factory=dict)  # study -> until when, by the monotonic clock
    _turns: Counter[int] = field(default_factory=Counter)
    _cores: int = field(default_factory=torch.get_num_threads)

    def run(self) -> None:
        while not self.stop.is_set():
            studies = self._studies()
            running = running_trials(self.storage)
            if study := self._next(studies, running):
                self._serve(study)
            elif self.duty.until_idle and not any(self._left(study, running) for study in studies):
                return
            else:
                self.stop.wait(POLL_S)

    def _studies(self) -> list[StudySummary]:
        names = self.duty.names
        found = [study for study in open_summaries(self.storage) if STUDY in study.user_attrs]
        return [study for study in found if not names or study.name in names]

    def _left(self, study: StudySummary, running: Sequence[Running]) -> bool:
        """Whether there is anything left to do, or to wait for."""
        if study.study_id in self.refused:
            return False
        held = any(trial.study_id == study.study_id for trial in running)
        return held or study.states.get(TrialState.WAITING, 0) > 0 or _missing(study) > 0

    def _next(self, studies: Sequence[StudySummary], running: Sequence[Running]) -> StudySummary | None:
        """The study whose turn it is, of those that have trials to take, or whose end nobody has noted."""
        held = Counter(trial.study_id for trial in running)
        lost = Counter(trial.study_id for trial in running if trial.lost)
        now = time.monotonic()

        def to_take(study: StudySummary) -> bool:
            waiting = study.states.get(TrialState.WAITING, 0)
            return bool(_missing(study) > 0 or waiting or lost[study.study_id] or not held[study.study_id])

        def turn(study: StudySummary) -> tuple[float, int, int]:
            priority = study.user_attrs.get(PRIORITY, 0)
            return -priority, held[study.study_id], self._turns[study.study_id]

        candidates = [study for study in studies if self._aside.get(study.study_id, now) <= now and to_take(study)]
        return min(candidates, key=turn, default=None)

    def _serve(self, study: StudySummary) -> None:
        """Train a population of the study, or note that there is none left."""
        study_id, name = study.study_id, study.name
        self._turns[study_id] = 1 + max(self._turns.values(), default=0)
        try:
            search, start = self._search(study)
            torch.set_num_threads(self.duty.threads or self._share())
            if search.step():
                self.refused.pop(study_id, None)
            elif reason := search.over():
                self._leave(study, search, reason, start)
            else:
                self._aside[study_id] = time.monotonic() + POLL_S  # others have all of its trials in hand
        except StudyClosedError as closed:
            entered = self._searches.get(study_id)
            if entered is not None:
                self._leave(study, entered[2], closed.how, entered[1])
        except TrainingError as error:
            set_state(self.storage, study_id, StudyState.STOPPED, str(error))
            self._searches.pop(study_id, None)
            self._note(name, f"{error}; the study is stopped")
        except StorageError:
            raise
        except HpoError as error:
            self._aside[study_id] = time.monotonic() + ASIDE_S
            self._searches.pop(study_id, None)
            self.refused[study_id] = error
            self._note(name, f"{error}; left to other workers for {ASIDE_S:.0f} s")

    def _search(self, study: StudySummary) -> tuple[Search, float]:
        """This worker's search of the study, and when it entered it; made anew where the study has changed since."""
        text = study.user_attrs[STUDY]
        entered = self._searches.pop(study.study_id, None)
        if entered is None or entered[0] != text:
            while len(self._searches) >= AT_HAND:  # first, because their images are on the device
                self._searches.popitem(last=False)
            say = functools.partial(self.on_event, study.name)
            search = join(study.name, self.storage, device=self.duty.device, on_event=say, stop=self.stop)
            entered = text, time.perf_counter(), search
        self._searches[study.study_id] = entered
        return entered[2], entered[1]

    def _leave(self, study: StudySummary, search: Search, reason: Reason, start: float) -> None:
        del self._searches[study.study_id]
        if reason != "changed":  # it is entered again as it is now
            say = functools.partial(self.on_event, study.name)
            say(ended(search.study, self.storage, reason, time.perf_counter() - start, say))

    def _share(self) -> int:
        """This worker's part of the cores: all who work on the storage from this machine have equal ones."""
        mine = self.storage.worker
        known = [each for each in processes(self.storage) if each.silent_s < GRACE_S]
        workers = {each.worker.key for each in known if each.worker.machine == mine.machine} | {mine.key}
        return max(1, self._cores // len(workers))

    def _note(self, name: str, text: str) -> None:
        self.on_event(name, Note(text, "warning"))


def _missing(study: StudySummary) -> int:
    return wanted(study.user_attrs) - sum(study.states.values())


def wanted(user_attrs: Mapping[str, str]) -> int:
    """Return how many trials a stored study shall have."""
    return _trials(user_attrs[STUDY])


@functools.lru_cache(maxsize=256)
def _trials(text: str) -> int:
    return int(json.loads(text)["search"]["trials"])
