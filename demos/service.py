"""Demo of the whole service on this machine, without Docker: PostgreSQL, queue, four workers, dashboard.

    make service-demo
    python demos/service.py --trials 16

The demo submits three studies; four workers train them, the one with the highest priority first; the dashboard answers;
the best trial of each study is exported; everything is stopped in order, and all files are deleted. Each command is
shown before it runs. The status is 1 if a step fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "storage"))
from postgresql_server import Server

ROOT = Path(__file__).parents[1]
HPO = Path(sys.executable).with_name("hpo")
FILE = str(ROOT / "studies" / "digits.toml")
STUDIES = {
    "digits": ["--priority", "1"],
    "digits-adam": ["--set", "optimizer.kind=adam", "--set", "optimizer.lr={low=1e-4, high=1e-1, log=true}"],
    "digits-plain": ["--set", "network.batch_norm=false"],
}
WORKERS = 4
DEADLINE_S = 300.0
STOP_S = 30.0


def say(text: str) -> None:
    print(text, flush=True)


def hpo(*args: str) -> str:
    """Show a command, run it, and show and return its output."""
    say(f"$ hpo {shlex.join(args)}")
    done = subprocess.run([HPO, *args], capture_output=True, text=True, check=False)
    if done.stdout or done.stderr:
        say((done.stdout + done.stderr).rstrip())
    if done.returncode:
        sys.exit(f"hpo {args[0]} ended with status {done.returncode}")
    return done.stdout


def begin(*args: str, log: Path) -> subprocess.Popen[str]:
    """Show a command and start it with its log in a file."""
    say(f"$ hpo {shlex.join(args)} &")
    with log.open("w") as stderr:
        return subprocess.Popen([HPO, *args], stdout=subprocess.PIPE, stderr=stderr, text=True)


def end(process: subprocess.Popen[str], status: int) -> None:
    """Stop a process, and check that it stops in order."""
    process.send_signal(signal.SIGTERM)
    found = process.wait(STOP_S)
    if found != status:
        sys.exit(f"process {process.pid} ended with status {found}, not {status}")


def studies() -> list[dict[str, object]]:
    status = subprocess.run([HPO, "status", "--json"], capture_output=True, text=True, check=True)
    found: list[dict[str, object]] = json.loads(status.stdout)["studies"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64, help="trials of each study")
    trials = parser.parse_args().trials
    start = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hpo-service-")))
        folder.chmod(0o755)  # the server is another user where this one is root
        (folder / "server").mkdir()
        server = Server(folder / "server")
        stack.callback(server.stop)
        server.sql("CREATE DATABASE hpo")
        os.environ["HPO_STORAGE"] = server.url("hpo")
        say(f"PostgreSQL {server.sql('SHOW server_version')[0][0]} at {server.url('hpo')}")

        for name, options in STUDIES.items():
            hpo("submit", FILE, "--name", name, "--trials", str(trials), *options)

        workers = [begin("work", log=folder / f"worker{number}.log") for number in range(WORKERS)]
        for worker in workers:
            stack.callback(worker.kill)
        dashboard = begin("dashboard", "--port", "0", log=folder / "dashboard.log")
        stack.callback(dashboard.kill)
        assert dashboard.stdout is not None
        address = dashboard.stdout.readline().strip()
        with urllib.request.urlopen(f"{address}api/studies", timeout=30) as answer:
            shown = [each["study_name"] for each in json.load(answer)["study_summaries"]]
        say(f"the dashboard at {address} shows {', '.join(sorted(shown))}")
        if sorted(shown) != sorted(STUDIES):
            sys.exit("the dashboard does not show what was submitted")

        looked = False
        found = studies()
        while any(study["state"] != "ended" for study in found):
            if time.monotonic() - start > DEADLINE_S:
                sys.exit(f"not done after {DEADLINE_S:.0f} s")
            if not looked and any(study["per_second"] for study in found):
                looked = True
                hpo("status")
            time.sleep(1)
            found = studies()
        hpo("status")

        for name in STUDIES:
            best = folder / f"{name}.json"
            hpo("export", name, "-o", str(best))
            exported = json.loads(best.read_text())
            counts = exported["trials"]
            if counts["complete"] + counts["pruned"] + counts["failed"] != trials or counts["running"]:
                sys.exit(f"{name} has {counts}, not {trials} trials")
            say(f"{name}: {exported['value']:.4f} with {json.dumps(exported['params'])}")

        for worker in workers:
            end(worker, 0)
        end(dashboard, 128 + signal.SIGTERM)
        for number in range(WORKERS):
            say((folder / f"worker{number}.log").read_text().splitlines()[-1])
    seconds = time.monotonic() - start
    say(f"stopped in order: {len(STUDIES)} studies of {trials} trials by {WORKERS} workers, {seconds:.0f} s in all")


if __name__ == "__main__":
    main()
