"""The kinds of figures by name, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import plotly.graph_objects as go

from hpo.errors import UsageError, nearest
from hpo.results.figures.curves import curves
from hpo.results.figures.history import history
from hpo.results.figures.importances import importances
from hpo.results.figures.landscape import landscape
from hpo.results.figures.source import Source

Draw = Callable[[Source], go.Figure]

KINDS: Mapping[str, Draw] = {
    "curves": curves,
    "landscape": landscape,
    "history": history,
    "importances": importances,
}
"""Each of them can draw any study, if only to say why there is nothing to see."""


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise UsageError for a kind that is none."""
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"--figure: no kind {kind!r}{nearest(kind, KINDS)}; there are {', '.join(KINDS)}")


def draw(source: Source, kinds: Sequence[str] = ()) -> dict[str, go.Figure]:
    """Return a study's figures of these kinds, without any all of them."""
    return {kind: KINDS[kind](source) for kind in dict.fromkeys(kinds or KINDS)}
