"""Muon (K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) for K members at once.

The arithmetic is that of torch.optim.Muon with Nesterov momentum and its default coefficients, also in its type: the
Newton-Schulz iteration runs in bfloat16, whatever the precision. Its products are those of all members in one batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpo.training.optimizers.rules import Hyper, OptimizerState

ITERATION_TYPE = torch.bfloat16
"""Type of the Newton-Schulz iteration."""

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
LEAST_NORM = 1e-7


def hidden_matrices(module: nn.Module, outputs: int) -> frozenset[str]:
    """Return the names of the parameters that Muon updates: matrices, without embeddings and the output layer.

    A matrix is a parameter of exactly two dimensions. The output layer is the last matrix, in the order of
    `named_parameters`, with one row for each of the `outputs`.
    """
    embeddings = {id(each.weight) for each in module.modules() if isinstance(each, nn.Embedding | nn.EmbeddingBag)}
    matrices = {n: len(p) for n, p in module.named_parameters() if p.dim() == 2 and id(p) not in embeddings}
    last = next((name for name in reversed(matrices) if matrices[name] == outputs), None)
    return frozenset(matrices.keys() - {last})


def muon(value: Tensor, grad: Tensor, state: OptimizerState, hyper: Hyper, shape: torch.Size) -> None:
    """Update matrices of this shape, [K, elements]. Weight decay is applied before."""
    momentum, average = hyper["momentum"], state[0]
    average.lerp_(grad, 1 - momentum)
    directions = orthogonalized(torch.lerp(grad, average, momentum).view(-1, *shape))
    rows, columns = shape
    original, match_rms = (hyper["lr"].new_tensor(f) for f in (max(1, rows / columns) ** 0.5, 0.2 * max(shape) ** 0.5))
    factor = torch.where(hyper["match_rms"] > 0, match_rms, original)
    value.addcmul_(directions.flatten(1).to(value.dtype), -hyper["lr"] * factor)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return matrices [K, rows, columns] with their singular values near 1, by Newton-Schulz iterations."""
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(ITERATION_TYPE)
    x = x.mT if is_tall else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=LEAST_NORM)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
