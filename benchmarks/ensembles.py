"""Benchmark of ensembles: are they better than their best member, on test rows that no search has seen?

    OMP_NUM_THREADS=1 python benchmarks/ensembles.py [--data wine ...] [--splits 10] [--trials 16] [--sizes 10]

For each of three small data sets of scikit-learn and each of several random splits, a quarter of the rows is the test
part. A study searches an MLP on the rest, with a fifth of it as the validation split, and keeps the weights of its ten
best trials. Then the ensemble and its best member are compared on the test part, with the weights of the search
(`hpo test --from-checkpoint`), and trained again on all other rows (`hpo test`).

The table has the mean differences over the splits, ensemble minus best member, with 95% intervals of the corrected
resampled t-test, because the splits share rows. Lower log losses are better.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split

import hpo
from hpo.results.compare.statistics import paired

DATA = {
    "breast cancer": (datasets.load_breast_cancer, "val_accuracy", [32, 32], 32),
    "wine": (datasets.load_wine, "val_loss", [16], 16),
    "digits": (datasets.load_digits, "val_accuracy", [64], 64),
}
"""Name -> data set, metric of the study, hidden layers and batch size."""

TEST = 0.25
SIZE = 10
"""The default of `hpo ensemble --size`, for which networks are trained again."""

Scores = Mapping[str, tuple[float, float]]
"""What was tested -> accuracy and log loss."""


def main() -> None:
    """Run the benchmark and print its table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    options.add_argument("--splits", type=int, default=10)
    options.add_argument("--trials", type=int, default=16)
    options.add_argument("--sizes", type=int, nargs="+", default=[SIZE])
    chosen = options.parse_args()
    print("| data | weights | size | members | best member | ensemble | accuracy, difference | log loss, difference |")
    print("|---|---|---|---|---|---|---|---|")
    for name in chosen.data:
        began = time.perf_counter()
        found = [scores_on(name, split, chosen.trials, chosen.sizes) for split in range(chosen.splits)]
        for size in chosen.sizes:
            print(row(name, "of the search", size, found, "kept"), flush=True)
        print(row(name, "trained again", SIZE, found, "again"), flush=True)
        print(f"<!-- {name}: {time.perf_counter() - began:.0f} s -->", flush=True)


def scores_on(name: str, split: int, trials: int, sizes: list[int]) -> dict[str, Any]:
    """Search on one split; return the scores of the best member and of the ensembles on the test part."""
    load, metric, hidden, batch = DATA[name]
    inputs, labels = load(return_X_y=True)
    x, x_test, y, y_test = train_test_split(inputs, labels, test_size=TEST, stratify=labels, random_state=split)
    deviation = x.std(0)
    x, x_test = ((each - x.mean(0)) / np.where(deviation == 0, 1, deviation) for each in (x, x_test))
    with tempfile.TemporaryDirectory() as folder:
        arrays = {"x": x, "x_test": x_test}
        floats = {key: each.astype(np.float32) for key, each in arrays.items()}
        np.savez(Path(folder) / "data.npz", y=y, y_test=y_test, **floats)
        study = hpo.Study(
            name="ensemble",
            data=hpo.Data(dataset="npz:data.npz", validation=0.2, split_seed=split),
            network=hpo.Network(kind="mlp", hidden=hidden, batch_norm=True, dropout=hpo.Range(0.0, 0.5)),
            optimizer=hpo.Optimizer(
                kind="adam", lr=hpo.Range(1e-4, 1e-1, log=True), weight_decay=hpo.Range(1e-6, 1e-2, log=True)
            ),
            training=hpo.Training(epochs=30, batch_size=batch, precision="float32", keep="last", keep_trials=10),
            search=hpo.Search(trials=trials, population=8, sampler="tpe", pruner="none", metric=metric, seed=split),
            folder=folder,
        )
        searched = hpo.launch(study, storage=f"sqlite:///{folder}/hpo.db", progress="quiet", device="cpu")
        return compared(searched, Path(folder), sizes)


def compared(searched: hpo.StoredStudy, folder: Path, sizes: list[int]) -> dict[str, Any]:
    """Return accuracy and log loss on the test part by what was tested, and the members of each size."""
    found: dict[str, Any] = {}
    options: dict[str, Any] = {"again": True, "device": "cpu", "say": lambda text: None}

    def tested(key: str, **what: Any) -> None:
        scores = searched.test(folder=folder / key.replace(" ", "-"), **what, **options).to_json()["test"]
        found[key] = (scores["accuracy"], scores["loss"])

    for size in sizes:
        ensemble = searched.ensemble(size=size, device="cpu").found
        found[f"members {size}"] = len(ensemble.members)
        tested(f"kept {size}", ensemble=True, from_checkpoint=True)
    ensemble = searched.ensemble(size=SIZE, device="cpu").found
    found.setdefault(f"members {SIZE}", len(ensemble.members))
    tested("kept", trial=ensemble.best.trial, from_checkpoint=True)
    tested("again", trial=ensemble.best.trial)
    tested(f"again {SIZE}", ensemble=True)
    return found


def row(name: str, weights: str, size: int, found: list[dict[str, Any]], key: str) -> str:
    """Return a line of the table."""
    single, several = ([each[which] for each in found] for which in (key, f"{key} {size}"))
    differences = []
    for index in (0, 1):
        pairs = paired([each[index] for each in several], [each[index] for each in single], TEST / (1 - TEST))
        interval = pairs.difference.interval
        between = "" if interval is None else f" ({interval.low:+.4f} to {interval.high:+.4f})"
        differences.append(f"{pairs.difference.mean:+.4f}{between}")
    means = [", ".join(f"{fmean(column):.4f}" for column in zip(*scores, strict=True)) for scores in (single, several)]
    members = fmean(each[f"members {size}"] for each in found)
    return f"| {' | '.join([name, weights, str(size), f'{members:.1f}', *means, *differences])} |"


if __name__ == "__main__":
    main()
