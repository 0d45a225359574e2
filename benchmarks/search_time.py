"""Benchmark of the time of a search: hpo with each pruner against plain Optuna in two processes, to an equal score.

    python benchmarks/search_time.py --seeds 10 --trials 50

The task is the search of "Deep Learning from Scratch", chapter 6, on 500 images (MNIST if HPO_DATA_DIR has it, else
Fashion-MNIST, else digits), 100 of them for validation: an MLP of six hidden layers of 100 with batch norm, SGD, batch
100, 50 epochs, lr 1e-4..3 and weight decay 1e-8..1e-1 by TPE on log scales. Every candidate is a fresh process, or two
for the plain loop: starting up, importing torch and loading the data count. The candidates run in turn, seed by seed.
The target is the median of the scores at which the plain loop without a pruner ends. The table has the seconds and the
trained epochs until a completed trial reaches the target; a search that ends below the target counts as infinite.
"times as fast" is the median time of the whole plain search by the median time to the target.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EPOCHS = 50
PLAIN = {"plain Optuna x2": "none", "plain Optuna x2, hyperband": "hyperband"}
HPO = {f"hpo, {pruner}": pruner for pruner in ("none", "median", "hyperband", "halving")}


@dataclass
class Run:
    """One search: seconds and score of each completed trial, in order; trained epochs; and the seconds in all."""

    scores: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def best(self) -> float:
        return max((score for _, score in self.scores), default=-math.inf)

    def seconds_to(self, target: float) -> float:
        return min((at for at, score in self.scores if score >= target), default=math.inf)


def study_tree(seed: int, trials: int, pruner: str, dataset: str) -> dict[str, Any]:
    return {
        "name": "time",
        "data": {"dataset": dataset, "train_size": 500, "validation": 0.2},
        "network": {"kind": "mlp", "hidden": [100] * 6, "batch_norm": True},
        "optimizer": {
            "kind": "sgd",
            "lr": {"low": 1e-4, "high": 3.0, "log": True},
            "weight_decay": {"low": 1e-8, "high": 1e-1, "log": True},
        },
        "training": {"epochs": EPOCHS, "batch_size": 100, "precision": "float32"},
        "search": {"trials": trials, "sampler": "tpe", "pruner": pruner, "seed": seed},
    }


def lines_of(commands: list[list[str]]) -> Iterator[tuple[float, str]]:
    """Run commands at the same time; yield the seconds since the start and each line that they print."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as merged:
        running = [subprocess.Popen(each, stdout=merged, text=True) for each in commands]
        for process in running:
            if process.wait():
                raise SystemExit("a search failed")
        seconds = time.perf_counter() - start
        merged.seek(0)
        for line in merged:
            yield json.loads(line)["at"] - start, line
        yield seconds, ""


def run(commands: list[list[str]]) -> Run:
    found = Run()
    for at, line in lines_of(commands):
        if line:
            found.scores.append((at, json.loads(line)["score"]))
        else:
            found.seconds = at
    found.scores.sort()
    return found


def child(mode: str, *arguments: object) -> list[str]:
    return [sys.executable, __file__, mode, *map(str, arguments)]


def run_hpo(seed: int, trials: int, pruner: str, dataset: str, folder: Path) -> Run:
    return run([child("--hpo", json.dumps(study_tree(seed, trials, pruner, dataset)), f"sqlite:///{folder}/hpo.db")])


def run_plain(seed: int, trials: int, pruner: str, dataset: str, folder: Path) -> Run:
    import optuna

    url = f"sqlite:///{folder}/plain.db"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study(storage=url, study_name="plain", direction="maximize")  # two processes would race to create it
    return run([child("--plain", seed, trials, pruner, dataset, url, part) for part in range(2)])


def say(score: float) -> None:
    print(json.dumps({"at": time.perf_counter(), "score": score}), flush=True)  # one clock for all processes


def hpo_child(tree: str, url: str) -> None:
    import threading

    from hpo.search.events import Event, PopulationEnded
    from hpo.search.launch import launch
    from hpo.storage import open_storage
    from hpo.studyfile import parse_study

    def on_event(event: Event) -> None:
        if isinstance(event, PopulationEnded) and event.best is not None:
            say(event.best)

    launch(parse_study(json.loads(tree), "benchmark"), open_storage(url), on_event=on_event, stop=threading.Event())


def plain_child(seed: int, trials: int, pruner: str, dataset: str, url: str, part: int) -> None:
    import optuna
    import torch
    from plain_torch import plain_epoch, plain_network

    from hpo.data import load_split
    from hpo.studyfile import parse_study
    from hpo.training.device_data import to_device

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study_file = parse_study(study_tree(seed, trials, "none", dataset), "benchmark")
    split = to_device(load_split(study_file), 0, torch.device("cpu"))

    train_set, validation_set = (split.train, split.train_targets), (split.validation, split.validation_targets)

    def objective(trial: optuna.Trial) -> float:
        lr = trial.suggest_float("lr", 1e-4, 3.0, log=True)
        weight_decay = trial.suggest_float("weight_decay", 1e-8, 1e-1, log=True)
        torch.manual_seed(1000 * seed + trial.number)
        model = plain_network(split.train[0].numel(), batch_norm=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay)
        accuracy = 0.0
        for epoch in range(EPOCHS):
            accuracy = plain_epoch(model, optimizer, train_set, validation_set)
            trial.report(accuracy, epoch + 1)
            if trial.should_prune():
                raise optuna.TrialPruned
        say(accuracy)
        return accuracy

    pruners = {"none": optuna.pruners.NopPruner(), "hyperband": optuna.pruners.HyperbandPruner(1, EPOCHS)}
    # SQLite's own timeout of 5 s is too short for two processes on a busy machine.
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    study = optuna.load_study(
        study_name="plain",
        storage=storage,
        sampler=optuna.samplers.TPESampler(seed=2 * seed + part, multivariate=True, constant_liar=True),
        pruner=pruners[pruner],
    )
    study.optimize(objective, n_trials=trials // 2)


def find_dataset() -> str:
    from hpo.data import load_split
    from hpo.errors import DataError
    from hpo.studyfile import parse_study

    for dataset in ("mnist", "fashion_mnist", "digits"):
        try:
            load_split(parse_study(study_tree(0, 1, "none", dataset), "benchmark"))
            return dataset
        except DataError as error:
            print(f"{dataset}: {error}")
    raise SystemExit("no data set found")


def table(runs: dict[str, list[Run]]) -> Iterator[str]:
    target = statistics.median(each.best for each in runs["plain Optuna x2"])
    plain = statistics.median(each.seconds for each in runs["plain Optuna x2"])
    yield f"target: {target:.4f}, the median of the scores at which the plain loop ends"
    yield "| search | seconds to the target: quartiles | times as fast | reached | seconds in all | best, median |"
    yield "|---|---|---|---|---|---|"
    for name, of_name in runs.items():
        times = sorted(each.seconds_to(target) for each in of_name)
        quartiles = (
            [statistics.quantiles(times, n=4, method="inclusive")[part] for part in range(3)]
            if len(times) > 1
            else times * 3
        )
        reached = sum(map(math.isfinite, times))
        cells = [
            " / ".join(f"{each:.1f}" for each in quartiles),
            f"{plain / quartiles[1]:.1f}",
            f"{reached} of {len(times)}",
            f"{statistics.median(each.seconds for each in of_name):.1f}",
            f"{statistics.median(each.best for each in of_name):.4f}",
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=50, help="trials of the plain loop and of hpo without halving")
    parser.add_argument("--halving-trials", type=int, default=150)
    options = parser.parse_args()
    dataset = find_dataset()
    print(f"{platform.machine()}, Python {platform.python_version()}, {dataset}, {options.trials} trials")
    candidates: dict[str, tuple[Callable[..., Run], str]] = {
        name: (run_plain, pruner) for name, pruner in PLAIN.items()
    }
    candidates |= {name: (run_hpo, pruner) for name, pruner in HPO.items()}
    runs: dict[str, list[Run]] = {name: [] for name in candidates}
    for seed in range(options.seeds):
        for name, (search, pruner) in candidates.items():
            trials = options.halving_trials if pruner == "halving" else options.trials
            with tempfile.TemporaryDirectory() as folder:
                found = search(seed, trials, pruner, dataset, Path(folder))
            runs[name].append(found)
            print(f"seed {seed}, {name}: {found.best:.4f} in {found.seconds:.1f} s", flush=True)
    print(*table(runs), sep="\n")


if __name__ == "__main__":
    match sys.argv[1:2]:
        case ["--hpo"]:
            hpo_child(*sys.argv[2:])
        case ["--plain"]:
            given = sys.argv[2:]
            plain_child(int(given[0]), int(given[1]), given[2], given[3], given[4], int(given[5]))
        case _:
            main()
