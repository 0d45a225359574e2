"""Benchmark of a whole search: hpo against a plain Optuna loop, the same trials in one run.

    make bench          (or: python benchmarks/chapter6.py --trials 100 --rounds 3)

The search is that of "Deep Learning from Scratch", chapter 6. 500 images (MNIST if HPO_DATA_DIR has it, else
Fashion-MNIST, else digits), 100 of them for validation; an MLP of six hidden layers of 100, SGD, batch 100, 50 epochs;
lr 1e-6..1e-2 and weight decay 1e-8..1e-4 at random on log scales; without and with batch norm. The plain loop has its
tensors in memory and trains one model at a time, with SQLite and one report an epoch: in one process with all threads,
and in two processes with half of them each. The candidates run in turn in every round; the table has their medians.
"training" is without storage, "all" includes it.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import platform
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import optuna
import torch
from hpo.training.auto_precision import choose_precision
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import PartialFixedSampler, RandomSampler
from plain_torch import BATCH, HIDDEN, plain_epoch, plain_network

from hpo.data import Split, load_split
from hpo.errors import DataError, HpoError
from hpo.search.launch import launch
from hpo.search.sampling.sampler_history import SamplerHistory
from hpo.search.space import config_of
from hpo.storage import open_storage
from hpo.studyfile import Study, parse_study
from hpo.training.device_data import DeviceSplit, to_device
from hpo.training.population import train
from hpo.training.seeds import member_seed
from hpo.training.stack import Member

EPOCHS, POPULATION = 50, 32
DATASETS = ("mnist", "fashion_mnist", "digits")
Seconds = tuple[float, float]
"""Seconds a trial: training alone, and with storage."""


def study_of(dataset: str, batch_norm: bool, trials: int, precision: str) -> Study:
    return parse_study(
        {
            "name": "chapter6",
            "data": {"dataset": dataset, "train_size": 500, "validation": 0.2},
            "network": {"kind": "mlp", "hidden": HIDDEN, "batch_norm": batch_norm},
            "optimizer": {
                "kind": "sgd",
                "lr": {"low": 1e-6, "high": 1e-2, "log": True},
                "weight_decay": {"low": 1e-8, "high": 1e-4, "log": True},
            },
            "training": {"epochs": EPOCHS, "batch_size": BATCH, "precision": precision},
            "search": {"trials": trials, "sampler": "random", "pruner": "none", "population": POPULATION},
        },
        "chapter 6",
    )


def find_images(trials: int) -> tuple[str, Split]:
    for dataset in DATASETS:
        try:
            return dataset, load_split(study_of(dataset, False, trials, "auto"))
        except DataError as error:
            print(f"{dataset}: {error}")
    raise HpoError("no data set found")


def run_hpo(study: Study, split: DeviceSplit, members: list[Member], precision: str) -> Seconds:
    start = time.perf_counter()
    for first in range(0, len(members), POPULATION):
        for _ in train(members[first : first + POPULATION], split, precision):
            pass
    training = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(f"sqlite:///{folder}/hpo.db")
        start = time.perf_counter()
        launch(study, storage, on_event=lambda event: None, stop=threading.Event())
        everything = time.perf_counter() - start
        storage.close()
    return training / len(members), everything / len(members)


def plain_loop(
    url: str, split: DeviceSplit, batch_norm: bool, params: list[dict[str, Any]], threads: int, spent: Any
) -> None:
    """Run these trials in the study at `url`; add the seconds of training, without storage, to `spent`."""
    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", ExperimentalWarning)  # of the sampler that fixes parameters

    train_set, validation_set = (split.train, split.train_targets), (split.validation, split.validation_targets)

    def objective(trial: optuna.Trial) -> float:
        lr = trial.suggest_float("lr", 1e-6, 1e-2, log=True)
        weight_decay = trial.suggest_float("weight_decay", 1e-8, 1e-4, log=True)
        start = time.perf_counter()
        model = plain_network(split.train[0].numel(), batch_norm)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay)
        accuracy = 0.0
        for epoch in range(EPOCHS):
            accuracy = plain_epoch(model, optimizer, train_set, validation_set)
            with spent.get_lock():
                spent.value += time.perf_counter() - start
            trial.report(accuracy, epoch + 1)
            start = time.perf_counter()
        return accuracy

    study = optuna.load_study(study_name="plain", storage=url)
    for each in params:  # not enqueued: two processes on SQLite can take the same waiting trial
        study.sampler = PartialFixedSampler(each, RandomSampler())
        study.optimize(objective, n_trials=1)


def run_plain(
    split: DeviceSplit, batch_norm: bool, params: list[dict[str, Any]], processes: int, threads: int
) -> Seconds:
    context = multiprocessing.get_context("spawn")
    spent = context.Value("d", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/plain.db"
        optuna.create_study(study_name="plain", storage=url, direction="maximize")
        arguments = [
            (url, split, batch_norm, params[part::processes], max(1, threads // processes), spent)
            for part in range(processes)
        ]
        start = time.perf_counter()
        if processes == 1:
            plain_loop(*arguments[0])
        else:
            workers = [context.Process(target=plain_loop, args=each) for each in arguments]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            assert all(worker.exitcode == 0 for worker in workers), "a worker of the plain loop failed"
        everything = time.perf_counter() - start
    return spent.value / processes / len(params), everything / len(params)


def gemm_rate() -> float:
    """Return the machine's float32 rate in FLOP/s: the best of several products of 1024 x 1024 matrices."""
    a = torch.randn(1024, 1024)
    best = min(timed(lambda: torch.mm(a, a)) for _ in range(20))
    return float(2 * 1024**3 / best)


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def flops_a_trial(split: DeviceSplit) -> float:
    """Return the multiplications and additions of one trial's products: forward, backward and validation."""
    sizes = [split.train[0].numel(), *HIDDEN, 10]
    products = [a * b for a, b in itertools.pairwise(sizes)]
    trained = 6 * sum(products) - 2 * products[0]  # nobody asks for the images' own gradient
    return EPOCHS * (trained * len(split.train) + 2 * sum(products) * len(split.validation))


def compare(dataset: str, images: Split, batch_norm: bool, trials: int, rounds: int) -> None:
    threads = torch.get_num_threads()
    split = to_device(images, 0, torch.device("cpu"))
    study = study_of(dataset, batch_norm, trials, "auto")
    params = [values for _, values in SamplerHistory(study, []).ask(trials)]
    members = [Member(n, config_of(study, values), member_seed(0, n)) for n, values in enumerate(params)]
    auto, _ = choose_precision(members[:POPULATION], split)
    contestants: dict[str, Callable[[], Seconds]] = {
        "plain Optuna loop, 1 process": lambda: run_plain(split, batch_norm, params, 1, threads),
        "plain Optuna loop, 2 processes": lambda: run_plain(split, batch_norm, params, 2, threads),
    }
    for precision in dict.fromkeys(("float32", auto)):
        named = study_of(dataset, batch_norm, trials, precision)
        contestants[f"hpo, {precision}{' (auto)' if precision == auto else ''}"] = (
            lambda named=named, precision=precision: run_hpo(named, split, members, precision)  # type: ignore[misc]
        )
    results: dict[str, list[Seconds]] = {name: [] for name in contestants}
    rates: list[float] = []
    for _ in range(rounds):
        for name, run in contestants.items():
            results[name].append(run())
            torch.set_num_threads(threads)
        rates.append(gemm_rate())
    report(batch_norm, results, statistics.median(rates), flops_a_trial(split))


def report(batch_norm: bool, results: dict[str, list[Seconds]], rate: float, flops: float) -> None:
    medians = {name: [statistics.median(each) for each in zip(*runs, strict=True)] for name, runs in results.items()}
    loop = medians["plain Optuna loop, 2 processes"]
    print(f"\n{'with' if batch_norm else 'without'} batch norm; float32 GEMM rate {rate / 1e9:.0f} GFLOP/s")
    print(f"{'':34}{'training':>10}{'all':>10}   times the 2-process loop    share of the")
    print(f"{'':34}{'s a trial':>10}{'s a trial':>10}   in training       in all     GEMM rate")
    for name, (training, everything) in medians.items():
        print(
            f"{name:34}{training:10.4f}{everything:10.4f}{loop[0] / training:13.2f}{loop[1] / everything:13.2f}"
            f"{flops / training / rate:13.0%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    dataset, images = find_images(arguments.trials)
    threads = torch.get_num_threads()
    print(f"{platform.processor() or platform.machine()}, {threads} threads, torch {torch.__version__}, {dataset}")
    print(f"{arguments.trials} trials a run, medians of {arguments.rounds} rounds in turn")
    for batch_norm in (False, True):
        compare(dataset, images, batch_norm, arguments.trials, arguments.rounds)


if __name__ == "__main__":
    main()
