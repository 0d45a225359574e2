"""A study that is paused, stopped, changed or deleted while it is searched: its processes end, and nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from deadlines import deadline, wait_for
from optuna.trial import FrozenTrial, TrialState, create_trial
from tiny import STUDY, after_epochs, check_like, check_whole, search, states, study_of, trials_of

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
"""`STUDY`, asking for two trials more."""

Close = Callable[[Storage], object]


@pytest.fixture
def other(storage: Storage) -> Iterator[Storage]:
    """The storage as another process has it."""
    other = open_storage(storage.location.full_url)
    yield other
    other.close()


def set_to(state: StudyState) -> Close:
    return lambda storage: set_state(storage, summary(storage, "tiny").study_id, state)


def changed(storage: Storage) -> None:
    """What a user does to change a study that is searched."""
    set_to(PAUSED)(storage)
    submit(LONGER, storage, LaunchOptions(extend=True))
    set_to(OPEN)(storage)


CLOSE: dict[str, Close] = {
    "paused": set_to(PAUSED),
    "stopped": set_to(STOPPED),
    "changed": changed,
    "deleted": lambda storage: storage.delete_study(summary(storage, "tiny").study_id),
}


def once(when: Callable[[Event], bool], act: Callable[[], object]) -> Callable[[Event], bool]:
    """Act at the first event picked, and ask for no stop."""
    left = [act]

    def take(event: Event) -> bool:
        if left and when(event):
            left.pop()()
        return False

    return take


def kind(of: type[Event]) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, of)


def reason(events: Sequence[Event]) -> str:
    assert isinstance(events[-1], StudyEnded)
    return events[-1].reason


def attrs(storage: Storage) -> dict[str, Any]:
    return load_study(storage, "tiny").user_attrs


def notes(events: Sequence[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Note))


# --- While it is searched ---


@pytest.mark.parametrize("epochs", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("how", CLOSE)
def test_a_study_closed_in_an_epoch_ends_the_work_on_it_and_loses_nothing(
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
        # A stop lets all that runs be finished, in both shapes; all else leaves what had ended before.
        expected = [TrialState.COMPLETE] * 4 if how == "stopped" else ended_or_waiting(before)
        assert states(trials) == expected
        set_to(OPEN)(other)
    events = search(LONGER if how == "changed" else STUDY, storage)
    assert reason(events) == "finished"
    trials = trials_of(storage)
    check_like(trials[:10], uninterrupted)
    check_whole(trials, 12 if how == "changed" else 10)
    assert not any("hpo:attempts" in trial.system_attrs for trial in trials)


def ended_or_waiting(trials: Sequence[FrozenTrial]) -> list[TrialState]:
    return [trial.state if trial.state.is_finished() else TrialState.WAITING for trial in trials]


@pytest.mark.parametrize("when", [StudyStarted, PopulationStarted, PopulationEnded])
@pytest.mark.parametrize("how", CLOSE)
def test_a_study_closed_between_epochs_ends_the_work_on_it(
    how: str, when: type[Event], storage: Storage, other: Storage
) -> None:
    events = search(STUDY, storage, stop_at=once(kind(when), lambda: CLOSE[how](other)))
    assert reason(events) == how
    if how != "deleted":
        assert TrialState.RUNNING not in states(trials_of(storage))


def test_a_study_paused_and_resumed_within_an_epoch_goes_on(
    uninterrupted: list[FrozenTrial], storage: Storage, other: Storage
) -> None:
    def act() -> None:
        assert CLOSE["paused"](other) == 4
        set_to(OPEN)(other)

    events = search(STUDY, storage, stop_at=once(after_epochs(1), act))
    assert reason(events) == "finished"
    check_like(trials_of(storage), uninterrupted)
    assert not any("hpo:attempts" in trial.system_attrs for trial in trials_of(storage))


@pytest.mark.parametrize("how", ["paused", "stopped", "deleted"])
def test_a_process_that_waits_for_others_sees_that_the_study_is_closed(
    how: str, storage: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "POLL_S", 0.01)
    all_held(other, storage)

    class Stop(threading.Event):
        """Asked to wait, it has nothing to do: now the study is closed."""

        def wait(self, timeout: float | None = None) -> bool:
            if "tiny" in study_names(other) and STATE not in attrs(other):
                CLOSE[how](other)
            return super().wait(timeout)

    events: list[Event] = []
    launch(STUDY, storage, LaunchOptions(device="cpu"), on_event=events.append, stop=Stop())
    assert reason(events) == how
    assert not any(isinstance(event, PopulationStarted) for event in events)


def all_held(other: Storage, storage: Storage) -> list[int]:
    """Let a process on another machine hold all the trials of `STUDY`; return their ids."""
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
def test_a_study_closed_when_its_last_trials_have_just_ended_did_not_finish(
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
def test_a_study_closed_when_its_last_trials_have_just_ended_stays_closed(
    how: str, storage: Storage, other: Storage
) -> None:
    search(study_of(search={"trials": 4}), storage, stop_at=once(kind(PopulationEnded), lambda: CLOSE[how](other)))
    assert attrs(storage)[STATE] == how
    check_whole(trials_of(storage), 4)


def test_a_process_is_not_told_that_others_took_what_a_pause_took(storage: Storage, other: Storage) -> None:
    events = search(STUDY, storage, stop_at=once(after_epochs(1), lambda: CLOSE["paused"](other)))
    assert "another process" not in notes(events)


def test_a_study_that_is_deleted_and_begun_anew_is_another_study(
    uninterrupted: list[FrozenTrial], storage: Storage, other: Storage
) -> None:
    """SQLite gives the new one the id of the old one, and its file may be the same."""

    def anew() -> None:
        CLOSE["deleted"](other)
        submit(STUDY, other)

    events: list[Event] = []
    act = once(after_epochs(4), anew)
    searching = threading.Thread(
        target=lambda: events.extend(search(STUDY, storage, stop_at=act)), name="searching", daemon=True
    )
    searching.start()
    searching.join(deadline(15))
    ended = not searching.is_alive()
    if not ended:
        CLOSE["deleted"](other)  # or it would never end
        searching.join(deadline())
    assert ended, "it looks for a free number for ever"
    if reason(events) != "finished":
        assert reason(events) == "deleted"
        search(STUDY, storage)
    check_like(trials_of(storage), uninterrupted)


def test_a_study_deleted_while_its_precision_is_measured_is_one_line(storage: Storage, other: Storage) -> None:
    study = study_of(training={"precision": "auto"})
    act = once(
        lambda event: isinstance(event, Note) and event.text.startswith("precision: "), lambda: CLOSE["deleted"](other)
    )
    with pytest.raises(HpoError, match="'tiny'"):
        search(study, storage, stop_at=act)
    assert study_names(storage) == []


def test_trials_of_plain_optuna_run_on_through_a_pause(storage: Storage, other: Storage) -> None:
    search(STUDY, storage, stop_at=kind(StudyStarted))
    asked = load_study(other, "tiny").ask()
    search(STUDY, storage, stop_at=once(after_epochs(1), lambda: CLOSE["paused"](other)))
    assert trials_of(storage)[asked.number].state == TrialState.RUNNING
    load_study(other, "tiny").tell(asked, 0.5)
    assert trials_of(storage)[asked.number].value == 0.5


# --- Before it is searched, and afterwards ---


@pytest.mark.parametrize("how", ["paused", "stopped"])
def test_a_closed_study_refuses_a_launch_in_one_line(how: str, storage: Storage) -> None:
    search(STUDY, storage, stop_at=after_epochs(4))
    CLOSE[how](storage)
    before = repr(trials_of(storage)), attrs(storage)
    for refused in (lambda: search(STUDY, storage), lambda: joined(storage)):
        with pytest.raises(StudyClosedError, match=f"^study 'tiny' is {how}; go on with `hpo resume tiny`$") as caught:
            refused()
        assert caught.value.how == how
        assert isinstance(caught.value, HpoError)
        assert caught.value.exit_status == 1
    assert (repr(trials_of(storage)), attrs(storage)) == before


def joined(storage: Storage, stop: threading.Event | None = None) -> loop.Search:
    return join("tiny", storage, device="cpu", on_event=lambda event: None, stop=stop or threading.Event())


def test_the_end_of_a_study_is_stored_with_its_reason_and_a_launch_changes_nothing(storage: Storage) -> None:
    study = study_of(search={"trials": 4})
    for _ in range(2):
        assert reason(search(study, storage)) == "finished"
        assert (attrs(storage)[STATE], attrs(storage)[STATE_REASON]) == ("ended", "finished")
        assert open_summaries(storage) == []
        check_whole(trials_of(storage), 4)


def test_an_extension_reopens_a_study_that_has_ended(storage: Storage) -> None:
    search(study_of(search={"trials": 4}), storage)
    submit(study_of(search={"trials": 6}), storage, LaunchOptions(extend=True))
    assert [each.name for each in open_summaries(storage)] == ["tiny"]
    assert reason(search(study_of(search={"trials": 6}), storage)) == "finished"
    assert attrs(storage)[STATE] == "ended"
    check_whole(trials_of(storage), 6)


@pytest.mark.parametrize("state", [PAUSED, STOPPED])
def test_an_extension_does_not_reopen_what_a_user_closed(state: StudyState, storage: Storage) -> None:
    search(study_of(search={"trials": 4}), storage)
    set_to(state)(storage)
    submit(study_of(search={"trials": 6}), storage, LaunchOptions(extend=True))
    assert attrs(storage)[STATE] == state
    set_to(OPEN)(storage)
    search(study_of(search={"trials": 6}), storage)
    check_whole(trials_of(storage), 6)


class Slow(Storage):
    """A storage whose changes are stored after what another process does meanwhile."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def set_study_attrs(self, study_id: int, user_attrs: Any, also: Any = None) -> None:
        type(self).meanwhile()
        super().set_study_attrs(study_id, user_attrs, also)


def extended_meanwhile(study: Study, storage: Storage, meanwhile: Callable[[], object]) -> None:
    """Extend the study while another process does something to it."""
    slow = Slow(storage.location)
    Slow.meanwhile = staticmethod(meanwhile)
    try:
        submit(study, slow, LaunchOptions(extend=True))
    finally:
        Slow.meanwhile = staticmethod(lambda: None)
        slow.close()


def test_a_study_that_ends_while_it_is_extended_is_open(storage: Storage) -> None:
    search(study_of(search={"trials": 4}), storage)
    set_to(OPEN)(storage)
    stored = load_study(storage, "tiny")
    conditions = ClaimConditions(stored._study_id, "tiny", {"hpo:study": stored.user_attrs["hpo:study"]})
    extended_meanwhile(study_of(search={"trials": 6}), storage, lambda: end_study(storage, conditions, "finished"))
    assert [each.name for each in open_summaries(storage)] == ["tiny"], "it asks for two trials more"


def test_a_study_is_not_extended_once_another_process_has_taken_trials(storage: Storage, other: Storage) -> None:
    search(STUDY, storage, stop_at=after_epochs(1))
    stored = load_study(other, "tiny")
    waiting = [trial._trial_id for trial in stored.trials]
    conditions = ClaimConditions(stored._study_id, "tiny", {"hpo:study": stored.user_attrs["hpo:study"]})
    taken: list[FrozenTrial] = []
    with pytest.raises(HpoError, match="is being searched by process"):
        extended_meanwhile(LONGER, storage, lambda: taken.extend(other.claim(waiting, 2, conditions)))
    assert len(taken) == 2


def test_a_submitted_study_waits_with_its_priority_for_whoever_joins(storage: Storage) -> None:
    submit(study_of(search={"trials": 4}), storage, LaunchOptions(priority=7))
    submit(study_of(search={"trials": 4}), storage)
    assert attrs(storage)[PRIORITY] == 7
    assert trials_of(storage) == []
    found = joined(storage)
    assert [found.step(), found.step(), found.end_if_done()] == [True, False, "finished"]
    check_whole(trials_of(storage), 4)


def test_steps_find_the_study_closed_as_a_run_does(storage: Storage, other: Storage) -> None:
    submit(STUDY, storage)
    found = joined(storage)
    assert found.step()
    for how in ("paused", "stopped"):
        CLOSE[how](other)
        with pytest.raises(StudyClosedError) as caught:
            found.step()
        assert caught.value.how == how
        set_to(OPEN)(other)
        assert storage.claimed_ids == set()
    assert found.step(), "what was asked for and not stored is asked for again"
    changed(other)
    with pytest.raises(StudyClosedError, match="changed by another process"):
        found.step()
    CLOSE["deleted"](other)
    with pytest.raises(StudyClosedError, match="deleted"):
        found.step()


def test_two_processes_that_both_see_the_end_store_it_once(storage: Storage, other: Storage) -> None:
    study = study_of(search={"trials": 4})
    submit(study, storage)
    first, second = joined(storage), joined(other)
    assert first.step()
    assert not second.step()
    assert [first.end_if_done(), second.end_if_done()] == ["finished", "finished"]
    assert attrs(storage)[STATE_REASON] == "finished"


def test_a_process_with_an_older_file_is_refused_before_it_trains(storage: Storage, other: Storage) -> None:
    submit(STUDY, storage)
    old = load_study(storage, "tiny")
    split = joined(storage)
    changed(other)
    with pytest.raises(StudyClosedError, match="changed by another process"):
        split.step()
    assert trials_of(storage) == []
    assert old.user_attrs["hpo:study"] == attrs(other)["hpo:study"]


class Raising(trainer.Trainer):
    """Raises the same in every population."""

    def train(self, members: Any) -> Any:
        raise ZeroDivisionError("out of luck")
        yield


def test_training_that_raises_the_same_again_and_again_ends_the_launch_and_keeps_the_rest(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(drivers, "Trainer", Raising)
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


def test_a_study_is_closed_while_two_search_it_and_both_end(storage: Storage, other: Storage) -> None:
    study = study_of(search={"trials": 40, "population": 2})
    submit(study, storage)
    reasons: list[str] = []
    third = open_storage(storage.location.full_url)
    searches = [joined(each) for each in (storage, third)]
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
