"""Benchmark of search quality by member-epochs, on tables of complete learning curves: which pruner finds more?

Simulates searches on the tables of benchmarks/curve_tables.py and on a made-up table whose best configurations start
worst. All methods have the same number of trials and the same seeds. A trial counts once it is complete, and by its
final value.

    python benchmarks/search_quality.py [--seeds 50] [--trials 128] [--population 16] [--task NAME ...] [--picture FILE]

Columns: member-epochs until the best completed trial is within 0.005 of the table's best (quartiles over the seeds, `-`
where a search ends before), and the share of seeds that get there: by the final value in the table, which is the luck
of one seed in part, and by the expected value of the configuration. Then member-epochs of the whole search, the mean
regret of its result in points of expected accuracy, and occupancy: member-epochs trained by epochs run times the
population.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import optuna
import plotly.graph_objects as go
import psutil
import simulated_search as simulated
from plotly.subplots import make_subplots
from simulated_search import TPE, Array, Rule, Run, Sampler, Table

from hpo.results.figures.png import pngs
from hpo.results.figures.style import PALETTE, new_figure, short
from hpo.search.sampling.pruners import IncrementalHyperbandPruner, IncrementalMedianPruner

TABLES = Path(__file__).parent / "tables"
TASKS = ("digits", "chapter6", "fashion-cnn", "slow-starters")
NEAR = {"slow starters": 0.02}
"""A completed trial this close to the table's best, in accuracy, has found it: 0.005, or any slow starter."""

Search = Callable[[int], Run]
"""A seed -> the simulated search."""


def mean_of_last(count: int, curves: Array, epochs: int) -> Array:
    """Rank by the mean of the last values."""
    mean: Array = curves[:, -count:].mean(axis=1)
    return mean


SPEEDS = np.array([0.25, 0.5, 1.0, 1.5, 2.0])


def power_laws(sample: bool, curves: Array, epochs: int) -> Array:
    """Rank by the final value of power laws a - b t^-c fitted to the curves: its mean, or a sample of it.

    For each speed c, a and b are a Bayesian linear regression with weak priors; the speeds are weighted by their
    evidence. The noise is estimated from the differences between consecutive values.
    """
    seen = curves.shape[1]
    if seen < 3:
        return curves[:, -1]
    noise = max(1e-3, float(np.median(np.abs(np.diff(curves[:, -2:], axis=1)))) / 1.5)
    epoch = np.arange(1, seen + 1)
    logs, means, variances = [], [], []
    for speed in SPEEDS:
        design = np.stack([np.ones(seen), -(epoch**-speed)], axis=1)
        end = np.array([1.0, -(epochs**-speed)])
        prior = np.diag([1 / 0.3**2, 1 / 0.5**2])
        precision = design.T @ design / noise**2 + prior
        covariance = np.linalg.inv(precision)
        centre = np.stack([curves[:, -1], np.zeros(len(curves))])
        weights = covariance @ (design.T @ curves.T / noise**2 + prior @ centre)
        error = curves.T - design @ weights
        shift = weights - centre
        log = -0.5 * ((error**2).sum(0) / noise**2 + np.einsum("ic,ij,jc->c", shift, prior, shift))
        logs.append(log - 0.5 * np.linalg.slogdet(precision)[1])
        means.append(end @ weights)
        variances.append(np.full(len(curves), end @ covariance @ end))
    weight = np.exp(np.array(logs) - np.max(logs, axis=0))
    weight /= weight.sum(axis=0)
    mean: Array = (weight * means).sum(axis=0)
    if not sample:
        return mean
    variance = (weight * (np.array(variances) + (np.array(means) - mean) ** 2)).sum(axis=0)
    random = np.random.default_rng(int(abs(curves).sum() * 1e9) % 2**32)
    drawn: Array = mean + np.sqrt(variance) * random.standard_normal(len(mean))
    return drawn


def oracle(table: Table, curves: Array, epochs: int) -> Array:
    """Rank by the final value itself, which no ranker knows: the bound of what a ranker can gain."""
    final = {
        curve.tobytes(): value for curve, value in zip(table.curves[:, : curves.shape[1]], table.final, strict=True)
    }
    return np.array([final[curve.tobytes()] for curve in np.ascontiguousarray(curves)])


def methods(table: Table, trials: int, population: int) -> Mapping[str, Search]:
    """Return the searches to compare, by name."""

    def halving(rule: Rule, ranker: simulated.Ranker = simulated.last_value, sampler: type[Sampler] = TPE) -> Search:
        return lambda seed: simulated.halve(sampler(table, seed), trials, population, rule, seed, ranker)

    def pruned(pruner: Callable[[], optuna.pruners.BasePruner], size: int) -> Search:
        return lambda seed: simulated.prune(TPE(table, seed), trials, size, pruner())

    def complete(sampler: type[Sampler], size: int) -> Search:
        return lambda seed: simulated.complete_all(sampler(table, seed), trials, size)

    hyperband = partial(IncrementalHyperbandPruner, table.epochs)
    one_epoch = Rule(rungs=(1,), factor=max(2, trials // population), random=0)
    found: dict[str, Search] = {
        "random": complete(Sampler, population),
        "TPE, one at a time": complete(TPE, 1),
        "TPE": complete(TPE, population),
        "TPE, median": pruned(IncrementalMedianPruner, population),
        "TPE, hyperband, one at a time": pruned(hyperband, 1),
        "TPE, hyperband": pruned(hyperband, population),
        "one epoch, random": halving(one_epoch, sampler=Sampler),
        "one epoch, TPE": halving(one_epoch),
    }
    for first, factor in ((1, 3), (2, 3), (3, 3), (3, 2), (3, 4)):
        found[f"halving {first}, {factor}"] = halving(Rule(first=first, factor=factor))
    for rungs, factor in (((3,), 3), ((1, 3), 3)):
        found[f"halving at {', '.join(map(str, rungs))} only, {factor}"] = halving(Rule(rungs=rungs, factor=factor))
    for share in (0, 0.2):
        found[f"halving 3, 3, random {share}"] = halving(Rule(random=share))
    found["halving 3, 3, first stack whole"] = halving(Rule(whole=1))
    found["halving 3, 3, from 4 members"] = halving(Rule(least=4))
    found["halving 3, 3, drawn to the end"] = halving(Rule(to_the_end=True))
    found["halving 3, 3, random sampling"] = halving(Rule(), sampler=Sampler)
    rankers: dict[str, simulated.Ranker] = {
        "mean of 2": partial(mean_of_last, 2),
        "mean of 3": partial(mean_of_last, 3),
        "power law": partial(power_laws, False),
        "power law, sampled": partial(power_laws, True),
        "oracle": partial(oracle, table),
    }
    for name, ranker in rankers.items():
        found[f"halving 3, 3, {name}"] = halving(Rule(), ranker)
    return found


HEADER = (
    f"{'member-epochs to the best':<32}{'final value':^32}{'expected value':^32}\n{'':32}"
    + f"{'25%':>8}{'50%':>8}{'75%':>8}{'found':>8}" * 2
    + f"{'epochs':>9}{'regret':>8}{'occup.':>7}{'CPU s':>8}"
)


def line(name: str, table: Table, runs: list[Run], seconds: float) -> str:
    """Return a method's line of the table."""
    columns, near = "", NEAR.get(table.name, 0.005)
    for values in (table.final, table.expected):
        reached = [run.epochs_to(table, values, values.max() - near) for run in runs]
        for value in np.percentile(reached, [25, 50, 75], method="lower"):
            columns += f"{value:>8.0f}" if np.isfinite(value) else f"{'-':>8}"
        columns += f"{np.isfinite(reached).mean():>8.0%}"
    trained, room = (np.mean([getattr(run, key) for run in runs]) for key in ("trained", "room"))
    end = np.array([np.inf])
    regret = 100 * (table.expected.max() - np.mean([run.value_at(table, table.expected, end) for run in runs]))
    return f"{name:<32}{columns}{trained:>9.0f}{regret:>8.2f}{trained / room:>7.0%}{seconds:>8.2f}"


def equal_quality(table: Table, runs: Mapping[str, list[Run]], trials: int) -> list[str]:
    """Return how many times fewer member-epochs each method needs to a mean expected value of TPE."""
    grid = np.arange(table.epochs, trials * table.epochs + 1, 5.0)
    lines = ["", f"{'times fewer member-epochs than TPE, at the quality of TPE after':<64}"]
    means = {
        name: np.mean([np.maximum(run.value_at(table, table.expected, grid), 0) for run in each], axis=0)
        for name, each in runs.items()
    }
    counts = [count for count in (32, 64, 128, 256) if count <= trials]
    lines[-1] += "".join(f"{f'{count} trials':>12}" for count in counts)
    for name, mean in means.items():
        ratios = ""
        for count in counts:
            quality = means["TPE"][np.searchsorted(grid, count * table.epochs) - 1] - 0.0005
            base, needs = (
                grid[np.argmax(each >= quality)] if (each >= quality).any() else np.inf for each in (means["TPE"], mean)
            )
            ratios += f"{base / needs:>12.1f}" if np.isfinite(needs) else f"{'-':>12}"
        lines.append(f"{name:<64}{ratios}")
    return lines


DRAWN = ("random", "TPE", "TPE, hyperband", "one epoch, TPE", "halving 3, 3", "halving 3, 2")


def picture(path: Path, simulated_runs: Mapping[str, tuple[Table, Mapping[str, list[Run]]]]) -> None:
    """Draw the mean regret of some methods, in expected accuracy, against member-epochs."""
    panels = make_subplots(cols=len(simulated_runs), subplot_titles=list(simulated_runs))
    panels.update_layout(new_figure("Mean regret of the best completed trial, in points of expected accuracy").layout)
    for column, (table, runs) in enumerate(simulated_runs.values(), 1):
        grid = np.unique(np.geomspace(table.epochs, len(runs["TPE"][0].completed) * table.epochs, 150).round())
        for colour, name in zip(PALETTE, DRAWN, strict=True):
            values = np.array([run.value_at(table, table.expected, grid) for run in runs[name]])
            regret = 100 * (table.expected.max() - values.mean(axis=0))
            seen = np.isfinite(regret)
            line = {"color": colour, "shape": "hv"}
            x, y = short(grid[seen]), short(regret[seen])
            drawn = go.Scatter(x=x, y=y, mode="lines", name=name, line=line, showlegend=column == 1)
            panels.add_trace(drawn, 1, column)
        panels.update_xaxes(type="log", title="member-epochs", col=column)
        panels.update_yaxes(rangemode="tozero", col=column)
    panels.update_yaxes(title="regret", col=1)
    panels.update_layout(width=1500, height=520, legend={"orientation": "h", "y": -0.18})
    path.write_bytes(pngs([panels])[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--trials", type=int, default=128)
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--tables", type=Path, default=TABLES)
    parser.add_argument("--methods", nargs="+", help="simulate only these")
    parser.add_argument("--picture", type=Path, help="write a PNG of the regret against member-epochs")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, Optuna {optuna.__version__}, "
        f"NumPy {np.__version__}; load {psutil.getloadavg()[0]:.1f}; {options.seeds} seeds, {options.trials} trials, "
        f"populations of {options.population}"
    )
    drawn = {}
    for task in options.task:
        path = options.tables / f"{task}.npz"
        if task != "slow-starters" and not path.exists():
            print(f"\n{task}: no table {path}")
            continue
        table = simulated.slow_starters() if task == "slow-starters" else simulated.read_table(path)
        best = float(table.final.max())
        near = NEAR.get(table.name, 0.005)
        within = [int((values >= values.max() - near).sum()) for values in (table.final, table.expected)]
        print(
            f"\n{task}: {len(table.final)} configurations, {table.points.shape[1]} parameters, {table.epochs} epochs; "
            f"best {best:.4f}; within {near} of the best: {within[0]} by final, {within[1]} by expected value"
        )
        print(HEADER)
        runs = {}
        searches = methods(table, options.trials, options.population)
        for name, search in searches.items():
            if name not in (options.methods or searches):
                continue
            start = time.process_time()
            runs[name] = [search(seed) for seed in range(options.seeds)]
            seconds = (time.process_time() - start) / options.seeds
            print(line(name, table, runs[name], seconds), flush=True)
        if "TPE" in runs:
            print(*equal_quality(table, runs, options.trials), sep="\n", flush=True)
        drawn[task] = table, runs
    if options.picture:
        picture(options.picture, drawn)


if __name__ == "__main__":
    main()
