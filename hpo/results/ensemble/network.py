"""A module whose outputs are those of an ensemble: the mean prediction of its networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hpo.training.evaluation import network_outputs
from hpo.training.tasks.averaging import MeanPrediction
from hpo.training.tasks.task import Task


class EnsembleNetwork(nn.Module):
    """Average the predictions of networks, each with a number of picks, in float64 on the CPU.

    The networks may differ in architecture, device and type of weights. `task` is that of all of them.
    """

    def __init__(self, task: Task, networks: Sequence[nn.Module], picks: Sequence[int]) -> None:
        super().__init__()
        self.task, self.picks = task, tuple(picks)
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [N, outputs] whose prediction is the mean of the networks' predictions."""
        mean = MeanPrediction(self.task)
        for network, picks in zip(self.networks, self.picks, strict=True):
            mean = mean.add(network_outputs(network, x), picks)
        return mean.outputs()
