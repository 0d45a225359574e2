"""The figure of a comparison: its lines are the runs' means, its bands their extremes, and its colours have names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optuna
import plotly.graph_objects as go
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from stored_studies import run, tree

from hpo.errors import UsageError
from hpo.results.compare.runs import groups
from hpo.results.figures.comparison import comparison
from hpo.storage import Storage

Store = Callable[..., optuna.Study]
NORM = CategoricalDistribution([True, False])
CHOICES = {"choices": [True, False]}
SIZES, RANGE = IntDistribution(1, 100), {"low": 1, "high": 100}


def file(batch_norm: Any = CHOICES, **training: Any) -> dict[str, Any]:
    network = {"batch_norm": batch_norm, "dropout": 0.0}
    made = tree(network=network, training=training, search={"sampler": "grid"})
    made["optimizer"]["lr"] = 0.1
    return made


def norm(on: bool, **curves: Any) -> optuna.trial.FrozenTrial:
    return run({"batch_norm": on}, {"batch_norm": NORM}, **curves)


def drawn(storage: Storage, *names: str, by: str | None = None) -> go.Figure:
    figure = comparison(groups(storage, names or ["digits"]), by)
    assert go.Figure(figure.to_dict()) == figure  # plotly accepts what it is made of
    return figure


def traces(figure: go.Figure, axis: str, mode: str | None = None, dash: str | None = None) -> list[Any]:
    """What is drawn in a frame, bands or lines of a kind."""
    found = [trace for trace in figure.data if trace.xaxis == axis and trace.x != (None,)]
    if mode == "band":
        return [trace for trace in found if trace.fill == "toself"]
    return [trace for trace in found if trace.fill is None and trace.line.dash == dash]


def legend(figure: go.Figure) -> dict[str, str]:
    return {trace.name: trace.line.color for trace in figure.data if trace.showlegend is not False}


def test_lines_are_means_and_bands_extremes(storage: Storage, stored: Store) -> None:
    runs = [norm(True, seed=1, val=[0.2, 0.6], train=[0.3, 0.7]), norm(True, seed=2, val=[0.4, 0.5], train=[0.1, 0.9])]
    stored([*runs, norm(False, val=[0.1, 0.1], val_loss=[2.0, 3.0])], file())
    figure = drawn(storage)
    with_norm, without = traces(figure, "x", dash="solid")
    assert (with_norm.x, with_norm.y) == ((1, 2), (pytest.approx(0.3), pytest.approx(0.55)))
    assert without.y == (0.1, 0.1)
    assert traces(figure, "x", dash="dash")[0].y == (pytest.approx(0.2), pytest.approx(0.8))
    training, validation = traces(figure, "x", "band")  # a single run has none
    assert validation.x == (1, 2, 2, 1)
    assert validation.y == (0.4, 0.6, 0.5, 0.2)
    assert training.y == (0.3, 0.9, 0.7, 0.1)
    assert traces(figure, "x2", dash="solid")[1].y == (2.0, 3.0)
    assert figure.layout.yaxis.range == (0, 1)
    assert figure.layout.yaxis2.type is None
    colours = legend(figure)
    assert list(colours) == ["batch norm: True", "batch norm: False"]
    assert colours["batch norm: True"] == with_norm.line.color == traces(figure, "x2", dash="dash")[0].line.color
    assert len(set(colours.values())) == 2


@pytest.mark.parametrize(
    ("losses", "axis", "ticks"),
    [
        ([3.0, 0.02], "log", 1),
        ([3.0, 3e-20], "log", 3),
        ([1.0, 0.02], None, None),
        ([3.0, 0.0], None, None),
        ([300.0, -0.1], None, None),
    ],
)
def test_a_loss_that_spans_decades_has_a_log_axis(
    storage: Storage, stored: Store, losses: Sequence[float], axis: str | None, ticks: int | None
) -> None:
    stored([norm(True, val=[0.1, 0.1], val_loss=losses)], file())
    drawn_axis = drawn(storage).layout.yaxis2
    assert (drawn_axis.type, drawn_axis.dtick) == (axis, ticks)  # in powers of ten


def test_by_a_parameter_each_value_has_a_frame(storage: Storage, stored: Store) -> None:
    space = {"batch_size": SIZES, "batch_norm": NORM}
    places = [(n, on) for n in range(1, 6) for on in (True, False)]
    stored([run({"batch_size": n, "batch_norm": on}, space, val=[n / 10]) for n, on in places], file(batch_size=RANGE))
    figure = drawn(storage, by="batch_size")
    titles = [note.text for note in figure.layout.annotations]
    assert titles == [f"batch size: {n}" for n in range(1, 6)]
    for n, axis in enumerate(["x", "x2", "x3", "x4", "x5"], start=1):
        solid = traces(figure, axis, dash="solid")
        assert [trace.y for trace in solid] == [(n / 10,)] * 2
        assert [trace.line.color for trace in solid] == list(legend(figure).values())
    assert list(legend(figure)) == ["batch norm: True", "batch norm: False"]
    # four frames in the first row, one in the second, all with one axis
    tops = [figure.layout[f"yaxis{n}" if n > 1 else "yaxis"].domain[1] for n in range(1, 6)]
    assert tops[0] == tops[1] == tops[2] == tops[3] > tops[4]
    assert {axis.range for axis in figure.select_yaxes()} == {(0, 1)}


def test_what_never_completed_is_named(storage: Storage, stored: Store) -> None:
    stored([norm(True, val=[0.5]), norm(False, failed="diverged")], file())
    assert list(legend(drawn(storage))) == ["batch norm: True", "batch norm: False: no run completed"]
    by_norm = drawn(storage, by="batch_norm")
    assert [note.text for note in by_norm.layout.annotations][-1] == "digits: no run completed"


def test_colours_have_a_limit_and_frames_have_not(storage: Storage, stored: Store) -> None:
    runs = [run({"batch_size": n}, {"batch_size": SIZES}, val=[0.5]) for n in range(1, 18)]
    stored(runs, file(False, batch_size=RANGE))
    with pytest.raises(UsageError, match=r"^17 configurations .* limit is 16: .* --by PARAMETER, or .* 'digits#16'"):
        drawn(storage)
    assert len(drawn(storage, by="batch_size").layout.annotations) == 17
    sixteen = drawn(storage, *(f"digits#{number}" for number in range(16)))
    assert len(set(legend(sixteen).values())) == 16


def test_a_name_is_shown_as_it_is_written(storage: Storage, stored: Store) -> None:
    stored([norm(True, val=[0.5])], file(), "<b>&")
    stored([norm(True, val=[0.5])], file(), "other")
    figure = drawn(storage, "<b>&", "other")
    assert list(legend(figure)) == ["&lt;b&gt;&amp;", "other"]
    assert figure.layout.title.text.startswith("&lt;b&gt;&amp;, other: ")


@pytest.mark.parametrize(("name", "below"), [("short", False), ("a study whose name leaves the frames no room", True)])
def test_long_names_are_listed_below_the_frames(storage: Storage, stored: Store, name: str, below: bool) -> None:
    for each in (name, "other"):
        stored([norm(True, val=[0.5])], file(), each)
    figure = drawn(storage, name, "other")
    assert (figure.layout.legend.yanchor == "bottom") == below
