"""A storage as the dashboard reads it: of a long study all trials, but only some learning curves.

optuna-dashboard sends a study to the browser as a whole, and draws every curve as a line of its own. A browser takes
some hundred lines; with the curves of 20,000 trials its page never opens. So of a study beyond LONG trials the curves
of the best and of the latest trials are read, and the others' are left out. Promises that only requests that read see
less: whatever changes something, as renaming a study, which copies it, sees the trials whole. Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Container, Iterator

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.search.study_records import STUDY
from hpo.storage import Storage, TrialFields
from hpo.storage.location import Location

LONG = 1000
BEST, LATEST = 100, 100
FRESH_S = 5.0
"""A page asks for the trials twice at once: for itself, and for the importance of the hyperparameters."""
ARTIFACTS = "artifacts:"


class View(Storage):
    """See the module; `reading` says for a thread that what it does until the block ends changes nothing."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self._here = threading.local()
        self._lock = threading.Lock()
        self._latest: tuple[int, float, list[FrozenTrial]] | None = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Let this thread see long studies with some of their curves only."""
        self._here.reading = True
        try:
            yield
        finally:
            self._here.reading = False

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Read a study's trials, as Optuna does where something may change."""
        seen = self._seen(study_id)
        if seen is None:
            return super().get_all_trials(study_id, deepcopy, states)
        return seen if states is None else [trial for trial in seen if trial.state in states]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        # Optuna's cache asks here, on behalf of the importance of the hyperparameters.
        seen = self._seen(study_id)
        if seen is None:
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        new = [t for t in seen if t._trial_id > trial_id_greater_than or t._trial_id in included_trial_ids]
        return new if states is None else [trial for trial in new if trial.state in states]

    def _seen(self, study_id: int) -> list[FrozenTrial] | None:
        """The trials as a request that reads sees them; None where it sees them whole."""
        # A study of another program may have kept what hpo does not, such as constraints.
        if not getattr(self._here, "reading", False) or STUDY not in self.get_study_user_attrs(study_id):
            return None
        with self._lock:  # the page's questions come at once: the second finds what the first has read
            if self._latest is None or self._latest[0] != study_id or time.monotonic() - self._latest[1] > FRESH_S:
                self._latest = study_id, time.monotonic(), self._thinned(study_id)
            trials = self._latest[2]
        return trials if len(trials) > LONG else None

    def _thinned(self, study_id: int) -> list[FrozenTrial]:
        trials = self.read_trials(study_id, -1, [], TrialFields(curves=False, system_attrs=ARTIFACTS))
        if len(trials) <= LONG:
            return trials
        maximized = self.get_study_directions(study_id)[0] == StudyDirection.MAXIMIZE
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.values]
        best = sorted(complete, key=lambda trial: trial.values[0], reverse=maximized)[:BEST]
        after = trials[-LATEST - 1]._trial_id
        whole = self.read_trials(
            study_id, after, [trial._trial_id for trial in best], TrialFields(system_attrs=ARTIFACTS)
        )
        curves = {trial._trial_id: trial for trial in whole}
        return [curves.get(trial._trial_id, trial) for trial in trials]
