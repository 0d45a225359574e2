"""Any interleaving of several workers' calls: the stored trials and all return values agree with a model.

The model is what the storage promises, in plain dictionaries: who holds a trial is told by a token that each claim gets
anew. Workers crash (their process is really killed), fall silent, come back, and take back what others left.
"""

from __future__ import annotations

import copy as copy_module
import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from idle_processes import IdleProcess, age_heartbeats
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from optuna_records import COMPLETE, FAIL, MAXIMIZE, PRUNED, RUNNING, WAITING, ids, plain, running

from hpo.storage import (
    ATTEMPTS,
    FAILURE_REASON,
    RunningTrial,
    Storage,
    TrialResult,
    attempt_record,
    open_storage,
    requeue_orphaned,
    running_trials,
)
from hpo.storage.sql.rows import HEARTBEATS, TRIALS
from hpo.storage.sql.statements import WORKER
from hpo.storage.workers import Worker

WORKERS = 3
MAX_TRIALS = 12
MAX_DEATHS = 3  # a literal, independent of the code
PROBE_STEP = 99
EXAMPLES, STEPS = 6, 25

workers = st.integers(0, WORKERS - 1)
numbers = st.floats(allow_nan=False, width=32).map(lambda value: value + 0.0)  # SQLite stores -0.0 as 0.0
reported = numbers | st.just(math.nan)


@dataclass
class Person:
    """A worker: its storage, its process, and its claims according to the model (trial id -> token)."""

    storage: Storage
    body: IdleProcess
    worker: Worker
    dead: bool = False
    claims: dict[int, int] = field(default_factory=dict)
    views: list[View] = field(default_factory=list)

    def __str__(self) -> str:
        return str(self.worker)


@dataclass(frozen=True)
class View:
    """An orphaned trial as a worker saw it, with the claim and the heartbeat of that time."""

    running: RunningTrial
    token: int
    beats: int


@dataclass
class Trial:
    """A trial of the model. `holder` has claimed it, by the claim `token`; `beats` counts heartbeats."""

    number: int
    lr: float
    state: TrialState
    user_attrs: dict[str, Any]
    system_attrs: dict[str, Any] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)
    value: float | None = None
    attempts: list[tuple[str, str, str, int | None]] = field(default_factory=list)
    holder: Person | None = None
    token: int = 0
    silent: bool = False
    beats: int = 0

    @property
    def orphaned(self) -> str | None:
        if self.holder is None or not (self.holder.dead or self.silent):
            return None
        return f"{self.holder} ended" if self.holder.dead else f"no heartbeat from {self.holder} for 60 s"

    def shown(self) -> dict[str, Any]:
        """Return the trial in the form of `seen`."""
        return {
            "number": self.number,
            "state": self.state.name,
            "params": {"lr": self.lr},
            "curve": repr(sorted(self.curve.items())),  # NaN is not equal to itself
            "value": self.value,
            "user_attrs": self.user_attrs,
            "system_attrs": self.system_attrs,
            "attempts": self.attempts,
            "started": self.state != WAITING,
            "ended": self.state.is_finished(),
        }


def seen(trial: FrozenTrial) -> dict[str, Any]:
    attempts = trial.system_attrs.pop(ATTEMPTS, [])
    return {
        "number": trial.number,
        "state": trial.state.name,
        "params": trial.params,
        "curve": repr(sorted(trial.intermediate_values.items())),
        "value": trial.value,
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "attempts": [(each["ended"], each["reason"], each["worker"], each.get("epoch")) for each in attempts],
        "started": trial.datetime_start is not None,
        "ended": trial.datetime_complete is not None,
    }


def without_progress(trial: Trial) -> int:
    """Return the number of deaths since the trial was further than ever before."""
    highest, deaths = -1, 0
    for ended, _, _, epoch in trial.attempts:
        if ended == "died" and epoch is not None:
            deaths = 1 if epoch > highest else deaths + 1
            highest = max(highest, epoch)
    return deaths


def happened(what: str, whether: object) -> None:
    """Count an event for `--hypothesis-show-statistics`, which shows whether rare events still occur."""
    if whether:
        event(what)


class Interleavings(RuleBasedStateMachine):
    """A new study in a database that the examples share."""

    def __init__(self, looker: Storage, plainly: RDBStorage, url: str, idle: list[tuple[Storage, IdleProcess]]):
        super().__init__()
        self.looker, self.plainly, self.url, self.idle = looker, plainly, url, idle
        self.study_id = looker.create_new_study([MAXIMIZE])
        self.trials: dict[int, Trial] = {}
        self.settled: dict[str, int] = {}
        self.tokens, self.steps = itertools.count(1), itertools.count()
        self.people: list[Person] = []

    @initialize()
    def start(self) -> None:
        for _ in range(WORKERS):
            storage, body = self.idle.pop() if self.idle else (open_storage(self.url), IdleProcess())
            self.people.append(self.known(storage, body))
        self.create(0, [RUNNING, RUNNING, RUNNING, WAITING], 0)

    def known(self, storage: Storage, body: IdleProcess) -> Person:
        storage.worker = body.worker(f"device {next(self.tokens)}")
        return Person(storage, body, storage.worker)

    # --- Terms of the model ---

    @property
    def held(self) -> dict[int, Trial]:
        return {trial_id: trial for trial_id, trial in self.trials.items() if trial.holder}

    def holds(self, person: Person, trial_id: int) -> bool:
        """Return whether the person's claim on the trial is still valid."""
        trial = self.trials[trial_id]
        return trial.holder is person and trial.token == person.claims.get(trial_id)

    def lost_to(self, person: Person, trial_ids: Iterable[int]) -> set[int]:
        return {trial_id for trial_id in trial_ids if not self.holds(person, trial_id)}

    def take(self, person: Person, trial_id: int) -> None:
        trial = self.trials[trial_id]
        trial.state, trial.holder, trial.token, trial.silent = RUNNING, person, next(self.tokens), False
        trial.system_attrs[WORKER] = person.worker.to_json()
        person.claims[trial_id] = trial.token

    def let_go(self, trial_id: int, state: TrialState) -> None:
        trial = self.trials[trial_id]
        trial.state, trial.holder, trial.token = state, None, 0
        if state == WAITING:
            trial.curve = {}
            trial.system_attrs.pop(WORKER, None)

    def forget(self, person: Person, trial_ids: Iterable[int]) -> None:
        for trial_id in trial_ids:
            person.claims.pop(trial_id, None)

    def some(self, data: st.DataObject, person: Person, most: int = 4) -> list[int]:
        """Draw trials in any order, preferably those that the person has claimed."""
        pools = [pool for pool in (sorted(person.claims), sorted(self.trials)) if pool]
        pool = data.draw(st.sampled_from(pools)) if pools else []
        return data.draw(st.lists(st.sampled_from(pool), unique=True, min_size=1, max_size=most)) if pool else []

    # --- Calls of workers ---

    @precondition(lambda self: len(self.trials) < MAX_TRIALS)
    @rule(
        who=workers,
        kinds=st.lists(st.sampled_from([RUNNING, RUNNING, WAITING]), min_size=1, max_size=3),
        off=st.sampled_from([None, 0, 0, -1, 1]),
    )
    def create(self, who: int, kinds: list[TrialState], off: int | None) -> None:
        person, there = self.people[who], len(self.trials)
        made = [
            Trial(there + i, (there + i + 1) * 1e-4, state, {"seed": there + i}, {"x:y": [i]})
            for i, state in enumerate(kinds)
        ]
        templates = [
            running(t.lr, state=t.state, user_attrs=t.user_attrs, system_attrs=t.system_attrs.copy()) for t in made
        ]
        created = person.storage.create_trials(self.study_id, templates, None if off is None else there + off)
        happened("refused", bool(off))
        if off:
            assert created == []
            return
        for trial_id, trial in zip(ids(created), made, strict=True):
            self.trials[trial_id] = trial
            if trial.state == RUNNING:
                self.take(person, trial_id)
        assert [seen(trial) for trial in copy_module.deepcopy(created)] == [trial.shown() for trial in made]

    @rule(who=workers, step=st.integers(0, 3), data=st.data())
    def report(self, who: int, step: int, data: st.DataObject) -> None:
        person = self.people[who]
        values = {trial_id: data.draw(reported) for trial_id in self.some(data, person)}
        lost = self.lost_to(person, values)
        happened("late report", bool(lost & set(person.claims)))
        assert person.storage.report(step, values) == lost
        self.forget(person, lost)
        for trial_id in set(values) - lost:
            self.trials[trial_id].curve[step] = values[trial_id]

    @rule(who=workers, data=st.data())
    def finish(self, who: int, data: st.DataObject) -> None:
        person, endings = self.people[who], []
        for trial_id in self.some(data, person):
            state = data.draw(st.sampled_from([COMPLETE, PRUNED, FAIL]))
            value = data.draw(numbers if state == COMPLETE else st.none() | numbers if state == PRUNED else st.none())
            why = {FAILURE_REASON: "raised"} if state == FAIL else {}
            endings.append(TrialResult(trial_id, state, () if value is None else (value,), why, {"x:rung": 1}))
        lost = self.lost_to(person, [ending.trial_id for ending in endings])
        happened("late finish", bool(lost & set(person.claims)))
        assert person.storage.finish(endings) == lost
        self.forget(person, [ending.trial_id for ending in endings])
        for ending in endings:
            if ending.trial_id not in lost:
                trial = self.trials[ending.trial_id]
                trial.value = ending.values[0] if ending.values else None
                trial.user_attrs |= ending.user_attrs
                trial.system_attrs |= ending.system_attrs
                self.let_go(ending.trial_id, ending.state)

    @rule(who=workers, raised=st.booleans(), data=st.data())
    def requeue(self, who: int, raised: bool, data: st.DataObject) -> None:
        person = self.people[who]
        some = self.some(data, person)
        lost = self.lost_to(person, some)
        happened("late requeue", bool(lost & set(person.claims)))
        attrs = {}
        if raised:
            stored = {trial_id: self.looker.get_trial(trial_id).system_attrs.get(ATTEMPTS, []) for trial_id in some}
            again = attempt_record("raised", "out of luck", person.worker)
            attrs = {trial_id: {ATTEMPTS: [*attempts, again]} for trial_id, attempts in stored.items()}
        assert person.storage.requeue(some, attrs) == lost
        self.forget(person, some)
        for trial_id in set(some) - lost:
            self.let_go(trial_id, WAITING)
            if raised:
                self.trials[trial_id].attempts.append(("raised", "out of luck", str(person), None))

    @rule(who=workers, count=st.integers(0, 4), data=st.data())
    def claim(self, who: int, count: int, data: st.DataObject) -> None:
        person = self.people[who]
        some = data.draw(st.permutations(sorted(self.trials)))
        some = some[: data.draw(st.sampled_from([MAX_TRIALS + 3, 4, 1]))]
        expected = [i for i in sorted(some) if self.trials[i].state == WAITING][:count]
        claimed = person.storage.claim(some, count)
        assert ids(claimed) == expected
        for trial_id in expected:
            self.take(person, trial_id)
        assert [seen(trial) for trial in claimed] == [self.trials[i].shown() for i in expected]

    @precondition(lambda self: self.held)
    @rule(who=workers)
    def beat(self, who: int) -> None:
        person = self.people[who]
        person.storage.refresh_heartbeats()
        for trial_id, trial in self.trials.items():
            if self.holds(person, trial_id):
                happened("back in time", trial.silent)
                trial.silent, trial.beats = False, trial.beats + trial.silent

    @precondition(lambda self: len(self.settled) < 2)
    @rule(who=workers, key=st.sampled_from("ab"), value=st.integers())
    def settle(self, who: int, key: str, value: int) -> None:
        assert self.people[who].storage.set_study_attr_if_absent(self.study_id, key, value) == self.settled.setdefault(
            key, value
        )

    # --- Failures ---

    @precondition(lambda self: self.held)
    @rule(who=workers)
    def crash(self, who: int) -> None:
        """Kill the worker's process and start another."""
        person = self.people[who]
        person.dead = True
        person.body.kill()
        person.storage._claims.clear()  # as in a new process, whose storage would take much longer to open
        self.people[who] = self.known(person.storage, IdleProcess())

    @precondition(lambda self: self.held)
    @rule(who=workers)
    def fall_silent(self, who: int) -> None:
        of_it = {trial_id: trial for trial_id, trial in self.trials.items() if trial.holder is self.people[who]}
        age_heartbeats(self.looker, of_it)
        for trial in of_it.values():
            trial.silent = True
        # A trial whose heartbeat expired, returned and expired again before the requeue may be requeued or not.
        for person in self.people:
            person.views = [v for v in person.views if v.running.trial_id not in of_it or self.still_so(v)]

    # --- Orphaned trials ---

    @precondition(lambda self: self.held)
    @rule(who=workers)
    def look_for_the_lost(self, who: int) -> None:
        """List orphaned trials, as before a population; the requeue can follow much later."""
        person = self.people[who]
        found = running_trials(person.storage, self.study_id)
        held = self.held
        assert [(each.trial_id, each.number, each.worker, each.orphaned) for each in found] == [
            (trial_id, trial.number, trial.holder and trial.holder.worker, trial.orphaned)
            for trial_id, trial in held.items()
        ]
        assert all((each.silent_s >= 3600) == held[each.trial_id].silent for each in found)
        of_them = [(each, held[each.trial_id]) for each in found if each.orphaned]
        person.views = [View(each, trial.token, trial.beats) for each, trial in of_them]

    def still_so(self, view: View) -> bool:
        trial = self.trials[view.running.trial_id]
        return trial.holder is not None and (trial.token, trial.beats) == (view.token, view.beats)

    @rule(who=workers, look=st.booleans())
    def take_back(self, who: int, look: bool) -> None:
        """Requeue or fail trials that were orphaned, now or earlier."""
        person = self.people[who]
        if look or not person.views:
            self.look_for_the_lost(who)
        waiting, failed = set(), set()
        for view in person.views:
            trial, reason = self.trials[view.running.trial_id], str(view.running.orphaned)
            happened("came too late", not self.still_so(view))
            if not self.still_so(view):
                continue
            trial.attempts.append(("died", reason, str(trial.holder), max(trial.curve, default=0)))
            deaths = without_progress(trial)
            if deaths <= MAX_DEATHS:
                self.let_go(view.running.trial_id, WAITING)
                waiting.add(trial.number)
            else:
                self.let_go(view.running.trial_id, FAIL)
                trial.user_attrs[FAILURE_REASON] = f"its process died {deaths} times: {reason}"
                failed.add(trial.number)
        happened("taken back", bool(waiting))
        happened("given up", bool(failed))
        assert requeue_orphaned(person.storage, [view.running for view in person.views]) == (waiting, failed)

    # --- Sequences that would be rare by chance ---

    @precondition(lambda self: self.held)
    @rule(by=workers, to=workers, late=st.sampled_from(["report", "finish", "requeue", "beat"]), data=st.data())
    def come_too_late(self, by: int, to: int, late: str, data: st.DataObject) -> None:
        """A slow worker loses its trials to another, or to itself, before its call."""
        who = self.a_holder(data)
        self.fall_silent(who)
        self.take_back(by, look=True)
        given = sorted(i for i in self.people[who].claims if self.trials[i].state == WAITING)
        assert ids(self.people[to].storage.claim(given, len(given))) == given
        for trial_id in given:
            self.take(self.people[to], trial_id)
        match late:
            case "report":
                self.report(who, 1, data)
            case "finish":
                self.finish(who, data)
            case "requeue":
                self.requeue(who, True, data)
            case "beat":
                self.fall_silent(to)
                self.beat(who)
                self.look_for_the_lost(by)

    @precondition(lambda self: self.held)
    @rule(by=workers, back=st.sampled_from(["beats", "finishes", "crashes"]), data=st.data())
    def hesitate(self, by: int, back: str, data: st.DataObject) -> None:
        """Before the requeue, the worker sends a heartbeat, ends its trials, or is killed."""
        who = self.a_holder(data)
        self.fall_silent(who)
        self.look_for_the_lost(by)
        match back:
            case "beats":
                self.beat(who)
            case "finishes":
                self.finish(who, data)
            case "crashes" if who != by:
                self.crash(who)
        self.take_back(by, look=False)

    def a_holder(self, data: st.DataObject) -> int:
        holders = [i for i, person in enumerate(self.people) if any(t.holder is person for t in self.held.values())]
        return data.draw(st.sampled_from(holders or [0]))  # or all holders are dead

    @precondition(lambda self: any(trial.state == WAITING for trial in self.trials.values()))
    @rule(who=workers, times=st.integers(1, 4))
    def kill(self, who: int, times: int) -> None:
        """The first trial in the queue kills each worker that claims it: four deaths would be rare otherwise."""
        deadly = min(i for i, trial in self.trials.items() if trial.state == WAITING)
        for _ in range(times):
            if self.trials[deadly].state == WAITING:
                assert ids(self.people[who].storage.claim([deadly], 1)) == [deadly]
                self.take(self.people[who], deadly)
                self.people[who].storage.report(1, {deadly: 0.5})
                self.trials[deadly].curve[1] = 0.5
                self.crash(who)
                self.take_back(who, look=True)

    # --- Invariants ---

    @invariant()
    def everything_is_stored(self) -> None:
        self.compare(self.looker if next(self.steps) % 5 else self.plainly)
        assert all(person.storage.claimed_ids == set(person.claims) for person in self.people)
        with self.looker.engine.connect() as connection:
            beating = sa.select(HEARTBEATS.c.trial_id).join(TRIALS).where(TRIALS.c.study_id == self.study_id)
            assert Counter(connection.execute(beating).scalars()) == Counter(list(self.held))
        died = list(map(without_progress, self.trials.values()))
        assert all(deaths <= MAX_DEATHS + 1 for deaths in died)
        given_up = [trial for trial, deaths in zip(self.trials.values(), died, strict=True) if deaths > MAX_DEATHS]
        assert all(
            t.state == FAIL and t.user_attrs[FAILURE_REASON].startswith("its process died 4 times: ") for t in given_up
        )

    def compare(self, storage: RDBStorage) -> None:
        stored = storage.get_all_trials(self.study_id)
        assert [trial.number for trial in stored] == list(range(len(self.trials)))
        assert ids(stored) == list(self.trials)
        assert [seen(trial) for trial in stored] == [trial.shown() for trial in self.trials.values()]
        assert storage.get_study_user_attrs(self.study_id) == self.settled
        storage.remove_session()

    def teardown(self) -> None:
        try:
            if self.people:
                self.compare(self.plainly)
                self.probe()
        finally:
            # Opening a storage takes longer than an example, so live workers are used again.
            for person in self.people:
                person.storage.requeue(person.storage.claimed_ids)
                self.idle.append((person.storage, person.body))

    def probe(self) -> None:
        """Every worker tries to change every trial; a newly opened storage agrees with the model."""
        for person in self.people:
            lost = self.lost_to(person, self.trials)
            assert person.storage.report(PROBE_STEP, dict.fromkeys(self.trials, 0.5)) == lost
            for trial_id in set(self.trials) - lost:
                self.trials[trial_id].curve[PROBE_STEP] = 0.5
        fresh = open_storage(self.url)
        self.compare(fresh)
        fresh.close()


def test_any_interleaving_of_calls_agrees_with_the_model(url: str, times: int) -> None:
    idle: list[tuple[Storage, IdleProcess]] = []
    looker = open_storage(url)
    tried = settings(max_examples=EXAMPLES * times, stateful_step_count=STEPS, print_blob=True)
    with plain(looker.location.full_url) as plainly:
        try:
            run_state_machine_as_test(lambda: Interleavings(looker, plainly, url, idle), settings=tried)
        finally:
            looker.close()
            for storage, body in idle:
                storage.close()
                body.kill()
