"""Trainer: groups of members, smaller populations when memory is full, training to the end, early stopping."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Collection, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_reference import assert_same_curves, config, curves, made_images, member

from hpo.errors import HpoError, InterruptionError
from hpo.training import trainer
from hpo.training.devices import is_out_of_memory
from hpo.training.early_stopping import has_stopped_improving
from hpo.training.networks.builtin import build
from hpo.training.optimizers.optimizer import FrozenOptimizer
from hpo.training.population import EpochResult
from hpo.training.stack import Member, MemberState
from hpo.training.trainer import Outcome, Trainer

SPLIT = made_images()


def groups(*configs: dict[str, Any]) -> list[list[int]]:
    members = [member(number, config(**each)) for number, each in enumerate(configs)]
    trainer = Trainer(SPLIT, "float32", pytest.fail)
    return [[each.number for each in group] for group in trainer.groups(members[::-1])]


def test_members_that_differ_in_per_member_settings_are_one_group() -> None:
    adam = {"kind": "adam"}
    own: list[dict[str, Any]] = [
        {"lr": 0.1, "optimizer": adam},
        {"lr": 0.2, "optimizer": adam},
        {"dropout": 0.3, "optimizer": adam},
        {"dropout": [0.3, 0.1], "optimizer": adam},
        {"init": "xavier", "optimizer": adam},
        {"init": 0.01, "optimizer": adam},
        {"optimizer": {**adam, "weight_decay": 0.1, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3}},
        {"optimizer": {**adam, "schedule": "cosine", "warmup": 0.5, "clip": 1.0}},
        {"optimizer": {**adam, "schedule": "step", "step_every": 2}},
        {"optimizer": adam, "training": {"label_smoothing": 0.1, "patience": 9}},
    ]
    assert groups(*own) == [list(range(10))]
    members = [member(number, config(**each)) for number, each in enumerate(own)]
    together, _ = curves(members, SPLIT)
    assert all(len(curve) == 3 for curve in together.values())


SHAPES: list[dict[str, Any]] = [
    {"hidden": [12]},
    {"activation": "tanh"},
    {"batch_norm": True},
    {"kind": "cnn", "conv": [2], "kernel": 3},
    {"optimizer": {"kind": "adam"}},
    {"batch_size": 7},
    {"training": {"flip": 0.5}},
    {"training": {"shift": 1}},
]


def test_networks_of_all_shapes_are_one_group_unless_each_needs_its_own_time() -> None:
    assert groups({}, *SHAPES) == [list(range(9))]
    members = [member(number, config(**each)) for number, each in enumerate([*SHAPES, *SHAPES])]
    apart = Trainer(SPLIT, "float32", pytest.fail, apart=True).groups(members)
    assert [[each.number for each in group] for group in apart] == [[n, n + 8] for n in range(8)]


@pytest.mark.parametrize("threads", [1, 2])
def test_members_of_one_population_train_as_alone_whatever_their_shapes(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.training.cores.parallel.MIN_STEP_FLOPS_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    members = [member(number, config(**{"lr": 0.01, "epochs": 1, **each})) for number, each in enumerate([*SHAPES, {}])]
    together, _ = curves(members, SPLIT)
    for each in members:
        alone, _ = curves([each], SPLIT)
        assert_same_curves(together[each.number], alone[each.number], rtol=1e-9)


@pytest.mark.parametrize("other", [{"epochs": 4}, {"precision": "float32"}])
def test_members_of_different_epochs_or_precisions_are_two_groups(other: dict[str, Any]) -> None:
    assert groups({}, other, {}, other) == [[0, 2], [1, 3]]
    assert groups(other, {}) == [[0], [1]]


def test_members_that_cannot_be_trained_fail_without_the_others() -> None:
    members = [member(0, config(batch_norm=True, batch_size=1)), member(1, config(hidden=[3]))]
    found, failed = curves(members, SPLIT)
    assert failed.keys() == {0}
    assert "a batch of one value cannot be normalized" in failed[0]
    assert not found[0]
    assert len(found[1]) == 3
    with pytest.raises(HpoError, match="cannot be normalized"):
        curves(members[:1], SPLIT)


def test_the_precision_is_that_of_the_members_or_of_auto() -> None:
    found = {}
    for precision, auto in (("auto", "float64"), ("float64", "float32"), ("float32", "float64")):
        members = [member(0, config(precision=precision))]
        found[precision] = [r.metrics[0]["train_loss"] for r in Trainer(SPLIT, auto, pytest.fail).train(members)]
    assert found["auto"] == found["float64"] != found["float32"]


def test_other_errors_are_not_mistaken_for_out_of_memory() -> None:
    members = [
        member(0, config(epochs=3)),
        Member(1, config(epochs=3), 0, state=MemberState(1, {}, FrozenOptimizer([], {}))),
    ]
    with pytest.raises(Exception, match="Missing key"):  # members of two epochs in one population: a programming error
        next(Trainer(SPLIT, "float32", pytest.fail).train(members))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())


OUT_OF_MEMORY = """
import json, resource, sys
import torch
from torch_reference import config, curves, made_images, member
from hpo.errors import HpoError
from hpo.training.trainer import Trainer
from hpo.training.speed.choices import choose_precision

def mib(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024

split = made_images(train=40, validation=20)
members = [member(n, config(hidden=[1000, 3000], epochs=2, lr=0.01)) for n in range(6)]
curves(members[:2], split)
before = mib("VmSize")
whole, _ = curves(members, split)
needed = mib("VmPeak") - before
limit = int((mib("VmSize") + 0.75 * needed) * 2**20)
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

warnings, found, epochs = [], {n: [] for n in range(6)}, []
trainer = Trainer(split, "float32", warnings.append)
for result in trainer.train(members):
    epochs.append([result.epoch, sorted(result.metrics)])
    for number, metrics in result.metrics.items():
        found[number] = [*found[number][: result.epoch - 1], metrics]

huge = [member(n, config(hidden=[30000, 30000])) for n in range(3)]
try:
    next(trainer.train(huge))
    alone = "fits"
except HpoError as error:
    alone = str(error)
chosen = choose_precision(huge, split)
summary = {"warnings": warnings, "epochs": epochs, "whole": whole, "found": found, "alone": alone, "chosen": chosen}
print(json.dumps(summary))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory with RLIMIT_AS, and measures it in /proc")
def test_out_of_memory_halves_the_population() -> None:
    """With a memory limit of three quarters of what six members need, two halves train, with the same curves."""
    # One thread and one malloc arena, so that the process reserves the same memory in each run.
    limits = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent,
        env={**os.environ, **limits, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["warnings"] == ["out of memory with 6 networks at once: continuing with half as many"]
    assert result["epochs"] == [[epoch, half] for half in ([0, 1, 2], [3, 4, 5]) for epoch in (1, 2)]
    for number, curve in result["whole"].items():
        for ours, expected in zip(result["found"][number], curve, strict=True):
            assert ours == pytest.approx(expected, rel=1e-6)
    assert (
        result["alone"] == "a single network does not fit into the memory of cpu: use a smaller network or batch size"
    )
    assert result["chosen"] == ["float32", 1.0]


def run(
    configs: list[dict[str, Any]], stop_after: int | None = None, with_weights: bool = False
) -> tuple[dict[int, Outcome], list[tuple[int, list[int]]]]:
    stop, epochs = threading.Event(), []

    def note(result: EpochResult) -> None:
        epochs.append((result.epoch, sorted(result.metrics)))
        if len(epochs) == stop_after:
            stop.set()

    members = [member(number, config(**each)) for number, each in enumerate(configs)]
    trainer = Trainer(SPLIT, "float64", pytest.fail)
    return trainer.run(
        members, metric="val_loss", minimized=True, stop=stop, with_weights=with_weights, on_epoch=note
    ), epochs


def test_members_of_any_architecture_are_trained_to_their_end() -> None:
    shapes: list[dict[str, Any]] = [{}, {"hidden": [5], "epochs": 2}, {"lr": 0.2}, {"lr": 1e200}]
    found, epochs = run(shapes, with_weights=True)
    assert epochs[-2:] == [(1, [1]), (2, [1])]
    for number in (0, 2):
        alone, _ = curves([member(number, config(**shapes[number]))], SPLIT)
        for metric, values in found[number].curve.items():
            assert values == pytest.approx([epoch[metric] for epoch in alone[number]], rel=1e-9)
        assert found[number].failed is None
    assert [len(found[number].curve.get("val_loss", [])) for number in range(4)] == [3, 2, 3, 0]
    assert "diverged" in (found[3].failed or "")
    assert found[3].state is None
    module = build(config().network, SPLIT.shape, SPLIT.task.outputs, seed=0).double()
    module.load_state_dict(found[0].state or {})
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(module.eval()(SPLIT.validation.double()), SPLIT.validation_targets)
    assert loss.item() == pytest.approx(found[0].curve["val_loss"][-1], rel=1e-12)
    assert run(shapes[:1])[0][0].state is None


UNSTEADY = {"lr": 3.0, "epochs": 12}
"""Settings with a validation loss that goes up and down."""


def test_a_member_is_trained_until_early_stopping() -> None:
    patiences = [1, 2, 3, None]
    shapes = [{**UNSTEADY, "training": {"patience": patience}} for patience in patiences]
    found, epochs = run(shapes, with_weights=True)
    lengths = [len(found[number].curve["val_loss"]) for number in range(4)]
    for number, patience in enumerate(patiences):
        whole = [epoch["val_loss"] for epoch in curves([member(number, config(**UNSTEADY))], SPLIT)[0][number]]
        ends = [e for e in range(1, 13) if patience and min(whole[:e]) not in whole[max(0, e - patience) : e]]
        assert lengths[number] == min([12, *ends])
        assert found[number].curve["val_loss"] == pytest.approx(whole[: lengths[number]], rel=1e-9)
        module = build(config().network, SPLIT.shape, SPLIT.task.outputs, seed=0).double()
        module.load_state_dict(found[number].state or {})
        with torch.no_grad():
            scores = module.eval()(SPLIT.validation.double())
        loss = torch.nn.functional.cross_entropy(scores, SPLIT.validation_targets).item()
        assert loss == pytest.approx(found[number].curve["val_loss"][-1], rel=1e-12)
    assert min(lengths) < 12
    assert [len(numbers) for _, numbers in epochs] == [sum(length > e for length in lengths) for e in range(12)]


def test_ended_members_stay_ended_when_the_population_is_made_smaller() -> None:
    """After a simulated out-of-memory error in epoch 5, halves start again, with members that had ended."""

    class Small(Trainer):
        def train(self, members: Sequence[Member]) -> Generator[EpochResult, Collection[int], None]:
            if len(members) < 4:
                yield from super().train(members)
                return
            epochs = super().train(members)
            result = next(epochs)
            while result.epoch < 5:
                result = epochs.send((yield result))
            for part in (members[:2], members[2:]):
                yield from super().train(part)

    members = [
        member(n, config(**UNSTEADY, training={"patience": 1 + n % 3, "precision": "float64"})) for n in range(4)
    ]
    stop = threading.Event()
    whole = Trainer(SPLIT, "float64", pytest.fail).run(members, metric="val_loss", minimized=True, stop=stop)
    halved = Small(SPLIT, "float64", pytest.fail).run(members, metric="val_loss", minimized=True, stop=stop)
    lengths = [len(whole[number].curve["val_loss"]) for number in range(4)]
    assert min(lengths) < 5 <= max(lengths)
    for number in range(4):
        assert halved[number].curve["val_loss"] == pytest.approx(whole[number].curve["val_loss"], rel=1e-9)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stop_ends_training_without_a_result(stop_after: int) -> None:
    with pytest.raises(InterruptionError, match="stopped"):
        run([{}, {"epochs": 4}], stop_after)


def test_a_stop_in_the_last_epoch_has_no_effect() -> None:
    found, epochs = run([{}], stop_after=3)
    assert epochs[-1] == (3, [0])
    assert len(found[0].curve["val_loss"]) == 3


@pytest.mark.parametrize(
    ("values", "over"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.5], False),
        ([0.5, 0.4, 0.4], True),
        ([0.5, 0.5, 0.5], True),  # an equal value is no improvement
        ([0.5, 0.4, 0.6], False),
        ([0.5, 0.6, 0.55], False),
        ([0.5, 0.6, 0.55, 0.6], True),
        ([0.5, 0.4, 0.45, 0.49], True),  # better than the last value, but not than the best
    ],
)
def test_two_epochs_without_improvement(values: list[float], over: bool) -> None:
    assert has_stopped_improving(2, values, minimized=False) == over
    assert has_stopped_improving(2, [-value for value in values], minimized=True) == over
    assert not has_stopped_improving(None, values, minimized=False)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 6))
def test_a_trial_ends_patience_epochs_after_its_first_best_value(values: list[int], patience: int) -> None:
    best = values.index(max(values))
    assert has_stopped_improving(patience, values, minimized=False) == (len(values) - 1 - best >= patience)


def test_shapes_that_do_not_fit_together_train_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of 5 units does not even fit alone: it fails, and the others do not."""
    plain = trainer.train

    def limited(members: Sequence[Member], *rest: Any) -> Generator[EpochResult, Collection[int], None]:
        if len({tuple(each.config.network.hidden) for each in members}) > 1 or members[0].config.network.hidden == [5]:
            raise MemoryError
        yield from plain(members, *rest)

    monkeypatch.setattr(trainer, "train", limited)
    members = [member(number, config(hidden=hidden)) for number, hidden in enumerate(([4], [5], [4, 4], [4]))]
    notes: list[str] = []
    found = Trainer(SPLIT, "float64", notes.append).run(
        members, metric="val_loss", minimized=True, stop=threading.Event()
    )
    reason = "a single network does not fit into the memory of cpu: use a smaller network or batch size"
    assert [found[number].failed for number in range(4)] == [None, reason, None, None]
    assert [len(found[number].curve.get("val_loss", [])) for number in range(4)] == [3, 0, 3, 3]
    several = "out of memory with networks of several shapes at once: continuing with one shape at a time"
    assert notes == [several, f"1 trial failed: {reason}"]
