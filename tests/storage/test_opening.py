"""Opening a storage: its settings, what cannot be opened, and many processes opening a new one at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sqlite3
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection

from hpo.errors import StorageError
from hpo.storage import Storage, open_storage
from hpo.storage.connections import BUSY_TIMEOUT_S, read

NOBODY = 65534


def refused(url: str) -> str:
    """The one line with which the storage is refused."""
    with pytest.raises(StorageError) as caught:
        open_storage(url)
    message = str(caught.value)
    assert message.startswith(f"{url}: ")
    assert message.isprintable()
    return message


def pragma(storage: Storage, name: str) -> Any:
    with storage.engine.connect() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()


def sql(file: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def test_a_connection_has_the_settings(storage: Storage) -> None:
    assert pragma(storage, "journal_mode") == "wal"
    assert pragma(storage, "synchronous") == 1  # NORMAL
    assert pragma(storage, "foreign_keys") == 1
    assert pragma(storage, "busy_timeout") == BUSY_TIMEOUT_S * 1000


def test_a_storage_that_plain_optuna_made_opens_and_keeps_its_studies(url: str) -> None:
    plain = optuna.storages.RDBStorage(url)
    plain.create_new_study([StudyDirection.MINIMIZE], "old")
    plain.engine.dispose()
    storage = open_storage(url)
    assert pragma(storage, "journal_mode") == "wal"
    assert [study.study_name for study in storage.get_all_studies()] == ["old"]
    storage.close()


def test_plain_optuna_opens_a_storage_that_hpo_made(url: str) -> None:
    open_storage(url).close()
    plain = optuna.storages.RDBStorage(url)
    assert plain.get_current_version() == plain.get_head_version()
    plain.engine.dispose()


def test_the_tables_are_those_that_optuna_makes(url: str, tmp_path: Path) -> None:
    open_storage(url).close()
    optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/plain.db").engine.dispose()
    schemas = []
    for name in ("hpo.db", "plain.db"):
        with contextlib.closing(sqlite3.connect(tmp_path / name)) as connection:
            tables = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
            version = connection.execute("SELECT * FROM version_info, alembic_version").fetchall()
            schemas.append((tables, version))
    assert schemas[0] == schemas[1]


def test_odd_file_names_are_file_names(tmp_path: Path) -> None:
    # In a URL, %20 is a blank and %25 a percent sign.
    written = {
        "a{b}.db": "a{b}.db",
        "a%20b.db": "a b.db",
        "50%.db": "50%.db",
        "5%2520.db": "5%20.db",
        "ä b.db": "ä b.db",
    }
    for name, file in written.items():
        storage = open_storage(f"sqlite:///{tmp_path}/{name}")
        storage.create_new_study([StudyDirection.MAXIMIZE], "s")
        storage.close()
        assert (tmp_path / file).is_file()
    assert {file.name for file in tmp_path.iterdir()} == set(written.values())


def test_a_pickled_storage_opens_its_own_tuned_connections(storage: Storage, study_id: int) -> None:
    other = pickle.loads(pickle.dumps(storage))
    assert pragma(other, "foreign_keys") == 1
    assert other.get_study_name_from_id(study_id) == "digits"
    other.close()


def test_what_is_no_database_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, but long enough to be read as one\n" * 100)
    assert "is not an SQLite database" in refused(f"sqlite:///{tmp_path}/text.db")
    assert (tmp_path / "text.db").read_text().startswith("not a database")
    assert "is a directory" in refused(f"sqlite:///{tmp_path}")
    os.mkfifo(tmp_path / "pipe")
    assert "is not an ordinary file" in refused(f"sqlite:///{tmp_path}/pipe")
    assert "does not exist" in refused(f"sqlite:///{tmp_path}/none/hpo.db")
    (tmp_path / "link.db").symlink_to(tmp_path / "nowhere" / "x.db")
    refused(f"sqlite:///{tmp_path}/link.db")


def test_an_empty_file_becomes_a_storage(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    open_storage(f"sqlite:///{tmp_path}/empty.db").close()


def test_a_damaged_database_is_refused(url: str, tmp_path: Path) -> None:
    open_storage(url).close()
    file = tmp_path / "hpo.db"
    whole = file.read_bytes()
    file.write_bytes(whole[:16] + b"\xff" * 2000 + whole[2016:])
    refused(url)
    file.write_bytes(whole[:5000])
    assert "damaged" in refused(url)


@contextlib.contextmanager
def without_rights() -> Iterator[Path]:
    """A folder of its own, and in the block no more rights than its permissions give: root would have them all."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        if os.geteuid() != 0:
            yield Path(folder)
            return
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


def give_up_rights() -> None:
    if os.geteuid() == 0:
        os.seteuid(NOBODY)


def test_what_is_read_only_is_refused_and_left_as_it_is() -> None:
    with without_rights() as folder:
        open_storage(f"sqlite:///{folder}/hpo.db").close()
        (folder / "hpo.db").chmod(0o444)
        (folder / "closed").mkdir(mode=0o555)
        (folder / "open").mkdir()
        (folder / "open").chmod(0o777)
        (folder / "open" / "hpo.db").write_bytes((folder / "hpo.db").read_bytes())
        (folder / "open" / "hpo.db").chmod(0o444)
        before = (folder / "hpo.db").read_bytes()
        give_up_rights()
        assert "the file is read-only" in refused(f"sqlite:///{folder}/open/hpo.db")
        assert "is read-only; name a file elsewhere" in refused(f"sqlite:///{folder}/closed/hpo.db")
        assert (folder / "hpo.db").read_bytes() == before


def test_another_schema_of_optuna_is_refused_and_left_as_it_is(url: str, tmp_path: Path) -> None:
    open_storage(url).close()
    file = tmp_path / "hpo.db"
    cases = {
        "UPDATE alembic_version SET version_num = 'v2.6.0.a'": "older Optuna (schema v2.6.0.a, needed: v3.2.0.a)",
        "UPDATE alembic_version SET version_num = 'v9.0.0'": "newer Optuna (schema v9.0.0, needed: v3.2.0.a)",
        "DROP TABLE alembic_version": "older Optuna (schema unknown, needed: v3.2.0.a)",
    }
    for statement, problem in cases.items():
        sql(file, "DROP TABLE IF EXISTS trial_heartbeats", statement)
        assert problem in refused(url)
        with contextlib.closing(sqlite3.connect(file)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        assert "trial_heartbeats" not in tables


def test_tables_of_others_are_left_alone(url: str, tmp_path: Path) -> None:
    sql(tmp_path / "hpo.db", "CREATE TABLE notes (text)", "INSERT INTO notes VALUES ('mine')")
    open_storage(url).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "hpo.db")) as connection:
        assert connection.execute("SELECT text FROM notes").fetchall() == [("mine",)]


def test_a_locked_storage_is_one_line_after_the_wait(storage: Storage, url: str, tmp_path: Path) -> None:
    pragma(storage, "busy_timeout = 20")
    with contextlib.closing(sqlite3.connect(tmp_path / "hpo.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        for write in (
            lambda: storage.start([1]),
            lambda: storage.create_new_study([StudyDirection.MAXIMIZE], "s"),
        ):
            with pytest.raises(StorageError, match="locked by another process") as caught:
                write()
            assert str(caught.value).isprintable()
        # Reading, and opening a storage whose tables are there, need no lock.
        assert storage.get_all_studies() == []
        open_storage(url).close()


def test_several_queries_share_one_view(storage: Storage, url: str) -> None:
    count = "SELECT count(*) FROM studies"
    other = open_storage(url)
    with read(storage.engine) as connection:
        assert connection.exec_driver_sql(count).scalar_one() == 0
        other.create_new_study([StudyDirection.MAXIMIZE], "s")
        assert connection.exec_driver_sql(count).scalar_one() == 0
    assert len(storage.get_all_studies()) == 1
    other.close()


def test_a_full_disk_is_one_line_and_what_was_stored_stays(storage: Storage, study_id: int) -> None:
    kept = storage.create_trials(study_id, [optuna.trial.create_trial(value=1.0)])
    pragma(storage, f"max_page_count = {pragma(storage, 'page_count')}")
    large = optuna.trial.create_trial(value=2.0, user_attrs={"text": "x" * 100_000})
    with pytest.raises(StorageError, match="the disk is full"):
        storage.create_trials(study_id, [large] * 8)
    with pytest.raises(StorageError, match="the disk is full"):
        storage.set_study_user_attr(study_id, "text", "x" * 100_000)
    assert [trial.values for trial in storage.get_all_trials(study_id)] == [[1.0]]
    assert storage.get_trial(kept[0]._trial_id).number == 0


def test_a_server_that_is_not_there_is_one_line_without_the_password() -> None:
    with pytest.raises(StorageError) as caught:
        open_storage("postgresql://ann:s3cret@127.0.0.1:1/hpo")
    assert str(caught.value).startswith("postgresql://ann:***@127.0.0.1:1/hpo: ")
    assert str(caught.value).isprintable()
    assert "s3cret" not in str(caught.value)


def test_optuna_says_nothing(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    storage = open_storage(url)
    storage.create_new_study([StudyDirection.MAXIMIZE], "quiet")
    storage.close()
    assert capfd.readouterr() == ("", "")


def open_together(url: str, barrier: Any) -> int:
    barrier.wait()
    storage = open_storage(url)
    studies = len(storage.get_all_studies())
    storage.close()
    return studies


def test_processes_that_open_a_new_storage_at_once_all_find_it_whole(tmp_path: Path) -> None:
    processes = 3
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(processes, mp_context=context) as pool,
    ):
        for i in range(5):
            barrier = manager.Barrier(processes)
            opened = [pool.submit(open_together, f"sqlite:///{tmp_path}/{i}.db", barrier) for _ in range(processes)]
            assert [future.result(timeout=60) for future in opened] == [0] * processes
