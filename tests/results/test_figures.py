"""Figures by what is in them: lines and points, axes, symbols, titles."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import optuna
import plotly.graph_objects as go
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from stored_studies import LR, tree, trial

from hpo.errors import HpoError, UnknownStudyError, UsageError
from hpo.results.figures.curves import curves
from hpo.results.figures.half_column import half_column_figures
from hpo.results.figures.history import history
from hpo.results.figures.importances import FEWEST, importances, parameter_importances
from hpo.results.figures.kinds import KINDS, check_kinds, draw
from hpo.results.figures.landscape import ALWAYS_DRAWN, landscape
from hpo.results.figures.source import Source, read_source
from hpo.results.figures.style import drawing_json, log_axis
from hpo.storage import Storage

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
DECAY = FloatDistribution(1e-8, 1e-2, log=True)
DROPOUT = FloatDistribution(0.0, 0.6)
UNITS = IntDistribution(8, 512, log=True)
KIND = CategoricalDistribution(["sgd", "adam"])

Ended = tuple[float | None, dict[str, Any], TrialState]


def source(
    ended: Sequence[Ended],
    distributions: dict[str, BaseDistribution],
    metric: str = "val_accuracy",
    limit: int | None = None,
    name: str = "digits",
) -> Source:
    """A study whose trials ended like that, with a curve of two epochs for each that completed."""
    trials = []
    for number, (value, params, state) in enumerate(ended):
        made = trial(value, state=state, params=params, distributions={key: distributions[key] for key in params})
        made.number = number
        trials.append(made)
    direction = StudyDirection.MINIMIZE if metric == "val_loss" else StudyDirection.MAXIMIZE
    complete = [each for each in trials if each.state == COMPLETE and math.isfinite(each.value or 0.0)]
    best = sorted(complete, key=lambda each: each.value or 0.0, reverse=direction == StudyDirection.MAXIMIZE)[:20]
    curves = {each.number: curve(each) for each in best}
    return Source(name, (metric,), (direction,), trials, best, curves, limit)


def curve(each: FrozenTrial) -> dict[str, list[float]]:
    value = each.value or 0.0
    parts = {"val_accuracy": value, "train_accuracy": value + 0.01, "val_loss": value, "train_loss": value / 2}
    return {name: [last / 2, last] for name, last in parts.items()}


def spread_out(count: int, state: TrialState = COMPLETE) -> list[Ended]:
    """Trials all over lr x weight decay, the better the larger lr is."""
    return [
        (
            0.2 + 0.7 * index / count,
            {"lr": 10 ** (-6 + 5 * index / count), "weight_decay": 10 ** (-8 + 6 * (index * 7 % count) / count)},
            state,
        )
        for index in range(count)
    ]


SPACE: dict[str, BaseDistribution] = {"lr": LR, "weight_decay": DECAY}


def layout(figure: go.Figure) -> dict[str, Any]:
    return json.loads(figure.to_json())["layout"]


def named(figure: go.Figure, name: str) -> Any:
    (found,) = [trace for trace in figure.data if trace.name == name]
    return found


def texts(figure: go.Figure) -> list[str]:
    return [each.text for each in figure.layout.annotations]


def test_the_twenty_best_have_a_frame_each_five_in_a_row() -> None:
    figure = curves(source(spread_out(30), SPACE))
    shown = [(rank, 30 - rank, 0.2 + 0.7 * (30 - rank) / 30) for rank in range(1, 21)]
    assert texts(figure) == [f"Best-{rank} (trial {number}): {score:.4f}" for rank, number, score in shown]
    axes = layout(figure)
    frames = {(tuple(axes[f"xaxis{n}"]["domain"]), tuple(axes[f"yaxis{n}"]["domain"])) for n in ["", *range(2, 21)]}
    assert len(frames) == 20
    assert len({x for x, _ in frames}) == 5
    assert len({y for _, y in frames}) == 4
    assert all(0 <= low < high <= 1.0001 for frame in frames for low, high in frame)
    assert {tuple(axes[f"yaxis{n}"]["range"]) for n in ["", *range(2, 21)]} == {(0, 1)}
    assert len(figure.data) == 40


def test_validation_is_solid_and_training_dashed_and_the_best_comes_first() -> None:
    figure = curves(source([(0.5, {"lr": 1e-3}, COMPLETE), (0.8, {"lr": 1e-2}, COMPLETE)], SPACE))
    validation = [trace for trace in figure.data if trace.name == "validation"]
    training = [trace for trace in figure.data if trace.name == "training"]
    assert [trace.line.dash for trace in validation + training] == ["solid"] * 2 + ["dash"] * 2
    assert [list(trace.y) for trace in validation] == [[0.4, 0.8], [0.25, 0.5]]
    assert list(training[0].y) == [0.405, 0.81]
    assert list(validation[0].x) == [1, 2]
    assert [trace.showlegend for trace in validation] == [True, False]
    assert "Best-1 (trial 1)<br>val acc: 0.8000<br>lr: 1.0000e-02" in validation[0].meta


def test_a_study_that_is_scored_by_its_loss_shows_losses() -> None:
    figure = curves(source([(0.5, {"lr": 1e-3}, COMPLETE), (0.8, {"lr": 1e-2}, COMPLETE)], SPACE, "val_loss"))
    assert [list(trace.y) for trace in figure.data if trace.name == "validation"] == [[0.25, 0.5], [0.4, 0.8]]
    assert layout(figure)["yaxis"]["rangemode"] == "tozero"
    assert "range" not in layout(figure)["yaxis"]
    assert "loss" in figure.layout.title.text


def half_column(source: Source) -> dict[str, go.Figure]:
    """Return the dashboard's figures as plotly's objects, which raise ValueError for an invalid property."""
    return {kind: go.Figure(json.loads(drawing_json(each))) for kind, each in half_column_figures(source).items()}


def test_half_a_column_has_four_frames_and_no_figure_that_the_page_has() -> None:
    figures = half_column(source(spread_out(30), SPACE))
    assert sorted(figures) == ["curves", "landscape"]
    assert len(texts(figures["curves"])) == 4
    legend, frame = figures["curves"].layout.legend, layout(figures["curves"])
    assert frame["xaxis"]["domain"][0] < legend.x < frame["xaxis"]["domain"][1]
    assert frame["yaxis"]["domain"][0] < legend.y < sum(frame["yaxis"]["domain"]) / 2  # low, as the curves rise
    assert all(figure.layout.height is None for figure in figures.values())
    falling = half_column(source(spread_out(30), SPACE, "val_loss"))["curves"]
    assert falling.layout.legend.y > sum(layout(falling)["yaxis"]["domain"]) / 2


def test_titles_of_half_a_column_are_wrapped_without_the_name_of_the_study() -> None:
    long = "learning_rate_of_the_<last>_layer_&_its_friends", "weight_decay_of_everything_else_in_the_network"
    ended: list[Ended] = [(0.5, {long[0]: 1e-3, long[1]: 1e-5}, COMPLETE)]
    figure = half_column(source(ended, {long[0]: LR, long[1]: DECAY}, name="a <name>"))["landscape"]
    lines = [html.unescape(line) for line in figure.layout.title.text.split("<br>")]
    assert " ".join(lines) == f"Validation accuracy by {' and '.join(each.replace('_', ' ') for each in long)}"
    assert max(map(len, lines)) <= 44
    assert "<last>" not in figure.layout.title.text
    assert figure.layout.margin.t > 36 + 18 * (len(lines) - 1)


def test_half_a_column_leaves_out_reported_values_and_figures_without_data() -> None:
    reported = source(spread_out(3), SPACE)
    reported = replace(reported, curves={2: {"step": [1.0, 2.0], "value": [0.1, 0.2]}})
    assert list(half_column(reported)) == ["landscape"]
    assert half_column(source([(None, {}, FAIL)], {})) == {}


def test_a_log_axis_has_labels_at_powers_of_ten_or_at_whole_numbers() -> None:
    assert log_axis(1e-6, 1e-1)["dtick"] == 1
    assert log_axis(1e-12, 1e5)["dtick"] == 3
    assert log_axis(20_000, 60_000) == {"type": "log", "nticks": 5, "tickformat": "~s"}
    assert log_axis(3e-4, 2e-3)["tickformat"] == ".2~g"


def test_a_metric_of_any_name_has_curves() -> None:
    for name in ("value", "step", "reported", "validation_gain"):
        one = source([(0.5, {"lr": 1e-3}, COMPLETE)], SPACE, f"val_{name}")
        figure = curves(replace(one, curves={0: {"val_loss": [1.0, 2.0], f"val_{name}": [0.2, 0.5]}}))
        assert [(trace.name, list(trace.y)) for trace in figure.data] == [("validation", [0.2, 0.5])]
        assert figure.layout.title.text == f"digits: {name.replace('_', ' ')} of the best trial"
        assert layout(figure)["xaxis"]["title"]["text"] == "epoch"


def test_without_a_curve_there_is_a_sentence() -> None:
    figure = curves(source([(None, {"lr": 1e-3}, FAIL)], SPACE))
    assert texts(figure) == ["No trial has completed with a learning curve."]


def test_the_landscape_is_lr_by_weight_decay_on_log_axes_coloured_by_score() -> None:
    at = {"lr": 1e-3, "weight_decay": 1e-5}
    ended = [*spread_out(10), (0.4, at, PRUNED), (None, at, FAIL), (math.inf, at, COMPLETE)]
    figure = landscape(source(ended, SPACE))
    axes = layout(figure)
    assert (axes["xaxis"]["type"], axes["yaxis"]["type"]) == ("log", "log")
    assert (axes["xaxis"]["title"]["text"], axes["yaxis"]["title"]["text"]) == ("lr", "weight decay")
    completed, pruned, failed = (named(figure, name) for name in ("completed", "pruned", "failed"))
    points = sorted(zip(completed.marker.color, completed.x, completed.y, strict=True))
    wanted = sorted((value, params["lr"], params["weight_decay"]) for value, params, _ in spread_out(10))
    assert points == [pytest.approx(point, rel=1e-3) for point in wanted]
    assert completed.marker.cmax == pytest.approx(wanted[-1][0])
    assert (list(pruned.x), list(pruned.y)) == ([1e-3], [1e-5])
    assert (list(failed.x), list(failed.y)) == ([1e-3], [1e-5])
    assert len({completed.marker.symbol, pruned.marker.symbol, failed.marker.symbol}) == 3


def test_a_hopeless_loss_does_not_take_all_the_colours() -> None:
    ended = [(0.1 + index / 100, params, state) for index, (_, params, state) in enumerate(spread_out(20))]
    ended[3] = (1e6, *ended[3][1:])
    completed = named(landscape(source(ended, SPACE, "val_loss")), "completed")
    assert completed.marker.cmin == pytest.approx(0.1)
    assert completed.marker.cmax < 1
    assert completed.marker.reversescale


def test_other_parameters_are_shown_by_their_importance() -> None:
    space = {"dropout": DROPOUT, "units": UNITS, "momentum": FloatDistribution(0.0, 0.99), "kind": KIND}
    ended = [
        (
            0.5 + index / 100,
            {
                "dropout": (index * 13 % 40) / 100,
                "units": 8 + index * 10,
                "momentum": index / 50,
                "kind": KIND.choices[index % 2],
            },
            COMPLETE,
        )
        for index in range(40)
    ]
    figure = landscape(source(ended, space))
    axes = layout(figure)
    assert {axes["xaxis"]["title"]["text"], axes["yaxis"]["title"]["text"]} == {"units", "momentum"}
    assert {axes["xaxis"]["type"], axes["yaxis"]["type"]} == {"log", "linear"}


def test_a_single_number_stands_against_the_score() -> None:
    ended = [(0.5, {"lr": 1e-3}, COMPLETE), (0.7, {"lr": 1e-2}, COMPLETE), (None, {"lr": 1e-1}, FAIL)]
    figure = landscape(source(ended, {"lr": LR}))
    assert sorted(zip(named(figure, "completed").x, named(figure, "completed").y, strict=True)) == [
        (1e-3, 0.5),
        (1e-2, 0.7),
    ]
    assert list(named(figure, "failed").y) == [0.5]  # it has no score, and stands beside the worst
    assert layout(figure)["yaxis"]["title"]["text"] == "validation accuracy"


@pytest.mark.parametrize("choice", ["<i>sgd", "[8, 8]"])
def test_a_choice_is_an_axis_of_names(choice: str) -> None:
    kinds = CategoricalDistribution([choice, "adam"])
    ended = [(0.5, {"kind": choice}, COMPLETE), (0.7, {"kind": "adam"}, COMPLETE), (0.6, {"kind": "adam"}, PRUNED)]
    figure = landscape(source(ended, {"kind": kinds}))
    assert layout(figure)["xaxis"]["type"] == "category"
    assert set(named(figure, "completed").x) == {choice.replace("<", "&lt;").replace(">", "&gt;"), "adam"}
    assert list(named(figure, "pruned").x) == ["adam"]


def test_a_space_of_one_point_has_no_landscape() -> None:
    figure = landscape(source([(0.5, {"lr": 0.1}, COMPLETE)], {"lr": FloatDistribution(0.1, 0.1)}))
    assert texts(figure) == ["No parameter is searched."]


def test_trials_from_before_a_change_of_the_space_are_drawn_where_they_fit() -> None:
    before = source([(0.5, {"lr": 1e-6}, COMPLETE)], {"lr": LR}).trials
    wider = FloatDistribution(1e-5, 1.0, log=True)
    after = source([(None, {}, FAIL), (0.6, {"lr": 0.9}, COMPLETE)], {"lr": wider}).trials[1:]
    study = Source("digits", ("val_accuracy",), (StudyDirection.MAXIMIZE,), [*before, *after])
    assert set(named(landscape(study), "completed").x) == {1e-6, 0.9}
    choice = source(
        [(None, {}, FAIL), (None, {}, FAIL), (0.6, {"lr": "low"}, COMPLETE)], {"lr": _choice("low", "high")}
    )
    changed = Source("digits", ("val_accuracy",), (StudyDirection.MAXIMIZE,), [*before, *after, *choice.trials[2:]])
    assert list(named(landscape(changed), "completed").x) == ["low"]


def _choice(*choices: str) -> CategoricalDistribution:
    return CategoricalDistribution(choices)


def test_of_many_trials_as_many_are_drawn_as_there_may_be_and_the_best_among_them() -> None:
    many = spread_out(3000)
    figures = [landscape(source(many, SPACE, limit=500)), history(source(many, SPACE, limit=500))]
    assert 500 <= len(named(figures[0], "completed").x) <= 500 + ALWAYS_DRAWN
    top = sorted(value for value, _, _ in many)[-ALWAYS_DRAWN:]
    assert named(figures[0], "completed").marker.color[-ALWAYS_DRAWN:] == pytest.approx(top, abs=1e-4)
    best = named(figures[1], "best so far")  # where each trial was better than all before it
    assert 500 <= len(best.x) <= 502
    assert best.y[-1] == pytest.approx(top[-1], abs=1e-4)


def test_the_history_rises_with_the_best_trial_so_far() -> None:
    scores = [0.3, 0.5, 0.4, 0.5, 0.7, 0.6]
    ended: list[Ended] = [(value, {"lr": 1e-3}, COMPLETE) for value in scores]
    ended += [(0.9, {"lr": 1e-3}, PRUNED), (None, {"lr": 1e-3}, FAIL)]
    figure = history(source(ended, SPACE))
    best = named(figure, "best so far")
    assert list(zip(best.x, best.y, strict=True)) == [(0, 0.3), (1, 0.5), (4, 0.7), (7, 0.7)]  # no pruned trial is best
    assert list(named(figure, "completed").y) == scores
    assert (list(named(figure, "pruned").x), list(named(figure, "pruned").y)) == ([6], [0.9])
    assert named(figure, "pruned").marker.symbol != named(figure, "completed").marker.symbol
    assert layout(figure)["yaxis"]["type"] == "linear"


def test_the_history_of_losses_falls_on_a_log_axis() -> None:
    ended: list[Ended] = [(value, {"lr": 1e-3}, COMPLETE) for value in (2.0, 90.0, 0.5)]
    figure = history(source(ended, SPACE, "val_loss"))
    assert list(named(figure, "best so far").y) == [2.0, 0.5, 0.5]
    assert layout(figure)["yaxis"]["type"] == "log"


def test_importances_are_those_that_optuna_computes() -> None:
    found = source(spread_out(60), SPACE)
    study = optuna.create_study(direction="maximize")
    study.add_trials(found.trials)
    assert parameter_importances(found) == pytest.approx(optuna.importance.get_param_importances(study))
    (bars,) = importances(found).data
    assert list(bars.y) == ["weight decay", "lr"]  # plotly draws the last one at the top
    assert bars.x[1] > bars.x[0]
    assert sum(bars.x) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (spread_out(FEWEST - 1), f"Importances take {FEWEST} completed trials; there are {FEWEST - 1}."),
        ([(0.1, {"lr": 1e-3}, COMPLETE)] * 30, "Only lr is searched: there is nothing to compare it with."),
        ([(0.1, {}, COMPLETE)] * 30, "No parameter is searched."),
        ([(0.1, p, s) for _, p, s in spread_out(30)], "Too many trials have the same score to tell a best tenth."),
    ],
)
def test_importances_that_would_say_nothing_are_a_sentence(ended: list[Ended], said: str) -> None:
    assert texts(importances(source(ended, SPACE))) == [said]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", [COMPLETE, PRUNED, FAIL])
def test_a_study_of_one_trial_has_every_figure(kind: str, state: TrialState) -> None:
    value = None if state == FAIL else 0.5
    figure = KINDS[kind](source([(value, {"lr": 1e-3, "weight_decay": 1e-5}, state)], SPACE, name="<b>&"))
    assert figure.layout.title.text.startswith("&lt;b&gt;&amp;: ")


def test_the_figures_of_many_trials_are_small() -> None:
    ended = [*spread_out(5000), *spread_out(2000, PRUNED)]
    drawn = draw(source(ended, SPACE, limit=1000))
    assert list(drawn) == ["curves", "landscape", "history", "importances"]
    assert sum(len(figure.to_json()) for figure in drawn.values()) < 250_000


def test_a_kind_that_is_none_is_named() -> None:
    check_kinds(["curves", "history"])
    with pytest.raises(UsageError, match=r"^unknown figure 'curvs' \(did you mean 'curves'\?\); known: front, "):
        check_kinds(["history", "curvs"])


def test_a_stored_study_is_read_with_the_curves_of_its_best(
    storage: Storage, stored: Callable[..., optuna.Study]
) -> None:
    trials = [trial(value) for value in (0.3, 0.8, 0.5)]
    for number, each in enumerate(trials):
        each.system_attrs = {"hpo:curve": {"val_accuracy": [number / 10]}, "other": 1}
    study = stored([*trials, trial(state=FAIL)])
    study.enqueue_trial({"lr": 1e-3})
    found = read_source(storage, "digits", best=2)
    assert (found.metric, found.maximized, found.score) == ("val_accuracy", True, "validation accuracy")
    assert [each.number for each in found.trials] == [0, 1, 2, 3]
    assert [each.number for each in found.best] == [1, 2]
    assert found.curves == {1: {"val_accuracy": [0.1]}, 2: {"val_accuracy": [0.2]}}


def test_a_study_of_another_program_has_figures(storage: Storage) -> None:
    study = optuna.create_study(storage=storage, study_name="theirs", direction="minimize")
    study.optimize(lambda asked: asked.suggest_float("x", -1, 1) ** 2, n_trials=3)
    figures = draw(read_source(storage, "theirs"))
    assert len(named(figures["history"], "completed").x) == 3
    assert layout(figures["landscape"])["xaxis"]["title"]["text"] == "x"


def test_what_cannot_be_drawn_is_one_line(storage: Storage, stored: Callable[..., optuna.Study]) -> None:
    stored([], tree())
    with pytest.raises(HpoError, match="study 'digits': no finished trial yet"):
        read_source(storage, "digits")
    with pytest.raises(UnknownStudyError, match="no study named 'none'"):
        read_source(storage, "none")
