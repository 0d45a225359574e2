"""Rendered trials with known content."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from hpo.tracking.content import TrackedStudy, TrackedTrial

STUDY = TrackedStudy("s", "0123", "", {})
START = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)


def tracked(number: int, state: str, losses: Sequence[float] = (), **params: object) -> TrackedTrial:
    """Return a trial with a curve of val_loss."""
    ended = state in ("complete", "pruned", "failed")
    return TrackedTrial(
        number=number,
        state=state,
        started=START,
        ended=START + datetime.timedelta(seconds=10) if ended else None,
        params=params or {"lr": 0.1},
        curves={"val_loss": tuple(enumerate(losses, 1))} if losses else {},
        metrics={"score": losses[-1], "epochs": float(len(losses))} if ended and losses else {},
        tags={"trial": str(number), "state": state},
    )
