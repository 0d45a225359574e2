"""The selected configuration: the confirmed winner, else the best trial, or the trial of a given number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from stored_studies import tree, trial

from hpo.data import load_split
from hpo.errors import HpoError
from hpo.results.confirm.study import create_confirming_study
from hpo.results.selection import select
from hpo.search.study_records import data_record, stored_study
from hpo.storage import Storage, load_study

Stored = Callable[..., optuna.Study]


def test_without_a_confirmation_it_is_the_best_trial(storage: Storage, stored: Stored) -> None:
    stored([trial(0.5), trial(0.75), trial(0.75), trial(0.9, state=TrialState.PRUNED)])
    selected = select(storage, "digits")
    assert (selected.trial, selected.score, selected.epochs) == (1, 0.75, 3)
    assert selected.params == {"lr": 1e-3, "dropout": 0.25}
    assert selected.config.optimizer.lr == 1e-3
    assert selected.why == f"Best-1 (trial {selected.trial}) of the search, not confirmed"


def test_a_trial_is_selected_by_its_number(storage: Storage, stored: Stored) -> None:
    stored([trial(0.5), trial(0.75), trial(state=TrialState.FAIL)])
    assert select(storage, "digits", 0).trial == 0
    assert select(storage, "digits", 0).why == "trial 0, selected by its number"
    with pytest.raises(HpoError, match="trial 2 is failed: select a complete one"):
        select(storage, "digits", 2)
    with pytest.raises(HpoError, match="has no trial 3: `hpo top` lists the best"):
        select(storage, "digits", 3)


def test_nothing_is_selected_where_nothing_has_finished(storage: Storage, stored: Stored) -> None:
    stored([trial(state=TrialState.RUNNING)])
    with pytest.raises(HpoError, match="no finished trial yet"):
        select(storage, "digits")


def test_with_the_best_epochs_score_the_epochs_are_as_many(storage: Storage, stored: Stored) -> None:
    best = trial(0.75)
    best.user_attrs["score_epoch"] = 2
    stored([best], tree(search={"score": "best"}))
    assert select(storage, "digits").epochs == 2


def test_parameters_are_what_the_study_file_means(storage: Storage, stored: Stored) -> None:
    written = tree(network={"hidden": {"choices": [[8], [4, 4]]}, "dropout": 0.1})
    kinds = {"hidden": CategoricalDistribution(["[8]", "[4, 4]"])}
    lr = trial(0.5)
    params: dict[str, Any] = {"hidden": "[4, 4]", "lr": 1e-3}
    stored([trial(0.5, params=params, distributions={**kinds, "lr": lr.distributions["lr"]})], written)
    assert select(storage, "digits").params == {"hidden": [4, 4], "lr": 1e-3}
    assert select(storage, "digits").config.network.hidden == [4, 4]


def test_the_winner_of_a_confirmation_is_selected(storage: Storage, stored: Stored) -> None:
    """The search's second best, whose runs under fresh seeds are the best."""
    params = [{"lr": lr, "dropout": 0.25} for lr in (1e-3, 1e-2)]
    made = stored([trial(score, params=each) for score, each in zip((0.75, 0.7), params, strict=True)])
    made.set_user_attr("hpo:identity", "this one")
    made.set_user_attr("hpo:data", data_record(load_split(stored_study(made))))
    study = create_confirming_study(storage, "digits", top=2, seeds=2)
    with pytest.raises(HpoError, match="its confirmation 'digits-confirm' is not finished"):
        select(storage, "digits")
    assert select(storage, "digits", 0).trial == 0
    runs = [trial(score, params=each) for score, each in ((0.6, params[0]), (0.7, params[1])) for _ in range(2)]
    for number, run in enumerate(runs):
        run.user_attrs["seed"] = number % 2
    baseline = [trial(0.1, params={"lr": 0.1, "dropout": 0.3}) for _ in range(study.search.trials - len(runs))]
    load_study(storage, study.name).add_trials([*runs, *baseline])
    selected = select(storage, "digits")
    assert (selected.trial, selected.score) == (1, 0.7)
    assert selected.why.endswith(
        f" (trial {selected.trial}) of the search, the winner of its confirmation over 2 seeds"
    )
