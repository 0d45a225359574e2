"""Write a study to a tracker: each trial once, and later what is new of it.

What could not be written stays pending and is written with the next call: nothing is lost where a server was down for a
while. One process at a time writes a study to a tracker.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace

from hpo.errors import HpoError
from hpo.storage import Storage, mask
from hpo.storage.tracking_leases import TrackingLease
from hpo.tracking.content import StudyContent, TrackedTrial
from hpo.tracking.targets import Target
from hpo.tracking.tracker import Tracker


class Sync:
    """The runs of one study in one tracker. `pending` are the trials to write, by number."""

    def __init__(self, storage: Storage, content: StudyContent, target: Target) -> None:
        self.target = target
        self.pending: dict[int, TrackedTrial] = {}
        self._content = content
        self._lease = TrackingLease(storage, content.study_id, f"{target.kind}:{target.place}")
        self._tracker: Tracker | None = None
        self._is_open = False
        self._digests: dict[int, str] = {}  # of ended trials that are written
        self._written: dict[int, TrackedTrial] = {}  # running trials as they are written

    def add(self, trials: Iterable[TrackedTrial]) -> None:
        """Add trials to write; a later state of a trial replaces an earlier one."""
        self.pending |= {trial.number: trial for trial in trials}

    def write(self, *, last: bool = False) -> bool:
        """Write the pending trials, and with `last` the weights of the kept ones; return False for another's lease.

        Raises any exception of the tracker's library; the other trials stay pending then.
        """
        try:
            if not self._lease.acquire():
                self._is_open = False
                return False
            tracker = self._opened()
            for number, trial in sorted(self.pending.items()):
                self._write_trial(tracker, trial)
                del self.pending[number]
                self._lease.acquire()  # renews it, where there is much to write
            for model in self._content.models() if last else ():
                if model.number in self._digests:
                    tracker.write_model(model)
        except Exception:
            self._is_open = False  # the runs are looked up again: the tracker may have got more than it confirmed
            raise
        return True

    def close(self) -> None:
        """Write what the tracker has buffered, and end the lease."""
        try:
            if self._tracker is not None:
                self._tracker.close()
        finally:
            self._lease.release()

    def _opened(self) -> Tracker:
        self._tracker = self._tracker or self.target.open()
        if not self._is_open:
            self._digests = dict(self._tracker.open(self._content.study()))
            self._written.clear()
            self._is_open = True
        return self._tracker

    def _write_trial(self, tracker: Tracker, trial: TrackedTrial) -> None:
        number = trial.number
        before = self._written.pop(number, None)
        if trial.has_ended:
            if self._digests.get(number) != trial.digest:
                _put(tracker, trial, before)
                self._digests[number] = trial.digest
        elif tracker.follows_running and (trial.state == "running" or before is not None):
            self._written[number] = _put(tracker, trial, before)


def _put(tracker: Tracker, trial: TrackedTrial, before: TrackedTrial | None) -> TrackedTrial:
    """Write a trial, or what is new of it since `before`; return it as it is written."""
    if trial.state == "waiting" and before is not None:
        trial = replace(before, state=trial.state)  # the curve so far stays until the trial is trained again
    if before is None or not trial.extends(before):
        tracker.write(trial)
    elif trial != before:
        tracker.extend(trial, before)
    return trial


def export_to(storage: Storage, name: str, target: Target) -> str:
    """Write a whole study to a tracker; return a line that says so. Trials that are there already are left alone.

    Raises HpoError, in one line, for any exception of the tracker's library, and where another process writes to it.
    """
    content = StudyContent(storage, name)
    sync, trials = Sync(storage, content, target), content.news()
    sync.add(trials)
    try:
        with contextlib.closing(sync):
            written = sync.write(last=True)
    except HpoError:
        raise
    except Exception as error:
        raise HpoError(f"{problem(target, error)}; see that it can be reached, then export again") from error
    if not written:
        writer = f"another process writes to {target.shown}, or did a minute ago"
        raise HpoError(f"study '{name}': {writer}; export again when it has ended")
    count = sum(trial.has_ended for trial in trials)
    return f"{name}: {count} {'trial' if count == 1 else 'trials'} in {target.shown}"


def problem(target: Target, error: Exception) -> str:
    """Return the exception of a tracker's library as one line, without passwords."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{target.shown}: cannot be written ({mask(text)})"
