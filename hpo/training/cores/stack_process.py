"""A stack in a process of its own, which is forked from this one. Linux only.

Two threads of one process hand Python's lock over around every operation, which costs small stacks up to 40% of their
time (docs/explanation/log.md); processes have a lock each. A fork is there in milliseconds, with the stack and, in the
same memory, the examples. It answers one call at a time, and results are those of the stack in this process.

A stack process runs tensor operations only: none of the user's functions, no storage, no output. It closes all files of
the process that it was forked from. It ignores the signals that that one handles, such as Ctrl-C, because terminals,
batch systems and `timeout` send them to all processes. The kernel ends it with that one. Where it is killed alone,
MemoryError is raised, because the kernel kills processes when memory is full.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NoReturn

import psutil
import torch
from torch import Tensor

from hpo.training.cores.allocator import return_freed_memory
from hpo.training.global_locks import WARNINGS_LOCK
from hpo.training.networks.weights_file import State
from hpo.training.stack import MemberMetrics, MemberState, Stack

PR_SET_PDEATHSIG = 1
"""The option of Linux's prctl for the signal that a process gets when the thread that forked it ends."""

SLEEP_CHECK_S = 20.0
"""Seconds between two looks at a process that trains: it hangs if it sleeps and has used no CPU time since the last."""

_TRAINING: list[int] = []
"""The threads that train populations: one more for each population."""


def can_fork(device: torch.device) -> bool:
    """Return whether the stacks of this thread can have processes: those of the main thread, on Linux, without a GPU.

    torch refuses backward passes in a fork of a process that knows a GPU. Where another thread trains, too, it may have
    a lock at the moment of the fork, which would stay locked there: see `training_here`.
    """
    on_cpu = device.type == "cpu" and not torch.accelerator.is_available()
    alone = threading.current_thread() is threading.main_thread() and set(_TRAINING) <= {threading.get_ident()}
    return on_cpu and sys.platform == "linux" and alone


@contextmanager
def training_here() -> Iterator[None]:
    """Tell `can_fork` that this thread trains a population in the block, also while the population waits."""
    thread = threading.get_ident()
    _TRAINING.append(thread)
    try:
        yield
    finally:
        _TRAINING.remove(thread)


@contextmanager
def handled_signals_blocked() -> Iterator[None]:
    """Delay the signals that this process handles until the end of the block.

    Their handlers must not run in a fork before it ignores the signals, nor before the fork's end is in good hands.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _handled_signals())
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _handled_signals() -> set[signal.Signals | int]:
    return {each for each in signal.valid_signals() if callable(signal.getsignal(each))}


class StackProcess:
    """The process of a stack, with the stack's interface. `others` are lists of stacks, which it drops from its memory.

    Construct it within `handled_signals_blocked`, and drop the stack after that: its training goes on in the process
    only. Raises MemoryError where the system has no memory, or no number, for a further process.
    """

    def __init__(self, stack: Stack, others: Collection[list[Any]]) -> None:
        self.numbers = stack.numbers
        self._connection, theirs = Pipe()
        parent = os.getpid()
        with WARNINGS_LOCK, warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads, whose locks stay locked in the fork: it uses none of them.
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                self._pid: int | None = os.fork()
            except OSError as error:
                raise MemoryError(f"no process for a stack: {error.strerror}") from error
        if self._pid == 0:
            _serve(stack, others, theirs, parent)
        theirs.close()

    def epoch(self, epoch: int) -> MemberMetrics:
        """Train an epoch: see `Stack.epoch`."""
        found: MemberMetrics = self._call("epoch", epoch)
        return found

    def remove(self, numbers: Collection[int]) -> None:
        """Remove these members. After the last one, the process ends."""
        remaining = [number for number in self.numbers if number not in numbers]
        if remaining and len(remaining) < len(self.numbers):
            self._call("remove", set(numbers))
        self.numbers = remaining
        if not remaining:
            self.kill()
            self.wait()

    def states(self, numbers: Collection[int]) -> dict[int, State]:
        """Return the weights of these members: see `Stack.states`."""
        found: dict[int, State] = self._of_members("states", numbers)
        return found

    def freeze(self, numbers: Collection[int]) -> dict[int, MemberState]:
        """Return the states of these members: see `Stack.freeze`."""
        found: dict[int, MemberState] = self._of_members("freeze", numbers)
        return found

    def kill(self) -> None:
        """End the process, also within an epoch; it exists until `wait`."""
        if (pid := self._pid) is not None:
            with suppress(ProcessLookupError):  # it has ended, and somebody else waited for it
                os.kill(pid, signal.SIGKILL)

    def wait(self) -> int | None:
        """Wait for the end of the process; return its exit status, or None if that is not known."""
        pid, self._pid = self._pid, None
        with suppress(ChildProcessError):  # somebody else waited for it
            return None if pid is None else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return None

    def _of_members(self, method: str, numbers: Collection[int]) -> Any:
        own = {*numbers} & {*self.numbers}
        return self._call(method, own) if own else {}

    def _call(self, method: str, argument: object) -> Any:
        """Return the result of a stack's method. Raises its exception, and one where the process has ended."""
        try:
            self._connection.send((method, argument))
            self._wait_for_answer()
            result, error = self._connection.recv()
        except (EOFError, ConnectionError) as failure:
            raise self._ended() from failure
        if error is not None:
            raise error
        return result

    def _wait_for_answer(self) -> None:
        """Wait while the process works. Raises RuntimeError where it sleeps: it waits for a lock of another thread."""
        before: object = None
        while not self._connection.poll(SLEEP_CHECK_S):
            with suppress(psutil.NoSuchProcess):  # it has ended, which the connection tells
                process = psutil.Process(self._pid)
                now = process.cpu_times()
                if now == before and process.status() == psutil.STATUS_SLEEPING:
                    raise RuntimeError("the process of a stack hangs: another thread had a lock when it was forked")
                before = now

    def _ended(self) -> Exception:
        status = self.wait()
        if status == -signal.SIGKILL:
            return MemoryError("the process of a stack was killed, as when memory is full")
        return RuntimeError(f"the process of a stack ended with status {status}")


def _serve(stack: Stack, others: Collection[list[Any]], connection: Connection, parent: int) -> NoReturn:
    """Answer calls until the process is killed."""
    try:
        _end_with(parent)
        _close_files({0, 1, 2, connection.fileno()})
        signal.set_wakeup_fd(-1)
        for each in _handled_signals():
            signal.signal(each, signal.SIG_IGN)
        gc.freeze()  # the parent's objects: they must not be finalized here
        for stacks in others:
            stacks.clear()
        return_freed_memory()
        torch.set_num_threads(1)
        while True:
            method, argument = connection.recv()
            result, raised = None, None
            try:
                result = getattr(stack, method)(argument)
            except Exception as error:  # noqa: BLE001 - raised in the parent
                raised = _as_message(error)
            connection.send_bytes(_Message.dumps((result, raised)))
    except BaseException:  # noqa: BLE001 - the edge of the process
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(1)


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when the parent, whose main thread has forked it, ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # it ended before that call
        os._exit(1)


def _as_message(error: Exception) -> Exception:
    """Return an exception that the parent can raise, with the traceback as a note: the same one if it can be sent."""
    text = traceback.format_exc()
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:  # noqa: BLE001 - an exception's own code, such as a constructor of several arguments
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(text)
    return error


def _close_files(kept: Collection[int]) -> None:
    """Close the parent's files, pipes and sockets: whoever waits for their end must not wait for this process."""
    for each in {*map(int, os.listdir("/proc/self/fd"))} - {*kept}:
        with suppress(OSError):  # the folder itself
            os.close(each)


class _Message(ForkingPickler):
    """A message with tensors by value: torch's own message needs shared memory, of which a container has little."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            content = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            return _tensor, (content, value.dtype, tuple(value.shape))
        return NotImplemented


def _tensor(content: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not content:  # frombuffer refuses it
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)
