"""The Pareto front of a study with several metrics, in every kind of result."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import jsonschema
import numpy as np
import plotly.graph_objects as go
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from schemas import schema
from stored_studies import LR
from tiny import search, study_of, trials_of

from hpo.api.stored_study import StoredStudy
from hpo.errors import HpoError, UsageError
from hpo.results.display.summary import next_lines, summary_lines
from hpo.results.display.tables import studies_table
from hpo.results.edges import edge_warnings
from hpo.results.export.best import export
from hpo.results.export.text import export_text
from hpo.results.figures.kinds import draw
from hpo.results.figures.pareto_front import front
from hpo.results.figures.source import Source, read_source
from hpo.results.narrow.next_study import propose
from hpo.results.ranking import best_line
from hpo.results.report import report
from hpo.results.selection import select
from hpo.storage import Storage, best_trials
from hpo.studyfile import parse_study

STUDY = study_of(
    network={"hidden": {"choices": [[4], [8], [16]]}},
    search={"metric": ["val_accuracy", "parameters"], "sampler": "random", "trials": 12},
)


@pytest.fixture
def searched(storage: Storage) -> list[FrozenTrial]:
    """The trials on the front of a search."""
    return best_trials(storage, "tiny", 99)


def test_a_line_says_all_metrics_of_a_trial() -> None:
    trial = create_trial(values=[0.85, 25450.0, 0.0123], params={"lr": 0.01}, distributions={"lr": LR})
    assert best_line(2, trial, ["val_accuracy", "parameters", "seconds_per_epoch"]) == (
        "Front-2 (trial -1) | val acc: 0.8500, parameters: 25,450, s an epoch: 0.0123 | lr: 1.0000e-02"
    )


def test_an_export_holds_the_front_and_each_trial_of_it_as_an_export(
    searched: list[FrozenTrial], storage: Storage
) -> None:
    found = export(storage, "tiny")
    jsonschema.validate(found, schema("front"))
    assert (found["metrics"], found["directions"]) == (["val_accuracy", "parameters"], ["maximize", "minimize"])
    assert [(each["trial"], list(each["values"].values())) for each in found["front"]] == [
        (trial.number, trial.values) for trial in searched
    ]
    for each in found["front"]:
        jsonschema.validate(each, schema("best"))
        alone = export(storage, "tiny", trial=each["trial"])
        assert {key: value for key, value in alone.items() if key != "created"}.items() <= each.items()
        again = parse_study({**each["config"], "name": f"again {each['trial']}"}, "again.toml")
        search(again, storage)
        (trial,) = trials_of(storage, again.name)  # of another seed, but as large
        assert trial.values[1] == each["values"]["parameters"]


def test_records_have_a_value_for_each_metric(searched: list[FrozenTrial], storage: Storage) -> None:
    rows = list(csv.DictReader(io.StringIO(export_text(storage, "tiny", form="csv"))))
    assert [(float(row["val_accuracy"]), float(row["parameters"])) for row in rows] == [
        tuple(t.values) for t in searched
    ]
    lines = [json.loads(line) for line in export_text(storage, "tiny", top=1).splitlines()]
    assert [list(line["values"].values()) for line in lines] == [searched[0].values]
    with pytest.raises(UsageError, match="--top excludes --trial"):
        export_text(storage, "tiny", top=1, trial=0)
    with pytest.raises(HpoError, match="study 'tiny' has no trial 99"):
        export_text(storage, "tiny", trial=99)


def test_the_view_has_the_front(searched: list[FrozenTrial], storage: Storage) -> None:
    view = StoredStudy(storage, "tiny")
    assert [trial.number for trial in view.front] == [trial.number for trial in searched]
    assert view.best.number == searched[0].number
    assert view.best.values == dict(zip(["val_accuracy", "parameters"], searched[0].values, strict=True))


def test_what_a_launch_says_is_the_front(searched: list[FrozenTrial], storage: Storage) -> None:
    said = summary_lines(STUDY, storage, None)
    assert sum(line.startswith("Front-") for line in said) == min(len(searched), 5)
    assert "      hpo export tiny -o front.json" in next_lines(STUDY, storage, None)
    assert f"{searched[0].values[0]:.4f} val acc" in studies_table(storage)


def test_the_first_metric_chooses(searched: list[FrozenTrial], storage: Storage) -> None:
    found = select(storage, "tiny")
    assert (found.trial, found.score) == (searched[0].number, searched[0].values[0])
    assert found.why == f"Front-1 (trial {found.trial}) of the search by its first metric, val_accuracy, not confirmed"


def test_nothing_is_narrowed(searched: list[FrozenTrial], storage: Storage) -> None:
    with pytest.raises(HpoError, match="study 'tiny': has several metrics, whose best trials differ"):
        propose(storage, "tiny")


def test_a_report_shows_the_front(searched: list[FrozenTrial], storage: Storage) -> None:
    page = report(storage, "tiny")
    assert "<h2>Pareto front</h2>" in page
    assert f"<td>{searched[0].values[0]:.4f}</td><td>{searched[0].values[1]:,.0f}</td>" in page
    assert "validation accuracy, parameters, after the last epoch" in page


def test_all_figures_of_several_metrics_can_be_drawn(searched: list[FrozenTrial], storage: Storage) -> None:
    figures = draw(read_source(storage, "tiny"))
    assert list(figures) == ["front", "curves", "landscape", "history", "importances"]
    drawn = named(figures["front"], "on the front")
    assert list(zip(drawn.y, drawn.x, strict=True)) == [
        (pytest.approx(trial.values[0], rel=1e-4), trial.values[1]) for trial in searched
    ]


def named(figure: go.Figure, name: str) -> Any:
    return next(trace for trace in figure.data if trace.name == name)


def source(*values: tuple[float, ...], metrics: tuple[str, ...], directions: tuple[StudyDirection, ...]) -> Source:
    trials = [create_trial(values=each) for each in values]
    trials.append(create_trial(state=TrialState.FAIL))
    for number, trial in enumerate(trials):
        trial.number = number
    return Source("three", metrics, directions, trials)


def test_each_other_metric_has_a_frame_of_its_own() -> None:
    minimize = StudyDirection.MINIMIZE
    metrics = ("val_loss", "parameters", "seconds_per_epoch")
    three = source((1, 10, 3), (2, 5, 3), (2, 10, 4), (1, math.inf, 1), metrics=metrics, directions=(minimize,) * 3)
    figure = front(three)
    frames = {(trace.name, trace.xaxis): (list(trace.x), list(trace.y)) for trace in figure.data}
    assert frames == {
        ("on the front", "x"): ([10, 5], [1, 2]),
        ("others", "x"): ([10], [2]),
        ("on the front", "x2"): ([3, 3], [1, 2]),
        ("others", "x2"): ([4], [2]),
    }
    assert (figure.layout.xaxis.type, figure.layout.xaxis2.type) == ("log", None)
    assert figure.layout.xaxis2.title.text == "seconds an epoch"


def test_the_line_of_a_front_is_what_can_be_had() -> None:
    """Between two trials of the front no more can be had than what the smaller one has."""
    ways = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
    two = source((0.9, 100.0), (0.8, 10.0), metrics=("val_accuracy", "parameters"), directions=ways)
    drawn = named(front(two), "on the front")
    assert (list(drawn.x), list(drawn.y)) == ([100, 10], [0.9, 0.8])
    assert drawn.line.shape == "vh"  # from the larger down at 100, then on to 10


def test_without_several_metrics_there_is_no_front() -> None:
    one = source((0.5,), metrics=("val_accuracy",), directions=(StudyDirection.MAXIMIZE,))
    (text,) = [note.text for note in front(one).layout.annotations]
    assert text == "Trials are scored by one metric, so there is one best."


def test_an_edge_is_one_where_the_whole_front_lies() -> None:
    study = study_of(
        optimizer={"lr": {"low": 1e-3, "high": 1.0, "log": True}}, search={"metric": ["val_loss", "parameters"]}
    )
    space = {"lr": FloatDistribution(1e-3, 1.0, log=True)}
    high, middle = (create_trial(values=[0.1, 9], params={"lr": lr}, distributions=dict(space)) for lr in (0.99, 0.03))
    assert len(edge_warnings(study, [high, high])) == 1
    assert edge_warnings(study, [high, middle]) == []


def test_curves_of_the_front_are_of_the_first_metric(searched: list[FrozenTrial], storage: Storage) -> None:
    curves = StoredStudy(storage, "tiny").curves()
    assert curves["val_accuracy"].shape == (12, 2)
    assert not np.isnan(curves["val_accuracy"]).any()
