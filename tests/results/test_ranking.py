"""The lines of the best trials, and warnings at the edge of a range."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from stored_studies import DROPOUT, LR, tree, trial

from hpo.errors import HpoError, UnknownStudyError
from hpo.results.edges import edge_warnings
from hpo.results.ranking import best_line, top_lines
from hpo.storage import Storage
from hpo.studyfile import parse_study, read_study

Store = Callable[..., optuna.Study]


def test_the_line_of_a_trial() -> None:
    params = {"lr": 0.0092616, "weight_decay": 7.2296e-06}
    distributions = {name: FloatDistribution(1e-8, 1.0, log=True) for name in params}
    best = trial(0.85, params=params, distributions=distributions)
    best.number = 40
    assert best_line(1, best) == "Best-1 (trial 40) | val acc: 0.8500 | lr: 9.2616e-03, weight decay: 7.2296e-06"


def test_each_kind_of_value_reads_as_it_is() -> None:
    params: dict[str, Any] = {
        "dropout.1": 0.25,
        "tiny": 1e-5,
        "batch_size": 64,
        "hidden": "[100, 100]",
        "network.kind": "mlp",
    }
    distributions = {
        "dropout.1": DROPOUT,
        "tiny": FloatDistribution(0, 1e-4),
        "batch_size": IntDistribution(1, 100),
        "hidden": CategoricalDistribution(["[100, 100]"]),
        "network.kind": CategoricalDistribution(["mlp", "cnn"]),
    }
    line = best_line(12, trial(0.123456, params=params, distributions=distributions), ["val_loss"])
    assert line == (
        "Best-12 (trial -1) | val loss: 0.1235 | dropout.1: 0.2500, tiny: 1.0000e-05, "
        "batch size: 64, hidden: [100, 100], network.kind: mlp"
    )


def test_a_trial_without_parameters_is_a_line_too() -> None:
    assert best_line(1, trial(0.5, params={}, distributions={})) == "Best-1 (trial -1) | val acc: 0.5000"


def test_top_lines_name_the_metric(stored: Store, storage: Storage) -> None:
    stored([trial(0.5), trial(0.25)], tree(search={"metric": "val_loss"}))
    assert top_lines(storage, "digits", 1) == ["Best-1 (trial 1) | val loss: 0.2500 | lr: 1.0000e-03, dropout: 0.2500"]


def test_top_lines_of_a_study_by_another_program(storage: Storage) -> None:
    optuna.create_study(storage=storage, study_name="plain").add_trial(trial(2.0))
    assert top_lines(storage, "plain", 5) == ["Best-1 (trial 0) | value: 2.0000 | lr: 1.0000e-03, dropout: 0.2500"]


def test_top_lines_without_a_finished_trial(stored: Store, storage: Storage) -> None:
    stored([trial(0.9, state=TrialState.PRUNED)])
    with pytest.raises(HpoError, match="study 'digits': no trial to rank: 1 pruned; launch it to go on"):
        top_lines(storage, "digits", 5)


def test_top_lines_suggest_the_nearest_study(stored: Store, storage: Storage) -> None:
    stored([trial(0.9)])
    with pytest.raises(UnknownStudyError, match=r"no study named 'digit' \(did you mean 'digits'\?\)"):
        top_lines(storage, "digit", 5)


@pytest.mark.parametrize(
    ("lr", "edge"),
    [(1e-1, "high"), (0.06, "high"), (0.05, None), (1e-3, None), (2e-6, None), (1.5e-6, "low"), (1e-6, "low")],
)
def test_the_edge_of_a_log_range_is_five_percent_of_its_logarithm(lr: float, edge: str | None) -> None:
    study = parse_study(tree(), "x.toml")
    warnings = edge_warnings(study, [trial(0.9, params={"lr": lr, "dropout": 0.3})])
    assert [f"the {edge} edge" in line for line in warnings] == [True] * (edge is not None)


def test_the_warning_names_the_option_that_widens_the_range() -> None:
    study = parse_study(tree(), "x.toml")
    assert edge_warnings(study, [trial(0.9, params={"lr": 0.09, "dropout": 0.3})]) == [
        "the best lr (9.0000e-02) lies at the high edge of its range (0.1): "
        "to search beyond it, launch again with --set optimizer.lr.high=1 --extend and more --trials"
    ]


def test_a_bound_that_cannot_be_wider_is_no_edge() -> None:
    study = parse_study(tree(), "x.toml")
    assert edge_warnings(study, [trial(0.9, params={"lr": 1e-3, "dropout": 0.0})]) == []  # a rate cannot be below 0


def test_the_bound_offered_is_one_that_the_study_file_accepts() -> None:
    study = parse_study(tree(), "x.toml")
    (line,) = edge_warnings(study, [trial(0.9, params={"lr": 1e-3, "dropout": 0.6})])
    assert "--set network.dropout.high=0.9 --extend" in line  # twice the width would be a rate above 1


def test_steps_end_where_the_last_one_fits() -> None:
    written = tree(training={"batch_size": {"low": 10, "high": 58, "step": 10}})
    params = {"lr": 1e-3, "dropout": 0.3, "batch_size": 50}
    distributions = {"lr": LR, "dropout": DROPOUT, "batch_size": IntDistribution(10, 50, step=10)}
    (line,) = edge_warnings(parse_study(written, "x.toml"), [trial(0.9, params=params, distributions=distributions)])
    assert "the best batch_size (50) lies at the high edge" in line
    assert "--set training.batch_size.high=108 --extend" in line


def test_a_range_within_a_list_is_named_by_its_place() -> None:
    written = tree(network={"dropout": [{"low": 0.0, "high": 0.5}], "hidden": [8]})
    params = {"lr": 1e-3, "dropout.0": 0.5}
    distributions = {"lr": LR, "dropout.0": FloatDistribution(0.0, 0.5)}
    (line,) = edge_warnings(parse_study(written, "x.toml"), [trial(0.9, params=params, distributions=distributions)])
    assert "--set network.dropout.0.high=0.75 " in line


NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self, shape, classes, width=8, dropout=0.0, shift=0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(shape[1] * shape[2], width), nn.GroupNorm(2, width), nn.Dropout(dropout),
            nn.Linear(width, classes),
        )

    def forward(self, x):
        return self.layers(x)
"""


@pytest.mark.parametrize(
    ("name", "searched", "value", "offered"),
    [
        ("args.dropout", {"low": 0.0, "high": 0.8}, 0.8, "high=0.88"),  # a share, so not 1.6
        ("args.dropout", {"low": 0.0, "high": 1.0}, 1.0, None),
        ("args.dropout", {"low": 0.0, "high": 0.5}, 0.0, None),
        ("width", {"low": 10, "high": 60, "step": 2}, 10, "low=4"),
        ("width", {"low": 8, "high": 64, "step": 8}, 8, None),  # 0 and less are no numbers of units
        ("width", {"low": 4, "high": 5}, 5, "high=6"),
        ("width", {"low": 6, "high": 8}, 8, "high=10"),
        ("width", {"low": 7, "high": 8}, 8, None),  # the module cannot be made with 9
        ("args.shift", {"low": -1.0, "high": 0.5}, -1.0, "low=-2.5"),
        ("args.shift", {"low": -1.0, "high": -0.5}, -0.5, "high=-0.25"),
    ],
)
def test_an_argument_of_a_module_is_offered_what_it_may_be(
    tmp_path: Path, name: str, searched: dict[str, float], value: float, offered: str | None
) -> None:
    (tmp_path / "net.py").write_text(NET)
    key = name.removeprefix("args.")
    study = parse_study(
        {**tree(), "network": {"module": "net.py:Net", "args": {"width": 8, key: searched}}}, "", tmp_path
    )
    assert name in [parameter.name for parameter in study.parameters]
    distributions = {"lr": LR, name: FloatDistribution(searched["low"], searched["high"])}
    lines = edge_warnings(study, [trial(0.9, params={"lr": 1e-3, name: value}, distributions=distributions)])
    assert [line.split("--set ")[1].split(" ")[0] for line in lines] == (
        [] if offered is None else [f"network.args.{key}.{offered}"]
    )


@pytest.mark.parametrize(
    ("section", "key", "searched", "value", "offered"),
    [
        ("network", "kernel", {"low": 2, "high": 4}, 4, "network.kernel.high=6"),  # of 8x8 images
        ("network", "kernel", {"low": 5, "high": 8}, 8, None),
        ("network", "padding", {"low": 2, "high": 4}, 2, "network.padding.low=0"),
        ("network", "hidden", [{"low": 8, "high": 16}], 16, "network.hidden.0.high=24"),
        ("training", "shift", {"low": 0, "high": 4}, 4, "training.shift.high=6"),
        ("training", "shift", {"low": 0, "high": 7}, 7, None),
    ],
)
def test_what_images_or_limits_forbid_is_not_offered(
    section: str, key: str, searched: Any, value: int, offered: str | None
) -> None:
    network: dict[str, Any] = {"kind": "cnn", "conv": [2], "pool": 1, "hidden": []}
    written = {**tree(), "network": network, "search": {"trials": 2, "limits": {"parameters": 4000}}}
    written[section] = {**written[section], key: searched}
    study = parse_study(written, "")
    name, *_ = [parameter.name for parameter in study.parameters if parameter.name != "lr"]
    distributions = {"lr": LR, name: IntDistribution(0, 100)}
    lines = edge_warnings(study, [trial(0.9, params={"lr": 1e-3, name: value}, distributions=distributions)])
    assert [line.split("--set ")[1].split(" ")[0] for line in lines] == ([] if offered is None else [offered])


def test_choices_have_no_edge() -> None:
    written = tree(optimizer={"lr": {"choices": [0.1, 0.2]}})
    params = {"lr": 0.2, "dropout": 0.3}
    distributions = {"lr": CategoricalDistribution([0.1, 0.2]), "dropout": DROPOUT}
    assert edge_warnings(parse_study(written, "x.toml"), [trial(0.9, params=params, distributions=distributions)]) == []


@given(
    low=st.floats(1e-9, 1e-2),
    factor=st.floats(1.5, 1e6),
    log=st.booleans(),
    share=st.floats(0, 1),
)
def test_what_a_warning_offers_can_be_set(
    tmp_path_factory: pytest.TempPathFactory, low: float, factor: float, log: bool, share: float
) -> None:
    high = low * factor
    study = parse_study(tree(optimizer={"lr": {"low": low, "high": high, "log": log}}), "x.toml")
    file = tmp_path_factory.getbasetemp() / "offered.json"
    file.write_text(json.dumps(study.resolved()))
    lr = min(high, max(low, low * factor**share))
    distributions = {"lr": FloatDistribution(low, high, log=log), "dropout": DROPOUT}
    for line in edge_warnings(study, [trial(0.9, params={"lr": lr, "dropout": 0.3}, distributions=distributions)]):
        changed = read_study(file, [line.split("--set ")[1].split(" ")[0]])
        old, new = (next(p.searched for p in each.parameters if p.name == "lr") for each in (study, changed))
        assert new.low <= old.low
        assert new.high >= old.high
        assert new != old
