"""Confirmations: the configurations that are trained again, the numbers, and the conclusions."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from stored_studies import trial
from tiny import StopAfter, search, study_of, trials_of, write_mnist

from hpo.errors import DataError, HpoError, InterruptionError, UnknownStudyError
from hpo.results.confirm.result import Confirmation, find_confirmation, read_confirmation
from hpo.results.confirm.study import CONFIRMS, create_confirming_study
from hpo.results.confirm.text import ConfirmationResult, conclusions, confirmation_rows
from hpo.results.copy import copy_line
from hpo.results.display.check import parameter_line
from hpo.results.display.progress import QuietProgress
from hpo.results.export.best import export
from hpo.results.reproduce.verify import verify
from hpo.search import driver as drivers
from hpo.search.options import LaunchOptions
from hpo.service.confirming import confirm
from hpo.storage import IDENTITY, Storage, StudyState, load_study, open_storage, rename_study, set_state, study_names
from hpo.studyfile import Study, parse_study

LR = {"lr": FloatDistribution(1e-3, 1.0, log=True)}
SCORES = {0.1: 0.9, 0.2: 0.8, 0.3: 0.7, 0.4: 0.6}
MIDDLE = 10**-1.5
BEST, BASE, FIRST = "Best-1 (trial 1)", "the baseline (also the first trial)", "the first trial"


def searched(
    storage: Storage, study: Study, scores: dict[float, float] | None = None, first: float | None = MIDDLE
) -> None:
    """A study that has been searched: these learning rates with these scores, after a pruned `first` trial."""
    search(study, storage, stop_at=lambda event: True)  # what a launch keeps with a study
    stored = load_study(storage, study.name)
    for waiting in stored.get_trials(states=(TrialState.WAITING, TrialState.COMPLETE)):
        storage.set_trial_state_values(waiting._trial_id, TrialState.FAIL)
    first = {} if first is None else {first: None}
    for lr, score in (first | (SCORES if scores is None else scores)).items():
        state = TrialState.PRUNED if score is None else TrialState.COMPLETE
        stored.add_trial(trial(score, state=state, params={"lr": lr}, distributions=dict(LR)))


def small(**changes: Any) -> Study:
    return study_of(training={"epochs": 1}, search={"trials": 1, **changes})


def said(storage: Storage, found: list[Confirmation], *, top: int = 2, seeds: int = 2, looks: float = math.inf) -> bool:
    """Confirm the study as the command does, and take down what it shows; return whether it came to its end."""
    stop = StopAfter(looks)
    with contextlib.suppress(InterruptionError):
        confirm(
            storage,
            "tiny",
            top=top,
            seeds=seeds,
            options=LaunchOptions(device="cpu"),
            display=lambda: QuietProgress(Console(stderr=True)),
            say=found.append,
            stop=stop,
        )
        return True
    return False


def trained(storage: Storage, top: int = 2, seeds: int = 2) -> Confirmation:
    found: list[Confirmation] = []
    assert said(storage, found, top=top, seeds=seeds)
    (only,) = found
    return only


def run(confirming: Study, lr: float, seed: int, score: float | None) -> FrozenTrial:
    """A run of the confirming study, as a launch would have finished it."""
    state = TrialState.FAIL if score is None else TrialState.COMPLETE
    made = trial(score, state=state, params={"lr": lr}, distributions=dict(LR))
    made.user_attrs["seed"] = seed
    return made


def confirmed(storage: Storage, runs: dict[float, Sequence[float | None]], **changes: Any) -> Confirmation:
    """Confirm a searched study with these scores, a run each, under seeds 0, 1, 2, ..."""
    searched(storage, small(**changes))
    study = create_confirming_study(storage, "tiny", top=len(runs) - 1, seeds=max(map(len, runs.values())))
    stored = load_study(storage, study.name)
    stored.add_trials([run(study, lr, seed, score) for lr, each in runs.items() for seed, score in enumerate(each)])
    return read_confirmation(storage, study.name)


def test_the_best_and_the_baseline_become_points_of_a_study(storage: Storage) -> None:
    searched(storage, small(seed=3))
    study = create_confirming_study(storage, "tiny", top=2, seeds=4)
    assert study.name == "tiny-confirm"
    assert study.search.points == [{"lr": 0.1}, {"lr": 0.2}, {"lr": pytest.approx(MIDDLE)}]
    assert (study.search.trials, study.search.repeats, study.search.population) == (12, 4, 12)
    assert study.search.seed != 3
    record = load_study(storage, "tiny-confirm").user_attrs[CONFIRMS]
    assert [each["label"] for each in record["candidates"]] == ["Best-1", "Best-2", "baseline"]
    assert [each["score"] for each in record["candidates"]] == [0.9, 0.8, None]


def test_confirming_twice_is_one_study_and_confirming_otherwise_another(storage: Storage) -> None:
    searched(storage, small())
    names = [
        create_confirming_study(storage, "tiny", top, seeds).name for top, seeds in ((2, 4), (2, 4), (3, 4), (2, 4))
    ]
    assert names == ["tiny-confirm", "tiny-confirm", "tiny-confirm-2", "tiny-confirm"]


def test_a_name_that_plain_optuna_has_taken_is_left_alone(storage: Storage) -> None:
    optuna.create_study(storage=storage, study_name="tiny-confirm")
    searched(storage, small())
    assert create_confirming_study(storage, "tiny", 1, 2).name == "tiny-confirm-2"


def test_a_baseline_of_the_file_that_lies_outside_the_range(storage: Storage) -> None:
    searched(storage, parse_study({**small().resolved(), "baseline": {"lr": 3}}, "tiny.toml"), first=None)
    study = create_confirming_study(storage, "tiny", top=1, seeds=2)
    assert study.search.points[-1] == {"lr": 3.0}
    assert study.resolved()["optimizer"]["lr"] == {"low": 1e-3, "high": 3.0, "log": True}


def test_a_baseline_between_two_steps_is_trained_too(storage: Storage) -> None:
    dropout = {"low": 0.0, "high": 0.5, "step": 0.1}
    search(study_of(network={"dropout": dropout}, search={"trials": 1}, baseline={"dropout": 0.25}), storage)
    study = create_confirming_study(storage, "tiny", top=1, seeds=2)
    assert study.search.points[-1]["dropout"] == 0.25


def test_choices_in_the_place_of_steps_are_shown_with_few_digits(storage: Storage) -> None:
    lr = {"low": 0.01, "high": 0.05, "step": 0.01}
    search(study_of(optimizer={"lr": lr}, search={"trials": 1}, baseline={"lr": 0.0123456789}), storage)
    found = trained(storage, top=1)
    assert "lr: 0.0123457" in {row[-1] for row in confirmation_rows(found)}
    assert parameter_line(found.study.parameters[0]).startswith("lr: one of 0.0123457, 0.0")


def test_choices_that_the_study_has_no_longer_are_trained_again(storage: Storage) -> None:
    def study(*choices: float, trials: int) -> Study:
        decay = {"weight_decay": {"choices": list(choices)}}
        return study_of(optimizer=decay, training={"epochs": 1}, search={"trials": trials})

    search(study(0.1, 0.2, trials=3), storage)
    search(study(0.3, trials=4), storage, extend=True)
    confirming = create_confirming_study(storage, "tiny", top=4, seeds=2)
    assert [point["weight_decay"] for point in confirming.search.points] == [0.3, 0.1, 0.1, 0.1, 0.3]


def test_configurations_keep_what_their_kind_does_not_use(storage: Storage) -> None:
    """Their runs are known by all of their parameters."""
    optimizer = {"kind": {"choices": ["sgd", "adam"]}, "beta1": {"low": 0.1, "high": 0.5}}
    search(study_of(optimizer=optimizer, training={"epochs": 1}, search={"trials": 4}), storage)
    assert {trial.params["optimizer.kind"] for trial in trials_of(storage)} == {"sgd", "adam"}
    found = trained(storage, top=4)
    assert {len(each.scores) for each in found.ranked} == {2}
    assert len(found.ranked) == 5


def test_what_their_kind_does_not_use_makes_no_two_configurations(storage: Storage) -> None:
    optimizer = {"kind": {"choices": ["sgd", "momentum"]}, "momentum": {"choices": [0.5, 0.9]}, "lr": 0.1}
    search(study_of(optimizer=optimizer, training={"epochs": 1}, search={"trials": 4, "sampler": "grid"}), storage)
    found = trained(storage, top=4)  # the baseline, sgd with a momentum of 0.5, is one of them
    assert sorted(each.candidate.label for each in found.ranked) == ["Best-1", "Best-2", "Best-3"]
    by_kind = {each.candidate.params["optimizer.kind"]: each.candidate for each in found.ranked}
    scores = [trial.value or 0 for trial in trials_of(storage) if trial.params["optimizer.kind"] == "sgd"]
    assert by_kind["sgd"].score == pytest.approx(sum(scores) / 2)
    assert by_kind["sgd"].baseline


def test_trials_with_other_parameters_are_no_configurations_of_the_study(storage: Storage) -> None:
    """Any program can add trials to a study in the storage."""
    searched(storage, small())
    space = {"x": FloatDistribution(0, 1)}
    load_study(storage, "tiny").add_trials([trial(0.99, params={"x": x}, distributions=dict(space)) for x in (0, 1)])
    points = create_confirming_study(storage, "tiny", top=2, seeds=2).search.points
    assert points[:2] == [{"lr": 0.1}, {"lr": 0.2}]


def test_repeated_configurations_are_ranked_by_their_means(storage: Storage) -> None:
    searched(storage, small(repeats=2, trials=2), scores={})
    stored = load_study(storage, "tiny")
    for lr, score in ((0.1, 0.95), (0.1, 0.55), (0.2, 0.8), (0.2, 0.9)):
        stored.add_trial(trial(score, params={"lr": lr}, distributions=dict(LR)))
    study = create_confirming_study(storage, "tiny", top=1, seeds=2)
    assert study.search.points[0] == {"lr": 0.2}
    assert load_study(storage, study.name).user_attrs[CONFIRMS]["candidates"][0]["score"] == pytest.approx(0.85)


def test_the_mean_ranks_and_says_how_lucky_the_search_was(storage: Storage) -> None:
    found = confirmed(storage, {0.1: [0.70, 0.72, 0.74], 0.2: [0.78, 0.80, 0.82], MIDDLE: [0.60, 0.61, 0.64]})
    assert [each.candidate.label for each in found.ranked] == ["Best-2", "Best-1", "baseline"]
    assert found.winner.candidate.params == {"lr": 0.2}
    assert found.winner.estimate.mean == pytest.approx(0.80)
    best = found.ranked[1]
    assert best.optimism == pytest.approx(0.9 - 0.72)
    assert found.gain is not None
    assert found.gain.pairs.difference.mean == pytest.approx((0.18 + 0.19 + 0.18) / 3)
    helped, gain, luck, alike, trivial = conclusions(found)
    assert luck == "the search's best score, 0.9000, was optimistic: its mean under fresh seeds is 0.7200"
    assert helped == "tuning helped: Best-2 (trial 2) is better than the baseline (also the first trial)"
    assert gain.startswith("Best-2 (trial 2) minus the baseline (also the first trial) is +0.1833 (95% interval")
    assert "the difference is the same in all pairs" in str(found.others)  # 0.08 each: no test, so not told apart
    assert alike == "Best-2 (trial 2) cannot be told apart from Best-1 (trial 1) (paired tests, Holm's correction)"
    assert trivial.startswith("Best-2 (trial 2) is better than the trivial baseline: val acc 0.1")


def test_that_tuning_did_not_help_is_said_plainly(storage: Storage) -> None:
    found = confirmed(storage, {0.1: [0.70, 0.72, 0.74], MIDDLE: [0.71, 0.73, 0.70]})
    assert conclusions(found)[0].startswith("tuning did not help, as far as 3 seeds can tell: Best-1 (trial 1) is not")


def test_that_the_baseline_is_better_is_said_plainly(storage: Storage) -> None:
    found = confirmed(storage, {0.1: [0.50, 0.51, 0.53], MIDDLE: [0.80, 0.81, 0.84]})
    better = "tuning did not help, the baseline (also the first trial) is better than Best-1 (trial 1)"
    assert conclusions(found)[0] == better


def test_the_choice_of_the_winner_is_paid_for(storage: Storage) -> None:
    """The p value against the baseline grows with the number of configurations that could have won."""
    runs = {0.1: [0.70, 0.72, 0.75], MIDDLE: [0.64, 0.69, 0.70]}
    alone = confirmed(storage, {**runs})
    assert alone.gain is not None
    assert alone.gain.p == pytest.approx(alone.gain.pairs.p)
    for name in ("tiny", "tiny-confirm"):
        optuna.delete_study(study_name=name, storage=storage)
    among = confirmed(storage, {**runs, 0.2: [0.6, 0.7, 0.72], 0.3: [0.65, 0.6, 0.7]})
    assert among.gain is not None
    assert among.gain.p == pytest.approx(3 * (among.gain.pairs.p or 0))


def test_a_baseline_that_wins_is_named(storage: Storage) -> None:
    scores = {MIDDLE: 0.9, 0.2: 0.8}
    searched(storage, small(), scores, first=0.2)
    study = create_confirming_study(storage, "tiny", top=2, seeds=2)
    assert len(study.search.points) == 2
    stored = load_study(storage, study.name)
    stored.add_trials([run(study, lr, seed, scores[lr] - seed / 100) for lr in scores for seed in range(2)])
    found = read_confirmation(storage, study.name)
    assert found.gain is None
    assert "tuning did not help: Best-1 (trial 1) is the baseline" in conclusions(found)
    assert "Best-1 (trial 1), baseline" in "\n".join(ConfirmationResult(found).lines())


def test_a_configuration_with_failed_runs_does_not_win(storage: Storage) -> None:
    found = confirmed(storage, {0.1: [0.99, None, 0.98], 0.2: [0.78, 0.80, 0.83], MIDDLE: [None, None, None]})
    assert [(each.candidate.label, each.failed) for each in found.ranked] == [("Best-2", 0), ("Best-1", 1)]
    assert found.baseline is None
    assert "it is unknown whether tuning helped: every run of the baseline failed" in conclusions(found)
    json.loads(ConfirmationResult(found).json_text)


def test_who_failed_is_behind_and_not_called_worse(storage: Storage) -> None:
    found = confirmed(storage, {0.1: [0.99, 0.98, 0.99, None], 0.2: [0.70, 0.70, 0.72, 0.7], MIDDLE: [0.5] * 4})
    assert found.winner.candidate.label == "Best-2"
    last = conclusions(found)[-2]  # the last one is about the trivial baseline
    ranked = f"Best-2 (trial 2) ranks before {BEST}, better on the common seeds but with failed runs"
    assert last == f"{ranked} (paired tests, Holm's correction)"


def test_configurations_of_which_every_run_failed_are_named(storage: Storage) -> None:
    runs = {0.1: [0.6, 0.7], 0.2: [None, None], 0.3: [None, None], MIDDLE: [0.5, 0.5]}
    found = confirmed(storage, runs)
    assert [each.label for each in found.lost] == ["Best-2", "Best-3"]
    assert conclusions(found)[-1] == "every run of Best-2 (trial 2) and Best-3 (trial 3) failed"


@pytest.mark.parametrize(
    ("runs", "verdict", "gain"),
    [
        ([0.9, 0.8, 0.71], f"tuning did not help, {BASE} is better than {BEST}", "-0.2"),
        ([0.3, 0.2, 0.1], f"it is unknown whether tuning helped: no test of {BEST} against {BASE}", "+0.4000 (the"),
        ([0.7, 0.6, 0.5], f"tuning did not help, as far as 3 seeds can tell: {BEST} is not better than", "+0.0000"),
        ([0.5, None, None], f"it is unknown whether tuning helped: no test of {BEST} against {BASE}", "+0.2"),
    ],
)
def test_conclusions_on_tuning_are_limited_to_what_the_runs_show(
    storage: Storage, runs: Sequence[float | None], verdict: str, gain: str
) -> None:
    found = confirmed(storage, {0.1: [0.7, 0.6, 0.5], MIDDLE: runs})
    first, second, *_ = conclusions(found)
    assert first.startswith(verdict)
    assert second.startswith(f"{BEST} minus {BASE} is {gain}")


OTHER = 0.5
"""The learning rate of a first trial that is neither the baseline nor one of the best."""


def confirmed_with_first(
    storage: Storage, first: Sequence[float | None], baseline: Sequence[float | None] = (0.5, 0.52, 0.51)
) -> Confirmation:
    """Confirm one configuration, whose runs are 0.7 to 0.74, beside these runs of the baseline and the first trial."""
    runs = {0.1: [0.70, 0.72, 0.74], MIDDLE: baseline, OTHER: first}
    searched(storage, small(), first=OTHER)
    study = create_confirming_study(storage, "tiny", top=1, seeds=3)
    stored = load_study(storage, study.name)
    stored.add_trials([run(study, lr, seed, score) for lr, each in runs.items() for seed, score in enumerate(each)])
    return read_confirmation(storage, study.name)


@pytest.mark.parametrize(
    ("first", "baseline", "verdict"),
    [
        (
            [0.5, 0.53, 0.51],
            [0.5, 0.52, 0.51],
            f"tuning helped: {BEST} is better than the baseline and the first trial",
        ),
        (
            [0.69, 0.74, 0.73],
            [0.5, 0.52, 0.51],
            f"tuning did not help, as far as 3 seeds can tell: {BEST} is not better than the first trial",
        ),
        (
            [0.69, 0.74, 0.73],
            [0.74, 0.71, 0.73],
            "tuning did not help, as far as 3 seeds can tell: "
            f"{BEST} is not better than the baseline or the first trial",
        ),
        ([0.8, 0.83, 0.85], [0.5, 0.52, 0.51], f"tuning did not help, the first trial is better than {BEST}"),
    ],
)
def test_a_winner_that_is_no_better_than_the_first_trial_has_not_gained(
    storage: Storage, first: Sequence[float], baseline: Sequence[float], verdict: str
) -> None:
    found = confirmed_with_first(storage, first, baseline)
    assert [each.candidate.label for each in found.ranked if each.candidate.can_win] == ["Best-1"]
    lines = conclusions(found)
    assert lines[0] == verdict
    assert [line.split(" is ")[0] for line in lines[1:3]] == [
        f"{BEST} minus {name}" for name in ("the baseline", FIRST)
    ]
    assert "First (trial 0)" in {row[0] for row in confirmation_rows(found)}
    tree = ConfirmationResult(found).tree()["winner"]
    assert tree["first"] == {"lr": OTHER}
    assert tree["first_gain"] == pytest.approx(0.72 - sum(first) / 3)
    assert tree["first_gain_p"] is not None


def test_a_first_trial_whose_runs_all_fail_is_named_and_not_compared(storage: Storage) -> None:
    found = confirmed_with_first(storage, [None, None, None])
    assert conclusions(found)[0] == f"tuning helped: {BEST} is better than the baseline"
    assert conclusions(found)[-1] == "every run of First (trial 0) failed"
    assert "first_gain" not in ConfirmationResult(found).tree()["winner"]


def test_a_winner_that_is_the_first_trial_has_not_gained(storage: Storage) -> None:
    searched(storage, small(), first=None)
    study = create_confirming_study(storage, "tiny", top=1, seeds=2)
    assert study.search.points == [{"lr": 0.1}, {"lr": pytest.approx(MIDDLE)}]  # the first trial has no runs of its own
    runs = {0.1: (0.7, 0.72), MIDDLE: (0.5, 0.51)}
    stored = load_study(storage, study.name)
    stored.add_trials([run(study, lr, seed, score) for lr, each in runs.items() for seed, score in enumerate(each)])
    found = read_confirmation(storage, study.name)
    assert conclusions(found)[0] == "tuning did not help: Best-1 (trial 0) is the first trial"
    assert confirmation_rows(found)[0][0] == "Best-1 (trial 0), first trial"


def test_a_confirmation_of_an_earlier_version_has_no_first_trial(storage: Storage) -> None:
    confirmed_with_first(storage, [0.9, 0.91, 0.93])
    confirming = load_study(storage, "tiny-confirm")
    record = confirming.user_attrs[CONFIRMS]
    old = [{key: value for key, value in each.items() if key != "first"} for each in record["candidates"][:2]]
    confirming.set_user_attr(CONFIRMS, record | {"candidates": old})
    found = read_confirmation(storage, "tiny-confirm")
    assert conclusions(found)[0] == f"tuning helped: {BEST} is better than the baseline"
    assert "first" not in ConfirmationResult(found).tree()["winner"]


def test_the_first_trial_is_the_first_that_was_trained(storage: Storage) -> None:
    searched(storage, small(), scores={}, first=None)
    stored = load_study(storage, "tiny")
    states = {0.6: TrialState.FAIL, 0.5: TrialState.PRUNED, 0.1: TrialState.COMPLETE}
    for lr, state in states.items():
        score = None if state == TrialState.FAIL else 0.9  # of a pruned trial: after fewer epochs
        stored.add_trial(trial(score, state=state, params={"lr": lr}, distributions=dict(LR)))
    study = create_confirming_study(storage, "tiny", top=1, seeds=2)
    first = load_study(storage, study.name).user_attrs[CONFIRMS]["candidates"][-1]
    assert (first["label"], first["trial"], first["params"], first["score"]) == ("First", 1, {"lr": 0.5}, None)


def test_what_is_not_finished_has_found_nothing(storage: Storage) -> None:
    """A study that is stopped ends before all of its runs have."""
    searched(storage, small())
    study = create_confirming_study(storage, "tiny", top=1, seeds=2)
    with pytest.raises(HpoError, match=r"no run of the search's configurations is finished"):
        read_confirmation(storage, study.name)
    load_study(storage, study.name).add_trial(run(study, 0.1, 0, 0.9))
    with pytest.raises(HpoError, match=r"'tiny-confirm' is not finished: continue it with `hpo confirm`"):
        find_confirmation(storage, "tiny")
    found = read_confirmation(storage, study.name)
    assert found.left == 3
    lines = ConfirmationResult(found).lines()
    assert lines[0] == (
        "tiny: mean val acc over 2 fresh seeds on the split of the search (fewer than 10 seeds), "
        "so far (3 of 4 runs are left)"
    )
    assert len(lines) == 3  # and draws no conclusions
    assert json.loads(ConfirmationResult(found).json_text)["winner"] is None


def test_one_that_was_stopped_shows_what_it_has_and_says_how_to_go_on(storage: Storage) -> None:
    searched(storage, small())
    study = create_confirming_study(storage, "tiny", top=1, seeds=2)
    stored, found = load_study(storage, study.name), list[Confirmation]()
    set_state(storage, stored._study_id, StudyState.STOPPED)
    commands = "`hpo resume tiny-confirm`, then `hpo confirm` again"
    advice = f"'tiny-confirm' is stopped with {{}} runs left: continue it with {commands}"
    with pytest.raises(HpoError, match=advice.format(4)):
        said(storage, found, top=1)
    assert found == []
    stored.add_trial(run(study, 0.1, 0, 0.9))
    with pytest.raises(HpoError, match=advice.format(3)):
        said(storage, found, top=1)
    assert [each.left for each in found] == [3]
    with pytest.raises(HpoError, match=advice.format(3)):
        find_confirmation(storage, "tiny")


@pytest.mark.parametrize("state", [StudyState.ENDED, StudyState.STOPPED, StudyState.PAUSED])
def test_one_that_is_finished_is_shown_without_images_whatever_its_state(
    storage: Storage, state: StudyState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_mnist(tmp_path / "data")
    mnist = {"dataset": "mnist", "train_size": 60}
    search(study_of(data=mnist, training={"epochs": 1}, search={"trials": 2, "population": 2}), storage)
    before = trained(storage, top=1)
    set_state(storage, load_study(storage, "tiny-confirm")._study_id, state)
    shutil.rmtree(tmp_path / "data")
    assert trained(storage, top=1) == before
    with pytest.raises(DataError):
        trained(storage, top=2)
    assert study_names(storage) == ["tiny", "tiny-confirm"]


def test_images_that_are_not_the_studys_confirm_nothing(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    write_mnist(tmp_path / "mnist")
    search(study_of(data={"dataset": "mnist", "train_size": 60}, search={"trials": 1}), storage)
    write_mnist(tmp_path / "mnist", seed=1)
    with pytest.raises(HpoError, match="the data of mnist are not those that the study was created with"):
        trained(storage)
    assert study_names(storage) == ["tiny"]


def test_two_that_begin_at_once_with_other_options_are_two(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    searched(storage, small())
    driver_of_stored, names = drivers.driver_of_stored, list[str]()

    def while_another_begins(*given: Any) -> Any:
        monkeypatch.setattr(drivers, "driver_of_stored", driver_of_stored)
        if not names:  # the second time it is for the next name
            names.append(create_confirming_study(storage, "tiny", top=1, seeds=2).name)
        return driver_of_stored(*given)

    monkeypatch.setattr(drivers, "driver_of_stored", while_another_begins)
    names.append(create_confirming_study(storage, "tiny", top=2, seeds=2).name)
    assert names == ["tiny-confirm", "tiny-confirm-2"]
    records = [load_study(storage, name).user_attrs[CONFIRMS]["candidates"] for name in names]
    assert [len(candidates) for candidates in records] == [2, 3]


def test_a_run_of_another_program_is_left_out_and_said(storage: Storage) -> None:
    runs: dict[float, Sequence[float | None]] = {0.1: [0.9, 0.8, 0.7], MIDDLE: [0.6, 0.55, 0.5]}
    before = confirmed(storage, runs)
    load_study(storage, "tiny-confirm").add_trial(
        optuna.trial.create_trial(value=0.1, params={"lr": 0.1}, distributions=dict(LR))
    )
    found = read_confirmation(storage, "tiny-confirm")
    assert found.ranked == before.ranked
    assert conclusions(found)[-1] == "1 run of another program was left out: no seed"


def test_for_a_loss_less_is_better(storage: Storage) -> None:
    found = confirmed(
        storage, {0.4: [0.70, 0.72, 0.75], 0.3: [0.5, 0.51, 0.53], MIDDLE: [0.8, 0.85, 0.81]}, metric="val_loss"
    )
    assert [each.candidate.label for each in found.ranked] == ["Best-2", "Best-1", "baseline"]
    helped, gain, luck, _, trivial = conclusions(found)
    assert "0.6000, was optimistic" in luck
    assert helped.startswith("tuning helped: Best-2 (trial 3) is better than the baseline")
    assert gain.startswith(f"Best-2 (trial 3) minus {BASE} is -0.3")
    assert trivial.startswith("Best-2 (trial 3) is better than the trivial baseline: val loss 2.3")
    assert found.trivial is not None
    worse = replace(found, trivial=replace(found.trivial, value=0.5))
    assert conclusions(worse)[-1].startswith("Best-2 (trial 3) is not better than the trivial baseline: val loss 0.5")


@pytest.mark.parametrize("seeds", [2, 3])
def test_real_runs_end_in_a_confirmation_that_goes_on_where_it_was(storage: Storage, seeds: int) -> None:
    search(study_of(training={"epochs": 1}), storage)
    shown: list[Confirmation] = []
    assert not said(storage, shown, seeds=seeds, looks=0)
    assert shown == []
    with pytest.raises(HpoError, match=r"'tiny-confirm' is not finished: continue it with `hpo confirm`"):
        find_confirmation(storage, "tiny")
    found = trained(storage, seeds=seeds)
    assert found == find_confirmation(storage, "tiny")
    assert {len(each.scores) for each in found.ranked} == {seeds}
    trials = trials_of(storage, "tiny-confirm")
    assert len(trials) == 3 * seeds
    fresh = {trial.user_attrs["seed"] for trial in trials}
    assert not fresh & {trial.user_attrs["seed"] for trial in trials_of(storage)}
    assert len(fresh) == seeds


def test_what_cannot_be_confirmed(storage: Storage) -> None:
    with pytest.raises(UnknownStudyError):
        create_confirming_study(storage, "tiny", 1, 2)
    searched(storage, small(), scores={}, first=None)
    with pytest.raises(HpoError, match="no finished trial yet"):
        create_confirming_study(storage, "tiny", 1, 2)
    assert find_confirmation(storage, "tiny") is None
    search(study_of(name="fixed", optimizer={"lr": 0.1}, training={"epochs": 1}, search={"trials": 1}), storage)
    with pytest.raises(HpoError, match="searches no parameter"):
        create_confirming_study(storage, "fixed", 1, 2)


@pytest.mark.parametrize("new_name", [None, "other"])
def test_a_copy_has_its_confirmations_and_goes_on_with_them(
    storage: Storage, tmp_path: Path, new_name: str | None
) -> None:
    search(study_of(training={"epochs": 1, "keep": "last"}), storage)
    before = trained(storage)
    verify(storage, "tiny", 1, "cpu", threading.Event(), pytest.fail)
    called = new_name or "tiny"
    line = copy_line(storage, "tiny", f"sqlite:///{tmp_path}/copy.db", new_name)
    assert f"; with its confirmations '{called}-confirm'; its checkpoints stay in {tmp_path}" in line
    copy = open_storage(f"sqlite:///{tmp_path}/copy.db")
    found = find_confirmation(copy, called)
    assert found is not None
    assert (found.original, found.ranked) == (called, before.ranked)
    assert export(copy, called)["verified"]["study"] == called
    assert load_study(copy, called).user_attrs[IDENTITY] != load_study(storage, "tiny").user_attrs[IDENTITY]
    assert create_confirming_study(copy, called, 2, 2).name == f"{called}-confirm"
    assert study_names(copy) == [called, f"{called}-confirm"]
    copy.close()


def test_a_copy_says_what_it_starts_from(storage: Storage, tmp_path: Path) -> None:
    search(study_of(search={"trials": 1}), storage)
    search(study_of(name="next", search={"trials": 1, "start_from": ["tiny"]}), storage)
    line = copy_line(storage, "next", f"sqlite:///{tmp_path}/copy.db", None)
    assert line.endswith("; not copied: 'tiny', which it starts from")


def test_another_study_of_the_same_name_has_not_been_confirmed(storage: Storage) -> None:
    confirmed(storage, {0.1: [0.7, 0.8], MIDDLE: [0.6, 0.6]})
    assert find_confirmation(storage, "tiny") is not None
    optuna.delete_study(study_name="tiny", storage=storage)
    searched(storage, small())
    assert find_confirmation(storage, "tiny") is None


def test_a_renamed_study_is_confirmed_as_it_was_whoever_has_its_name_now(storage: Storage) -> None:
    before = confirmed(storage, {0.1: [0.7, 0.8], MIDDLE: [0.6, 0.6]})
    rename_study(storage, load_study(storage, "tiny")._study_id, "renamed")
    searched(storage, small(), {0.5: 0.99})
    found = find_confirmation(storage, "renamed")
    assert found is not None
    assert (found.original, found.ranked) == ("renamed", before.ranked)
    assert find_confirmation(storage, "tiny") is None
    assert create_confirming_study(storage, "renamed", 1, 2).name == "tiny-confirm"  # nothing is trained again
    other = create_confirming_study(storage, "tiny", 1, 2)
    assert other.name == "tiny-confirm-2"
    assert [each["params"] for each in load_study(storage, other.name).user_attrs[CONFIRMS]["candidates"]] == [
        {"lr": 0.5}, {"lr": pytest.approx(MIDDLE)}
    ]  # fmt: skip
