"""Learning rates of each step against torch.optim.lr_scheduler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch_reference import torch_plateau, torch_schedulers

from hpo.studyfile import OptimizerSettings
from hpo.training.optimizers.schedules import Plateau, is_scheduled, learning_rates

PLAIN = OptimizerSettings(lr=0.3)


def rates(own: OptimizerSettings, epochs: int, steps: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.concatenate([learning_rates(own, epoch, epochs, steps) for epoch in range(1, epochs + 1)])


def torch_rates(own: OptimizerSettings, epochs: int, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], own.lr)
    by_step, by_epoch = torch_schedulers(optimizer, own, epochs, steps)
    found = []
    for _ in range(epochs):
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            for scheduler in by_step:
                scheduler.step()
        for scheduler in by_epoch:
            scheduler.step()
    return found


@settings(max_examples=40)
@given(
    st.sampled_from(["constant", "step", "cosine"]),
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(0, 15),
    st.integers(1, 5),
    st.floats(0.01, 0.99),
)
def test_learning_rates_equal_torch_lr_scheduler(
    kind: str, epochs: int, steps: int, warmup: int, every: int, factor: float
) -> None:
    own = OptimizerSettings.model_validate(
        {"lr": 0.3, "schedule": kind, "warmup": float(warmup), "step_every": every, "step_factor": factor}
    )
    np.testing.assert_allclose(rates(own, epochs, steps), torch_rates(own, epochs, steps), rtol=1e-7, atol=1e-15)


@settings(max_examples=40)
@given(
    st.integers(1, 12),
    st.integers(1, 30),
    st.sampled_from([0.0, 0.1, 0.3, 0.77, 1.0]),
    st.floats(1, 50),
    st.floats(1, 1e5),
)
def test_onecycle_equals_torch(epochs: int, steps: int, start: float, first: float, last: float) -> None:
    assume(start * epochs * steps - 1 != 0 and start < 1)  # torch divides by the lengths of both parts
    own = OptimizerSettings(lr=0.3, schedule="onecycle", pct_start=start, div_factor=first, final_div_factor=last)
    np.testing.assert_allclose(rates(own, epochs, steps), torch_rates(own, epochs, steps), rtol=1e-7, atol=1e-15)


@pytest.mark.parametrize(("epochs", "steps", "start"), [(1, 1, 1.0), (5, 2, 0.1), (1, 2, 0.5)])
def test_onecycle_begins_at_its_peak_where_no_step_is_left_to_rise(epochs: int, steps: int, start: float) -> None:
    own = OptimizerSettings(lr=0.3, schedule="onecycle", pct_start=start)
    assert rates(own, epochs, steps)[0] == 0.3


@settings(max_examples=40)
@given(st.lists(st.sampled_from([1.0, 0.99995, 0.9, 0.5, 2.0]), max_size=30), st.integers(0, 4), st.floats(0.01, 0.99))
def test_plateaus_equal_torch(losses: list[float], patience: int, factor: float) -> None:
    own = OptimizerSettings(lr=1e-6, schedule="plateau", plateau_patience=patience, plateau_factor=factor)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], own.lr)
    scheduler, plateau = torch_plateau(optimizer, own), Plateau(own.lr)
    for loss in losses:
        scheduler.step(loss)
        plateau = plateau.after(loss, own)
        assert plateau == Plateau(optimizer.param_groups[0]["lr"], scheduler.best, scheduler.num_bad_epochs)


def test_a_warm_up_may_end_within_an_epoch_or_a_step() -> None:
    np.testing.assert_allclose(rates(PLAIN.model_copy(update={"warmup": 0.5}), 1, 4) / 0.3, [0.5, 1, 1, 1])
    np.testing.assert_allclose(rates(PLAIN.model_copy(update={"warmup": 0.625}), 1, 4) / 0.3, [0.4, 0.8, 1, 1])
    np.testing.assert_allclose(rates(PLAIN.model_copy(update={"warmup": 0.01}), 1, 4) / 0.3, [1, 1, 1, 1])


def test_a_warm_up_longer_than_the_training_never_reaches_the_rate() -> None:
    np.testing.assert_allclose(
        rates(PLAIN.model_copy(update={"warmup": 4.0}), 2, 2) / 0.3, [1 / 8, 2 / 8, 3 / 8, 4 / 8]
    )


@pytest.mark.parametrize(
    ("change", "scheduled"),
    [({}, False), *(({"schedule": kind}, True) for kind in ("cosine", "step", "plateau")), ({"warmup": 0.1}, True)],
)
def test_is_scheduled(change: dict[str, object], scheduled: bool) -> None:
    assert is_scheduled(PLAIN.model_copy(update=change)) == scheduled
