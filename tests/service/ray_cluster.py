"""Ray cluster of several nodes on this machine, as processes that tests can kill.

Each node is a raylet with workers of its own, as on a machine of its own. All listen on 127.0.0.1 only; no dashboard.
Run as a program, this module starts the cluster and serves it: a line a node, and another node for each line it reads.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from deadlines import deadline, wait_for

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
"""For the cluster's processes and those that connect to it: else Ray takes another address instead of 127.0.0.1."""

OBJECT_STORE_BYTES = 80 * 2**20


class RayCluster:
    """A running cluster; `nodes` are the processes of its raylets, the head's first; `folder` has its logs."""

    def __init__(self, nodes: int, cpus: int) -> None:
        command = [sys.executable, "-W", "ignore", __file__, str(cpus)]
        self.folder = Path(tempfile.mkdtemp(prefix="hpo-ray-", dir="/tmp"))
        (self.folder / "ray").mkdir()  # where Ray notes the cluster's address: its own folder may not be there
        own = {"RAY_TMPDIR": str(self.folder), "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(
            [*command, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | LOOPBACK | own,
        )
        self.nodes: list[psutil.Process] = []
        self.address = ""
        self._started()
        while len(self.nodes) < nodes:
            self.add()

    def add(self) -> None:
        """Start another node, and wait until it belongs to the cluster."""
        assert self._process.stdin is not None
        print("add", file=self._process.stdin, flush=True)
        self._started()

    def node_of(self, pid: int) -> psutil.Process:
        """Return the node on which a process runs."""
        parents = psutil.Process(pid).parents()
        return next(node for node in self.nodes if node in parents)

    def kill(self, node: psutil.Process) -> None:
        """Kill a node's processes, all at once, as when its machine loses power."""
        assert node != self.nodes[0], "the head takes the cluster with it"
        for process in [node, *node.children(recursive=True)]:
            process.kill()
        self.nodes.remove(node)

    def end(self) -> None:
        """End all nodes, and wait for it."""
        started = psutil.Process(self._process.pid).children(recursive=True)
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(deadline())
        wait_until_gone(started)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _started(self) -> None:
        assert self._process.stdout is not None
        line = json.loads(self._process.stdout.readline())
        self.address = line["address"]
        self.nodes.append(psutil.Process(line["raylet"]))


@contextmanager
def ray_cluster(nodes: int, cpus: int) -> Iterator[RayCluster]:
    """Run a cluster during a block."""
    cluster = RayCluster(nodes, cpus)
    try:
        yield cluster
    finally:
        cluster.end()


def wait_until_gone(processes: list[psutil.Process]) -> None:
    """Wait until the processes have ended; zombies count as ended."""
    wait_for(lambda: not any(map(lives, processes)), lambda: [each for each in processes if lives(each)])


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def serve(cpus: int, folder: str) -> None:
    """Start the head, and a node for each line of stdin; end all nodes at the end of stdin."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    node = {"num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES, "node_ip_address": "127.0.0.1"}
    # A node that does not answer is dead after two seconds, not after twenty.
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    options = {**node, "include_dashboard": False, "temp_dir": folder, "_system_config": health}
    while True:
        started = cluster.add_node(**options)
        raylet = started.all_processes["raylet"][0].process.pid
        print(json.dumps({"address": cluster.address, "raylet": raylet}), flush=True)
        if not sys.stdin.readline():
            break
        options = dict(node)
    cluster.shutdown()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
