"""Points that are tried first, repeats under shared seeds, and the baseline."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import after_epochs, curves, params, search, states, study_of, tree, trials_of

from hpo.errors import StudyFileError
from hpo.search.events import StudyEnded
from hpo.search.points import baseline, points, trial_seed
from hpo.search.sampling.samplers import check_search
from hpo.search.space import contains, distributions
from hpo.storage import Storage, open_storage
from hpo.studyfile import parse_study, read_study

POINTS = [{"lr": 0.5}, {"lr": 0.01}]


def seeds(storage: Storage) -> list[int]:
    return [trial.user_attrs["seed"] for trial in trials_of(storage)]


def test_points_are_tried_first_in_order_then_the_sampler_proposes(storage: Storage) -> None:
    search(study_of(search={"trials": 4, "points": POINTS, "population": 3}), storage)
    values = [trial.params["lr"] for trial in trials_of(storage)]
    assert values[:2] == [0.5, 0.01]
    assert len(set(values)) == 4


def test_a_study_may_have_only_points(storage: Storage) -> None:
    *_, ended = search(study_of(search={"trials": 2, "points": POINTS}), storage)
    assert isinstance(ended, StudyEnded)
    assert ended.reason == "finished"
    assert params(trials_of(storage)) == POINTS


def test_a_point_stores_values_that_its_optimizer_does_not_use(storage: Storage) -> None:
    """The momentum of a point is stored although sgd does not use it; the default momentum is outside the range."""
    optimizer = {"kind": {"choices": ["sgd", "momentum"]}, "momentum": {"low": 0.1, "high": 0.5}}
    given_points = [{"optimizer.kind": "sgd", "lr": 0.1, "momentum": each} for each in (0.2, 0.3)]
    search(study_of(optimizer=optimizer, search={"trials": 2, "points": given_points}), storage)
    assert params(trials_of(storage)) == given_points
    assert baseline(study_of(optimizer=optimizer))["momentum"] == pytest.approx(0.3)


def test_a_point_of_a_finite_space_is_tried_once(storage: Storage) -> None:
    study = study_of(
        optimizer={"lr": {"choices": [0.1, 0.2, 0.3]}},
        search={"trials": 9, "sampler": "grid", "points": [{"lr": 0.3}]},
    )
    *_, ended = search(study, storage)
    assert isinstance(ended, StudyEnded)
    assert ended.reason == "space exhausted"
    assert [trial.params["lr"] for trial in trials_of(storage)] == [0.3, 0.1, 0.2]


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid", "qmc"])
def test_repeats_of_each_configuration_have_the_same_seeds(storage: Storage, sampler: str) -> None:
    lr = {"choices": [0.1, 0.3]} if sampler == "grid" else {"low": 1e-3, "high": 1.0, "log": True}
    study = study_of(optimizer={"lr": lr}, search={"trials": 6, "sampler": sampler, "repeats": 3, "population": 4})
    search(study, storage)
    rates = [trial.params["lr"] for trial in trials_of(storage)]
    assert rates == [rates[0]] * 3 + [rates[3]] * 3
    assert rates[0] != rates[3]
    first, second = seeds(storage)[:3], seeds(storage)[3:]
    assert first == second == [trial_seed(study, number) for number in range(3)]
    assert len(set(first)) == 3
    assert len({str(curve) for curve in curves(trials_of(storage))}) == 6


def test_a_grid_ends_when_each_combination_has_all_its_repeats(storage: Storage) -> None:
    study = study_of(optimizer={"lr": {"choices": [0.1, 0.2]}}, search={"trials": 50, "sampler": "grid", "repeats": 3})
    *_, ended = search(study, storage)
    assert isinstance(ended, StudyEnded)
    assert (ended.reason, ended.completed) == ("space exhausted", 6)


def test_a_study_without_searched_parameters_is_repeated(storage: Storage) -> None:
    *_, ended = search(study_of(optimizer={"lr": 0.1}, search={"trials": 4, "repeats": 4}), storage)
    assert isinstance(ended, StudyEnded)
    assert (ended.reason, ended.completed) == ("finished", 4)
    assert len(set(seeds(storage))) == 4


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "gp"])
def test_an_interruption_changes_neither_configurations_nor_repeats(
    storage: Storage, tmp_path: Path, sampler: str
) -> None:
    study = study_of(
        training={"epochs": 1},
        search={"trials": 10, "sampler": sampler, "repeats": 3, "population": 2, "points": [{"lr": 0.25}]},
    )
    undisturbed = open_storage(f"sqlite:///{tmp_path}/undisturbed.db")
    search(study, undisturbed)
    for epochs in (1, 2, 1):  # each stops between the repeats of a configuration
        search(study, storage, stop_at=after_epochs(epochs))
    search(study, storage)
    assert params(trials_of(storage)) == params(trials_of(undisturbed))
    assert seeds(storage) == seeds(undisturbed)
    assert states(trials_of(storage)) == states(trials_of(undisturbed))
    undisturbed.close()


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([{"lr": 2.0}], "search.points.0.lr: lies outside the range"),
        ([{"lr": 0.1}, {"lr": 0.1}], "search.points.1: is the same as search.points.0"),
        ([{}], "search.points.0: has no value for the searched parameter lr"),
        ([{"lr": 0.1, "lrr": 0.1}], "search.points.0.lrr: is not a searched parameter (did you mean 'lr'?)"),
        ([{"lr": -1}], "search.points.0.lr: must be above 0 (got -1)"),
        ([{"lr": "fast"}], "search.points.0.lr: must be a number (got 'fast')"),
        ([0.1], "search.points.0: must be a table (got 0.1)"),
    ],
)
def test_an_invalid_point_is_refused(points: list[Any], message: str) -> None:
    with pytest.raises(StudyFileError) as refused:
        check_search(study_of(search={"points": points}))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("args", "point", "message"),
    [
        ({"choices": [True, 2]}, 1, "search.points.0.a: is none of the choices (got 1)"),
        ({"choices": [1, 2]}, 1.0, "search.points.0.a: is none of the choices (got 1.0)"),
        ({"choices": [[8], [16]]}, "[8]", "search.points.0.a: is none of the choices (got '[8]')"),
        ({"choices": ["[8]", [16]]}, [8], "search.points.0.a: is none of the choices (got [8])"),
        ({"low": 0, "high": 2}, True, "search.points.0.a: lies outside the range (got true)"),
    ],
)
def test_a_point_must_be_a_choice_of_the_same_type(args: Any, point: Any, message: str) -> None:
    network = {"module": "net.py:Net", "args": {"a": args}}
    file_tree = {**tree(optimizer={"lr": 0.1}, search={"points": [{"a": point}]}), "network": network}
    with pytest.raises(StudyFileError) as refused:
        check_search(parse_study(file_tree, "tiny.toml"))
    assert message in str(refused.value)


def test_a_point_gets_the_type_of_its_range() -> None:
    network = {"module": "net.py:Net", "args": {"a": {"low": 0, "high": 4}, "b": {"low": 0.0, "high": 4.0}}}
    file_tree = {**tree(optimizer={"lr": 0.1}, search={"points": [{"a": 3.0, "b": 3}]}), "network": network}
    assert repr(points(parse_study(file_tree, "tiny.toml"))) == "[{'a': 3, 'b': 3.0}]"


def test_points_may_have_lists_and_booleans(storage: Storage) -> None:
    study = study_of(
        network={"hidden": {"choices": [[8], [4, 4]]}, "batch_norm": {"choices": [True, False]}},
        optimizer={"lr": 0.1},
        search={"trials": 2, "points": [{"hidden": [4, 4], "batch_norm": False}]},
    )
    search(study, storage)
    assert params(trials_of(storage))[0] == {"hidden": "[4, 4]", "batch_norm": False}


def baseline_of(given: Any, **changes: Any) -> dict[str, Any]:
    study = parse_study({**study_of(**changes).resolved(), "baseline": given}, "studies/tiny.toml")
    return baseline(study)


def test_the_baseline_is_the_value_in_the_file_or_the_middle_of_the_range() -> None:
    changes: dict[str, Any] = {
        "network": {"dropout": {"low": 0.0, "high": 0.5, "step": 0.1}, "batch_norm": {"choices": [True, False]}},
        "training": {"epochs": {"low": 1, "high": 4}, "batch_size": {"low": 10, "high": 1000, "log": True}},
    }
    values = baseline_of({}, **changes)
    assert values.pop("lr") == pytest.approx(math.sqrt(1e-3 * 1.0))
    assert values == {"dropout": 0.2, "batch_norm": True, "epochs": 2, "batch_size": 100}
    assert baseline_of({"lr": 3, "epochs": 9}, **changes)["lr"] == 3.0  # may lie outside the range
    assert baseline_of({"epochs": 9}, **changes)["epochs"] == 9


@given(low=st.floats(1e-8, 1), factor=st.floats(1.001, 1e6), log=st.booleans())
def test_the_middle_of_a_range_lies_inside(low: float, factor: float, log: bool) -> None:
    study = study_of(optimizer={"lr": {"low": low, "high": low * factor, "log": log}})
    assert contains(distributions(study), baseline(study))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight_decay": 0.1}, "baseline.weight_decay: is not a searched parameter; known: lr"),
        ({"lr": 0}, "baseline.lr: must be above 0 (got 0)"),
        ({"lr": {"low": 0.1, "high": 1}}, "baseline.lr: must be a number"),
        (0.1, "baseline: must be a table (got 0.1)"),
    ],
)
def test_an_invalid_baseline_is_refused(given: Any, message: str) -> None:
    with pytest.raises(StudyFileError) as refused:
        baseline_of(given)
    assert message in str(refused.value)


TWO_LAYERS = "must be one number or a list of 2, one for each dropout layer (got [0.1])"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden": [5, 5], "dropout": [0.1]}, f"dropout: {TWO_LAYERS}"),
        ({"hidden": [5], "dropout": [0.1, 0.2]}, "dropout: must be one number or a list of 1"),
        ({"hidden": [5, 5], "dropout": [0.1, 0.2]}, ""),
        ({"dropout": [0.1]}, ""),
    ],
)
@pytest.mark.parametrize("place", ["baseline", "search.points.0"])
def test_conflicting_values_are_refused_when_the_file_is_read(place: str, given: Any, message: str) -> None:
    network = {"hidden": {"choices": [[8], [5, 5]]}, "dropout": {"choices": [0.0, 0.5]}}
    tree = study_of(network=network, optimizer={"lr": 0.1}, search={"trials": 2}).resolved()
    tree = {**tree, "baseline": given} if place == "baseline" else tree
    tree["search"] |= {} if place == "baseline" else {"points": [{"hidden": [8], **given}]}
    if not message:
        parse_study(tree, "studies/tiny.toml")
        return
    with pytest.raises(StudyFileError, match=f"^studies/tiny.toml: {re.escape(f'{place}.{message}')}"):
        parse_study(tree, "studies/tiny.toml")


def test_a_baseline_that_conflicts_with_a_fixed_value_is_refused() -> None:
    network = {"hidden": {"choices": [[8], [5]]}, "dropout": [0.1]}
    with pytest.raises(StudyFileError, match=re.escape("baseline: conflicts with network.dropout, which must be")):
        baseline_of({"hidden": [5, 5]}, network=network)


def test_a_baseline_may_be_added_to_a_stored_study(storage: Storage, tmp_path: Path) -> None:
    search(study_of(), storage)
    changed = parse_study({**study_of().resolved(), "baseline": {"lr": 0.2}}, "studies/tiny.toml")
    search(changed, storage, extend=True)
    assert len(trials_of(storage)) == 6


def test_a_toml_file_may_have_points_repeats_and_a_baseline(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        'name = "s"\n[data]\ndataset = "digits"\n[network]\nkind = "mlp"\n'
        "[optimizer]\nlr = { low = 0.001, high = 1.0, log = true }\n[training]\nepochs = 1\n"
        "[search]\ntrials = 4\nrepeats = 2\npoints = [{ lr = 0.5 }]\n[baseline]\nlr = 0.01\n"
    )
    study = read_study(path)
    assert (study.first_settings.baseline, study.search.points) == ({"lr": 0.01}, [{"lr": 0.5}])
