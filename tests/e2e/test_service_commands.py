"""The commands of the service: output, exit status, and the state of the queue after them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from command import Outcome, Running
from deadlines import deadline
from forks import Fork
from optuna.trial import TrialState

from hpo.cli.entry import with_ray_address
from hpo.service.logs import LOGGER
from hpo.storage import load_study, open_storage, study_names

Run = Callable[..., Outcome]
Start = Callable[..., Running]

REPEAT_S = 5.0
QUICK = ("--set", "training.epochs=1")
NO_STUDY = "hpo: sqlite:///hpo.db: no study named 'tinny' (did you mean 'tiny'?)\n"


@pytest.fixture(autouse=True)
def restored_log() -> Iterator[None]:
    """Restore the log after a worker in this process has set it up."""
    handlers, level, propagate = list(LOGGER.handlers), LOGGER.level, LOGGER.propagate
    yield
    LOGGER.handlers, LOGGER.propagate = handlers, propagate
    LOGGER.setLevel(level)


def states(name: str) -> list[str]:
    storage = open_storage(None)
    try:
        return [trial.state.name for trial in load_study(storage, name).get_trials(deepcopy=False)]
    finally:
        storage.close()


def names() -> list[str]:
    storage = open_storage(None)
    try:
        return study_names(storage)
    finally:
        storage.close()


def status_json(hpo: Run, *args: str) -> Any:
    outcome = hpo("status", "--json", *args)
    assert (outcome.status, outcome.err) == (0, "")
    return json.loads(outcome.out)


def create_plain_study(name: str = "plain") -> None:
    storage = open_storage(None)
    optuna.create_study(storage=storage, study_name=name).ask()
    storage.close()


# The queue.


def test_a_study_is_submitted_worked_on_and_shown(hpo: Run) -> None:
    submitted = hpo("submit", "tiny.toml", "--priority", "-2", *QUICK)
    assert submitted == (0, "tiny: in the queue, 6 trials left\n", "")
    assert [(study["name"], study["state"], study["priority"]) for study in status_json(hpo)["studies"]] == [
        ("tiny", "open", -2)
    ]
    worked = hpo("work", "--until-idle", "--threads", "1")
    assert (worked.status, worked.out) == (0, "")
    lines = worked.err.splitlines()
    assert lines[-1].endswith("ends: nothing is left to do")
    assert any("tiny: finished, 6 completed, 0 pruned, 0 failed" in line for line in lines)
    assert states("tiny") == ["COMPLETE"] * 6
    shown = hpo("status")
    assert (shown.status, shown.err) == (0, "")
    heading, row, gap, workers = shown.out.splitlines()
    assert heading.split() == ["study", "state", "trials", "best", "pace", "left", "priority"]
    assert row.startswith("tiny   finished  6 complete of 6  0.")
    assert (gap, workers) == ("", "no workers: start some with `hpo work`")


def test_several_files_are_submitted_in_their_order(hpo: Run, folder: Path) -> None:
    other = (folder / "tiny.toml").read_text().replace('"tiny"', '"other"')
    (folder / "other.toml").write_text(other)
    outcome = hpo("submit", "tiny.toml", "other.toml", "--trials", "3", "--population", "3")
    assert outcome == (0, "tiny: in the queue, 3 trials left\nother: in the queue, 3 trials left\n", "")
    assert hpo("submit", "tiny.toml", "--trials", "3", "--population", "3").status == 0
    assert names() == ["tiny", "other"]


def test_nothing_is_submitted_if_one_file_is_invalid(hpo: Run, folder: Path) -> None:
    (folder / "wrong.toml").write_text((folder / "tiny.toml").read_text().replace("epochs = 2", "epochs = 0"))
    outcome = hpo("submit", "tiny.toml", "wrong.toml")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("hpo: wrong.toml: training.epochs: ")
    assert outcome.err.count("\n") == 1
    assert not (folder / "hpo.db").exists() or names() == []


def test_nothing_is_submitted_if_the_data_of_one_file_are_missing(
    hpo: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_DIR", str(folder / "none"))
    text = (folder / "tiny.toml").read_text().replace('dataset = "digits"', 'dataset = "mnist"')
    (folder / "other.toml").write_text(text.replace('"tiny"', '"other"'))
    outcome = hpo("submit", "tiny.toml", "other.toml")
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    assert names() == [], "all files are checked before the first is stored"


@pytest.mark.parametrize(
    ("args", "status", "problem"),
    [
        (["none.toml"], 2, "none.toml: no such file"),
        ([], 2, "Missing argument 'FILE' (see hpo submit --help)"),
        (["tiny.toml", "tiny.toml", "--name", "x"], 2, "--name: takes one study file"),
        (["tiny.toml", "--priority", "high"], 2, "Invalid value for '--priority'"),
        (["tiny.toml", "--storage", "sqlite:///missing/hpo.db"], 1, "sqlite:///missing/hpo.db: "),
    ],
)
def test_an_error_of_submit_is_one_line(hpo: Run, args: list[str], status: int, problem: str) -> None:
    outcome = hpo("submit", *args)
    assert (outcome.status, outcome.out) == (status, "")
    assert outcome.err.startswith(f"hpo: {problem}")
    assert outcome.err.count("\n") == 1


def test_a_changed_file_is_refused_without_extend(hpo: Run) -> None:
    hpo("submit", "tiny.toml")
    outcome = hpo("submit", "tiny.toml", "--trials", "8")
    assert (outcome.status, outcome.out) == (2, "")
    assert "search.trials: 6 -> 8" in outcome.err
    assert outcome.err.count("\n") == 1
    assert hpo("submit", "tiny.toml", "--trials", "8", "--extend") == (0, "tiny: in the queue, 8 trials left\n", "")


# Workers.


def test_a_worker_exits_when_idle(hpo: Run) -> None:
    assert hpo("work", "--until-idle").err.startswith("hpo: sqlite:///hpo.db: no such file"), (
        "a worker creates no storage"
    )
    open_storage("sqlite:///hpo.db").close()
    outcome = hpo("work", "--until-idle")
    assert (outcome.status, outcome.out) == (0, "")
    assert [line.split(" ", 3)[3] for line in outcome.err.splitlines()] == [
        "works on sqlite:///hpo.db",
        "ends: nothing is left to do",
    ]


def test_a_worker_trains_only_the_named_studies(hpo: Run) -> None:
    for name in ("a", "b"):
        hpo("submit", "tiny.toml", "--name", name, *QUICK)
    assert hpo("work", "b", "--until-idle", "--device", "cpu", "--threads", "1").status == 0
    assert (states("a"), states("b")) == ([], ["COMPLETE"] * 6)


@pytest.mark.parametrize(
    ("args", "status", "problem"),
    [
        (["tinny", "--until-idle"], 1, NO_STUDY.removeprefix("hpo: ")),
        (["--until-idle", "--device", "cudaa"], 2, "--device cudaa: unknown"),
        (["--until-idle", "--device", "cuda:99"], 2, "--device cuda:99: not available on this machine"),
        (["--threads", "0"], 2, "Invalid value for '--threads'"),
        (["--log-format", "xml"], 2, "Invalid value for '--log-format'"),
        (["--metrics-port", "65536"], 2, "Invalid value for '--metrics-port'"),
        (["--until-idle", "--metrics-port", "0", "--metrics-host", "192.0.2.1"], 1, "192.0.2.1:0: cannot listen there"),
        (["--storage", "sqlite:///missing/hpo.db"], 1, "sqlite:///missing/hpo.db: "),
        (["--storage", "mysql://me:secret@host/hpo"], 1, "unknown kind of storage 'mysql'"),
    ],
)
def test_an_error_of_work_is_one_line(hpo: Run, args: list[str], status: int, problem: str) -> None:
    hpo("submit", "tiny.toml")
    outcome = hpo("work", *args)
    assert (outcome.status, outcome.out) == (status, "")
    errors = [line for line in outcome.err.splitlines() if line.startswith("hpo: ")]
    assert len(errors) == 1
    assert problem.strip() in errors[0]
    assert "secret" not in outcome.err
    assert "Traceback" not in outcome.err


def test_a_study_of_plain_optuna_is_refused_by_a_worker(hpo: Run) -> None:
    create_plain_study()
    outcome = hpo("work", "plain", "--until-idle")
    assert (outcome.status, outcome.out) == (1, "")
    assert "was not created by hpo" in outcome.err


def test_a_metrics_port_in_use_is_one_line(hpo: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = hpo("work", "--until-idle", "--metrics-port", str(port))
    message = f"hpo: 127.0.0.1:{port}: the port is in use; choose another with --metrics-port\n"
    assert outcome == (1, "", message)


def test_the_error_that_ends_a_worker_is_json_in_a_json_log(hpo: Run) -> None:
    open_storage(None).close()
    outcome = hpo("work", "nobody", "--log-format", "json")
    assert (outcome.status, outcome.out) == (1, "")
    events = [json.loads(line) for line in outcome.err.splitlines()]
    assert "no study named 'nobody'" in events[-1]["message"]


def test_a_worker_that_cannot_train_a_study_reports_it_at_its_end(
    hpo: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hpo("submit", "tiny.toml", *QUICK)
    storage = open_storage(None)
    data = load_study(storage, "tiny").user_attrs["hpo:data"]
    storage.set_study_attrs(1, {"hpo:data": {**data, "sha256": "0" * 64}})
    storage.close()
    outcome = hpo("work", "--until-idle")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.splitlines()[-1].startswith("hpo: study 'tiny': the data of digits are not those")
    assert "Traceback" not in outcome.err


# Queue control.


def test_a_study_is_paused_resumed_stopped_and_deleted(hpo: Run) -> None:
    hpo("submit", "tiny.toml")
    paused = "tiny: paused, 0 trials requeued; go on with `hpo resume tiny`\n"
    assert hpo("pause", "tiny") == (0, paused, "")
    assert status_json(hpo, "tiny")["studies"][0]["state"] == "paused"
    assert hpo("work", "--until-idle").status == 0
    assert states("tiny") == []
    refused = hpo("launch", "tiny.toml")
    assert (refused.status, refused.out) == (1, "")
    assert refused.err == "hpo: study 'tiny' is paused; go on with `hpo resume tiny`\n"
    assert hpo("resume", "tiny") == (0, "tiny: open, 6 trials left\n", "")
    stopped = "tiny: stopped, 0 trials still running; go on with `hpo resume tiny`\n"
    assert hpo("stop", "tiny") == (0, stopped, "")
    assert hpo("status").out.splitlines()[1].split()[:2] == ["tiny", "stopped"]
    assert hpo("delete", "tiny", "--yes") == (0, "tiny: deleted, with 0 trials\n", "")
    assert names() == []


@pytest.mark.parametrize("command", ["pause", "resume", "stop", "delete", "status"])
def test_an_unknown_study_is_one_line(hpo: Run, command: str) -> None:
    hpo("submit", "tiny.toml")
    assert hpo(command, "tinny") == (1, "", NO_STUDY)


@pytest.mark.parametrize("args", [["pause", "x"], ["resume", "x"], ["stop", "x"], ["delete", "x", "--yes"], ["status"]])
def test_queue_control_creates_no_storage(hpo: Run, folder: Path, args: list[str]) -> None:
    outcome = hpo(*args)
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith("hpo: sqlite:///hpo.db: no such file")
    assert outcome.err.count("\n") == 1
    assert not (folder / "hpo.db").exists()


@pytest.mark.parametrize("command", ["pause", "resume", "stop"])
def test_a_command_for_a_study_of_plain_optuna_is_one_line(hpo: Run, command: str) -> None:
    create_plain_study()
    outcome = hpo(command, "plain")
    message = "hpo: study 'plain' was not created by hpo, or its stored study file is invalid: no worker can train it\n"
    assert outcome == (1, "", message)


@pytest.mark.parametrize("command", ["pause", "stop"])
def test_an_ended_study_can_be_neither_paused_nor_stopped(hpo: Run, launched: None, command: str) -> None:
    assert hpo(command, "tiny") == (1, "", f"hpo: study 'tiny' already ended (finished); cannot {command} it\n")


def test_nothing_is_deleted_without_a_terminal_to_ask_on(hpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hpo("submit", "tiny.toml")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    outcome = hpo("delete", "tiny")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == "hpo: Delete study 'tiny' with 0 trials? Cannot ask without a terminal; confirm with --yes\n"
    assert names() == ["tiny"]


class Terminal(io.StringIO):
    """A terminal on which an answer is typed."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("answer", ["n\n", "\n", "what?\nno\n", ""])
def test_nothing_is_deleted_unless_the_answer_is_yes(hpo: Run, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    hpo("submit", "tiny.toml")
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    outcome = hpo("delete", "tiny")
    assert (outcome.status, outcome.out.strip()) == (1, "")
    assert outcome.err.startswith("Delete study 'tiny' with 0 trials? [y/N]:")
    assert "defect" not in outcome.err
    assert names() == ["tiny"]


CONTROLS_ITS_TERMINAL = """
import fcntl, sys, termios
from hpo.cli import main
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.exit(main(sys.argv[1:]))
"""
"""The `hpo` command with a controlling terminal, on which Ctrl-C is a signal."""


@pytest.mark.parametrize(("answer", "status", "left"), [("y\n", 0, []), ("\x03", 130, ["tiny"])])
def test_delete_asks_on_a_terminal(hpo: Run, answer: str, status: int, left: list[str]) -> None:
    hpo("submit", "tiny.toml")
    terminal, other_end = os.openpty()
    streams = {"stdin": other_end, "stdout": other_end, "stderr": other_end}
    with Fork(["delete", "tiny"], script=CONTROLS_ITS_TERMINAL, start_new_session=True, **streams) as child:
        os.close(other_end)
        output, next_answer = b"", 0.0
        ends = time.monotonic() + deadline()
        try:
            while child.poll() is None:
                assert time.monotonic() < ends, output
                if select.select([terminal], [], [], 0.5)[0]:
                    with contextlib.suppress(OSError):  # on Linux: the other end is closed
                        output += os.read(terminal, 1000)
                if b"[y/N]:" in output and time.monotonic() > next_answer:
                    # Python misses a Ctrl-C that arrives just before it starts to read.
                    os.write(terminal, answer.encode())
                    next_answer = time.monotonic() + REPEAT_S
        finally:
            child.kill()
            os.close(terminal)
    assert b"Delete study 'tiny' with 0 trials?" in output
    assert child.returncode == status, output
    assert names() == left


def test_a_launch_ends_when_its_study_is_paused(process: Start, hpo: Run) -> None:
    running = process("launch", "tiny.toml", "--json", "--set", "training.epochs=100000")
    running.wait_for("epoch_ended")
    paused = hpo("pause", "tiny")
    assert paused.out == "tiny: paused, 4 trials requeued; go on with `hpo resume tiny`\n"
    ended = running.wait_for("study_ended")
    assert ended["reason"] == "paused"
    outcome = running.outcome()
    assert outcome.status == 1
    assert "tiny: paused" in outcome.err
    assert states("tiny") == [TrialState.WAITING.name] * 4


# Status.


def test_the_status_of_one_study(hpo: Run) -> None:
    for name in ("a", "b"):
        hpo("submit", "tiny.toml", "--name", name)
    assert [study["name"] for study in status_json(hpo, "b")["studies"]] == ["b"]
    shown = hpo("status", "b").out
    assert shown.splitlines()[1].startswith("b ")
    assert "\na " not in shown


def test_the_status_is_watched_until_ctrl_c(process: Start, hpo: Run) -> None:
    hpo("submit", "tiny.toml")
    running = process("status", "--watch", "--json")
    for _ in range(2):
        assert json.loads(running.line())["studies"][0]["name"] == "tiny"
    running.process.send_signal(signal.SIGINT)
    outcome = running.outcome()
    assert outcome.status == 130
    assert outcome.err == ""


def test_a_closed_pipe_of_the_status_is_no_error(process: Start, hpo: Run) -> None:
    hpo("submit", "tiny.toml")
    running = process("status", "--watch")
    assert running.line().startswith("study")
    assert running.process.stdout is not None
    running.process.stdout.close()
    assert running.process.wait(deadline()) == 1
    assert running.process.stderr is not None
    assert running.process.stderr.read() == b""


# The optional address of --ray.


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (["launch", "a.toml", "--ray"], ["launch", "a.toml", "--ray", "local"]),
        (["launch", "--ray", "a.toml"], ["launch", "--ray", "local", "a.toml"]),
        (["launch", "--ray", "./a.toml"], ["launch", "--ray", "local", "./a.toml"]),
        (["launch", "--ray", "--workers", "2", "a.toml"], ["launch", "--ray", "local", "--workers", "2", "a.toml"]),
        (["launch", "--ray", "auto", "a.toml"], ["launch", "--ray", "auto", "a.toml"]),
        (["launch", "--ray", "local", "a.toml"], ["launch", "--ray", "local", "a.toml"]),
        (["launch", "--ray", "10.0.0.1:6379", "a.toml"], ["launch", "--ray", "10.0.0.1:6379", "a.toml"]),
        (["launch", "--ray", "[::1]:6379", "a.toml"], ["launch", "--ray", "[::1]:6379", "a.toml"]),
        (["launch", "--ray", "ray://head:10001", "a.toml"], ["launch", "--ray", "ray://head:10001", "a.toml"]),
        (["launch", "--ray=head:6379", "a.toml"], ["launch", "--ray=head:6379", "a.toml"]),
        (["launch", "a.toml", "--", "--ray"], ["launch", "a.toml", "--", "--ray"]),
        (["top", "tiny"], ["top", "tiny"]),
    ],
)
def test_ray_without_an_address_means_a_local_cluster(given: list[str], parsed: list[str]) -> None:
    assert with_ray_address(given) == parsed


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--gpus-per-worker", "0.5"], "--gpus-per-worker: works with --ray only; "),
        (["--gpus-per-worker", "0.5", "--workers", "2"], "--gpus-per-worker: works with --ray only; "),
        (["--gpus-per-worker", "-1", "--ray"], "Invalid value for '--gpus-per-worker'"),
        (["--ray", "--device", "cpu"], "--device: Ray chooses where its workers train; "),
        (["--workers", "0"], "Invalid value for '--workers'"),
    ],
)
def test_contradicting_options_of_launch_are_one_line(hpo: Run, folder: Path, args: list[str], problem: str) -> None:
    outcome = hpo("launch", "tiny.toml", *args)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith(f"hpo: {problem}")
    assert outcome.err.count("\n") == 1
    assert not (folder / "hpo.db").exists() or names() == []
