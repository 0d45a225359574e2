"""Benchmark of training and of a whole search: hpo against plain torch and a plain Optuna loop in two processes.

    make bench          (or: python benchmarks/chapter6.py --rounds 20 --trials 64 --searches 2)

It takes about 5 minutes on 2 cores. The networks, each without and with batch norm:

- The MLP of "Deep Learning from Scratch", chapter 6: 784-[100]*6-10, SGD, batch 100, 400 training and 100 validation
  images of MNIST if HPO_DATA_DIR has it, else of Fashion-MNIST or the digits.
- The small CNN of studies/cifar10-cnn-dropout.toml: Adam, dropout 0.5, batch 64, 256 training and 64 validation images
  of CIFAR-10's shape, which are random, because no time depends on their values.

Training alone: a chunk is 32 member-epochs, evaluation included, and the candidates take turns. hpo trains an epoch of
a population of 32 as a launch does, on all cores, in stacks of the size that is fastest (where the processor has no
bfloat16 instructions, that of float32). Plain torch trains 16 epochs in each of two processes, which were started
before and run at the same time. "products" are the matrix products and convolutions of the same stacks alone, one
thread a core: "share" is their time by that of hpo's epoch; at 100%, nothing else would be left.

A whole search: `hpo launch` in a new process against two new processes of a plain Optuna loop on one SQLite file, which
read their images as tensors from a file and report each epoch. Start-up is included, and hpo uses `precision = "auto"`.
"imports, products" is a bound: a process that imports only the packages that a launch needs, and then the products of
all epochs in float32.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path

import optuna
import plain_torch
import torch
from alternation import Workers, alternate, table
from matrix_products import products_of_epoch
from plain_torch import BATCH, CNN_BATCH, HIDDEN, Tensors, plain_loop

from hpo.data import Split, load_split
from hpo.errors import DataError, HpoError
from hpo.studyfile import Study, parse_study
from hpo.training.device_data import DeviceSplit, to_device
from hpo.training.devices import has_bfloat16
from hpo.training.grouping import stack_key
from hpo.training.population import train
from hpo.training.speed.choices import choose_stack_size
from hpo.training.speed.timing import with_tiny_lr
from hpo.training.stack import Member
from hpo.training.tasks.task import classification

EPOCHS, POPULATION, PROCESSES = 50, 32, 2
DATASETS = ("mnist", "fashion_mnist", "digits")
PRECISIONS = ("float32", "bfloat16")
PLAIN = "plain torch, 2 processes"
PACKAGES = "import torch, sklearn.model_selection, optuna, sqlalchemy, alembic, pydantic, typer"
LAUNCH = "import sys; from hpo.cli import main; sys.exit(main())"
ROOT = Path(__file__).resolve().parent.parent


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


def cnn_study(batch_norm: bool) -> Study:
    network = {"kind": "cnn", "conv": [6, 16], "kernel": 5, "pool": 2, "hidden": [120, 84], "dropout": 0.5}
    return parse_study(
        {
            "name": "cnn",
            "data": {"dataset": "cifar10"},
            "network": {**network, "batch_norm": batch_norm},
            "optimizer": {"kind": "adam", "lr": 1e-3},
            "training": {"epochs": EPOCHS, "batch_size": CNN_BATCH},
            "search": {"trials": 1},
        },
        "small CNN",
    )


def random_images() -> DeviceSplit:
    train, validation = torch.rand(4 * CNN_BATCH, 3, 32, 32), torch.rand(CNN_BATCH, 3, 32, 32)
    labels = [torch.randint(10, (len(images),)) for images in (train, validation)]
    return DeviceSplit(train, labels[0], validation, labels[1], task=classification(10), seed=0)


def tensors_of(split: DeviceSplit) -> Tensors:
    return split.train, split.train_targets, split.validation, split.validation_targets


def compare_training(title: str, study: Study, split: DeviceSplit, rounds: int, cores: int) -> None:
    """Print the time of a member-epoch: plain torch in two processes, hpo in each precision, and hpo's products."""
    config = study.first_config
    members = [with_tiny_lr(Member(n, config, n)) for n in range(POPULATION)]
    plain = (config.network.kind, config.network.batch_norm, tensors_of(split), max(1, cores // PROCESSES))
    with Workers(PROCESSES, plain_loop, *plain) as workers, ThreadPool(cores, torch.set_num_threads, (1,)) as threads:
        candidates: dict[str, Callable[[], object]] = {
            PLAIN: lambda: workers.run([POPULATION // PROCESSES] * PROCESSES)
        }
        sizes = []
        for precision in PRECISIONS:
            torch.set_num_threads(cores)
            if precision == "float32" or has_bfloat16(split.device):
                size = choose_stack_size(members[0], POPULATION, split, precision).members
            sizes.append(size)
            epochs = train(members, split, precision, stack_sizes={stack_key(members[0].config): size})
            next(epochs)
            starts = range(0, POPULATION, size)
            products = [products_of_epoch(members[start : start + size], split, precision) for start in starts]
            candidates[f"hpo, {precision}"] = lambda epochs=epochs: next(epochs)  # type: ignore[misc]
            candidates[f"products, {precision}"] = lambda products=products: threads.map(  # type: ignore[misc]
                lambda run: run(), products, chunksize=1
            )
        seconds = alternate(candidates, rounds)
    used = " and ".join(map(str, dict.fromkeys(sizes)))
    print(*table(f"{title}, stacks of {used}", seconds, POPULATION, PLAIN), sep="\n")
    for precision in PRECISIONS:
        bound, measured = seconds[f"products, {precision}"], seconds[f"hpo, {precision}"]
        shares = f"{statistics.fmean(bound) / statistics.fmean(measured):.0%} (means), {min(bound) / min(measured):.0%}"
        print(f"share of products, {precision}: {shares} (least)")
    print(flush=True)


def launch(dataset: str, batch_norm: bool, trials: int, epochs: int, cores: int) -> None:
    """Run `hpo launch` of the search in a new process."""
    settings = {
        "data.dataset": dataset,
        "network.batch_norm": str(batch_norm).lower(),
        "search.trials": trials,
        "training.epochs": epochs,
    }
    changes = itertools.chain.from_iterable(("--set", f"{key}={value}") for key, value in settings.items())
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", LAUNCH, "launch", str(ROOT / "studies/chapter6-search.toml"), *changes]
        command += ["--quiet", "--device", "cpu", "--storage", f"sqlite:///{folder}/hpo.db"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(cores), "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, env=environment, cwd=folder)


def plain_search(tensors: Tensors, batch_norm: bool, trials: int, epochs: int, cores: int) -> None:
    """Run a plain Optuna loop in two new processes, on one SQLite file."""
    with tempfile.TemporaryDirectory() as folder:
        url, path, threads = f"sqlite:///{folder}/plain.db", f"{folder}/tensors.pt", max(1, cores // PROCESSES)
        torch.save(tensors, path)
        optuna.create_study(study_name="plain", storage=url, direction="maximize")
        each = [str(batch_norm), str(epochs), str(trials // PROCESSES)]
        commands = [
            [sys.executable, plain_torch.__file__, url, path, *each, str(seed), str(threads)]
            for seed in range(PROCESSES)
        ]
        running = [subprocess.Popen(command, cwd=folder) for command in commands]
        assert all(process.wait() == 0 for process in running), "a process of the plain loop failed"


def compare_searches(dataset: str, split: DeviceSplit, batch_norm: bool, given: argparse.Namespace) -> None:
    """Print the time of a trial in whole searches, start-up included."""
    settings = (batch_norm, given.trials, given.epochs, given.cores)
    config = study_of(dataset, batch_norm, 1, "float32").first_config
    stack = [Member(number, config, number) for number in range(POPULATION // given.cores)]
    products = [products_of_epoch(stack, split, "float32") for _ in range(given.cores)]
    with ThreadPool(given.cores, torch.set_num_threads, (1,)) as threads:

        def bound() -> None:
            subprocess.run([sys.executable, "-c", PACKAGES], check=True)
            for _ in range(-(-given.trials * given.epochs // POPULATION)):
                threads.map(lambda run: run(), products, chunksize=1)

        candidates = {
            "plain Optuna, 2 processes": lambda: plain_search(tensors_of(split), *settings),
            "launch of hpo": lambda: launch(dataset, *settings),
            "imports, products": bound,
        }
        seconds = alternate(candidates, given.searches, warm_up=False)
    title = f"search, {'with' if batch_norm else 'without'} batch norm"
    print(*table(title, seconds, given.trials, "plain Optuna, 2 processes"), sep="\n", end="\n\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="chunks of training for each candidate")
    parser.add_argument("--trials", type=int, default=64, help="trials of a whole search")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of a trial in a whole search")
    parser.add_argument("--searches", type=int, default=2, help="whole searches of each candidate")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    dataset, images = find_images(given.trials)
    split = to_device(images, 0, torch.device("cpu"))
    processor = platform.processor() or platform.machine()
    print(f"{processor}, {given.cores} cores, torch {torch.__version__}, {dataset}")
    print(f"training: {given.rounds} chunks of {POPULATION} member-epochs in alternation; ms a member-epoch\n")
    for batch_norm in (False, True):
        name = ", batch norm" if batch_norm else ""
        study = study_of(dataset, batch_norm, 1, "float32")
        compare_training(f"chapter 6{name}", study, split, given.rounds, given.cores)
        compare_training(f"small CNN{name}", cnn_study(batch_norm), random_images(), given.rounds, given.cores)
    print(f"whole searches: {given.trials} trials of {given.epochs} epochs, start-up included; ms a trial\n")
    for batch_norm in (False, True):
        compare_searches(dataset, split, batch_norm, given)


if __name__ == "__main__":
    main()
