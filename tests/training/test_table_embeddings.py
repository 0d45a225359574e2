"""The mlp with embeddings of a table's columns of indices: it trains as plain torch, with exact indices in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch_reference import assert_same_curves, config, curves, made_images, member, plain_curve

from hpo.training.device_data import DeviceSplit, IndexedShape
from hpo.training.networks.builtin import MLP, build, embedding_width
from hpo.training.size import count_parameters, measure_network, network_size

INDICES = (4, 300)
"""Indices of the two columns of categories. bfloat16 has no 257."""


def table() -> DeviceSplit:
    """Return rows of three numbers and two columns of indices, of which the second one decides the class."""
    images = made_images()
    generator = torch.Generator().manual_seed(2)
    parts = []
    for targets in (images.train_targets, images.validation_targets):
        few = torch.randint(0, 4, (len(targets), 1), generator=generator)
        decides = 257 + 2 * targets.unsqueeze(1)
        parts.append(torch.cat([torch.randn(len(targets), 3, generator=generator), few, decides], 1))
    return replace(images, train=parts[0], validation=parts[1], indices=INDICES)


def test_each_column_of_indices_has_an_embedding_of_the_width_of_fastai() -> None:
    assert [embedding_width(n) for n in (2, 10, 1000, 100_000)] == [2, 6, 77, 600]
    shape, network = table().shape, config(hidden=[5]).network
    assert isinstance(shape, IndexedShape)
    mlp = build(network, shape, 10, 0)
    assert isinstance(mlp, MLP)
    assert [tuple(each.weight.shape) for each in mlp.embeddings] == [(4, 3), (300, 39)]
    assert mlp.layers[1].in_features == 3 + 3 + 39
    for each in mlp.embeddings:
        assert not each.weight[0].any()
        assert each.weight[1:].all()
    sizes = network_size(network, shape, 10), measure_network(mlp, shape)
    assert sizes[0].parameters == sizes[1].parameters == count_parameters(network, shape, 10)
    assert sizes[0].products == sizes[1].products - sum(each.weight[0].numel() ** 2 for each in mlp.embeddings)


@pytest.mark.parametrize("numbers", [3, 0])
def test_a_stack_trains_as_plain_torch_does(numbers: int) -> None:
    split = table()
    split = replace(split, train=split.train[:, 3 - numbers :], validation=split.validation[:, 3 - numbers :])
    optimizer = {"kind": "adam", "lr": 0.01, "weight_decay": 1e-3}
    settings = config(batch_norm=True, dropout=0.2, optimizer=optimizer)
    members = [member(number, settings) for number in range(3)]
    found, reasons = curves(members, split)
    assert not reasons
    for each in members:
        assert_same_curves(found[each.number], plain_curve(each, split), rtol=1e-9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_indices_are_exact_in_every_precision(precision: str) -> None:
    """Rounded to bfloat16, indices of neighbouring classes are equal."""
    split = table()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        typed = split.in_type(dtype)
        assert (typed.compute, typed.shape.indices) == (dtype, INDICES)
        assert typed.train[:, 3:].long().equal(split.train[:, 3:].long())
    rounded = split.train[:, 4].bfloat16().long()
    assert len(rounded.unique()) < 10 == len(split.train[:, 4].unique())
    settings = config(precision=precision, epochs=8, optimizer={"kind": "adam", "lr": 0.03})
    found, reasons = curves([member(number, settings) for number in (0, 1)], split, precision)
    assert not reasons
    for curve in found.values():
        assert curve[-1]["val_accuracy"] == 1
