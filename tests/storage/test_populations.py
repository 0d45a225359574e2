"""Calls for whole populations: rows as of plain Optuna, correct states, and independent processes."""

from __future__ import annotations

import copy as copy_module
import json
import math
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from blank_storages import Blank
from forks import Fork
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna_records import plain, texts

from hpo.storage import Storage, TrialFields, TrialResult, load_study, open_storage
from hpo.storage.location import locate
from hpo.storage.workers import this_worker

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
RUNNING, WAITING = TrialState.RUNNING, TrialState.WAITING
SPACE = {
    "lr": FloatDistribution(1e-6, 1e-2, log=True),
    "units": IntDistribution(10, 100, step=10),
    "activation": CategoricalDistribution(("relu", "tanh")),
}
CURVE = {"train_loss": [2.0, 1.5], "val_loss": [2.1, math.nan]}


def running(lr: float = 1e-3, **changes: Any) -> FrozenTrial:
    params = {"lr": lr, "units": 30, "activation": "tanh"}
    return create_trial(**({"state": RUNNING, "params": params, "distributions": SPACE} | changes))


def ids(trials: list[FrozenTrial]) -> list[int]:
    return [trial._trial_id for trial in trials]


def states(storage: Storage, study_id: int) -> list[TrialState]:
    return [trial.state for trial in storage.get_all_trials(study_id)]


def rows(url: str) -> dict[str, list[dict[str, Any]]]:
    """Return every row of every table; of times only whether they exist, and their format."""
    engine = sa.create_engine(locate(url).full_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
        selects = {table: connection.exec_driver_sql(f"SELECT * FROM {table} ORDER BY 1") for table in tables}
        found = {table: [dict(row) for row in select.mappings()] for table, select in selects.items()}
    for row in found["trials"] + found["trial_heartbeats"]:
        for column in row.keys() & {"datetime_start", "datetime_complete", "heartbeat"}:
            row[column] = row[column] and len(str(row[column]))
    if engine.dialect.name == "postgresql":
        # PostgreSQL uses up a number for an updated row, too: same order, numbers with gaps.
        for table in found.keys() - {"studies", "trials", "alembic_version"}:
            found[table] = [dict(list(row.items())[1:]) for row in found[table]]
    return found


def test_a_population_writes_the_rows_that_plain_optuna_writes(blank: Blank) -> None:
    templates = [running(10**-k, user_attrs={"seed": k}, system_attrs={"x:y": [k]}) for k in range(3, 6)]
    curves = [[0.1, 0.5], [math.nan, math.inf], [-math.inf, 0.2]]
    endings = [(COMPLETE, (0.5,)), (FAIL, ()), (PRUNED, (math.inf,))]
    with blank() as by_optuna, blank() as by_us:
        with closing(open_storage(by_us)) as ours:
            study_id = ours.create_new_study([StudyDirection.MAXIMIZE], "s")
            trial_ids = ids(ours.create_trials(study_id, templates))
            for step in (1, 2):
                ours.report(step, {i: curve[step - 1] for i, curve in zip(trial_ids, curves, strict=True)})
            ours.report(2, {trial_ids[0]: 0.5})
            attrs = {"seed": 9, "reason": "r"}
            ours.finish(
                [TrialResult(i, *end, attrs, {"hpo:curve": CURVE}) for i, end in zip(trial_ids, endings, strict=True)]
            )
            ours.create_trials(study_id, [running(state=WAITING)])
        with plain(by_optuna) as theirs:
            study_id = theirs.create_new_study([StudyDirection.MAXIMIZE], "s")
            trial_ids = [plainly_created(theirs, study_id, template) for template in templates]
            for step in (1, 2):
                for i, curve in zip(trial_ids, curves, strict=True):
                    theirs.set_trial_intermediate_value(i, step, curve[step - 1])
            for i, (state, values) in zip(trial_ids, endings, strict=True):
                theirs.set_trial_user_attr(i, "seed", 9)
                theirs.set_trial_user_attr(i, "reason", "r")
                theirs.set_trial_system_attr(i, "hpo:curve", CURVE)
                theirs.set_trial_state_values(i, state, values or None)
            theirs.create_new_trial(study_id, running(state=WAITING))
        expected = rows(by_optuna)
        expected["trial_heartbeats"] = []  # hpo deletes the heartbeat when a trial ends
        assert rows(by_us) == expected


def plainly_created(storage: optuna.storages.RDBStorage, study_id: int, template: FrozenTrial) -> int:
    """Create a trial with plain Optuna; a running one also has a worker and a heartbeat."""
    if template.state != RUNNING:
        return storage.create_new_trial(study_id, template)
    template = copy_module.copy(template)
    template.system_attrs = template.system_attrs | {"hpo:worker": this_worker().to_json()}
    trial_id = storage.create_new_trial(study_id, template)
    storage.record_heartbeat(trial_id)
    return trial_id


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
attrs = st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), json_values)


@st.composite
def histories(draw: st.DrawFn) -> FrozenTrial:
    """Draw a trial in any state, with any data."""
    state = draw(st.sampled_from(TrialState))
    names = draw(st.lists(st.sampled_from(sorted(SPACE)), unique=True))
    params = {"lr": draw(st.floats(1e-6, 1e-2)), "units": draw(st.integers(1, 10)) * 10, "activation": "relu"}
    value = st.floats(allow_nan=False).map(_no_negative_zero)
    return create_trial(
        state=state,
        value=draw(value if state == COMPLETE else st.none() | value if state == PRUNED else st.none()),
        params={name: params[name] for name in names},
        distributions={name: SPACE[name] for name in names},
        user_attrs=draw(attrs),
        system_attrs=draw(attrs),
        intermediate_values=draw(
            st.dictionaries(st.integers(0, 2**31 - 1), st.floats().map(_no_negative_zero), max_size=4)
        ),
    )


def _no_negative_zero(value: float) -> float:
    """SQLite stores -0.0 as 0.0."""
    return value + 0.0


def test_any_trials_are_written_and_read_as_plain_optuna_does(blank: Blank, times: int) -> None:
    with blank() as by_optuna, blank() as by_us, plain(by_optuna) as theirs, plain(by_us) as reader:
        ours = open_storage(by_us)

        @settings(max_examples=8 * times)
        @given(templates=st.lists(histories(), max_size=6))
        def the_same(templates: list[FrozenTrial]) -> None:
            for storage in (theirs, ours):
                storage.create_new_study([StudyDirection.MAXIMIZE], "s")
            study_id = ours.get_study_id_from_name("s")
            try:
                created = ours.create_trials(study_id, templates)
                for template in templates:
                    plainly_created(theirs, study_id, template)
                read = ours.get_all_trials(study_id)
                assert texts(read) == texts(reader.get_all_trials(study_id)) == texts(created)
                assert [repr(ours.get_trial(i)) for i in ids(read)] == [repr(trial) for trial in read]
                assert rows(by_us) == rows(by_optuna)
            finally:
                for storage in (theirs, ours, reader):
                    storage.remove_session()
                for storage in (theirs, ours):
                    storage.delete_study(study_id)

        the_same()
        ours.close()


def test_new_trials_are_numbered_after_the_existing_ones(storage: Storage, study_id: int) -> None:
    other = storage.create_new_study([StudyDirection.MAXIMIZE], "other")
    storage.create_trials(other, [running()])
    storage.create_new_trial(study_id)
    created = storage.create_trials(study_id, [running(k * 1e-3) for k in range(1, 4)])
    assert [trial.number for trial in created] == [1, 2, 3]
    assert storage.create_new_trial(study_id) > created[-1]._trial_id
    assert [trial.number for trial in storage.get_all_trials(study_id)] == [0, 1, 2, 3, 4]
    assert storage.create_trials(study_id, []) == []


def test_created_trials_equal_the_stored_ones_and_are_not_their_templates(storage: Storage, study_id: int) -> None:
    template = running()
    first, second = storage.create_trials(study_id, [template, template])
    assert [first, second] == storage.get_all_trials(study_id)
    first.user_attrs["x"] = 1
    assert not template.user_attrs
    assert not second.user_attrs


def test_a_running_trial_without_a_start_time_starts_now(storage: Storage, study_id: int) -> None:
    unstarted = running()
    unstarted.datetime_start = None
    started, waiting = storage.create_trials(study_id, [unstarted, running(state=WAITING)])
    assert started.datetime_start is not None
    assert storage.get_trial(started._trial_id).datetime_start == started.datetime_start
    assert waiting.datetime_start is None


def test_a_population_is_created_whole_or_not_at_all(storage: Storage, study_id: int) -> None:
    with pytest.raises(TypeError):
        storage.create_trials(study_id, [running(), running(user_attrs={"x": object()})])
    assert storage.get_all_trials(study_id) == []
    with pytest.raises(KeyError):
        storage.create_trials(study_id + 1, [running()])


def test_only_running_trials_can_be_reported_and_finished(storage: Storage, study_id: int) -> None:
    a, b, waiting = ids(storage.create_trials(study_id, [running(), running(), running(state=WAITING)]))
    assert storage.finish([TrialResult(a, COMPLETE, (0.7,))]) == set()
    assert storage.report(1, {a: 0.1, b: 0.2, waiting: 0.3, 999: 0.4}) == {a, waiting, 999}
    assert storage.finish([TrialResult(i, FAIL, (), {"reason": "late"}) for i in (a, b, waiting)]) == {a, waiting}
    first, second, third = storage.get_all_trials(study_id)
    assert (first.state, first.value, first.user_attrs, first.intermediate_values) == (COMPLETE, 0.7, {}, {})
    assert (second.state, second.user_attrs, second.intermediate_values) == (FAIL, {"reason": "late"}, {1: 0.2})
    assert (third.state, third.intermediate_values) == (WAITING, {})
    assert storage.report(1, {}) == storage.finish([]) == set()


def test_a_step_reported_twice_is_updated(storage: Storage, study_id: int) -> None:
    (trial_id,) = ids(storage.create_trials(study_id, [running()]))
    storage.report(1, {trial_id: math.nan})
    storage.report(1, {trial_id: 0.25})
    assert storage.get_trial(trial_id).intermediate_values == {1: 0.25}


def test_a_requeued_trial_has_its_parameters_only(storage: Storage, study_id: int) -> None:
    kept, back, done = ids(storage.create_trials(study_id, [running(user_attrs={"seed": k}) for k in range(3)]))
    storage.report(1, {kept: 0.1, back: 0.2, done: 0.3})
    storage.finish([TrialResult(done, COMPLETE, (0.3,))])
    assert storage.requeue([back, done]) == {done}
    trial = storage.get_trial(back)
    assert (trial.state, trial.datetime_start, trial.intermediate_values) == (WAITING, None, {})
    assert trial.params == {"lr": 1e-3, "units": 30, "activation": "tanh"}
    assert trial.user_attrs == {"seed": 1}
    assert storage.get_trial(kept).intermediate_values == {1: 0.1}
    assert states(storage, study_id) == [RUNNING, WAITING, COMPLETE]


def test_only_waiting_trials_are_claimed_first_ones_first(storage: Storage, study_id: int) -> None:
    first, busy, second, third = ids(
        storage.create_trials(study_id, [running(state=state) for state in (WAITING, RUNNING, WAITING, WAITING)])
    )
    before = storage.get_trial(busy)
    claimed = storage.claim([third, second, busy, first, 999], 2)
    assert ids(claimed) == [first, second]
    assert claimed == [storage.get_trial(first), storage.get_trial(second)]
    assert all(trial.datetime_start is not None for trial in claimed)
    assert storage.get_trial(busy) == before
    assert ids(storage.claim([first, second, third], 9)) == [third]
    assert storage.claim([first, second, third], 9) == storage.claim([third], 0) == storage.claim([], 1) == []
    assert storage.claimed_ids == {first, busy, second, third}


def test_only_the_process_that_claimed_a_trial_can_change_it(storage: Storage, study_id: int, url: str) -> None:
    (trial_id,) = ids(storage.create_trials(study_id, [running()]))
    other = open_storage(url)
    assert other.report(1, {trial_id: 0.1}) == {trial_id}
    assert other.finish([TrialResult(trial_id, COMPLETE, (0.1,))]) == {trial_id}
    assert other.requeue([trial_id]) == {trial_id}
    assert storage.report(1, {trial_id: 0.2}) == set()
    assert storage.requeue([trial_id]) == set()
    assert ids(other.claim([trial_id], 1)) == [trial_id]
    assert storage.report(2, {trial_id: 0.3}) == {trial_id}
    assert storage.finish([TrialResult(trial_id, FAIL)]) == {trial_id}
    assert other.finish([TrialResult(trial_id, COMPLETE, (0.4,))]) == set()
    assert (storage.get_trial(trial_id).value, storage.get_trial(trial_id).intermediate_values) == (0.4, {})
    assert other.claimed_ids == storage.claimed_ids == set()
    other.close()


def test_a_number_used_by_another_process_is_not_used_again(storage: Storage, study_id: int, url: str) -> None:
    other = open_storage(url)
    assert len(storage.create_trials(study_id, [running(), running()], first=0)) == 2
    assert other.create_trials(study_id, [running()], first=0) == []
    assert other.claimed_ids == set()
    (created,) = other.create_trials(study_id, [running()], first=2)
    assert created.number == 2
    assert storage.create_trials(study_id, [running()], first=4) == []
    other.close()


def test_a_study_attribute_is_set_once(storage: Storage, study_id: int, url: str) -> None:
    other = open_storage(url)
    assert storage.set_study_attr_if_absent(study_id, "hpo:run", {"precision": "bfloat16"}) == {"precision": "bfloat16"}
    assert other.set_study_attr_if_absent(study_id, "hpo:run", {"precision": "float32"}) == {"precision": "bfloat16"}
    storage.set_study_attrs(study_id, {"hpo:run": 1, "x": [2]})
    assert other.get_study_user_attrs(study_id) == {"hpo:run": 1, "x": [2]}
    other.close()


def test_only_new_and_ended_trials_and_requested_fields_are_read(storage: Storage, study_id: int) -> None:
    a, b = ids(storage.create_trials(study_id, [running(user_attrs={"seed": 1}), running()]))
    storage.report(1, {a: 0.5})
    storage.finish([TrialResult(a, COMPLETE, (0.5,), {}, {"hpo:curve": CURVE, "rung_1": 2})])
    (c,) = ids(storage.create_trials(study_id, [running(state=WAITING)]))
    light = TrialFields(curves=False, user_attrs=False, system_attrs="rung_")
    first, *others = storage.read_trials(study_id, -1, (), light)
    assert (first.value, first.params["lr"], first.intermediate_values) == (0.5, 1e-3, {})
    assert (first.user_attrs, first.system_attrs) == ({}, {"rung_1": 2})
    assert ids(others) == [b, c]
    assert ids(storage.read_trials(study_id, b, [a, b], light)) == [a, c]
    assert storage.read_trials(study_id, c, [], light) == []
    assert storage.read_trials(study_id, -1, (), TrialFields()) == storage.get_all_trials(study_id)


def test_a_result_that_could_not_be_read_back_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        TrialResult(1, COMPLETE, (0.5, math.nan))
    with pytest.raises(ValueError, match="needs a value"):
        TrialResult(1, COMPLETE)
    with pytest.raises(ValueError, match="not a final state"):
        TrialResult(1, WAITING)


def test_two_results_of_one_trial_are_refused(storage: Storage, study_id: int) -> None:
    (trial_id,) = ids(storage.create_trials(study_id, [running()]))
    with pytest.raises(ValueError, match="two results of one trial"):
        storage.finish([TrialResult(trial_id, FAIL), TrialResult(trial_id, COMPLETE, (1.0,))])
    assert states(storage, study_id) == [RUNNING]


def test_a_loaded_study_sees_later_writes_of_the_storage(storage: Storage, study_id: int) -> None:
    study = load_study(storage, "digits")
    assert study.trials == []
    a, b = ids(storage.create_trials(study_id, [running(), running()]))
    assert [trial.state for trial in study.trials] == [RUNNING, RUNNING]
    storage.report(1, {a: 0.4, b: 0.5})
    storage.finish([TrialResult(b, COMPLETE, (0.5,))])
    assert [trial.intermediate_values for trial in study.trials] == [{1: 0.4}, {1: 0.5}]
    storage.requeue([a])
    assert [trial.state for trial in study.trials] == [WAITING, COMPLETE]
    assert study.best_trial.number == 1
    asked = study.ask()
    assert (asked.number, asked.suggest_float("lr", 1e-6, 1e-2, log=True)) == (0, 1e-3)
    study.tell(asked, 0.9)
    assert study.best_value == 0.9
    assert [trial.number for trial in study.get_trials(states=[COMPLETE])] == [0, 1]


def test_more_trials_than_one_query_takes_are_read_in_order(storage: Storage, study_id: int) -> None:
    storage.create_trials(study_id, [create_trial(value=float(k)) for k in range(1203)])
    assert [trial.value for trial in storage.get_all_trials(study_id, deepcopy=False)] == list(range(1203))
    some = storage._get_trials(study_id, None, {3, 700, 1100}, 1200)
    assert [trial.number for trial in some] == [2, 699, 1099, 1200, 1201, 1202]
    with pytest.raises(KeyError):
        storage.get_all_trials(study_id + 1)
    with pytest.raises(KeyError):
        storage.get_trial(5000)


def test_a_study_with_trials_can_be_deleted(storage: Storage, study_id: int, url: str) -> None:
    (trial_id,) = ids(storage.create_trials(study_id, [running(user_attrs={"seed": 1})]))
    storage.report(1, {trial_id: 0.5})
    storage.finish([TrialResult(trial_id, COMPLETE, (0.5,), {}, {"hpo:curve": CURVE})])
    optuna.delete_study(study_name="digits", storage=storage)
    left = {table for table, found in rows(url).items() if found}
    assert left == {"alembic_version", "version_info"}


def test_threads_share_a_storage(storage: Storage, study_id: int) -> None:
    def population(_: int) -> list[int]:
        created = storage.create_trials(study_id, [running() for _ in range(8)])
        storage.report(1, dict.fromkeys(ids(created), 0.5))
        storage.finish([TrialResult(trial_id, COMPLETE, (0.5,)) for trial_id in ids(created)])
        storage.remove_session()
        return [storage.get_trial(trial_id).number for trial_id in ids(created)]

    with ThreadPoolExecutor(4) as pool:
        numbers = [number for of_one in pool.map(population, range(20)) for number in of_one]
    assert sorted(numbers) == list(range(160))
    assert states(storage, study_id) == [COMPLETE] * 160


SHARE = """
import json, sys
from optuna.trial import TrialState, create_trial
from hpo.storage import TrialResult, open_storage

storage, waiting = open_storage(sys.argv[1]), json.loads(sys.argv[2])
study_id = storage.get_study_id_from_name("digits")
print("ready", flush=True)
sys.stdin.readline()
numbers = []
for _ in range(5):
    created = storage.create_trials(study_id, [create_trial(state=TrialState.RUNNING)] * 8)
    numbers += [trial.number for trial in created]
    ids = [trial._trial_id for trial in created]
    for step in range(1, 4):
        assert storage.report(step, dict.fromkeys(ids, step / 10)) == set()
    assert storage.finish([TrialResult(trial_id, TrialState.COMPLETE, (0.3,)) for trial_id in ids]) == set()
claimed = [trial._trial_id for _ in waiting for trial in storage.claim(waiting, 1)]
print(json.dumps([numbers, claimed]))
"""
"""Script of one process: create, report and finish populations, and claim from a common queue."""


def test_processes_share_a_study_without_lost_or_duplicate_trials(storage: Storage, study_id: int, url: str) -> None:
    waiting = ids(storage.create_trials(study_id, [running(state=WAITING) for _ in range(30)]))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with ExitStack() as stack:
        given = [url, json.dumps(waiting)]
        processes = [stack.enter_context(Fork(given, script=SHARE, **pipes)) for _ in range(3)]  # type: ignore[arg-type]
        assert [process.stdout and process.stdout.readline() for process in processes] == ["ready\n"] * 3
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()  # now all processes start
        numbers, claimed = zip(*(json.loads(process.communicate()[0]) for process in processes), strict=True)
    assert sorted(number for of_one in numbers for number in of_one) == list(range(30, 150))
    assert sorted(trial_id for of_one in claimed for trial_id in of_one) == waiting
    trials = storage.get_all_trials(study_id)
    assert [trial.number for trial in trials] == list(range(150))
    assert all(trial.intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3} for trial in trials[30:])
    assert all(trial.state == RUNNING for trial in trials[:30])
