"""The figures in the dashboard, drawn again as a study grows, by the processes that search it.

Promises: they are drawn after a population, once in `REFRESH_S` at most however many processes there are, and when the
work on a study ends; a process spends no more than `SHARE` of its time on it; what goes wrong is a warning, and the
search goes on. Each has `POINTS` trials at most, evenly spread, so that a page with all of them stays light. Knows the
events of a search, and nothing of how it is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hpo.errors import UnknownStudyError
from hpo.search.events import Event, Note, PopulationEnded, StudyEnded, StudyStarted
from hpo.storage import Storage, figures_record, save_figures, summary

REFRESH_S = 60.0
SHARE = 0.02
POINTS = 1000

Listener = Callable[[str, Event], None]
"""Called with the name of a study and what happened to it."""


class Drawing:
    """A listener that passes on what happens, and then draws where it is time to."""

    def __init__(self, storage: Storage, on_event: Listener) -> None:
        self._storage, self._on_event = storage, on_event
        self._ids: dict[str, int] = {}  # of the studies, by what they were called when work on them began
        self._due: dict[str, float] = {}  # by the monotonic clock
        self._warned: set[str] = set()

    def __call__(self, study: str, event: Event) -> None:
        """Take note of what happened to the study of that name."""
        self._on_event(study, event)
        match event:
            case StudyStarted():
                self._ids[study] = summary(self._storage, study).study_id
                self._due.setdefault(study, time.monotonic() + REFRESH_S)
            case PopulationEnded() if time.monotonic() >= self._due.get(study, 0.0):
                self._draw(study, REFRESH_S)
            case StudyEnded():
                self._draw(study, 0.0)

    def _draw(self, study: str, fresh_s: float) -> None:
        start = time.monotonic()
        try:
            refresh(self._storage, self._ids.get(study, study), fresh_s)
        except UnknownStudyError:
            pass  # deleted meanwhile, which the search says
        except Exception as error:  # noqa: BLE001 - no figure is worth a search: what went wrong is said, and it goes on
            if study not in self._warned:
                self._on_event(study, Note(f"no figures for the dashboard: {_said(error)}", "warning"))
            self._warned.add(study)
        now = time.monotonic()
        self._due[study] = now + max(REFRESH_S, (now - start) / SHARE)


def refresh(storage: Storage, which: str | int, fresh_s: float = 0.0) -> bool:
    """Keep new figures with the study of that name or id; return whether there was anything new to be drawn.

    Nothing is drawn where others have done so in the last `fresh_s` seconds. Raises UnknownStudyError where there is
    no such study.
    """
    study = summary(storage, which)
    finished = sum(count for state, count in study.states.items() if state.is_finished())
    last = figures_record(storage, study.study_id)
    known, at = (0, 0.0) if last is None else (last.trials, last.at)
    if finished <= known or 0 <= time.time() - at < fresh_s:
        return False

    from hpo.results.figures.kinds import draw  # plotly and Optuna's importances, for who has something to draw
    from hpo.results.figures.source import read_source

    source = read_source(storage, study.study_id, limit=POINTS)
    drawn = draw(source)
    for figure in drawn.values():
        figure.layout.height = None  # the dashboard's frames have one
    figures = {f"hpo-{kind}": figure.to_json() for kind, figure in drawn.items()}
    return save_figures(storage, study.study_id, figures, len(source.trials))


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
