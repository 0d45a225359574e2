"""Train configurations anew, in the same stacks where they fit, each under a seed of its own; return their weights.

They are trained for a given number of epochs under the learning-rate schedule of all their epochs. Early stopping is
off. Stores nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpo.search.plan import NetworkPlan, to_planned_device
from hpo.studyfile import Config, Study
from hpo.training.population import EpochResult
from hpo.training.stack import Member
from hpo.training.trainer import Outcome, Trainer


@dataclass(frozen=True)
class NewTraining:
    """A configuration to train: the number of its outcome, its epochs, its seed, and the index of its split.

    `val_losses` are those of its trial, whose reductions a plateau schedule repeats without a validation split.
    """

    number: int
    config: Config
    epochs: int
    seed: int
    split: int = 0
    val_losses: tuple[float, ...] = ()

    @property
    def member(self) -> Member:
        """The configuration as a member without early stopping."""
        training = self.config.training.model_copy(update={"patience": None})
        config = self.config.model_copy(update={"training": training})
        return Member(self.number, config, self.seed, split=self.split, val_losses=self.val_losses)


def train_anew(
    study: Study,
    planned: NetworkPlan,
    precision: str,
    trainings: Sequence[NewTraining],
    stop: threading.Event,
    say: Callable[[str], None],
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
) -> dict[int, Outcome]:
    """Train configurations on the splits of a plan; return their outcomes, with weights, by number.

    `precision` replaces "auto"; `say` gets warnings. Raises InterruptionError where `stop` is set before the end.
    """
    split, *others = to_planned_device(study, planned)
    trainer = Trainer(split, precision, say, others=others)
    outcomes: dict[int, Outcome] = {}
    for epochs in sorted({each.epochs for each in trainings}):
        outcomes |= trainer.run(
            [each.member for each in trainings if each.epochs == epochs],
            metric=study.search.first_metric,
            minimized=study.search.minimized,
            stop=stop,
            last_epoch=epochs,
            with_weights=True,
            on_epoch=on_epoch,
        )
    return outcomes
