"""Benchmark of the winners of searches: does successive halving lose quality against the search without a pruner?

    python benchmarks/search_winners.py [--task digits] [--searches 50] [--trials 128] [--fresh 10] [--best 5]

Simulates both searches on a table of benchmarks/curve_tables.py, under the same seeds, and trains their best completed
trials again under fresh seeds. A search's result is its best trial ("winner"), and the one of its `--best` trials with
the best mean under fresh seeds ("confirmed"), as `hpo confirm` selects it; the latter is judged by further fresh seeds.
Prints the mean difference of halving minus no pruner, in points of final validation accuracy, with its 95% interval
over the searches. One thread; the trainings are stored in parts, as those of the tables.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import simulated_search as simulated
import torch
from curve_tables import TABLES, TASKS, Curves
from scipy import stats
from simulated_search import TPE, Array, Rule, Run, Table

from hpo.studyfile import Study, read_study


def best_rows(table: Table, run: Run, count: int) -> list[int]:
    """Return the rows of the completed trials with the best final values, best first."""
    rows = [row for _, row in run.completed]
    return sorted(rows, key=lambda row: -table.final[row])[:count]


def interval(differences: Array) -> str:
    """Return the mean of paired differences with its 95% interval by Student's t, in points."""
    mean, error = differences.mean(), differences.std(ddof=1) / math.sqrt(len(differences))
    half = stats.t.ppf(0.975, len(differences) - 1) * error
    return f"{100 * mean:+.3f} points (95% interval {100 * (mean - half):+.3f} to {100 * (mean + half):+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="digits")
    parser.add_argument("--searches", type=int, default=50)
    parser.add_argument("--trials", type=int, default=128)
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--fresh", type=int, default=10, help="fresh seeds for each use")
    parser.add_argument("--best", type=int, default=5, help="trials that are confirmed")
    parser.add_argument("--scratch", type=Path, default=Path("build/search-winners"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = simulated.read_table(TABLES / f"{options.task}.npz")
    found: dict[str, list[list[int]]] = {"no pruner": [], "halving": []}
    for seed in range(options.searches):
        runs = {
            "no pruner": simulated.complete_all(TPE(table, seed), options.trials, options.population),
            "halving": simulated.halve(
                TPE(table, seed), options.trials, options.population, Rule(), seed, simulated.last_value
            ),
        }
        for name, run in runs.items():
            found[name].append(best_rows(table, run, options.best))
    rows = sorted({row for searches in found.values() for each in searches for row in each})
    # Repeats 1 to 10 are those of the table of seeds: fresh for a search, which has seen repeat 0 only.
    study = read_study(str(TABLES / f"{options.task}.toml"))
    assert isinstance(study, Study), "a table is made of networks"
    trained = Curves(study, options.scratch, options.population).of(
        [(row, repeat) for row in rows for repeat in range(1, 2 * options.fresh + 1)], f"winners-{options.fresh}"
    )
    final = np.nan_to_num(trained["val_accuracy"][:, -1]).astype(float).reshape(len(rows), 2, options.fresh).mean(2)
    means = dict(zip(rows, final, strict=True))
    values: dict[str, dict[str, Array]] = {}
    for name, searches in found.items():
        confirmed = [max(each, key=lambda row: means[row][0]) for each in searches]
        values[name] = {
            "winner": np.array([means[each[0]][0] for each in searches]),
            "confirmed": np.array([means[row][1] for row in confirmed]),
        }
        text = ", ".join(f"{each} {value.mean():.4f}" for each, value in values[name].items())
        print(f"{name}: mean final validation accuracy under {options.fresh} fresh seeds: {text}")
    for each in ("winner", "confirmed"):
        print(f"{each}: halving minus no pruner {interval(values['halving'][each] - values['no pruner'][each])}")
    print(f"{options.task}: {options.searches} searches of {options.trials} trials, {len(rows)} configurations trained")


if __name__ == "__main__":
    main()
