"""Ray crew: a launch's workers as actors on the nodes of a Ray cluster.

Ray restarts a worker whose process or node dies; its trials are requeued as those of any dead worker. When the crew
exits, its workers end, and so does a cluster that was started for it. An error of a worker or of the cluster is one
line. The storage's URL, which may contain a password, is sent to the workers' processes only: it is in no name, log
or environment variable. Ray is imported when a crew starts.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, Self

import psutil
from sqlalchemy.engine import URL, make_url

from hpo import __version__
from hpo.errors import HpoError, UsageError
from hpo.search.events import Event, Note
from hpo.service.crew.ray_cluster import connected, short
from hpo.storage import mask

REPLY_S = 5.0
"""Seconds within which a running worker replies. One that waits for room or is being restarted does not."""

LOCATE_S = 2.0
"""Seconds between two calls that ask the workers where they run."""

WAIT_WARNING_S = 30.0
"""Seconds that workers wait for room in the cluster before a warning."""

AUTOSCALER_LABEL = "ray.io/node-group"
"""Label of nodes that an autoscaler or KubeRay started: it may add nodes later."""


@dataclass
class _Slot:
    """A worker of the crew: its actor, the call of its `work`, and its last known place (process and node).

    `locating` is the call that asks for its place, made at `since`.
    """

    number: int
    actor: Any
    work: Any
    locating: Any
    since: float
    place: Mapping[str, Any] | None = None
    over: bool = False

    def __str__(self) -> str:
        return f"worker {self.number}"


class RayCrew:
    """A `Crew` of Ray actors. `on_event` is called with notes for the user.

    Without an `address` the workers run on the cluster at RAY_ADDRESS, and without that variable on a cluster started
    for them on this machine; "auto" is the cluster that this machine belongs to. Each worker gets one CPU, or on a
    cluster started for them an equal share of the machine's. With `gpus_per_worker` 0 it trains on the CPU.
    """

    def __init__(
        self,
        storage_url: str,
        study: str | int,
        workers: int,
        address: str | None,
        gpus_per_worker: float,
        on_event: Callable[[Event], None],
    ) -> None:
        self._url, self._shown, self.study = make_url(storage_url), mask(storage_url), study
        self._workers, self._gpus, self._on_event = workers, gpus_per_worker, on_event
        environment = os.environ.get("RAY_ADDRESS")
        self._address = (address if address not in (None, "auto") else environment) or address or "local"
        self._cpus = max(1, _cores() // workers) if self._is_private else 1
        self._slots: list[_Slot] = []
        self._problems: list[str] = []
        self._located = self._began = 0.0
        self._dead_nodes: set[str] = set()
        self._wait_warned = False
        self._resources = contextlib.ExitStack()
        self._kill_now = False
        _check_gpus(gpus_per_worker)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as started:
            ray = started.enter_context(connected(self._address, self._cpus * self._workers))
            nodes = [node for node in ray.nodes() if node["Alive"]]
            self._check_storage(nodes)
            self._check_room(nodes)
            started.callback(self._end, ray)
            self._start(ray)
            self._resources = started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._kill_now = kind is not None and issubclass(kind, SystemExit | KeyboardInterrupt)
        self._resources.close()

    def check(self) -> int:
        """Return the number of workers that work, wait for room or are being restarted; show warnings of the others.

        Once a worker has found no trials left, workers that wait for room do not count. Raises HpoError if all workers
        have ended with an error.
        """
        import ray

        self._collect_ended(ray)
        if time.monotonic() - self._located >= LOCATE_S:
            self._locate(ray)
            self._located = time.monotonic()
        active = [slot for slot in self._slots if not slot.over]
        if len(self._slots) - len(active) > len(self._problems):  # a worker ended without a problem
            active = [slot for slot in active if time.monotonic() - slot.since < REPLY_S]
        if not active and len(self._problems) == len(self._slots):
            raise HpoError(self._problems[-1])
        return len(active)

    @property
    def _is_private(self) -> bool:
        return self._address == "local"

    def _check_storage(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        if not _is_file(self._url):
            return
        if len(nodes) > 1:
            where = f"{len(nodes)} nodes of the Ray cluster"
        elif "://" in self._address:
            where = f"the nodes behind {mask(self._address)}"
        else:
            return
        raise HpoError(
            f"{self._shown}: an SQLite file cannot be shared by {where}; use a database server that all of them reach, "
            "--storage postgresql://USER@HOST/DATABASE"
        )

    def _check_room(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        room = sum(_fits(node["Resources"], self._cpus, self._gpus) for node in nodes)
        wanted = f"{self._workers} worker{'s' if self._workers > 1 else ''} of {_amount(self._cpus, self._gpus)}"
        cpus, gpus = (sum(node["Resources"].get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
        has = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} with {_amount(cpus, gpus)}"
        self._note(f"Ray: {has}; {wanted}")
        if room >= self._workers:
            return
        if any(AUTOSCALER_LABEL in node.get("Labels", {}) for node in nodes):
            self._note(f"Ray: there is room for {room} of them now; the others wait for the autoscaler")
        elif room:
            self._note(f"Ray: there is room for {room} of them; the others wait")
        else:
            raise HpoError(
                f"--ray: no node of the Ray cluster has room for a worker of {_amount(self._cpus, self._gpus)} (it has "
                f"{has}); change --gpus-per-worker, or add a node"
            )

    def _start(self, ray: ModuleType) -> None:
        options = {
            "num_cpus": self._cpus,
            "num_gpus": self._gpus,
            "max_restarts": -1,
            "max_task_retries": -1,
            "max_concurrency": 2,  # `work`, and beside it `where` or `stop`
            "scheduling_strategy": "SPREAD",
        }
        actor_class = ray.remote(**options)(_worker_class())
        url = _for_workers(self._url)
        node = ray.get_runtime_context().get_node_id() if _is_file(self._url) else None
        device = "auto" if self._gpus else "cpu"
        for number in range(1, self._workers + 1):
            actor = actor_class.remote()
            # Arguments of a call are sent to the worker's process only; those of the actor itself Ray would store.
            work = actor.work.remote(__version__, url, node, self.study, device, self._cpus)
            self._slots.append(_Slot(number, actor, work, actor.where.remote(), time.monotonic()))
        self._began = time.monotonic()

    def _collect_ended(self, ray: ModuleType) -> None:
        slots = {slot.work: slot for slot in self._slots if not slot.over}
        ended = ray.wait(list(slots), num_returns=len(slots), timeout=0)[0] if slots else []
        for work in ended:
            slots[work].over = True
            problem, warnings = _outcome(ray, work)
            self._show_warnings(slots[work], warnings)
            if problem:
                self._problems.append(problem)
                self._warn(f"{slots[work]}: {problem}")

    def _locate(self, ray: ModuleType) -> None:
        """Ask the workers for their places; warn of restarted workers, dead nodes and workers without room."""
        working = [slot for slot in self._slots if not slot.over]
        slots = {slot.locating: slot for slot in working}
        for call in ray.wait(list(slots), num_returns=len(slots), timeout=0)[0] if slots else []:
            slot = slots[call]
            with contextlib.suppress(ray.exceptions.RayError):  # the call of its work raises the same
                before, (slot.place, warnings) = slot.place, ray.get(call)
                self._show_warnings(slot, warnings)
                if before is not None and before != slot.place:
                    self._warn(f"{slot}: {_place(before)} ended; restarted as {_place(slot.place)}")
            slot.locating, slot.since = slot.actor.where.remote(), time.monotonic()
        hosts = {slot.place["node"]: slot.place["host"] for slot in working if slot.place is not None}
        dead = {node["NodeID"] for node in ray.nodes() if not node["Alive"]} & hosts.keys() - self._dead_nodes
        for node in sorted(dead):
            self._warn(f"Ray: node {hosts[node]} died; its workers restart on nodes with room")
        self._dead_nodes |= dead
        unplaced = sum(slot.place is None for slot in working)
        if unplaced and not self._wait_warned and time.monotonic() - self._began > WAIT_WARNING_S:
            self._wait_warned = True
            self._warn(f"Ray: {unplaced} of {self._workers} workers wait for room in the cluster")

    def _show_warnings(self, slot: _Slot, warnings: Sequence[str]) -> None:
        for text in warnings:
            self._warn(f"{slot}: {text}")

    def _note(self, text: str) -> None:
        self._on_event(Note(text))

    def _warn(self, text: str) -> None:
        self._on_event(Note(text, "warning"))

    def _end(self, ray: ModuleType) -> None:
        """Stop the workers after the current epoch, kill them after the shutdown timeout, or at once on a signal."""
        from hpo.service.worker_process import REQUEUE_S, STOP_S

        slots = [slot for slot in self._slots if not slot.over and not self._kill_now]
        stops = {slot.actor.stop.remote(): slot for slot in slots}
        replied = ray.wait(list(stops), num_returns=len(stops), timeout=REPLY_S)[0] if stops else []
        works = [stops[call].work for call in replied]
        if works:
            ray.wait(works, num_returns=len(works), timeout=STOP_S + REQUEUE_S)
        for slot in self._slots:
            ray.kill(slot.actor, no_restart=True)
        self._slots = []


def _worker_class() -> type:
    """Return the actors' class. Defined in a function it is pickled by value, so a node without hpo can load it."""

    class HpoWorker:
        def __init__(self) -> None:
            self._stop = threading.Event()
            self._warnings: list[str] = []

        def work(self, version: str, *arguments: Any) -> tuple[str, list[str]]:
            """Train trials until none are left, or a stop; return the error, or "", and the last warnings."""
            import socket

            try:
                import hpo
            except ImportError as error:
                problem = f"hpo cannot be imported ({error}); install hpo {version} there"
            else:
                if hpo.__version__ == version:
                    from hpo.service.crew.ray import work_on_this_node

                    problem = work_on_this_node(self._warnings.append, self._stop, *arguments)
                else:
                    problem = f"has hpo {hpo.__version__}, and the launch {version}; install {version} there"
            return problem and f"node {socket.gethostname()}: {problem}", self._new_warnings()

        def stop(self) -> None:
            """Stop the work after the current epoch; unfinished trials are requeued."""
            self._stop.set()

        def where(self) -> tuple[dict[str, Any], list[str]]:
            """Return this process and its node, and the warnings since the last call."""
            import os
            import socket

            import ray

            node = ray.get_runtime_context().get_node_id()
            return {"node": node, "host": socket.gethostname(), "process": os.getpid()}, self._new_warnings()

        def _new_warnings(self) -> list[str]:
            new = self._warnings[:]
            del self._warnings[: len(new)]
            return new

    return HpoWorker


def work_on_this_node(
    warn: Callable[[str], None],
    stop: threading.Event,
    url: str,
    node: str | None,
    study: str | int,
    device: str,
    threads: int,
) -> str:
    """Train trials in an actor's process; return the error as a line, or "". `node` is the one with the SQLite file."""
    import ray

    from hpo.service.logs import event_logger, start_log
    from hpo.service.worker import WorkerOptions, work
    from hpo.service.worker_process import wait_for_storage
    from hpo.storage import open_storage

    here = ray.get_runtime_context()
    if node not in (None, here.get_node_id()):
        return "an SQLite file cannot be shared by several nodes; use --storage postgresql://USER@HOST/DATABASE"
    log_event = event_logger()

    def listen(study: str, event: Event) -> None:
        log_event(study, event)
        if isinstance(event, Note) and event.level == "warning":
            warn(event.text)

    try:
        # A restarted worker waits for the storage, whose server may be restarting too.
        storage = wait_for_storage(url, stop) if here.was_current_actor_reconstructed else open_storage(url)
        if storage is not None:
            # Ray stores stdout in its logs on the node.
            start_log(sys.stdout, "text", f"{storage.worker.host}:{storage.worker.pid}")
            work(storage, WorkerOptions((study,), device, threads, until_idle=True), listen, stop)
            storage.close()
    except HpoError as error:
        return str(error)
    return ""


def _outcome(ray: ModuleType, work: Any) -> tuple[str, Sequence[str]]:
    """Return the error that ended a worker's work, as a line, or ""; and its last warnings."""
    try:
        outcome: tuple[str, list[str]] = ray.get(work)
    except ray.exceptions.RayTaskError as error:
        return f"{type(error.cause).__name__}: {short(str(error.cause))} (a defect in hpo)", ()
    except ray.exceptions.RayError as error:
        return f"Ray ended the worker: {short(str(error))}", ()
    return outcome


def _place(place: Mapping[str, Any]) -> str:
    return f"process {place['process']} on {place['host']}"


def _cores() -> int:
    return len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU{'s' if cpus > 1 else ''}" + (f" and {gpus:g} GPU{'s' if gpus > 1 else ''}" if gpus else "")


def _check_gpus(gpus: float) -> None:
    if not 0 <= gpus < float("inf") or (gpus > 1 and gpus != int(gpus)):
        raise UsageError(f"--gpus-per-worker {gpus:g}: must be a fraction of a GPU, such as 0.25, or a whole number")


def _fits(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Return the number of workers that an empty node has room for: a worker's fraction of a GPU is of one GPU."""
    by_cpu = int(resources.get("CPU", 0) // cpus)
    if not gpus:
        return by_cpu
    node_gpus = resources.get("GPU", 0)
    by_gpu = int(node_gpus) * int(1 / gpus + 1e-9) if gpus <= 1 else int(node_gpus // gpus)
    return min(by_cpu, by_gpu)


def _is_file(url: URL) -> bool:
    return url.drivername.startswith("sqlite")


def _for_workers(url: URL) -> str:
    """Return the URL for other processes: with an absolute path to an SQLite file, and with this one's PGPASSWORD.

    The file is not opened: closing it would release this process's locks on it.
    """
    password = os.environ.get("PGPASSWORD")
    if _is_file(url):
        url = url.set(database=os.path.abspath(url.database or ""))
    elif password and not url.password and "password" not in url.query:
        url = url.set(password=password)
    return url.render_as_string(hide_password=False)
