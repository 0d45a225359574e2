"""Populations: a member's results depend on its settings and seed, never on other members."""

from __future__ import annotations

import dataclasses
import math
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch_reference import KINDS, assert_same_curves, config, curves, made_images, member, plain_curve

from hpo.errors import HpoError
from hpo.studyfile import Config
from hpo.studyfile.metrics import SUMS
from hpo.training.networks.builtin import build
from hpo.training.population import train
from hpo.training.stack import Member

SPLIT = made_images()
CNN = {"kind": "cnn", "conv": [2, 3], "kernel": 3, "padding": 1, "hidden": [8]}
MLP = {"kind": "mlp"}


def varied(number: int, network: dict[str, object], **more: object) -> Config:
    """Return settings of one architecture with different learning rates, weight decays and dropout rates."""
    own = {"lr": 0.02 * (1 + number % 7), "dropout": (number % 5) / 10}
    decay = {"weight_decay": 1e-4 * number, **more.pop("optimizer", {})}  # type: ignore[dict-item]
    return config(**{**own, **network, **more, "optimizer": decay})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", [MLP, CNN], ids=["mlp", "cnn"])
def test_the_curve_equals_plain_torch(kind: str, network: dict[str, object]) -> None:
    """Initial weights, batches, masks, loss, optimizer and evaluation: a plain loop per member gives the same curve.

    Without batch norm: the gradient of a bias before batch norm is only rounding error, which adagrad, rmsprop and adam
    amplify.
    """
    lr = 0.01 if kind in ("adagrad", "rmsprop", "adam", "adamw") else 0.05
    members = [member(n, varied(n, network, lr=lr, optimizer={"kind": kind})) for n in range(3)]
    ours, failed = curves(members, SPLIT)
    assert not failed
    for one in members:
        assert_same_curves(ours[one.number], plain_curve(one, SPLIT), rtol=1e-7)


@pytest.mark.parametrize("network", [MLP, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_curve_equals_plain_torch_with_batch_norm(network: dict[str, object], dropout: float) -> None:
    members = [member(n, varied(n, network, batch_norm=True, dropout=dropout)) for n in range(3)]
    ours, _ = curves(members, SPLIT)
    for one in members:
        assert_same_curves(ours[one.number], plain_curve(one, SPLIT), rtol=1e-7)


@pytest.mark.parametrize("network", [MLP, CNN], ids=["mlp", "cnn"])
def test_a_member_alone_has_the_curve_it_has_among_32(network: dict[str, object]) -> None:
    """Five epochs with dropout and batch norm; with 31 others to the end, or until they are dropped in epoch 2."""
    members = [member(n, varied(n, network, batch_norm=True, epochs=5)) for n in range(32)]
    whole, _ = curves(members, SPLIT)
    for number in (0, 13, 31):
        alone, _ = curves([members[number]], SPLIT)
        assert_same_curves(alone[number], whole[number], rtol=1e-6)
        left, _ = curves(members, SPLIT, drop={2: set(range(32)) - {number}})
        assert_same_curves(left[number], whole[number], rtol=1e-6)
        assert all(len(left[other]) == 2 for other in range(32) if other != number)


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_optimizer_state_stays_with_its_member(kind: str) -> None:
    members = [member(n, varied(n, MLP, lr=0.01, epochs=4, optimizer={"kind": kind})) for n in range(4)]
    whole, _ = curves(members, SPLIT)
    left, _ = curves(members, SPLIT, drop={1: {0}, 2: {2}})
    for number in (1, 3):
        assert_same_curves(left[number], whole[number], rtol=1e-6)
    assert [len(left[number]) for number in range(4)] == [1, 4, 2, 4]


def test_the_order_of_members_does_not_matter() -> None:
    members = [member(n, varied(n, CNN, batch_norm=True)) for n in range(6)]
    whole, _ = curves(members, SPLIT)
    shuffled = random.Random(1).sample(members, 6)
    again, _ = curves(shuffled, SPLIT)
    for number in range(6):
        assert_same_curves(again[number], whole[number], rtol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_the_same_population_twice_gives_the_same_curves(precision: str) -> None:
    members = [member(n, varied(n, CNN, batch_norm=True)) for n in range(4)]
    assert curves(members, SPLIT, precision) == curves(members, SPLIT, precision)


def test_different_members_have_different_curves() -> None:
    same = config(dropout=0.3)
    found, _ = curves([member(n, same) for n in range(3)], SPLIT)
    assert len({curve[0]["train_loss"] for curve in found.values()}) == 3


def test_the_loss_is_the_sum_over_members_not_their_mean() -> None:
    """A mean would divide each step by the number of members, so that larger populations would learn more slowly."""
    same = config(lr=0.2, epochs=4)
    alone, _ = curves([Member(0, same, 77)], SPLIT)
    for count in (4, 16):
        together, _ = curves([Member(n, same, 77) for n in range(count)], SPLIT)
        for number in range(count):
            assert_same_curves(together[number], alone[0], rtol=1e-6)


@pytest.mark.parametrize("network", [MLP, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
def test_a_member_that_diverges_fails_alone(network: dict[str, object], batch_norm: bool, precision: str) -> None:
    """Gradients of 1e30 become infinite, then NaN, in the stack; the other members' numbers do not change."""
    members = [member(n, varied(n, network, batch_norm=batch_norm, epochs=4)) for n in range(5)]
    wild = member(2, varied(2, network, batch_norm=batch_norm, epochs=4, lr=1e300 if precision == "float64" else 1e30))
    among, failed = curves([*members[:2], wild, *members[3:]], SPLIT, precision)
    without, none = curves([*members[:2], *members[3:]], SPLIT, precision)
    assert not none
    assert failed.keys() == {2}
    assert len(among[2]) < 4
    epoch = len(among[2]) + 1
    name = failed[2].split(" is ")[0].removeprefix("diverged: ")
    assert name in ("train_loss", "val_loss")
    assert failed[2].endswith(f"after epoch {epoch}")
    assert failed[2].split(" is ")[1].split()[0] in ("nan", "inf")
    for number in (0, 1, 3, 4):
        assert_same_curves(among[number], without[number], rtol=1e-6 if precision == "float64" else 0.05)


def test_all_members_diverge() -> None:
    members = [member(n, config(lr=1e300)) for n in range(3)]
    results = list(train(members, SPLIT, "float64"))
    assert set().union(*(result.failed for result in results)) == {0, 1, 2}
    assert len(results) < 3 or not results[-1].metrics


def test_training_ends_when_no_member_remains() -> None:
    epochs = train([member(n, config(epochs=9)) for n in range(3)], SPLIT, "float64")
    assert next(epochs).metrics.keys() == {0, 1, 2}
    assert epochs.send({0, 99}).metrics.keys() == {1, 2}
    with pytest.raises(StopIteration):
        epochs.send({1, 2})


def test_the_generator_can_be_closed_early() -> None:
    epochs = train([member(n, config(epochs=9)) for n in range(3)], SPLIT, "float64")
    next(epochs)
    epochs.close()


def test_the_result_of_an_epoch() -> None:
    found, _ = curves([member(0, config(epochs=4, lr=0.3))], SPLIT)
    for values in found[0]:
        assert tuple(values) == SUMS["classification"]
        assert all(type(value) is float and math.isfinite(value) for value in values.values())
        assert 0 <= values["val_accuracy"] <= 1
        assert 0 <= values["train_accuracy"] <= 1
    assert found[0][-1]["train_loss"] < found[0][0]["train_loss"]


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("network", [MLP, CNN], ids=["mlp", "cnn"])
def test_a_last_batch_of_one_example_is_skipped(batch_norm: bool, network: dict[str, object]) -> None:
    """One example has no variance; a study's trials train on the same batches with and without batch norm."""
    split = made_images(train=33)
    one = member(0, varied(0, network, batch_norm=batch_norm))
    ours, failed = curves([one], split)
    assert not failed
    assert_same_curves(ours[0], plain_curve(one, split), rtol=1e-7)


def test_batches_of_one_example() -> None:
    """With batch size 1, networks train; with batch norm, they raise an error."""
    split = made_images(train=20)
    one = member(0, config(batch_size=1, lr=0.02))
    ours, failed = curves([one], split)
    assert not failed
    assert_same_curves(ours[0], plain_curve(one, split), rtol=1e-7)
    with pytest.raises(HpoError, match=r"^layer 'layers\.2': a batch of one value cannot be normalized"):
        next(train([member(0, config(batch_size=1, batch_norm=True))], split, "float64"))


def test_batch_sizes_of_all_examples_and_above() -> None:
    for size in (70, 1000):
        one = member(0, config(batch_size=size))
        assert_same_curves(curves([one], SPLIT)[0][0], plain_curve(one, SPLIT), rtol=1e-7)


def test_validation_in_several_batches() -> None:
    """With more validation examples than one batch, the means are over all of them."""
    split = made_images(train=20, validation=1203)
    one = member(0, config(epochs=1))
    assert_same_curves(curves([one], split)[0][0], plain_curve(one, split), rtol=1e-7)


@pytest.mark.parametrize("network", [MLP, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("batch_norm", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_bfloat16_learns_like_float32(network: dict[str, object], batch_norm: bool) -> None:
    """bfloat16 rounds to 8 bits (0.4%); errors of hundreds of steps partly cancel. Limits: the mean over 8 members
    of the last losses within 10%, of the accuracies within 3 points, a few times what was seen (2%, 0.6 points)."""
    split = made_images(train=300, validation=200)
    members = [member(n, varied(n, network, batch_norm=batch_norm, epochs=6)) for n in range(8)]
    low, _ = curves(members, split, "bfloat16")
    full, _ = curves(members, split, "float32")
    means = {
        metric: [sum(each[n][-1][metric] for n in range(8)) / 8 for each in (low, full)]
        for metric in SUMS["classification"]
    }
    for metric, (ours, expected) in means.items():
        limit = 0.03 if "accuracy" in metric else 0.1 * expected
        assert abs(ours - expected) <= limit, metric
    assert full[0][-1]["val_loss"] < full[0][0]["val_loss"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_float32_is_close_to_float64(precision: str) -> None:
    three = [member(n, varied(n, CNN, batch_norm=True, epochs=2)) for n in range(3)]
    ours, expected = curves(three, SPLIT, precision)[0], curves(three, SPLIT)[0]
    for number in range(3):
        for metric in ("train_loss", "val_loss"):
            tolerance = {"float32": 1e-4, "bfloat16": 0.1, "float64": 0.0}[precision]
            assert ours[number][0][metric] == pytest.approx(expected[number][0][metric], rel=tolerance)


@pytest.fixture
def two_cores() -> None:
    """Use two threads, whatever the machine has."""
    torch.set_num_threads(2)


@pytest.mark.usefixtures("two_cores")
def test_members_in_several_threads_have_the_curves_they_have_alone() -> None:
    """Networks large enough for two stacks; the first loses all members, a member of the second diverges."""
    own = {"hidden": [300, 300], "batch_size": 64, "batch_norm": True, "epochs": 4}
    members = [member(n, varied(n, own, **({"lr": 1e300} if n == 6 else {}))) for n in range(8)]
    whole, failed = curves(members, SPLIT)
    left, _ = curves(members, SPLIT, drop={1: {0, 1, 2, 3}, 2: {4}})
    assert torch.get_num_threads() == 2
    assert failed.keys() == {6}
    assert [len(left[n]) for n in (0, 3, 4, 5, 7)] == [1, 1, 2, 4, 4]
    for number in (0, 5, 7):
        alone, _ = curves([members[number]], SPLIT)
        assert_same_curves(whole[number], alone[number], rtol=1e-6)
        assert_same_curves(left[number], alone[number][: len(left[number])], rtol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("network", [MLP, CNN], ids=["mlp", "cnn"])
def test_the_curve_on_cuda_equals_that_on_the_cpu(network: dict[str, object]) -> None:
    """Masks and batches are bitwise the same; float64 results differ in the order of sums only."""
    members = [member(n, varied(n, network, batch_norm=True)) for n in range(5)]
    moved = {
        field.name: value.cuda() if isinstance(value := getattr(SPLIT, field.name), torch.Tensor) else value
        for field in dataclasses.fields(SPLIT)
    }
    ours, _ = curves(members, dataclasses.replace(SPLIT, **moved), drop={1: {1, 3}})
    expected, _ = curves(members, SPLIT, drop={1: {1, 3}})
    for number in range(5):
        assert_same_curves(ours[number], expected[number], rtol=1e-6)


PRECISIONS = {"float64": 1e-12, "float32": 1e-6, "bfloat16": 0.01}
"""Relative tolerances of a plain module's loss: another order of rounding; bfloat16 has 8 bits of precision."""


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", [MLP, CNN], ids=["mlp", "cnn"])
def test_a_members_weights_load_into_the_plain_module(network: dict[str, object], precision: str) -> None:
    """After every epoch, also after others were dropped, the plain module has the losses of the stack."""
    members = [member(n, varied(n, network, batch_norm=True, precision=precision, lr=0.05)) for n in range(4)]
    epochs = train(members, SPLIT, precision)
    left, result = [0, 1, 2, 3], next(epochs)
    for leaves in ({0}, {2}, {1, 3}):
        assert sorted(result.metrics) == left
        for number, state in result.states(left).items():
            module = build(members[number].config.network, SPLIT.shape, SPLIT.task.outputs, seed=0)
            module = module.double() if precision == "float64" else module
            module.load_state_dict(state)
            with torch.no_grad():
                scores = module.eval()(SPLIT.validation.to(next(module.parameters()).dtype))
            loss = torch.nn.functional.cross_entropy(scores.double(), SPLIT.validation_targets).item()
            assert loss == pytest.approx(result.metrics[number]["val_loss"], rel=PRECISIONS[precision])
        left = [number for number in left if number not in leaves]
        result = epochs.send(leaves) if left else result


def test_states_are_copies_for_requested_members_until_the_next_epoch() -> None:
    members = [member(n, varied(n, MLP)) for n in range(3)]
    epochs = train(members, SPLIT, "float64")
    first = next(epochs)
    early = first.states([1])
    assert early.keys() == {1}
    kept = {name: value.clone() for name, value in early[1].items()}
    with pytest.raises(KeyError, match=r"\[7\]"):
        first.states([1, 7])
    second = epochs.send({0})
    assert all(value.equal(kept[name]) for name, value in early[1].items())
    assert not second.states([1])[1]["layers.1.weight"].equal(kept["layers.1.weight"])
    with pytest.raises(KeyError, match=r"\[0\]"):
        second.states([0])
    with pytest.raises(KeyError, match=r"\[1\]"):
        first.states([1])
    epochs.close()
    with pytest.raises(KeyError, match=r"\[1\]"):
        second.states([1])


def test_populations_in_several_threads_do_not_disturb_each_other() -> None:
    """torch.fx changes how modules are called in the whole process while it traces one."""

    def trained(thread: int) -> list[float]:
        members = [member(n, varied(n, CNN if thread % 2 else MLP, epochs=1)) for n in range(2)]
        found: list[float] = []
        for _ in range(5):
            (result,) = train(members, SPLIT, "float64")
            assert result.failed == {}
            found += [result.metrics[n]["val_loss"] for n in range(2)]
        return found

    alone = [trained(thread) for thread in range(2)]
    with ThreadPoolExecutor(6) as pool:
        for thread, found in enumerate(pool.map(trained, range(6))):
            assert found == pytest.approx(alone[thread % 2])
