"""Precision and size of stacks are chosen by measured speed, whatever stalls; they do not change results."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch_reference import assert_same_curves, config, made_images, member

from hpo.training import trainer as trainer_module
from hpo.training.grouping import stack_key
from hpo.training.population import train
from hpo.training.speed.choices import (
    LEAD,
    MAX_PAIRS,
    MIN_SPEEDUP,
    StackSize,
    choose_precision,
    choose_stack_size,
    time_ways,
)
from hpo.training.speed.timing import Run
from hpo.training.stack import Member
from hpo.training.trainer import Trainer

SPLIT = made_images(train=40)
LONG: dict[str, Any] = {"epochs": 300, "lr": 1e-3}
"""Settings of a training that is long enough to measure stacks: three steps an epoch."""


@pytest.mark.parametrize("more", [{}, {"batch_size": 1}, {"lr": 1e30}, {"batch_size": 1000}, {"epochs": 1}])
def test_the_precision_depends_on_the_speedup(more: dict[str, float]) -> None:
    """Also for settings that cannot be timed as they are: one epoch, batch size 1, a diverging learning rate."""
    settings = config(precision="auto", **more)  # type: ignore[arg-type]
    precision, ratio = choose_precision([member(n, settings) for n in range(3)], SPLIT)
    assert precision == ("bfloat16" if ratio >= MIN_SPEEDUP else "float32")
    assert 0.01 < ratio < 100


def set_seconds(seconds: Callable[[dict[str, Any], int], float], monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Replace the durations of epochs by `seconds(arguments of train, epochs timed before)`; return the timed runs."""
    timed: list[Run] = []

    def time_epoch(run: Run) -> float:
        timed.append(run)
        if timed.count(run) == 1:  # warms up
            next(run.epochs)
        return seconds(inspect.getgeneratorlocals(run.epochs), timed.count(run) - 2)

    monkeypatch.setattr(Run, "time_epoch", time_epoch)
    return timed


@pytest.mark.parametrize(
    ("float32", "stalls", "precision", "pairs"),
    [
        (2.0, [], "bfloat16", LEAD),
        (0.5, [], "float32", LEAD),
        (2.0, [("bfloat16", 1)], "bfloat16", LEAD + 2),  # the pair alone says that bfloat16 is slower
        (1.0, [("float32", 0), ("float32", 2)], "float32", LEAD + 4),
        (1.22, [("bfloat16", n) for n in range(1, MAX_PAIRS - 1, 2)], "bfloat16", MAX_PAIRS),
    ],
)
def test_stalls_do_not_decide(
    float32: float, stalls: list[tuple[str, int]], precision: str, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch takes `float32` seconds, or 1 s in bfloat16, and 100 s more in a stall."""

    def seconds(arguments: dict[str, Any], number: int) -> float:
        kind = arguments["precision"]
        return (float32 if kind == "float32" else 1.0) + 100 * ((kind, number) in stalls)

    timed = set_seconds(seconds, monkeypatch)
    chosen, _ = choose_precision([member(0, config(precision="auto"))], SPLIT)
    assert chosen == precision
    assert len(timed) == 2 * (1 + pairs)


@pytest.mark.parametrize(
    ("step_s", "chosen"),
    [
        ({1: 8, 2: 5, 3: 4, 6: 3}, StackSize(6, 6)),
        ({1: 8, 2: 5, 3: 6, 6: 1}, StackSize(2, 6, 1.2, 3)),
        ({1: 4, 2: 4.1, 3: 4.5, 6: 5}, StackSize(2, 6, 4.5 / 4.1, 3)),  # 2.5% are no reason for smaller stacks
        ({1: 1, 2: 2}, StackSize(1, 6, 2, 2)),
    ],
)
def test_stacks_grow_until_they_are_slower(
    step_s: dict[int, float], chosen: StackSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`step_s` has the seconds of a member's epoch by the size of its stack; each pair of chunks is equal work."""

    def seconds(arguments: dict[str, Any], number: int) -> float:
        (size,) = arguments["stack_sizes"].values()
        assert len(arguments["members"]) == 2 * size, "two cores"
        return step_s[size] * len(arguments["members"])

    set_seconds(seconds, monkeypatch)
    monkeypatch.setattr("hpo.training.cores.parallel.MIN_STEP_FLOPS_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    found = choose_stack_size(member(0, config()), 12, SPLIT, "float64")
    assert found == pytest.approx(chosen)


def test_a_size_that_does_not_fit_into_memory_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(arguments: dict[str, Any], number: int) -> float:
        if max(arguments["stack_sizes"].values()) > 2:
            raise MemoryError
        return 1.0

    set_seconds(seconds, monkeypatch)
    assert choose_stack_size(member(0, config()), 8, SPLIT, "float64") == StackSize(2, 8, 1.0, 4)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_size_of_stacks_changes_no_result(size: int) -> None:
    settings = [{"hidden": [12]}, {"hidden": [9, 5]}, {"batch_norm": True, "dropout": 0.3}]
    members = [member(n, config(**settings[n % 3])) for n in range(9)]  # type: ignore[arg-type]

    def curves(stack_size: int | None) -> dict[int, list[dict[str, float]]]:
        found: dict[int, list[dict[str, float]]] = {each.number: [] for each in members}
        sizes = {} if stack_size is None else {stack_key(each.config): stack_size for each in members}
        epochs = train(members, SPLIT, "float64", stack_sizes=sizes)
        result = next(epochs)
        assert stack_size is None or result.stacks >= 9 / stack_size
        while result is not None:
            for number, metrics in result.metrics.items():
                found[number].append(metrics)
            try:
                result = epochs.send({0, 4} if result.epoch == 1 else set())
            except StopIteration:
                break
        return found

    usual, other = curves(None), curves(size)
    for number, curve in usual.items():
        assert len(curve) == (1 if number in (0, 4) else 3)
        assert_same_curves(other[number], curve, rtol=1e-9)


def test_a_long_training_measures_the_stacks_of_each_kind_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[bool, int]] = []

    def choose(one: Member, population: int, *more: Any) -> StackSize:
        measured.append((one.config.network.batch_norm, population))
        return StackSize(2, 6, 1.25, 3) if one.config.network.batch_norm else StackSize(6, 6)

    monkeypatch.setattr(trainer_module, "choose_stack_size", choose)
    notes: list[str] = []
    trainer = Trainer(SPLIT, "float64", pytest.fail, note=notes.append)
    members = [member(n, config(batch_norm=n > 5, **LONG)) for n in range(12)]
    stacks = [next(trainer.train(part)).stacks for part in (members, members[3:9])]
    assert measured == [(False, 6), (True, 6)]
    assert stacks == [1 + 3, 1 + 2]
    assert notes == ["stacks of 2 trials: 1.25 times as fast as stacks of 3 here"]


@pytest.mark.parametrize(("apart", "count", "more"), [(False, 6, {"epochs": 20}), (True, 6, {}), (False, 1, {})])
def test_stacks_are_not_measured(
    apart: bool, count: int, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a short training, where the trials' times are results, and for a single trial."""
    monkeypatch.setattr(trainer_module, "choose_stack_size", pytest.fail)
    trainer = Trainer(SPLIT, "float64", pytest.fail, apart=apart, note=pytest.fail)
    assert next(trainer.train([member(n, config(**{**LONG, **more})) for n in range(count)])).epoch == 1


def test_the_times_of_all_ways_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [member(n, config()) for n in range(4)]
    monkeypatch.setattr("hpo.training.speed.choices.choose_stack_size", lambda *given: StackSize(1, 4, 1.1, 2))
    ways = time_ways(members, SPLIT, ["float32", "float64"], stacks=True)
    sizes = (None, 1, 4)
    assert [(way.precision, way.stack_size) for way in ways] == [(p, n) for p in ("float32", "float64") for n in sizes]
    assert all(len(way.seconds) == 8 and min(way.seconds) > 0 for way in ways)
    alone = time_ways(members, SPLIT, ["float32"], stacks=False)
    assert [way.stack_size for way in alone] == [None]
