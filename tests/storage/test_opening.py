"""Opening a storage: settings, errors, and many processes that open a new one at the same time."""

from __future__ import annotations

import contextlib
import os
import pickle
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from forks import Fork
from optuna.study import StudyDirection

from hpo.errors import StorageError
from hpo.storage import Storage, open_storage, study_names
from hpo.storage.connections import BUSY_TIMEOUT_S, read
from hpo.storage.location import locate

NOBODY = 65534


def refused(url: str) -> str:
    """Return the error message, one line, of opening the storage."""
    with pytest.raises(StorageError) as caught:
        open_storage(url)
    message = str(caught.value)
    assert message.startswith(f"{url}: ")
    assert message.isprintable()
    return message


def pragma(storage: Storage, name: str) -> Any:
    with storage.engine.connect() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()


def sql(url: str, *statements: str) -> list[Any]:
    """Run SQL statements and return the rows of the last."""
    engine = sa.create_engine(locate(url).full_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        answers = [connection.exec_driver_sql(statement) for statement in statements]
        return [tuple(row) for row in answers[-1]] if answers[-1].returns_rows else []


def tables(url: str) -> set[str]:
    return set(sa.inspect(sa.create_engine(locate(url).full_url, poolclass=sa.NullPool)).get_table_names())


def test_a_connection_has_the_settings(file_storage: Storage) -> None:
    assert pragma(file_storage, "journal_mode") == "wal"
    assert pragma(file_storage, "synchronous") == 1  # NORMAL
    assert pragma(file_storage, "foreign_keys") == 1
    assert pragma(file_storage, "busy_timeout") == BUSY_TIMEOUT_S * 1000


def test_a_storage_that_plain_optuna_made_opens_and_keeps_its_studies(new_url: str) -> None:
    plain = optuna.storages.RDBStorage(locate(new_url).full_url)
    plain.create_new_study([StudyDirection.MINIMIZE], "old")
    plain.engine.dispose()
    storage = open_storage(new_url)
    assert [study.study_name for study in storage.get_all_studies()] == ["old"]
    storage.close()


def test_a_file_with_a_rollback_journal_gets_a_write_ahead_log(new_file_url: str) -> None:
    optuna.storages.RDBStorage(new_file_url).engine.dispose()
    assert sql(new_file_url, "PRAGMA journal_mode") == [("delete",)]
    open_storage(new_file_url).close()
    assert sql(new_file_url, "PRAGMA journal_mode") == [("wal",)]


def test_plain_optuna_opens_a_storage_that_hpo_made(new_url: str) -> None:
    storage = open_storage(new_url)
    plain = optuna.storages.RDBStorage(locate(new_url).full_url)
    assert plain.get_current_version() == plain.get_head_version() == storage.get_head_version()
    assert plain.get_all_versions() == storage.get_all_versions()
    plain.engine.dispose()
    storage.close()


def test_the_tables_are_those_that_optuna_makes(new_file_url: str, tmp_path: Path) -> None:
    open_storage(new_file_url).close()
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


def test_a_pickled_storage_opens_its_own_tuned_connections(file_storage: Storage) -> None:
    study_id = file_storage.create_new_study([StudyDirection.MAXIMIZE], "digits")
    other = pickle.loads(pickle.dumps(file_storage))
    assert pragma(other, "foreign_keys") == 1
    assert other.get_study_name_from_id(study_id) == "digits"
    other.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
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


def test_a_damaged_database_is_refused(file_url: str, tmp_path: Path) -> None:
    file = tmp_path / "hpo.db"
    whole = file.read_bytes()
    file.write_bytes(whole[:16] + b"\xff" * 2000 + whole[2016:])
    refused(file_url)
    file.write_bytes(whole[:5000])
    assert "damaged" in refused(file_url)


@contextlib.contextmanager
def without_rights() -> Iterator[Path]:
    """Yield a folder, without the privileges of root, which would ignore its permissions."""
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


def test_a_read_only_file_is_refused_and_not_changed() -> None:
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


def test_another_schema_of_optuna_is_refused_and_not_changed(url: str) -> None:
    cases = {
        "UPDATE alembic_version SET version_num = 'v2.6.0.a'": "older Optuna (schema v2.6.0.a, needed: v3.2.0.a)",
        "UPDATE alembic_version SET version_num = 'v9.0.0'": "newer Optuna (schema v9.0.0, needed: v3.2.0.a)",
        "DROP TABLE alembic_version": "older Optuna (schema unknown, needed: v3.2.0.a)",
    }
    for statement, problem in cases.items():
        sql(url, "DROP TABLE IF EXISTS trial_heartbeats", statement)
        assert problem in refused(url)
        assert "trial_heartbeats" not in tables(url)


def test_unrelated_tables_are_left_alone(new_url: str) -> None:
    sql(new_url, "CREATE TABLE notes (text VARCHAR)", "INSERT INTO notes VALUES ('mine')")
    open_storage(new_url).close()
    assert sql(new_url, "SELECT text FROM notes") == [("mine",)]


def test_a_locked_storage_is_one_line_after_the_wait(file_storage: Storage, file_url: str, tmp_path: Path) -> None:
    pragma(file_storage, "busy_timeout = 20")
    with contextlib.closing(sqlite3.connect(tmp_path / "hpo.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        for write in (
            lambda: file_storage.claim([1], 1),
            lambda: file_storage.create_new_study([StudyDirection.MAXIMIZE], "s"),
        ):
            with pytest.raises(StorageError, match="locked by another process") as caught:
                write()
            assert str(caught.value).isprintable()
        # Reading, and opening a storage with tables, need no lock.
        assert file_storage.get_all_studies() == []
        open_storage(file_url).close()


def test_queries_of_a_read_transaction_see_the_same_state(storage: Storage, url: str) -> None:
    count = "SELECT count(*) FROM studies"
    other = open_storage(url)
    with read(storage.engine) as connection:
        assert connection.exec_driver_sql(count).scalar_one() == 0
        other.create_new_study([StudyDirection.MAXIMIZE], "s")
        assert connection.exec_driver_sql(count).scalar_one() == 0
    assert len(storage.get_all_studies()) == 1
    other.close()


def test_a_full_disk_is_one_line_and_stored_data_is_not_lost(file_storage: Storage) -> None:
    study_id = file_storage.create_new_study([StudyDirection.MAXIMIZE], "digits")
    kept = file_storage.create_trials(study_id, [optuna.trial.create_trial(value=1.0)])
    pragma(file_storage, f"max_page_count = {pragma(file_storage, 'page_count')}")
    large = optuna.trial.create_trial(value=2.0, user_attrs={"text": "x" * 100_000})
    with pytest.raises(StorageError, match="the disk is full"):
        file_storage.create_trials(study_id, [large] * 8)
    with pytest.raises(StorageError, match="the disk is full"):
        file_storage.set_study_user_attr(study_id, "text", "x" * 100_000)
    assert [trial.values for trial in file_storage.get_all_trials(study_id)] == [[1.0]]
    assert file_storage.get_trial(kept[0]._trial_id).number == 0


def test_optuna_logs_nothing(new_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    storage = open_storage(new_url)
    storage.create_new_study([StudyDirection.MAXIMIZE], "quiet")
    storage.close()
    assert capfd.readouterr() == ("", "")


OPEN_EACH = """
import sys
from hpo.storage import open_storage

for line in sys.stdin:
    storage = open_storage(line.strip())
    print(len(storage.get_all_studies()), flush=True)
    storage.close()
"""


def test_processes_that_open_a_new_storage_at_once_find_all_tables(new_url: str) -> None:
    others = [f"{new_url}{i}" for i in range(3)] if new_url.startswith("sqlite") else []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(Fork([], script=OPEN_EACH, **pipes)) for _ in range(3)]  # type: ignore[arg-type]
        for url in [new_url, *others]:
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{url}\n")
            for process in processes:
                assert process.stdin is not None
                process.stdin.flush()
            assert [process.stdout and process.stdout.readline() for process in processes] == ["0\n"] * 3


def test_locating_an_open_storage_keeps_its_locks(file_storage: Storage, file_url: str) -> None:
    """Closing any handle of a file ends the process's locks on it; another process would then delete the log."""
    file_storage.create_new_study([StudyDirection.MAXIMIZE], "digits")
    locate(file_url)
    look = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM studies'); c.close()"
    subprocess.run([sys.executable, "-c", look, str(file_storage.location.file)], check=True)
    assert Path(f"{file_storage.location.file}-wal").exists()
    file_storage.create_new_study([StudyDirection.MAXIMIZE], "another")
    assert study_names(open_storage(file_url)) == ["digits", "another"]
