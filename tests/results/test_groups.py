"""Which configurations a study brings to a comparison, which of its trials they hold, and what they are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from stored_studies import DROPOUT, LR, run, tree, trial

from hpo.errors import HpoError, UnknownStudyError, UsageError
from hpo.results.compare.runs import groups, groups_by_value
from hpo.storage import Storage

Store = Callable[..., optuna.Study]
RATES = CategoricalDistribution([0.0, 0.3, 0.5])
SPACE = {"lr": LR, "dropout": DROPOUT}


def grid(search: dict[str, Any] | None = None, **network: Any) -> dict[str, Any]:
    """The file of a study that tries every dropout rate of three, two times each."""
    made = tree(
        network={"dropout": {"choices": [0.0, 0.3, 0.5]}, **network},
        search=search or {"trials": 6, "sampler": "grid", "repeats": 2},
    )
    made["optimizer"]["lr"] = 0.1
    return made


def rate(dropout: float, seed: int = 0, **curves: Any) -> FrozenTrial:
    return run({"dropout": dropout}, {"dropout": RATES}, seed=seed, **curves)


def at(lr: float, dropout: float, seed: int = 0, val: Sequence[float] = (0.5,)) -> FrozenTrial:
    return run({"lr": lr, "dropout": dropout}, SPACE, seed=seed, val=val)


def test_a_grid_brings_every_configuration_with_its_runs(storage: Storage, stored: Store) -> None:
    curves = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]]
    stored([rate(0.0, 7, val=curves[0]), rate(0.3, 7, val=curves[1]), rate(0.0, 8, val=curves[2])], grid())
    first, second = groups(storage, ["digits"])
    assert (first.label(), second.label()) == ("dropout: 0.0", "dropout: 0.3")
    assert (first.numbers, second.numbers) == ((0, 2), (1,))
    assert first.params == {"dropout": 0.0}
    assert [each.seed for each in first.runs] == [7, 8]
    np.testing.assert_array_equal(first.curves("val_accuracy"), [curves[0], curves[2]])


def test_a_search_brings_its_best_configuration_by_the_mean_of_its_trials(storage: Storage, stored: Store) -> None:
    # 0.9 was luck: the same configuration has 0.5 under another seed, and a mean of 0.7
    runs = [at(1e-3, 0.1, 1, [0.9]), at(1e-3, 0.1, 2, [0.5]), at(1e-2, 0.2, 1, [0.75]), at(1e-2, 0.2, 2, [0.74])]
    stored([*runs, trial(state=TrialState.RUNNING)])
    (best,) = groups(storage, ["digits"])
    assert best.numbers == (2, 3)
    assert best.label() == "digits"
    assert best.texts == {"lr": "lr: 1.0000e-02", "dropout": "dropout: 0.2000"}


def test_the_best_loss_is_the_lowest(storage: Storage, stored: Store) -> None:
    stored([at(1e-3, 0.1, val=[0.9]), at(1e-2, 0.2, val=[0.3])], tree(search={"metric": "val_loss"}))
    assert groups(storage, ["digits"])[0].numbers == (1,)


def test_points_alone_are_a_grid(storage: Storage, stored: Store) -> None:
    points = [{"dropout": 0.5}, {"dropout": 0.0}]
    search = {"sampler": "random", "points": points, "repeats": 2}
    trials = [rate(0.5, 1), rate(0.5, 2), rate(0.0, 1, val=[0.9]), rate(0.0, 2, val=[0.9])]
    stored(trials, grid({**search, "trials": 4}), "points")
    stored([*trials, rate(0.3)], grid({**search, "trials": 6}), "more")
    assert [group.label() for group in groups(storage, ["points"])] == ["dropout: 0.5", "dropout: 0.0"]
    assert [group.numbers for group in groups(storage, ["more"])] == [(2, 3)]


def test_a_study_that_searches_nothing_is_one_configuration(storage: Storage, stored: Store) -> None:
    fixed = grid({"trials": 2, "repeat": True}, dropout=0.1)
    stored([run({}, {}, seed=1), run({}, {}, seed=2)], fixed)
    (only,) = groups(storage, ["digits"])
    assert (only.label(), only.numbers, only.texts) == ("digits", (0, 1), {})


def test_studies_are_told_apart_by_their_names(storage: Storage, stored: Store) -> None:
    stored([rate(0.0), rate(0.3)], grid(), "plain")
    stored([at(1e-3, 0.1)], name="searched")
    labels = [group.label() for group in groups(storage, ["searched", "plain"])]
    assert labels == ["searched", "plain (dropout: 0.0)", "plain (dropout: 0.3)"]


def test_a_trial_chooses_its_configuration(storage: Storage, stored: Store) -> None:
    stored([at(1e-3, 0.1, 1), at(1e-2, 0.1), at(1e-3, 0.1, 2), at(1e-4, 0.1)])
    stored([rate(0.0)], grid(), "digits#1")
    chosen = groups(storage, ["digits#3", "digits#2"])
    assert [(group.numbers, group.label()) for group in chosen] == [
        ((3,), "lr: 1.0000e-04"),
        ((0, 2), "lr: 1.0000e-03"),
    ]
    assert groups(storage, ["digits#1"])[0].study == "digits#1"  # which is the name of a study


def test_what_failed_is_a_group_without_runs(storage: Storage, stored: Store) -> None:
    failing = [rate(0.3, 7, failed="diverged: train_loss is nan after epoch 1"), rate(0.3, 8, failed="out of luck")]
    stored(
        [
            rate(0.0),
            *failing,
            trial(state=TrialState.RUNNING, params={"dropout": 0.5}, distributions={"dropout": RATES}),
        ],
        grid(),
    )
    first, failed, running = groups(storage, ["digits"])
    assert (first.states, failed.states) == ({TrialState.COMPLETE: 1}, {TrialState.FAIL: 2})
    assert failed.runs == running.runs == ()
    assert failed.reasons == ("diverged: train_loss is nan after epoch 1", "out of luck")
    assert running.states == {TrialState.RUNNING: 1}


def test_lists_are_what_the_study_file_says(storage: Storage, stored: Store) -> None:
    hidden = CategoricalDistribution(["[8]", "[8, 4]"])
    file = grid(hidden={"choices": [[8], [8, 4]]}, dropout=0.0)
    stored([run({"hidden": text}, {"hidden": hidden}) for text in ("[8]", "[8, 4]")], file)
    assert [group.params for group in groups(storage, ["digits"])] == [{"hidden": [8]}, {"hidden": [8, 4]}]


def test_what_its_kind_does_not_use_tells_no_group_from_another(storage: Storage, stored: Store) -> None:
    space = {"optimizer.kind": CategoricalDistribution(["sgd", "momentum"]), "momentum": FloatDistribution(0.0, 0.9)}
    file = grid({"trials": 4, "sampler": "grid"}, dropout=0.0)
    file["optimizer"] |= {
        "kind": {"choices": ["sgd", "momentum"]},
        "momentum": {"low": 0.0, "high": 0.9, "step": 0.1},
    }
    both = [(kind, momentum) for kind in ("sgd", "momentum") for momentum in (0.5, 0.9)]
    stored([run({"optimizer.kind": kind, "momentum": momentum}, dict(space)) for kind, momentum in both], file)
    found = groups(storage, ["digits"])
    labels = ["optimizer.kind: sgd", *(f"optimizer.kind: momentum, momentum: {each}" for each in ("0.5000", "0.9000"))]
    assert sorted(group.label() for group in found) == sorted(labels)
    assert [group.numbers for group in found] == [(0, 1), (2,), (3,)]
    assert list(groups_by_value(found, "momentum")) == ["momentum: none", "momentum: 0.5000", "momentum: 0.9000"]


def test_facets_have_the_same_value_of_a_parameter(storage: Storage, stored: Store) -> None:
    norm = CategoricalDistribution([True, False])
    file = grid(batch_norm={"choices": [True, False]})
    both = {"dropout": RATES, "batch_norm": norm}
    stored([run({"dropout": rate, "batch_norm": on}, both) for rate in (0.0, 0.3) for on in (True, False)], file)
    found = groups(storage, ["digits"])
    parts = groups_by_value(found, "dropout")
    assert list(parts) == ["dropout: 0.0", "dropout: 0.3"]
    assert [[group.label("dropout") for group in part] for part in parts.values()] == [
        ["batch norm: True", "batch norm: False"]
    ] * 2
    with pytest.raises(UsageError, match=r"--by: 'dropuot' is not searched \(did you mean 'dropout'\?\)"):
        groups_by_value(found, "dropuot")
    with pytest.raises(UsageError, match="--by: 'x' is not searched; searched parameters: dropout, batch_norm"):
        groups_by_value(found, "x")


def test_facets_need_the_parameter_in_every_study(storage: Storage, stored: Store) -> None:
    stored([rate(0.0), rate(0.3)], grid(), "one")
    stored([run({}, {})], grid(dropout=0.1), "two")
    with pytest.raises(
        UsageError, match="--by: 'dropout' is not searched by 'two'; compare only studies that search it"
    ):
        groups_by_value(groups(storage, ["one", "two"]), "dropout")


@pytest.mark.parametrize("names", [["digits", "digits"], ["digits", "digits#0"], ["digits#0", "digits#1"]])
def test_a_configuration_is_chosen_once(storage: Storage, stored: Store, names: list[str]) -> None:
    stored([rate(0.0, 1), rate(0.0, 2)], grid())
    with pytest.raises(UsageError, match=f"{names[1]}: the same configuration as {names[0]}"):
        groups(storage, names)


def test_what_has_nothing_to_compare_says_so(storage: Storage, stored: Store) -> None:
    stored([], grid(), "empty")
    stored([trial(state=TrialState.FAIL)], name="failed")
    optuna.create_study(storage=storage, study_name="others").add_trial(trial(0.5))
    with pytest.raises(HpoError, match="study 'empty': no finished trial yet"):
        groups(storage, ["empty"])
    with pytest.raises(HpoError, match="study 'failed': no trial to rank: 1 failed, so there is nothing to compare"):
        groups(storage, ["failed"])
    with pytest.raises(HpoError, match="study 'others' was not created by hpo"):
        groups(storage, ["others"])
    with pytest.raises(UsageError, match="failed#7: study 'failed' has no trial 7; trials are numbered 0 to 0"):
        groups(storage, ["failed#7"])
    with pytest.raises(UnknownStudyError, match=r"no study named 'faild' \(did you mean 'failed'\?\)"):
        groups(storage, ["faild#7"])
