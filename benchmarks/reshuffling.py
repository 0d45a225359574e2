"""Benchmark of reshuffled splits: test accuracy of the winner with one split a study, against one split a population.

    python benchmarks/reshuffling.py --seeds 30 --trials 64

The question is that of T. Nagler et al., "Reshuffling Resampling Splits Can Improve Generalization of Hyperparameter
Optimization" (NeurIPS 2024), for a single hold-out. Each seed of each data set (breast cancer, wine, digits, all from
scikit-learn) draws a test set and random configurations of an mlp. Both searches train the same configurations under
the same seeds, in the same populations; only the validation splits differ. The trial with the highest validation
accuracy, the first of several, is trained again on all training data and evaluated on the test set. The last columns
are the mean difference over the seeds, reshuffled minus fixed, with its 95% interval (Student's t).
"""

from __future__ import annotations

import argparse
import platform
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import sklearn.datasets
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from hpo.data.row_splits import hold_out
from hpo.results.compare.statistics import estimate, paired
from hpo.studyfile import Config
from hpo.studyfile.data_settings import DataSettings
from hpo.training.device_data import DeviceSplit
from hpo.training.seeds import derive_seed, member_seed
from hpo.training.stack import Member
from hpo.training.tasks.task import classification
from hpo.training.trainer import Trainer

DATA_SETS = {
    "breast cancer": sklearn.datasets.load_breast_cancer,
    "wine": sklearn.datasets.load_wine,
    "digits": sklearn.datasets.load_digits,
}
POPULATION, EPOCHS = 16, 20


def configurations(seed: int, trials: int) -> list[Config]:
    """Return random configurations: learning rate, weight decay and dropout."""
    random = np.random.default_rng(seed)
    return [
        Config.model_validate(
            {
                "network": {"kind": "mlp", "hidden": [32], "dropout": random.uniform(0, 0.5)},
                "optimizer": {
                    "kind": "adam",
                    "lr": 10 ** random.uniform(-4, -1),
                    "weight_decay": 10 ** random.uniform(-6, -1),
                },
                "training": {"epochs": EPOCHS, "batch_size": 32, "precision": "float32"},
            }
        )
        for _ in range(trials)
    ]


def accuracies(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    training: NDArray[np.int64],
    validation: NDArray[np.int64],
    members: Sequence[Member],
) -> dict[int, float]:
    """Train members on the training rows; return the accuracy on the validation rows by number, -1 for a failure."""
    inputs, targets = torch.from_numpy(x)[:, None, None, :], torch.from_numpy(y)
    task = classification(int(y.max()) + 1)
    split = DeviceSplit(inputs[training], targets[training], inputs[validation], targets[validation], task, 0)
    trainer = Trainer(split, "float32", print)
    outcomes = trainer.run(members, metric="val_accuracy", minimized=False, stop=threading.Event())
    return {
        number: -1.0 if outcome.failed else outcome.curve["val_accuracy"][-1] for number, outcome in outcomes.items()
    }


def test_accuracies(name: str, seed: int, trials: int, validation: float) -> tuple[float, float]:
    """Return the winner's test accuracy with a fixed split and with a reshuffled one."""
    data = DATA_SETS[name]()
    train, test = train_test_split(np.arange(len(data.target)), test_size=0.5, stratify=data.target, random_state=seed)
    x = StandardScaler().fit(data.data[train]).transform(data.data).astype(np.float32)  # the same for both searches
    y = data.target.astype(np.int64)
    configs = configurations(derive_seed("configurations", name, seed), trials)
    members = [Member(number, config, member_seed(seed, number)) for number, config in enumerate(configs)]
    found = []
    for reshuffled in (False, True):
        scores: dict[int, float] = {}
        for start in range(0, trials, POPULATION):
            split_seed = derive_seed("split", name, seed, start if reshuffled else 0) % 2**32
            settings = DataSettings(dataset="digits", validation=validation, split_seed=split_seed)
            split = hold_out(settings, y[train])
            population = members[start : start + POPULATION]
            scores |= accuracies(x, y, train[split.training], train[split.validation], population)
        winner = max(scores, key=lambda number: scores[number])
        again = Member(0, configs[winner], derive_seed("winner", seed, winner))
        found.append(accuracies(x, y, train, test, [again])[0])
    return found[0], found[1]


def lines(seeds: int, trials: int, validation: float) -> Iterator[str]:
    """Yield a line of the table for each data set."""
    for name in DATA_SETS:
        start = time.perf_counter()
        fixed, reshuffled = np.array([test_accuracies(name, seed, trials, validation) for seed in range(seeds)]).T
        difference = paired(reshuffled, fixed).difference
        interval = difference.interval
        between = "none" if interval is None else f"{interval.low:+.4f} to {interval.high:+.4f}"
        yield (
            f"{name:14} {estimate(fixed).mean:9.4f} {estimate(reshuffled).mean:11.4f} {difference.mean:+11.4f} "
            f"{between:>19} {int((reshuffled > fixed).sum()):6} {int((reshuffled < fixed).sum()):6} "
            f"{time.perf_counter() - start:8.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--trials", type=int, default=64, help=f"in populations of {POPULATION}")
    parser.add_argument("--validation", type=float, default=0.2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, {platform.processor() or platform.machine()}; {given.seeds} seeds, "
        f"{given.trials} trials in populations of {POPULATION}, validation {given.validation:g}"
    )
    print(
        f"{'test accuracy':14} {'fixed':>9} {'reshuffled':>11} {'difference':>11} {'95% interval':>19} "
        f"{'better':>6} {'worse':>6} {'seconds':>8}"
    )
    for line in lines(given.seeds, given.trials, given.validation):
        print(line, flush=True)


if __name__ == "__main__":
    main()
