"""Changes of a study: trials of a closed study cannot be claimed; a pause leaves no running trials of hpo."""

from __future__ import annotations

import datetime
import logging
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from deadlines import deadline, wait_for
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from optuna.trial import TrialState
from optuna_records import COMPLETE, FAIL, MAXIMIZE, PRUNED, RUNNING, WAITING, ids, row_counts, running, states
from postgresql_server import Server

from hpo.errors import StudyBusyError, StudyClosedError
from hpo.storage import (
    ATTEMPTS,
    PRIORITY,
    STATE,
    STATE_REASON,
    ClaimConditions,
    ReopenedTrials,
    Storage,
    StudyState,
    TrialResult,
    attempt_record,
    change_idle_study,
    check_open,
    end_study,
    last_epochs,
    open_storage,
    open_summaries,
    set_state,
    state_of,
    summaries,
    trial_rates,
)
from hpo.storage.connections import TransientError, write
from hpo.storage.sql import retry
from hpo.storage.sql.rows import HEARTBEATS
from hpo.storage.sql.statements import delete_heartbeats, update_heartbeats

OPEN, PAUSED, STOPPED, ENDED = StudyState
FILE = "hpo:study"
# How long the test checks that a thread waits for another.
WATCHED_S = 0.5
# Enough repetitions for each order of two transactions to occur.
ROUNDS = 15
EXAMPLES, STEPS = 4, 25


def made(storage: Storage, file: str = "file", name: str = "digits") -> ClaimConditions:
    """Create a study; return the claim conditions of a process that has loaded it."""
    return ClaimConditions(storage.create_study(name, [MAXIMIZE], {FILE: file}), name, {FILE: file})


def closed_by(call: Callable[[], object]) -> str:
    with pytest.raises(StudyClosedError) as caught:
        call()
    assert str(caught.value).isprintable()
    return caught.value.how


def attrs(storage: Storage, conditions: ClaimConditions) -> dict[str, Any]:
    return storage.get_study_user_attrs(conditions.study_id)


def at_once(*calls: Callable[[], object]) -> list[object]:
    """Run calls in threads that start together; return their answers, or how the study was closed."""
    barrier = threading.Barrier(len(calls))

    def make(call: Callable[[], object]) -> object:
        barrier.wait(deadline())
        try:
            return call()
        except StudyClosedError as closed:
            return closed.how

    with ThreadPoolExecutor(len(calls)) as pool:
        return [made.result(deadline()) for made in [pool.submit(make, call) for call in calls]]


# --- States ---


def close(storage: Storage, conditions: ClaimConditions, how: str) -> None:
    match how:
        case "paused":
            set_state(storage, conditions.study_id, PAUSED)
        case "stopped":
            set_state(storage, conditions.study_id, STOPPED)
        case "changed":
            storage.set_study_attrs(conditions.study_id, {FILE: "another"})
        case "deleted":
            storage.delete_study(conditions.study_id)


WAYS = ["paused", "stopped", "changed", "deleted"]


@pytest.mark.parametrize("how", WAYS)
def test_trials_of_a_closed_study_cannot_be_claimed(how: str, storage: Storage, other: Storage) -> None:
    conditions = made(storage)
    waiting = ids(storage.create_trials(conditions.study_id, [running(state=WAITING)] * 2, conditions=conditions))
    close(other, conditions, how)
    before = row_counts(storage)
    assert closed_by(lambda: storage.claim(waiting, 2, conditions)) == how
    assert closed_by(lambda: storage.create_trials(conditions.study_id, [running()], 2, conditions)) == how
    assert (
        closed_by(lambda: storage.create_trials(conditions.study_id, [running(state=WAITING)], None, conditions)) == how
    )
    assert closed_by(lambda: check_open(storage, conditions)) == how
    assert row_counts(storage) == before
    assert storage.claimed_ids == set()


@pytest.mark.parametrize("state", [None, OPEN, ENDED])
def test_trials_of_an_open_or_ended_study_can_be_claimed(state: StudyState | None, storage: Storage) -> None:
    conditions = made(storage)
    if state is not None:
        set_state(storage, conditions.study_id, state)
    assert state_of(attrs(storage, conditions)) == (state or OPEN)
    first, second = ids(storage.create_trials(conditions.study_id, [running(), running(state=WAITING)], 0, conditions))
    assert ids(storage.claim([first, second], 2, conditions)) == [second]


def test_the_error_names_the_reason_and_how_to_resume(storage: Storage) -> None:
    conditions = made(storage)
    set_state(storage, conditions.study_id, PAUSED, "the cluster is needed")
    with pytest.raises(StudyClosedError) as caught:
        check_open(storage, conditions)
    assert str(caught.value) == ("study 'digits' is paused (the cluster is needed); go on with `hpo resume digits`")


def test_other_attributes_do_not_affect_claims(storage: Storage) -> None:
    conditions = made(storage)
    storage.set_study_attrs(conditions.study_id, {PRIORITY: 5, "note": "x"})
    check_open(storage, conditions)


def test_a_study_that_was_changed_back_meets_the_conditions(storage: Storage) -> None:
    conditions = made(storage)
    close(storage, conditions, "changed")
    storage.set_study_attrs(conditions.study_id, {FILE: "file"})
    check_open(storage, conditions)


def test_each_study_has_a_state_of_its_own(storage: Storage) -> None:
    all_conditions = [made(storage, name=state.value) for state in StudyState]
    for conditions, state in zip(all_conditions, StudyState, strict=True):
        set_state(storage, conditions.study_id, state)
    assert [state_of(each.user_attrs).value for each in summaries(storage)] == [
        conditions.name for conditions in all_conditions
    ]
    made(storage, name="never closed")
    optuna.create_study(study_name="plain", storage=storage)
    assert [(each.study_id, each.name) for each in open_summaries(storage)] == [
        (each.study_id, each.name) for each in summaries(storage) if each.name in ("open", "never closed", "plain")
    ]


def test_a_pause_requeues_trials_of_workers_only(storage: Storage, other: Storage) -> None:
    conditions, elsewhere = made(storage), made(storage, name="mnist")
    died = {ATTEMPTS: [attempt_record("died", "killed", storage.worker)]}
    templates = [running(10**-k, user_attrs={"seed": k}, system_attrs=died) for k in range(3, 7)]
    ours = ids(storage.create_trials(conditions.study_id, templates, 0, conditions))
    theirs = ids(other.create_trials(conditions.study_id, [running()], 4, conditions))
    (foreign,) = ids(storage.create_trials(elsewhere.study_id, [running()]))
    plain = storage.create_new_trial(conditions.study_id)
    storage.create_trials(conditions.study_id, [running(state=WAITING), running(state=FAIL)])
    storage.report(1, dict.fromkeys(ours, 0.5))
    storage.finish([TrialResult(ours[0], COMPLETE, (0.5,))])
    assert set_state(other, conditions.study_id, PAUSED) == 4
    assert set_state(other, conditions.study_id, PAUSED) == 0
    trials = storage.get_all_trials(conditions.study_id)
    assert states(trials) == [COMPLETE, WAITING, WAITING, WAITING, WAITING, RUNNING, WAITING, FAIL]
    assert trials[5]._trial_id == plain
    for trial, template in zip(trials[1:4], templates[1:], strict=True):
        assert (trial.params, trial.user_attrs, trial.system_attrs) == (template.params, template.user_attrs, died)
        assert (trial.intermediate_values, trial.datetime_start) == ({}, None)
    assert trials[0].intermediate_values == {1: 0.5}
    assert storage.get_trial(foreign).state == RUNNING
    assert row_counts(storage)["trial_heartbeats"] == 1
    check_late_calls(storage, ours[1:], conditions)
    check_late_calls(other, theirs, conditions)
    set_state(other, conditions.study_id, OPEN)
    assert ids(other.claim(ours, 9, conditions)) == ours[1:]
    check_late_calls(storage, ours[1:], conditions)


def check_late_calls(storage: Storage, trial_ids: list[int], conditions: ClaimConditions) -> None:
    """Check that a storage object cannot change trials whose claims it has lost, by any call."""
    claims = dict(storage._claims)
    before = repr(storage.get_all_trials(conditions.study_id)), row_counts(storage)
    late: list[Callable[[], set[int]]] = [
        lambda: storage.report(2, dict.fromkeys(trial_ids, 0.25)),
        lambda: storage.finish([TrialResult(trial_id, FAIL) for trial_id in trial_ids]),
        lambda: storage.requeue(trial_ids, {trial_id: {"late": 1} for trial_id in trial_ids}),
    ]
    for call in late:
        storage._claims.update(claims)  # as if it were the first call
        assert call() == set(trial_ids)
    storage.refresh_heartbeats()
    assert (repr(storage.get_all_trials(conditions.study_id)), row_counts(storage)) == before


def test_running_trials_of_a_stopped_study_can_be_finished(storage: Storage, other: Storage) -> None:
    conditions = made(storage)
    a, b = ids(storage.create_trials(conditions.study_id, [running(), running()], 0, conditions))
    assert set_state(other, conditions.study_id, STOPPED, "enough") == 0
    assert storage.report(1, {a: 0.5, b: 0.25}) == set()
    assert storage.finish([TrialResult(a, COMPLETE, (0.5,))]) == set()
    assert storage.requeue([b]) == set()
    assert states(storage.get_all_trials(conditions.study_id)) == [COMPLETE, WAITING]
    assert closed_by(lambda: storage.claim([b], 1, conditions)) == "stopped"


@pytest.mark.parametrize("how", ["paused", "stopped", "changed"])
def test_the_end_of_a_closed_or_changed_study_is_not_stored(how: str, storage: Storage, other: Storage) -> None:
    conditions = made(storage)
    close(other, conditions, how)
    before = attrs(storage, conditions)
    with pytest.raises(StudyClosedError) if how == "changed" else nullcontext():
        end_study(storage, conditions, "finished")
    assert attrs(storage, conditions) == before


def test_the_end_of_a_study_is_stored_with_its_reason(storage: Storage) -> None:
    conditions = made(storage)
    end_study(storage, conditions, "timeout")
    assert attrs(storage, conditions) == {FILE: "file", STATE: "ended", STATE_REASON: "timeout"}
    assert open_summaries(storage) == []


@pytest.mark.usefixtures("without_reused_ids")
def test_the_state_of_a_deleted_study_is_not_stored(storage: Storage, other: Storage) -> None:
    conditions = made(storage)
    other.delete_study(conditions.study_id)
    before = row_counts(storage)
    assert [set_state(storage, conditions.study_id, state) for state in StudyState] == [0] * 4
    with pytest.raises(StudyClosedError):
        end_study(storage, conditions, "finished")
    assert row_counts(storage) == before


@pytest.fixture
def without_reused_ids(storage: Storage) -> None:
    """Create a study with the highest id: SQLite reuses only the id of the last row."""
    storage.create_study("last", [MAXIMIZE], {})


# --- Concurrent calls ---


@pytest.mark.parametrize("how", WAYS)
def test_a_study_cannot_close_during_a_claim(how: str, storage: Storage, other: Storage) -> None:
    conditions = made(storage)
    with ThreadPoolExecutor(1) as pool:
        with write(storage.engine) as connection:
            conditions.check(connection)
            closing = pool.submit(close, other, conditions, how)
            with pytest.raises(FutureTimeoutError):
                closing.result(WATCHED_S)
        closing.result(deadline())
    assert closed_by(lambda: check_open(storage, conditions)) == how


def test_a_concurrent_pause_leaves_no_running_trials(
    storage: Storage, other: Storage, third: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    conditions = made(storage)
    for _ in range(ROUNDS):
        waiting = ids(storage.get_all_trials(conditions.study_id))
        claimed, created, back = at_once(
            lambda waiting=waiting: storage.claim(waiting, 3, conditions),
            lambda: third.create_trials(conditions.study_id, [running(), running(state=WAITING)], None, conditions),
            lambda: set_state(other, conditions.study_id, PAUSED),
        )
        trials = other.get_all_trials(conditions.study_id)
        assert set(states(trials)) <= {WAITING}
        assert [trial.number for trial in trials] == list(range(len(trials)))
        taken = [trial for answer in (claimed, created) if isinstance(answer, list) for trial in answer]
        assert back == states(taken).count(RUNNING)
        assert "trial_heartbeats" not in row_counts(other)
        for late in (storage, third):
            claims = late.claimed_ids
            assert late.report(1, dict.fromkeys(claims, 0.5)) == claims
        set_state(other, conditions.study_id, OPEN)
    assert caplog.text == ""


@pytest.fixture
def third(url: str) -> Iterator[Storage]:
    storage = open_storage(url)
    yield storage
    storage.close()


def test_a_concurrent_pause_and_results_leave_each_trial_in_one_state(
    storage: Storage, other: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    conditions = made(storage)
    for _ in range(ROUNDS):
        created = ids(storage.create_trials(conditions.study_id, [running() for _ in range(6)], None, conditions))
        ended = created[::-2]
        lost, *_ = at_once(
            lambda ended=ended: storage.finish([TrialResult(trial_id, COMPLETE, (0.5,)) for trial_id in ended]),
            lambda created=created: storage.report(1, dict.fromkeys(created[::-1], 0.25)),
            lambda created=created, ended=ended: storage.requeue(set(created) - set(ended)),
            lambda: set_state(other, conditions.study_id, PAUSED),
            lambda: quietly(storage.refresh_heartbeats),
        )
        assert isinstance(lost, set)
        found = {trial._trial_id: trial for trial in storage.get_all_trials(conditions.study_id)}
        for trial_id in ended:
            assert found[trial_id].state == (WAITING if trial_id in lost else COMPLETE)
        assert {found[trial_id].state for trial_id in set(created) - set(ended)} == {WAITING}
        assert all(trial.intermediate_values == {} for trial in found.values() if trial.state == WAITING)
        assert "trial_heartbeats" not in row_counts(other)
        set_state(other, conditions.study_id, OPEN)
    assert caplog.text == ""


def quietly(beat: Callable[[], None]) -> None:
    """Send heartbeats and log an error, because heartbeats are not retried."""
    try:
        beat()
    except TransientError as error:
        logging.getLogger(__name__).warning("%s", error)


def test_heartbeats_and_a_pause_do_not_deadlock(
    storage: Storage, other: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    conditions = made(storage)
    trial_ids = ids(storage.create_trials(conditions.study_id, [running(state=WAITING) for _ in range(60)]))
    for round_ in range(ROUNDS):
        # In several parts, and not in the order of ids: so the heartbeats are stored out of order.
        for start in range(3):
            order = trial_ids[start::3] if round_ % 2 else trial_ids[::-1][start::3]
            storage.claim(order, 60, conditions)
            storage.refresh_heartbeats()
        at_once(
            lambda: quietly(storage.refresh_heartbeats),
            lambda: quietly(storage.refresh_heartbeats),
            lambda: set_state(other, conditions.study_id, PAUSED),
        )
        assert set(states(other.get_all_trials(conditions.study_id))) == {WAITING}
        storage.requeue(storage.claimed_ids)
        set_state(other, conditions.study_id, OPEN)
    assert caplog.text == ""


def test_heartbeats_of_the_same_trials_do_not_deadlock(storage: Storage) -> None:
    conditions = made(storage)
    trial_ids = ids(storage.create_trials(conditions.study_id, [running(state=WAITING) for _ in range(240)]))
    for start in range(3):
        storage.claim(trial_ids[::-1][start::3], 80, conditions)
        storage.refresh_heartbeats()
    claims = dict(storage._claims)

    def beats(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(2 * ROUNDS):
            with write(storage.engine) as connection:
                update_heartbeats(connection, dict(chance.sample(sorted(claims.items()), 120)))

    at_once(*(lambda seed=seed: beats(seed) for seed in (1, 2, 3, 4)))
    with write(storage.engine) as connection:
        delete_heartbeats(connection, trial_ids)
        assert connection.execute(sa.select(HEARTBEATS)).all() == []


def test_processes_that_end_a_study_at_once_do_not_deadlock(
    storage: Storage, other: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    conditions = made(storage)
    for _ in range(ROUNDS):
        at_once(lambda: end_study(storage, conditions, "finished"), lambda: end_study(other, conditions, "finished"))
        assert state_of(attrs(storage, conditions)) == ENDED
        set_state(storage, conditions.study_id, OPEN)
    assert caplog.text == ""


def test_a_concurrent_end_and_stop_leave_the_study_stopped(
    storage: Storage, other: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    conditions = made(storage)
    for _ in range(ROUNDS):
        at_once(
            lambda: end_study(storage, conditions, "finished"),
            lambda: set_state(other, conditions.study_id, STOPPED, "enough"),
            lambda: check_open(storage, conditions),
        )
        assert attrs(storage, conditions) == {FILE: "file", STATE: "stopped", STATE_REASON: "enough"}
        set_state(storage, conditions.study_id, OPEN)
    assert caplog.text == ""


# --- Any order of calls ---


@dataclass
class Trial:
    """A trial of the model: `token` is its claim, 0 if plain Optuna runs it."""

    number: int
    state: TrialState
    token: int = 0
    curve: dict[int, float] = field(default_factory=dict)


@dataclass
class Person:
    """A process: its storage, its claim conditions, and its claims (trial id -> token)."""

    storage: Storage
    conditions: ClaimConditions
    claims: dict[int, int] = field(default_factory=dict)


class Doors(RuleBasedStateMachine):
    """Two processes work on a study that is closed, changed and deleted by either of them."""

    who = st.integers(0, 1)

    def __init__(self, storages: tuple[Storage, Storage]) -> None:
        super().__init__()
        self.storages = storages
        self.token = self.file = 0
        self.conditions: ClaimConditions | None = None  # those of the present study
        self.state, self.why = OPEN, ""
        self.trials: dict[int, Trial] = {}

    @initialize()
    def begin(self) -> None:
        self.make(0)
        assert self.conditions is not None
        self.people = [Person(storage, self.conditions) for storage in self.storages]

    @precondition(lambda self: self.conditions is None)
    @rule(by=who)
    def make(self, by: int) -> None:
        self.file += 1
        self.conditions = made(self.storages[by], f"file {self.file}")
        self.state, self.why, self.trials = OPEN, "", {}

    def expected(self, person: Person) -> str | None:
        """Return how the study is closed for the person."""
        if self.conditions is None or self.conditions.study_id != person.conditions.study_id:
            return "deleted"
        if self.state in (PAUSED, STOPPED):
            return self.state.value
        return "changed" if self.conditions != person.conditions else None

    def passed(self, person: Person, call: Callable[[], Any]) -> Any:
        """Return the answer of the call, or None if the model and the call agree that it is refused."""
        how = self.expected(person)
        if how is None:
            return call()
        assert closed_by(call) == how
        return None

    def take(self, person: Person, trial_id: int) -> None:
        self.token += 1
        self.trials[trial_id].state = RUNNING
        self.trials[trial_id].token = person.claims[trial_id] = self.token

    def mine(self, person: Person) -> set[int]:
        return {
            i
            for i, token in person.claims.items()
            if i in self.trials and (self.trials[i].state, self.trials[i].token) == (RUNNING, token)
        }

    def wait(self, trial_ids: Iterable[int]) -> None:
        for trial_id in trial_ids:
            self.trials[trial_id].state, self.trials[trial_id].curve = WAITING, {}

    # --- Calls of processes ---

    @rule(
        who=who, kinds=st.lists(st.sampled_from([RUNNING, WAITING]), max_size=3), off=st.sampled_from([0, 0, None, 1])
    )
    def create(self, who: int, kinds: list[TrialState], off: int | None) -> None:
        person, there = self.people[who], len(self.trials)
        templates = [running(state=kind) for kind in kinds]
        first = None if off is None else there + off
        created = self.passed(
            person,
            lambda: person.storage.create_trials(person.conditions.study_id, templates, first, person.conditions),
        )
        if created is None or off:
            assert not created
            return
        for trial_id, (i, kind) in zip(ids(created), enumerate(kinds), strict=True):
            self.trials[trial_id] = Trial(there + i, kind)
            if kind == RUNNING:
                self.take(person, trial_id)

    @rule(who=who, count=st.integers(1, 3))
    def claim(self, who: int, count: int) -> None:
        person = self.people[who]
        if not self.trials:
            return
        claimed = self.passed(person, lambda: person.storage.claim(list(self.trials), count, person.conditions))
        if claimed is not None:
            assert ids(claimed) == [i for i, trial in self.trials.items() if trial.state == WAITING][:count]
            for trial_id in ids(claimed):
                self.take(person, trial_id)

    @rule(who=who, step=st.integers(1, 2))
    def report(self, who: int, step: int) -> None:
        person = self.people[who]
        mine = self.mine(person)
        assert person.storage.report(step, dict.fromkeys(person.claims, 0.5)) == set(person.claims) - mine
        person.claims = {trial_id: person.claims[trial_id] for trial_id in mine}
        for trial_id in mine:
            self.trials[trial_id].curve[step] = 0.5

    @rule(who=who, state=st.sampled_from([COMPLETE, PRUNED, FAIL]), most=st.integers(1, 3))
    def finish(self, who: int, state: TrialState, most: int) -> None:
        person = self.people[who]
        some = sorted(person.claims)[:most]
        mine = self.mine(person) & set(some)
        endings = [TrialResult(trial_id, state, (0.5,) if state == COMPLETE else ()) for trial_id in some]
        assert person.storage.finish(endings) == set(some) - mine
        for trial_id in some:
            del person.claims[trial_id]
        for trial_id in mine:
            self.trials[trial_id].state = state

    @rule(who=who)
    def requeue(self, who: int) -> None:
        person = self.people[who]
        mine = self.mine(person)
        assert person.storage.requeue(list(person.claims)) == set(person.claims) - mine
        person.claims = {}
        self.wait(mine)

    @rule(who=who)
    def end(self, who: int) -> None:
        person = self.people[who]
        expected = self.expected(person)
        with pytest.raises(StudyClosedError) if expected in ("changed", "deleted") else nullcontext():
            end_study(person.storage, person.conditions, "finished")
        if expected is None:
            self.state, self.why = ENDED, "finished"

    @rule(who=who)
    def learn(self, who: int) -> None:
        if self.conditions is not None:
            self.people[who].conditions = self.conditions

    # --- Changes of the study ---

    @precondition(lambda self: self.conditions is not None)
    @rule(by=who, state=st.sampled_from([OPEN, OPEN, PAUSED, STOPPED]), why=st.sampled_from(["", "enough"]))
    def set(self, by: int, state: StudyState, why: str) -> None:
        assert self.conditions is not None
        held = [i for i, trial in self.trials.items() if trial.state == RUNNING and trial.token]
        back = held if state == PAUSED else []
        assert set_state(self.storages[by], self.conditions.study_id, state, why) == len(back)
        self.state, self.why = state, why
        self.wait(back)

    @precondition(lambda self: self.conditions is not None)
    @rule(by=who)
    def change(self, by: int) -> None:
        assert self.conditions is not None
        self.file += 1
        self.conditions = replace(self.conditions, expected_attrs={FILE: f"file {self.file}"})
        self.storages[by].set_study_attrs(self.conditions.study_id, self.conditions.expected_attrs)

    @precondition(lambda self: self.conditions is not None)
    @rule(by=who)
    def ask_as_plain_optuna(self, by: int) -> None:
        assert self.conditions is not None
        trial_id = self.storages[by].create_new_trial(self.conditions.study_id)
        self.trials[trial_id] = Trial(len(self.trials), RUNNING)

    @precondition(lambda self: self.conditions is not None and self.trials)
    @rule(by=who)
    def delete(self, by: int) -> None:
        assert self.conditions is not None
        self.storages[by].delete_study(self.conditions.study_id)
        self.conditions, self.trials = None, {}
        assert row_counts(self.storages[by]).keys() == {"version_info"}

    @invariant()
    def everything_is_stored(self) -> None:
        if self.conditions is None:
            return
        looker = self.storages[0]
        stored = looker.get_all_trials(self.conditions.study_id)
        assert [(t._trial_id, t.number, t.state, t.intermediate_values) for t in stored] == [
            (trial_id, t.number, t.state, t.curve) for trial_id, t in self.trials.items()
        ]
        found = attrs(looker, self.conditions)
        assert (found[FILE], state_of(found), found.get(STATE_REASON, "")) == (
            self.conditions.expected_attrs[FILE],
            self.state,
            self.why,
        )
        with looker.engine.connect() as connection:
            beating = connection.execute(sa.select(HEARTBEATS.c.trial_id)).scalars().all()
        assert sorted(beating) == [i for i, t in self.trials.items() if t.state == RUNNING and t.token]

    def teardown(self) -> None:
        for storage in self.storages:
            storage.requeue(storage.claimed_ids)
        if self.conditions is not None:
            self.storages[0].delete_study(self.conditions.study_id)


def test_any_order_of_claims_and_changes_agrees_with_the_model(storage: Storage, other: Storage, times: int) -> None:
    run_state_machine_as_test(
        lambda: Doors((storage, other)),
        settings=settings(max_examples=EXAMPLES * times, stateful_step_count=STEPS, print_blob=True),
    )


# --- Display of the queue ---


def test_the_last_epoch_is_the_highest_step_of_each_trial(storage: Storage) -> None:
    conditions = made(storage)
    a, b, silent = ids(storage.create_trials(conditions.study_id, [running(), running(), running()]))
    for step in (3, 1, 2):
        storage.report(step, {a: 0.1})
    storage.report(7, {b: float("nan")})
    assert last_epochs(storage, [silent, b, a, 999, a]) == {a: 3, b: 7}
    assert last_epochs(storage, []) == {}


def test_the_last_epochs_of_more_trials_than_a_query_takes_are_found(storage: Storage) -> None:
    conditions = made(storage)
    many = ids(storage.create_trials(conditions.study_id, [running() for _ in range(1001)]))
    storage.report(4, dict.fromkeys(many, 0.5))
    assert last_epochs(storage, many) == dict.fromkeys(many, 4)


def test_a_rate_counts_trials_that_ended_within_the_window(storage: Storage) -> None:
    now = datetime.datetime.now()

    def ended(start_s: float, end_s: float, state: TrialState = COMPLETE) -> Any:
        start, end = (now - datetime.timedelta(seconds=s) for s in (start_s, end_s))
        value = 0.5 if state == COMPLETE else None
        trial = running(state=state, value=value)
        trial.datetime_start, trial.datetime_complete = start, end
        return trial

    old, young, idle = (made(storage, name=name).study_id for name in ("old", "young", "idle"))
    storage.create_trials(old, [ended(5000, 4000), *(ended(3700, 100 * k) for k in range(1, 37)), running()])
    storage.create_trials(young, [ended(100, 50), ended(60, 10), ended(50, 5, FAIL)])
    storage.create_trials(idle, [ended(9000, 8000), running(), running(state=WAITING)])
    found = trial_rates(storage, 3600.0)
    assert found.keys() == {old, young}
    # Some seconds can pass between `now` and the call: the oldest trial may have left the window.
    assert 34 / 3600 <= found[old] <= 36 / 3600
    assert 3 / (100 + deadline()) <= found[young] <= 3 / 100


# --- RetryPolicy ---


@pytest.fixture
def away(server: Server, server_storage: Storage) -> Iterator[Storage]:
    """Yield a storage whose server is unreachable until the test restarts it."""
    server_storage.create_study("digits", [MAXIMIZE], {})
    server.stop()
    yield server_storage
    server.start()


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_stop_interrupts_the_wait_for_a_server(away: Storage, caplog: pytest.LogCaptureFixture) -> None:
    away.retry_policy.timeout_s = float("inf")
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(set_state, away, 1, PAUSED)
        wait_for(lambda: messages(caplog))
        assert not waits.done()
        away.retry_policy.stop.set()
        with pytest.raises(TransientError, match="Connection refused"):
            waits.result(deadline())
    (said,) = messages(caplog)
    assert said.endswith("; trying again")  # without a limit, because the timeout is infinite
    with pytest.raises(TransientError):
        summaries(away)  # no retries after the stop
    assert messages(caplog) == [said]
    assert away.retry_policy.total_s > 0


@pytest.fixture
def brief_absence(server: Server, server_storage: Storage) -> Iterator[Callable[[], None]]:
    """Stop the server; the call, and the end of the test, restart it."""
    server.stop()
    back: list[bool] = []

    def bring_back() -> None:
        back.append(True)
        server.start()

    yield bring_back
    if not back:
        server.start()


def test_a_wait_is_logged_at_its_start_every_minute_and_at_its_end(
    brief_absence: Callable[[], None],
    server_storage: Storage,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "REMIND_S", 0.01)  # in place of a minute
    spent = server_storage.retry_policy.total_s
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(summaries, server_storage)
        wait_for(lambda: len(messages(caplog)) >= 2)
        brief_absence()
        assert waits.result(deadline()) == []
    *waiting, over = messages(caplog)
    assert all(said.endswith("; trying again for up to 120 s") for said in waiting)
    assert over.startswith("the storage answers again, after ")
    assert server_storage.retry_policy.total_s > spent
    assert not any("\n" in said for said in messages(caplog))


def test_a_claim_after_a_lost_answer_checks_the_conditions_too(server_storage: Storage) -> None:
    """The first claim is committed, its answer lost; before the retry another trial waits, and a stop is stored."""
    conditions = made(server_storage)
    other = open_storage(server_storage.location.full_url)
    first, second = ids(server_storage.create_trials(conditions.study_id, [running(state=WAITING), running()]))
    tries = []

    def lose(connection: sa.Connection) -> None:
        """Break the connection after the commit."""
        if not tries:
            tries.append(connection)
            connection.connection.commit()
            server_storage.requeue([second])
            set_state(other, conditions.study_id, STOPPED)
            connection.connection.driver_connection.close()

    sa.event.listen(server_storage.engine, "commit", lose)
    try:
        claimed = ids(server_storage.claim([first, second], 2, conditions))
    except StudyClosedError:
        claimed = []
    finally:
        sa.event.remove(server_storage.engine, "commit", lose)
        other.close()
    assert second not in claimed
    assert len(tries) == 1


def test_reopened_trials_lose_their_results_and_nothing_else(storage: Storage) -> None:
    """Completed trials become waiting in the transaction that changes the study, and no other trials do."""
    study_id = made(storage).study_id
    study = optuna.load_study(study_name="digits", storage=storage)
    for state in (COMPLETE, COMPLETE, PRUNED, COMPLETE):
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=0.5,
                params={"lr": 0.1},
                distributions={"lr": optuna.distributions.FloatDistribution(0.0, 1.0)},
                user_attrs={"seed": 7, "score_epoch": 2},
                system_attrs={"hpo:curve": {"val_loss": [1.0, 0.5]}, "hpo:rung:1": [1.0]},
                intermediate_values={1: 1.0, 2: 0.5},
            )
        )
    end_study(storage, ClaimConditions(study_id, "digits", {}), "finished")
    before = storage.get_all_trials(study_id)
    claimed = storage.create_trials(study_id, [running()])[0]._trial_id
    reopened = ReopenedTrials({trial._trial_id: 2 for trial in before[1:]}, ["hpo:curve"], ["score_epoch"])
    with pytest.raises(StudyBusyError, match="digits"):
        change_idle_study(storage, study_id, "digits", {"hpo:study": "new"}, reopened)
    assert storage.get_all_trials(study_id)[:4] == before
    storage.finish([TrialResult(claimed, FAIL)])
    change_idle_study(storage, study_id, "digits", {"hpo:study": "new"}, reopened)
    first, second, pruned, last, _ = storage.get_all_trials(study_id)
    assert (first, pruned) == (before[0], before[2])
    for trial in (second, last):
        assert trial.state == WAITING
        assert (trial.values, trial.intermediate_values) == (None, {})
        assert (trial.datetime_start, trial.datetime_complete) == (None, None)
        assert (trial.params, trial.user_attrs) == ({"lr": 0.1}, {"seed": 7})
        assert trial.system_attrs == {"hpo:rung:1": [1.0], "hpo:reopened": 2}
    attrs = storage.get_study_user_attrs(study_id)
    assert (attrs["hpo:study"], attrs[STATE]) == ("new", OPEN)
