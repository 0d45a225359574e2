"""Ray cluster for a launch: connect to a running one, or start one on this machine.

The launch keeps its signal handlers, Ray prints nothing to stdout, and Ray's errors become one line. A cluster that was
started ends with the block, with all its processes and files.
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

SHUTDOWN_S = 5.0
"""Seconds that the processes of a cluster may take to end by themselves."""

OBJECT_STORE_BYTES = 80 * 2**20
"""Size of the object store, about the smallest that Ray accepts: hpo does not use it."""

COMMON_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0"}
"""Ray's environment variables for every crew, unless they are set already."""

LOCAL_SETTINGS = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
"""Those for a cluster started by the launch: Ray then listens on this machine's loopback address only."""

REMOTE_SETTINGS = {
    "RAY_NUM_REDIS_GET_RETRIES": "1",
    "RAY_py_gcs_connect_timeout_s": "5",
    "RAY_gcs_rpc_server_connect_timeout_s": "2",
}
"""Those for a running cluster: without them Ray tries to connect for a quarter of an hour."""


@contextlib.contextmanager
def connected(address: str, cpus: int) -> Iterator[ModuleType]:
    """Connect to the cluster at the address, or start one for "local"; yield Ray; disconnect, or end the cluster."""
    with contextlib.ExitStack() as undo:
        local = address == "local"
        undo.enter_context(_settings({**COMMON_SETTINGS, **(_local_settings() if local else REMOTE_SETTINGS)}))
        try:
            import ray
        except ImportError as error:
            raise HpoError("--ray: Ray is not installed; pip install 'hpo[ray]'") from error

        # Ray's log messages are for Ray's developers.
        options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "CRITICAL"}
        if local:
            # The folder contains Ray's sockets, whose paths must be short.
            folder = tempfile.mkdtemp(prefix="hpo-ray-", dir="/tmp" if os.path.isdir("/tmp") else None)  # noqa: S108
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            options |= {"num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
            options["_temp_dir"] = folder
            undo.callback(_shut_down, ray, psutil.Process().children(recursive=True))
        else:
            undo.callback(ray.shutdown)
        try:
            with _unchanged_signal_handlers(), _silenced_stderr():
                undo.enter_context(_silenced_node_messages())
                ray.init(**options)
        except (OSError, RuntimeError, ValueError, ImportError, ray.exceptions.RayError) as error:
            raise HpoError(_connection_error(address, error)) from error
        yield ray


def _local_settings() -> dict[str, str]:
    """Return the settings of a local cluster with a fresh token, or else Ray would store one in the user's home."""
    return {**LOCAL_SETTINGS, "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextlib.contextmanager
def _settings(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, until the block ends."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def _shut_down(ray: ModuleType, before: Collection[psutil.Process]) -> None:
    """End the cluster that was started, and wait until its processes have ended."""
    started = set(psutil.Process().children(recursive=True)) - set(before)
    ray.shutdown()
    deadline = time.monotonic() + SHUTDOWN_S
    while (alive := [process for process in started if _is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def _unchanged_signal_handlers() -> Iterator[None]:
    """Restore the signal handlers after the block: Ray replaces the one of SIGTERM."""
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
def _silenced_stderr() -> Iterator[None]:
    """Redirect stderr to /dev/null: Ray's C++ code prints there several times that it cannot connect."""
    with contextlib.ExitStack() as undo:
        stderr = os.dup(2)
        undo.callback(os.close, stderr)
        null = os.open(os.devnull, os.O_WRONLY)
        undo.callback(os.close, null)
        os.dup2(null, 2)
        undo.callback(os.dup2, stderr, 2)
        yield


@contextlib.contextmanager
def _silenced_node_messages() -> Iterator[None]:
    """Stop Ray from printing to stdout, which is for data, that a node died: Ray has no setting for it."""
    module = importlib.import_module("ray._private.worker")
    name = "print_to_stdstream"
    original = getattr(module, name, None)
    setattr(module, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        setattr(module, name, original)


def _connection_error(address: str, error: BaseException) -> str:
    """Return the error message of a failed connection, with Ray's innermost reason."""
    reason = error
    while reason.__cause__ is not None:
        reason = reason.__cause__
    text = " ".join(str(reason).split())
    if address == "local":
        return f"--ray: Ray did not start: {short(text)}"
    name = f"--ray {mask(address)}"
    if "Could not find any running Ray instance" in text:
        return f"{name}: this machine belongs to no Ray cluster; use --ray HOST:PORT, or --ray alone to start one"
    if "waiting for GCS" in text:
        return f"{name}: no Ray cluster answers there; start one with `ray start --head`, or use --ray alone"
    return f"{name}: {short(text)}"


def short(text: str) -> str:
    """Return the text on one line of at most 300 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:300] + "..."
