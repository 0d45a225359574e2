"""A storage for the dashboard's pages: readable facts instead of hpo's records, and few curves of long studies.

The page of a study shows its user attributes. For a study of hpo these are its state, data and results instead of hpo's
records, and its note ends with a summary; a trial has its metrics and its configuration. None of this is stored.

optuna-dashboard sends all trials to the browser and draws a line for each learning curve. A browser can draw
hundreds of lines; with the curves of 20,000 trials the page never opens. So in a study of more than `LONG` trials, only
the best and the latest trials have their curves, metrics and configuration. Requests that change something get what is
stored.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Container, Iterator

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError
from hpo.optuna_internals import FrozenStudy
from hpo.results.display.study_page import RECORD, study_texts, trial_attrs
from hpo.results.study_facts import epochs_text
from hpo.search.study_records import STUDY, any_stored_study
from hpo.storage import Storage, TrialFields, frozen_counts, load_study, summary
from hpo.storage.dashboard_figures import NOTE, NOTE_VERSION, OWN, PLOT_DATA
from hpo.storage.location import DEFAULT_URL, Location
from hpo.studyfile import Study

LONG = 1000
"""Most trials of a study that are shown with all their curves."""
BEST, LATEST = 100, 100
"""Numbers of trials that keep their curves in a longer study."""
CACHE_S = 5.0
"""Seconds for which the trials of a long study are cached: its page requests them twice, with the importances."""
ARTIFACTS = "artifacts:"
FROZEN_TRIALS = "frozen trials"
"""The user attribute with the number of frozen trials at each epoch, as text."""
FORMER_FIGURES = tuple(f"{PLOT_DATA}{OWN}{kind}:" for kind in ("front", "history", "importances"))
"""Figures that earlier versions stored and the page has itself."""
DAMAGED = (HpoError, LookupError, TypeError, ValueError)
"""Errors from the records of a study of another version, or damaged ones: its page opens without them."""
log = logging.getLogger(__name__)


class View(Storage):
    """Storage that shows a study as its page needs it, in threads that are `reading`."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._latest: tuple[int, float, list[FrozenTrial]] | None = None

    @contextlib.contextmanager
    def reading(self, study_id: int | None = None) -> Iterator[None]:
        """Read for a page in this thread until the block ends; `study_id` is the study whose page it is."""
        self._thread.reading, self._thread.study_id = True, study_id
        try:
            yield
        finally:
            self._thread.reading = False

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return all studies, in a reading thread without hpo's records, and with the texts of the page's study."""
        studies = super().get_all_studies()
        if getattr(self._thread, "reading", False):
            counts = frozen_counts(self)
            for study in studies:
                texts = {}
                if study._study_id == self._thread.study_id and STUDY in study.user_attrs:
                    texts = self._add_note(study)
                if frozen := counts.get(study._study_id):
                    texts = {FROZEN_TRIALS: epochs_text(frozen), **texts}
                own = {key: value for key, value in study.user_attrs.items() if not key.startswith(RECORD)}
                study.user_attrs = {**texts, **own}
        return studies

    def _add_note(self, study: FrozenStudy) -> dict[str, str]:
        """Add the summary to a study's note; return the user attributes to show."""
        attrs = {key: each for key, each in study.system_attrs.items() if not key.startswith(FORMER_FIGURES)}
        shown, url = study.system_attrs, self.location.shown
        study.system_attrs = attrs
        try:
            texts, end = study_texts(self, summary(self, study._study_id), None if url == DEFAULT_URL else url)
        except DAMAGED as error:
            log.warning("study '%s': no summary for its page: %s", study.study_name, error)
            return {}
        pieces = [key for key in shown if key.startswith(NOTE)]
        written = "".join(attrs.pop(key) for key in sorted(pieces, key=lambda key: int(key.removeprefix(NOTE))))
        attrs |= {NOTE_VERSION: attrs.get(NOTE_VERSION, 0), f"{NOTE}0": f"{written}\n\n{end}".lstrip()}
        return texts

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return a study's trials, in a reading thread with metrics, and without most curves of a long study."""
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
        """Return the trials of a study of hpo in a reading thread; otherwise None."""
        # The trials of other programs may have attributes that hpo does not read, such as constraints.
        if not getattr(self._thread, "reading", False) or STUDY not in self.get_study_user_attrs(study_id):
            return None
        with self._lock:  # a page's requests come at once: the second one waits for what the first one reads
            if (
                self._latest is not None
                and self._latest[0] == study_id
                and time.monotonic() - self._latest[1] < CACHE_S
            ):
                return self._latest[2]
            trials = self._read_trials(study_id)
            if len(trials) > LONG:  # shorter ones are read in a moment, and shown as they are now
                self._latest = study_id, time.monotonic(), trials
            return trials

    def _read_trials(self, study_id: int) -> list[FrozenTrial]:
        """Return a study's trials as its page shows them."""
        if sum(summary(self, study_id).states.values()) <= LONG:
            trials = self.read_trials(study_id, -1, [], TrialFields())
            self._add_metrics(study_id, trials)
            return trials
        trials = self.read_trials(study_id, -1, [], TrialFields(curves=False, system_attrs=ARTIFACTS))
        maximized = self.get_study_directions(study_id)[0] == StudyDirection.MAXIMIZE
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.values]
        best = sorted(complete, key=lambda trial: trial.values[0], reverse=maximized)[:BEST]
        after = trials[-LATEST - 1]._trial_id
        with_curves = self.read_trials(study_id, after, [trial._trial_id for trial in best], TrialFields())
        self._add_metrics(study_id, with_curves)
        curves = {trial._trial_id: trial for trial in with_curves}
        return [curves.get(trial._trial_id, trial) for trial in trials]

    def _add_metrics(self, study_id: int, trials: list[FrozenTrial]) -> None:
        """Add metrics and configuration to the user attributes of the trials of a study that trains networks."""
        try:
            study = any_stored_study(load_study(self, self.get_study_name_from_id(study_id)))
            if isinstance(study, Study):
                for trial in trials:
                    trial.user_attrs = {**trial_attrs(study, trial), **trial.user_attrs}
        except DAMAGED as error:
            log.warning("study_id=%d: no metrics for the pages of its trials: %s", study_id, error)
