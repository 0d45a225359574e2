"""Benchmark of confirmations: how often do they find a gain that does not exist, and how often one that does?

    python benchmarks/confirmation.py --studies 1000

Trains one configuration of an mlp on 500 of scikit-learn's digits under many seeds on many random splits. Each
simulated study draws its runs from these scores: a search of 32 trials on one split, of which the 5 best are confirmed
beside a baseline and the first trial with 10 runs each, on the split of the search or spread over fresh splits. All are
the same configuration, so no tuning can help. "better by n sd" adds n standard deviations of the seeds to the runs of
one of the five; "overtuned" subtracts three from the baseline, so that the winner beats it, but not the first trial.

Columns: the share of studies in which "tuning helped"; in which the interval of the winner's mean contains its true
mean over all splits, or that on the split of the search; in which the intervals of the gain over the baseline and of
the gain over the first trial both contain the true gain.
"""

from __future__ import annotations

import argparse
import os
import platform
import threading
from collections.abc import Sequence
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray

from hpo.data import load_splits
from hpo.results.compare.statistics import SIGNIFICANT, Interval
from hpo.results.confirm.inference import Difference, Runs, rank
from hpo.results.confirm.study import BASELINE, FIRST, Candidate
from hpo.search.plan import plan, task_of
from hpo.studyfile import Study, parse_study
from hpo.training.device_data import to_device
from hpo.training.seeds import member_seed
from hpo.training.stack import Member
from hpo.training.trainer import Trainer

TRIALS, TOP, RUNS = 32, 5, 10
METRIC = "val_accuracy"

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """One simulated confirmation: whether "tuning helped", and which intervals contain the truth."""

    helped: bool
    mean_over_splits: bool
    mean_on_split: bool
    gains: bool


def study(splits: int) -> Study:
    """Return the study of one configuration that trains on so many splits."""
    return parse_study(
        {
            "name": "confirmation",
            "data": {"dataset": "digits", "train_size": 500, "validation": 0.2, "splits": splits},
            "network": {"kind": "mlp", "hidden": [32], "dropout": 0.2},
            "optimizer": {"kind": "adam", "lr": 0.003},
            "training": {"epochs": 8, "batch_size": 50, "precision": "float32"},
            "search": {"trials": splits, "repeats": splits},
        },
        "confirmation",
    )


def train(splits: int, seeds: int) -> tuple[Scores, float]:
    """Return the final validation accuracies, [splits, seeds], and the splits' validation by training examples."""
    config = study(splits)
    planned, scores = plan(config, "cpu"), list[list[float]]()
    for index, split in enumerate(load_splits(config)):
        trainer = Trainer(to_device(split, split.data.split_seed, planned.device, [task_of(config, split)]), "", print)
        members = [Member(n, config.config({}), member_seed(index, n)) for n in range(seeds)]
        found = trainer.run(members, metric=METRIC, minimized=False, stop=threading.Event())
        scores.append([found[n].curve[METRIC][-1] for n in range(seeds)])
    first = planned.split
    return np.array(scores), len(first.validation) / len(first.train)


DESIGNS = {"one split": 1, "2 fresh splits": 2, "5 fresh splits": 5, "10 fresh splits": 10}
"""The number of splits of the RUNS runs of a configuration."""


@dataclass(frozen=True)
class Case:
    """The truth of simulated studies, in standard deviations of the seeds: one configuration's gain, the baseline's."""

    name: str
    better: float
    baseline: float


CASES = (
    Case("all equal", 0.0, 0.0),
    Case("overtuned", 0.0, -3.0),
    Case("better by 1 sd", 1.0, 0.0),
    Case("better by 2 sd", 2.0, 0.0),
)


def main() -> None:
    """Train, simulate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=200)
    options = parser.parse_args()
    scores, overlap = train(options.splits, options.seeds)
    sd = float(np.sqrt(scores.var(axis=1, ddof=1).mean()))
    print(f"{platform.machine()}, torch {torch.__version__}, {options.studies} studies, {RUNS} runs of a configuration")
    print(f"{scores.shape[0]} splits x {scores.shape[1]} seeds: mean {scores.mean():.4f}, standard deviation of the")
    print(f"seeds {sd:.4f}, of the means of the splits {scores.mean(axis=1).std(ddof=1):.4f}\n")
    print(f"{'':34}{'helped':>8}{'mean, over splits':>19}{'on the split':>14}{'gains':>8}")
    random = np.random.default_rng(0)
    for case in CASES:
        for name, splits in DESIGNS.items():
            better, baseline = case.better * sd, case.baseline * sd
            found = [simulate(scores, splits, overlap, better, baseline, random) for _ in range(options.studies)]
            columns = [share([getattr(each, key) for each in found]) for key in Outcome.__annotations__]
            label = f"{name}, {case.name}"
            print(f"{label:34}{columns[0]:>8}{columns[1]:>19}{columns[2]:>14}{columns[3]:>8}", flush=True)


def simulate(
    scores: Scores, splits: int, overlap: float, better: float, baseline: float, random: np.random.Generator
) -> Outcome:
    """Return the outcome of one study, whose runs are on so many splits: on the split of the search, or on others.

    `better` is added to the scores of one configuration, `baseline` to those of the baseline.
    """
    own, *fresh = random.permutation(len(scores))[: splits + 1]
    parts = [0] * RUNS if splits == 1 else [run % splits for run in range(RUNS)]
    drawn = random.permutation(scores.shape[1])[: TRIALS + (TOP + 2) * RUNS]
    search, runs = scores[own][drawn[:TRIALS]], drawn[TRIALS:].reshape(TOP + 2, RUNS)
    places = [own] * RUNS if splits == 1 else [fresh[part] for part in parts]
    values = np.stack([scores[place][runs[:, run]] for run, place in enumerate(places)], axis=1)
    values[1] += better
    values[TOP] += baseline
    keys = [(run,) for run in range(RUNS)] if splits == 1 else [(part,) for part in parts]
    order = np.argsort(-search)
    candidates = [
        Candidate(f"Best-{n + 1}", {}, int(order[n]), float(search[order[n]]), False, order[n] == 0) for n in range(TOP)
    ]
    candidates.append(Candidate(BASELINE, {}, None, None, True))
    if 0 not in order[:TOP]:
        candidates.append(Candidate(FIRST, {}, 0, float(search[0]), False, True))
    ranking = rank(
        [
            Runs(each, dict(enumerate(row)), {run: {key: row[run]} for run, key in enumerate(keys)}, 0, {})
            for each, row in zip(candidates, values.tolist(), strict=False)
        ],
        False,
        0.0 if splits == 1 else overlap,
    )
    assert ranking is not None
    true = {each.label: 0.0 for each in candidates} | {"Best-2": better, BASELINE: baseline}
    first = next(each.label for each in candidates if each.first)
    extra = true[ranking.winner.candidate.label]
    gains = [(ranking.gain, extra - true[BASELINE]), (ranking.first_gain, extra - true[first])]
    known = [(gain, truth) for gain, truth in gains if gain is not None]  # the winner may be the first trial
    return Outcome(
        len(known) == len(gains) and all(_is_gain(gain) for gain, _ in known),
        _contains(ranking.winner.estimate.interval, float(scores.mean()) + extra),
        _contains(ranking.winner.estimate.interval, float(scores[own].mean()) + extra),
        all(_contains(gain.pairs.difference.interval, truth) for gain, truth in known),
    )


def _is_gain(gain: Difference) -> bool:
    return gain.p is not None and gain.p < SIGNIFICANT and gain.pairs.difference.mean > 0


def _contains(interval: Interval | None, value: float) -> bool:
    return interval is not None and interval.low <= value <= interval.high


def share(values: Sequence[bool]) -> str:
    """Return the share of true values, in per cent."""
    return f"{100 * sum(values) / len(values):.1f}%"


if __name__ == "__main__":
    main()
