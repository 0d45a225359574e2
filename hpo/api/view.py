"""What a stored study holds: its trials, learning curves, export, figures and report. Looking changes nothing."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hpo.api.study import Study

if TYPE_CHECKING:
    import numpy as np
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from hpo.results.confirm.result import Confirmation
    from hpo.results.result import Result
    from hpo.service.status import StudyStatus
    from hpo.storage import Storage


@dataclass(frozen=True, eq=False)  # equal arrays are no one truth value
class Trial:
    """A trial of a stored study.

    `state` is complete, pruned, failed, running or waiting. `value` is its score, an accuracy as a fraction or a loss
    in nats; a pruned trial's is its last one, and None stands where there is none. `params` are the searched values, by
    name. `curve` maps train_loss, train_accuracy, val_loss and val_accuracy to arrays [epochs]; it is empty before the
    first epoch. What the user's own objective reported is in `step` and `value`. `started` and `ended` are in UTC.
    `reason` says why it failed. `values` maps each of several metrics to the trial's value; it is empty where there is
    one metric, or no value.
    """

    study: str
    number: int
    state: str
    value: float | None
    params: Mapping[str, Any]
    seed: int | None
    epochs: int
    precision: str | None
    device: str | None
    started: datetime.datetime | None
    ended: datetime.datetime | None
    reason: str | None
    curve: Mapping[str, NDArray[np.float64]]
    values: Mapping[str, float] = field(default_factory=dict)


class StudyView:
    """A study in a storage. Every call reads what the storage has at that moment."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self.name = name

    def __repr__(self) -> str:
        return f"<study {self.name!r} in {self._storage.shown}>"

    @property
    def storage(self) -> str:
        """The storage's URL as it may be shown: without its password."""
        return self._storage.shown

    @property
    def study(self) -> Study:
        """The study as its file said when it was stored, or was last extended."""
        from hpo.search.study_records import any_stored_study
        from hpo.storage import load_study

        return Study.of(any_stored_study(load_study(self._storage, self.name)))

    @property
    def status(self) -> StudyStatus:
        """How far it is: its state, its trials by state, its pace (trials a second) and the seconds left at that."""
        from hpo.service.status import status

        return status(self._storage, self.name).studies[0]

    @property
    def best(self) -> Trial:
        """The best completed trial, of several metrics by the first. Raises HpoError where there is none."""
        return self.top(1)[0]

    def top(self, n: int = 5) -> list[Trial]:
        """Return the `n` best completed trials, best first. Raises HpoError where there is none.

        Of several metrics these are trials on the Pareto front, in the order of the first metric.
        """
        from hpo.results.export.trials import trial_records

        return [_trial(record) for record in trial_records(self._storage, self.name, top=n)]

    @property
    def front(self) -> list[Trial]:
        """The trials on the Pareto front: none is as good in all metrics and better in one. Of one metric, the best.

        Raises HpoError where no trial has completed.
        """
        from hpo.results.export.trials import trial_records

        return [_trial(record) for record in trial_records(self._storage, self.name)]

    def top_lines(self, n: int = 5) -> list[str]:
        """Return a line for each of the `n` best completed trials, as `hpo top` prints them; of any Optuna study."""
        from hpo.results.ranking import top_lines

        return top_lines(self._storage, self.name, n)

    def trials(self) -> list[Trial]:
        """Return every trial, by number: `trials()[12].number` is 12. Raises HpoError where there is none."""
        from hpo.results.export.trials import trial_records

        return [_trial(record) for record in trial_records(self._storage, self.name, every=True)]

    def curves(self) -> dict[str, NDArray[np.float64]]:
        """Return the learning curves of all trials: metric -> array [trials, epochs], row n that of trial n.

        Metrics are train_loss and val_loss, in nats, and train_accuracy and val_accuracy, as fractions; column e is
        after epoch e + 1. Where a trial was not trained that long (pruned, failed, out of patience) there is NaN.
        Raises HpoError where there is no trial.
        """
        from hpo.api.arrays import stacked

        return stacked([trial.curve for trial in self.trials()])

    def export(self, confirmed: bool = False, trial: int | None = None) -> dict[str, Any]:
        """Return the best trial as the object that `hpo export` writes, `hpo.best/2`, fit for JSON.

        `config` in it is a study of that trial alone, and `hpo.replay` repeats the trial from the object's file. With
        `confirmed` it is the winner of the confirmation, with its numbers, with `trial` the completed trial of that
        number. Of several metrics it is `hpo.front/1`, whose `front` holds such an object for each trial on the Pareto
        front. Raises HpoError where there is no such trial.
        """
        from hpo.results.export.best import export

        return export(self._storage, self.name, confirmed, trial)

    def export_text(
        self,
        *,
        confirmed: bool = False,
        every: bool = False,
        top: int | None = None,
        trial: int | None = None,
        form: Literal["json", "toml", "csv"] = "json",
    ) -> str:
        """Return what `hpo export` writes: the best, `every` trial, the `top` best or one `trial`, in that form.

        Raises UsageError for what does not go together, and HpoError where there is no such trial.
        """
        from hpo.results.export.text import export_text

        return export_text(self._storage, self.name, confirmed=confirmed, every=every, top=top, trial=trial, form=form)

    def plot(self, kinds: Sequence[str] = (), n: int = 20) -> dict[str, go.Figure]:
        """Return plotly's figures by kind: curves (of the `n` best trials), landscape, history and importances.

        Without `kinds` these four, and the "front" of several metrics; "activations" has to be asked for, because it
        needs the images. Raises UsageError for a kind that is none, and HpoError where no trial has ended.
        """
        from hpo.results.figures.files import figures

        return figures(self._storage, self.name, kinds, n)

    def write_figures(
        self,
        folder: str | Path = ".",
        kinds: Sequence[str] = (),
        n: int = 20,
        form: Literal["html", "png"] = "html",
    ) -> list[Path]:
        """Write the figures to `NAME-KIND.FORM` in a folder, which is made if need be; return the files.

        A page opens without a network; an image takes an installed Chrome or Chromium.
        """
        from hpo.results.figures.files import plot

        return plot(self._storage, self.name, Path(folder), kinds, n, form)

    def report(self) -> str:
        """Return the page of HTML that `hpo report` writes. Raises HpoError where no trial has ended."""
        from hpo.results.report import report

        return report(self._storage, self.name)

    def write_report(self, path: str | Path | None = None) -> Path:
        """Write the report, by default to `NAME-report.html` in the current folder; return the file."""
        from hpo.files import write_atomically
        from hpo.results.naming import file_stem

        target = Path(f"{file_stem(self.name)}-report.html") if path is None else Path(path)
        write_atomically(self.report(), target)
        return target

    @property
    def confirmation(self) -> Result[Confirmation] | None:
        """What its last finished confirmation has found; None where it has not been confirmed.

        Raises HpoError where a confirmation has begun and none is finished.
        """
        from hpo.results.confirm.result import find_confirmation

        found = find_confirmation(self._storage, self.name)
        return None if found is None else confirmed(found)


def confirmed(found: Confirmation) -> Result[Confirmation]:
    """Return a confirmation with its text and JSON."""
    from hpo.results.confirm.text import ConfirmationResult

    return ConfirmationResult(found)


def _trial(record: Mapping[str, Any]) -> Trial:
    from hpo.api.arrays import curve_of

    known = {key: value for key, value in record.items() if key != "schema"}
    return Trial(**{**known, "curve": curve_of(record["curve"])})
