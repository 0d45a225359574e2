"""Studies that start from others (`search.start_from`): samplers learn from known trials, which do not count."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lock_step import LockStep
from optuna.trial import FrozenTrial, TrialState, create_trial
from postgresql_server import Server
from tiny import DECAY, after_epochs, check_whole, params, search, states, study_of, trials_of, write_mnist

from hpo.errors import StudyFileError, UsageError
from hpo.search.events import EpochEnded, Event, Note, StudyEnded
from hpo.search.launch import launch
from hpo.search.options import LaunchOptions
from hpo.search.sampling.sampler_history import SamplerHistory
from hpo.search.sampling.warm_start import warm_start
from hpo.search.space import distributions, identity
from hpo.storage import Storage, load_study, open_storage, rename_study
from hpo.studyfile import Study

StartLockStep = Callable[[Study, Storage], LockStep]
NewStorage = Callable[[], Storage]

RATES = {"choices": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]}


def numbered(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Set the numbers and IDs of trials as a storage does."""
    for number, trial in enumerate(trials):
        trial.number = trial._trial_id = number
    return trials


def known_trials(study: Study, count: int = 14) -> list[FrozenTrial]:
    """Return complete trials of a study whose value is higher the nearer lr is to 0.1."""
    proposed = SamplerHistory(study).ask(count)
    space = distributions(study)
    return numbered(
        [create_trial(value=1 - abs(values["lr"] - 0.1), params=values, distributions=space) for _, values in proposed]
    )


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_a_sampler_learns_from_known_trials_as_from_its_own(sampler: str) -> None:
    study = study_of(optimizer={"weight_decay": DECAY}, search={"sampler": sampler})
    known = known_trials(study_of(optimizer={"weight_decay": DECAY}, search={"seed": 7}))
    failed = numbered(
        [create_trial(state=TrialState.FAIL, params=t.params, distributions=t.distributions) for t in known]
    )
    from_own = SamplerHistory(study, known).ask(5)
    from_known = SamplerHistory(study, failed, known).ask(5)
    from_none = SamplerHistory(study, failed).ask(5)
    assert from_known == from_own
    assert [values for _, values in from_known] != [values for _, values in from_none]


def test_known_trials_do_not_count_and_do_not_affect_the_pruner() -> None:
    study = study_of(search={"sampler": "tpe", "pruner": "median"})
    history = SamplerHistory(study, (), known_trials(study))
    assert (history.count, history.trials_since_best, history.unfinished) == (0, 0, set())
    proposed = history.ask(8)
    assert [number for number, _ in proposed] == list(range(8))
    history.forget(proposed)
    assert history.ask(8) == proposed
    for number in range(7):
        history.report(1, {number: 0.01 * number})
        history.tell(number, TrialState.COMPLETE, [0.01 * number])
    history.report(1, {7: 0.04})
    assert history.prune([7]) == set()  # better than the median of its study, worse than that of the other
    assert history.trials_since_best == 0
    history.tell(7, TrialState.COMPLETE, [0.04])
    assert history.trials_since_best == 1


def test_known_trials_outside_the_space_are_ignored() -> None:
    study = study_of(optimizer={"lr": {"low": 0.05, "high": 0.2, "log": True}}, search={"sampler": "tpe"})
    known = known_trials(study_of(search={"seed": 7}), 40)
    inside = [trial for trial in known if 0.05 <= trial.params["lr"] <= 0.2]
    assert 0 < len(inside) < 40
    assert SamplerHistory(study, (), known).ask(3) == SamplerHistory(study, (), inside).ask(3)


def test_known_points_are_tried_and_other_known_values_are_not() -> None:
    known = known_trials(study_of(optimizer={"lr": RATES}), 5)
    points = [{"lr": trial.params["lr"]} for trial in known[:2]]
    study = study_of(optimizer={"lr": RATES}, search={"points": points, "repeats": 2, "sampler": "grid"})
    history = SamplerHistory(study, (), known)
    for _ in range(2):  # twice: `forget` takes the proposals back if another process was faster
        proposed = history.ask(20)
        assert [values for _, values in proposed[:4]] == [point for point in points for _ in range(2)]
        others = [values["lr"] for _, values in proposed[4:]]
        assert others[::2] == others[1::2]
        assert not {trial.params["lr"] for trial in known} & set(others)
        assert len(others) == 6
        history.forget(proposed)


@pytest.mark.parametrize(("sampler", "pruner"), [("grid", "none"), ("tpe", "median"), ("random", "hyperband")])
def test_known_trials_of_a_finite_space_are_not_repeated(sampler: str, pruner: str, storage: Storage) -> None:
    search(study_of(optimizer={"lr": RATES}, search={"trials": 3, "seed": 5}), storage)
    known = {identity(trial.params) for trial in trials_of(storage)}
    following = study_of(
        name="next",
        optimizer={"lr": RATES},
        search={"trials": 8, "sampler": sampler, "pruner": pruner, "start_from": ["tiny"]},
    )
    events = search(following, storage)
    trials = trials_of(storage, "next")
    check_whole(trials, 5)
    assert not known & {identity(trial.params) for trial in trials}
    assert isinstance(events[-1], StudyEnded)
    assert events[-1].reason == "space exhausted"
    check_whole(trials_of(storage), 3)


def test_a_renamed_study_is_found_although_another_has_its_old_name(storage: Storage) -> None:
    search(study_of(), storage)
    following = study_of(name="next", search={"start_from": ["tiny"]})
    search(following, storage, stop_at=after_epochs(1))
    rename_study(storage, load_study(storage, "tiny")._study_id, "renamed")
    search(study_of(search={"seed": 9}), storage)
    found = warm_start(following, load_study(storage, "next").user_attrs, storage)
    assert (found.names, params(found.trials)) == (("renamed",), params(trials_of(storage, "renamed")))


def test_known_trials_of_a_finite_space_are_repeated_with_search_repeat(storage: Storage) -> None:
    search(study_of(optimizer={"lr": {"choices": [0.1, 0.2]}}, search={"trials": 2}), storage)
    search_table = {"trials": 3, "repeat": True, "start_from": ["tiny"]}
    search(study_of(name="next", optimizer={"lr": {"choices": [0.1, 0.2]}}, search=search_table), storage)
    assert len(trials_of(storage, "next")) == 3


def test_two_processes_share_the_remaining_space(lock_step: StartLockStep, storage: Storage) -> None:
    search(study_of(optimizer={"lr": RATES}, search={"trials": 3, "seed": 5}), storage)
    known = {identity(trial.params) for trial in trials_of(storage)}
    following = study_of(
        name="next", optimizer={"lr": RATES}, search={"trials": 8, "population": 2, "start_from": ["tiny"]}
    )
    first = lock_step(following, storage)
    first.wait_for("epoch_ended")

    events: list[Event] = []

    def record(event: Event) -> None:
        events.append(event)
        if isinstance(event, EpochEnded):
            first.resume()

    launch(following, storage, LaunchOptions(device="cpu"), on_event=record, stop=threading.Event())
    assert first.finish() == 0
    trials = trials_of(storage, "next")
    check_whole(trials, 5)
    assert not known & {identity(trial.params) for trial in trials}
    assert isinstance(events[-1], StudyEnded)
    assert events[-1].reason == "space exhausted"


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_an_interruption_does_not_change_the_trials(sampler: str, new_storage: NewStorage) -> None:
    found = []
    for epochs in (None, 3):
        storage = new_storage()
        search(study_of(search={"trials": 12, "population": 12}), storage)
        following = study_of(name="next", search={"trials": 12, "sampler": sampler, "start_from": ["tiny"]})
        if epochs is not None:
            search(following, storage, stop_at=after_epochs(epochs))
            assert TrialState.WAITING in states(trials_of(storage, "next"))
        search(following, storage)
        found.append(params(trials_of(storage, "next")))
    whole, interrupted = found
    assert interrupted == whole


def test_a_deleted_study_is_ignored_with_a_warning(storage: Storage) -> None:
    search(study_of(search={"trials": 2}), storage)
    following = study_of(name="next", search={"trials": 6, "start_from": ["tiny"]})
    search(following, storage, stop_at=after_epochs(1))
    storage.delete_study(load_study(storage, "tiny")._study_id)
    notes = [event for event in search(following, storage) if isinstance(event, Note)]
    (note,) = [note for note in notes if "start_from" in note.text]
    assert note.level == "warning"
    assert "no study named 'tiny'" in note.text
    assert note.text.endswith("the search continues without its trials")
    check_whole(trials_of(storage, "next"), 6)


def test_trials_are_the_same_on_a_server(server: Server, storage: Storage) -> None:
    found = []
    with server.database() as name:
        server_storage = open_storage(server.url(name))
        for database in (storage, server_storage):
            search(study_of(search={"trials": 12, "population": 12, "sampler": "random"}), database)
            following = study_of(name="next", search={"trials": 4, "sampler": "tpe", "start_from": ["tiny"]})
            search(following, database)
            found.append(params(trials_of(database, "next")))
        server_storage.close()
    assert found[0] == found[1]


def refusal(study: Study, storage: Storage) -> str:
    before = storage.get_all_studies()
    with pytest.raises(StudyFileError) as caught:
        search(study, storage)
    assert storage.get_all_studies() == before
    return str(caught.value)


def test_an_unknown_study_is_refused_before_anything_is_stored(storage: Storage) -> None:
    search(study_of(search={"trials": 1}), storage)
    message = refusal(study_of(name="next", search={"start_from": ["tinny"]}), storage)
    assert message.startswith("studies/tiny.toml: search.start_from: sqlite://")
    assert message.endswith("no study named 'tinny' (did you mean 'tiny'?)")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"network": {"hidden": [9]}}, "network.hidden: [8] -> [9]"),
        ({"data": {"split_seed": 1}}, "data.split_seed: 0 -> 1"),
        ({"training": {"epochs": 3}}, "training.epochs: 2 -> 3"),
        ({"search": {"metric": "val_loss"}}, "search.metric: 'val_accuracy' -> 'val_loss'"),
        ({"search": {"score": "best"}}, "search.score: 'last' -> 'best'"),
        ({"optimizer": {"lr": 0.1}}, "optimizer.lr.low"),
        ({"optimizer": {"weight_decay": DECAY}}, "optimizer.weight_decay: 0.0 -> "),
    ],
)
def test_a_study_that_is_not_comparable_is_refused(changes: dict[str, Any], difference: str, storage: Storage) -> None:
    search(study_of(search={"trials": 1}), storage)
    changed = {**changes, "search": {"start_from": ["tiny"], **changes.get("search", {})}}
    message = refusal(study_of(name="next", **changed), storage)
    assert message.startswith(
        f"studies/tiny.toml: search.start_from: the trials of 'tiny' are not comparable with these: {difference[:12]}"
    )


def test_settings_that_may_differ(storage: Storage) -> None:
    search(study_of(search={"trials": 2}), storage)
    following = study_of(
        name="next",
        description="another",
        training={"keep_trials": 3},
        optimizer={"lr": {"low": 1e-4, "high": 0.5}},
        search={"trials": 2, "sampler": "tpe", "seed": 3, "population": 1, "retries": 0, "start_from": ["tiny"]},
    )
    search(following, storage)
    check_whole(trials_of(storage, "next"), 2)


def test_a_study_of_other_data_is_refused(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    mnist = {"dataset": "mnist", "train_size": 60}
    write_mnist(tmp_path / "mnist")
    search(study_of(data=mnist, search={"trials": 1}), storage)
    write_mnist(tmp_path / "mnist", seed=1)
    message = refusal(study_of(name="next", data=mnist, search={"start_from": ["tiny"]}), storage)
    assert message.endswith("its data have another SHA-256")


def test_a_cycle_of_studies_is_refused(storage: Storage) -> None:
    search(study_of(name="a", search={"trials": 1}), storage)
    search(study_of(name="b", search={"trials": 1, "start_from": ["a"]}), storage)
    search(study_of(name="c", search={"trials": 1, "start_from": ["b"]}), storage)
    storage.delete_study(load_study(storage, "a")._study_id)
    message = refusal(study_of(name="a", search={"trials": 1, "start_from": ["c"]}), storage)
    assert message == "studies/tiny.toml: search.start_from: study 'c' itself starts from 'a'"


def test_an_extension_cannot_change_start_from(storage: Storage) -> None:
    search(study_of(search={"trials": 1}), storage)
    search(study_of(name="next", search={"trials": 1}), storage)
    with pytest.raises(UsageError, match=r"search.start_from: \[\] -> \['tiny'\]: --extend can change"):
        search(study_of(name="next", search={"trials": 2, "start_from": ["tiny"]}), storage, extend=True)


def test_only_complete_trials_are_known(storage: Storage) -> None:
    search(study_of(search={"trials": 6}), storage, stop_at=after_epochs(3))
    following = study_of(name="next", search={"start_from": ["tiny"]})
    found = warm_start(following, load_study(storage, "tiny").user_attrs, storage)
    assert found.names == ("tiny",)
    assert found.problems == ()
    complete = [trial.params for trial in trials_of(storage) if trial.state == TrialState.COMPLETE]
    assert 0 < len(complete) < len(trials_of(storage))
    assert params(found.trials) == complete


@pytest.mark.parametrize(
    ("start_from", "problem"),
    [
        (["tiny"], r"search.start_from.0: is the study itself \(got 'tiny'\)"),
        (["a", "b", "a"], r"search.start_from: must not name a study twice"),
        ([""], "search.start_from.0: must"),
        ("a", "search.start_from: must be a list"),
    ],
)
def test_an_invalid_start_from_is_refused(start_from: Any, problem: str) -> None:
    with pytest.raises(StudyFileError, match=rf"^studies/tiny.toml: {problem}"):
        study_of(search={"start_from": start_from})


def test_points_are_trained_although_the_whole_space_is_known(storage: Storage) -> None:
    space = {"lr": {"choices": [0.1, 0.2]}}
    search(study_of(name="before", optimizer=space, search={"trials": 2, "sampler": "grid"}), storage)
    points = {"points": [{"lr": 0.2}], "repeats": 2, "trials": 6, "start_from": ["before"]}
    search(study_of(optimizer=space, search=points), storage)
    assert [trial.params["lr"] for trial in trials_of(storage)] == [0.2, 0.2]
