"""Comparison of configurations, of one study or several, with a paired test over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hpo.api.loading import open_existing
from hpo.results.output import Output

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hpo.results.compare.runs import Group
    from hpo.results.compare.table import Row


@dataclass(frozen=True, eq=False)
class Comparison(Output):
    """Comparison of configurations: a row and a group of runs for each; `str()` is the table.

    Accuracies are fractions, losses in nats. `groups` have the learning curves as arrays [runs, epochs]; those of an
    objective study have the returned and the reported values.
    """

    rows: Sequence[Row]
    groups: Sequence[Group]
    by: str | None
    indent: ClassVar[int | None] = 2

    def tree(self) -> dict[str, Any]:
        """Return all numbers, unrounded, as dictionaries and lists; None where there is none."""
        from hpo.results.compare.table import comparison_tree

        return comparison_tree(self.rows)

    def lines(self) -> list[str]:
        """Return the lines of the table and of its notes."""
        from hpo.results.compare.table import text

        return text(self.rows).split("\n")

    def plot(self) -> go.Figure:
        """Return a plotly figure of accuracy and loss by epoch, or of an objective function's reported values.

        Raises UsageError for too many configurations, and where no run has reported values.
        """
        from hpo.results.figures.comparison import comparison

        return comparison(self.groups, self.by)

    def write_figure(self, path: str | Path) -> Path:
        """Write the figure to a file, whose name must end in .html or .png; return the path."""
        from hpo.results.figures.files import form_of, save_as

        target = Path(path)
        form_of(target)
        save_as(self.plot(), ", ".join(dict.fromkeys(group.study for group in self.groups)), target)
        return target


def compare(*names: str, by: str | None = None, storage: str | None = None) -> Comparison:
    """Compare all configurations of a grid, the best of a search, or that of trial 12 for "NAME#12".

    With `by`, the name of a searched parameter, the configurations of each of its values are compared separately.
    Raises UsageError for a configuration that is named twice and for values that cannot be compared, and HpoError for a
    study without a completed trial.
    """
    from hpo.results.compare.runs import groups
    from hpo.results.compare.table import compare

    runs = groups(open_existing(storage), names)
    return Comparison(compare(runs, by), runs, by)
