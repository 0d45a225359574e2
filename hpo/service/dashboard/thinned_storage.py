"""A storage for the dashboard that omits most learning curves of long studies.

optuna-dashboard sends all trials to the browser and draws a line for each learning curve. A browser can draw
hundreds of lines; with the curves of 20,000 trials the page never opens. So in a study of more than `LONG` trials, only
the best and the latest trials have their curves. Requests that change something get all curves.

The page of a study shows its user attributes. A study with frozen trials gets one more, with their numbers; it is not
stored.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Container, Iterator

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.optuna_internals import FrozenStudy
from hpo.results.study_facts import epochs_text
from hpo.search.study_records import STUDY
from hpo.storage import Storage, TrialFields, frozen_counts
from hpo.storage.location import Location

LONG = 1000
"""Most trials of a study that are shown with all their curves."""
BEST, LATEST = 100, 100
"""Numbers of trials that keep their curves in a longer study."""
CACHE_S = 5.0
"""Seconds for which trials are cached: a page requests them twice, for itself and for the parameter importances."""
ARTIFACTS = "artifacts:"
FROZEN_TRIALS = "frozen trials"
"""The user attribute with the number of frozen trials at each epoch, as text."""


class View(Storage):
    """Storage that leaves out most curves of long studies, and counts frozen trials, in threads that are `reading`."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._latest: tuple[int, float, list[FrozenTrial]] | None = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Leave out most curves of long studies in this thread until the block ends."""
        self._thread.reading = True
        try:
            yield
        finally:
            self._thread.reading = False

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return all studies, in a reading thread with the number of frozen trials."""
        studies = super().get_all_studies()
        if getattr(self._thread, "reading", False):
            counts = frozen_counts(self)
            for study in studies:
                if frozen := counts.get(study._study_id):
                    study.user_attrs = {FROZEN_TRIALS: epochs_text(frozen), **study.user_attrs}
        return studies

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return a study's trials, in a reading thread without most curves of a long study."""
        trials = self._trials_to_read(study_id)
        if trials is None:
            return super().get_all_trials(study_id, deepcopy, states)
        return trials if states is None else [trial for trial in trials if trial.state in states]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        # Optuna's cache calls this for the parameter importances.
        trials = self._trials_to_read(study_id)
        if trials is None:
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        new = [t for t in trials if t._trial_id > trial_id_greater_than or t._trial_id in included_trial_ids]
        return new if states is None else [trial for trial in new if trial.state in states]

    def _trials_to_read(self, study_id: int) -> list[FrozenTrial] | None:
        """Return the trials of a long study in a reading thread; return None if no curves are to be left out."""
        # The trials of other programs may have attributes that hpo does not read, such as constraints.
        if not getattr(self._thread, "reading", False) or STUDY not in self.get_study_user_attrs(study_id):
            return None
        with self._lock:  # a page's requests come at once: the second one waits for what the first one reads
            if self._latest is None or self._latest[0] != study_id or time.monotonic() - self._latest[1] > CACHE_S:
                self._latest = study_id, time.monotonic(), self._read_without_most_curves(study_id)
            trials = self._latest[2]
        return trials if len(trials) > LONG else None

    def _read_without_most_curves(self, study_id: int) -> list[FrozenTrial]:
        trials = self.read_trials(study_id, -1, [], TrialFields(curves=False, system_attrs=ARTIFACTS))
        if len(trials) <= LONG:
            return trials
        maximized = self.get_study_directions(study_id)[0] == StudyDirection.MAXIMIZE
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.values]
        best = sorted(complete, key=lambda trial: trial.values[0], reverse=maximized)[:BEST]
        after = trials[-LATEST - 1]._trial_id
        with_curves = self.read_trials(
            study_id, after, [trial._trial_id for trial in best], TrialFields(system_attrs=ARTIFACTS)
        )
        curves = {trial._trial_id: trial for trial in with_curves}
        return [curves.get(trial._trial_id, trial) for trial in trials]
