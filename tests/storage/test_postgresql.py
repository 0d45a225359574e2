"""Database servers: passwords, TLS, permissions, restarts, and commits whose answer is lost."""

from __future__ import annotations

import dataclasses
import logging
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import forks
import pytest
from deadlines import deadline, wait_for
from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from postgresql_server import Server

from hpo.errors import StorageError
from hpo.storage import RunningTrial, Storage, TrialResult, open_storage, requeue_orphaned, running_trials
from hpo.storage.connections import TransientError
from hpo.storage.location import locate

PASSWORD = "s3cret/@:%"
IN_A_URL = "s3cret%2F%40%3A%25"
MAXIMIZE = StudyDirection.MAXIMIZE


@pytest.fixture
def ann(server: Server) -> Iterator[str]:
    """A database whose owner needs a password."""
    server.sql(f"CREATE ROLE ann LOGIN PASSWORD '{PASSWORD}'")
    with server.database() as name:
        server.sql(f"ALTER DATABASE {name} OWNER TO ann")
        yield server.url(name, "ann")
    server.sql("DROP ROLE ann")


def with_password(url: str, password: str = IN_A_URL) -> str:
    return url.replace("ann@", f"ann:{password}@")


def refused(url: str) -> str:
    """Return the error message, one line; neither it nor its traceback contains a password."""
    with pytest.raises(StorageError) as caught:
        open_storage(url)
    message = str(caught.value)
    assert message.startswith("postgresql://")
    assert message.isprintable()
    everything = "".join(traceback.format_exception(caught.value)) + repr(locate(url))
    assert "s3cret" not in everything
    return message


def test_the_password_comes_from_the_url_the_environment_or_a_file(
    ann: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_storage(with_password(ann)).close()
    passfile = tmp_path / "passfile"
    escaped = PASSWORD.replace(":", "\\:")
    passfile.write_text(f"127.0.0.1:{server.port}:*:ann:{escaped}\n")
    passfile.chmod(0o600)
    open_storage(f"{ann}?passfile={passfile}").close()
    assert "no password supplied" in refused(ann)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    open_storage(ann).close()


def test_a_password_is_neither_logged_nor_printed(
    ann: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    storage = open_storage(with_password(ann))
    storage.create_study("digits", [MAXIMIZE], {})
    assert "s3cret" not in repr(storage.location) + storage.shown
    storage.close()
    refused(with_password(ann, "s3cret-but-wrong"))
    refused(with_password(ann) + "?sslmode=require")
    refused(f"{ann}?password=s3cret-but-wrong")
    assert "s3cret" not in caplog.text + "".join(capfd.readouterr())


def test_a_failed_connection_is_one_line(ann: str, server: Server, server_url: str) -> None:
    assert "password authentication failed" in refused(with_password(ann, "s3cret-but-wrong"))
    assert 'database "nowhere" does not exist; check that the server runs' in refused(server.url("nowhere"))
    assert "Connection refused" in refused("postgresql://ann:s3cret@127.0.0.1:1/hpo")
    # The server has no TLS: the parameters got as far as the driver.
    assert "server does not support SSL" in refused(f"{server_url}?sslmode=require")
    assert "sslmode" in refused(f"{server_url}?sslmode=maybe")
    assert "ssl_mode" in refused(f"{server_url}?ssl_mode=require")
    refused(f"{server_url}?host=a:1,b:2&port=3")
    open_storage(f"{server_url}?sslmode=disable&connect_timeout=5").close()


def test_a_user_without_permission_to_create_tables_is_one_line(ann: str, server: Server) -> None:
    with server.database() as name:
        url = with_password(server.url(name, "ann"))
        assert "permission denied" in refused(url)


def test_the_command_line_ends_with_one_line(ann: str) -> None:
    for url in (with_password("postgresql://ann@127.0.0.1:1/hpo"), with_password(ann, "s3cret-but-wrong")):
        ended = forks.run(["studies", "--storage", url])
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.count("\n") == 1
        assert ended.stderr.startswith("hpo: postgresql://ann:***@127.0.0.1:")


def running(lr: float = 0.1, state: TrialState = TrialState.RUNNING) -> FrozenTrial:
    return create_trial(state=state, user_attrs={"lr": lr})


def ids(trials: list[FrozenTrial]) -> list[int]:
    return [trial._trial_id for trial in trials]


def test_a_connection_that_died_in_the_pool_is_replaced(server: Server, server_storage: Storage) -> None:
    server_storage.create_study("digits", [MAXIMIZE], {})
    server.restart("fast")
    assert [study.study_name for study in server_storage.get_all_studies()] == ["digits"]


def test_restarts_of_the_server_lose_and_duplicate_nothing(server: Server, server_storage: Storage) -> None:
    study_id = server_storage.create_study("digits", [MAXIMIZE], {})
    rounds, stop = [0], threading.Event()

    def search() -> list[int]:
        told = []
        while not stop.is_set():
            created = ids(server_storage.create_trials(study_id, [running() for _ in range(4)]))
            assert server_storage.requeue(created) == set()
            assert ids(server_storage.claim(created, 4)) == created
            for step in (1, 2):
                assert server_storage.report(step, dict.fromkeys(created, step / 10)) == set()
            assert server_storage.finish([TrialResult(i, TrialState.COMPLETE, (0.2,)) for i in created]) == set()
            told += created
            rounds[0] += 1
        return told

    with ThreadPoolExecutor() as pool:
        told = pool.submit(search)
        try:
            for mode in ("fast", "immediate", "fast", "immediate", "immediate"):
                goal = rounds[0] + 5
                wait_for(lambda goal=goal: rounds[0] >= goal or told.done())  # type: ignore[misc]
                server.restart(mode)
        finally:
            stop.set()
        trials = server_storage.get_all_trials(study_id) if told.result(timeout=deadline()) else []
    assert ids(trials) == told.result()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert all((t.state, t.value) == (TrialState.COMPLETE, 0.2) for t in trials)
    assert all(trial.intermediate_values == {1: 0.1, 2: 0.2} for trial in trials)


def test_a_server_that_stays_unreachable_is_one_line(
    server: Server, server_storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    server_storage.retry_policy.timeout_s = 0.5
    server.stop()
    try:
        with pytest.raises(TransientError, match="Connection refused") as caught:
            server_storage.create_study("digits", [MAXIMIZE], {})
    finally:
        server.start()
    assert str(caught.value).isprintable()
    assert [record.getMessage().endswith("trying again for up to 0 s") for record in caplog.records] == [True]
    assert server_storage.create_study("digits", [MAXIMIZE], {})


class Relay:
    """A relay between client and server; when armed, it drops the answer to the next commit.

    The connection breaks once the server has answered, so the transaction is kept, and the client cannot know.
    """

    def __init__(self, port: int) -> None:
        self.server, self.armed, self.lost = ("127.0.0.1", port), False, 0
        self.meanwhile: Callable[[], object] = lambda: None  # called before the client loses the connection
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self._listen)]
        self.threads[0].start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(deadline())

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.server)
            lose = threading.Event()
            for source, target in ((client, server), (server, client)):
                self.threads.append(threading.Thread(target=self._pass, args=(source, target, client, lose)))
                self.threads[-1].start()

    def _pass(self, source: socket.socket, target: socket.socket, client: socket.socket, lose: threading.Event) -> None:
        with source:
            while data := receive(source):
                if self.armed and source is client and b"COMMIT\0" in data:
                    self.armed = False
                    self.lost += 1
                    lose.set()
                elif source is not client and lose.is_set():
                    self.meanwhile()
                    break
                target.sendall(data)
            for end in (source, target):
                hang_up(end)


def receive(source: socket.socket) -> bytes:
    try:
        return source.recv(65536)
    except OSError:
        return b""


def hang_up(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


@pytest.fixture
def relay(server: Server) -> Iterator[Relay]:
    relay = Relay(server.port)
    yield relay
    relay.close()


Call = Callable[..., Any]


def everything_lost(storage: Storage) -> list[RunningTrial]:
    """Return the running trials as if their processes had ended."""
    return [dataclasses.replace(trial, orphaned="ended") for trial in running_trials(storage)]


@pytest.fixture
def losing(relay: Relay, server: Server, server_url: str) -> Iterator[tuple[Storage, Call]]:
    """Yield a storage, and a function that runs a call whose commit succeeds while its answer is lost."""
    storage = open_storage(server_url.replace(str(server.port), str(relay.port)))

    def call(method: Call, *arguments: Any) -> Any:
        before, relay.armed = relay.lost, True
        answer = method(*arguments)
        assert relay.lost == before + 1
        return answer

    yield storage, call
    storage.close()


def test_a_commit_with_a_lost_answer_takes_effect_once(losing: tuple[Storage, Call]) -> None:
    storage, call = losing
    study_id = call(storage.create_study, "digits", [MAXIMIZE], {"x": 1})
    assert storage.get_study_user_attrs(study_id) == {"x": 1}
    with pytest.raises(DuplicatedStudyError):
        storage.create_study("digits", [MAXIMIZE], {})
    done = running(state=TrialState.FAIL)
    (ended,) = ids(storage.create_trials(study_id, [done]))
    created = call(storage.create_trials, study_id, [running(k / 10) for k in range(3)])
    a, b, c = ids(created)
    assert storage.get_all_trials(study_id)[1:] == created
    assert call(storage.report, 1, {a: 0.1, b: 0.2, ended: 0.3}) == {ended}
    assert call(storage.finish, [TrialResult(i, TrialState.COMPLETE, (0.5,)) for i in (a, ended)]) == {ended}
    assert call(storage.requeue, [b, ended]) == {ended}
    assert ids(call(storage.claim, [b, c, ended], 9)) == [b]
    trials = storage.get_all_trials(study_id)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert [trial.intermediate_values for trial in trials] == [{}, {1: 0.1}, {}, {}]
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE", "RUNNING", "RUNNING"]


def test_a_requeue_with_a_lost_answer_returns_its_trials(losing: tuple[Storage, Call]) -> None:
    storage, call = losing
    study_id = storage.create_study("digits", [MAXIMIZE], {})
    storage.create_trials(study_id, [running(), running()])
    assert call(requeue_orphaned, storage, everything_lost(storage)) == ({0, 1}, set())
    trials = storage.get_all_trials(study_id)
    assert [len(trial.system_attrs["hpo:attempts"]) for trial in trials] == [1, 1]


def test_later_changes_of_other_processes_survive_a_lost_answer(
    losing: tuple[Storage, Call], relay: Relay, server_url: str
) -> None:
    storage, call = losing
    other = open_storage(server_url)
    study_id = storage.create_study("digits", [MAXIMIZE], {})
    (back,) = ids(storage.create_trials(study_id, [running()]))
    relay.meanwhile = lambda: other.claim([back], 1) and other.report(1, {back: 0.5})
    assert call(storage.requeue, [back]) == set()
    robbed = storage.get_trial(back)
    assert (robbed.state, robbed.intermediate_values) == (TrialState.RUNNING, {1: 0.5})
    relay.meanwhile = lambda: other.create_trials(study_id, [running(), running()])
    (created,) = call(storage.create_trials, study_id, [running()])
    assert created.number == 1
    relay.meanwhile = lambda: requeue_orphaned(other, everything_lost(other))
    assert call(storage.report, 1, {created._trial_id: 0.5}) == {created._trial_id}
    assert [trial.number for trial in storage.get_all_trials(study_id)] == [0, 1, 2, 3]
    other.close()
