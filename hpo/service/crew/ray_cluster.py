"""A Ray cluster for a launch: one that is there, or one started for it on this machine.

Promises: the signal handlers stay those of the launch, stdout stays for data, and Ray's own complaints become one line;
a cluster that was started is gone when the block is left, with all of its processes and files. Knows nothing of
workers.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from types import ModuleType
from typing import Any

import psutil

from hpo.errors import HpoError
from hpo.storage import mask

ENDING_S = 5.0
"""How long the processes of a cluster may take to end by themselves."""

OBJECT_STORE_BYTES = 80 * 2**20
"""Nothing passes through the object store: this is about the least that Ray takes."""

QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
"""Settings of Ray that count for every crew, unless the environment has them."""

PRIVATE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
"""Those of a cluster started for the call: Ray then listens on this machine's own address only."""

IMPATIENT = {
    "RAY_NUM_REDIS_GET_RETRIES": "1",
    "RAY_py_gcs_connect_timeout_s": "5",
    "RAY_gcs_rpc_server_connect_timeout_s": "2",
}
"""Those of a cluster that is to be there: without them Ray looks for it for a quarter of an hour."""


@contextlib.contextmanager
def connected(address: str, cpus: int) -> Iterator[ModuleType]:
    """Connect to the cluster, or start one; disconnect, or end it, when the block is left."""
    with contextlib.ExitStack() as undo:
        private = address == "local"
        undo.enter_context(_settings({**QUIET, **(_private() if private else IMPATIENT)}))
        try:
            import ray
        except ImportError as error:
            raise HpoError("--ray: Ray is not installed; pip install 'hpo[ray]'") from error

        # Ray's own messages are for those who develop with it.
        options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "CRITICAL"}
        if private:
            # Ray's sockets lie in it, and their paths must be short.
            folder = tempfile.mkdtemp(prefix="hpo-ray-", dir="/tmp" if os.path.isdir("/tmp") else None)  # noqa: S108
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            options |= {"num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
            options["_temp_dir"] = folder
            undo.callback(_shut_down, ray, psutil.Process().children(recursive=True))
        else:
            undo.callback(ray.shutdown)
        try:
            with _own_signals(), _hushed():
                undo.enter_context(_no_messages())
                ray.init(**options)
        except (OSError, RuntimeError, ValueError, ImportError, ray.exceptions.RayError) as error:
            raise HpoError(_no_cluster(address, error)) from error
        yield ray


def _private() -> dict[str, str]:
    """A token of its own, so that Ray leaves none in the user's home."""
    return {**PRIVATE, "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextlib.contextmanager
def _settings(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment that are not set, until the block ends."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def _shut_down(ray: ModuleType, before: Collection[psutil.Process]) -> None:
    """End the cluster that was started for the call, and wait until its processes are gone."""
    started = set(psutil.Process().children(recursive=True)) - set(before)
    ray.shutdown()
    deadline = time.monotonic() + ENDING_S
    while (alive := [process for process in started if _lives(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the signal handlers: Ray puts its own in the place of that for SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Send what is written to stderr nowhere: Ray's C++ says there several times that it cannot connect."""
    with contextlib.ExitStack() as undo:
        kept = os.dup(2)
        undo.callback(os.close, kept)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        undo.callback(os.close, nowhere)
        os.dup2(nowhere, 2)
        undo.callback(os.dup2, kept, 2)
        yield


@contextlib.contextmanager
def _no_messages() -> Iterator[None]:
    """Keep Ray from printing on stdout, which is for data, that a node died: no setting of Ray's does."""
    module = importlib.import_module("ray._private.worker")
    name = "print_to_stdstream"
    printing = getattr(module, name, None)
    setattr(module, name, lambda *what, **how: None)
    try:
        yield
    finally:
        setattr(module, name, printing)


def _no_cluster(address: str, error: BaseException) -> str:
    """Say in a line why there is no connection, with Ray's last reason."""
    reason = error
    while reason.__cause__ is not None:
        reason = reason.__cause__
    said = " ".join(str(reason).split())
    if address == "local":
        return f"--ray: Ray did not start: {short(said)}"
    name = f"--ray {mask(address)}"
    if "Could not find any running Ray instance" in said:
        return f"{name}: this machine belongs to no Ray cluster; give its HOST:PORT, or --ray alone to start one"
    if "waiting for GCS" in said:
        return f"{name}: no Ray cluster answers there; start one with `ray start --head`, or use --ray alone"
    return f"{name}: {short(said)}"


def short(text: str) -> str:
    """Return a text on one line, and not too long for one."""
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:300] + "..."
