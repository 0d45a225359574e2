"""Configurations beside each other, of one study or of several, with a paired test over seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.api.stored import existing

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo.results.compare.runs import Group
    from hpo.results.compare.table import Row


@dataclass(frozen=True, eq=False)
class Comparison:
    """A row a configuration: its group of runs, their numbers, and the test against the first; `str()` is the table.

    Accuracies are fractions, losses in nats. `groups` hold the curves, arrays [runs, epochs].
    """

    rows: Sequence[Row]
    groups: Sequence[Group]
    by: str | None

    def __str__(self) -> str:
        from hpo.results.compare.table import text

        return text(self.rows)

    @property
    def json_text(self) -> str:
        """What `hpo compare --json` prints."""
        from hpo.results.compare.table import comparison_text

        return comparison_text(self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return all numbers as a tree of dictionaries and lists; None where there is none, "NaN" where one is NaN."""
        tree: dict[str, Any] = json.loads(self.json_text)
        return tree

    def plot(self) -> go.Figure:
        """Return plotly's figure of accuracy and loss against epoch. Raises UsageError for too many configurations."""
        from hpo.results.figures.comparison import comparison

        return comparison(self.groups, self.by)

    def write_figure(self, path: str | Path) -> Path:
        """Write the figure to a file whose name ends in .html or .png; return the path."""
        from hpo.results.figures.files import form_of, save_as

        target = Path(path)
        form_of(target)
        save_as(self.plot(), ", ".join(dict.fromkeys(group.study for group in self.groups)), target)
        return target


def compare(*names: str, by: str | None = None, storage: str | None = None) -> Comparison:
    """Compare configurations: every one of a grid, the best of a search, or that of trial 12 for "NAME#12".

    With `by`, a searched parameter's name, those with the same value of it are compared apart. Raises UsageError for a
    configuration that is named twice, and HpoError for a study that has nothing to compare.
    """
    from hpo.results.compare.runs import groups
    from hpo.results.compare.table import compare

    found = groups(existing(storage), names)
    return Comparison(compare(found, by), found, by)
