"""Generate tables of complete learning curves, on which benchmarks/search_quality.py simulates searches.

A table has the curves of configurations drawn at random from the search space of a study file in benchmarks/tables/,
each trained to its last epoch under a seed of its own. A further file has the curves of the best configurations of the
table under other seeds: the noise of a single training.

    HPO_DATA_DIR=... python benchmarks/curve_tables.py [--task NAME ...] [--curves 2000] [--best 50] [--seeds 10]

The curves are written in parts of 64 into the scratch folder, so that a run that was interrupted continues with the
next part; the table is written when all its parts exist. A curve does not depend on the part.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from hpo.search.plan import plan, to_planned_device
from hpo.studyfile import Parameter, Range, Study, read_study
from hpo.training.seeds import derive_seed, member_seed
from hpo.training.stack import Member
from hpo.training.trainer import Trainer

TABLES = Path(__file__).parent / "tables"
TASKS = ("digits", "chapter6", "fashion-cnn")
METRICS = ("val_accuracy", "val_loss")
PART = 64

Run = tuple[int, int]
"""A configuration by its row in the table, and the repeat: 0 in the table itself."""


def configuration(study: Study, row: int) -> dict[str, float]:
    """Draw the configuration of a row, uniformly on the scale of each parameter."""
    random = np.random.default_rng(derive_seed("curve table", study.name, row))
    return {parameter.name: _value(parameter, random.random()) for parameter in study.parameters}


def _value(parameter: Parameter, part: float) -> float:
    searched = parameter.searched
    assert isinstance(searched, Range), "the tables have numbers only"
    if searched.log:
        return float(searched.low * (searched.high / searched.low) ** part)
    return float(searched.low + (searched.high - searched.low) * part)


class Curves:
    """Trains the runs of a study in parts, and stores each part in a file of the scratch folder."""

    def __init__(self, study: Study, scratch: Path, population: int) -> None:
        self._study, self._scratch, self._population = study, scratch, population
        split = to_planned_device(study, plan(study, "cpu"))[0]
        self._trainer = Trainer(split, "float32", print)
        scratch.mkdir(parents=True, exist_ok=True)

    def of(self, runs: Sequence[Run], name: str) -> dict[str, np.ndarray]:
        """Return the arrays of a table: parameters, metrics by epoch, rows and repeats."""
        parts = []
        for number, start in enumerate(range(0, len(runs), PART)):
            path = self._scratch / f"{self._study.name}-{name}-{number:03}.npz"
            if not path.exists():
                self._write(path, runs[start : start + PART])
            with np.load(path, allow_pickle=False) as stored:
                parts.append(dict(stored))
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _write(self, path: Path, runs: Sequence[Run]) -> None:
        start = time.perf_counter()
        curves: dict[str, list[np.ndarray]] = {metric: [] for metric in METRICS}
        for chunk in _chunks(runs, self._population):
            for outcome in self._train(chunk):
                for metric in METRICS:
                    curves[metric].append(outcome[metric])
        params = [configuration(self._study, row) for row, _ in runs]
        arrays = {f"param_{name}": np.array([each[name] for each in params]) for name in params[0]}
        arrays |= {metric: np.stack(values).astype(np.float32) for metric, values in curves.items()}
        arrays["row"], arrays["repeat"] = np.array(runs, np.int32).T
        with open(partial := path.with_suffix(".partial"), "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        partial.replace(path)
        seconds = (time.perf_counter() - start) / len(runs)
        final = np.nan_to_num(arrays["val_accuracy"][:, -1])
        print(f"{time.strftime('%H:%M:%S')} {path.name} {seconds:.3f} s a curve, best {final.max():.4f}", flush=True)

    def _train(self, runs: Sequence[Run]) -> Iterator[dict[str, np.ndarray]]:
        """Yield each run's metrics by epoch, NaN from the epoch in which it diverged."""
        members = [
            Member(number, self._study.config(configuration(self._study, row)), member_seed(0, row, repeat))
            for number, (row, repeat) in enumerate(runs)
        ]
        outcomes = self._trainer.run(members, metric="val_accuracy", minimized=False, stop=threading.Event())
        epochs = self._study.first_config.training.epochs
        for number in range(len(runs)):
            curve = outcomes[number].curve
            yield {
                metric: np.pad(
                    np.array(values := curve.get(metric, [])), (0, epochs - len(values)), constant_values=np.nan
                )
                for metric in METRICS
            }


def _chunks(runs: Sequence[Run], size: int) -> Iterator[Sequence[Run]]:
    for start in range(0, len(runs), size):
        yield runs[start : start + size]


def save(path: Path, arrays: dict[str, Any]) -> None:
    """Write a table: accuracies exactly, losses in half precision."""
    arrays = arrays | {"val_loss": np.minimum(arrays["val_loss"], 6e4).astype(np.float16)}
    for name in ("row", "repeat"):
        if name == "row" or arrays[name].any():
            arrays[name] = arrays[name].astype(np.int16)
    np.savez_compressed(path, **arrays)
    print(f"{path}: {len(arrays['row'])} curves, {path.stat().st_size / 2**20:.2f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, nargs="+", default=TASKS)
    parser.add_argument("--curves", type=int, default=2000, help="curves in each table")
    parser.add_argument("--best", type=int, default=50, help="best configurations to train under other seeds")
    parser.add_argument("--seeds", type=int, default=10, help="other seeds of each of them")
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--scratch", type=Path, default=Path("build/curve-tables"))
    parser.add_argument("--out", type=Path, default=TABLES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, 1 thread", flush=True)
    studies = {}
    for task in options.task:
        study = read_study(str(TABLES / f"{task}.toml"))
        assert isinstance(study, Study), "a table is made of networks"
        studies[task] = study
    best = {}
    for task, study in studies.items():
        table = Curves(study, options.scratch, options.population).of(
            [(row, 0) for row in range(options.curves)], "table"
        )
        save(options.out / f"{task}.npz", table)
        final = np.where(np.isnan(table["val_accuracy"][:, -1]), -math.inf, table["val_accuracy"][:, -1])
        best[task] = np.argsort(-final, kind="stable")[: options.best]
    for task, study in studies.items() if options.seeds else ():
        runs = [(int(row), repeat) for row in best[task] for repeat in range(1, options.seeds + 1)]
        if runs:
            save(
                options.out / f"{task}-seeds.npz", Curves(study, options.scratch, options.population).of(runs, "seeds")
            )


if __name__ == "__main__":
    main()
