"""Limits of a study: search.timeout and search.patience end it before all its trials are trained."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial
from tiny import STUDY, after_epochs, check_same_trials, check_whole, search, states, study_of, tree, trials_of

from hpo.errors import StudyFileError
from hpo.search.events import EpochEnded, Event, PopulationStarted, StudyEnded
from hpo.search.launch import join, submit
from hpo.search.loop import Search
from hpo.search.options import LaunchOptions
from hpo.search.sampling.sampler_history import SamplerHistory
from hpo.search.space import distributions
from hpo.storage import (
    STATE,
    STATE_REASON,
    Storage,
    StudyState,
    load_study,
    open_storage,
    open_summaries,
    set_state,
    summary,
)
from hpo.storage.workers import Worker
from hpo.studyfile import Study, parse_study

HOUR_S = 3600.0
ELSEWHERE = Worker("elsewhere", 1, 0.0, "another machine")
COMPLETE, PRUNED, FAIL, RUNNING, WAITING = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAIL,
    TrialState.RUNNING,
    TrialState.WAITING,
)


def limited(study: Study, **limits: float) -> Study:
    resolved = study.resolved()
    return parse_study({**resolved, "search": {**resolved["search"], **limits}}, "studies/tiny.toml")


def reason(events: Sequence[Event]) -> str:
    assert isinstance(events[-1], StudyEnded)
    return events[-1].reason


def attrs(storage: Storage) -> dict[str, Any]:
    return load_study(storage, "tiny").user_attrs


def set_age(storage: Storage, seconds: float) -> None:
    """Set the start of the study to so many seconds ago."""
    began = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    run = {**attrs(storage)["hpo:run"], "began": began.isoformat(timespec="seconds")}
    storage.set_study_attrs(summary(storage, "tiny").study_id, {"hpo:run": run})


def join_study(storage: Storage, on_event: Any = lambda event: None) -> Search:
    return join("tiny", storage, device="cpu", on_event=on_event, stop=threading.Event())


# --- Time ---


def test_after_its_timeout_no_trial_starts_and_waiting_trials_stay_waiting(
    uninterrupted: list[FrozenTrial], storage: Storage
) -> None:
    study = limited(STUDY, timeout=HOUR_S)
    assert reason(search(study, storage, stop_at=after_epochs(4))) == "interrupted"
    set_age(storage, HOUR_S + 1)
    before = trials_of(storage)
    assert states(before) == [COMPLETE] * 4 + [WAITING] * 4
    events = search(study, storage)
    assert reason(events) == "timeout"
    assert not any(isinstance(event, PopulationStarted) for event in events)
    assert trials_of(storage) == before
    assert (attrs(storage)[STATE], attrs(storage)[STATE_REASON]) == ("ended", "timeout")
    assert open_summaries(storage) == []

    longer = limited(STUDY, timeout=3 * HOUR_S)
    submit(longer, storage, LaunchOptions(extend=True))
    assert [each.name for each in open_summaries(storage)] == ["tiny"]
    assert reason(search(longer, storage)) == "finished"
    check_same_trials(trials_of(storage), uninterrupted)
    assert attrs(storage)[STATE_REASON] == "finished"


def test_running_trials_are_finished_after_the_timeout(storage: Storage) -> None:
    submit(limited(STUDY, timeout=HOUR_S), storage)

    def on_event(event: Event) -> None:
        if isinstance(event, EpochEnded):
            study_search.began -= datetime.timedelta(hours=2)

    study_search = join_study(storage, on_event)
    assert study_search.step()
    assert states(trials_of(storage)) == [COMPLETE] * 4
    assert not study_search.step()
    assert study_search.end_if_done() == "timeout"
    assert states(trials_of(storage)) == [COMPLETE] * 4


def test_timeout_counts_from_the_first_launch_including_pauses(storage: Storage) -> None:
    study = limited(STUDY, timeout=HOUR_S)
    submit(study, storage)
    assert "hpo:run" not in attrs(storage), "the time of a study starts with its first launch, not with its submission"
    search(study, storage, stop_at=after_epochs(1))
    began = attrs(storage)["hpo:run"]["began"]
    set_state(storage, summary(storage, "tiny").study_id, StudyState.PAUSED)
    set_state(storage, summary(storage, "tiny").study_id, StudyState.OPEN)
    search(study, storage, stop_at=after_epochs(1))
    assert attrs(storage)["hpo:run"]["began"] == began
    set_age(storage, HOUR_S + 1)
    assert reason(search(study, storage)) == "timeout"


def test_study_with_all_its_trials_is_finished_even_after_its_timeout(storage: Storage) -> None:
    study = limited(study_of(search={"trials": 4}), timeout=HOUR_S)
    assert reason(search(study, storage)) == "finished"
    set_age(storage, 2 * HOUR_S)
    assert reason(search(study, storage)) == "finished"
    assert attrs(storage)[STATE_REASON] == "finished"


def test_study_ends_after_running_trials_of_other_processes(storage: Storage) -> None:
    study = limited(STUDY, timeout=HOUR_S)
    submit(study, storage)
    study_search = join_study(storage)
    study_search.began -= datetime.timedelta(hours=2)
    other = open_storage(storage.location.full_url)
    other.worker = ELSEWHERE
    running = create_trial(
        state=RUNNING, params={"dropout": 0.1, "hidden": "[8]", "lr": 0.1}, distributions=distributions(study)
    )
    waiting = create_trial(state=WAITING, params=running.params, distributions=running.distributions)
    created, _ = other.create_trials(load_study(other, "tiny")._study_id, [running, waiting])
    assert not study_search.step()
    assert study_search.end_if_done() is None
    assert STATE not in attrs(storage)
    other.requeue([created._trial_id])
    assert not study_search.step()
    assert study_search.end_if_done() == "timeout"
    assert states(trials_of(storage)) == [WAITING, WAITING]
    other.close()


@pytest.mark.parametrize("key", ["timeout", "patience"])
@pytest.mark.parametrize("value", [0, -1, "soon", True, float("nan"), float("inf")])
def test_invalid_limit_is_refused_with_its_key(key: str, value: object) -> None:
    with pytest.raises(StudyFileError, match=rf"^studies/tiny.toml: search.{key}: "):
        parse_study(tree(search={key: value}), "studies/tiny.toml")


def test_limits_have_no_default() -> None:
    found = study_of().resolved()["search"]
    assert (found.get("timeout"), found.get("patience")) == (None, None)


# --- No improvement ---


def trials_since_best(trials: Sequence[FrozenTrial], minimize: bool) -> int:
    """Count the completed and pruned trials after the first best trial; 0 where no trial has completed."""
    best = -1
    for trial in trials:
        if trial.state != COMPLETE:
            continue
        if best < 0 or (trial.value < trials[best].value if minimize else trial.value > trials[best].value):
            best = trial.number
    return sum(trial.state in (COMPLETE, PRUNED) for trial in trials[best + 1 :]) if best >= 0 else 0


@st.composite
def histories(draw: st.DrawFn) -> list[FrozenTrial]:
    found = []
    kinds = st.sampled_from([COMPLETE, COMPLETE, PRUNED, FAIL, RUNNING, WAITING])
    for number, state in enumerate(draw(st.lists(kinds, max_size=12))):
        value = (
            draw(st.sampled_from([0.0, -0.5, 0.25, 0.5, float("inf"), float("-inf")])) if state == COMPLETE else None
        )
        space = distributions(study_of())
        trial = create_trial(state=state, value=value, params={"lr": 0.001 * (number + 1)}, distributions=space)
        trial.number, trial._trial_id = number, number + 10
        found.append(trial)
    return found


@settings(max_examples=60)
@given(trials=histories(), metric=st.sampled_from(["val_loss", "val_accuracy"]), known=st.integers(0, 12))
def test_completed_and_pruned_trials_since_the_best_are_counted(
    trials: list[FrozenTrial], metric: str, known: int
) -> None:
    study = study_of(search={"metric": metric})
    assert SamplerHistory(study, trials).trials_since_best == trials_since_best(trials, metric == "val_loss")
    grown = SamplerHistory(study, trials[:known])
    grown.sync(trials[known:])
    assert grown.trials_since_best == trials_since_best(trials, metric == "val_loss")


@pytest.mark.parametrize("metric", ["val_loss", "val_accuracy"])
@pytest.mark.parametrize(("population", "patience"), [(1, 2), (3, 2)])
def test_study_ends_after_patience_trials_without_improvement(
    population: int, patience: int, metric: str, storage: Storage
) -> None:
    study = study_of(
        training={"epochs": 1}, search={"trials": 12, "population": population, "metric": metric, "patience": patience}
    )
    events = search(study, storage)
    trials = trials_of(storage)
    check_whole(trials, len(trials))
    # The search checks patience before each population; only the last check may exceed it.
    checked = range(population, len(trials) + 1, population)
    exceeded = [count for count in checked if trials_since_best(trials[:count], metric == "val_loss") >= patience]
    assert exceeded == ([len(trials)] if len(trials) < 12 else exceeded[:1])
    assert reason(events) == ("no improvement" if len(trials) < 12 else "finished") or exceeded
    assert attrs(storage)[STATE_REASON] == reason(events)


def test_extension_with_more_patience_continues_the_study(storage: Storage) -> None:
    def study(patience: int | None) -> Study:
        search = {"trials": 12, "population": 1, **({} if patience is None else {"patience": patience})}
        return study_of(training={"epochs": 1}, search=search)

    assert reason(search(study(1), storage)) == "no improvement"
    first = trials_of(storage)
    assert len(first) < 12
    assert reason(search(study(1), storage)) == "no improvement"
    assert trials_of(storage) == first
    search(study(2), storage, extend=True)
    assert len(trials_of(storage)) > len(first)
    assert reason(search(study(None), storage, extend=True)) == "finished"
    check_whole(trials_of(storage), 12)
    assert trials_of(storage)[: len(first)] == first


def test_failed_trials_do_not_count_for_patience(storage: Storage) -> None:
    """Trials without a finite loss fail; patience counts completed and pruned trials only."""
    study = study_of(
        optimizer={"lr": {"low": 1e30, "high": 1e35, "log": True}},
        training={"epochs": 1, "precision": "float32"},
        search={"trials": 4, "population": 1, "patience": 1},
    )
    events = search(study, storage)
    assert states(trials_of(storage)) == [FAIL] * 4
    assert reason(events) == "finished"
