"""The registry of workers: a process is listed from its first heartbeat to its end; no search depends on it."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa
from deadlines import deadline, wait_for
from idle_processes import IdleProcess
from optuna_records import MAXIMIZE, ids, plain, row_counts, running, study_with_all_rows
from postgresql_server import Server

from hpo.storage import (
    RegisteredWorker,
    Storage,
    heartbeats,
    open_storage,
    registered_workers,
    running_trials,
    study_names,
)
from hpo.storage.connections import TransientError, write
from hpo.storage.workers import (
    WORKERS,
    Worker,
    record_worker_heartbeat,
    register_worker,
    this_worker,
    unregister_worker,
)

ELSEWHERE = Worker("elsewhere", 1, 0.0, "another machine", "cuda", "theirs")


@pytest.fixture
def idle_process() -> Iterator[IdleProcess]:
    idle_process = IdleProcess()
    yield idle_process
    idle_process.kill()


def entered(storage: Storage, worker: Worker) -> None:
    with write(storage.engine) as connection:
        register_worker(connection, worker)


def workers(storage: Storage) -> list[Worker]:
    return [each.worker for each in registered_workers(storage)]


def age(storage: Storage, worker: Worker, **hours: int) -> None:
    """Make the registration or the last heartbeat of a process so many hours older."""
    for name, by in hours.items():
        column = WORKERS.c[name]
        earlier = {
            "sqlite": sa.func.datetime(column, f"-{by} hours"),
            "postgresql": column - sa.text(f"interval '{by} hours'"),
        }[storage.engine.dialect.name]
        with storage.engine.begin() as connection:
            connection.execute(sa.update(WORKERS).where(WORKERS.c.worker_key == worker.key).values({name: earlier}))


def test_a_new_storage_has_no_registered_workers(storage: Storage) -> None:
    assert registered_workers(storage) == []
    assert "hpo_workers" not in sa.inspect(storage.engine).get_table_names(), "who looks does not write"


def test_a_process_is_registered_while_it_sends_heartbeats(storage: Storage, other: Storage) -> None:
    with heartbeats(storage):
        (found,) = registered_workers(other)
        assert found.worker == this_worker() == storage.worker
        # SQLite's clock has whole seconds.
        assert -1 <= found.silent_s <= found.age_s <= deadline()
    assert registered_workers(other) == []


def test_a_process_without_trials_is_registered(storage: Storage) -> None:
    with heartbeats(storage):
        assert running_trials(storage) == []
        assert workers(storage) == [storage.worker]


@pytest.mark.parametrize("failure", [RuntimeError("a defect"), KeyboardInterrupt(), SystemExit(1)])
def test_a_process_is_unregistered_however_its_work_ends(failure: BaseException, storage: Storage) -> None:
    def work() -> None:
        with heartbeats(storage):
            assert len(registered_workers(storage)) == 1
            raise failure

    with pytest.raises(type(failure)):
        work()
    assert registered_workers(storage) == []


def test_a_device_that_is_set_later_is_registered(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("hpo.storage.heartbeats"), "HEARTBEAT_S", 0.01)
    with heartbeats(storage):
        storage.set_device("cuda:3")
        wait_for(lambda: [worker.device for worker in workers(storage)] == ["cuda:3"])
        assert len(registered_workers(storage)) == 1


def test_a_heartbeat_resets_the_silence_but_not_the_age(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("hpo.storage.heartbeats"), "HEARTBEAT_S", 0.01)
    with heartbeats(storage):
        age(storage, storage.worker, since=5, seen=2)
        wait_for(lambda: registered_workers(storage)[0].silent_s < 3600)
        (found,) = registered_workers(storage)
    assert 5 * 3600 - 1 <= found.age_s <= 5 * 3600 + deadline()


def test_registered_workers_are_sorted_oldest_first(storage: Storage, idle_process: IdleProcess) -> None:
    near, far = idle_process.worker("cpu"), ELSEWHERE
    for worker in (near, far):
        entered(storage, worker)
    age(storage, near, since=1)
    age(storage, far, since=3, seen=2)
    found = registered_workers(storage)
    assert [each.worker for each in found] == [far, near]
    assert [round(each.age_s / 3600) for each in found] == [3, 1]
    assert [round(each.silent_s / 3600) for each in found] == [2, 0]


def test_a_killed_process_is_not_listed(storage: Storage, idle_process: IdleProcess) -> None:
    entered(storage, idle_process.worker())
    assert workers(storage) == [idle_process.worker()]
    idle_process.kill()
    assert registered_workers(storage) == []


def test_another_process_with_the_same_pid_is_another_worker(storage: Storage) -> None:
    earlier = replace(this_worker(), started=this_worker().started - 100)
    entered(storage, earlier)
    with heartbeats(storage):
        assert workers(storage) == [storage.worker]
        with write(storage.engine) as connection:
            unregister_worker(connection, earlier)
        assert workers(storage) == [storage.worker]


def test_registering_deletes_workers_without_heartbeat_for_a_day(storage: Storage) -> None:
    long_ago, lately = ELSEWHERE, replace(ELSEWHERE, pid=2)
    for worker in (long_ago, lately):
        entered(storage, worker)
    age(storage, long_ago, since=30, seen=25)
    age(storage, lately, since=30, seen=23)
    assert workers(storage) == [long_ago, lately]
    with heartbeats(storage):
        assert workers(storage) == [lately, storage.worker]


def test_a_deleted_worker_is_registered_again_by_its_heartbeat(storage: Storage) -> None:
    with write(storage.engine) as connection:
        register_worker(connection, ELSEWHERE)
        unregister_worker(connection, ELSEWHERE)
        record_worker_heartbeat(connection, ELSEWHERE)
    assert workers(storage) == [ELSEWHERE]


def test_unregistering_an_unknown_worker_does_nothing(storage: Storage) -> None:
    entered(storage, ELSEWHERE)
    for _ in range(2):
        with write(storage.engine) as connection:
            unregister_worker(connection, replace(ELSEWHERE, pid=2))
            unregister_worker(connection, ELSEWHERE)
    assert registered_workers(storage) == []


def test_concurrent_registrations_create_one_table(
    storage: Storage, other: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    people = [replace(ELSEWHERE, pid=pid) for pid in range(8)]
    barrier = threading.Barrier(len(people))

    def come(worker: Worker) -> None:
        barrier.wait(deadline())
        entered(storage if worker.pid % 2 else other, worker)

    with ThreadPoolExecutor(len(people)) as pool:
        list(pool.map(come, people, timeout=deadline()))
    assert sorted(worker.pid for worker in workers(storage)) == list(range(8))
    assert caplog.text == ""


def test_a_process_is_registered_until_its_last_heartbeat_thread_ends(storage: Storage, other: Storage) -> None:
    with heartbeats(storage):
        with heartbeats(other):
            assert workers(storage) == [storage.worker]
        assert workers(storage) == [storage.worker]
    assert registered_workers(storage) == []


def test_the_registry_does_not_disturb_plain_optuna(storage: Storage) -> None:
    with heartbeats(storage):
        study_with_all_rows(storage, "digits")
        with plain(storage.location.full_url) as by_optuna:
            assert len(by_optuna.get_all_studies()) == 1
            by_optuna.delete_study(by_optuna.get_study_id_from_name("digits"))
        assert row_counts(storage).keys() == {"version_info"}
        assert workers(storage) == [storage.worker]


def test_a_storage_with_a_registry_is_opened_again(storage: Storage) -> None:
    with heartbeats(storage):
        again = open_storage(storage.location.full_url)
        assert workers(again) == [storage.worker]
        again.close()


def test_deleting_a_study_does_not_change_the_registry(storage: Storage, other: Storage) -> None:
    study_id = storage.create_study("digits", [MAXIMIZE], {})
    with heartbeats(storage):
        storage.create_trials(study_id, [running()])
        other.delete_study(study_id)
        assert workers(other) == [storage.worker]


def test_a_user_without_permission_to_create_tables_can_work(server: Server, server_storage: Storage) -> None:
    """The tables can belong to an administrator: no search depends on the registry."""
    study_id = server_storage.create_study("digits", [MAXIMIZE], {})
    database = str(server_storage.engine.url.database)
    server.sql("CREATE ROLE bob LOGIN")
    try:
        server.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC", database)
        server.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO bob", database)
        server.sql("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO bob", database)
        access = server.data / "pg_hba.conf"
        before = access.read_text()
        access.write_text(f"host all bob 127.0.0.1/32 trust\n{before}")
        server.sql("SELECT pg_reload_conf()")
        try:
            wait_for(lambda: opens(server.url(database, "bob")))
            storage = open_storage(server.url(database, "bob"))
            try:
                with heartbeats(storage):
                    assert ids(storage.create_trials(study_id, [running()])) != []
            finally:
                storage.close()
        finally:
            access.write_text(before)
            server.sql("SELECT pg_reload_conf()")
    finally:
        server.sql("DROP OWNED BY bob", database)
        server.sql("DROP ROLE bob")


def opens(url: str) -> bool:
    try:
        open_storage(url).close()
    except TransientError:
        return False
    return True


def test_a_lost_server_at_the_end_does_not_hide_an_exception(server: Server, server_storage: Storage) -> None:
    def work() -> None:
        with heartbeats(server_storage):
            server.stop()
            server_storage.retry_policy.stop.set()
            raise RuntimeError("what happened")

    with pytest.raises(RuntimeError, match="what happened"):
        work()
    server.start()
    assert study_names(server_storage) == []
    assert [each.worker for each in registered_workers(server_storage)] == [server_storage.worker]


def test_a_registered_worker_has_all_its_facts() -> None:
    assert str(RegisteredWorker(ELSEWHERE, 1.0, 0.0).worker) == "process 1 on elsewhere"
