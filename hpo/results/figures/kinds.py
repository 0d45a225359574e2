"""The kinds of figures by name, in the order in which they are shown."""

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
"""The kind that only a study of several metrics has anything to show in: without being asked for, only there."""

KINDS: Mapping[str, Draw] = {
    FRONT: front,
    "curves": curves,
    "landscape": landscape,
    "history": history,
    "importances": importances,
}
"""Each of them can draw any study, if only to say why there is nothing to see."""

ACTIVATIONS = "activations"
"""The kind that is drawn on request only: it is of the network before training, and needs the images."""


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise UsageError for an unknown kind."""
    for kind in kinds:
        known = [*KINDS, ACTIVATIONS]
        if kind not in known:
            raise UsageError(f"unknown figure {kind!r}{nearest(kind, known)}; known: {', '.join(known)}")


def draw(source: Source, kinds: Sequence[str] = ()) -> dict[str, go.Figure]:
    """Return a study's figures of these kinds, without any all that have something to show in it."""
    wanted = kinds or [kind for kind in KINDS if kind != FRONT or len(source.metrics) > 1]
    return {kind: KINDS[kind](source) for kind in dict.fromkeys(wanted)}
