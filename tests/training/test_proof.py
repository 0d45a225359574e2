"""The proof of stacked training finds what tracing cannot see."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from test_stacked_architectures import IMAGES, NETWORKS, ResidualCNN
from torch import Tensor, nn

from hpo.training.stacking.proof import prove
from hpo.training.stacking.stacked_network import StackedNetwork
from hpo.training.stacking.tracing.trace import CannotStackError


class Net(nn.Module):
    def __init__(self, what: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.what, self.fc = what, nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self.fc, x)


def by_class(fc: nn.Linear, x: Tensor) -> Tensor:
    return fc(x.flatten(1)) * (2 if isinstance(x, Tensor) else 1)


def by_class_of_gradients(fc: nn.Linear, x: Tensor) -> Tensor:
    out = fc(x.flatten(1))
    return out.detach() + 0 * out if isinstance(x, Tensor) else out


def chosen_images(fc: nn.Linear, x: Tensor) -> Tensor:
    out = fc(x.flatten(1))
    return out[out.sum(1) > -1e9]


@pytest.mark.parametrize("kind", NETWORKS)
def test_stackable_networks_pass_and_are_not_changed(kind: str) -> None:
    modules = [NETWORKS[kind]() for _ in range(2)]
    before = copy.deepcopy([module.state_dict() for module in modules])
    random_state = torch.get_rng_state()
    prove(modules, IMAGES)
    assert torch.equal(torch.get_rng_state(), random_state)
    for module, state in zip(modules, before, strict=True):
        assert module.training
        for name, value in module.state_dict().items():
            assert torch.equal(value, state[name])
            assert value.dtype == state[name].dtype


@pytest.mark.parametrize(("what", "named"), [(by_class, "Net.*outputs"), (by_class_of_gradients, "'fc.*gradients")])
def test_python_code_that_depends_on_a_values_class_is_found(
    what: Callable[[nn.Linear, Tensor], Tensor], named: str
) -> None:
    members = [Net(what), Net(what)]
    StackedNetwork(members)  # tracing does not find it
    with pytest.raises(CannotStackError, match=named):
        prove(members, IMAGES)


def test_an_error_in_the_stack_only_means_that_it_cannot_be_stacked() -> None:
    with pytest.raises(CannotStackError, match="cannot be stacked"):
        prove([Net(chosen_images), Net(chosen_images)], IMAGES)


def test_an_error_of_the_network_itself_is_raised_unchanged() -> None:
    with pytest.raises(RuntimeError, match="expected input") as caught:
        prove([ResidualCNN()], IMAGES.expand(-1, 3, -1, -1))
    assert not isinstance(caught.value, CannotStackError)
