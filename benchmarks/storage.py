"""Benchmark of the storage: hpo's search with a training that costs nothing, against plain Optuna, in one run.

    make bench-storage                        (6 minutes)
    python benchmarks/storage.py --only sqlite --stored 100 1000 --rounds 1

Two parameters (lr and weight decay on log scales), 50 epochs, populations of 32; a trial has the metric after each
epoch and a learning curve of four metrics. hpo runs the loop of `hpo launch` on a storage with a given number of
trials, with one heartbeat in each population. Plain Optuna asks, reports 50 times, stores the curve as a user attribute
and tells, on a storage as RDBStorage creates it: an SQLite file without a write-ahead log, PostgreSQL on loopback with
fsync. Each candidate has its own copy of the storage; they run in turn in every round. The first trials, during which a
candidate reads the stored ones, are reported separately.

The columns: `sampler` is History.ask, `storage` the sum of the calls to the storage, `pruner` History.judge, `rest`
everything else.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import math
import multiprocessing
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import numpy as np
import optuna
import psutil
import sqlalchemy
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from hpo.data import load_split
from hpo.search import loop
from hpo.search.checkpoints.training_checkpoints import TrainingCheckpoints
from hpo.search.events import EpochEnded, Event, PopulationEnded
from hpo.search.options import LaunchOptions
from hpo.search.populations.population_search import PopulationSearch
from hpo.search.sampling.sampler_history import SamplerHistory
from hpo.search.space import distributions
from hpo.search.study_records import CURVE, agree_on_run, open_study
from hpo.storage import ClaimConditions, Storage, TrialResult, load_study, open_storage, running_trials
from hpo.storage.location import locate
from hpo.studyfile import Study, parse_study
from hpo.studyfile.metrics import SUMS
from hpo.training.population import EpochResult
from hpo.training.seeds import member_seed
from hpo.training.stack import Member
from hpo.training.trainer import Trainer
from hpo.usercode import UserCode, import_code

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "storage"))
from postgresql_server import Server

NAME, EPOCHS, POPULATION = "storage", 50, 32
LR, DECAY = (1e-6, 1e-2), (1e-8, 1e-4)
FILLED_AT_ONCE = 250
PLAIN_SHARE = 8
"""hpo runs so many trials for each of plain Optuna's, which takes long."""

STORAGE_CALLS = ("create", "report", "finish", "read", "claim", "beat")
TIMED: dict[str, list[tuple[Any, str]]] = {
    "sampler": [(SamplerHistory, "ask")],
    "pruner": [(SamplerHistory, "prune")],
    "create": [(Storage, "create_trials")],
    "report": [(Storage, "report")],
    "finish": [(Storage, "finish")],
    "read": [(Storage, "read_trials"), (loop, "running_trials"), (loop, "requeue_orphaned")],
    "claim": [(Storage, "claim"), (Storage, "requeue")],
    "beat": [(Storage, "refresh_heartbeats")],
}
Parts = dict[str, float]
"""Part -> milliseconds a trial."""


class Clock:
    """Cost of a search's populations, part by part, and the time to read the stored trials."""

    def __init__(self) -> None:
        self.accounts: list[Parts] = []
        self.opening_s = 0.0
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._start = self._since = time.perf_counter()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            if function is running_trials and not self.opening_s:  # the first thing that the loop itself does
                self.opening_s = start - self._start
            try:
                return function(*arguments, **options)
            finally:
                self._spent[part] += time.perf_counter() - start

        return call

    def population_ended(self, members: int) -> None:
        now = time.perf_counter()
        spent = {part: 1000 * seconds / members for part, seconds in self._spent.items()}
        spent["all"] = 1000 * (now - self._since) / members - spent.pop("training")
        spent["storage"] = sum(spent.get(part, 0.0) for part in STORAGE_CALLS)
        spent["rest"] = spent["all"] - spent["storage"] - spent["sampler"] - spent["pruner"]
        self.accounts.append(spent)
        self._spent.clear()
        self._since = now


class Free(Trainer):
    """Training that costs nothing: curves computed from the members' parameters."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(None, "float32", print)  # type: ignore[arg-type]
        self._clock = clock

    def train(self, members: Sequence[Member], spent_s: float = 0) -> Generator[EpochResult, Collection[int], None]:
        left = {m.number: curve(m.config.optimizer.lr, m.config.optimizer.weight_decay, m.number) for m in members}
        for epoch in range(1, EPOCHS + 1):
            result = self._clock.timed("training", epoch_of)(left, epoch)
            for number in (yield result) or ():
                left.pop(number, None)
            if not left:
                return


def epoch_of(curves: dict[int, dict[str, list[float]]], epoch: int) -> EpochResult:
    metrics = {n: {name: values[epoch - 1] for name, values in each.items()} for n, each in curves.items()}
    return EpochResult(epoch, metrics, {}, lambda numbers: {}, lambda numbers: {})


def curve(lr: float, weight_decay: float, number: int) -> dict[str, list[float]]:
    """Return a learning curve: a ridge over the logarithms, plus noise of the trial."""
    noise = 0.02 * math.sin(number)
    best = 0.95 - 0.04 * (math.log10(lr) + 3) ** 2 - 0.01 * (math.log10(weight_decay) + 6) ** 2 + noise
    accuracy = [best - 0.8 * math.exp(-epoch / 10) for epoch in range(1, EPOCHS + 1)]
    values = {"train_loss": -1.1, "train_accuracy": 1.05, "val_loss": -1.0, "val_accuracy": 1.0}
    return {
        name: [values[name] * each + (1.2 if values[name] < 0 else 0) for each in accuracy]
        for name in SUMS["classification"]
    }


def study_of(sampler: str, pruner: str, trials: int) -> Study:
    return parse_study(
        {
            "name": NAME,
            "data": {"dataset": "digits", "train_size": 500, "validation": 0.2},
            "network": {"kind": "mlp", "hidden": [8]},
            "optimizer": {
                "kind": "sgd",
                "lr": {"low": LR[0], "high": LR[1], "log": True},
                "weight_decay": {"low": DECAY[0], "high": DECAY[1], "log": True},
            },
            "training": {"epochs": EPOCHS, "batch_size": 100, "checkpoint": "none"},
            "search": {"trials": trials, "sampler": sampler, "pruner": pruner, "population": POPULATION},
        },
        "the storage benchmark",
    )


class Database(Protocol):
    """A kind of storage; `copy` creates a temporary one, empty or as a copy."""

    name: str

    def copy(self, of: str | None = None, *, plain: bool = False) -> AbstractContextManager[str]: ...

    def settle(self, url: str) -> None: ...


class Files:
    """SQLite; for plain Optuna the file has Optuna's journal mode."""

    name = "SQLite"

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, itertools.count()

    @contextmanager
    def copy(self, of: str | None = None, *, plain: bool = False) -> Iterator[str]:
        file = self._folder / f"{next(self._numbers)}.db"
        if of is not None:
            shutil.copy(of.removeprefix("sqlite:///"), file)
        if plain:
            with contextlib.closing(sqlite3.connect(file)) as connection:
                connection.execute("PRAGMA journal_mode = DELETE")
        if of is not None:
            with file.open("rb") as copied:
                os.fsync(copied.fileno())  # else the first checkpoint of the one measured would wait for the whole file
        yield f"sqlite:///{file}"
        file.unlink()

    def settle(self, url: str) -> None:
        """Do nothing: closing has emptied the write-ahead log."""


class Databases:
    """PostgreSQL."""

    name = "PostgreSQL"

    def __init__(self, server: Server) -> None:
        self._server = server

    @contextmanager
    def copy(self, of: str | None = None, *, plain: bool = False) -> Iterator[str]:
        with self._server.database("template0" if of is None else of.rpartition("/")[2]) as name:
            self._server.sql("CHECKPOINT")  # else the copy is written to the disk while the one measured waits for it
            yield self._server.url(name)

    def settle(self, url: str) -> None:
        """Do the maintenance that the server would have done by itself between the trials."""
        self._server.sql("VACUUM ANALYZE", url.rpartition("/")[2])


def fill(url: str, count: int) -> float:
    """Store trials up to a number, by the calls of a search; return the seconds."""
    start, storage, study = time.perf_counter(), open_storage(url), study_of("random", "none", count)
    code = import_code([], study.folder)
    stored = open_study(study, load_split(study), code, storage, LaunchOptions(extend=True))
    agree_on_run(stored, storage, "cpu", "float32")
    space, rng, stored_id = distributions(study), np.random.default_rng(count), stored._study_id
    have = len(storage.get_all_trials(stored_id, deepcopy=False))
    while have < count:
        numbers = range(have, min(count, have + FILLED_AT_ONCE))
        params = [
            {name: float(10 ** rng.uniform(*np.log10(each))) for name, each in (("lr", LR), ("weight_decay", DECAY))}
            for _ in numbers
        ]
        templates = [
            create_trial(
                state=TrialState.RUNNING,
                params=values,
                distributions=space,
                user_attrs={"seed": member_seed(0, number)},
            )
            for number, values in zip(numbers, params, strict=True)
        ]
        ids = [trial._trial_id for trial in storage.create_trials(stored_id, templates)]
        curves = [curve(each["lr"], each["weight_decay"], n) for n, each in zip(numbers, params, strict=True)]
        for epoch in range(1, EPOCHS + 1):
            storage.report(epoch, {i: each["val_accuracy"][epoch - 1] for i, each in zip(ids, curves, strict=True)})
        storage.finish(
            [
                TrialResult(i, TrialState.COMPLETE, (each["val_accuracy"][-1],), system_attrs={CURVE: each})
                for i, each in zip(ids, curves, strict=True)
            ]
        )
        have += len(ids)
    storage.close()
    return time.perf_counter() - start


def run_hpo(url: str, sampler: str, pruner: str, stored: int, trials: int) -> Clock:
    """Run a population and then a number of trials, on a storage with `stored` trials."""
    storage = open_storage(url)
    study = study_of(sampler, pruner, stored + POPULATION + trials)
    clock = Clock()

    def on_event(event: Event) -> None:
        match event:
            case EpochEnded(epoch=1):
                storage.refresh_heartbeats()
            case PopulationEnded(completed=completed, pruned=pruned):
                clock.population_ended(completed + pruned)

    found = load_study(storage, NAME)
    with ExitStack() as patches:
        for part, functions in TIMED.items():
            for owner, name in functions:
                patches.enter_context(mock.patch.object(owner, name, clock.timed(part, getattr(owner, name))))
        clock._start = clock._since = time.perf_counter()
        conditions, now = ClaimConditions(found._study_id, NAME, {}), datetime.datetime.now(datetime.UTC)
        trainer, stop, code = Free(clock), threading.Event(), UserCode(Path(), {})
        checkpoints = TrainingCheckpoints(
            study, conditions, storage, on_event, code=code, splits=[load_split(study)], precision="float32"
        )
        search = PopulationSearch(
            study=study,
            stored=found,
            claim_conditions=conditions,
            began=now,
            storage=storage,
            population=POPULATION,
            on_event=on_event,
            stop=stop,
            trainer=trainer,
            code=code,
            checkpoints=checkpoints,
        )
        assert search.run() == "finished", "the search did not come to its end"
    storage.close()
    return clock


def run_plain(url: str, sampler: str, trials: int) -> tuple[float, list[Parts]]:
    """Run a trial and then more; return the seconds of the first, and the cost of each of the others."""
    storage = RDBStorage(locate(url).full_url)
    made = TPESampler(seed=0, multivariate=True) if sampler == "tpe" else RandomSampler(seed=0)
    start = time.perf_counter()
    study = optuna.load_study(study_name=NAME, storage=storage, sampler=made)
    times = [start]
    for _ in range(trials + 1):
        trial = study.ask()
        lr = trial.suggest_float("lr", *LR, log=True)
        weight_decay = trial.suggest_float("weight_decay", *DECAY, log=True)
        curves = curve(lr, weight_decay, trial.number)
        for epoch, value in enumerate(curves["val_accuracy"], start=1):
            trial.report(value, epoch)
        trial.set_user_attr("curve", curves)
        study.tell(trial, curves["val_accuracy"][-1])
        times.append(time.perf_counter())
    storage.remove_session()
    storage.engine.dispose()
    first, *others = (end - start for start, end in itertools.pairwise(times))
    return first, [{"all": 1000 * seconds} for seconds in others]


def memory(url: str, pruner: str, stored: int, answer: Any) -> None:
    """Search two populations in this process; return its memory in MB before, after (both USS), and at most (RSS)."""
    process = psutil.Process()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(url)
    load_study(storage, NAME)
    storage.close()
    resting = process.memory_info().rss
    before = process.memory_full_info().uss
    run_hpo(url, "tpe", pruner, stored, POPULATION)
    after = process.memory_full_info().uss
    peak = next(
        int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if "HWM" in line
    )
    answer.put([each / 1e6 for each in (before, after - before, peak - resting)])


def in_fresh_process(function: Callable[..., None], *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=function, args=(*arguments, answer))
    process.start()
    found = answer.get()
    process.join()
    return found


def command_s(command: str, url: str) -> float:
    """Return the seconds of a command as a process."""
    program = Path(sys.executable).with_name("hpo")
    arguments = [str(program), command, *([] if command == "studies" else [NAME]), "--storage", url]
    start = time.perf_counter()
    subprocess.run(arguments, check=True, capture_output=True)
    return time.perf_counter() - start


Key = tuple[str, str, int]
"""Database, contestant, trials stored."""


class Results:
    """Measurements; `median` of a part over the populations (or plain Optuna's trials) of all rounds."""

    def __init__(self) -> None:
        self.accounts: defaultdict[Key, list[Parts]] = defaultdict(list)
        self.opening_s: defaultdict[Key, list[float]] = defaultdict(list)

    def median(self, key: Key, part: str = "all") -> float:
        return statistics.median([account.get(part, 0.0) for account in self.accounts[key]] or [math.nan])

    def beyond_sampler(self, key: Key) -> float:
        return statistics.median([a["all"] - a["sampler"] for a in self.accounts[key]] or [math.nan])


def contestants(database: Database, stored: int, most: int) -> list[str]:
    """Return the candidates: all with SQLite, but not plain Optuna with 10,000 trials, which would read for minutes."""
    names = ["tpe", "plain tpe"] if database.name == "PostgreSQL" else ["tpe", "plain tpe", "random", "plain random"]
    if database.name == "SQLite":
        names += ["tpe, median pruner", "tpe, hyperband pruner"]
    return names if stored < most else [name for name in names if not name.startswith("plain")]


def measure(databases: list[Database], arguments: argparse.Namespace, sources: dict[tuple[str, int], str]) -> Results:
    results = Results()
    for _, stored, database in itertools.product(range(arguments.rounds), arguments.stored, databases):
        for name in contestants(database, stored, arguments.plain_below):
            key = (database.name, name, stored)
            plain = name.startswith("plain ")
            with database.copy(sources[database.name, stored], plain=plain) as url:
                if plain:
                    seconds, accounts = run_plain(url, name.removeprefix("plain "), arguments.trials // PLAIN_SHARE)
                else:
                    sampler, _, pruner = name.partition(", ")
                    clock = run_hpo(url, sampler, pruner.split()[0] if pruner else "none", stored, arguments.trials)
                    seconds, accounts = clock.opening_s, clock.accounts[1:]
            results.accounts[key] += accounts
            results.opening_s[key].append(seconds)
    return results


def print_parts(results: Results) -> None:
    parts = ("all", "sampler", "storage", *STORAGE_CALLS, "pruner", "rest")
    print("\nms a trial" + " " * 41 + "".join(f"{part:>8}" for part in parts) + "   first reading")
    for key in sorted(results.accounts, key=lambda key: (key[0] != "SQLite", "plain" in key[1], key[1:])):
        database, name, stored = key
        shown = parts if "plain" not in name else ("all",)
        figures = "".join(f"{results.median(key, part):8.2f}" for part in shown)
        opening = statistics.median(results.opening_s[key])
        print(f"{database:12}{name:24}{stored:8,} stored{figures:{8 * len(parts)}}{opening:14.2f} s")


def print_targets(results: Results, stored: list[int]) -> None:
    low, high = min(stored), max(stored)

    def line(work: str, plain: float, figure: float, target: str, unit: str = "ms") -> None:
        shown = "" if math.isnan(plain) else f"{plain:.1f} {unit}"
        if not math.isnan(figure):
            print(f"{work:64}{shown:>14}{f'{figure:.2f} {unit}':>12}   {target}")

    print(f"\n{'':64}{'plain Optuna':>14}{'hpo':>12}   to reach")
    for database, name, target in (("SQLite", "tpe", "5"), ("PostgreSQL", "tpe", "10"), ("SQLite", "random", "2")):
        plain, figure = (results.median((database, each, low)) for each in (f"plain {name}", name))
        line(f"{database}, {name}, {low:,} stored: a trial", plain, figure, f"{target} ms")
    for database, name in (("SQLite", "tpe"), ("SQLite", "random"), ("PostgreSQL", "tpe")):
        few, many = (results.beyond_sampler((database, name, each)) for each in (low, high))
        work = f"{database}, {name}, {high:,} stored: a trial without its sampler"
        line(work, math.nan, many, f"{2 * few:.2f} ms, twice the {few:.2f} at {low:,}")
    for database in ("SQLite", "PostgreSQL"):
        figure = results.median((database, "tpe", high), "sampler")
        line(f"{database}, tpe, {high:,} stored: the sampler alone", math.nan, figure, "10 ms")


def print_memory(sources: dict[tuple[str, int], str], database: Database, stored: list[int]) -> None:
    print(f"\n{'MB of a process, ' + database.name:42}{'at its start':>16}{'after':>10}{'at most':>10}   to reach")
    for count, pruner in itertools.product(sorted({min(stored), max(stored)}), ("none", "median")):
        with database.copy(sources[database.name, count]) as url:
            before, after, peak = in_fresh_process(memory, url, pruner, count)
        work = f"{count:,} stored, tpe, pruner {pruner}"
        print(f"{work:42}{before:16.0f}{after:+10.0f}{peak:+10.0f}   +300", flush=True)


def print_commands(
    sources: dict[tuple[str, int], str], databases: list[Database], stored: list[int], runs: int
) -> None:
    low, high = min(stored), max(stored)
    print(
        f"\n{f'seconds of a command, best of {runs}':30}{f'{low:,} stored':>16}{f'{high:,} stored':>16}"
        f"{'more':>8}   to reach"
    )
    for database, command in itertools.product(databases, ("top", "export", "studies")):
        few = many = math.inf
        for _ in range(runs):
            few = min(few, command_s(command, sources[database.name, low]))
            many = min(many, command_s(command, sources[database.name, high]))
        print(f"{f'`hpo {command}`, {database.name}':30}{few:16.2f}{many:16.2f}{many - few:+8.2f}   +1", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=3 * POPULATION, help=f"a run; plain Optuna: 1/{PLAIN_SHARE}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stored", type=int, nargs="+", default=[100, 1_000, 10_000], help="trials already stored")
    parser.add_argument("--plain-below", type=int, default=10_000, help="plain Optuna runs with fewer stored trials")
    parser.add_argument("--only", choices=["sqlite", "postgresql"])
    arguments = parser.parse_args()
    arguments.stored.sort()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", ExperimentalWarning)
    start = time.perf_counter()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hpo-bench-")))
        folder.chmod(0o755)  # the server may run as another user
        databases: list[Database] = []
        if arguments.only != "postgresql":
            databases.append(Files(folder))
        if arguments.only != "sqlite":
            (folder / "server").mkdir()
            server = Server(folder / "server", durable=True)
            stack.callback(server.stop, "immediate")
            databases.append(Databases(server))
        print(
            f"{time.strftime('%Y-%m-%d %H:%M')}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores; "
            f"Python {platform.python_version()}, optuna {optuna.__version__}, SQLAlchemy {sqlalchemy.__version__}, "
            f"SQLite {sqlite3.sqlite_version}"
            + (f", PostgreSQL {server.sql('SHOW server_version')[0][0]}" if arguments.only != "sqlite" else "")
        )
        print(f"{arguments.trials} trials a run, medians of {arguments.rounds} rounds in turn", flush=True)
        sources: dict[tuple[str, int], str] = {}
        for database in databases:
            previous = None
            for count in arguments.stored:
                previous = stack.enter_context(database.copy(previous))
                seconds = fill(previous, count)
                database.settle(previous)
                sources[database.name, count] = previous
            print(
                f"{database.name}: {arguments.stored[-1]:,} trials stored; the last step took {seconds:.0f} s",
                flush=True,
            )
        results = measure(databases, arguments, sources)
        print_parts(results)
        print_targets(results, arguments.stored)
        print_memory(sources, databases[0], arguments.stored)
        print_commands(sources, databases, arguments.stored, max(2, arguments.rounds))
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
