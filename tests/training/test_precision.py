"""`precision = "auto"` chooses by the measured speedup; the choice depends on the machine."""

from __future__ import annotations

from typing import Any

import pytest
from torch_reference import config, made_images, member

from hpo.training import auto_precision
from hpo.training.auto_precision import MAX_MEASUREMENTS, MIN_SPEEDUP, ROUNDS, choose_precision


@pytest.mark.parametrize("more", [{}, {"batch_size": 1}, {"lr": 1e30}, {"batch_size": 1000}, {"epochs": 1}])
def test_the_choice_depends_on_the_speedup(more: dict[str, float]) -> None:
    """Also for settings that cannot be timed as they are: one epoch, batch size 1, a diverging learning rate."""
    settings = config(precision="auto", **more)  # type: ignore[arg-type]
    precision, ratio = choose_precision([member(n, settings) for n in range(3)], made_images(train=40))
    assert precision == ("bfloat16" if ratio >= MIN_SPEEDUP else "float32")
    assert 0.01 < ratio < 100


@pytest.mark.parametrize(
    ("float32", "stalls", "precision", "epochs"),
    [
        (2.0, [], "bfloat16", ROUNDS),
        (2.0, [1, 3, 5], "bfloat16", ROUNDS),  # of bfloat16: their pairs alone say that it is slower
        (1.0, [0, 2, 4], "float32", ROUNDS),  # of float32: their pairs alone say that bfloat16 is faster
        (1.22, [], "bfloat16", MAX_MEASUREMENTS * ROUNDS),
        (1.18, [], "float32", MAX_MEASUREMENTS * ROUNDS),
    ],
)
def test_stalls_do_not_decide(
    float32: float, stalls: list[int], precision: str, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch takes `float32` seconds, or 1 s in bfloat16, and 100 s more in a stall."""
    timed = {"float32": 0, "bfloat16": 0}

    def time_epoch(run: Any, device: object) -> float:
        kind = run.gi_frame.f_locals["precision"]
        timed[kind] += 1
        of_kind = 2 * timed[kind] - 2 + (kind == "bfloat16")  # even numbers are epochs of float32
        return (float32 if kind == "float32" else 1.0) + 100 * (of_kind in stalls)

    monkeypatch.setattr(auto_precision, "time_epoch", time_epoch)
    chosen, _ = choose_precision([member(0, config(precision="auto"))], made_images(train=40))
    assert (chosen, timed) == (precision, {"float32": epochs, "bfloat16": epochs})
