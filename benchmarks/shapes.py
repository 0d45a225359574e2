"""Benchmark of populations of several shapes: side by side against one shape at a time and plain torch; a step's cost.

A chunk is one population of a study file's random trials, trained for a few epochs from its construction on, without a
storage. "side by side" is a population as a launch trains it; "apart" is a population for each shape; "one at a time"
has a population for each trial. "plain torch" trains the same networks one at a time in each of two processes, which
were started before and take the next trial when they are done with one. The ways take turns at the same chunks; their
learning rate is so small that no trial diverges.

    python benchmarks/shapes.py benchmarks/widths.toml [--trials 64] [--population 16] [--epochs 5] [--set KEY=VALUE]
    python benchmarks/shapes.py --cost     # fits the constants of hpo/training/shapes/division.py
    python benchmarks/shapes.py --batches  # bounds the gain of one program for members of two batch sizes
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import time
from collections.abc import Callable, Sequence

import numpy as np
import optuna
import torch
from alternation import Workers, table
from plain_torch import TINY_LR, plain_epoch
from scipy.optimize import nnls

from hpo.search.plan import plan, to_planned_device
from hpo.search.space import config_of, distributions
from hpo.studyfile import Config, Study, read_study
from hpo.training.device_data import DeviceSplit
from hpo.training.networks.builtin import build
from hpo.training.population import train
from hpo.training.seeds import member_seed
from hpo.training.shapes.division import work
from hpo.training.shapes.template import network_shape
from hpo.training.stack import DTYPES, Member
from hpo.training.tasks.task import classification
from hpo.training.trainer import Trainer

PLAIN = "plain torch, 2 processes"
EXAMPLES = 2000
SPLIT = DeviceSplit(
    *(torch.rand(EXAMPLES, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(EXAMPLES) % 10),
    *(torch.zeros(10, 1, 16, 16), torch.arange(10)),
    task=classification(10),
    seed=0,
)


def random_members(study: Study, count: int, epochs: int) -> list[Member]:
    """Return members with random values of the study's parameters."""
    sampled = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    members = []
    for number in range(count):
        values = sampled.ask(distributions(study)).params
        used = {parameter.name for parameter in study.applicable_parameters(values)}
        config = config_of(study, {name: value for name, value in values.items() if name in used})
        optimizer = config.optimizer.model_copy(update={"lr": TINY_LR})
        training = config.training.model_copy(update={"epochs": epochs})
        config = config.model_copy(update={"optimizer": optimizer, "training": training})
        members.append(Member(number, config, member_seed(0, number)))
    return members


def train_all(trainer: Trainer, groups: Sequence[list[Member]]) -> int:
    """Train groups one after the other; return their number of stacks."""
    return sum(result.stacks for group in groups for result in trainer.train(group) if result.epoch == 1)


def plain_trial(split: DeviceSplit, threads: int) -> Callable[[Config], None]:
    """Return a function that trains a network by plain torch and evaluates it after each epoch."""
    torch.set_num_threads(threads)
    train_set, validation_set = (split.train, split.train_targets), (split.validation, split.validation_targets)

    def run(config: Config) -> None:
        model = build(config.network, split.shape, split.task.outputs, 0)
        given = config.optimizer
        optimizer: torch.optim.Optimizer
        if given.kind == "adam":
            optimizer = torch.optim.Adam(model.parameters(), given.lr, weight_decay=given.weight_decay)
        else:
            assert given.kind == "momentum", "the benchmark knows momentum and adam"
            optimizer = torch.optim.SGD(model.parameters(), given.lr, given.momentum, weight_decay=given.weight_decay)
        for _ in range(config.training.epochs):
            plain_epoch(model, optimizer, train_set, validation_set, config.training.batch_size)

    return run


def compare(study: Study, trials: int, population: int, epochs: int, precision: str, cores: int) -> None:
    """Print the milliseconds a trial of each way, over chunks of equal work."""
    split = to_planned_device(study, plan(study, "cpu"))[0].in_type(DTYPES[precision])
    together, apart = Trainer(split, precision, print), Trainer(split, precision, print, apart=True)
    members = random_members(study, trials, epochs)
    seconds: dict[str, list[float]] = {}
    stacks: dict[str, int] = {}
    with Workers(2, plain_trial, split, max(1, cores // 2)) as workers:
        for chunk, start in enumerate([0, *range(0, trials, population)]):  # the first one warms up
            some = members[start : start + population]
            ways: dict[str, Callable[[], int | None]] = {
                PLAIN: lambda some=some: workers.run([member.config for member in some]),  # type: ignore[misc]
                "side by side": lambda some=some: train_all(together, together.groups(some)),  # type: ignore[misc]
                "apart": lambda some=some: train_all(apart, apart.groups(some)),  # type: ignore[misc]
                "one at a time": lambda some=some: train_all(apart, [[each] for each in some]),  # type: ignore[misc]
            }
            for way in list(ways)[:: -1 if chunk % 2 else 1]:
                torch.set_num_threads(cores)
                began = time.perf_counter()
                count = ways[way]()
                if chunk:
                    seconds.setdefault(way, []).append((time.perf_counter() - began) / len(some))
                    stacks[way] = stacks.get(way, 0) + (count or 0)
    print(
        f"{study.name}: {trials} trials in populations of {population}, {epochs} epochs, {precision}, "
        f"{cores} cores, torch {torch.__version__}, {platform.machine()}; ms a trial"
    )
    named = {f"{way}, {stacks[way]} stacks" if stacks[way] else way: seconds[way] for way in ways}
    print(*table("", named, 1, PLAIN), sep="\n")


def step_us(members: int, hidden: list[int], batch_size: int, norm: bool, rounds: int) -> Callable[[], float]:
    """Return a function that trains an epoch of a stack and returns the microseconds of a step."""
    config = _config(hidden, batch_size, norm, rounds)
    epochs = train([Member(n, config, n) for n in range(members)], SPLIT, "float32")
    next(epochs)

    def measure() -> float:
        start = time.perf_counter()
        next(epochs)
        return 1e6 * (time.perf_counter() - start) / -(-EXAMPLES // batch_size)

    return measure


def _config(hidden: list[int], batch_size: int, norm: bool, rounds: int) -> Config:
    return Config.model_validate(
        {
            "network": {"kind": "mlp", "hidden": hidden, "batch_norm": norm, "dropout": 0.2},
            "optimizer": {"kind": "adam", "lr": 1e-3},
            "training": {"epochs": rounds + 1, "batch_size": batch_size},
        }
    )


def fit_cost(rounds: int) -> None:
    """Measure steps of stacks of one shape on one thread, and print the constants that fit their durations."""
    widths = ([32], [128], [32] * 3, [128] * 2, [256] * 3)
    rows, running = [], []
    for hidden, members, size, norm in itertools.product(widths, (1, 4, 12), (32, 128), (False, True)):
        config = _config(hidden, size, norm, rounds)
        shape = network_shape(config.network, build(config.network, SPLIT.shape, 10, 0), SPLIT.shape)
        rows.append(work([shape] * members, size))
        running.append(step_us(members, hidden, size, norm, rounds))
    us = np.min([[measure() for measure in running] for _ in range(rounds)], axis=0)
    found, _ = nnls(np.array(rows) / us[:, None], np.ones(len(us)))  # relative errors
    errors = np.abs(np.array(rows) @ found / us - 1)
    print(f"microseconds: {found}; relative error: mean {errors.mean():.2f}, largest {errors.max():.2f}")


def bound_batch_sizes(rounds: int, small: int = 32, large: int = 128, members: int = 8) -> None:
    """Print the time of an epoch of members of two batch sizes in two stacks, and a lower bound in one.

    In one program, every step of a member with large batches is one step of all members, whose rows are padded to the
    large size. The bound leaves out that these members would no longer share one batch.
    """
    few, many = (-(-EXAMPLES // size) for size in (large, small))
    for hidden in ([32] * 2, [100] * 2, [256] * 2):
        running = [step_us(*each, True, rounds) for each in ((members, hidden, small), (members, hidden, large))]
        running.append(step_us(2 * members, hidden, large, True, rounds))
        of_small, of_large, of_both = np.min([[measure() for measure in running] for _ in range(rounds)], axis=0)
        apart, one = many * of_small + few * of_large, few * of_both + (many - few) * of_small
        times = f"two stacks {apart / 1e6:.3f} s an epoch, one at least {one / 1e6:.3f} s"
        print(f"hidden {hidden}: {times}, at most {apart / one:.2f} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", nargs="?")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--batches", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--set", action="append", default=[], dest="changes")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if given.cost or given.batches:
        torch.set_num_threads(1)
        (fit_cost if given.cost else bound_batch_sizes)(given.rounds)
        return
    study = read_study(given.file, given.changes)
    assert isinstance(study, Study), "the benchmark needs a network study"
    compare(study, given.trials, given.population, given.epochs, given.precision, given.cores)


if __name__ == "__main__":
    main()
