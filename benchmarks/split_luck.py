"""Benchmark of validation splits: how much of a score is luck of the split, and how much luck of the seed?

    HPO_DATA_DIR=data python benchmarks/split_luck.py

Trains two configurations of an mlp on several random splits of some data sets, each under the same seeds; a fifth of
the examples of a split are validation examples. The variance of the final validation accuracy has two components, those
of a one-way random model: that of the splits (which examples validate, and which train), and that of the seeds (initial
weights, dropout) on one split. The same for the difference between the two configurations, split by split and seed by
seed.

Columns: the standard deviation over splits and over seeds of the better configuration's accuracy, their ratio, and
the same of the difference. Then the share of confirmations on one split whose interval (10 seeds, simultaneous for 5
configurations) contains the accuracy over all splits, computed from these two standard deviations.
"""

from __future__ import annotations

import argparse
import os
import platform
import threading
import time
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray

from hpo.data import load_splits
from hpo.results.compare.statistics import estimate
from hpo.search.plan import plan, task_of
from hpo.studyfile import Study, parse_study
from hpo.training.device_data import to_device
from hpo.training.seeds import member_seed
from hpo.training.stack import Member
from hpo.training.trainer import Trainer

METRIC = "val_accuracy"
RUNS, TOP, DRAWS = 10, 5, 4000
TABLES = ("wine", "breast_cancer")
CONFIGURATIONS = ({"dropout": 0.1, "lr": 0.003}, {"dropout": 0.4, "lr": 0.001})

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A data set, its number of training examples before the split (None: all), and how long networks train."""

    dataset: str
    examples: int | None
    epochs: int
    batch_size: int
    splits: int = 20
    seeds: int = 5


CASES = (
    Case("wine", None, 30, 16),
    Case("digits", 150, 30, 16),
    Case("breast_cancer", None, 30, 32),
    Case("digits", 500, 30, 32),
    Case("digits", None, 30, 64),
    Case("fashion_mnist", 1000, 30, 64),
    Case("fashion_mnist", 5000, 20, 128),
)


def study(case: Case) -> Study:
    """Return the study of both configurations that trains on so many splits."""
    data: dict[str, Any] = {"dataset": case.dataset, "validation": 0.2, "splits": case.splits}
    return parse_study(
        {
            "name": "split-luck",
            "data": data | ({} if case.examples is None else {"train_size": case.examples}),
            "network": {"kind": "mlp", "hidden": [64], "dropout": {"low": 0.0, "high": 0.5}},
            "optimizer": {"kind": "adam", "lr": {"low": 1e-4, "high": 1e-1, "log": True}},
            "training": {"epochs": case.epochs, "batch_size": case.batch_size, "precision": "float32"},
            "search": {"trials": case.splits, "repeats": case.splits},
            "preprocess": {"standardize": True} if case.dataset in TABLES else {},
        },
        "split-luck",
    )


def train(case: Case) -> tuple[Scores, int]:
    """Return the final scores, [configurations, splits, seeds], and the number of validation examples."""
    config = study(case)
    planned, scores = plan(config, "cpu"), np.zeros((len(CONFIGURATIONS), case.splits, case.seeds))
    for index, split in enumerate(load_splits(config)):
        trainer = Trainer(to_device(split, split.data.split_seed, planned.device, [task_of(config, split)]), "", print)
        places = [(which, seed) for which in range(len(CONFIGURATIONS)) for seed in range(case.seeds)]
        members = [
            Member(number, config.config(CONFIGURATIONS[which]), member_seed(index, seed))
            for number, (which, seed) in enumerate(places)
        ]
        found = trainer.run(members, metric=METRIC, minimized=False, stop=threading.Event())
        for number, (which, seed) in enumerate(places):
            scores[which, index, seed] = found[number].curve[METRIC][-1]
    return scores, len(planned.split.validation)


def components(scores: Scores) -> tuple[float, float]:
    """Return the standard deviations due to the splits and to the seeds, of scores [splits, seeds]."""
    of_seeds = float(scores.var(axis=1, ddof=1).mean())
    of_splits = float(scores.mean(axis=1).var(ddof=1)) - of_seeds / scores.shape[1]
    return max(0.0, of_splits) ** 0.5, of_seeds**0.5


def coverage(of_splits: float, of_seeds: float, random: np.random.Generator) -> float:
    """Return how often the interval of the best of TOP equal means on one split contains the mean over all splits."""
    contained = 0
    for _ in range(DRAWS):
        runs = random.normal(scale=of_seeds, size=(TOP, RUNS)) + random.normal(scale=of_splits)
        interval = estimate(max(runs, key=np.mean), intervals=TOP).interval
        contained += interval is not None and interval.low <= 0 <= interval.high
    return contained / DRAWS


def main() -> None:
    """Train and print a line for each case."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(f"{platform.machine()}, torch {torch.__version__}; 20 splits x 5 seeds\n")
    print(f"{'':24}{'validation':>10}{'':>10}{'score, sd over':^24}{'difference, sd over':>24}{'one split':>18}")
    print(f"{'examples of':24}{'examples':>10}{'accuracy':>10}{'splits':>9}{'seeds':>8}{'ratio':>7}"
          f"{'splits':>9}{'seeds':>8}{'ratio':>7}{'contains':>10}{'seconds':>9}")  # fmt: skip
    random = np.random.default_rng(0)
    for case in CASES:
        start = time.perf_counter()
        scores, validation = train(case)
        best = int(scores.mean(axis=(1, 2)).argmax())
        of_score, of_difference = components(scores[best]), components(scores[best] - scores[1 - best])
        cells = [
            f"{each[0]:>9.4f}{each[1]:>8.4f}{each[0] / each[1] if each[1] else np.nan:>7.2f}"
            for each in (of_score, of_difference)
        ]
        label = f"{case.examples or 'all'} {case.dataset}"
        print(
            f"{label:24}{validation:>10}{scores[best].mean():>10.4f}{''.join(cells)}"
            f"{100 * coverage(*of_score, random):>9.1f}%{time.perf_counter() - start:>9.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
