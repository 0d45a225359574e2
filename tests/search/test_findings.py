"""Findings of the shipped studies at small size: on scikit-learn's digits, with fewer images, epochs or seeds.

The tests compare means over several seeds. The comments give the values measured over 20 other seeds of the study and
its split; the bounds leave a margin to them. docs/explanation/experiments.md has the findings at full size.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState
from tiny import search, trials_of
from torch import Tensor, nn

from hpo.data import load_split
from hpo.search.points import trial_seed
from hpo.search.space import combination, config_of, size
from hpo.search.study_records import CURVE
from hpo.storage import Storage, best_trials
from hpo.studyfile import Study, read_study
from hpo.training.device_data import DeviceSplit, to_device
from hpo.training.networks.builtin import build
from hpo.training.stack import Member
from hpo.training.trainer import Trainer

STUDIES = Path(__file__).parents[2] / "studies"
pytestmark = pytest.mark.slow
FEW = ["data.train_size=700", "data.validation=0.8", "search.repeats=3"]
"""Keys for 140 training images, 560 validation images and three repeats."""


def read_shipped_study(name: str, *changes: str) -> Study:
    """Read a shipped study, set to the digits and float32, with some keys replaced."""
    return read_study(STUDIES / f"{name}.toml", ["data.dataset=digits", "training.precision=float32", *changes])


def search_shipped_study(storage: Storage, name: str, *changes: str) -> list[FrozenTrial]:
    """Search a shipped study on the digits with some keys replaced; return its trials."""
    study = read_shipped_study(name, *changes)
    search(study, storage)
    return trials_of(storage, study.name)


def curves(trials: Sequence[FrozenTrial], metric: str, **params: Any) -> NDArray[np.float64]:
    """Return the learning curves of the completed trials with these parameters, [repeats, epochs]."""
    found = [
        trial.system_attrs[CURVE][metric]
        for trial in trials
        if trial.state == TrialState.COMPLETE and params.items() <= trial.params.items()
    ]
    assert found
    return np.array(found)


def last(trials: Sequence[FrozenTrial], metric: str, **params: Any) -> float:
    """Return the mean over seeds of the metric after the last epoch."""
    return float(curves(trials, metric, **params)[:, -1].mean())


def gap(trials: Sequence[FrozenTrial], **params: Any) -> float:
    """Return training accuracy minus validation accuracy after the last epoch."""
    return last(trials, "train_accuracy", **params) - last(trials, "val_accuracy", **params)


def loss_gap(trials: Sequence[FrozenTrial], **params: Any) -> float:
    """Return validation loss minus training loss after the last epoch."""
    return last(trials, "val_loss", **params) - last(trials, "train_loss", **params)


def train_networks(study: Study, repeats: int, **params: Any) -> tuple[DeviceSplit, list[nn.Module]]:
    """Train one configuration of a study under several seeds; return the split and the torch networks in eval mode."""
    values = next(each for each in (combination(study, i) for i in range(int(size(study)))) if each == params)
    config, split = config_of(study, values), to_device(load_split(study), study.data.split_seed, torch.device("cpu"))
    members = [Member(number, config, trial_seed(study, number)) for number in range(repeats)]
    outcomes = Trainer(split, "float32", lambda text: None).run(
        members, metric="val_accuracy", minimized=False, stop=threading.Event(), with_weights=True
    )
    networks = [build(config.network, split.shape, split.task.outputs, member.seed).eval() for member in members]
    for network, outcome in zip(networks, outcomes.values(), strict=True):
        assert outcome.state is not None
        network.load_state_dict(outcome.state)
    return split, networks


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(1) == labels).double().mean())


def test_best_learning_rate_lies_at_the_upper_edge_of_the_range(storage: Storage) -> None:
    small = ["network.hidden=[100, 100, 100]", "training.epochs=12", "training.batch_size=50", "search.trials=32"]
    for name, ranges in {"chapter6-search": [], "wider": ["optimizer.lr.low=1e-4", "optimizer.lr.high=1.0"]}.items():
        search_shipped_study(storage, "chapter6-search", *small, *ranges, f"name={name}")
    first, wider = (best_trials(storage, name, 1)[0] for name in ("chapter6-search", "wider"))
    assert first.params["lr"] > 1e-3  # the upper quarter of 1e-6 to 1e-2; measured: 2.6e-3 and more
    assert wider.params["lr"] > 1e-2  # measured: 3.0e-2 and more
    assert (wider.value or 0) > (first.value or 1) + 0.05  # measured: 0.22 and more


def test_weight_decay_reduces_the_gap_of_training_and_validation(storage: Storage) -> None:
    trials = search_shipped_study(storage, "overfit-weight-decay", *FEW, "search.trials=6")
    without, decayed = {"weight_decay": 0.0}, {"weight_decay": 0.1}
    assert last(trials, "train_accuracy", **without) > 0.98  # measured: 0.993 and more
    assert last(trials, "train_accuracy", **decayed) < 0.97  # measured: 0.945 and less
    assert loss_gap(trials, **decayed) < 0.95 * loss_gap(trials, **without)  # measured: 0.84 and less


def test_dropout_reduces_the_gap_of_training_and_validation(storage: Storage) -> None:
    """Training accuracy is measured with dropped units, which causes most of this effect: see demos/put_back.py."""
    small = ["network.hidden=[100, 100, 100, 100]", "optimizer.lr=0.05", "training.epochs=40", "search.trials=6"]
    trials = search_shipped_study(storage, "overfit-dropout", *FEW, *small)
    assert gap(trials, dropout=0.0) > 0.03  # measured: 0.05 and more
    assert gap(trials, dropout=0.2) < gap(trials, dropout=0.0) - 0.03  # measured: lower by 0.14 and more


def test_gap_falls_with_the_dropout_rate(storage: Storage) -> None:
    small = ["data.train_size=600", "data.validation=0.5", "training.batch_size=20", "training.epochs=20"]
    trials = search_shipped_study(
        storage, "mnist-dropout", *small, "network.init=0.1", "search.repeats=3", "search.trials=15"
    )
    gaps = [gap(trials, dropout=rate) for rate in (0.0, 0.1, 0.3, 0.5, 0.7)]
    assert gaps[0] > gaps[2] > gaps[3] > gaps[4]  # measured: each lower by 0.03 and more
    assert gaps[0] > 0.02 > gaps[3]  # measured: 0.036 and more, 0.007 and less
    assert gaps[1] < gaps[0] + 0.02  # measured: lower by 0.002 and more


def test_network_after_dropout_equals_the_mean_of_sub_networks() -> None:
    split, networks = train_networks(
        read_shipped_study("mnist-dense-256", "training.epochs=30", "training.batch_size=32"), repeats=3
    )
    scores = [accuracies(network, split.validation, split.validation_targets) for network in networks]
    whole, average, single = np.mean(scores, axis=0)
    assert abs(whole - average) < 0.01  # measured: 0.004 and less
    assert single < whole - 0.005  # measured: lower by 0.014 and more


@torch.no_grad()
def accuracies(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Return three accuracies: the network's, the mean output's of 100 random sub-networks, and their mean accuracy."""
    whole = accuracy(network.eval()(images), labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outputs = [network.train()(images).softmax(1) for _ in range(100)]
    average = accuracy(torch.stack(outputs).mean(0), labels)
    return whole, average, float(np.mean([accuracy(each, labels) for each in outputs]))


def test_he_initialization_learns_fastest_and_small_weights_do_not_learn(storage: Storage) -> None:
    small = ["data.train_size=1000", "training.batch_size=50", "optimizer.lr=0.05", "search.repeats=3"]
    trials = search_shipped_study(storage, "weight-init", *small, "search.trials=9")
    assert last(trials, "train_loss", init="he") < 0.7 * last(trials, "train_loss", init="xavier")  # measured: 0.33
    assert last(trials, "val_accuracy", init="xavier") > 0.6  # measured: 0.88 and more
    assert last(trials, "train_loss", init=0.01) > 0.95 * math.log(10)  # measured: 0.996


def test_batch_norm_learns_at_scales_where_a_plain_network_does_not(storage: Storage) -> None:
    small = ["data.train_size=1000", "training.batch_size=50", "training.epochs=10", "search.trials=24"]
    trials = search_shipped_study(storage, "batch-norm", *small, "network.init.choices=[1.0, 0.1, 0.01, 0.001]")
    diverged = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert [trial.params for trial in diverged] == [{"init": 1.0, "batch_norm": False}] * 3
    for scale in (0.01, 0.001):
        assert last(trials, "train_accuracy", init=scale, batch_norm=False) < 0.2  # measured: 0.13 and less
        assert last(trials, "train_accuracy", init=scale, batch_norm=True) > 0.4  # measured: 0.59 and more
    assert last(trials, "train_accuracy", init=0.01, batch_norm=True) > 0.9  # measured: 0.98 and more


SMALL_CNN = ["network.kernel=3", "network.padding=1", "data.train_size=1000", "data.validation=0.8"]


def test_cnn_overfits_unless_half_of_its_units_are_dropped(storage: Storage) -> None:
    changes = ["training.batch_size=20", "training.epochs=60", "training.keep=none", "optimizer.lr=0.003"]
    trials = search_shipped_study(storage, "cifar10-cnn-dropout", *SMALL_CNN, *changes)
    assert last(trials, "train_loss", dropout=0.0) < 0.02
    losses = curves(trials, "val_loss", dropout=0.0)
    assert (losses[:, -1] / losses.min(1)).mean() > 1.03  # validation loss rises at the end; measured: 1.07 to 1.22
    assert gap(trials, dropout=0.0) > 0.04 > gap(trials, dropout=0.5)
    assert loss_gap(trials, dropout=0.0) > 0.1 > loss_gap(trials, dropout=0.5)
    slow, fast = (curves(trials, "train_loss", dropout=rate)[:, :10].mean() for rate in (0.5, 0.0))
    assert slow > 1.3 * fast
