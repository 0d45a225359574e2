"""A stored study: read its trials and results, confirm, narrow, verify and test it, pause, copy and delete it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hpo.api import exporting, queueing
from hpo.api.displays import PrintLine, Progress, display, print_to_stderr, print_warning
from hpo.api.interruption import stop_event
from hpo.api.proposal import Proposal
from hpo.api.study import Study
from hpo.api.trials import Trial, dataframe, stacked_curves, trial_of
from hpo.errors import UsageError
from hpo.text import printable

if TYPE_CHECKING:
    import numpy as np
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from hpo.results.certificate import Certificate
    from hpo.results.confirm.result import Confirmation
    from hpo.results.ensemble.record import Ensemble
    from hpo.results.final_test.result import Tested
    from hpo.results.output import Result
    from hpo.search.events import StudyEnded
    from hpo.service.status import StudyStatus
    from hpo.storage import Storage


class StoredStudy:
    """A study in a storage, as `load` and `launch` return it. Every call reads the storage anew.

    `ended` is the end of the launch that returned it, `interrupted` whether the launch was interrupted; None and False
    for a loaded study. Methods that train are stopped by Ctrl-C, a notebook's "interrupt" or `stop`. Their `device` is
    auto, cpu, cuda, cuda:1 or mps. `say` is called with each line of text for the user.
    """

    def __init__(
        self,
        storage: Storage,
        name: str,
        ended: StudyEnded | None = None,
        interrupted: bool = False,
        launched: Study | None = None,
    ) -> None:
        self._storage = storage
        self.name = name
        self.ended, self.interrupted = ended, interrupted
        self._launched = launched  # the study may have been deleted since

    def __repr__(self) -> str:
        return f"<study {self.name!r} in {self._storage.shown}>"

    @property
    def storage(self) -> str:
        """The storage's URL without its password."""
        return self._storage.shown

    @property
    def study(self) -> Study:
        """The study as it was stored, or last extended."""
        from hpo.search.study_records import any_stored_study
        from hpo.storage import load_study

        return Study.of(any_stored_study(load_study(self._storage, self.name)))

    @property
    def status(self) -> StudyStatus:
        """The study's state, its trials by state, its pace (trials a second) and the seconds left at that pace."""
        from hpo.service.status import status

        return status(self._storage, self.name).studies[0]

    @property
    def best(self) -> Trial:
        """The best completed trial, of several metrics by the first. Raises HpoError where there is none."""
        return self.top(1)[0]

    @property
    def best_params(self) -> dict[str, Any]:
        """The searched values of the best completed trial. Raises HpoError where there is none."""
        return dict(self.best.params)

    @property
    def best_value(self) -> float | None:
        """The score of the best completed trial. Raises HpoError where there is none."""
        return self.best.value

    def top(self, n: int = 5) -> list[Trial]:
        """Return the `n` best completed trials, best first. Raises HpoError where there is none.

        Of several metrics these are trials on the Pareto front, in the order of the first metric.
        """
        from hpo.results.export.trials import trial_records

        return [trial_of(record) for record in trial_records(self._storage, self.name, top=_positive("top", n))]

    @property
    def front(self) -> list[Trial]:
        """The trials on the Pareto front, or the best trial where there is one metric.

        Raises HpoError where no trial has completed.
        """
        from hpo.results.export.trials import trial_records

        return [trial_of(record) for record in trial_records(self._storage, self.name)]

    def top_lines(self, n: int = 5) -> list[str]:
        """Return a line for each of the `n` best completed trials, as `hpo top` prints them; of any Optuna study.

        A last line names the study's ensemble, if it has one.
        """
        from hpo.results.ensemble.record import ensemble_lines
        from hpo.results.ranking import top_lines

        lines = top_lines(self._storage, self.name, _positive("top_lines", n))
        return [*lines, *ensemble_lines(self._storage, self.name)]

    def trials(self) -> list[Trial]:
        """Return every trial, by number: `trials()[12].number` is 12. Raises HpoError where there is none."""
        from hpo.results.export.trials import trial_records

        return [trial_of(record) for record in trial_records(self._storage, self.name, every=True)]

    def trials_dataframe(self) -> Any:
        """Return every trial as a row of a pandas DataFrame, with the columns that Optuna's has, and those of `Trial`.

        Learning curves are in `curves()`. Raises HpoError where there is no trial, or pandas is not installed.
        """
        return dataframe(self.trials())

    def curves(self) -> dict[str, NDArray[np.float64]]:
        """Return the learning curves of all trials: metric -> array [trials, epochs], row n that of trial n.

        Metrics are train_loss and val_loss, in nats, and train_accuracy and val_accuracy, as fractions; column e is
        after epoch e + 1. After the last epoch of a trial (pruned, failed, stopped early) there is NaN. Raises HpoError
        where there is no trial.
        """
        return stacked_curves(self.trials())

    export = exporting.export
    export_text = exporting.export_text
    export_parquet = exporting.export_parquet
    export_to = exporting.export_to

    def plot(self, kinds: str | Sequence[str] = (), n: int = 20) -> dict[str, go.Figure]:
        """Return plotly figures by kind: curves (of the `n` best trials), landscape, history and importances.

        Without `kinds` these four, and the "front" of several metrics. "activations" is drawn on request only, because
        it reads the data set. Raises UsageError for an unknown kind, and HpoError where no trial has ended.
        """
        from hpo.results.figures.files import figures

        return figures(self._storage, self.name, _several(kinds), _positive("plot", n))

    def write_figures(
        self,
        folder: str | Path = ".",
        kinds: str | Sequence[str] = (),
        n: int = 20,
        form: Literal["html", "png"] = "html",
    ) -> list[Path]:
        """Write the figures to `NAME-KIND.FORM` in a folder, which is created if missing; return the files.

        HTML pages need no network; PNG images need an installed Chrome or Chromium.
        """
        from hpo.results.figures.files import plot

        return plot(self._storage, self.name, Path(folder), _several(kinds), _positive("write_figures", n), form)

    def report(self, form: Literal["html", "markdown"] = "html") -> str:
        """Return the report that `hpo report` writes: an HTML page, or a section of Markdown for a paper's appendix.

        Raises HpoError where no trial has ended.
        """
        from hpo.results.report import report

        return report(self._storage, self.name, form)

    def write_report(self, path: str | Path | None = None, form: Literal["html", "markdown"] = "html") -> Path:
        """Write the report, by default to `NAME-report.html` or `.md` in the current folder; return the file."""
        from hpo.files import write_atomically
        from hpo.results.derived_names import file_stem

        suffix = "md" if form == "markdown" else "html"
        target = Path(f"{file_stem(self.name)}-report.{suffix}") if path is None else Path(path)
        write_atomically(self.report(form), target)
        return target

    @property
    def confirmation(self) -> Result[Confirmation] | None:
        """The result of the last finished confirmation; None where there is no confirmation.

        Raises HpoError where a confirmation has begun and none is finished.
        """
        from hpo.results.confirm.result import find_confirmation
        from hpo.results.confirm.text import ConfirmationResult

        found = find_confirmation(self._storage, self.name)
        return None if found is None else ConfirmationResult(found)

    def confirm(
        self,
        *,
        top: int = 5,
        seeds: int = 10,
        splits: int | None = None,
        ensemble: bool = False,
        device: str = "auto",
        workers: int | None = None,
        progress: Progress = "auto",
        on_found: Callable[[Result[Confirmation]], None] = lambda found: None,
        stop: threading.Event | None = None,
    ) -> Result[Confirmation]:
        """Run the `top` best configurations, the baseline and the first trial again, each under `seeds` fresh seeds.

        The runs of each configuration are spread over so many fresh `splits`, at most `seeds`; with 1, all have the
        split of the search. By default there are 5 with fewer than 5,000 validation examples, and 10 or more seeds.
        With `ensemble`, the members of the study's ensemble are trained under the same seeds, too.
        An objective function finds the seed in `trial.user_attrs["seed"]`, and has no `device`. A finished confirmation
        is returned without training. `on_found` is called with the result, too. Raises HpoError where there is nothing
        to confirm. Where the confirming study is paused or stopped, `on_found` gets the result so far, then HpoError is
        raised. Raises InterruptionError when stopped: the same call continues.
        """
        from hpo.results.confirm.text import ConfirmationResult
        from hpo.search.options import LaunchOptions
        from hpo.service.confirming import confirm

        with stop_event(stop) as stop:
            found = confirm(
                self._storage,
                self.name,
                top=top,
                seeds=seeds,
                splits=splits,
                ensemble=ensemble,
                options=LaunchOptions(device=device, workers=workers),
                display=lambda: display(progress, stop),
                say=lambda found: on_found(ConfirmationResult(found)),
                stop=stop,
            )
        return ConfirmationResult(found)

    def ensemble(self, *, size: int = 10, device: str = "auto") -> Result[Ensemble]:
        """Select an ensemble among the trials with stored weights (`training.keep`); store and return it.

        Greedy selection with replacement by the study's first metric on the validation split, at most `size` picks.
        `test(ensemble=True)`, `confirm(ensemble=True)` and `export(ensemble=True)` use it. An earlier ensemble is
        replaced. Raises HpoError where fewer than two trials have stored weights.
        """
        from hpo.results.ensemble.select import select_ensemble
        from hpo.results.ensemble.text import EnsembleResult

        return EnsembleResult(select_ensemble(self._storage, self.name, _positive("ensemble", size, "size"), device))

    def narrow(self, name: str | None = None) -> Proposal:
        """Propose the next study, with ranges around the best trials; `name` is its name, by default NAME-2.

        Launch the proposal's `study`, or `write` its study file. Raises HpoError where too few trials have completed.
        """
        from hpo.results.narrow.next_study import propose

        study, lines = propose(self._storage, self.name, name)
        return Proposal(Study.of(study), tuple(map(printable, lines)))

    def rounds(
        self,
        rounds: int,
        *,
        name: str | None = None,
        device: str = "auto",
        workers: int | None = None,
        progress: Progress = "auto",
        say: PrintLine = print,
        stop: threading.Event | None = None,
    ) -> list[StoredStudy]:
        """Narrow, and search the proposed study, `rounds` times; return the searched studies in their order.

        `say` gets a comparison with the study before after each round. When stopped, the last study's `interrupted` is
        true, and the same call continues. Raises what `narrow` and `launch` raise.
        """
        from hpo.search.options import LaunchOptions
        from hpo.service.narrowing_rounds import run_rounds

        with stop_event(stop) as stop:
            searched = run_rounds(
                self._storage,
                self.name,
                rounds,
                new_name=name,
                options=LaunchOptions(device=device, workers=workers),
                display=lambda: display(progress, stop),
                say=say,
                stop=stop,
            )
        return [StoredStudy(self._storage, *each) for each in searched]

    def verify(
        self,
        trials: int = 5,
        *,
        device: str = "auto",
        say: PrintLine = print_warning,
        stop: threading.Event | None = None,
    ) -> Result[Certificate]:
        """Retrain `trials` completed trials, each alone; return how far their curves are from the stored ones.

        The certificate is stored with the study and written into its exports. Raises HpoError where no trial has
        completed, and InterruptionError, with nothing stored, when stopped.
        """
        from hpo.results.certificate import VerificationResult
        from hpo.results.reproduce.verify import verify

        with stop_event(stop) as stop:
            return VerificationResult(verify(self._storage, self.name, trials, device, stop, say))

    def test(
        self,
        *,
        again: bool = False,
        from_checkpoint: bool = False,
        trial: int | None = None,
        subnetworks: int | None = None,
        ensemble: bool = False,
        device: str = "auto",
        folder: str | Path | None = None,
        say: PrintLine = print_to_stderr,
        stop: threading.Event | None = None,
    ) -> Result[Tested]:
        """Evaluate on the sealed test set, once: train the selected configuration on all other examples, and test it.

        A further evaluation needs `again`. `from_checkpoint` tests the checkpoint of the search instead of training,
        `trial` selects that trial's configuration, `subnetworks` also averages so many networks of random dropout.
        `ensemble` trains and tests the members of the study's ensemble instead, whose predictions are averaged. The new
        `folder`, by default NAME-test, has the result and the weights, for `hpo.predict`. Raises HpoError before the
        test set is opened where there can be no result, and InterruptionError when stopped.
        """
        from hpo.results.final_test.evaluate import EvaluationOptions, evaluate_test_set
        from hpo.results.final_test.result import SealedTestResult

        options = EvaluationOptions(
            again, from_checkpoint, trial, subnetworks, device, None if folder is None else Path(folder), ensemble
        )
        with stop_event(stop) as stop:
            return SealedTestResult(evaluate_test_set(self._storage, self.name, options, stop, say))

    pause = queueing.pause
    stop = queueing.stop
    resume = queueing.resume
    delete = queueing.delete
    deletion_question = queueing.deletion_question
    copy = queueing.copy
    queue_line = queueing.queue_line

    def summary_lines(self) -> list[str]:
        """Return the lines at the end of a launch: how it ended, the best trials, ranges with the best at an edge."""
        from hpo.results.display.summary import summary_lines

        return summary_lines((self._launched or self.study).checked.renamed(self.name), self._storage, self.ended)

    def next_lines(self, storage: str | None = None) -> list[str]:
        """Return lines with the commands to run next; they name the storage if it is not the default."""
        from hpo.results.display.summary import next_lines

        if self.ended is not None and self.ended.reason == "deleted":
            return []
        return next_lines(self.study.checked, self._storage, storage)


def _positive(function: str, n: int, argument: str = "n") -> int:
    if n < 1:
        raise UsageError(f"{function}: {argument} must be at least 1 (got {n})")
    return n


def _several(kinds: str | Sequence[str]) -> Sequence[str]:
    return [kinds] if isinstance(kinds, str) else kinds
