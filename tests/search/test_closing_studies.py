"""Studies that are paused, stopped, changed or deleted during a search: processes end, and no trial is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from deadlines import deadline, wait_for
from optuna.trial import FrozenTrial, TrialState, create_trial
from tiny import STUDY, after_epochs, check_same_trials, check_whole, search, states, study_of, trials_of

from hpo.errors import HpoError, StudyClosedError, TrainingError
from hpo.search import driver as drivers
from hpo.search import loop
from hpo.search.events import Event, Note, PopulationEnded, PopulationStarted, StudyEnded, StudyStarted
from hpo.search.launch import join, launch, submit
from hpo.search.options import LaunchOptions
from hpo.search.space import distributions
from hpo.storage import (
    PRIORITY,
    STATE,
    STATE_REASON,
    ClaimConditions,
    Storage,
    StudyState,
    end_study,
    load_study,
    open_storage,
    open_summaries,
    set_state,
    study_names,
    summary,
)
from hpo.storage.workers import Worker
from hpo.studyfile import Study
from hpo.training import trainer

OPEN, PAUSED, STOPPED, ENDED = StudyState
ELSEWHERE = Worker("elsewhere", 1, 0.0, "another machine")

LONGER = study_of(**{**STUDY.resolved(), "search": {**STUDY.resolved()["search"], "trials": 12}})
"""`STUDY` with two more trials."""

Close = Callable[[Storage], object]


@pytest.fixture
def other(storage: Storage) -> Iterator[Storage]:
    """Open the storage a second time, as another process does."""
    other = open_storage(storage.location.full_url)
    yield other
    other.close()


def set_to(state: StudyState) -> Close:
    return lambda storage: set_state(storage, summary(storage, "tiny").study_id, state)


def change_study(storage: Storage) -> None:
    """Pause the study, extend it by two trials and resume it."""
    set_to(PAUSED)(storage)
    submit(LONGER, storage, LaunchOptions(extend=True))
    set_to(OPEN)(storage)


CLOSE: dict[str, Close] = {
    "paused": set_to(PAUSED),
    "stopped": set_to(STOPPED),
    "changed": change_study,
    "deleted": lambda storage: storage.delete_study(summary(storage, "tiny").study_id),
}


def once(when: Callable[[Event], bool], act: Callable[[], object]) -> Callable[[Event], bool]:
    """Return a condition that calls `act` at the first event for which `when` is true, and never asks for a stop."""
    left = [act]

    def on_event(event: Event) -> bool:
        if left and when(event):
            left.pop()()
        return False

    return on_event


def kind(of: type[Event]) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, of)


def reason(events: Sequence[Event]) -> str:
    assert isinstance(events[-1], StudyEnded)
    return events[-1].reason


def attrs(storage: Storage) -> dict[str, Any]:
    return load_study(storage, "tiny").user_attrs


def notes(events: Sequence[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Note))


# --- During the search ---


@pytest.mark.parametrize("epochs", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("how", CLOSE)
def test_study_closed_in_an_epoch_ends_the_launch_and_loses_no_trial(
    how: str, epochs: int, uninterrupted: list[FrozenTrial], storage: Storage, other: Storage
) -> None:
    before: list[FrozenTrial] = []

    def act() -> None:
        before.extend(trials_of(other))
        CLOSE[how](other)

    events = search(STUDY, storage, stop_at=once(after_epochs(epochs), act))
    assert reason(events) == how
    assert storage.claimed_ids == set()
    if how == "deleted":
        assert study_names(storage) == []
    else:
        trials = trials_of(storage)
        assert TrialState.RUNNING not in states(trials)
        assert [trial.number for trial in trials] == list(range(len(trials)))
        # A stop lets the running trials finish; other ways requeue them.
        expected = [TrialState.COMPLETE] * len(before) if how == "stopped" else ended_or_waiting(before)
        assert states(trials) == expected
        set_to(OPEN)(other)
    events = search(LONGER if how == "changed" else STUDY, storage)
    assert reason(events) == "finished"
    trials = trials_of(storage)
    check_same_trials(trials[:10], uninterrupted)
    check_whole(trials, 12 if how == "changed" else 10)
    assert not any("hpo:attempts" in trial.system_attrs for trial in trials)


def ended_or_waiting(trials: Sequence[FrozenTrial]) -> list[TrialState]:
    return [trial.state if trial.state.is_finished() else TrialState.WAITING for trial in trials]


@pytest.mark.parametrize("when", [StudyStarted, PopulationStarted, PopulationEnded])
@pytest.mark.parametrize("how", CLOSE)
def test_study_closed_between_epochs_ends_the_launch(
    how: str, when: type[Event], storage: Storage, other: Storage
) -> None:
    events = search(STUDY, storage, stop_at=once(kind(when), lambda: CLOSE[how](other)))
    assert reason(events) == how
    if how != "deleted":
        assert TrialState.RUNNING not in states(trials_of(storage))


def test_study_paused_and_resumed_within_an_epoch_continues(
    uninterrupted: list[FrozenTrial], storage: Storage, other: Storage
) -> None:
    def act() -> None:
        assert CLOSE["paused"](other) == 4
        set_to(OPEN)(other)

    events = search(STUDY, storage, stop_at=once(after_epochs(1), act))
    assert reason(events) == "finished"
    check_same_trials(trials_of(storage), uninterrupted)
    assert not any("hpo:attempts" in trial.system_attrs for trial in trials_of(storage))


@pytest.mark.parametrize("how", ["paused", "stopped", "deleted"])
def test_waiting_process_ends_when_the_study_is_closed(
    how: str, storage: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "POLL_S", 0.01)
    run_all_trials_elsewhere(other, storage)

    class Stop(threading.Event):
        """A stop event that closes the study when the launch waits for other processes."""

        def wait(self, timeout: float | None = None) -> bool:
            if "tiny" in study_names(other) and STATE not in attrs(other):
                CLOSE[how](other)
            return super().wait(timeout)

    events: list[Event] = []
    launch(STUDY, storage, LaunchOptions(device="cpu"), on_event=events.append, stop=Stop())
    assert reason(events) == how
    assert not any(isinstance(event, PopulationStarted) for event in events)


def run_all_trials_elsewhere(other: Storage, storage: Storage) -> list[int]:
    """Create all trials of `STUDY` as RUNNING on another machine; return their ids."""
    search(STUDY, storage, stop_at=kind(StudyStarted))
    other.worker = ELSEWHERE
    space = distributions(STUDY)
    templates = [
        create_trial(
            state=TrialState.RUNNING, params={"dropout": 0.01 * k, "hidden": "[8]", "lr": 0.1}, distributions=space
        )
        for k in range(10)
    ]
    created = other.create_trials(load_study(other, "tiny")._study_id, templates)
    return [trial._trial_id for trial in created]


@pytest.mark.parametrize("how", ["changed", "deleted"])
def test_study_changed_or_deleted_after_its_last_trials_is_not_finished(
    how: str, storage: Storage, other: Storage
) -> None:
    study = study_of(search={"trials": 4})

    def change() -> None:
        submit(study_of(search={"trials": 6}), other, LaunchOptions(extend=True))

    act = change if how == "changed" else lambda: CLOSE[how](other)
    events = search(study, storage, stop_at=once(kind(PopulationEnded), act))
    assert reason(events) == how
    assert [STATE in each.user_attrs for each in open_summaries(storage)] == [False] * (how == "changed")


@pytest.mark.parametrize("how", ["paused", "stopped"])
def test_study_paused_or_stopped_after_its_last_trials_stays_closed(how: str, storage: Storage, other: Storage) -> None:
    search(study_of(search={"trials": 4}), storage, stop_at=once(kind(PopulationEnded), lambda: CLOSE[how](other)))
    assert attrs(storage)[STATE] == how
    check_whole(trials_of(storage), 4)


def test_pause_gives_no_note_of_another_process(storage: Storage, other: Storage) -> None:
    events = search(STUDY, storage, stop_at=once(after_epochs(1), lambda: CLOSE["paused"](other)))
    assert "another process" not in notes(events)


def test_study_deleted_and_submitted_again_is_a_new_study(
    uninterrupted: list[FrozenTrial], storage: Storage, other: Storage
) -> None:
    """SQLite reuses the id of the deleted study for the new one, and both may have the same study file."""

    def delete_and_submit() -> None:
        CLOSE["deleted"](other)
        submit(STUDY, other)

    events: list[Event] = []
    act = once(after_epochs(4), delete_and_submit)
    searching = threading.Thread(
        target=lambda: events.extend(search(STUDY, storage, stop_at=act)), name="searching", daemon=True
    )
    searching.start()
    searching.join(deadline(15))
    ended = not searching.is_alive()
    if not ended:
        CLOSE["deleted"](other)  # without this the thread would never end
        searching.join(deadline())
    assert ended, "the search never stops looking for a free trial number"
    if reason(events) != "finished":
        assert reason(events) == "deleted"
        search(STUDY, storage)
    check_same_trials(trials_of(storage), uninterrupted)


def test_study_deleted_during_precision_measurement_is_an_error(storage: Storage, other: Storage) -> None:
    study = study_of(training={"precision": "auto"})
    act = once(
        lambda event: isinstance(event, Note) and event.text.startswith("precision: "), lambda: CLOSE["deleted"](other)
    )
    with pytest.raises(HpoError, match="'tiny'"):
        search(study, storage, stop_at=act)
    assert study_names(storage) == []


def test_pause_does_not_end_trials_of_plain_optuna(storage: Storage, other: Storage) -> None:
    search(STUDY, storage, stop_at=kind(StudyStarted))
    trial = load_study(other, "tiny").ask()
    search(STUDY, storage, stop_at=once(after_epochs(1), lambda: CLOSE["paused"](other)))
    assert trials_of(storage)[trial.number].state == TrialState.RUNNING
    load_study(other, "tiny").tell(trial, 0.5)
    assert trials_of(storage)[trial.number].value == 0.5


# --- Before and after the search ---


@pytest.mark.parametrize("how", ["paused", "stopped"])
def test_launch_of_a_closed_study_is_an_error(how: str, storage: Storage) -> None:
    search(STUDY, storage, stop_at=after_epochs(4))
    CLOSE[how](storage)
    before = repr(trials_of(storage)), attrs(storage)
    for launch_or_join in (lambda: search(STUDY, storage), lambda: join_study(storage)):
        with pytest.raises(StudyClosedError, match=f"^study 'tiny' is {how}; go on with `hpo resume tiny`$") as caught:
            launch_or_join()
        assert caught.value.how == how
        assert isinstance(caught.value, HpoError)
        assert caught.value.exit_status == 1
    assert (repr(trials_of(storage)), attrs(storage)) == before


def join_study(storage: Storage, stop: threading.Event | None = None) -> loop.Search:
    return join("tiny", storage, device="cpu", on_event=lambda event: None, stop=stop or threading.Event())


def test_end_is_stored_with_its_reason_and_a_second_launch_changes_nothing(storage: Storage) -> None:
    study = study_of(search={"trials": 4})
    for _ in range(2):
        assert reason(search(study, storage)) == "finished"
        assert (attrs(storage)[STATE], attrs(storage)[STATE_REASON]) == ("ended", "finished")
        assert open_summaries(storage) == []
        check_whole(trials_of(storage), 4)


def test_extension_reopens_a_finished_study(storage: Storage) -> None:
    search(study_of(search={"trials": 4}), storage)
    submit(study_of(search={"trials": 6}), storage, LaunchOptions(extend=True))
    assert [each.name for each in open_summaries(storage)] == ["tiny"]
    assert reason(search(study_of(search={"trials": 6}), storage)) == "finished"
    assert attrs(storage)[STATE] == "ended"
    check_whole(trials_of(storage), 6)


@pytest.mark.parametrize("state", [PAUSED, STOPPED])
def test_extension_does_not_reopen_a_paused_or_stopped_study(state: StudyState, storage: Storage) -> None:
    search(study_of(search={"trials": 4}), storage)
    set_to(state)(storage)
    submit(study_of(search={"trials": 6}), storage, LaunchOptions(extend=True))
    assert attrs(storage)[STATE] == state
    set_to(OPEN)(storage)
    search(study_of(search={"trials": 6}), storage)
    check_whole(trials_of(storage), 6)


class SlowStorage(Storage):
    """A storage that calls `meanwhile` before it stores study attributes, as if another process acted in between."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def set_study_attrs(self, study_id: int, user_attrs: Any, also: Any = None) -> None:
        type(self).meanwhile()
        super().set_study_attrs(study_id, user_attrs, also)


def extend_during(study: Study, storage: Storage, meanwhile: Callable[[], object]) -> None:
    """Extend the study; call `meanwhile` just before the extension is stored."""
    slow = SlowStorage(storage.location)
    SlowStorage.meanwhile = staticmethod(meanwhile)
    try:
        submit(study, slow, LaunchOptions(extend=True))
    finally:
        SlowStorage.meanwhile = staticmethod(lambda: None)
        slow.close()


def test_study_that_ends_during_its_extension_is_open(storage: Storage) -> None:
    search(study_of(search={"trials": 4}), storage)
    set_to(OPEN)(storage)
    stored = load_study(storage, "tiny")
    conditions = ClaimConditions(stored._study_id, "tiny", {"hpo:study": stored.user_attrs["hpo:study"]})
    extend_during(study_of(search={"trials": 6}), storage, lambda: end_study(storage, conditions, "finished"))
    assert [each.name for each in open_summaries(storage)] == ["tiny"], "two more trials are to be trained"


def test_extension_is_refused_after_another_process_claimed_trials(storage: Storage, other: Storage) -> None:
    search(STUDY, storage, stop_at=after_epochs(1))
    stored = load_study(other, "tiny")
    waiting = [trial._trial_id for trial in stored.trials]
    conditions = ClaimConditions(stored._study_id, "tiny", {"hpo:study": stored.user_attrs["hpo:study"]})
    claimed: list[FrozenTrial] = []
    with pytest.raises(HpoError, match="is being searched by process"):
        extend_during(LONGER, storage, lambda: claimed.extend(other.claim(waiting, 2, conditions)))
    assert len(claimed) == 2


def test_submitted_study_waits_with_its_priority_for_a_worker(storage: Storage) -> None:
    submit(study_of(search={"trials": 4}), storage, LaunchOptions(priority=7))
    submit(study_of(search={"trials": 4}), storage)
    assert attrs(storage)[PRIORITY] == 7
    assert trials_of(storage) == []
    study_search = join_study(storage)
    assert [study_search.step(), study_search.step(), study_search.end_if_done()] == [True, False, "finished"]
    check_whole(trials_of(storage), 4)


def test_step_raises_when_the_study_is_closed(storage: Storage, other: Storage) -> None:
    submit(STUDY, storage)
    study_search = join_study(storage)
    assert study_search.step()
    for how in ("paused", "stopped"):
        CLOSE[how](other)
        with pytest.raises(StudyClosedError) as caught:
            study_search.step()
        assert caught.value.how == how
        set_to(OPEN)(other)
        assert storage.claimed_ids == set()
    assert study_search.step(), "sampled configurations that were not stored must be sampled again"
    change_study(other)
    with pytest.raises(StudyClosedError, match="changed by another process"):
        study_search.step()
    CLOSE["deleted"](other)
    with pytest.raises(StudyClosedError, match="deleted"):
        study_search.step()


def test_two_processes_may_both_end_a_study(storage: Storage, other: Storage) -> None:
    study = study_of(search={"trials": 4})
    submit(study, storage)
    first, second = join_study(storage), join_study(other)
    assert first.step()
    assert not second.step()
    assert [first.end_if_done(), second.end_if_done()] == ["finished", "finished"]
    assert attrs(storage)[STATE_REASON] == "finished"


def test_process_with_an_older_study_file_is_refused_before_training(storage: Storage, other: Storage) -> None:
    submit(STUDY, storage)
    old = load_study(storage, "tiny")
    outdated = join_study(storage)
    change_study(other)
    with pytest.raises(StudyClosedError, match="changed by another process"):
        outdated.step()
    assert trials_of(storage) == []
    assert old.user_attrs["hpo:study"] == attrs(other)["hpo:study"]


class RaisingTrainer(trainer.Trainer):
    """A trainer that raises the same exception in every population."""

    def train(self, members: Any, spent_s: float = 0) -> Any:
        raise ZeroDivisionError("out of luck")
        yield


def test_three_equal_exceptions_end_the_launch_and_requeue_other_trials(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(drivers, "Trainer", RaisingTrainer)
        with pytest.raises(
            TrainingError, match=r"raised the same exception in 3 populations in a row .*ZeroDivisionError.*: launch"
        ):
            search(study_of(), storage)
    trials = trials_of(storage)
    assert TrialState.RUNNING not in states(trials)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert STATE not in attrs(storage)
    assert search(study_of(), storage)
    check_whole(trials_of(storage), 6)


def test_pause_ends_both_of_two_searches(storage: Storage, other: Storage) -> None:
    study = study_of(search={"trials": 40, "population": 2})
    submit(study, storage)
    reasons: list[str] = []
    third = open_storage(storage.location.full_url)
    searches = [join_study(each) for each in (storage, third)]
    threads = [threading.Thread(target=lambda each=each: reasons.append(each.run())) for each in searches]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(trials_of(other)) >= 8)
    CLOSE["paused"](other)
    assert TrialState.RUNNING not in states(trials_of(other))
    for thread in threads:
        thread.join(deadline())
    third.close()
    assert reasons == ["paused", "paused"]
    trials = trials_of(other)
    assert TrialState.RUNNING not in states(trials)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    set_to(OPEN)(other)
    search(study, storage)
    check_whole(trials_of(storage), 40)
