"""Health checks of a storage on both databases; the checks change nothing."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import psycopg
import pytest
import sqlalchemy as sa
from deadlines import deadline
from optuna.trial import create_trial
from optuna_records import COMPLETE, MAXIMIZE, RUNNING, WAITING, ids, running
from postgresql_server import Server

from hpo.errors import StorageError
from hpo.results.doctor.storage import storage_findings
from hpo.storage import Storage, open_storage
from hpo.storage.health import RunningWithoutHeartbeat, StorageHealth, delete_orphans_sql, renumber_sql, skew
from hpo.storage.location import locate

PAGE = 4096

Asked = Callable[[str], StorageHealth]


@pytest.fixture
def ask() -> Iterator[Asked]:
    with contextlib.ExitStack() as opened:
        yield lambda url: opened.enter_context(contextlib.closing(StorageHealth(locate(url))))


def execute(url: str, *statements: str) -> None:
    engine = sa.create_engine(locate(url).full_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def with_trials(url: str, count: int, study: str = "digits") -> Storage:
    storage = open_storage(url)
    storage.create_trials(storage.create_study(study, [MAXIMIZE], {}), [create_trial(value=0.5) for _ in range(count)])
    return storage


def test_connectivity_names_and_times_the_database(url: str, ask: Asked) -> None:
    answer = ask(url).connectivity()
    assert answer.kind in ("SQLite", "PostgreSQL")
    assert answer.kind.lower() == url.partition(":")[0]
    assert int(answer.version.split(".")[0]) >= 3
    assert 0 < answer.round_trip_s < deadline()
    assert 0 < answer.connect_s < deadline()
    if answer.kind == "SQLite":
        assert answer.skew_s is None
        assert answer.version == sqlite3.sqlite_version
    else:
        assert answer.skew_s is not None
        assert abs(answer.skew_s) <= answer.round_trip_s / 2 + 0.01  # the same machine's clock


def test_the_servers_clock_is_compared_with_the_middle_of_the_round_trip(
    server_url: str, ask: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert skew(100.0, 107.0, 104.0) == 5.0
    now = time.time
    monkeypatch.setattr("hpo.storage.health.time.time", lambda: now() - 40)
    answer = ask(server_url).connectivity()
    assert answer.skew_s is not None
    assert abs(answer.skew_s - 40) <= answer.round_trip_s / 2 + 0.01


def test_checks_create_and_change_nothing(new_file_url: str, tmp_path: Path, ask: Asked) -> None:
    file = tmp_path / "hpo.db"
    file.touch()
    assert ask(new_file_url).schema().revision == ""
    assert file.read_bytes() == b""
    optuna.storages.RDBStorage(new_file_url).engine.dispose()
    before = file.read_bytes()
    health = ask(new_file_url)
    everything(health)
    state = health.file_state()
    assert state is not None
    assert (state.journal_mode, state.size) == ("delete", len(before))
    assert state.free > 0
    health.close()
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["hpo.db"]


def test_checks_create_no_tables_on_a_server(new_server_url: str, server: Server, ask: Asked) -> None:
    assert ask(new_server_url).schema() == ask(new_server_url).schema()
    assert ask(new_server_url).schema().revision == ""
    database = new_server_url.rpartition("/")[2]
    assert server.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", database) == [(0,)]


def everything(health: StorageHealth) -> None:
    health.connectivity(), health.schema(), health.damage(), health.file_state(), health.connections()
    health.numbering_problems(), health.running(), health.running_without_heartbeat()


def test_the_connection_of_checks_cannot_write(url: str, ask: Asked) -> None:
    with_trials(url, 1).close()
    health = ask(url)
    everything(health)
    with (
        pytest.raises((StorageError, sa.exc.DBAPIError), match=r"read-?only|cannot be written") as caught,
        health.engine.connect() as connection,
    ):
        connection.exec_driver_sql("DELETE FROM trials")
    assert "read" in f"{caught.value} {caught.value.__cause__}"
    assert health.numbering_problems() == (1, [])


def test_a_complete_schema_lacks_nothing(url: str, ask: Asked) -> None:
    schema = ask(url).schema()
    assert (schema.revision, schema.missing) == ("v3.2.0.a", ())


def test_missing_tables_and_columns_are_named(url: str, ask: Asked) -> None:
    execute(url, "DROP TABLE trial_heartbeats", "ALTER TABLE trials DROP COLUMN datetime_complete")
    assert set(ask(url).schema().missing) == {"trial_heartbeats", "trials.datetime_complete"}


def test_the_schema_of_another_optuna_is_refused(url: str, ask: Asked) -> None:
    execute(url, "UPDATE alembic_version SET version_num = 'v9.0.0'")
    with pytest.raises(StorageError, match="newer Optuna"):
        ask(url).schema()


def root_page(file: Path, name: str) -> int:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA page_size").fetchone() == (PAGE,)
        return int(connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [name]).fetchone()[0])


def overwrite(file: Path, name: str, start: int, content: bytes) -> None:
    """Overwrite bytes of the first page of a table or index."""
    at = (root_page(file, name) - 1) * PAGE + start
    whole = file.read_bytes()
    file.write_bytes(whole[:at] + content + whole[at + len(content) :])


def test_an_undamaged_file_has_no_damage(file_url: str, ask: Asked) -> None:
    with_trials(file_url, 20).close()
    damage = ask(file_url).damage()
    assert damage is not None
    assert (damage.problems, damage.orphans, damage.whole) == ((), {}, True)


@pytest.mark.parametrize("name", ["trials", "trial_values"])
def test_a_damaged_page_is_found(file_url: str, tmp_path: Path, ask: Asked, name: str) -> None:
    with_trials(file_url, 20).close()
    overwrite(tmp_path / "hpo.db", name, PAGE // 2, b"\xa5" * (PAGE // 2))
    try:
        damage = ask(file_url).damage()
        said = damage.problems if damage else ()
    except StorageError as error:
        said = (str(error),)
    assert said
    assert all(text.isprintable() for text in said)


def test_an_index_that_disagrees_with_its_table_is_found_in_a_file_of_moderate_size(
    file_url: str, tmp_path: Path, ask: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_trials(file_url, 20).close()
    file = tmp_path / "hpo.db"
    # The page's header has the number of cells at offset 3: remove two of twenty.
    overwrite(file, "ix_trials_study_id", 3, b"\x00\x12")
    damage = ask(file_url).damage()
    assert damage is not None
    assert "wrong # of entries in index ix_trials_study_id" in damage.problems
    monkeypatch.setattr("hpo.storage.health.FULL_CHECK_BYTES", 0)
    damage = ask(file_url).damage()
    assert damage is not None
    assert not damage.whole
    assert "wrong # of entries in index ix_trials_study_id" not in damage.problems


def test_orphaned_rows_are_counted_and_deleted_by_the_sql(file_url: str, tmp_path: Path, ask: Asked) -> None:
    storage = with_trials(file_url, 5)
    storage.set_study_user_attr(storage.get_study_id_from_name("digits"), "key", 1)
    storage.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "hpo.db")) as connection, connection:
        connection.execute("CREATE TABLE notes (trial INTEGER REFERENCES trials (trial_id))")
        connection.execute("INSERT INTO notes VALUES (99)")
        connection.execute("DELETE FROM trials WHERE number >= 3")
        connection.execute("INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (9, 'k', '1')")
    damage = ask(file_url).damage()
    assert damage is not None
    assert damage.orphans == {("trial_values", "trials"): 2, ("study_user_attributes", "studies"): 1}
    with contextlib.closing(sqlite3.connect(tmp_path / "hpo.db")) as connection, connection:
        connection.executescript(delete_orphans_sql(damage.orphans))
    damage = ask(file_url).damage()
    assert damage is not None
    assert damage.orphans == {}
    storage = open_storage(file_url)
    assert [trial.value for trial in storage.get_all_trials(storage.get_study_id_from_name("digits"))] == [0.5] * 3
    assert storage.get_study_user_attrs(storage.get_study_id_from_name("digits")) == {"key": 1}
    storage.close()


def test_a_server_has_no_file(server_url: str, ask: Asked) -> None:
    assert ask(server_url).damage() is None
    assert ask(server_url).file_state() is None


def test_the_size_of_a_file_includes_its_log(file_url: str, tmp_path: Path, ask: Asked) -> None:
    storage = with_trials(file_url, 50)
    state = ask(file_url).file_state()
    assert state is not None
    assert state.journal_mode == "wal"
    assert state.size == sum((tmp_path / name).stat().st_size for name in ("hpo.db", "hpo.db-wal"))
    assert state.free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    storage.close()


def test_connections_are_counted(server: Server, server_url: str, file_url: str, ask: Asked) -> None:
    assert ask(file_url).connections() is None
    before = ask(server_url).connections()
    assert before is not None
    with contextlib.ExitStack() as opened:
        for _ in range(10):
            opened.enter_context(psycopg.connect(server_url))
        after = ask(server_url).connections()
    assert after is not None
    assert after[0] >= before[0] + 8  # other connections may have been closed
    assert after[1] == before[1] == 200 - 3


def test_trials_numbered_in_order_are_fine(url: str, ask: Asked) -> None:
    assert ask(url).numbering_problems() == (0, [])
    with_trials(url, 3, "a").close()
    with_trials(url, 0, "empty").close()
    assert ask(url).numbering_problems() == (2, [])


def test_duplicate_missing_and_null_numbers_are_found(url: str, ask: Asked) -> None:
    for study in ("double", "gap", "fine", "none", "far"):
        with_trials(url, 4, study).close()
    of = "WHERE study_id = (SELECT study_id FROM studies WHERE study_name = '{}') AND number = {}"
    execute(
        url,
        "UPDATE trials SET number = 1 " + of.format("double", 2),
        "UPDATE trials SET number = 5 " + of.format("gap", 3),
        "UPDATE trials SET number = NULL " + of.format("none", 3),
        "UPDATE trials SET number = 2000000000 " + of.format("far", 0),
    )
    studies, wrong = ask(url).numbering_problems()
    assert studies == 5
    found = {each.study: (each.trials, each.duplicates, each.missing) for each in wrong}
    assert found == {
        "double": (4, (1,), (2,)),
        "gap": (4, (), (3, 4)),
        "none": (4, (), ()),
        "far": (4, (), (0, 4, 5, 6, 7, 8)),
    }
    execute(url, renumber_sql(each.study_id for each in wrong if each.study != "far"))
    assert [each.study for each in ask(url).numbering_problems()[1]] == ["far"]
    storage = open_storage(url)
    for study in ("double", "gap", "none"):
        numbers = [trial.number for trial in storage.get_all_trials(storage.get_study_id_from_name(study))]
        assert numbers == [0, 1, 2, 3]
    storage.close()


def test_running_trials_with_and_without_a_heartbeat_are_found(url: str, ask: Asked) -> None:
    storage = with_trials(url, 1)
    study_id = storage.get_study_id_from_name("digits")
    (watched,) = ids(storage.create_trials(study_id, [running()]))
    asked = optuna.load_study(study_name="digits", storage=storage).ask()
    storage.create_new_trial(study_id, create_trial(state=RUNNING))
    ((study, trial),) = ask(url).running()
    assert (study, trial.trial_id, trial.number, trial.worker) == ("digits", watched, 1, storage.worker)
    assert trial.orphaned is None
    unwatched = ask(url).running_without_heartbeat()
    assert [(each.study, each.number) for each in unwatched] == [("digits", 2), ("digits", 3)]
    since = unwatched[0].started
    assert since is not None
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    assert abs((now - since).total_seconds()) < deadline()
    assert unwatched[1] == RunningWithoutHeartbeat("digits", 3, unwatched[1].started)
    storage.set_trial_state_values(asked._trial_id, COMPLETE, [1.0])
    assert [each.number for each in ask(url).running_without_heartbeat()] == [3]
    storage.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE trial_system_attributes SET value_json = '{\"host\": 1' WHERE key = 'hpo:worker'",
        "UPDATE trial_system_attributes SET value_json = '{\"host\": 1}' WHERE key = 'hpo:worker'",
    ],
)
def test_rows_that_cannot_be_read_are_one_line(url: str, ask: Asked, statement: str) -> None:
    storage = with_trials(url, 0)
    storage.create_trials(storage.get_study_id_from_name("digits"), [running()])
    storage.close()
    execute(url, statement)
    with pytest.raises(StorageError, match="some rows cannot be read") as caught:
        ask(url).running()
    assert str(caught.value).isprintable()


def test_the_doctor_finds_no_problem_in_a_healthy_storage(url: str) -> None:
    with_trials(url, 3).close()
    found = {finding.check: finding.verdict.value for finding in storage_findings(url, fix=True)}
    of_one = {"integrity", "journal", "disk"} if url.startswith("sqlite") else {"connections"}
    checks = {"storage", "schema", "trial numbers", "running trials", "other trials", "clock"} | of_one
    assert found == dict.fromkeys(checks, "ok")


def test_the_doctor_requeues_orphaned_trials(url: str) -> None:
    storage = with_trials(url, 1)
    study_id = storage.get_study_id_from_name("digits")
    storage.create_trials(study_id, [running(), running()])
    execute(url, "UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    wrong = [finding for finding in storage_findings(url, fix=False) if finding.verdict != "ok"]
    assert [finding.check for finding in wrong] == ["running trials"]
    assert [trial.state for trial in storage.get_all_trials(study_id)] == [COMPLETE, RUNNING, RUNNING]
    assert all(finding.verdict == "ok" for finding in storage_findings(url, fix=True))
    assert [trial.state for trial in storage.get_all_trials(study_id)] == [COMPLETE, WAITING, WAITING]
    assert all(finding.verdict == "ok" for finding in storage_findings(url, fix=False))
    storage.close()


def test_an_invalid_query_is_one_line(url: str, ask: Asked) -> None:
    with_trials(url, 1).close()
    execute(url, "ALTER TABLE trials RENAME COLUMN number TO numbered")
    with pytest.raises(StorageError, match=r"database error: .*number") as caught:
        ask(url).numbering_problems()
    assert str(caught.value).isprintable()


def test_a_user_without_permission_to_read_is_one_line(server: Server, server_url: str, ask: Asked) -> None:
    with_trials(server_url, 1).close()
    server.sql("CREATE ROLE bob LOGIN PASSWORD 's3cret'")
    health = ask(server_url.replace("hpo@", "bob:s3cret@"))
    try:
        with pytest.raises(StorageError, match="permission denied") as caught:
            health.numbering_problems()
    finally:
        health.close()
        server.sql("DROP ROLE bob")
    assert str(caught.value).isprintable()
    assert "s3cret" not in str(caught.value)


def test_an_unreachable_server_is_not_retried(ask: Asked, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StorageError, match="Connection refused") as caught:
        ask("postgresql://me:s3cret@127.0.0.1:1/hpo").connectivity()
    assert caplog.text == "", "who waits says so"
    assert "s3cret" not in str(caught.value)
