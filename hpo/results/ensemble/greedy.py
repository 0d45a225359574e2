"""Greedy selection of networks with replacement, by the score of their mean prediction.

R. Caruana, A. Niculescu-Mizil, G. Crew and A. Ksikes, "Ensemble selection from libraries of models", ICML 2004: start
with the best network; pick again and again the network with which the mean prediction is the best, the same network
any number of times; of the ensembles on the way, take the best one. Knows nothing of studies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from hpo.training.tasks.averaging import MeanPrediction
from hpo.training.tasks.task import Task

Losses = tuple[float, ...]
"""What is minimized: the first number decides, the next one where the first is equal."""


def greedy_picks(
    task: Task, outputs: Sequence[Tensor], losses: Callable[[Tensor], Losses], size: int
) -> tuple[int, ...]:
    """Return the picked networks by index, in the order of the picks, at most `size`.

    `outputs` [N, outputs] are those of each network for the same examples, `losses` those of an ensemble's outputs.
    Of equally good networks the first one is picked, of equally good ensembles that with the fewest picks.
    """
    mean, picks, best = MeanPrediction(task), list[int](), list[tuple[Losses, int]]()
    for _ in range(size):
        each = [losses(mean.add(of_network).outputs()) for of_network in outputs]
        pick = min(range(len(outputs)), key=each.__getitem__)
        mean = mean.add(outputs[pick])
        picks.append(pick)
        best.append((each[pick], len(picks)))
    return tuple(picks[: min(best)[1]])


def mean_of(task: Task, outputs: Sequence[Tensor], picks: Sequence[int]) -> Tensor:
    """Return the outputs of the ensemble of these picks."""
    mean = MeanPrediction(task)
    for pick in dict.fromkeys(picks):
        mean = mean.add(outputs[pick], picks.count(pick))
    return mean.outputs()
