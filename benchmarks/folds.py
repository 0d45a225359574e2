"""Benchmark of cross-validation: the time of a study with folds by that of the same study with a single split.

    python benchmarks/folds.py [--folds 5] [--trials 16] [--epochs 20] [--rounds 12]

Both studies train the same configurations of a digits MLP with batch norm and dropout, in populations of 16, with as
many training examples in each fold as in the single split. Launches alternate in one process. A fold more costs at most
one training more; start-up, sampling and storage are shared.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import threading
import time
from typing import Any

import torch

from hpo.search.launch import launch
from hpo.storage import open_storage
from hpo.studyfile import parse_study


def tree(folds: int | None, trials: int, epochs: int) -> dict[str, Any]:
    split = {"validation": 0.2} if folds is None else {"folds": folds}
    return {
        "name": "folds",
        "data": {"dataset": "digits", **split},
        "network": {"kind": "mlp", "hidden": [100, 100], "batch_norm": True, "dropout": 0.2},
        "optimizer": {"kind": "adam", "lr": {"low": 1e-4, "high": 1e-1, "log": True}},
        "training": {"epochs": epochs, "batch_size": 50, "precision": "float32", "checkpoint": "none"},
        "search": {"trials": trials, "sampler": "random", "pruner": "none", "population": 16},
    }


def seconds(study_tree: dict[str, Any]) -> tuple[float, float]:
    """Launch a study in a new storage; return its wall time and its CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(f"sqlite:///{folder}/hpo.db")
        start = time.perf_counter(), time.process_time()
        launch(parse_study(study_tree, "benchmark"), storage, on_event=lambda event: None, stop=threading.Event())
        found = time.perf_counter() - start[0], time.process_time() - start[1]
        storage.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {options}")
    names = {"single split": None, f"{options.folds} folds": options.folds}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for round_ in range(-1, options.rounds):  # the first round warms up
        for name, folds in names.items():
            found = seconds(tree(folds, options.trials, options.epochs))
            if round_ >= 0:
                times[name].append(found)
    single, folded = times.values()
    for kind, label in enumerate(("wall", "CPU")):
        for name, found_of in times.items():
            values = sorted(each[kind] for each in found_of)
            quartiles = " ".join(f"{each:.2f}" for each in statistics.quantiles(values, n=4))
            print(f"{label} s, {name}: mean {statistics.fmean(values):.2f}, min {values[0]:.2f}, quartiles {quartiles}")
        ratio = statistics.fmean(each[kind] for each in folded) / statistics.fmean(each[kind] for each in single)
        print(f"{label}: {ratio:.2f} times the single split (means)")


if __name__ == "__main__":
    main()
