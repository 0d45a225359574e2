"""Members of later populations share the graph of an architecture, unless it may depend on the member."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_reference import config, curves, made_images, member

from hpo.training import trainer as trainers
from hpo.training.networks.builtin import build
from hpo.training.stack import Member
from hpo.training.stacking.tracing import trace as traces
from hpo.training.stacking.tracing.trace import CannotStackError, TraceCache, trace
from hpo.training.trainer import Trainer

SPLIT = made_images()
MEAN = torch.ones(3)


class Net(nn.Module):
    """A linear layer, followed by the function `what` of the network and the layer's output."""

    scale: Any
    drop: Any

    def __init__(self, what: Callable[[Net, Tensor], Tensor], **attributes: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.what = what
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self, self.fc(x))


class ScalingDropout(nn.Dropout):
    """A user's layer, whose graph depends on its rate."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.p


def twice(net: Net, out: Tensor) -> Tensor:
    return 2 * out


def scaled(net: Net, out: Tensor) -> Tensor:
    return torch.mul(out, net.scale)


def on_device(net: Net, out: Tensor) -> Tensor:
    weight = next(net.parameters())
    return out.to(weight.device) * weight.shape[0]


def dropped(net: Net, out: Tensor) -> Tensor:
    dropped: Tensor = net.drop(out)
    return dropped


def branching(net: Net, out: Tensor) -> Tensor:
    return out.relu() if next(net.parameters()).sum() > 0 else out


def centred(net: Net, out: Tensor) -> Tensor:
    return out - MEAN


def shifted(net: Net, out: Tensor) -> Tensor:
    return out + torch.ones(3)


def with_sum(value: float) -> Net:
    """Return a network whose forward branches on the sum of its weights."""
    net = Net(branching)
    nn.init.constant_(net.fc.weight, value)
    return net


def tied(count: int) -> Net:
    """Return a network with two parameters of the same shape: one tensor with two names, or two tensors."""
    net = Net(scaled, scale=nn.Parameter(torch.ones(3)))
    net.other = net.scale if count == 1 else nn.Parameter(torch.ones(3))
    return net


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the modules that torch.fx traces, by the name of their class."""
    found: Counter[str] = Counter()
    original = traces._Tracer.trace

    def counting(self: Any, root: nn.Module, *args: Any) -> Any:
        found[type(root).__name__] += 1
        return original(self, root, *args)

    monkeypatch.setattr(traces._Tracer, "trace", counting)
    return found


def frozen_after_an_epoch(trainer: Trainer, members: list[Member]) -> list[Member]:
    with closing(trainer.train(members)) as epochs:
        states = next(epochs).freeze([each.number for each in members])
    return [replace(each, state=states[each.number]) for each in members]


def test_a_trainer_traces_an_architecture_once(traced: Counter[str]) -> None:
    """Also for thawed members and for other dropout rates; each member has the curve of a new trainer."""
    trainer = Trainer(SPLIT, "float64", pytest.fail)
    members = [
        member(number, config(dropout=number / 10, batch_norm=True, lr=0.01 * (number + 1))) for number in range(5)
    ]
    thawed = frozen_after_an_epoch(trainer, members[:3])
    assert traced == {"MLP": 2}  # in training and in evaluation
    for population in ([thawed[1]], [thawed[2], thawed[0]], members[3:]):
        expected, _ = curves([replace(each, state=None) for each in population], SPLIT)
        traced.clear()
        found = [result.metrics for result in trainer.train(population)]
        assert not traced
        for each in population:
            assert [metrics[each.number] for metrics in found] == expected[each.number][each.epoch :]
    list(trainer.train([member(5, config(hidden=[12]))]))
    assert traced == {"MLP": 2}


def test_a_trainer_stores_the_graphs_used_last(traced: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers, "MAX_TRACES", 2)
    trainer = Trainer(SPLIT, "float64", pytest.fail)
    for units, expected in ((5, 2), (6, 2), (5, 0), (7, 2), (5, 0), (6, 2)):
        traced.clear()
        list(trainer.train([member(0, config(hidden=[units], epochs=1))]))
        assert traced["MLP"] == expected, units


def test_a_cache_refers_to_no_member() -> None:
    cache = TraceCache()
    settings = config("cnn", conv=[2], kernel=3, batch_norm=True, dropout=0.1).network
    modules = [build(settings, SPLIT.shape, SPLIT.task.outputs, seed) for seed in range(2)]
    trace(modules, cache)
    alive = [weakref.ref(each) for module in modules for each in (*module.modules(), *module.parameters())]
    del modules
    gc.collect()
    assert cache._stored is not None
    assert not any(each() is not None for each in alive)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Net(twice),
        lambda: Net(scaled, scale=2.0),
        lambda: Net(on_device),
        lambda: Net(dropped, drop=nn.Dropout(0.1)),
    ],
)
def test_modules_of_equal_attributes_share_a_graph(make: Callable[[], nn.Module], traced: Counter[str]) -> None:
    cache = TraceCache()
    graphs = {id(trace([make(), make()], cache).graph) for _ in range(3)}
    assert (len(graphs), traced["Net"]) == (1, 2)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda: Net(scaled, scale=2.0), lambda: Net(scaled, scale=3.0)),
        (lambda: Net(scaled, scale=2), lambda: Net(scaled, scale=2.0)),
        (lambda: Net(twice), lambda: Net(scaled, scale=2.0)),
        (lambda: Net(dropped, drop=ScalingDropout(0.1)), lambda: Net(dropped, drop=ScalingDropout(0.2))),
        (lambda: Net(lambda net, out: 2 * out), lambda: Net(lambda net, out: 3 * out)),
        (lambda: tied(1), lambda: tied(2)),
        (lambda: with_sum(1.0), lambda: with_sum(-1.0)),
        (lambda: Net(centred), lambda: Net(centred)),
        (lambda: Net(shifted), lambda: Net(shifted)),
    ],
    ids=["scale", "type", "function", "rate", "local", "tied", "value", "global", "constant"],
)
def test_modules_whose_graph_may_differ_are_traced_again(
    first: Callable[[], nn.Module], second: Callable[[], nn.Module], traced: Counter[str]
) -> None:
    cache = TraceCache()
    for make in (first, second, first):
        shared, own = trace([make()], cache).graph, trace([make()]).graph
        assert [str(node.args) for node in shared.nodes] == [str(node.args) for node in own.nodes]
        assert str(shared) == str(own)
    assert traced["Net"] == 12


def test_members_whose_forward_branches_on_values_are_traced_one_by_one() -> None:
    with pytest.raises(CannotStackError, match="differs between members"):
        trace([with_sum(1.0), with_sum(-1.0)])
    assert len(list(trace([with_sum(1.0), with_sum(2.0)]).graph.nodes)) == 4
