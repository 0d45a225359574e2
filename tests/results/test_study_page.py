"""Tests of the texts for the dashboard's pages: facts and results of a study, its note, a trial's metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import optuna
import pytest
from optuna.trial import TrialState
from stored_studies import DROPOUT, LR, OWN, run, tree, trial
from tiny import study_of

from hpo.results.confirm.study import Candidate
from hpo.results.display.study_page import SUMMARY_HEADING, study_texts, trial_attrs, without_summary
from hpo.search.study_records import any_stored_study
from hpo.storage import Storage, load_study, summary
from hpo.studyfile import Study

Stored = Callable[..., optuna.Study]
SPACE = {"lr": LR, "dropout": DROPOUT}
BEST, BASELINE = {"lr": 1e-3, "dropout": 0.25}, {"lr": 1e-4, "dropout": 0.3}


def confirmed(storage: Storage, stored: Stored) -> None:
    """Store a finished study with its confirmation over two seeds and a test evaluation."""
    study = stored([run(BEST, SPACE, val=[0.5, 0.8])])
    study.set_user_attr("hpo:state", "ended")
    study.set_user_attr("hpo:why", "finished")
    scores = {"accuracy": 0.75, "loss": 0.5, "interval": {"low": 0.7, "high": 0.8}}
    study.set_user_attr("hpo:tests", [{"look": 1, "trial": 0, "at": "2026-01-31", "result": scores}])
    runs = [run(BEST, SPACE, seed=seed, val=[value]) for seed, value in enumerate((0.7, 0.72))]
    runs += [run(BASELINE, SPACE, seed=seed, val=[value]) for seed, value in enumerate((0.5, 0.53))]
    confirming = stored(runs, tree(search={"trials": 4}), "digits-confirm")
    candidates = [Candidate("Best-1", BEST, 0, 0.8, False), Candidate("baseline", BASELINE, None, None, True)]
    record = {"study": "digits", "identity": "digits", "seeds": 2, "candidates": [asdict(each) for each in candidates]}
    confirming.set_user_attr("hpo:confirms", record)


def test_a_finished_study_shows_its_results_and_the_commands_to_go_on(storage: Storage, stored: Stored) -> None:
    confirmed(storage, stored)
    attrs, note = study_texts(storage, summary(storage, "digits"), "sqlite:///a b.db")
    assert list(attrs) == ["state", "best", "confirmed", "tuning", "tested", "next", "data"]
    assert attrs["state"] == "finished, 1 complete of 8 trials"
    assert attrs["best"] == "Best-1 (trial 0): val acc: 0.8000"
    assert attrs["confirmed"].startswith("Best-1 (trial 0): mean val acc 0.7100 (95% interval ")
    assert attrs["confirmed"].endswith(" over 2 fresh seeds")
    assert "minus the baseline is +0.1950" in attrs["tuning"]
    assert attrs["tested"] == (
        "evaluation 1, 2026-01-31, trial 0: accuracy 0.7500 (95% interval 0.7000 to 0.8000), loss 0.5000"
    )
    assert attrs["data"] == "digits: 1,150 training and 287 validation examples, 360 sealed test examples"
    assert note.startswith(f"{SUMMARY_HEADING}\n\n- **state**: finished")
    commands = (
        "hpo report digits --storage 'sqlite:///a b.db'\nhpo export digits --storage 'sqlite:///a b.db' --confirmed"
    )
    assert f"```sh\n{commands}" in note
    assert without_summary(f"mine\n\n{note}") == "mine"
    own, _ = study_texts(storage, summary(storage, "digits-confirm"), None)
    assert own["confirms"] == "digits"
    assert "next" not in own


@pytest.mark.parametrize(
    ("state", "command"),
    [("open", "hpo status digits --watch"), ("paused", "hpo resume digits"), ("stopped", "hpo resume digits")],
)
def test_a_study_that_is_not_finished_shows_how_to_go_on(
    storage: Storage, stored: Stored, state: str, command: str
) -> None:
    stored([trial(0.5), trial(state=TrialState.PRUNED), trial(state=TrialState.FAIL)]).set_user_attr("hpo:state", state)
    attrs, _ = study_texts(storage, summary(storage, "digits"), None)
    assert attrs["state"] == f"{state}, 1 complete, 1 pruned, 1 failed of 8 trials"
    assert attrs["next"] == command


def test_a_study_without_trials_and_one_of_an_objective_have_texts(storage: Storage, stored: Stored) -> None:
    stored([])
    assert study_texts(storage, summary(storage, "digits"), None)[0]["state"] == "open, none of 8 trials"
    own = optuna.create_study(storage=storage, study_name="own", direction="minimize")
    own.set_user_attr("hpo:study", json.dumps({**OWN, "name": "own"}))
    own.add_trial(trial(0.5))
    attrs, _ = study_texts(storage, summary(storage, "own"), None)
    assert attrs == {
        "state": "open, 1 complete of 4 trials",
        "best": "Best-1 (trial 0): value: 0.5000",
        "next": "hpo status own --watch",
    }


def test_no_text_of_a_study_is_markdown(storage: Storage, stored: Stored) -> None:
    study = stored([trial(0.5)])
    data = study.user_attrs["hpo:data"]
    study.set_user_attr("hpo:data", {**data, "name": "[a](javascript:x) <b>*\n# `c`"})
    attrs, note = study_texts(storage, summary(storage, "digits"), None)
    assert "- **data**: \\[a\\]\\(javascript:x\\) \\<b\\>\\*\\\\n\\# \\`c\\`: 1,150 " in note
    assert attrs["data"].startswith("[a](javascript:x) <b>*\\n# `c`: 1,150 ")


def test_a_trial_shows_its_metrics_at_the_scored_epoch_and_its_configuration(storage: Storage, stored: Stored) -> None:
    stored([run(BEST, SPACE, val=[0.5, 0.9, 0.8], train=[0.6, 0.95, 1.0], val_loss=[2.0, 1.0, float("nan")])])
    study, (ended,) = any_stored_study(load_study(storage, "digits")), load_study(storage, "digits").trials
    assert isinstance(study, Study)
    attrs = trial_attrs(study, ended)
    assert attrs == {
        "train_accuracy": 1.0,
        "train_loss": 1.0,
        "epochs": 3,
        "network": "kind mlp, hidden [8], dropout 0.25",
        "optimizer": "kind sgd, lr 0.001",
        "training": "epochs 3",
    }
    ended.user_attrs["score_epoch"] = 2
    assert (trial_attrs(study, ended)["train_accuracy"], trial_attrs(study, ended)["val_loss"]) == (0.95, 1.0)


def test_a_long_configuration_has_several_lines(storage: Storage) -> None:
    study = study_of(network={"hidden": [10 + number for number in range(40)]})
    params = {"lr": 1e-3}
    attrs = trial_attrs(study, trial(state=TrialState.RUNNING, params=params, distributions={"lr": LR}))
    assert "network 2" in attrs
    assert all(len(str(each)) <= 90 for each in attrs.values())
    assert trial_attrs(study, trial(state=TrialState.WAITING, params={}, distributions={})) == {}
