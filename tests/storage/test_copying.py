"""Copies of a study between real databases: all rows are copied, nothing else changes, no copy is partial."""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
import sqlalchemy as sa
from blank_storages import Blank
from deadlines import deadline, wait_for
from forks import Fork
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna_dashboard import save_note
from optuna_dashboard._note import get_note_from_system_attrs, save_note_with_version
from optuna_dashboard.preferential._system_attrs import get_preferences, get_skipped_trial_ids, report_skip
from optuna_records import plain
from postgresql_server import Server
from test_postgresql import Relay

from hpo.errors import HpoError, StorageError, UnknownStudyError
from hpo.storage import CopyCounts, Storage, copy_study, load_study, open_storage, study_names
from hpo.storage.connections import read

MAXIMIZE, MINIMIZE = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
KINDS = ("sqlite", "postgresql")
SPACE = {
    "lr": FloatDistribution(1e-6, 1e-1, log=True),
    "units": IntDistribution(10, 100, step=10),
    "activation": CategoricalDistribution(("relu", None, True, 2.5)),
}
Pair = tuple[Storage, Storage]
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
def storages(blank_file: Blank, blank_database: Blank) -> Iterator[Callable[[str], Storage]]:
    """Create a storage with a study that is not copied, so that ids differ between storages."""
    blanks = {"sqlite": blank_file, "postgresql": blank_database}
    made = itertools.count(1)
    with ExitStack() as stack:

        def make(kind: str) -> Storage:
            storage = open_storage(stack.enter_context(blanks[kind]()))
            stack.callback(storage.close)
            other = storage.create_study("other", [MAXIMIZE], {"of": "another study"})
            storage.create_trials(other, [finished(0.5)] * (2 * next(made)))
            return storage

        yield make


@pytest.fixture(params=[KINDS, KINDS[::-1]], ids="-to-".join)
def pair(request: pytest.FixtureRequest, storages: Callable[[str], Storage]) -> Pair:
    """Yield a source and a target, of all kinds."""
    source, target = request.param
    return storages(source), storages(target)


def finished(value: float | None, **changes: Any) -> FrozenTrial:
    params = {"lr": (value or 0.1) / 10, "units": 30, "activation": None}
    return create_trial(**({"value": value, "params": params, "distributions": SPACE} | changes))


def trials_of_all_sorts() -> list[FrozenTrial]:
    start = datetime.datetime(2024, 2, 29, 23, 59, 59, 999999)
    timed = finished(math.inf, params={}, distributions={}, intermediate_values={0: math.nan, 2**31 - 1: -math.inf})
    timed.datetime_start, timed.datetime_complete = start, start + datetime.timedelta(microseconds=1)
    curve = {step: 1 / step for step in range(1, 51)}
    attrs = {"a": [1e308, 2**70, "\0\ud800é", {"": None}], "": True, "nan": math.nan}
    return [
        timed,
        finished(0.1 + 0.2, user_attrs=attrs, system_attrs={"hpo:worker": {"pid": 1}, "artifacts:1": "{}"}),
        finished(5e-324, state=TrialState.PRUNED, intermediate_values=curve, params={}, distributions={}),
        create_trial(state=TrialState.FAIL, user_attrs={"reason": "loss is NaN"}, system_attrs={"hpo:attempts": []}),
        create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": {"lr": 0.01}}),
    ]


def fill(storage: Storage, name: str = "digits") -> int:
    """Store a study with rows of every kind, and trial ids with gaps."""
    study_id = storage.create_study(name, [MINIMIZE], {"hpo:study": '{"name": "digits"}', "x": [math.nan, "ü"]})
    other = storage.create_study(f"between {name}", [MAXIMIZE], {})
    for trial in trials_of_all_sorts():
        storage.create_trials(study_id, [trial])
        storage.create_trials(other, [finished(0.25)])
    for k, value in enumerate((0.5, math.nan)):
        template = finished(None, state=TrialState.RUNNING, user_attrs={"seed": k}, system_attrs={"c": k})
        (running,) = storage.create_trials(study_id, [template])
        storage.report(1, {running._trial_id: value})
    study = load_study(storage, name)
    save_note(study, "A note.\n" * 500)
    storage.set_study_system_attr(study_id, "study:metric_names", ["val_loss"])
    storage.set_study_system_attr(study_id, "preference:values7", [[0, 1]])
    return study_id


def rows(storage: Storage, name: str = "digits") -> Rows:
    """Return all rows of a study in all tables, with trial numbers in place of trial ids, and no other ids."""
    found: Rows = {}
    with read(storage.engine) as connection:
        study = sa.select(models.StudyModel.study_id).filter_by(study_name=name)
        study_id = connection.execute(study).scalar_one()
        trials = models.TrialModel.__table__
        select = sa.select(trials.c.trial_id, trials.c.number).where(trials.c.study_id == study_id)
        numbers = {trial_id: number for trial_id, number in connection.execute(select)}
        assert sorted(numbers, key=numbers.__getitem__) == sorted(numbers)
        for table in models.BaseModel.metadata.sorted_tables:
            if table.name == "studies" or not {"study_id", "trial_id"} & set(table.columns.keys()):
                continue
            ours = table.c.study_id == study_id if "study_id" in table.c else table.c.trial_id.in_(numbers)
            left_out = {"study_id", *table.primary_key.columns.keys()}
            found[table.name] = [
                {
                    key: numbers[value] if key == "trial_id" else value
                    for key, value in row.items()
                    if key not in left_out
                }
                for row in connection.execute(sa.select(table).where(ours).order_by(*table.primary_key)).mappings()
            ]
    return found


def as_copied(found: Rows) -> Rows:
    """Return the rows expected in a copy: running trials wait, without the data of their attempt."""
    running = {trial["number"] for trial in found["trials"] if trial["state"] == TrialState.RUNNING}
    waiting = {"state": TrialState.WAITING, "datetime_start": None}
    return found | {
        "trials": [trial | waiting if trial["number"] in running else trial for trial in found["trials"]],
        "trial_intermediate_values": [
            row for row in found["trial_intermediate_values"] if row["trial_id"] not in running
        ],
        "trial_system_attributes": [
            row
            for row in found["trial_system_attributes"]
            if row["trial_id"] not in running or row["key"] != "hpo:worker"
        ],
        "trial_heartbeats": [],
    }


def everything(storage: Storage) -> dict[str, Rows]:
    return {name: rows(storage, name) for name in study_names(storage)}


@pytest.mark.parametrize("pair", list(itertools.product(KINDS, KINDS)), ids="-to-".join, indirect=True)
def test_every_row_of_a_study_is_copied_and_nothing_else_changes(pair: Pair) -> None:
    source, target = pair
    fill(source)
    before, there = everything(source), everything(target)
    assert all(before["digits"].values())
    assert copy_study(source, "digits", target) == CopyCounts(trials=7, running=2)
    assert everything(source) == before
    assert everything(target) == there | {"digits": as_copied(before["digits"])}


def test_a_copy_of_a_copy_equals_the_source(pair: Pair) -> None:
    source, target = pair
    fill(source)
    copy_study(source, "digits", target)
    assert copy_study(target, "digits", source, "back") == CopyCounts(trials=7, running=0)
    assert rows(source, "back") == rows(target) == as_copied(rows(source))


def test_later_changes_of_the_source_are_not_copied(pair: Pair) -> None:
    source, target = pair
    study_id = fill(source)
    before = rows(source)

    def meanwhile(value: Any) -> Any:
        source.create_trials(study_id, [finished(0.5)])
        source.set_study_system_attr(study_id, "late", 1)
        return value

    assert copy_study(source, "digits", target, user_attrs={"x": meanwhile}) == CopyCounts(trials=7, running=2)
    assert len(rows(source)["trials"]) == 8
    assert rows(target) == as_copied(before)


def test_a_copy_in_the_same_storage_has_another_name(storage: Storage) -> None:
    fill(storage)
    changed = {"hpo:study": lambda text: text.replace("digits", "again"), "absent": lambda value: value}
    copy_study(storage, "digits", storage, "again", changed)
    copied = as_copied(rows(storage))
    assert copied["study_user_attributes"][0]["value_json"] == r'"{\"name\": \"digits\"}"'
    copied["study_user_attributes"][0]["value_json"] = r'"{\"name\": \"again\"}"'
    assert rows(storage, "again") == copied


def test_studies_of_any_size_are_copied(pair: Pair) -> None:
    """Many objectives and no trial; more trials than one query reads, and more rows than are in memory at once."""
    source, target = pair
    source.create_new_study([MINIMIZE, MAXIMIZE, MINIMIZE], "empty")
    assert copy_study(source, "empty", target) == CopyCounts(0, 0)
    assert target.get_study_directions(target.get_study_id_from_name("empty")) == [MINIMIZE, MAXIMIZE, MINIMIZE]
    many = source.create_study("many", [MAXIMIZE], {})
    source.create_trials(many, [finished(k / 1e4, intermediate_values={1: k, 2: -k, 3: 0.5}) for k in range(1, 602)])
    assert copy_study(source, "many", target) == CopyCounts(601, 0)
    assert rows(target, "many") == rows(source, "many")


names = itertools.count()
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
# SQLite stores -0.0 as 0.0.
numbers = st.floats().map(lambda value: value + 0.0)


def test_unusual_values_are_copied_unchanged(pair: Pair, times: int) -> None:
    source, target = pair

    @settings(max_examples=6 * times)
    @given(
        attrs=st.dictionaries(texts, st.floats() | st.text() | st.integers() | st.none(), max_size=3),
        curve=st.dictionaries(st.integers(-(2**31), 2**31 - 1), numbers, max_size=4),
        value=numbers.filter(lambda value: not math.isnan(value)),
        start=st.none() | st.datetimes(datetime.datetime(1990, 1, 1), datetime.datetime(2100, 1, 1)),
    )
    def arrive(attrs: dict[str, Any], curve: dict[int, float], value: float, start: datetime.datetime | None) -> None:
        name = f"study {next(names)}"
        study_id = source.create_study(name, [MAXIMIZE], attrs)
        trial = finished(value, params={}, distributions={}, intermediate_values=curve, user_attrs=attrs)
        trial.datetime_start = start
        source.create_trials(study_id, [trial])
        copy_study(source, name, target)
        assert repr(rows(target, name)) == repr(rows(source, name))

    arrive()


def test_references_to_trial_ids_are_converted(pair: Pair) -> None:
    source, target = pair
    study_id = fill(source)
    ids = [trial._trial_id for trial in source.get_all_trials(study_id)]
    for number in (0, 1):
        save_note_with_version(source, study_id, ids[number], 1, f"on trial {number}")
    report_skip(study_id, ids[3], source)
    source.set_study_system_attr(study_id, f"dashboard:artifacts:{ids[1]}:f00", '{"filename": "a.png"}')
    source.set_study_system_attr(study_id, "NSGAIISampler:parent:2", [ids[4], ids[0], 999_999])
    source.set_study_system_attr(study_id, "dashboard:999999:note_ver", 1)
    copy_study(source, "digits", target)
    copied = load_study(target, "digits")
    new = [trial._trial_id for trial in copied.trials]
    assert new != ids
    attrs = target.get_study_system_attrs(copied._study_id)
    notes = [get_note_from_system_attrs(attrs, trial_id)["body"] for trial_id in (None, *new[:3])]
    assert notes == ["A note.\n" * 500, "on trial 0", "on trial 1", ""]
    assert get_skipped_trial_ids(attrs) == [new[3]]
    assert get_preferences(attrs) == [[0, 1]]
    assert attrs[f"dashboard:artifacts:{new[1]}:f00"] == '{"filename": "a.png"}'
    assert attrs["NSGAIISampler:parent:2"] == [new[4], new[0]]
    assert "dashboard:999999:note_ver" not in attrs
    assert copied.metric_names == ["val_loss"]


def test_optuna_continues_with_the_copy(pair: Pair) -> None:
    source, target = pair
    fill(source)
    copy_study(source, "digits", target)
    with plain(target.location.full_url) as by_optuna:
        study = optuna.load_study(study_name="digits", storage=by_optuna)
        study.optimize(lambda trial: trial.suggest_float("lr", 1e-6, 1e-1, log=True), n_trials=4)
        *_, enqueued, first, second, new = study.trials
        assert enqueued.value == enqueued.params["lr"] == 0.01
        assert [trial.value for trial in (first, second)] == [0.01, 0.01]
        assert (new.number, new.state) == (7, TrialState.COMPLETE)


def test_an_existing_study_of_that_name_is_not_changed(pair: Pair) -> None:
    source, target = pair
    fill(source)
    target.create_study("digits", [MAXIMIZE], {"precious": 1})
    before = everything(target)
    with pytest.raises(HpoError, match=r"a study named 'digits' exists already, and is not changed; .* --name$"):
        copy_study(source, "digits", target)
    assert everything(target) == before
    copy_study(source, "digits", target, "digits-2")
    assert everything(target) == before | {"digits-2": as_copied(rows(source))}


def test_two_urls_of_one_file_are_the_same_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to("hpo.db")
    storage = open_storage("sqlite:///hpo.db")
    fill(storage)
    before = everything(storage)
    for url in (f"sqlite:///{tmp_path}/./hpo.db", "sqlite+pysqlite:///hpo.db", "sqlite:///link.db"):
        same = open_storage(url)
        with pytest.raises(HpoError, match="a study named 'digits' exists already"):
            copy_study(storage, "digits", same)
        same.close()
    assert everything(storage) == before
    storage.close()


def test_copying_an_unknown_study_does_not_change_the_target(pair: Pair) -> None:
    source, target = pair
    before = everything(target)
    with pytest.raises(UnknownStudyError, match="no study named 'digits'"):
        copy_study(source, "digits", target)
    assert everything(target) == before


def test_a_value_that_the_server_cannot_store_is_one_line_and_copies_nothing(
    storages: Callable[[str], Storage],
) -> None:
    source, target = storages("sqlite"), storages("postgresql")
    fill(source)
    (last,) = source.create_trials(source.get_study_id_from_name("digits"), [finished(0.5)])
    with source.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type) "
            f"VALUES ({last._trial_id}, {2**31}, 0.5, 'FINITE')"
        )
    before = everything(target)
    with pytest.raises(StorageError, match=r"database error: .*out of range") as caught:
        copy_study(source, "digits", target)
    assert str(caught.value).isprintable()
    assert everything(target) == before


def test_a_restart_of_the_server_during_a_copy_is_retried(server: Server, pair: Pair) -> None:
    source, target = pair
    fill(source)
    there, restarts = everything(target), iter([True])

    def restart(value: Any) -> Any:
        if next(restarts, False):
            server.restart("immediate")
        return value

    copied = copy_study(source, "digits", target, user_attrs={"x": restart})
    assert copied == CopyCounts(trials=7, running=2)
    assert next(restarts, None) is None
    assert everything(target) == there | {"digits": as_copied(rows(source))}


def test_a_commit_with_a_lost_answer_copies_once(storages: Callable[[str], Storage], server: Server) -> None:
    source, direct = storages("sqlite"), storages("postgresql")
    fill(source)
    there = everything(direct)
    relay = Relay(server.port)
    try:
        target = open_storage(direct.location.full_url.replace(str(server.port), str(relay.port)))
        relay.armed = True
        assert copy_study(source, "digits", target) == CopyCounts(trials=7, running=2)
        assert relay.lost == 1
        with pytest.raises(HpoError, match="already"):
            copy_study(source, "digits", target)
        target.close()
    finally:
        relay.close()
    assert everything(direct) == there | {"digits": as_copied(rows(source))}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_copy_leaves_nothing(kind: str, storages: Callable[[str], Storage]) -> None:
    source, target = storages("postgresql"), storages(kind)
    fill(source)
    there = everything(target)
    command = ["copy", "digits", "--from", source.location.full_url, "--to", target.location.full_url]
    url = source.location.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        # The copy reads this value last, and fails there.
        connection.execute("LOCK TABLE study_system_attributes IN ACCESS EXCLUSIVE MODE")
        process = Fork(command)
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        wait_for(lambda: connection.execute(waits).fetchone() != (0,) or process.poll() is not None)
        assert process.poll() is None
        process.kill()
        process.wait(deadline())
    assert everything(target) == there
    copy_study(source, "digits", target)
    assert everything(target) == there | {"digits": as_copied(rows(source))}
