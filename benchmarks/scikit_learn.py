"""Benchmark of scikit-learn's MLP and gradient boosting on studies: the same rows, folds, metric and test set.

    OMP_NUM_THREADS=1 python benchmarks/scikit_learn.py [FILE ...] [--seeds 5]

Candidates: a trivial model (the most frequent class, or the mean), scikit-learn's MLP and its histogram gradient
boosting; the last two with their defaults, and by a random search of as many configurations as the study has trials.
Inputs are those of the study's networks: the preprocessing is fitted on the training rows of each fold. The MLP trains
on standardized targets of a regression. Both use the study's class weights. Columns:

    search  the mean over the folds; for a random search, that of the best configuration
    fresh   the same of that configuration under fresh seeds: mean and standard deviation
    test    trained on all rows outside the test set, with its 95% interval by the bootstrap

`hpo launch`, `hpo confirm` and `hpo test` print the same of the study's own networks.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn import metrics
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from hpo.data.examples import Examples
from hpo.data.splits import load_split, load_test, load_whole
from hpo.results.compare.statistics import bootstrap, estimate
from hpo.studyfile import Study, read_study

STUDIES = ("breast-cancer", "wine", "diabetes", "digits-labels", "rare-digit")
FRESH = 1000
"""The first of the fresh seeds; those of a search are the numbers of its configurations."""

Settings = Mapping[str, Any]
Values = NDArray[Any]
METRICS: dict[str, Callable[[Values, Values], float]] = {
    "val_f1": partial(metrics.f1_score, average="macro", zero_division=0),
    "val_balanced_accuracy": metrics.balanced_accuracy_score,
    "val_loss": lambda labels, found: metrics.log_loss(labels, found, labels=range(found.shape[1])),
    "val_rmse": metrics.root_mean_squared_error,
}


@dataclass(frozen=True)
class Model:
    """A model of scikit-learn: its name, what builds it for settings and a seed, and what draws settings."""

    name: str
    build: Callable[[Settings, int], Any]
    draw: Callable[[np.random.Generator], Settings] | None = None


def models(study: Study) -> list[Model]:
    """Return the models for the study's task; the searched MLP has the hidden layers and batches of the study."""
    written = study.resolved()
    hidden, batch = written["network"]["hidden"], written["training"]["batch_size"]

    def draw_mlp(random: np.random.Generator) -> Settings:
        return {
            "hidden_layer_sizes": tuple(hidden),
            "batch_size": batch,
            "learning_rate_init": float(10 ** random.uniform(-4, -1)),
            "alpha": float(10 ** random.uniform(-6, -2)),
            "max_iter": round(10 ** random.uniform(1, 2.3)),
        }

    def draw_boosting(random: np.random.Generator) -> Settings:
        return {
            "learning_rate": float(10 ** random.uniform(-2, -0.3)),
            "max_iter": round(10 ** random.uniform(1.5, 2.5)),
            "max_leaf_nodes": round(10 ** random.uniform(0.5, 1.8)),
            "min_samples_leaf": round(10 ** random.uniform(0.3, 1.7)),
            "l2_regularization": float(10 ** random.uniform(-6, 1)),
        }

    def mlp(settings: Settings, seed: int) -> Any:
        if study.task.kind != "regression":
            return MLPClassifier(random_state=seed, **settings)
        return TransformedTargetRegressor(MLPRegressor(random_state=seed, **settings), transformer=StandardScaler())

    def boosting(settings: Settings, seed: int) -> Any:
        if study.task.kind == "regression":
            return HistGradientBoostingRegressor(random_state=seed, **settings)
        found = HistGradientBoostingClassifier(random_state=seed, **settings)
        return MultiOutputClassifier(found) if study.task.kind == "multilabel" else found

    trivial = DummyRegressor() if study.task.kind == "regression" else DummyClassifier()
    return [
        Model("trivial", lambda settings, seed: trivial),
        Model("MLP", mlp, draw_mlp),
        Model("gradient boosting", boosting, draw_boosting),
    ]


class Comparison:
    """The examples of a study as scikit-learn takes them: rows, and one column of targets as a vector."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.key = study.search.first_metric
        whole = load_whole(study)
        self.folds = [(_rows(fold.train), _rows(fold.validation)) for fold in load_split(study).folds]
        self.whole, self.test = _rows(whole.train), _rows(load_test(whole))

    def predictions(self, model: Any, train: tuple[Values, Values], inputs: Values) -> Values:
        """Train a model; return its predictions, probabilities for the loss."""
        weights = {}
        if self.study.task.class_weights is not None:
            weights["sample_weight"] = compute_sample_weight("balanced", train[1])
        model.fit(*train, **weights)
        found: Values = (model.predict_proba if self.key == "val_loss" else model.predict)(inputs)
        return found

    def score(self, model: Model, settings: Settings, seed: int) -> float:
        """Return the mean over the folds; NaN where a training diverges."""
        try:
            return float(
                np.mean(
                    [
                        METRICS[self.key](y, self.predictions(model.build(settings, seed), train, x))
                        for train, (x, y) in self.folds
                    ]
                )
            )
        except ValueError as error:
            if "non-finite" not in str(error):
                raise
            return float("nan")

    def line(self, model: Model, searched: int, seeds: int) -> str:
        """Return a line of the table: of the defaults, or of a random search of so many configurations."""
        start, random = time.process_time(), np.random.default_rng(0)
        drawn = [model.draw(random) for _ in range(searched)] if model.draw and searched else [{}]
        scores = np.array([self.score(model, settings, seed) for seed, settings in enumerate(drawn)])
        best = int((np.nanargmin if self.key in ("val_loss", "val_rmse") else np.nanargmax)(scores))
        seconds = time.process_time() - start
        fresh = estimate([self.score(model, drawn[best], FRESH + seed) for seed in range(seeds)])
        predicted, targets = self.predictions(model.build(drawn[best], FRESH), self.whole, self.test[0]), self.test[1]
        interval = bootstrap(lambda rows: METRICS[self.key](targets[rows], predicted[rows]), len(targets))
        assert interval is not None
        name = (
            model.name if model.draw is None else f"{model.name}, {f'best of {searched}' if searched else 'defaults'}"
        )
        settings = ", ".join(
            f"{key} {value:.3g}" for key, value in drawn[best].items() if isinstance(value, float | int)
        )
        return (
            f"{name:29} {scores[best]:8.4f} {fresh.mean:8.4f} ± {fresh.sd or 0:.4f} "
            f"{METRICS[self.key](targets, predicted):8.4f} {interval.low:8.4f} to {interval.high:.4f} {seconds:7.1f}"
            f"  {settings}"
        ).rstrip()

    def lines(self, seeds: int) -> Iterator[str]:
        """Yield the table of a study."""
        rows = f"{len(self.folds[0][0][1])} training and {len(self.folds[0][1][1])} validation rows"
        folds = f"{len(self.folds)} folds, first: " if len(self.folds) > 1 else ""
        yield f"{self.study.name}: {self.key.removeprefix('val_')}; {folds}{rows}; {len(self.test[1])} test rows"
        yield f"{'':29} {'search':>8} {f'fresh, {seeds} seeds':>17} {'test':>8} {'95% interval':>18} {'CPU s':>8}"
        for model in models(self.study):
            for searched in (0, self.study.search.trials) if model.draw else (0,):
                yield self.line(model, searched, seeds)


def _rows(examples: Examples) -> tuple[Values, Values]:
    targets = examples.targets
    return examples.inputs.reshape(len(targets), -1), targets[:, 0] if targets.shape[1:] == (1,) else targets


def main() -> None:
    folder = Path(__file__).parent.parent / "studies"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=[folder / f"{name}.toml" for name in STUDIES])
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{platform.machine()}, scikit-learn {sklearn.__version__}, OMP_NUM_THREADS={threads}")
    for file in given.files:
        print()
        study = read_study(file)
        assert isinstance(study, Study), f"{file}: not a network study"
        for line in Comparison(study).lines(given.seeds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
