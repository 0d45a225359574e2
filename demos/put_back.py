"""Demo: accuracy on the training images after training, with all units and without dropout.

    python demos/put_back.py studies/overfit-dropout.toml

A learning curve's training accuracy is measured during training: with dropout, with dropped units. This demo trains
every configuration of a study whose searched keys all have choices, under the study's own seeds and in float32 unless
the file sets a precision, and measures the training images again in the same way as the validation images. It prints
one line a configuration: means and standard deviations over the repeats. Nothing is stored.
"""

from __future__ import annotations

import argparse
import math
import sys
import threading

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpo.data import load_split
from hpo.errors import HpoError
from hpo.search.points import trial_seed
from hpo.search.space import combination, config_of, size
from hpo.studyfile import Study, read_study
from hpo.training.device_data import to_device
from hpo.training.networks.builtin import build
from hpo.training.stack import Member
from hpo.training.trainer import Trainer

PRECISION = "float32"  # what "auto" means here


@torch.no_grad()
def measured(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return accuracy and loss."""
    outputs = network.eval()(images)
    return float((outputs.argmax(1) == labels).double().mean()), float(F.cross_entropy(outputs, labels))


def put_back(study: Study) -> None:
    """Train all configurations of the study's grid, and print the results."""
    repeats, count = study.search.repeats, size(study)
    if math.isinf(count):
        raise HpoError(f"{study.source}: searches a range; give each searched value as choices")
    split = to_device(load_split(study), study.data.split_seed, torch.device("cpu"))
    configurations = [combination(study, index) for index in range(int(count))]
    members = [
        Member(number, config_of(study, configurations[number // repeats]), trial_seed(study, number))
        for number in range(int(count) * repeats)
    ]
    trainer, metric = Trainer(split, PRECISION, print), study.search.first_metric
    outcomes = trainer.run(
        members, metric=metric, minimized=study.search.minimized, stop=threading.Event(), with_weights=True
    )
    for index, values in enumerate(configurations):
        rows = []
        for member in members[index * repeats : (index + 1) * repeats]:
            outcome = outcomes[member.number]
            if outcome.state is None:
                continue
            network = build(member.config.network, split.shape, split.task.outputs, member.seed)
            network.load_state_dict(outcome.state)
            train = measured(network, split.train, split.train_targets)
            validation = measured(network, split.validation, split.validation_targets)
            rows.append((outcome.curve["train_accuracy"][-1], *train, *validation, train[0] - validation[0]))
        words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items()) or study.name
        print(f"{words}: {len(rows)} of {repeats} runs", *lines(np.array(rows)), sep="\n  ")


def lines(rows: np.ndarray) -> list[str]:
    """Return the measurements by name."""
    names = ("train acc in training", "train acc", "train loss", "val acc", "val loss", "gap")
    if not len(rows):
        return []
    spread = rows.std(0, ddof=1) if len(rows) > 1 else np.full(len(names), np.nan)
    return [f"{n:22}{m:.4f} ± {s:.4f}" for n, m, s in zip(names, rows.mean(0), spread, strict=True)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for a launch")
    given = parser.parse_args()
    try:
        study = read_study(given.study, given.set)
        if not isinstance(study, Study):
            sys.exit(f"{given.study}: has an objective function; this demo needs a network study")
        put_back(study)
    except HpoError as error:
        sys.exit(str(error))
