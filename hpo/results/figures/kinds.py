"""Kinds of figures by name, in the order of display."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import plotly.graph_objects as go

from hpo.errors import UsageError, nearest
from hpo.results.figures.curves import curves
from hpo.results.figures.history import history
from hpo.results.figures.importances import importances
from hpo.results.figures.landscape import landscape
from hpo.results.figures.pareto_front import front
from hpo.results.figures.source import Source

Draw = Callable[[Source], go.Figure]

FRONT = "front"
"""The kind for studies of several metrics; by default it is drawn for those only."""

KINDS: Mapping[str, Draw] = {
    FRONT: front,
    "curves": curves,
    "landscape": landscape,
    "history": history,
    "importances": importances,
}
"""Each kind can draw every study; without data the figure is a message."""

ACTIVATIONS = "activations"
"""The kind that is drawn on request only: it shows the network before training and needs the data."""


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise UsageError for an unknown kind."""
    for kind in kinds:
        known = [*KINDS, ACTIVATIONS]
        if kind not in known:
            raise UsageError(f"unknown figure {kind!r}{nearest(kind, known)}; known: {', '.join(known)}")


def draw(source: Source, kinds: Sequence[str] = ()) -> dict[str, go.Figure]:
    """Return the figures of these kinds; without `kinds`, all that apply to the study."""
    drawn = kinds or [kind for kind in KINDS if kind != FRONT or len(source.metrics) > 1]
    return {kind: KINDS[kind](source) for kind in dict.fromkeys(drawn)}
