"""Workers on Ray, on a real cluster of three nodes and on clusters of their own: nodes and processes are killed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import yaml
from objectives import objective_study
from optuna.trial import TrialState
from postgresql_server import Server
from ray_cluster import LOOPBACK, RayCluster, lives, ray_cluster, wait_until_gone
from tiny import check_whole, states, study_of, tree, trials_of
from typer.main import get_command

from hpo.cli import app
from hpo.errors import HpoError, UsageError
from hpo.search.events import Event, Note
from hpo.search.launch import submit
from hpo.service import ray_crew
from hpo.service.ray_crew import RayCrew
from hpo.storage import ATTEMPTS, Storage, open_storage, running_trials
from hpo.studyfile import parse_study

DEADLINE_S = 90.0
Found = TypeVar("Found")

STUDY = study_of(training={"epochs": 12}, search={"trials": 60})
ENDLESS = study_of(training={"epochs": 100_000}, search={"trials": 8})


def to(said: list[str]) -> Callable[[Event], None]:
    """What adds the text of each note to a list."""

    def add(event: Event) -> None:
        assert isinstance(event, Note)
        said.append(event.text)

    return add


@pytest.fixture(scope="module")
def long_lived() -> Iterator[RayCluster]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LOOPBACK.items():
            patch.setenv(name, value)
        with ray_cluster(nodes=3, cpus=2) as cluster:
            yield cluster


@pytest.fixture
def cluster(long_lived: RayCluster, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    """The cluster with all of its nodes, whatever tests before have done to it."""
    while len(long_lived.nodes) < 3:
        long_lived.add()
    monkeypatch.setattr(ray_crew, "LOOK_S", 0.1)
    return long_lived


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    with server.database() as name:
        yield server.url(name)


@pytest.fixture
def storage(url: str) -> Iterator[Storage]:
    opened = open_storage(url)
    yield opened
    opened.close()


def wait_for(what: Callable[[], Found | None]) -> Found:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def at_work(crew: RayCrew, storage: Storage) -> Callable[[], list[int]]:
    """Look for the processes that hold trials."""

    def look() -> list[int]:
        assert crew.check()
        return [trial.worker.pid for trial in running_trials(storage) if trial.worker is not None]

    return look


def follow(crew: RayCrew) -> None:
    """Until all workers have ended."""
    wait_for(lambda: not crew.check())


def test_a_node_is_killed_in_the_middle_and_the_study_ends_with_exactly_its_trials(
    cluster: RayCluster, storage: Storage, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    submit(STUDY, storage)
    said: list[str] = []
    with RayCrew(url, "tiny", 3, cluster.address, 0, to(said)) as crew:

        def node_at_work() -> psutil.Process | None:
            nodes = [cluster.node_of(pid) for pid in look()]
            return next((node for node in nodes if node != cluster.nodes[0]), None)

        look = at_work(crew, storage)
        cluster.kill(wait_for(node_at_work))
        follow(crew)
    trials = trials_of(storage)
    check_whole(trials, 60)
    attempts = [attempt for trial in trials for attempt in trial.system_attrs.get(ATTEMPTS, [])]
    assert attempts
    assert {attempt["ended"] for attempt in attempts} == {"died"}
    assert len({trial.system_attrs["hpo:worker"]["pid"] for trial in trials}) >= 2
    assert said[0] == "Ray: 3 nodes with 6 CPUs; 3 workers of 1 CPU"
    assert any(line.endswith("died; its workers start again where there is room") for line in said)
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_was_killed_is_started_again(cluster: RayCluster, storage: Storage, url: str) -> None:
    submit(STUDY, storage)
    said: list[str] = []
    with RayCrew(url, "tiny", 1, cluster.address, 0, to(said)) as crew:
        (first, *_) = wait_for(at_work(crew, storage))
        wait_for(lambda: crew.check() and crew._seats[0].seen)
        os.kill(first, signal.SIGKILL)
        follow(crew)
    trials = trials_of(storage)
    check_whole(trials, 60)
    second = trials[-1].system_attrs["hpo:worker"]["pid"]
    host = trials[-1].system_attrs["hpo:worker"]["host"]
    assert second != first
    restarted = f"worker 1: process {first} on {host} ended; started again as process {second} on {host}"
    assert said[1:] == [restarted]


def test_an_objective_of_the_users_own_runs_there(
    cluster: RayCluster, storage: Storage, url: str, tmp_path: Path
) -> None:
    submit(objective_study(tmp_path, pruner="none"), storage)
    with RayCrew(url, "own", 1, cluster.address, 0, print) as crew:
        follow(crew)
    check_whole(trials_of(storage, "own"), 4)
    assert states(trials_of(storage, "own")) == [TrialState.COMPLETE] * 4


def test_who_leaves_the_crew_gets_the_trials_back_in_the_queue(cluster: RayCluster, storage: Storage, url: str) -> None:
    submit(ENDLESS, storage)
    with RayCrew(url, "tiny", 2, cluster.address, 0, print) as crew:
        look = at_work(crew, storage)
        wait_for(lambda: len(set(look())) == 2)
        workers = [psutil.Process(pid) for pid in set(look())]
    wait_until_gone(workers)
    assert states(trials_of(storage)) == [TrialState.WAITING] * 8
    assert not any(ATTEMPTS in trial.system_attrs for trial in trials_of(storage))


def test_a_worker_that_nobody_places_waits_and_is_gone_with_the_crew(
    cluster: RayCluster, storage: Storage, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_crew, "ROOM_S", 0.5)
    monkeypatch.setattr(ray_crew, "PENDING_S", 1.0)
    submit(STUDY, storage)
    said: list[str] = []
    with RayCrew(url, "tiny", 7, cluster.address, 0, to(said)) as crew:
        assert "Ray: there is room for 6 of them; the others wait" in said
        wait_for(lambda: crew.check() and any("wait for room in the cluster" in line for line in said))


def test_the_password_of_the_environment_goes_to_the_workers_and_nowhere_else(
    cluster: RayCluster, server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "not-to-be-seen-anywhere"
    name = url.rpartition("/")[2]
    server.sql(f"CREATE ROLE guest LOGIN PASSWORD '{password}'")
    server.sql(f"ALTER DATABASE {name} OWNER TO guest")
    monkeypatch.setenv("PGPASSWORD", password)
    storage = open_storage(server.url(name, "guest"))
    submit(study_of(), storage)
    said: list[str] = []
    with RayCrew(server.url(name, "guest"), "tiny", 1, cluster.address, 0, to(said)) as crew:
        follow(crew)
    check_whole(trials_of(storage), 6)
    storage.close()
    kept = [path for path in cluster.folder.rglob("*") if path.is_file()]
    assert any(b"population of 4 begins" in path.read_bytes() for path in kept)
    assert not any(password.encode() in path.read_bytes() for path in kept)


def test_sqlite_is_refused_where_there_is_more_than_one_node(cluster: RayCluster, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    line = (
        f"{url}: an SQLite file cannot be shared by 3 nodes of the Ray cluster; use a server that all of them reach, "
    )
    with pytest.raises(HpoError) as raised:
        RayCrew(url, "tiny", 2, cluster.address, 0, print).__enter__()
    assert str(raised.value) == line + "--storage postgresql://USER@HOST/DATABASE"


def test_a_share_of_a_gpu_that_no_node_has_is_refused(cluster: RayCluster, url: str) -> None:
    with pytest.raises(HpoError, match=r"no node .* room for a worker of 1 CPU and 0.25 GPU \(it has 3 nodes with 6 C"):
        RayCrew(url, "tiny", 2, cluster.address, 0.25, print).__enter__()


@pytest.mark.parametrize("share", [-1, 1.5, float("nan"), float("inf")])
def test_a_share_of_a_gpu_is_a_part_of_one_or_whole_ones(share: float) -> None:
    with pytest.raises(UsageError, match=r"^--gpus-per-worker .* a part of a GPU, such as 0.25, or a whole number$"):
        RayCrew("sqlite:///hpo.db", "tiny", 2, None, share, print)


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "room"),
    [
        ({"CPU": 4.0}, 1, 0, 4),
        ({"CPU": 4.0}, 3, 0, 1),
        ({"CPU": 4.0}, 1, 0.25, 0),
        ({"GPU": 4.0}, 1, 0.25, 0),
        ({"CPU": 16.0, "GPU": 2.0}, 1, 0.25, 8),
        ({"CPU": 16.0, "GPU": 2.0}, 1, 0.4, 4),
        ({"CPU": 16.0, "GPU": 2.0}, 1, 1 / 3, 6),
        ({"CPU": 16.0, "GPU": 5.0}, 1, 2, 2),
    ],
)
def test_a_part_of_a_gpu_is_a_part_of_one_and_the_same(
    resources: dict[str, float], cpus: int, gpus: float, room: int
) -> None:
    assert ray_crew._fits(resources, cpus, gpus) == room


def test_what_goes_wrong_in_all_workers_is_one_line(cluster: RayCluster, storage: Storage, url: str) -> None:
    said: list[str] = []
    with (
        pytest.raises(HpoError, match=r"^node \S+: postgresql://\S+: no study named 'nobody'[^\n]*$"),
        RayCrew(url, "nobody", 2, cluster.address, 0, to(said)) as crew,
    ):
        follow(crew)
    assert sum(line.startswith(("worker 1: node ", "worker 2: node ")) for line in said) == 2


def test_another_version_on_a_node_is_one_line(
    cluster: RayCluster, storage: Storage, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = ray_crew.__version__
    monkeypatch.setattr(ray_crew, "__version__", "99.0")
    line = rf"^node \S+: has hpo {has}, and the launch 99.0; install 99.0 there$"
    with pytest.raises(HpoError, match=line), RayCrew(url, "tiny", 1, cluster.address, 0, print) as crew:
        follow(crew)


LAUNCH = """
import signal, sys, threading
from hpo.errors import HpoError
from hpo.service.ray_crew import RayCrew

stop = threading.Event()
NUMBERS = [signal.SIGINT, signal.SIGTERM]
for number in NUMBERS:
    signal.signal(number, lambda *_: stop.set())
handlers = [signal.getsignal(number) for number in NUMBERS]
url, address, workers = sys.argv[1], sys.argv[2] or None, int(sys.argv[3])
try:
    with RayCrew(url, "tiny", workers, address, 0, lambda note: print(note.text, flush=True)) as crew:
        assert [signal.getsignal(number) for number in NUMBERS] == handlers
        while crew.check() and not stop.wait(0.05):
            pass
except HpoError as error:
    sys.exit(f"hpo: {error}")
"""


class Launch:
    """A crew in a process of its own, which has not imported Ray before, and which takes signals as hpo does."""

    def __init__(self, url: str, address: str = "", workers: int = 2, **environment: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", LAUNCH, url, address, str(workers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean | environment,
            start_new_session=True,
        )

    def end(self) -> tuple[int, str, str]:
        """Wait for the end; return the status, stdout and stderr."""
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out, err

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def launched() -> Iterator[Callable[..., Launch]]:
    made: list[Launch] = []

    def launch(*arguments: str, **changes: Any) -> Launch:
        made.append(Launch(*arguments, **changes))
        return made[-1]

    yield launch
    for each in made:
        each.kill()


@pytest.fixture
def file_storage(tmp_path: Path) -> Iterator[Storage]:
    opened = open_storage(f"sqlite:///{tmp_path}/hpo.db")
    yield opened
    opened.close()


OWN_NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(64, classes))
"""


def folders() -> set[Path]:
    return set(Path("/tmp").glob("hpo-ray-*"))


def test_a_cluster_for_the_call_works_on_a_file_and_leaves_nothing(
    launched: Callable[..., Launch], file_storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(OWN_NET)
    written = tree()
    written["network"] = {"module": "nets.py:Net"}
    submit(parse_study(written, "tiny.toml", tmp_path), file_storage)
    before = folders()
    launch = launched(file_storage.location.full_url, HOME=str(tmp_path))
    assert launch.end() == (
        0,
        f"Ray: 1 node with {max(2, os.cpu_count() or 1) // 2 * 2} CPUs; 2 workers of 1 CPU\n",
        "",
    )
    check_whole(trials_of(file_storage), 6)
    assert folders() <= before
    assert not (tmp_path / ".ray").exists()


def test_ctrl_c_hands_back_the_trials_and_ends_the_cluster(
    launched: Callable[..., Launch], file_storage: Storage
) -> None:
    submit(ENDLESS, file_storage)
    launch = launched(file_storage.location.full_url, workers=1)
    wait_for(lambda: running_trials(file_storage))
    started = psutil.Process(launch.process.pid).children(recursive=True)
    os.killpg(launch.process.pid, signal.SIGINT)  # as a terminal does
    status, _, err = launch.end()
    assert (status, err) == (0, "")
    assert states(trials_of(file_storage)) == [TrialState.WAITING] * 4
    assert started
    assert not any(map(lives, started))


def test_no_cluster_at_the_address_is_one_line(launched: Callable[..., Launch], tmp_path: Path) -> None:
    start = time.monotonic()
    status, _, err = launched(f"sqlite:///{tmp_path}/hpo.db", "127.0.0.1:1").end()
    assert (status, err) == (
        1,
        "hpo: --ray 127.0.0.1:1: no Ray cluster answers there; start one with `ray start --head`, or use --ray alone\n",
    )
    assert time.monotonic() - start < 40


def test_ray_is_not_installed_is_one_line(launched: Callable[..., Launch], tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('blocked')")
    status, out, err = launched(f"sqlite:///{tmp_path}/hpo.db", PYTHONPATH=str(tmp_path)).end()
    assert (status, out, err) == (1, "", "hpo: --ray: Ray is not installed; pip install 'hpo[ray]'\n")


def test_a_crew_is_made_without_ray() -> None:
    script = "import sys, hpo.service.ray_crew; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


SCALING = (Path(__file__).parents[2] / "docs/scaling.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", SCALING, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("script", [body for language, body in BLOCKS if language == "sh"])
def test_a_shown_script_is_one(script: str) -> None:
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_shown_manifests_run_commands_that_exist() -> None:
    manifests = [yaml.safe_load(body) for language, body in BLOCKS if language == "yaml"]
    assert [manifest["kind"] for manifest in manifests] == ["Job", "RayJob"]
    job, ray_job = (manifest["spec"] for manifest in manifests)
    commands = [job["template"]["spec"]["containers"][0]["args"], shlex.split(ray_job["entrypoint"])[1:]]
    for command, *arguments in commands:
        context = get_command(app).commands[command].make_context(command, arguments)
        assert context.params["ray" if command == "launch" else "until_idle"]
