"""Muon: which matrices it updates, and its iteration in bfloat16. tests/training/test_optimizers.py compares steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim._muon import _zeropower_via_newtonschulz
from torch_reference import assert_same_curves, config, curves, made_images, member

from hpo.training.optimizers import muon
from hpo.training.optimizers.muon import hidden_matrices, orthogonalized


class Text(nn.Module):
    """A network with an embedding, a head that is defined first, and matrices inside a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.embedding, self.tied = nn.Linear(6, 3), nn.Embedding(9, 5), nn.Linear(5, 9, bias=False)
        self.tied.weight = self.embedding.weight
        self.rnn, self.conv = nn.GRU(5, 6), nn.Conv1d(5, 5, 3)


def test_hidden_matrices_are_all_but_embeddings_and_the_output_layer() -> None:
    assert hidden_matrices(Text(), 3) == {"rnn.weight_ih_l0", "rnn.weight_hh_l0"}
    assert hidden_matrices(Text(), 7) == {"head.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0"}
    deep = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    assert hidden_matrices(deep, 3) == {"0.weight", "1.weight"}
    assert hidden_matrices(nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 3)), 3) == {"0.weight"}
    assert hidden_matrices(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)), 3) == frozenset()


@pytest.mark.parametrize("shape", [(12, 64), (64, 12), (8, 8), (1, 5)])
def test_orthogonalized_matrices_are_those_of_torch(shape: tuple[int, int]) -> None:
    """In bfloat16, up to a few roundings of 2^-8: other processors add in another order."""
    matrices = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    ours = orthogonalized(matrices)
    assert ours.dtype == torch.bfloat16
    for matrix, one in zip(matrices, ours, strict=True):
        alone = _zeropower_via_newtonschulz(matrix, muon.COEFFICIENTS, muon.ITERATIONS, muon.LEAST_NORM)
        torch.testing.assert_close(one, alone, rtol=0, atol=0.03)
        torch.testing.assert_close(one, orthogonalized(matrix[None])[0], rtol=0, atol=0.03)
    assert orthogonalized(torch.zeros(2, *shape)).count_nonzero() == 0


def test_a_network_without_hidden_matrices_trains_as_with_adamw() -> None:
    split = made_images(train=40)
    one, other = (
        curves([member(0, config(hidden=[], lr=lr, epochs=2, optimizer={"kind": kind, **more}))], split)[0][0]
        for kind, lr, more in (("muon", 0.1, {"adamw_lr": 0.01}), ("adamw", 0.01, {}))
    )
    assert_same_curves(one, other, rtol=1e-12)
