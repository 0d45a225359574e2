"""Write the news of a study to a tracker: each trial that has changed, once.

What could not be written is written with the next call: nothing is lost where a server was down for a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hpo.errors import HpoError
from hpo.storage import Storage, mask
from hpo.tracking.content import Model, StudyContent, TrackedStudy, TrackedTrial
from hpo.tracking.targets import Target
from hpo.tracking.tracker import Tracker


class Sync:
    """The runs of one study in one tracker. `pending` are the trials to write, by number."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.pending: dict[int, TrackedTrial] = {}
        self._tracker: Tracker | None = None
        self._is_open = False
        self._digests: dict[int, str] = {}  # of ended trials that are written
        self._written: dict[int, TrackedTrial] = {}  # running trials as they are written
        self.count = 0  # of written ended trials

    def add(self, trials: Iterable[TrackedTrial]) -> None:
        """Add trials to write; a later state of a trial replaces an earlier one."""
        self.pending |= {trial.number: trial for trial in trials}

    def write(self, study: TrackedStudy) -> None:
        """Write the pending trials. Raises any exception of the tracker's library; the other trials stay pending."""
        tracker = self._opened(study)
        for number, trial in sorted(self.pending.items()):
            before = self._written.pop(number, None)  # an exception leaves a run of unknown content: it is rewritten
            if trial.has_ended:
                if self._digests.get(number) != trial.digest:
                    _put(tracker, trial, before)
                    self._digests[number] = trial.digest
                self.count += 1
            elif tracker.follows_running and (trial.state == "running" or before is not None):
                self._written[number] = _put(tracker, trial, before)
            del self.pending[number]

    def write_models(self, models: Iterable[Model]) -> None:
        """Add weights to the runs of ended trials."""
        for model in models:
            if self._tracker is not None and model.number in self._digests:
                self._tracker.write_model(model)

    def reopen(self) -> None:
        """Look the runs up again before the next trial is written, as after a failure."""
        self._is_open = False

    def close(self) -> None:
        """Write what the tracker has buffered."""
        if self._tracker is not None:
            self._tracker.close()

    def _opened(self, study: TrackedStudy) -> Tracker:
        self._tracker = self._tracker or self.target.open()
        if not self._is_open:
            self._digests = dict(self._tracker.open(study))
            self._written.clear()
            self._is_open = True
        return self._tracker


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

    Raises HpoError, in one line, for any exception of the tracker's library.
    """
    content, sync = StudyContent(storage, name), Sync(target)
    sync.add(content.news())
    try:
        sync.write(content.study())
        sync.write_models(content.models())
        sync.close()
    except HpoError:
        raise
    except Exception as error:
        raise HpoError(f"{problem(target, error)}; see that it can be reached, then export again") from error
    return f"{name}: {sync.count} {'trial' if sync.count == 1 else 'trials'} in {target.shown}"


def problem(target: Target, error: Exception) -> str:
    """Return the exception of a tracker's library as one line, without passwords."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{target.shown}: cannot be written ({mask(text)})"
