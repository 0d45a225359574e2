"""Tests of workers on Ray, on a cluster of three nodes and on local clusters: killed nodes and processes."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace

import psutil
import pytest
import yaml
from deadlines import deadline, wait_for
from forks import Fork
from objectives import objective_study
from optuna.trial import TrialState
from postgresql_server import Server
from ray_cluster import LOOPBACK, RayCluster, lives, ray_cluster, wait_until_gone
from tiny import check_whole, states, study_of, tree, trials_of
from typer.main import get_command

from hpo.cli import app
from hpo.errors import HpoError, UsageError
from hpo.results.reproduce.verify import verify
from hpo.search.events import Event, Note
from hpo.search.launch import submit
from hpo.service.crew import ray as ray_crew
from hpo.service.crew.ray import RayCrew
from hpo.storage import ATTEMPTS, Storage, open_storage, running_trials
from hpo.studyfile import parse_study

Launch = Callable[..., Fork]

STUDY = study_of(training={"epochs": 12}, search={"trials": 60})
ENDLESS = study_of(training={"epochs": 100_000}, search={"trials": 8})


def to(said: list[str]) -> Callable[[Event], None]:
    """Return a listener that appends the text of each note to a list."""

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
    """Return the cluster, after adding the nodes that earlier tests have killed."""
    while len(long_lived.nodes) < 3:
        long_lived.add()
    monkeypatch.setattr(ray_crew, "LOCATE_S", 0.1)
    return long_lived


@pytest.fixture
def url(server: Server, server_storage: Storage) -> str:
    return server.url(server_storage.location.full_url.rpartition("/")[2])


def at_work(crew: RayCrew, storage: Storage) -> Callable[[], list[int]]:
    """Return a function that finds the processes with claimed trials."""

    def look() -> list[int]:
        assert crew.check()
        return [trial.worker.pid for trial in running_trials(storage) if trial.worker is not None]

    return look


def follow(crew: RayCrew) -> None:
    """Wait until all workers have ended."""
    wait_for(lambda: not crew.check())


@pytest.mark.slow
def test_after_a_node_is_killed_the_study_still_ends_with_exactly_its_trials(
    cluster: RayCluster, server_storage: Storage, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    submit(STUDY, server_storage)
    said: list[str] = []
    with RayCrew(url, "tiny", 3, cluster.address, 0, to(said)) as crew:

        def node_at_work() -> psutil.Process | None:
            nodes = [cluster.node_of(pid) for pid in look()]
            return next((node for node in nodes if node != cluster.nodes[0]), None)

        look = at_work(crew, server_storage)
        cluster.kill(wait_for(node_at_work))
        follow(crew)
    trials = trials_of(server_storage)
    check_whole(trials, 60)
    attempts = [attempt for trial in trials for attempt in trial.system_attrs.get(ATTEMPTS, [])]
    assert attempts
    assert {attempt["ended"] for attempt in attempts} == {"died"}
    assert len({trial.system_attrs["hpo:worker"]["pid"] for trial in trials}) >= 2
    assert said[0] == "Ray: 3 nodes with 6 CPUs; 3 workers of 1 CPU"
    assert any(line.endswith("died; its workers restart on nodes with room") for line in said)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_workers_on_several_nodes_share_the_rungs_of_halving(
    cluster: RayCluster, server_storage: Storage, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_ARTIFACTS", str(tmp_path))
    halving = {"trials": 24, "population": 2, "pruner": "halving", "rung": 1}
    submit(study_of(training={"epochs": 5}, search=halving), server_storage)
    with RayCrew(url, "tiny", 3, cluster.address, 0, to([])) as crew:
        follow(crew)
    trials = trials_of(server_storage)
    check_whole(trials, 24)
    assert set(states(trials)) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert running_trials(server_storage) == []
    certificate = verify(server_storage, "tiny", 24, "cpu", threading.Event(), lambda text: None)
    assert len(certificate["trials"]) == states(trials).count(TrialState.COMPLETE)
    assert max(certificate["largest"].values()) < 1e-9


@pytest.mark.slow
def test_a_killed_worker_is_restarted(cluster: RayCluster, server_storage: Storage, url: str) -> None:
    submit(STUDY, server_storage)
    said: list[str] = []
    with RayCrew(url, "tiny", 1, cluster.address, 0, to(said)) as crew:
        (first, *_) = wait_for(at_work(crew, server_storage))
        wait_for(lambda: crew.check() and crew._slots[0].place)
        os.kill(first, signal.SIGKILL)
        follow(crew)
    trials = trials_of(server_storage)
    check_whole(trials, 60)
    second = trials[-1].system_attrs["hpo:worker"]["pid"]
    host = trials[-1].system_attrs["hpo:worker"]["host"]
    assert second != first
    restarted = f"worker 1: process {first} on {host} ended; restarted as process {second} on {host}"
    assert said[1:] == [restarted]


@pytest.mark.slow
def test_an_objective_function_runs_on_ray(
    cluster: RayCluster, server_storage: Storage, url: str, tmp_path: Path
) -> None:
    submit(objective_study(tmp_path, pruner="none"), server_storage)
    with RayCrew(url, "own", 1, cluster.address, 0, print) as crew:
        follow(crew)
    check_whole(trials_of(server_storage, "own"), 4)
    assert states(trials_of(server_storage, "own")) == [TrialState.COMPLETE] * 4


@pytest.mark.slow
def test_leaving_the_crew_requeues_the_trials(cluster: RayCluster, server_storage: Storage, url: str) -> None:
    submit(ENDLESS, server_storage)
    with RayCrew(url, "tiny", 2, cluster.address, 0, print) as crew:
        look = at_work(crew, server_storage)
        wait_for(lambda: len(set(look())) == 2)
        workers = [psutil.Process(pid) for pid in set(look())]
    wait_until_gone(workers)
    assert states(trials_of(server_storage)) == [TrialState.WAITING] * 8
    assert not any(ATTEMPTS in trial.system_attrs for trial in trials_of(server_storage))


@pytest.mark.slow
def test_a_worker_without_room_waits_and_ends_with_the_crew(
    cluster: RayCluster, server_storage: Storage, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_crew, "WAIT_WARNING_S", 0.5)
    monkeypatch.setattr(ray_crew, "REPLY_S", 1.0)
    submit(STUDY, server_storage)
    said: list[str] = []
    with RayCrew(url, "tiny", 7, cluster.address, 0, to(said)) as crew:
        assert "Ray: there is room for 6 of them; the others wait" in said
        wait_for(lambda: crew.check() and any("wait for room in the cluster" in line for line in said))


@pytest.mark.slow
def test_pgpassword_is_sent_to_the_workers_only(
    cluster: RayCluster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "not-to-be-seen-anywhere"
    name = server.create()  # without tables, which would belong to another
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
    server.drop(name)


@pytest.fixture
def three_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace Ray's list of nodes."""
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}] * 3
    cluster = SimpleNamespace(nodes=lambda: nodes)
    monkeypatch.setattr(ray_crew, "connected", lambda address, cpus: nullcontext(cluster))


def test_sqlite_is_refused_where_there_is_more_than_one_node(three_nodes: None) -> None:
    line = (
        "sqlite:///hpo.db: an SQLite file cannot be shared by 3 nodes of the Ray cluster; use a database server that "
        "all of them reach, --storage postgresql://USER@HOST/DATABASE"
    )
    with pytest.raises(HpoError, match=f"^{re.escape(line)}$"):
        RayCrew("sqlite:///hpo.db", "tiny", 2, "auto", 0, print).__enter__()


def test_more_gpus_per_worker_than_any_node_has_are_refused(three_nodes: None) -> None:
    with pytest.raises(HpoError, match=r"no node .* room for a worker of 1 CPU and 0.25 GPU \(it has 3 nodes with 6 C"):
        RayCrew("postgresql://me@host/hpo", "tiny", 2, "auto", 0.25, print).__enter__()


@pytest.mark.parametrize("share", [-1, 1.5, float("nan"), float("inf")])
def test_gpus_per_worker_are_a_fraction_or_a_whole_number(share: float) -> None:
    with pytest.raises(UsageError, match=r"^--gpus-per-worker .* fraction of a GPU, such as 0.25, or a whole number$"):
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
def test_a_fraction_of_a_gpu_is_of_one_gpu(resources: dict[str, float], cpus: int, gpus: float, room: int) -> None:
    assert ray_crew._fits(resources, cpus, gpus) == room


@pytest.mark.slow
def test_an_error_of_all_workers_is_one_line(cluster: RayCluster, server_storage: Storage, url: str) -> None:
    said: list[str] = []
    with (
        pytest.raises(HpoError, match=r"^node \S+: postgresql://\S+: no study named 'nobody'[^\n]*$"),
        RayCrew(url, "nobody", 2, cluster.address, 0, to(said)) as crew,
    ):
        follow(crew)
    assert sum(line.startswith(("worker 1: node ", "worker 2: node ")) for line in said) == 2


@pytest.mark.slow
def test_another_version_on_a_node_is_one_line(
    cluster: RayCluster, server_storage: Storage, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = ray_crew.__version__
    monkeypatch.setattr(ray_crew, "__version__", "99.0")
    line = rf"^node \S+: has hpo {has}, and the launch 99.0; install 99.0 there$"
    with pytest.raises(HpoError, match=line), RayCrew(url, "tiny", 1, cluster.address, 0, print) as crew:
        follow(crew)


LAUNCH = """
import signal, sys, threading, warnings
from hpo.errors import HpoError
from hpo.service.crew.ray import RayCrew

assert "ray" not in sys.modules
warnings.simplefilter("error")
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


@pytest.fixture
def launch() -> Iterator[Callable[..., Fork]]:
    """Start a crew in a new process that has not imported Ray and handles signals as hpo does."""
    with ExitStack() as started:

        def begin(url: str, address: str = "", workers: int = 1, **environment: str) -> Fork:
            clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
            process = Fork(
                [url, address, str(workers)],
                script=LAUNCH,
                stdout=PIPE,
                stderr=PIPE,
                env=clean | environment,
                start_new_session=True,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield begin


def ended(process: Fork) -> tuple[int | None, str, str]:
    """Wait for the process to end; return status, stdout and stderr."""
    out, err = process.communicate(deadline(120))
    return process.returncode, out, err


OWN_NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(64, classes))
"""


def folders() -> set[Path]:
    return set(Path("/tmp").glob("hpo-ray-*"))


def test_a_local_cluster_uses_a_file_and_leaves_nothing(launch: Launch, storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(OWN_NET)
    written = tree()
    written["network"] = {"module": "nets.py:Net"}
    submit(parse_study(written, "tiny.toml", tmp_path), storage)
    before = folders()
    cores = ray_crew._amount(ray_crew._cores(), 0)
    process = launch(storage.location.full_url, HOME=str(tmp_path))
    assert ended(process) == (0, f"Ray: 1 node with {cores}; 1 worker of {cores}\n", "")
    check_whole(trials_of(storage), 6)
    assert folders() <= before
    assert not (tmp_path / ".ray").exists()


@pytest.mark.slow
def test_ctrl_c_requeues_the_trials_and_ends_the_cluster(launch: Launch, storage: Storage) -> None:
    submit(ENDLESS, storage)
    process = launch(storage.location.full_url)
    wait_for(lambda: running_trials(storage))
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    status, _, err = ended(process)
    assert (status, err) == (0, "")
    assert states(trials_of(storage)) == [TrialState.WAITING] * 4
    assert started
    assert not any(map(lives, started))


@pytest.mark.slow
def test_no_cluster_at_the_address_is_one_line(launch: Launch) -> None:
    line = "no Ray cluster answers there; start one with `ray start --head`, or use --ray alone"
    # Without the settings that make it impatient, Ray would look for a quarter of an hour.
    assert ended(launch("sqlite:///hpo.db", "127.0.0.1:1", RAY_py_gcs_connect_timeout_s="1")) == (
        1,
        "",
        f"hpo: --ray 127.0.0.1:1: {line}\n",
    )


def test_ray_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HpoError, match=r"^--ray: Ray is not installed; pip install 'hpo\[ray\]'$"):
        RayCrew("sqlite:///hpo.db", "tiny", 2, None, 0, print).__enter__()


SCALING = (Path(__file__).parents[2] / "docs/how-to/scaling.md").read_text()
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
