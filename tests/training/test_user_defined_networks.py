"""User-defined networks: construction, checks, which of them share a stack, and unstacked training."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_reference import config, curves, made_images, member

from hpo.errors import HpoError, SettingError
from hpo.studyfile import Config, NetworkSettings
from hpo.training.device_data import DeviceSplit
from hpo.training.evaluation import log_probabilities
from hpo.training.grouping import why_not_stackable
from hpo.training.networks.builtin import build
from hpo.training.networks.user_defined import check_reproducible, check_trainable
from hpo.training.networks.weights_file import load_network
from hpo.training.population import train
from hpo.training.stack import EVALUATION_BATCH, Member
from hpo.training.trainer import Trainer

SPLIT = made_images(train=30, validation=12)
CODE = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, shape, classes, width=4, *, dropout=0.0, scale=1.0):
        super().__init__()
        channels, height, width_of_images = shape
        self.rate, self.scale = dropout, scale
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(self.drop(x) * self.scale)


class Branching(Net):
    def forward(self, x):
        return super().forward(x if x.sum() > -1e9 else -x)


class Drawing(Branching):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5, self.training))


class Frozen(Net):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.conv.weight.requires_grad_(False)


class Raising(Net):
    def forward(self, x):
        if self.rate > 0.2:
            raise ValueError("too much")
        return super().forward(x)


class Single(Net):
    def forward(self, x):
        return super().forward(x) @ torch.eye(10)


class Lazy(nn.Module):
    def __init__(self, classes, width=4):
        super().__init__()
        self.conv, self.norm = nn.LazyConv2d(width, 3), nn.LazyBatchNorm2d()
        self.drop, self.head = nn.Dropout(0.5), nn.LazyLinear(classes)

    def forward(self, x):
        return self.head(self.drop(F.relu(self.norm(self.conv(x))).flatten(1)))


class Greedy(nn.Module):
    def __init__(self, **anything):
        super().__init__()
        self.fc = nn.Linear(len(anything), 1)


def factory(classes, hidden):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def nothing(width):
    return width


class Needs(Net):
    def __init__(self, shape, heads):
        super().__init__(shape, 10)


class Narrow(Net):
    def __init__(self):
        super().__init__((1, 8, 8), 3)


class Two(Net):
    def forward(self, x):
        return x, x


class Fixed(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10]


class Growing(nn.Module):
    def __init__(self, shape, classes, sizes, deeper=[]):
        super().__init__()
        sizes[0].insert(0, 64)
        sizes[0].append(classes)
        deeper.append(4)
        ins, outs = sizes[0][:-1], sizes[0][1:]
        self.layers = nn.Sequential(nn.Flatten(), *(nn.Linear(*each) for each in zip(ins, outs)))
        self.more = nn.Linear(len(deeper), 1) if sizes[1] else None

    def forward(self, x):
        return self.layers(x)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        if x.sum() > -1e9:
            x.mul_(2).add_(1)
        return self.fc(x.flatten(1))


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(x.flatten(1)).squeeze()


class SqueezedAlone(Squeezed):
    def forward(self, x):
        return super().forward(x) if x.sum() > -1e9 else x


class Once(Net):
    made = 0

    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        Once.made += 1
        if Once.made == 1:
            raise OSError("the first time")


class Complex(Net):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))


class Turned(Branching):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.register_buffer("phase", torch.tensor([1 + 2j]))


class Thawed(Branching):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.head.requires_grad_(False)

    def forward(self, x):
        self.head.requires_grad_(self.training)
        return super().forward(x)


number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(CODE)
    return tmp_path


def settings(folder: Path, name: str, **args: Any) -> NetworkSettings:
    return NetworkSettings(kind="module", module=f"nets.py:{name}", args=args).with_folder(folder)


def own(number: int, folder: Path, name: str, training: dict[str, Any] | None = None, **args: Any) -> Member:
    lr, optimizer = args.pop("lr", 0.05), args.pop("optimizer", {})
    made: Config = config(lr=lr, epochs=2, optimizer=optimizer, training=training or {})
    return member(number, made.model_copy(update={"network": settings(folder, name, **args)}))


def groups(*members: Member, split: DeviceSplit = SPLIT) -> tuple[list[list[int]], list[str]]:
    warnings: list[str] = []
    found = Trainer(split, "float32", warnings.append).groups(members)
    return [[each.number for each in group] for group in found], warnings


def test_shape_and_classes_are_added_and_the_seed_is_torchs(folder: Path) -> None:
    network = build(settings(folder, "Net", width=6), (3, 8, 8), 5, seed=7)
    assert network.state_dict()["conv.weight"].shape == (6, 3, 3, 3)
    assert network.state_dict()["head.weight"].shape == (5, 6)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        alone = nn.Conv2d(3, 6, 3, padding=1)
    assert torch.equal(network.state_dict()["conv.weight"], alone.weight)
    assert build(settings(folder, "Net", classes=3), (3, 8, 8), 5, 7).state_dict()["head.bias"].shape == (3,)
    assert isinstance(build(settings(folder, "factory", hidden=3), (1, 8, 8), 10, 0), nn.Sequential)
    assert build(settings(folder, "Greedy", a=1, b=2), (1, 8, 8), 10, 0).state_dict()["fc.weight"].shape == (1, 2)


def test_lazy_layers_get_their_sizes_from_the_examples_and_train_in_a_stack(folder: Path) -> None:
    network = build(settings(folder, "Lazy"), (1, 8, 8), 10, seed=7)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        alone = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Linear(4 * 6 * 6, 10)]
    assert list(map(type, network.children())) == list(map(type, alone))
    expected = [value for layer in alone for value in layer.state_dict().values()]  # including running statistics
    assert all(map(torch.equal, network.state_dict().values(), expected))
    assert all(layer.training for layer in network.modules())
    assert groups(own(0, folder, "Lazy"), own(1, folder, "Lazy"), own(2, folder, "Lazy", width=3))[0] == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("name", "args", "key", "problem"),
    [
        ("Net", {"widht": 3}, "network.args.widht", "is not an argument of nets.py:Net (did you mean 'width'?)"),
        (
            "factory",
            {"hiden": 3, "zzz": 1},
            "network.args.hiden",
            "is not an argument of nets.py:factory (did you mean",
        ),
        ("Narrow", {"width": 3}, "network.args.width", "is not an argument of nets.py:Narrow; it has none"),
        ("Needs", {}, "network.args.heads", "missing: nets.py:Needs has no default for it"),
        ("nothing", {"width": 3}, "network.module", "nets.py:nothing returns a int, not a torch.nn.Module"),
        ("number", {}, "network.module", "nets.py:number is neither a class nor a function that returns a module"),
        ("Nett", {}, "network.module", "nets.py has no 'Nett' (did you mean 'Net'?)"),
    ],
)
def test_an_error_of_the_study_file_names_its_key(
    folder: Path, name: str, args: dict[str, Any], key: str, problem: str
) -> None:
    with pytest.raises(SettingError) as caught:
        build(settings(folder, name, **args), (1, 8, 8), 10, 0)
    assert caught.value.key == key
    assert caught.value.problem.startswith(problem)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "Narrow",
            "nets.py:Narrow returns [4, 3] for 4 examples; a network must return [B, 10], one number per output",
        ),
        ("Two", "nets.py:Two returns a tuple; a network must return [B, 10]"),
        ("Fixed", "nets.py:Fixed has no parameters to train"),
        ("Complex", "nets.py:Complex has a complex parameter, 'phase'; use two real ones instead"),
    ],
)
def test_the_output_must_be_one_number_per_class(folder: Path, name: str, problem: str) -> None:
    network = build(settings(folder, name), (1, 8, 8), 10, 0)
    with pytest.raises(SettingError, match=r"^network\.module: nets") as caught:
        check_trainable(network, settings(folder, name), SPLIT.train[:4], 10)
    assert caught.value.problem.startswith(problem)


def test_a_constructor_may_change_its_arguments(folder: Path) -> None:
    given = settings(folder, "Growing", sizes=[[8], []])
    for _ in range(2):
        network = build(given, (1, 8, 8), 10, 0)
        assert [layer.weight.shape for layer in network.layers[1:]] == [(8, 64), (10, 8)]  # type: ignore[index,union-attr]
    assert given.args == {"sizes": [[8], []]}


def test_a_constructor_that_changes_global_state_raises_an_error(folder: Path) -> None:
    given = settings(folder, "Growing", sizes=[[8], [1]])
    first, second = (build(given, (1, 8, 8), 10, 0) for _ in range(2))
    check_reproducible(first, first, given)
    with pytest.raises(SettingError, match=r"a different network each time \(612 parameters, then 613\); its"):
        check_reproducible(first, second, given)


def test_a_forward_may_change_its_input_in_place(folder: Path) -> None:
    one, kept = own(0, folder, "InPlace"), SPLIT.validation.clone()
    network = build(one.config.network, SPLIT.shape, SPLIT.task.outputs, 0)
    check_trainable(network, one.config.network, SPLIT.validation, SPLIT.task.outputs)
    log_probabilities(network.double(), SPLIT.validation)
    assert why_not_stackable([network, copy.deepcopy(network)], SPLIT.validation) is not None
    assert len(list(train([one], SPLIT, "float64", stacked=False))) == 2
    assert torch.equal(SPLIT.validation, kept)


@pytest.mark.parametrize("name", ["Squeezed", "SqueezedAlone"])
@pytest.mark.parametrize(("sizes", "batch_size"), [((30, 1), 16), ((30, EVALUATION_BATCH + 1), 16), ((12, 12), 1)])
def test_a_wrong_output_in_training_is_a_one_line_error(
    folder: Path, name: str, sizes: tuple[int, int], batch_size: int
) -> None:
    split = made_images(train=sizes[0], validation=sizes[1])
    one = own(0, folder, name, training={"batch_size": batch_size})
    with pytest.raises(SettingError) as caught:
        list(Trainer(split, "float32", lambda text: None).train([one]))
    assert caught.value.problem.startswith(f"nets.py:{name} returns [10] for 1 example; a network must return [B, 10]")


def test_a_trained_network_with_a_wrong_number_of_classes_raises_an_error(folder: Path) -> None:
    given = settings(folder, "Squeezed")
    state = build(given, SPLIT.shape, 10, 0).state_dict()
    network = load_network(Path("weights"), state, given, SPLIT.shape, 10)
    assert log_probabilities(network, SPLIT.validation[:2]).shape == (2, 10)
    with pytest.raises(SettingError, match=r"nets\.py:Squeezed returns \[10\] for 1 example"):
        log_probabilities(network, SPLIT.validation[:1])
    with pytest.raises(SettingError, match=r"returns \[2, 10\] for 2 examples; a network must return \[B, 3\]"):
        log_probabilities(load_network(Path("weights"), state, given, SPLIT.shape, 3), SPLIT.validation[:2])


def test_members_of_one_architecture_train_together_with_the_curves_they_have_alone(folder: Path) -> None:
    """An attribute that no forward reads does not change the architecture; a number in the forward does."""
    members = [
        own(0, folder, "Net", lr=0.01),
        own(1, folder, "Net", dropout=0.3),
        own(2, folder, "Net", dropout=0.1, width=4),
        own(3, folder, "Net", width=3),
        own(4, folder, "Net", scale=2.0),
        own(5, folder, "Net", scale=2.0, dropout=0.2),
    ]
    assert groups(*members) == ([[0, 1, 2], [3], [4, 5]], [])
    together, _ = curves(members[:3], SPLIT)
    for each in members[:3]:
        alone, _ = curves([each], SPLIT)
        for ours, plain in zip(together[each.number], alone[each.number], strict=True):
            assert ours == pytest.approx(plain, rel=1e-9)


def test_a_module_that_cannot_be_stacked_trains_alone_with_one_warning(folder: Path) -> None:
    members = [own(0, folder, "Net"), *(own(number, folder, "Branching", width=number) for number in (2, 3, 4))]
    found, warnings = groups(*members)
    assert found == [[0], [2], [3], [4]]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "nets.py:Branching: Branching cannot be stacked: symbolically traced variables cannot"
    )
    assert warnings[0].endswith("; its trials train one at a time")


def test_a_module_whose_stacked_training_cannot_be_checked_trains_alone(folder: Path) -> None:
    """It computes in float32 for any input type."""
    found, warnings = groups(own(0, folder, "Single"), own(1, folder, "Single"))
    assert found == [[0], [1]]
    assert warnings[0].startswith("nets.py:Single: its stacked training cannot be checked: RuntimeError")


def test_a_module_that_raises_fails_in_its_own_training(folder: Path) -> None:
    members = [own(number, folder, "Raising", dropout=rate) for number, rate in enumerate((0.1, 0.3, 0.1, 0.4))]
    found, warnings = groups(*members)
    assert found == [[0, 2], [1], [3]]
    assert warnings == []


def test_an_exception_raised_once_fails_one_training(folder: Path) -> None:
    trainer, one = Trainer(SPLIT, "float32", lambda text: None), own(0, folder, "Once")
    assert trainer.groups([one]) == [[one]]
    with pytest.raises(OSError, match="the first time"):
        list(trainer.train([one]))
    assert len(list(trainer.train([one]))) == 2


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "adamw"])
def test_unstacked_training_has_the_curves_of_stacked_training(folder: Path, kind: str) -> None:
    optimizer = {"kind": kind, "weight_decay": 0.01, "clip": 1.0, "schedule": "cosine"}
    one = own(3, folder, "Net", lr=0.01, optimizer=optimizer, training={"label_smoothing": 0.1, "flip": 0.5})
    stacked = [result for result in train([one], SPLIT, "float64")]
    plain = [result for result in train([one], SPLIT, "float64", stacked=False)]
    assert len(plain) == len(stacked) == 2
    for ours, theirs in zip(plain, stacked, strict=True):
        assert ours.metrics[3] == pytest.approx(theirs.metrics[3], rel=1e-9)


def weights(one: Member, precision: str = "float32") -> dict[str, torch.Tensor]:
    for result in train([one], SPLIT, precision, stacked=False):
        state = result.states([one.number])[one.number]
    return state


def test_random_numbers_of_a_forward_depend_on_its_trial_only(folder: Path) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first, again, other = (weights(own(number, folder, "Drawing")) for number in (1, 1, 2))
    torch.rand(3)
    random.random()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    torch.set_rng_state(before[0])
    random.setstate(before[1])
    weights(own(1, folder, "Drawing"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_frozen_parameters_do_not_change(folder: Path) -> None:
    one = own(0, folder, "Frozen", optimizer={"kind": "adam", "weight_decay": 0.1})
    warnings = groups(one)[1]
    assert "it is frozen" in warnings[0]
    fresh = build(one.config.network, SPLIT.shape, SPLIT.task.outputs, one.seed).state_dict()
    state = weights(one)
    assert torch.equal(state["conv.weight"], fresh["conv.weight"])
    assert not torch.equal(state["head.weight"], fresh["head.weight"])
    assert not torch.equal(state["norm.running_mean"], fresh["norm.running_mean"])


def test_a_frozen_parameter_cannot_be_unfrozen_later(folder: Path) -> None:
    with pytest.raises(HpoError, match=r"'head\.weight' is frozen in a new module and unfrozen later"):
        weights(own(0, folder, "Thawed"))


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
def test_complex_buffers_stay_complex(folder: Path, precision: str) -> None:
    assert weights(own(0, folder, "Turned"), precision)["phase"].tolist() == [1 + 2j]


def test_in_bfloat16_an_unstacked_module_keeps_float32_parameters(folder: Path) -> None:
    one = own(0, folder, "Branching")
    low, high = weights(one, "bfloat16"), weights(one, "float32")
    assert all(value.dtype == high[name].dtype for name, value in low.items())
    assert not torch.equal(low["head.weight"], high["head.weight"])
    torch.testing.assert_close(low["head.weight"], high["head.weight"], rtol=0.1, atol=0.05)
