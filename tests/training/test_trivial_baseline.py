"""The trivial baseline equals scikit-learn's dummy estimators under the study's own metrics, fold by fold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk
from sklearn.dummy import DummyClassifier, DummyRegressor
from tiny import tree

from hpo.data import load_split
from hpo.search.plan import baseline_scores
from hpo.studyfile import Study, parse_study
from hpo.training.tasks.trivial import MIN_LOG_PROBABILITY

RNG = np.random.default_rng(5)
X = RNG.normal(size=(60, 3)).astype(np.float32)
CLASSES = RNG.choice(3, size=60, p=[0.2, 0.5, 0.3])
LABELS = (RNG.random((60, 2)) < [0.7, 0.2]).astype(np.int64)
NUMBERS = np.stack([RNG.exponential(9.0, 60), RNG.normal(size=60)], 1)


def study_in(folder: Path, y: NDArray[Any], task: dict[str, Any], *metrics: str, **more: Any) -> Study:
    np.savez(folder / "data.npz", x=X, y=y)
    written = tree(
        data={"dataset": "npz:data.npz", "folds": 3},
        task=task,
        search={"metric": list(metrics) if len(metrics) > 1 else metrics[0]},
    )
    written["search"] |= more
    del written["data"]["train_size"]
    return parse_study(written, "tiny.toml", folder)


def means_of_folds(study: Study, fit: Any, score: Any) -> float:
    """Return the mean over folds of the score of an estimator that is fitted on training targets."""
    found = []
    for fold in load_split(study).folds:
        train, validation = fold.train.targets, fold.validation.targets
        found.append(score(validation, fit.fit(np.zeros((len(train), 1)), train), np.zeros((len(validation), 1))))
    return float(np.mean(found))


def test_classes_have_their_frequencies(tmp_path: Path) -> None:
    study = study_in(tmp_path, CLASSES, {"top_k": 2}, "val_f1", "val_auroc", "val_top_k")
    found = baseline_scores(study, [load_split(study)])
    frequencies = DummyClassifier(strategy="prior")
    assert found == {
        "val_f1": pytest.approx(
            means_of_folds(study, frequencies, lambda y, est, x: sk.f1_score(y, est.predict(x), average="macro"))
        ),
        "val_auroc": 0.5,
        "val_top_k": pytest.approx(
            means_of_folds(study, frequencies, lambda y, est, x: sk.top_k_accuracy_score(y, est.predict_proba(x), k=2))
        ),
        "val_accuracy": pytest.approx(means_of_folds(study, frequencies, lambda y, est, x: est.score(x, y))),
        "val_loss": pytest.approx(
            means_of_folds(study, frequencies, lambda y, est, x: sk.log_loss(y, est.predict_proba(x)))
        ),
    }


def test_labels_have_their_frequencies(tmp_path: Path) -> None:
    study = study_in(tmp_path, LABELS, {"kind": "multilabel"}, "val_f1", "val_average_precision")
    found = baseline_scores(study, [load_split(study)])
    splits = [(fold.train.targets, fold.validation.targets) for fold in load_split(study).folds]
    losses = [np.mean([sk.log_loss(y[:, i], np.full(len(y), t[:, i].mean())) for i in (0, 1)]) for t, y in splits]
    assert found["val_loss"] == pytest.approx(np.mean(losses))
    assert found["val_f1"] == pytest.approx(
        np.mean([sk.f1_score(y, np.tile([1, 0], (len(y), 1)), average="macro", zero_division=0) for _, y in splits])
    )
    assert found["val_average_precision"] == pytest.approx(np.mean([y.mean() for _, y in splits]))


@pytest.mark.parametrize(("loss", "expected"), [("mse", "mean"), ("mae", "median"), ("gaussian_nll", "mean")])
def test_a_regression_has_the_mean_and_for_mae_the_median(tmp_path: Path, loss: str, expected: str) -> None:
    study = study_in(tmp_path, NUMBERS, {"kind": "regression", "loss": loss}, "val_rmse", "val_mae", "val_r2")
    found = baseline_scores(study, [load_split(study)])
    mean, median = DummyRegressor(), DummyRegressor(strategy="median")
    assert found["val_rmse"] == pytest.approx(
        means_of_folds(study, mean, lambda y, est, x: sk.root_mean_squared_error(y, est.predict(x)))
    )
    assert found["val_mae"] == pytest.approx(
        means_of_folds(study, median, lambda y, est, x: sk.mean_absolute_error(y, est.predict(x)))
    )
    assert found["val_r2"] == pytest.approx(means_of_folds(study, mean, lambda y, est, x: est.score(x, y)))

    splits = [(fold.train.targets, fold.validation.targets) for fold in load_split(study).folds]
    constants = [np.median(t, 0) if expected == "median" else t.mean(0) for t, _ in splits]
    errors = [(y - c) / t.std(0) for (t, y), c in zip(splits, constants, strict=True)]
    power = {"mse": np.square, "mae": np.abs, "gaussian_nll": lambda e: np.square(e) / 2}[loss]
    assert found["val_loss"] == pytest.approx(np.mean([power(each).mean() for each in errors]))


def test_an_absent_label_has_a_finite_loss(tmp_path: Path) -> None:
    labels = np.where(np.arange(60)[:, None] == [0, 99], 1, 0)  # the second label has no example
    study = study_in(tmp_path, labels, {"kind": "multilabel"}, "val_loss")
    loss = baseline_scores(study, [load_split(study)])["val_loss"]
    assert loss is not None
    assert 0 < loss < -MIN_LOG_PROBABILITY


@pytest.mark.parametrize(("metric", "expected"), [("spread", 20), ("picky", None)])
def test_the_functions_of_the_user_get_the_constant_predictions(
    tmp_path: Path, metric: str, expected: float | None
) -> None:
    (tmp_path / "scores.py").write_text(
        "import numpy as np\n"
        "def spread(predictions, targets): return np.ptp(predictions) + len(targets)\n"
        "def picky(predictions, targets):\n"
        "    if np.ptp(predictions) == 0: raise ValueError('constant predictions')\n"
        "    return 1.0\n"
        "def cubed(output, targets): return (output - targets).abs().pow(3).mean(1)\n"
    )
    task = {"kind": "regression", "loss": "scores.py:cubed"}
    study = study_in(tmp_path, NUMBERS[:, :1], task, f"scores.py:{metric}", direction="minimize")
    found = baseline_scores(study, [load_split(study)])
    assert found[f"val_{metric}"] == expected
    splits = [(fold.train.targets, fold.validation.targets) for fold in load_split(study).folds]
    scaled = [(y - t.mean(0)) / t.std(0) for t, y in splits]
    assert found["val_loss"] == pytest.approx(np.mean([(np.abs(each) ** 3).mean() for each in scaled]))
