"""Benchmark of TPE: cost of a proposal as a study grows, and equality with the proposals of Optuna's TPE.

Both propose for the same history in memory, in turn, as members of populations of 32 (earlier proposals of the
population count as running trials). The histories are random, so the benchmark does not measure the quality of a
search; equal proposals imply an equal search.

    python benchmarks/sampling.py [--rounds 3] [--trials 100 1000 10000]
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import random
import statistics
import time
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np
import optuna
import psutil
import scipy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from hpo.search.sampling.in_memory_study import STUDY, InMemoryStudy, in_memory_trial
from hpo.search.sampling.tpe import IncrementalTPESampler, Observations

POPULATION = 32
TWO: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-6, 1e-1, log=True),
    "weight_decay": FloatDistribution(1e-8, 1e-2, log=True),
}
SPACES = {
    "2 floats": TWO,
    "5 of all kinds": {
        **TWO,
        "dropout": FloatDistribution(0.0, 0.6),
        "units": IntDistribution(8, 512, log=True),
        "activation": CategoricalDistribution(["relu", "tanh", "sigmoid"]),
    },
}


def drawn(draw: random.Random, space: dict[str, BaseDistribution]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            values[name] = draw.choice(distribution.choices)
            continue
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        low, high = distribution.low, distribution.high
        value = math.exp(draw.uniform(math.log(low), math.log(high))) if distribution.log else draw.uniform(low, high)
        values[name] = round(value) if isinstance(distribution, IntDistribution) else value
    return values


def measure(space: dict[str, BaseDistribution], trials: int, seed: int) -> tuple[float, float, int]:
    """Return the seconds of a proposal by Optuna and by hpo for a population, and the number of equal proposals."""
    draw = random.Random(seed)
    mirror = InMemoryStudy()
    study = optuna.create_study(storage=mirror, direction="maximize")
    observations = Observations(space, study)
    for number in range(trials):
        mirror.put(in_memory_trial(number, TrialState.COMPLETE, drawn(draw, space), space, [draw.random()]))
        observations.add(mirror.get_trial(number))
    seconds, same = [0.0, 0.0], 0
    for number in range(trials, trials + POPULATION):
        study._thread_local.cached_all_trials = None
        trial = mirror.get_trial(mirror.create_new_trial(STUDY))
        proposals = []
        samplers = [
            TPESampler(seed=number, multivariate=True, constant_liar=True),
            IncrementalTPESampler(number, observations),
        ]
        for index in (0, 1) if number % 2 else (1, 0):
            start = time.perf_counter()
            proposals.append(samplers[index].sample_relative(study, trial, space))
            seconds[index] += (time.perf_counter() - start) / POPULATION
        same += proposals[0] == proposals[1]
        for name, value in proposals[0].items():
            mirror.set_trial_param(number, name, space[name].to_internal_repr(value), space[name])
        observations.add(mirror.get_trial(number))
    return seconds[0], seconds[1], same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1_000, 10_000])
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(
        f"Python {platform.python_version()}, Optuna {optuna.__version__}, NumPy {np.__version__}, "
        f"SciPy {scipy.__version__}; load {psutil.getloadavg()[0]:.1f}; medians of {options.rounds} rounds"
    )
    print(f"\n{'space':<16}{'trials':>8}{'Optuna ms':>12}{'hpo ms':>9}{'ratio':>8}   the same proposals")
    for name, space in SPACES.items():
        for trials in options.trials:
            theirs, ours, same = zip(*(measure(space, trials, seed) for seed in range(options.rounds)), strict=True)
            before, after = statistics.median(theirs) * 1e3, statistics.median(ours) * 1e3
            asked = POPULATION * options.rounds
            print(f"{name:<16}{trials:>8,}{before:>12.1f}{after:>9.1f}{before / after:>8.1f}   {sum(same)} of {asked}")


if __name__ == "__main__":
    main()
