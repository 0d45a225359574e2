"""`precision = "auto"` chooses by the measured speedup; the choice depends on the machine."""

from __future__ import annotations

import pytest
from torch_reference import config, made_images, member

from hpo.training.auto_precision import MIN_SPEEDUP, choose_precision


@pytest.mark.parametrize("more", [{}, {"batch_size": 1}, {"lr": 1e30}, {"batch_size": 1000}, {"epochs": 1}])
def test_the_choice_depends_on_the_speedup(more: dict[str, float]) -> None:
    """Also for settings that cannot be timed as they are: one epoch, batch size 1, a diverging learning rate."""
    settings = config(precision="auto", **more)  # type: ignore[arg-type]
    precision, ratio = choose_precision([member(n, settings) for n in range(3)], made_images(train=40))
    assert precision == ("bfloat16" if ratio >= MIN_SPEEDUP else "float32")
    assert 0.01 < ratio < 100
