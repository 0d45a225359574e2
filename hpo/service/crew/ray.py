"""A crew on Ray: a launch's workers as actors, placed by Ray on a cluster's nodes and started again where they die.

Promises: the workers are gone when the crew is left, and so is a cluster that was started for it; a worker whose
process or node dies is started again by Ray, and its trials are taken back as those of any process that died; what goes
wrong in a worker, or with the cluster, is one line. The storage's URL goes to the workers' processes and nowhere else:
it is in no name, no log and no environment. The signal handlers stay those of the launch.
All that hpo knows of Ray is here, and Ray is imported when a crew starts. Knows nothing of trials: the workers find
their work in the storage.
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

PENDING_S = 5.0
"""How long a worker may take to take note of a stop; one that is placed nowhere, or being restarted, takes none."""

LOOK_S = 2.0
"""How often it is asked where the workers are."""

ROOM_S = 30.0
"""How long a worker may wait for room in the cluster before that is said."""

GROUP_LABEL = "ray.io/node-group"
"""The label of nodes that an autoscaler or KubeRay started: there may be more of them, and others, later."""


@dataclass
class _Seat:
    """A worker's place in the crew: its actor, the call that is its work, and where it was seen last.

    `asked` is the call that asks where it is now, and `since` when it was made.
    """

    number: int
    actor: Any
    work: Any
    asked: Any
    since: float
    seen: Mapping[str, Any] | None = None
    over: bool = False

    def __str__(self) -> str:
        return f"worker {self.number}"


class RayCrew:
    """See the module, and `hpo.service.crew.crew.Crew`.

    Without an `address` the workers run where RAY_ADDRESS says, and without that on a cluster started for them on this
    machine; "auto" is the cluster that this machine belongs to. `say` takes what the user should know. A worker has a
    CPU, on a cluster of its own its share of the machine; without a share of a GPU it trains on the CPU.
    """

    def __init__(
        self,
        storage_url: str,
        study: str | int,
        workers: int,
        address: str | None,
        gpus_per_worker: float,
        say: Callable[[Event], None],
    ) -> None:
        self._url, self._shown, self.study = make_url(storage_url), mask(storage_url), study
        self._workers, self._gpus, self._say = workers, gpus_per_worker, say
        environment = os.environ.get("RAY_ADDRESS")
        self._address = (address if address not in (None, "auto") else environment) or address or "local"
        self._cpus = max(1, _cores() // workers) if self._is_private else 1
        self._seats: list[_Seat] = []
        self._problems: list[str] = []
        self._looked = self._began = 0.0
        self._dead: set[str] = set()
        self._waiting_said = False
        self._left = contextlib.ExitStack()
        self._at_once = False
        _check_share(gpus_per_worker)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as started:
            ray = started.enter_context(connected(self._address, self._cpus * self._workers))
            nodes = [node for node in ray.nodes() if node["Alive"]]
            self._check_storage(nodes)
            self._check_room(nodes)
            started.callback(self._end, ray)
            self._start(ray)
            self._left = started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._at_once = kind is not None and issubclass(kind, SystemExit | KeyboardInterrupt)
        self._left.close()

    def check(self) -> int:
        """Return how many workers are at work, wait for room or are being started again; say what ended.

        Once a worker has found nothing left to do, those that still have no place do not count. Raises HpoError where
        all have ended, each with an error.
        """
        import ray

        self._note_ended(ray)
        if time.monotonic() - self._looked >= LOOK_S:
            self._look(ray)
            self._looked = time.monotonic()
        waiting = [seat for seat in self._seats if not seat.over]
        done = len(self._seats) - len(waiting) - len(self._problems)
        if done:
            waiting = [seat for seat in waiting if time.monotonic() - seat.since < PENDING_S]
        at_work = len(waiting)
        if not at_work and len(self._problems) == len(self._seats):
            raise HpoError(self._problems[-1])
        return at_work

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
            f"{self._shown}: an SQLite file cannot be shared by {where}; use a server that all of them reach, "
            "--storage postgresql://USER@HOST/DATABASE"
        )

    def _check_room(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        room = sum(_fits(node["Resources"], self._cpus, self._gpus) for node in nodes)
        wanted = f"{self._workers} worker{'s' if self._workers > 1 else ''} of {_amount(self._cpus, self._gpus)}"
        cpus, gpus = (sum(node["Resources"].get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
        has = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} with {_amount(cpus, gpus)}"
        self._tell(f"Ray: {has}; {wanted}")
        if room >= self._workers:
            return
        if any(GROUP_LABEL in node.get("Labels", {}) for node in nodes):
            self._tell(f"Ray: there is room for {room} of them now; the others wait for the autoscaler")
        elif room:
            self._tell(f"Ray: there is room for {room} of them; the others wait")
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
            "max_concurrency": 2,  # one call is the work, the other asks where it is done, or to stop
            "scheduling_strategy": "SPREAD",
        }
        actor_class = ray.remote(**options)(_worker_class())
        url = _for_workers(self._url)
        node = ray.get_runtime_context().get_node_id() if _is_file(self._url) else None
        device = "auto" if self._gpus else "cpu"
        for number in range(1, self._workers + 1):
            actor = actor_class.remote()
            # Arguments of a call go straight to the worker; those of the actor itself Ray would keep.
            work = actor.work.remote(__version__, url, node, self.study, device, self._cpus)
            self._seats.append(_Seat(number, actor, work, actor.where.remote(), time.monotonic()))
        self._began = time.monotonic()

    def _note_ended(self, ray: ModuleType) -> None:
        seats = {seat.work: seat for seat in self._seats if not seat.over}
        ended = ray.wait(list(seats), num_returns=len(seats), timeout=0)[0] if seats else []
        for work in ended:
            seats[work].over = True
            problem, said = _outcome(ray, work)
            self._pass_on(seats[work], said)
            if problem:
                self._problems.append(problem)
                self._warn(f"{seats[work]}: {problem}")

    def _look(self, ray: ModuleType) -> None:
        """Say which workers Ray has started again, which nodes died, and who waits for room."""
        at_work = [seat for seat in self._seats if not seat.over]
        seats = {seat.asked: seat for seat in at_work}
        for asked in ray.wait(list(seats), num_returns=len(seats), timeout=0)[0] if seats else []:
            seat = seats[asked]
            with contextlib.suppress(ray.exceptions.RayError):  # what became of it, its work tells
                before, (seat.seen, said) = seat.seen, ray.get(asked)
                self._pass_on(seat, said)
                if before is not None and before != seat.seen:
                    self._warn(f"{seat}: {_place(before)} ended; started again as {_place(seat.seen)}")
            seat.asked, seat.since = seat.actor.where.remote(), time.monotonic()
        ours = {seat.seen["node"]: seat.seen["host"] for seat in at_work if seat.seen is not None}
        dead = {node["NodeID"] for node in ray.nodes() if not node["Alive"]} & ours.keys() - self._dead
        for node in sorted(dead):
            self._warn(f"Ray: node {ours[node]} died; its workers start again where there is room")
        self._dead |= dead
        unplaced = sum(seat.seen is None for seat in at_work)
        if unplaced and not self._waiting_said and time.monotonic() - self._began > ROOM_S:
            self._waiting_said = True
            self._warn(f"Ray: {unplaced} of {self._workers} workers wait for room in the cluster")

    def _pass_on(self, seat: _Seat, said: Sequence[str]) -> None:
        for text in said:
            self._warn(f"{seat}: {text}")

    def _tell(self, text: str) -> None:
        self._say(Note(text))

    def _warn(self, text: str) -> None:
        self._say(Note(text, "warning"))

    def _end(self, ray: ModuleType) -> None:
        """Ask the workers to stop, wait for those that do, unless all is to end at once, and kill the others."""
        from hpo.service.worker_process import REQUEUE_S, STOP_S

        seats = [seat for seat in self._seats if not seat.over and not self._at_once]
        asked = {seat.actor.stop.remote(): seat for seat in seats}
        heard = ray.wait(list(asked), num_returns=len(asked), timeout=PENDING_S)[0] if asked else []
        works = [asked[each].work for each in heard]
        if works:
            ray.wait(works, num_returns=len(works), timeout=STOP_S + REQUEUE_S)
        for seat in self._seats:
            ray.kill(seat.actor, no_restart=True)
        self._seats = []


def _worker_class() -> type:
    """Return the class of the actors. Defined here, it travels by value: a node without hpo can say so."""

    class HpoWorker:
        def __init__(self) -> None:
            self._stop = threading.Event()
            self._warnings: list[str] = []

        def work(self, version: str, *arguments: Any) -> tuple[str, list[str]]:
            """Work until nothing is left to do, or a stop; return what went wrong, or "", and the last warnings."""
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
            """Ask the work to stop: the epoch in hand ends, and what is not finished goes back to the queue."""
            self._stop.set()

        def where(self) -> tuple[dict[str, Any], list[str]]:
            """Return which process this is, and on which node; and what it warned of since it was asked last."""
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
    """Work in an actor's process; return what went wrong as a line, or "". `node` is the one that has the file."""
    import ray

    from hpo.service.logs import event_logger, start_log
    from hpo.service.worker import WorkerOptions, work
    from hpo.service.worker_process import wait_for_storage
    from hpo.storage import open_storage

    here = ray.get_runtime_context()
    if node not in (None, here.get_node_id()):
        return "an SQLite file cannot be shared by several nodes; use --storage postgresql://USER@HOST/DATABASE"
    in_log = event_logger()

    def listen(study: str, event: Event) -> None:
        in_log(study, event)
        if isinstance(event, Note) and event.level == "warning":
            warn(event.text)

    try:
        # What has been there is waited for: a server may restart while a worker does.
        storage = wait_for_storage(url, stop) if here.was_current_actor_reconstructed else open_storage(url)
        if storage is not None:
            start_log(sys.stdout, "text", f"{storage.worker.host}:{storage.worker.pid}")  # among the node's logs of Ray
            work(storage, WorkerOptions((study,), device, threads, until_idle=True), listen, stop)
            storage.close()
    except HpoError as error:
        return str(error)
    return ""


def _outcome(ray: ModuleType, work: Any) -> tuple[str, Sequence[str]]:
    """Return how a worker's work ended, "" for well or what went wrong, as a line; and its last warnings."""
    try:
        outcome: tuple[str, list[str]] = ray.get(work)
    except ray.exceptions.RayTaskError as error:
        return f"{type(error.cause).__name__}: {short(str(error.cause))} (a defect in hpo)", ()
    except ray.exceptions.RayError as error:
        return f"Ray gave it up: {short(str(error))}", ()
    return outcome


def _place(seen: Mapping[str, Any]) -> str:
    return f"process {seen['process']} on {seen['host']}"


def _cores() -> int:
    return len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU{'s' if cpus > 1 else ''}" + (f" and {gpus:g} GPU{'s' if gpus > 1 else ''}" if gpus else "")


def _check_share(gpus: float) -> None:
    if not 0 <= gpus < float("inf") or (gpus > 1 and gpus != int(gpus)):
        raise UsageError(f"--gpus-per-worker {gpus:g}: must be a part of a GPU, such as 0.25, or a whole number")


def _fits(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many workers a node has room for when it is empty: a part of a GPU is a part of one and the same."""
    by_cpu = int(resources.get("CPU", 0) // cpus)
    if not gpus:
        return by_cpu
    has = resources.get("GPU", 0)
    by_gpu = int(has) * int(1 / gpus + 1e-9) if gpus <= 1 else int(has // gpus)
    return min(by_cpu, by_gpu)


def _is_file(url: URL) -> bool:
    return url.drivername.startswith("sqlite")


def _for_workers(url: URL) -> str:
    """Return the URL with what other processes know nothing of: this one's folder, and its PGPASSWORD.

    The file is not opened: to close it again would end the locks of whoever has it open in this process.
    """
    password = os.environ.get("PGPASSWORD")
    if _is_file(url):
        url = url.set(database=os.path.abspath(url.database or ""))
    elif password and not url.password and "password" not in url.query:
        url = url.set(password=password)
    return url.render_as_string(hide_password=False)
