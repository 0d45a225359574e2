"""Runs in Trackio: a study is a project, an ended trial a run of it, in Trackio's own SQLite file.

A run has the parameters and tags as config, and each metric by epoch; the final metrics are logged with the last epoch.
A run that differs from its trial is deleted and written again.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

import trackio

from hpo.tracking.content import Model, TrackedStudy, TrackedTrial
from hpo.tracking.tracker import PREFIX, named_file, plain_params, rows_by_step, tags_of

DIGEST, IDENTITY, TRIAL = (f"{PREFIX}{name}" for name in ("digest", "identity", "trial"))


class TrackioRuns:
    """A `Tracker` in a project; by default the project has the study's name."""

    follows_running = False

    def __init__(self, project: str) -> None:
        self._project = project
        self._study = TrackedStudy("", "", "", {})
        self._runs: dict[int, Any] = {}  # by trial
        self._models: set[int] = set()

    def open(self, study: TrackedStudy) -> Mapping[int, str]:
        """Return the digests of the runs in the project, by trial."""
        self._study = study
        digests: dict[int, str] = {}
        with contextlib.suppress(ValueError):  # a new project
            for run in trackio.Api().runs(self._name):
                config = run.config or {}
                if config.get(IDENTITY) == study.identity and DIGEST in config:
                    number = int(config[TRIAL])
                    self._runs[number], digests[number] = run, str(config[DIGEST])
        return digests

    def write(self, trial: TrackedTrial) -> None:
        """Write a run, after an earlier one of the trial is deleted."""
        if before := self._runs.pop(trial.number, None):
            before.delete()
        about = {IDENTITY: self._study.identity, DIGEST: trial.digest, f"{PREFIX}study": self._study.name}
        with _quiet():
            run = trackio.init(
                self._name,
                name=self._run_name(trial.number),
                config={**plain_params(trial), **tags_of(trial), **about},
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            rows = rows_by_step(trial)
            for step, row in list(rows.items())[:-1]:
                run.log(row, step=step)
            last = max(rows, default=0)
            run.log({**rows.get(last, {}), **trial.metrics}, step=last)
            trackio.finish()  # type: ignore[no-untyped-call]
        self._models.discard(trial.number)

    def extend(self, trial: TrackedTrial, before: TrackedTrial) -> None:
        """Write a run."""
        self.write(trial)

    def write_model(self, model: Model) -> None:
        """Log the weights as an artifact; Trackio stores equal contents once."""
        if model.number in self._models:
            return
        with _quiet(), named_file(model) as path:
            run = trackio.init(
                self._name,
                name=self._run_name(model.number),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            run.log_artifact(path.resolve(), name=f"trial-{model.number}", type="model")
            trackio.finish()  # type: ignore[no-untyped-call]
        self._models.add(model.number)

    def close(self) -> None:
        """Do nothing: every run is finished when it is written."""

    @property
    def _name(self) -> str:
        return self._project or self._study.name

    def _run_name(self, number: int) -> str:
        return f"{self._study.name} trial {number}" if self._project else f"trial {number}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what Trackio prints for each run."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
