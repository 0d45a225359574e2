"""Benchmark of the dashboard: seconds to open it in Chromium, with 20,000 trials of 50 epochs in an SQLite file.

    make bench-dashboard                      (3 minutes)
    python benchmarks/dashboard.py --trials 1000 --rounds 1

The list is open when it shows the study's name. The study's page is open when history, learning curves, importances and
timeline are drawn and the page reacts again. Each round has a new browser and a new server with empty caches, on the
same machine. Then each answer of the server is timed alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import optuna_dashboard
from playwright.sync_api import Request, sync_playwright
from storage import NAME, fill

LIST_S, STUDY_S = 3.0, 10.0
GIVEN_UP_S = 120.0
CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
GRAPHS = ["plot-history", "graph-intermediate-values", "graph-hyperparameter-importances", "graph-timeline"]
DRAWN = "graphs => graphs.every(id => document.getElementById(id)?.data?.length)"
LONGEST_TASKS = """() => {
    window.tasks = [];
    new PerformanceObserver(list => window.tasks.push(...list.getEntries().map(each => each.duration)))
        .observe({ type: "longtask", buffered: true });
}"""


@contextmanager
def serving(url: str) -> Iterator[str]:
    command = [str(Path(sys.executable).with_name("hpo")), "dashboard", "--port", "0", "--storage", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def opened(address: str) -> dict[str, float]:
    """Return the seconds until the list and the study's page were open, and the browser's busy time for the page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        seconds = {}
        page = context.new_page()
        start = time.perf_counter()
        page.goto(f"{address}dashboard")
        page.get_by_text(NAME).first.wait_for()
        seconds["list"] = time.perf_counter() - start
        context.close()  # with its cache

        page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
        page.add_init_script(f"({LONGEST_TASKS})()")
        answers: dict[str, float] = {}

        def finished(request: Request) -> None:
            answers.setdefault(request.url, time.perf_counter() - start)

        page.on("requestfinished", finished)
        start = time.perf_counter()
        page.goto(f"{address}dashboard/studies/1")
        page.wait_for_function(DRAWN, arg=GRAPHS, timeout=1000 * GIVEN_UP_S)
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        seconds["study"] = time.perf_counter() - start
        seconds["browser busy"] = page.evaluate("window.tasks.reduce((sum, each) => sum + each, 0)") / 1000
        for name, ending in (("trials arrived", "studies/1?after=0"), ("importances arrived", "param_importances")):
            seconds[name] = next(at for url, at in answers.items() if url.endswith(ending))
        browser.close()
    return seconds


def answered(address: str, path: str) -> tuple[float, int]:
    start = time.perf_counter()
    with urllib.request.urlopen(f"{address}{path}", timeout=GIVEN_UP_S) as answer:
        size = len(answer.read())
    return time.perf_counter() - start, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--storage", type=Path, help="a file that holds the trials already")
    arguments = parser.parse_args()
    chromium = subprocess.run(["chromium", "--version"], capture_output=True, text=True, check=True).stdout.split(
        " built"
    )
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, optuna {optuna.__version__}, "
        f"optuna-dashboard {optuna_dashboard.__version__}, {chromium[0]}"
    )
    with tempfile.TemporaryDirectory(prefix="hpo-dashboard-") as folder:
        url = f"sqlite:///{arguments.storage or Path(folder) / 'hpo.db'}"
        if arguments.storage is None:
            fill(url, arguments.trials)
        rounds = []
        for _ in range(arguments.rounds):
            with serving(url) as address:
                rounds.append(opened(address))
        print(f"{arguments.trials:,} trials of 50 epochs, median of {arguments.rounds} (each)\n")
        limits = {"list": LIST_S, "study": STUDY_S}
        for what in rounds[0]:
            each = [seconds[what] for seconds in rounds]
            limit = f"   to reach {limits[what]:.0f} s" if what in limits else ""
            print(f"{what:<22}{statistics.median(each):6.2f} s ({', '.join(f'{one:.2f}' for one in each)}){limit}")
        print()
        with serving(url) as address:
            for path in (
                "dashboard", "static/bundle.js", "api/meta", "api/studies", "api/studies/1?after=0",
                "api/studies/1?after=0", f"api/studies/1?after={arguments.trials}", "api/studies/1/param_importances",
            ):  # fmt: skip
                seconds, size = answered(address, path)
                print(f"GET /{path:<38}{seconds:6.2f} s{size / 1e6:8.2f} MB")


if __name__ == "__main__":
    main()
