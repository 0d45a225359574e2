"""Figures of a study in the dashboard, updated by the processes that search the study.

They are drawn after a population, at most once in `REFRESH_S` seconds by all processes together, and when the search
ends. A process spends at most the fraction `TIME_FRACTION` of its time on them. An error is shown as a warning, and the
search continues. A figure shows at most `POINTS` trials, evenly spread, to keep the page light.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hpo.errors import UnknownStudyError
from hpo.search.events import Event, Note, PopulationEnded, StudyEnded, StudyStarted, TrialsNotPromoted
from hpo.storage import Storage, figures_record, save_figures, summary
from hpo.storage.dashboard_figures import OWN

REFRESH_S = 60.0
TIME_FRACTION = 0.02
POINTS = 1000

Listener = Callable[[str, Event], None]
"""Function that is called with the name of a study and an event of its search."""


class FigureUpdater:
    """Listener that calls another listener and then updates the study's figures if they are due."""

    def __init__(self, storage: Storage, on_event: Listener) -> None:
        self._storage, self._on_event = storage, on_event
        self._ids: dict[str, int] = {}  # study ids by the name at the start of the search
        self._due: dict[str, float] = {}  # by the monotonic clock
        self._warned: set[str] = set()

    def __call__(self, study: str, event: Event) -> None:
        """Pass on an event of the study of that name, and update its figures if they are due."""
        self._on_event(study, event)
        match event:
            case StudyStarted():
                self._ids[study] = summary(self._storage, study).study_id
                self._due.setdefault(study, time.monotonic() + REFRESH_S)
            case PopulationEnded() | TrialsNotPromoted() if time.monotonic() >= self._due.get(study, 0.0):
                self._update(study, REFRESH_S)
            case StudyEnded():
                self._update(study, 0.0)

    def _update(self, study: str, fresh_s: float) -> None:
        start = time.monotonic()
        try:
            update_figures(self._storage, self._ids.get(study, study), fresh_s)
        except UnknownStudyError:
            pass  # deleted meanwhile: the search reports it
        except Exception as error:  # noqa: BLE001 - the search continues without figures, with a warning
            if study not in self._warned:
                self._on_event(study, Note(f"no figures for the dashboard: {_one_line(error)}", "warning"))
            self._warned.add(study)
        now = time.monotonic()
        self._due[study] = now + max(REFRESH_S, (now - start) / TIME_FRACTION)


def update_figures(storage: Storage, which: str | int, fresh_s: float = 0.0) -> bool:
    """Draw and store the figures of the study of that name or id; return False if they are up to date.

    Figures that another process has drawn in the last `fresh_s` seconds count as up to date. Raises UnknownStudyError.
    """
    study = summary(storage, which)
    finished = sum(count for state, count in study.states.items() if state.is_finished())
    last = figures_record(storage, study.study_id)
    known, at = (0, 0.0) if last is None else (last.trials, last.at)
    if finished <= known or 0 <= time.time() - at < fresh_s:
        return False

    from hpo.results.figures.half_column import half_column_figures  # imports Optuna's importances
    from hpo.results.figures.source import read_source
    from hpo.results.figures.style import drawing_json

    source = read_source(storage, study.study_id, limit=POINTS)
    figures = {f"{OWN}{kind}": drawing_json(each) for kind, each in half_column_figures(source).items()}
    return save_figures(storage, study.study_id, figures, len(source.trials))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
