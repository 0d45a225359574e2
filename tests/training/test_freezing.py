"""Freezing and thawing: a trial that was frozen any number of times, in any company, is the trial that it is alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_reference import KINDS, Curve, assert_same_curves, config, made_images, member

from hpo.studyfile import Config, NetworkSettings
from hpo.training.networks.builtin import build
from hpo.training.population import EpochResult, train
from hpo.training.stack import Member, MemberState, Stack
from hpo.training.stacking.stacked_network import LAYERS
from hpo.training.trainer import Trainer

SPLIT = made_images(train=45, validation=20)
EPOCHS = 3

CODE = """
import random
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Stackable(nn.Module):
    # stacked layer; tied, unused and detached parameters; buffers of several kinds.
    def __init__(self, dropout=0.2):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(8, 4, 3, bias=False), nn.Conv2d(1, 4, 3, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm1d(4), nn.BatchNorm2d(4)
        self.drop, self.drop1, self.drop2 = nn.Dropout(dropout), nn.Dropout1d(dropout), nn.Dropout2d(dropout)
        self.layer, self.rms, self.group = nn.LayerNorm(6), nn.RMSNorm(6), nn.GroupNorm(2, 4)
        self.instance1, self.instance2 = nn.InstanceNorm1d(4, affine=True), nn.InstanceNorm2d(4, affine=True)
        self.embedding, self.prelu = nn.Embedding(4, 6), nn.PReLU(4)
        self.a, self.b, self.head = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 10)
        self.b.weight = self.a.weight
        self.never, self.unused, self.detached = nn.Linear(4, 4), nn.BatchNorm1d(24), nn.LayerNorm(24)
        self.scale, self.shift = nn.Parameter(torch.tensor(0.9)), nn.Parameter(torch.zeros(24))
        self.register_buffer("noise", torch.randn(24) / 10)
        self.register_buffer("exact", torch.rand(24, dtype=torch.float64), persistent=False)

    def forward(self, x):
        row = self.drop1(self.instance1(torch.tanh(self.norm1(self.conv1(x.squeeze(1))))))
        row = row + self.rms(self.layer(row)) + self.embedding((x[:, 0, :4, 0] > 0.5).long())
        image = self.group(self.prelu(self.norm2(self.conv2(x))))
        image = self.drop2(self.instance2(torch.sigmoid(image)))
        h = self.drop(row.flatten(1) + image.mean(2).flatten(1)) * self.scale + self.shift
        h = torch.tanh(self.b(torch.tanh(self.a(h)) + self.noise)) * self.exact.to(h.dtype)
        self.unused(h)
        return self.head(h + self.detached(h).detach())


class Alone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def features(self, x):
        if x.sum() > -1e9:
            return F.relu(self.norm(self.conv(x))).mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


class Drawing(Alone):
    def forward(self, x):
        h = F.dropout(self.features(x), 0.5, self.training)
        return self.head(h) * (1 + random.random() * self.training + np.random.rand())


class Buffers(Alone):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("turn", torch.ones(4, dtype=torch.complex64))
        self.register_buffer("hidden", torch.zeros(4), persistent=False)

    def forward(self, x):
        h = self.features(x)
        if self.training:
            self.calls += 1
            self.mean = 0.9 * self.mean + 0.1 * h.detach().float().mean(0)
            self.hidden.lerp_(h.detach().mean(0).to(self.hidden.dtype), 0.2)
            self.turn = self.turn * (0.99 + 0.1j)
        return self.head((h - self.mean - self.hidden) * self.turn.real * (1 + 1 / (1 + self.calls)))


class Replaced(Alone):
    def __init__(self):
        super().__init__()
        self.register_buffer("nothing", None)
        self.register_buffer("queue", torch.zeros(0, 4))
        self.register_buffer("kind", torch.tensor(0))
        self.register_buffer("gone", None, persistent=False)

    def forward(self, x):
        h = self.features(x)
        if self.training:
            mean = h.detach().mean(0, keepdim=True)
            self.nothing = mean if self.nothing is None else self.nothing * 0.5 + mean
            self.queue = torch.cat([self.queue, mean])[-7:]
            self.kind = self.kind + 0.5
            self.gone = self.kind * 2
        if self.gone is None:
            return self.head(h)
        return self.head((h - self.queue.mean(0) + self.nothing) * self.kind * self.gone)


class Extra(Alone):
    def __init__(self):
        super().__init__()
        self.calls = [0]

    def get_extra_state(self):
        return self.calls

    def set_extra_state(self, state):
        self.calls = state

    def forward(self, x):
        self.calls[0] += self.training
        return super().forward(x) * (1 + 1 / (1 + self.calls[0]))


class Fixed(Alone):
    def __init__(self):
        super().__init__()
        self.conv.requires_grad_(False)
        self.norm.weight.requires_grad_(False)


class Sometimes(Alone):
    def __init__(self):
        super().__init__()
        self.more, self.rare = nn.Linear(4, 4), nn.Parameter(torch.ones(4))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        h = self.features(x)
        self.calls += self.training
        if self.calls % 3:
            h = self.more(h)
        if self.calls > 5:
            h = h * self.rare
        return self.head(h)


class Parametrized(Alone):
    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(self.conv)
        self.more = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.turn = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))

    def forward(self, x):
        return self.head(self.turn(self.more(self.features(x))))


class Hooked(Alone):
    def __init__(self):
        super().__init__()
        warnings.simplefilter("ignore", FutureWarning)
        self.conv = nn.utils.weight_norm(self.conv)
        self.more = nn.utils.spectral_norm(nn.Linear(4, 4))

    def forward(self, x):
        return self.head(self.more(self.features(x)))


class Lazy(Alone):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(10)


class Recurrent(Alone):
    def __init__(self):
        super().__init__()
        self.first = nn.GRU(8, 4, batch_first=True, dropout=0.2, num_layers=2)
        self.head.weight.register_hook(lambda gradient: gradient * 2)

    def forward(self, x):
        return self.head(self.features(x) + self.first(x[:, 0])[0][:, -1])


class Still(Alone):
    def __init__(self):
        super().__init__()
        self.norm.eval()


class Half(Alone):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float16))
        self.register_buffer("fine", torch.rand(4, dtype=torch.float64))

    def forward(self, x):
        h = self.features(x)
        if self.training:
            self.mean = (0.9 * self.mean + 0.1 * h.detach().mean(0)).half()
        return self.head(h - self.mean + self.fine.float().to(h.dtype))


class Tied(Alone):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.b.register_buffer("shared", torch.zeros(4))
        self.a.register_buffer("shared", self.b.shared)

    def forward(self, x):
        h = self.features(x)
        self.a.shared += self.training * h.detach().mean(0)
        return self.head(self.b(self.a(h) + self.b.shared))


class Odd(nn.Module):
    # Can be stacked under the seeds 0 and 1, but not under 0 and 2: its constant tensors differ.
    def __init__(self):
        super().__init__()
        self.constant = torch.tensor(float(torch.initial_seed() // 2))
        self.norm, self.head = nn.BatchNorm1d(64), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.norm(x.flatten(1)) + self.constant)


class Caching(Alone):
    def forward(self, x):
        self.last = self.features(x)
        return self.head(self.last)


class Counting(Alone):
    calls = 0

    def forward(self, x):
        self.calls += self.training
        return super().forward(x)


class Remembering(Alone):
    def __init__(self):
        super().__init__()
        self.seen = [torch.zeros(4)]

    def forward(self, x):
        self.seen.append(self.features(x).detach().mean(0))
        return self.head(self.features(x) + self.seen[-2])


class Seeded(Alone):
    def __init__(self):
        super().__init__()
        self.random = torch.Generator()

    def forward(self, x):
        return super().forward(x) * torch.rand(1, generator=self.random)


class Saving(Alone):
    def get_extra_state(self):
        return 1
"""
UNSTACKED = [
    *("Alone", "Drawing", "Buffers", "Replaced", "Extra", "Fixed", "Sometimes"),
    *("Parametrized", "Hooked", "Lazy", "Recurrent", "Still", "Half", "Tied"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "nets.py").write_text(CODE)
    return folder


def own(number: int, folder: Path, name: str, made: Config, **args: Any) -> Member:
    network = NetworkSettings(kind="module", module=f"nets.py:{name}", args=args).with_folder(folder)
    return member(number, made.model_copy(update={"network": network}))


@dataclass
class Run:
    """A member's curve, and its weights and state after the last epoch."""

    curve: Curve = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)
    state: MemberState | None = None

    def add(self, result: EpochResult, number: int) -> None:
        self.curve.append(result.metrics[number])
        self.weights, self.state = result.states([number])[number], result.freeze([number])[number]


def alone(one: Member, precision: str = "float64") -> Run:
    return whole([one], precision)[one.number]


def whole(members: Sequence[Member], precision: str = "float64", stacked: bool = True) -> dict[int, Run]:
    """Train members together, without a pause."""
    runs = {each.number: Run() for each in members}
    for result in train(members, SPLIT, precision, stacked=stacked):
        for number, run in runs.items():
            run.add(result, number)
    return runs


def frozen_each_epoch(members: Sequence[Member], precision: str, stacked: bool) -> dict[int, Run]:
    """Train members together, all of them frozen and thawed after every epoch."""
    runs = {each.number: Run() for each in members}
    for _ in range(EPOCHS):
        thawed = [replace(each, state=runs[each.number].state) for each in members]
        if not stacked:  # twice: training must not change the state, nor the module's extra state
            with closing(train(thawed, SPLIT, precision, stacked=False)) as epochs:
                next(epochs)
        with closing(train(thawed, SPLIT, precision, stacked=stacked)) as epochs:
            result = next(epochs)
            for number, run in runs.items():
                run.add(result, number)
    return runs


def in_any_company(members: Sequence[Member], random: Random, precision: str) -> dict[int, Run]:
    """Train members in populations and orders drawn at random, each frozen after epochs drawn at random."""
    runs = {each.number: Run() for each in members}
    waiting = list(members)
    while waiting:
        epoch = random.choice([each.epoch for each in waiting])
        same = [each for each in waiting if each.epoch == epoch]
        population = random.sample(same, random.randint(1, len(same)))
        ends = {each.number: random.randint(epoch + 1, EPOCHS) for each in population}
        dropped = None
        with closing(train(population, SPLIT, precision)) as epochs, suppress(StopIteration):
            while True:
                result = epochs.send(dropped)
                for number in ends.keys() & result.metrics.keys():
                    runs[number].add(result, number)
                dropped = [number for number, end in ends.items() if end == result.epoch]
        states = {number: run.state for number, run in runs.items()}
        thawed = [replace(each, state=states[each.number]) for each in members]
        waiting = [each for each in thawed if each.epoch < EPOCHS]
    return runs


def tensors(run: Run) -> Iterator[tuple[str, Any]]:
    """Return weights, values and optimizer state by name."""
    assert run.state is not None
    parts = [run.weights, run.state.network, run.state.optimizer.steps, *run.state.optimizer.states]
    return ((f"{number} {name}", value) for number, part in enumerate(parts) for name, value in part.items())


def assert_same_run(ours: Run, other: Run, rtol: float = 0.0) -> None:
    assert_same_curves(ours.curve, other.curve, rtol)
    found, expected = dict(tensors(ours)), dict(tensors(other))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol, equal_nan=True)
        else:
            assert found[name] == value, name


RATES = {"sgd": 0.1, "momentum": 0.05, "nesterov": 0.05}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "cnn": {"kind": "cnn", "conv": [2, 3], "kernel": 3, "padding": 1, "hidden": [8]},
    "Stackable": {},
}


@st.composite
def members_of(draw: st.DrawFn) -> tuple[str, list[dict[str, Any]]]:
    """Return the name of a network, and settings of some members."""
    kind, name = draw(st.sampled_from(KINDS)), draw(st.sampled_from(list(NETWORKS)))
    # A bias before batch norm has a gradient of rounding errors only, which adagrad, rmsprop and adam amplify.
    batch_norm = {"batch_norm": draw(st.booleans())} if kind in RATES else {}
    shared = {"batch_size": draw(st.sampled_from([7, 16, 45])), **NETWORKS[name], **batch_norm}
    augmented = {"flip": draw(st.sampled_from([0.0, 0.5])), "shift": draw(st.integers(0, 2))}
    optimizer = st.fixed_dictionaries(
        {
            "kind": st.just(kind),
            "weight_decay": st.sampled_from([0.0, 0.01]),
            "clip": st.sampled_from([None, 0.5]),
            "schedule": st.sampled_from(["constant", "step", "cosine"]),
            "step_every": st.integers(1, 2),
            "warmup": st.sampled_from([0.0, 0.5, 2.0]),
        }
    )
    one = st.fixed_dictionaries(
        {
            "lr": st.sampled_from([RATES.get(kind, 0.01), RATES.get(kind, 0.01) / 3]),
            "dropout": st.sampled_from([0.0, 0.3]),
            "optimizer": optimizer,
            "training": st.fixed_dictionaries({"label_smoothing": st.sampled_from([0.0, 0.1])}).map(augmented.__or__),
        }
    )
    return name, [{**shared, **each, "epochs": EPOCHS} for each in draw(st.lists(one, min_size=2, max_size=3))]


@settings(max_examples=8)
@given(
    case=members_of(),
    random=st.randoms(use_true_random=False),
    threads=st.integers(1, 2),
    precision=st.sampled_from(["float64", "float32"]),
)
def test_a_thawed_member_equals_the_member_alone(
    folder: Path, case: tuple[str, list[dict[str, Any]]], random: Random, threads: int, precision: str
) -> None:
    """Frozen, mixed and thawed at random, in one or two stacks, members have the curves and states they have alone.

    In float32, sums in another order differ by 6e-8 each, which adagrad, rmsprop and adam amplify in weights with small
    gradients: only the curves are compared.
    """
    name, configs = case
    members = [member(number, config(**each)) for number, each in enumerate(configs)]
    if name == "Stackable":
        members = [own(m.number, folder, name, m.config, dropout=configs[m.number]["dropout"]) for m in members]
    with cores(threads):
        runs = in_any_company(members, random, precision)
    for each in members:
        expected = alone(each, precision)
        if precision == "float64":
            assert_same_run(runs[each.number], expected, rtol=1e-9)
        else:
            assert_same_curves(runs[each.number].curve, expected.curve, rtol=1e-5)


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Train populations in `count` stacks, each in its own thread, whatever the size of their networks."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpo.training.cores.parallel.MIN_STEP_FLOPS_PER_THREAD", 1)
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


QUICK = {("Stackable", "float64"), ("Stackable", "float32"), ("Stackable", "bfloat16"), ("Recurrent", "bfloat16")}
CASES = [
    pytest.param(
        name, precision, marks=[] if (name, precision) in QUICK or precision == "float64" else pytest.mark.slow
    )
    for name in (*NETWORKS, *UNSTACKED)
    for precision in ("float64", "float32", "bfloat16")
    if name in NETWORKS or precision != "float32"
]
"""The network "Stackable" has every stacked layer, those of the others included."""


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_freezing_changes_no_bit(folder: Path, name: str, precision: str) -> None:
    """In the same company, freezing after every epoch changes no bit, whatever the precision."""
    stacked = name in NETWORKS
    optimizer = {"kind": "adamw", "weight_decay": 0.01, "clip": 1.0, "schedule": "cosine", "warmup": 1.0}
    made = config(lr=0.02, epochs=EPOCHS, optimizer=optimizer, **{"batch_norm": True, **NETWORKS.get(name, {})})
    members = [
        member(number, made) if name in ("mlp", "cnn") else own(number, folder, name, made)
        for number in range(3 if stacked else 1)
    ]
    runs = whole(members, precision, stacked)
    for number, run in frozen_each_epoch(members, precision, stacked).items():
        assert_same_run(run, runs[number])


def test_the_networks_have_every_stacked_layer(folder: Path) -> None:
    network = build(own(0, folder, "Stackable", config()).config.network, SPLIT.shape, SPLIT.task.outputs, 0)
    assert {type(layer) for layer in network.modules()} >= LAYERS.keys()


def curves_of(members: Sequence[Member], trainer: Trainer) -> dict[int, Curve]:
    """Train one group to its end; return the curves, each from the last time that its member started."""
    found: dict[int, Curve] = {}
    for result in trainer.train(members):
        for number, metrics in result.metrics.items():
            first = result.epoch == members[0].epoch + 1
            found[number] = [metrics] if first else [*found[number], metrics]
    return found


def frozen(members: Sequence[Member]) -> list[Member]:
    """Return the members after their first epoch."""
    with closing(train(members, SPLIT, "float64")) as epochs:
        states = next(epochs).freeze([each.number for each in members])
    return [replace(each, state=states[each.number]) for each in members]


def test_a_thawed_population_that_runs_out_of_memory_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The halves start again from the states, and their members have the curves that they have alone."""
    made = config(epochs=EPOCHS, precision="auto", optimizer={"kind": "momentum"})
    thawed, train_epoch, warnings = frozen([member(number, made) for number in range(4)]), Stack.epoch, []

    def run_out_of_memory(stack: Stack, epoch: int) -> Any:
        if epoch == EPOCHS and len(stack.numbers) > 2:
            raise MemoryError
        return train_epoch(stack, epoch)

    monkeypatch.setattr(Stack, "epoch", run_out_of_memory)
    found = curves_of(thawed, Trainer(SPLIT, "float64", warnings.append))
    assert warnings == ["out of memory with 4 networks at once: continuing with half as many"]
    for each in thawed:
        assert_same_curves(found[each.number], alone(replace(each, state=None)).curve[1:], rtol=1e-9)


def test_thawed_members_that_cannot_be_stacked_train_one_at_a_time(folder: Path) -> None:
    """The first two members of the group could be stacked, and the last two: they were frozen in such stacks."""
    made = config(epochs=EPOCHS, optimizer={"kind": "adam"})
    members = [replace(own(number, folder, "Odd", made), seed=number) for number in range(4)]
    warnings: list[str] = []
    trainer = Trainer(SPLIT, "float64", warnings.append)
    (group,) = trainer.groups([*frozen(members[:2]), *frozen(members[2:])])
    found = curves_of(group, trainer)
    assert [text.endswith("these 4 trials train one at a time") for text in warnings] == [True]
    for each in members:
        assert_same_curves(found[each.number], alone(each).curve[1:], rtol=1e-9)


def test_a_member_that_has_trained_all_epochs_trains_no_more() -> None:
    one = member(0, config(epochs=EPOCHS))
    assert list(train([replace(one, state=alone(one).state)], SPLIT, "float64")) == []


def test_a_state_is_a_copy() -> None:
    """Training that goes on after a freeze does not change the state."""
    one, runs = member(0, config(epochs=2, optimizer={"kind": "adam"})), [Run(), Run()]
    epochs = train([one], SPLIT, "float64")
    runs[0].add(next(epochs), 0)
    next(epochs)
    with closing(train([one], SPLIT, "float64")) as epochs:
        runs[1].add(next(epochs), 0)
    assert_same_run(*runs)


def freezing_of(folder: Path, name: str) -> tuple[bool, list[str]]:
    """Return whether a network can be frozen, and the warnings besides the one that it cannot be stacked."""
    warnings: list[str] = []
    trainer, one = Trainer(SPLIT, "float64", warnings.append), own(0, folder, name, config())
    trainer.groups([one])
    return trainer.can_freeze(one), [text for text in warnings if not text.endswith("one at a time")]


@pytest.mark.parametrize("name", [*UNSTACKED, "Caching", "Stackable"])
def test_networks_that_can_be_frozen(folder: Path, name: str) -> None:
    assert freezing_of(folder, name) == (True, [])


@pytest.mark.parametrize(
    ("name", "loses"),
    [
        ("Counting", "its attribute 'calls'; make it a buffer"),
        ("Remembering", "what training changes besides parameters and buffers; make it a buffer"),
        ("Seeded", "what training changes besides parameters and buffers; make it a buffer"),
    ],
)
def test_a_network_that_changes_more_than_its_state_is_not_frozen(folder: Path, name: str, loses: str) -> None:
    text = f"nets.py:{name}: a frozen trial would lose {loses}; its trials train without a pause"
    assert freezing_of(folder, name) == (False, [text])


def test_a_network_whose_state_cannot_be_loaded_is_not_frozen(folder: Path) -> None:
    can_freeze, (text,) = freezing_of(folder, "Saving")
    assert not can_freeze
    problem = (
        'RuntimeError: Error(s) in loading state_dict for Saving: Unexpected key(s) in state_dict: "_extra_state".'
    )
    assert (
        text == f"nets.py:Saving: a frozen trial's state cannot be loaded ({problem}); its trials train without a pause"
    )
