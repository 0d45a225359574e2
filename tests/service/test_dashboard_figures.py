"""Tests of the figures in the dashboard: when they are updated, by which processes, and errors."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from tiny import study_of

from hpo.results.figures import source
from hpo.search.events import Event, Note, PopulationEnded, StudyEnded, StudyStarted
from hpo.search.launch import submit
from hpo.search.options import LaunchOptions
from hpo.service.dashboard import figures as drawing
from hpo.service.dashboard.figures import FigureUpdater, update_figures
from hpo.service.launching import launch
from hpo.service.queue_control import delete
from hpo.service.worker import WorkerOptions, work
from hpo.storage import Storage, figures_record, open_storage, summary

KINDS = ["hpo-curves", "hpo-landscape"]
STARTED = StudyStarted("tiny", 6, 0, 0, 0, 4, "cpu", "float64", 100, 120)
POPULATION = PopulationEnded((0, 1), 2, 0, 0, 0.5, 1.0)
ENDED = StudyEnded("finished", 6, 0, 0, 1.0)


def figures(storage: Storage, name: str = "tiny") -> dict[str, Any]:
    """Return the figures that the dashboard shows, by id."""
    attrs = storage.get_study_system_attrs(storage.get_study_id_from_name(name))
    return {figure: json.loads(text) for figure, text in get_plotly_graph_objects(attrs).items()}


def drawn_trials(storage: Storage, name: str = "tiny") -> int | None:
    drawn = figures_record(storage, summary(storage, name).study_id)
    return None if drawn is None else drawn.trials


class Clock:
    """Clocks of the module under test, set by the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(drawing, "time", made)
    monkeypatch.setattr("hpo.storage.dashboard_figures.time", made)
    return made


def run(storage: Storage) -> list[Event]:
    events: list[Event] = []
    launch(study_of(), storage, LaunchOptions(device="cpu"), on_event=events.append, stop=threading.Event())
    return events


def test_a_launch_draws_all_figures(storage: Storage) -> None:
    events = run(storage)
    assert isinstance(events[-1], StudyEnded)
    found = figures(storage)
    assert sorted(found) == KINDS
    assert drawn_trials(storage) == 6
    titles = [each["text"] for each in found["hpo-curves"]["layout"]["annotations"]]
    assert [title.split(" (trial ")[0] for title in titles] == [f"Best-{rank}" for rank in range(1, 5)]
    assert "height" not in found["hpo-curves"]["layout"]  # the dashboard's frame is as high as it is
    assert len(next(each for each in found["hpo-landscape"]["data"] if each["name"] == "completed")["x"]) == 6


def test_workers_draw_the_figures_too(storage: Storage) -> None:
    submit(study_of(), storage)
    events: list[tuple[str, Event]] = []
    work(
        storage,
        WorkerOptions(device="cpu", threads=1, until_idle=True),
        lambda *each: events.append(each),
        threading.Event(),
    )
    assert sorted(figures(storage)) == KINDS
    assert drawn_trials(storage) == 6


def test_figures_are_drawn_after_a_population_once_a_minute(storage: Storage, clock: Clock) -> None:
    run(storage)
    clock.now += 10_000
    seen: list[int | None] = []
    other = open_storage(storage.location.full_url)
    study_id = summary(storage, "tiny").study_id
    first, second = (FigureUpdater(each, lambda name, event: None) for each in (storage, other))
    first("tiny", STARTED)
    second("tiny", STARTED)
    for seconds, draws in [(59, first), (2, first), (1, second), (58, first), (2, first), (61, second)]:
        clock.now += seconds
        template = other.get_all_trials(study_id)[0]
        other.create_trials(study_id, [template])  # another trial has ended
        draws("tiny", POPULATION)
        seen.append(drawn_trials(storage))
    assert seen == [6, 8, 8, 8, 11, 12]
    first("tiny", ENDED)  # nothing has ended since
    other.create_trials(study_id, [template])
    first("tiny", ENDED)
    assert drawn_trials(storage) == 13
    other.close()


def test_drawing_takes_a_small_fraction_of_the_time(
    storage: Storage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(storage)
    draws: list[float] = []

    def slow(*given: object) -> None:
        draws.append(clock.now)
        clock.now += 10

    monkeypatch.setattr(drawing, "update_figures", slow)
    listen = FigureUpdater(storage, lambda name, event: None)
    listen("tiny", STARTED)
    while clock.now < 6000:
        clock.now += 1
        listen("tiny", POPULATION)
    assert len(draws) == 10  # ten seconds each, in five thousand


def test_nothing_is_drawn_without_a_finished_trial(storage: Storage) -> None:
    submit(study_of(), storage)
    assert not update_figures(storage, "tiny")
    assert figures(storage) == {}


def test_an_error_is_one_warning(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object, **options: object) -> None:
        raise ValueError("no such\ncurve")

    monkeypatch.setattr(source, "read_source", broken)
    events = run(storage)
    assert summary(storage, "tiny").states
    warning = Note("no figures for the dashboard: ValueError: no such curve", "warning")
    assert events.count(warning) == 1
    heard: list[Event] = []
    listen = FigureUpdater(storage, lambda name, event: heard.append(event))
    listen("tiny", ENDED)
    listen("tiny", ENDED)
    assert heard == [ENDED, warning, ENDED]


def test_a_study_that_was_deleted_is_not_drawn(storage: Storage) -> None:
    run(storage)
    delete(storage, "tiny")
    heard: list[Event] = []
    FigureUpdater(storage, lambda name, event: heard.append(event))("tiny", StudyEnded("deleted", 0, 0, 0, 1.0))
    assert heard == [StudyEnded("deleted", 0, 0, 0, 1.0)]
