"""Processes of stacks: the results of threads bit for bit, errors, and their ends, with processes killed for real."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from deadlines import deadline, wait_for
from torch_reference import config, made_images, member

from hpo.errors import SettingError
from hpo.training.cores import parallel, stack_process
from hpo.training.cores.stack_process import _Message, can_fork
from hpo.training.population import EpochResult, TrialTimeout, train
from hpo.training.stack import Member, MemberMetrics, Stack
from hpo.training.tasks.user_functions import UserLoss
from hpo.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not can_fork(torch.device("cpu")), reason="no forks on this machine")

SPLIT = made_images(train=45, validation=20)
EPOCHS = 4


@pytest.fixture(autouse=True)
def _two_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train all populations in two stacks, each in a process."""
    for limit in ("MIN_PROCESS_FLOPS", "MIN_STEP_FLOPS_PER_PROCESS", "MIN_STEP_FLOPS_PER_THREAD"):
        monkeypatch.setattr(parallel, limit, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    assert not forks(), "a process outlived its population"


def forks() -> list[psutil.Process]:
    """Return the forks of this process."""
    own = psutil.Process()
    return [each for each in own.children() if each.is_running() and each.cmdline() == own.cmdline()]


def members_of(count: int = 6, **settings: Any) -> list[Member]:
    return [member(n, config(epochs=EPOCHS, **settings)) for n in range(count)]


def results(members: Sequence[Member], leaving: dict[int, set[int]], precision: str, processes: bool) -> list[Any]:
    """Return what each epoch yields, weights and states included; members leave after epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "can_fork", lambda device: processes)
        epochs, found = train(members, SPLIT, precision), list[Any]()
        result: EpochResult | None = next(epochs)
        assert len(forks()) == 2 * processes
        while result is not None:
            left = [*result.metrics]
            found.append((result.metrics, result.failed, result.states(left), result.freeze(left)))
            try:
                result = epochs.send(leaving.get(result.epoch, set()))
            except StopIteration:
                result = None
    return found


def assert_equal(first: object, second: object) -> None:
    """Assert that nested values, and records of them, are equal, tensors bit for bit."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    elif isinstance(first, dict) and isinstance(second, dict):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert_equal(value, second[key])
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal(one, other)
    elif hasattr(first, "__dict__"):
        assert_equal(vars(first), vars(second))
    else:
        assert first == second


NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"batch_norm": True, "dropout": 0.3, "training": {"ema": 0.9}, "optimizer": {"kind": "adamw", "clip": 1.0}},
    "cnn": {
        "kind": "cnn",
        "conv": [3],
        "kernel": 3,
        "optimizer": {"kind": "muon", "schedule": "plateau", "plateau_patience": 1},
    },
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_processes_have_the_results_of_threads_bit_for_bit(network: str, precision: str) -> None:
    """Also after members have left, after a whole stack has left, and in a population that continues from states."""
    members, leaving = members_of(**NETWORKS[network]), {1: {1}, 2: {3, 4, 5}}
    found = results(members, leaving, precision, processes=True)
    assert [[*metrics] for metrics, *_ in found] == [[0, 1, 2, 3, 4, 5], [0, 2, 3, 4, 5], [0, 2], [0, 2]]
    assert_equal(found, results(members, leaving, precision, processes=False))
    thawed = [replace(members[n], state=state) for n, state in found[1][3].items()]
    assert_equal(results(thawed, {}, precision, True), results(thawed, {}, precision, False))


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64])
def test_messages_have_tensors_of_any_type_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Such as the buffers of a user-defined network, here as a view that is not contiguous."""
    values = torch.arange(12).reshape(2, 6)[:, ::2].to(dtype)
    value = values if shape == (2, 3) else values[0, 0] if not shape else values[:0]
    found = ForkingPickler.loads(_Message.dumps({"value": value}))["value"]
    assert (found.dtype, found.shape) == (dtype, shape)
    assert found.equal(value)


def test_a_member_that_diverges_fails_alone() -> None:
    members = members_of(4, lr=0.1)
    members[3] = member(3, config(epochs=EPOCHS, lr=1e300))
    (first, failed, *_), *_ = results(members, {}, "float64", processes=True)
    assert ([*first], [*failed]) == ([0, 1, 2], [3])


def test_user_functions_are_called_in_this_process() -> None:
    """A stack whose loss is a function of the user has a thread."""
    called = set[int]()

    def loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        called.add(os.getpid())
        return torch.nn.functional.cross_entropy(output, targets, reduction="none")

    own = replace(SPLIT, task=replace(SPLIT.task, user_loss=UserLoss("loss.py:loss", loss)))
    with closing(train(members_of(), own, "float32")) as epochs:
        assert next(epochs).stacks == 2
        assert not forks()
    assert called == {os.getpid()}


def test_processes_end_with_their_stack_and_with_the_population() -> None:
    with closing(train(members_of(), SPLIT, "float32")) as epochs:
        next(epochs)
        assert len(forks()) == 2
        epochs.send({0, 1, 2})
        assert len(forks()) == 1
    assert not forks()


def test_processes_hold_no_files_of_the_one_they_were_forked_from() -> None:
    """The end of a pipe is seen although the processes were forked while it was open."""
    reader, writer = os.pipe()
    with closing(train(members_of(), SPLIT, "float32")) as epochs:
        next(epochs)
        os.close(writer)
        assert len(forks()) == 2
        assert select.select([reader], [], [], deadline())[0]
        assert os.read(reader, 1) == b""
    os.close(reader)


def test_no_process_is_forked_beside_a_thread_that_trains() -> None:
    """That thread may hold a lock, which would stay locked in the fork."""
    trained, end = threading.Event(), threading.Event()

    def train_beside() -> None:
        with closing(train(members_of(), SPLIT, "float32")) as epochs:
            next(epochs)
            trained.set()
            end.wait(deadline())

    thread = threading.Thread(target=train_beside)
    thread.start()
    try:
        assert trained.wait(deadline())
        assert not can_fork(torch.device("cpu"))
        assert len(list(train(members_of(), SPLIT, "float32"))) == EPOCHS
    finally:
        end.set()
        thread.join()
    assert can_fork(torch.device("cpu"))


def in_epoch(monkeypatch: pytest.MonkeyPatch, action: Callable[[Stack], None], epoch: int = 2) -> None:
    """Let a stack of the members do this at the beginning of its epoch."""
    train_epoch = Stack.epoch

    def replaced(stack: Stack, number: int) -> MemberMetrics:
        if number == epoch:
            action(stack)
        return train_epoch(stack, number)

    monkeypatch.setattr(Stack, "epoch", replaced)


def test_a_killed_process_halves_the_population(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel kills a process when memory is full; the members start again, in smaller populations."""
    parent = os.getpid()

    def kill(stack: Stack) -> None:
        if len(stack.numbers) == 4 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    expected = results(members_of(8), {}, "float64", processes=False)[-1][0]
    in_epoch(monkeypatch, kill)
    warnings, found = list[str](), MemberMetrics()
    for result in Trainer(SPLIT, "float64", warnings.append).train(members_of(8)):
        found |= result.metrics
    assert warnings == ["out of memory with 8 networks at once: continuing with half as many"]
    for number, metrics in expected.items():
        assert found[number] == pytest.approx(metrics, rel=1e-9)  # other stacks: another order of sums


def test_a_process_that_ended_and_exists_no_longer_ends_the_others() -> None:
    """As where the system waits for child processes, because their signal is ignored."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with closing(train(members_of(), SPLIT, "float32")) as epochs:
            next(epochs)
            ended, other = forks()
            ended.kill()
            wait_for(lambda: not ended.is_running())
        wait_for(lambda: not other.is_running())
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_process_that_ends_is_an_error_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    in_epoch(monkeypatch, lambda stack: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(RuntimeError, match=r"^the process of a stack ended with status -15$"):
        list(train(members_of(), SPLIT, "float32"))


@pytest.fixture
def _sigterm_handled_here(tmp_path: Path) -> Iterator[None]:
    """Handle SIGTERM; no fork may."""
    handled = tmp_path / "handled"
    handled.touch()

    def handle(number: int, frame: object) -> None:
        with handled.open("a") as file:
            file.write(f"{os.getpid()}\n")

    before = signal.signal(signal.SIGTERM, handle)
    yield
    signal.signal(signal.SIGTERM, before)
    assert {*handled.read_text().split()} <= {str(os.getpid())}


@pytest.mark.usefixtures("_sigterm_handled_here")
def test_a_process_ignores_signals_that_the_one_it_was_forked_from_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` and batch systems send SIGTERM to all processes of a group; the launch ends after the epoch."""
    in_epoch(monkeypatch, lambda stack: os.kill(os.getpid(), signal.SIGTERM))
    assert len(list(train(members_of(), SPLIT, "float32"))) == EPOCHS


@pytest.mark.usefixtures("_sigterm_handled_here")
def test_a_fork_handles_no_signal_before_it_ignores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fork = os.fork

    def fork_and_signal() -> int:
        pid = fork()
        os.kill(os.getpid(), signal.SIGTERM)
        return pid

    monkeypatch.setattr(os, "fork", fork_and_signal)
    assert len(list(train(members_of(), SPLIT, "float32"))) == EPOCHS


class OddError(Exception):
    """An exception that cannot be constructed from its message alone."""

    def __init__(self, layer: str, size: int) -> None:
        super().__init__(f"{layer} has {size}")


def test_an_error_that_cannot_be_sent_is_told_with_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(stack: Stack) -> None:
        raise OddError("conv", 3)

    in_epoch(monkeypatch, fail)
    with pytest.raises(RuntimeError, match=r"^OddError: conv has 3") as raised:
        list(train(members_of(), SPLIT, "float32"))
    assert "in fail\n" in raised.value.__notes__[0]


def test_without_a_number_for_a_further_process_the_population_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fail)
    warnings, found = list[str](), MemberMetrics()
    for result in Trainer(SPLIT, "float64", warnings.append).train(members_of(2)):
        found |= result.metrics
    assert warnings == ["out of memory with 2 networks at once: continuing with half as many"]
    assert found.keys() == {0, 1}


@pytest.mark.parametrize("error", [SettingError("network.module", "returns a list"), KeyError("weight")])
def test_errors_are_those_of_the_stack_with_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(stack: Stack) -> None:
        raise error

    in_epoch(monkeypatch, fail)
    with pytest.raises(type(error)) as raised:
        list(train(members_of(), SPLIT, "float32"))
    assert (str(raised.value), vars(raised.value).keys()) == (str(error), {*vars(error), "__notes__"})
    assert "in fail\n" in raised.value.__notes__[0]


def test_a_process_that_waits_for_a_lock_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that another thread has at the moment of the fork stays locked in the fork."""
    lock = threading.Lock()
    lock.acquire()
    in_epoch(monkeypatch, lambda stack: lock.acquire())  # type: ignore[arg-type,return-value]
    monkeypatch.setattr(stack_process, "SLEEP_CHECK_S", 0.1)
    with pytest.raises(RuntimeError, match=r"^the process of a stack hangs: another thread had a lock"):
        list(train(members_of(), SPLIT, "float32"))


def test_a_process_that_works_for_long_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(stack: Stack) -> None:
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass

    in_epoch(monkeypatch, work)
    monkeypatch.setattr(stack_process, "SLEEP_CHECK_S", 0.1)
    assert len(list(train(members_of(), SPLIT, "float32"))) == EPOCHS


def test_a_process_that_hangs_ends_at_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    in_epoch(monkeypatch, lambda stack: threading.Event().wait())  # type: ignore[arg-type,return-value]
    limit = round(deadline(1))
    with pytest.raises(TrialTimeout, match=rf"^took longer than search\.trial_timeout, {limit} s \(epoch 2\)$"):
        list(train(members_of(), SPLIT, "float32", timeout_s=limit))


SCRIPT = """
import sys
import torch
from torch_reference import config, made_images, member
from hpo.training.cores import parallel
from hpo.training.population import train
parallel.MIN_PROCESS_FLOPS = parallel.MIN_STEP_FLOPS_PER_PROCESS = 1
torch.set_num_threads(2)
for result in train([member(n, config(epochs=10**6)) for n in range(4)], made_images(), "float32"):
    if result.epoch < 3:
        print("trained", flush=True)
        sys.stdin.readline()
"""
"""Trains an epoch and waits for a line, two times, and then trains without an end."""


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    """A process whose population has two processes, in a process group of its own."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    yield process
    process.kill()
    process.communicate()


def processes_after_epoch(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the two processes of the population after its next epoch."""
    assert parent.stdout is not None
    assert parent.stdout.readline() == "trained\n"
    found = psutil.Process(parent.pid).children()
    assert len(found) == 2
    return found


def next_epoch(parent: subprocess.Popen[str]) -> None:
    assert parent.stdin is not None
    parent.stdin.write("\n")
    parent.stdin.flush()


def all_ended(processes: Collection[psutil.Process]) -> bool:
    return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)


@pytest.mark.parametrize("training", [False, True])
def test_processes_end_when_the_one_they_were_forked_from_is_killed(
    training: bool, parent: subprocess.Popen[str]
) -> None:
    """Between two epochs and within one."""
    processes = processes_after_epoch(parent)
    if training:
        for _ in range(2):
            next_epoch(parent)
    parent.kill()
    wait_for(lambda: all_ended(processes))


def test_ctrl_c_is_for_the_process_that_they_were_forked_from(parent: subprocess.Popen[str]) -> None:
    """A terminal sends the signal to all processes; those of the stacks go on until they are ended."""
    processes = processes_after_epoch(parent)
    for each in processes:
        each.send_signal(signal.SIGINT)
    next_epoch(parent)
    assert processes_after_epoch(parent) == processes
    os.killpg(parent.pid, signal.SIGINT)
    wait_for(lambda: parent.poll() is not None and all_ended(processes))
