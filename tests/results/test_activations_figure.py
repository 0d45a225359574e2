"""Histograms of activations: a column a layer, a row for each initial weight that a study searches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import plotly.graph_objects as go
import pytest
from stored_studies import tree
from tiny import write_mnist

from hpo.data import load_split
from hpo.errors import HpoError
from hpo.results.figures.activations import histograms, initial_networks
from hpo.results.figures.files import plot
from hpo.storage import Storage
from hpo.studyfile import parse_study

Store = Callable[..., optuna.Study]


@pytest.fixture
def study(storage: Storage, stored: Store) -> Callable[..., None]:
    """Store a study without trials, whose images are those of this machine."""

    def store(dataset: str = "digits", **network: Any) -> None:
        written = tree(data={"dataset": dataset, "train_size": 300}, network={"hidden": [30, 20], **network})
        split = load_split(parse_study(written, "studies/digits.toml"))
        made = stored([], written)
        data = made.user_attrs["hpo:data"]
        made.set_user_attr("hpo:data", {**data, "sha256": split.content_sha256, "split_sha256": split.split_sha256})

    return store


def figure_of(storage: Storage) -> go.Figure:
    return histograms("digits", initial_networks(storage, "digits"))


@pytest.mark.parametrize(
    ("init", "rows"),
    [
        ("he", ["he"]),
        ({"choices": [0.01, "xavier", "he"]}, ["0.01", "xavier", "he"]),
        ({"low": 1e-4, "high": 1.0, "log": True}, ["0.0001", "0.01", "1.0"]),
    ],
)
def test_each_initial_weight_has_a_row(
    storage: Storage, study: Callable[..., None], init: Any, rows: list[str]
) -> None:
    study(init=init)
    figure = figure_of(storage)
    titles = [note.text for note in figure.layout.annotations]
    assert titles[:2] == ["hidden 1", "hidden 2"]
    assert [title for title in titles if title.startswith("init: ")] == [f"init: {row}" for row in rows]
    assert len(figure.data) == 2 * len(rows)


def test_bars_are_shares_and_the_numbers_stand_beside_them(storage: Storage, study: Callable[..., None]) -> None:
    study(init={"choices": [0.01, "he"]})
    networks = initial_networks(storage, "digits")
    figure = histograms("digits", networks)
    assert all(sum(bars.y) == pytest.approx(1, abs=1e-3) for bars in figure.data)
    assert {axis.range for axis in figure.select_xaxes()} == {figure.layout.xaxis.range}
    small, he = (network.spreads["hidden 2"] for network in networks)
    assert f"sd {small.sd:.2g}<br>zero {small.zeros:.0%}" in [note.text for note in figure.layout.annotations]
    assert f"mean {he.mean:.4g}, sd {he.sd:.4g}, zeros {he.zeros:.1%}" in figure.data[3].hovertemplate
    # next to He's outputs, those of the small weights are all in the first bin
    assert figure.data[1].y[0] == 1.0
    assert figure.data[3].y[0] < 0.7


def test_an_activation_with_bounds_is_drawn_between_them(storage: Storage, study: Callable[..., None]) -> None:
    study(init=1.0, activation="sigmoid")
    figure = figure_of(storage)
    assert figure.layout.xaxis.range == (0, 1)
    assert any("saturated" in note.text for note in figure.layout.annotations)
    bars = figure.data[0].y
    assert bars[0] > 3 * bars[25]  # with weights that large the outputs are at the bounds
    assert bars[-1] > 3 * bars[25]


def test_a_network_without_activations_says_so(storage: Storage, study: Callable[..., None]) -> None:
    study(hidden=[])
    figure = figure_of(storage)
    assert figure.layout.annotations[0].text == "The network has no hidden layer."


def test_it_is_drawn_on_request(storage: Storage, study: Callable[..., None], tmp_path: Path) -> None:
    study()
    (path,) = plot(storage, "digits", tmp_path, ["activations"])  # no trial has ended, and none is needed
    assert path.name == "digits-activations.html"


def test_training_files_are_enough(
    storage: Storage, study: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "mnist", count=300)  # there is no test file
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    study("mnist")
    (network,) = initial_networks(storage, "digits")
    assert network.outputs["hidden 1"].shape == (240, 30)


def test_other_images_than_the_studys_are_refused(storage: Storage, stored: Store) -> None:
    stored([])
    with pytest.raises(HpoError, match="the data of digits are not those that the study was created with"):
        initial_networks(storage, "digits")
