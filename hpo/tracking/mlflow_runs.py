"""Runs in MLflow: a study is an experiment, a trial a run, each metric by epoch, each kept model an artifact.

Needs the client only (mlflow-skinny). The experiment is found by its tag `hpo.identity`, a run by its tag `hpo.trial`.
A run that is not an earlier part of the trial's content is deleted after a new one has been written: MLflow changes
neither parameters nor points of curves.
"""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType

from hpo.tracking.content import Curve, Model, TrackedStudy, TrackedTrial
from hpo.tracking.tracker import PREFIX, named_file, plain_params, tags_of

DIGEST, IDENTITY, TRIAL, MODEL = (f"{PREFIX}{name}" for name in ("digest", "identity", "trial", "model"))
STATUS = {
    "complete": "FINISHED",
    "pruned": "KILLED",
    "failed": "FAILED",
    "running": "RUNNING",
    "waiting": "SCHEDULED",
}
LONGEST_TAG, LONGEST_PARAM = 5000, 6000
METRICS_PER_REQUEST, OTHERS_PER_REQUEST = 900, 90
PAGE = 1000

SETTINGS = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""The client's settings unless the user has set them: by default it retries for minutes, and prints a line a run."""

Item = TypeVar("Item")


class MlflowRuns:
    """A `Tracker` at an MLflow tracking URI."""

    follows_running = True

    def __init__(self, uri: str) -> None:
        self._client = MlflowClient(tracking_uri=uri)
        self._experiment = ""
        self._runs: dict[int, str] = {}  # run ids by trial
        self._models: dict[int, str] = {}  # names of model files by trial

    def open(self, study: TrackedStudy) -> Mapping[int, str]:
        """Find or create the experiment and update its tags; return the digests of ended runs by trial."""
        with _settings():
            self._experiment = self._find_experiment(study)
            tags = {f"{PREFIX}{name}": value for name, value in study.tags.items()}
            tags |= {"mlflow.note.content": study.description} if study.description else {}
            stored = self._client.get_experiment(self._experiment).tags
            for name, value in tags.items():
                if stored.get(name) != value[:LONGEST_TAG]:
                    self._client.set_experiment_tag(self._experiment, name, value[:LONGEST_TAG])
            return self._find_runs()

    def write(self, trial: TrackedTrial) -> None:
        """Write a run, and delete an earlier one of the trial."""
        with _settings():
            before = self._runs.pop(trial.number, None)
            run = self._client.create_run(
                self._experiment,
                start_time=_milliseconds(trial.started),
                tags={TRIAL: str(trial.number), "mlflow.source.name": "hpo"},
                run_name=trial.name,
            )
            self._runs[trial.number] = run.info.run_id
            self._models.pop(trial.number, None)
            self._log(trial, None)
            if before is not None:
                self._client.delete_run(before)

    def extend(self, trial: TrackedTrial, before: TrackedTrial) -> None:
        """Append to the run of a trial."""
        with _settings():
            self._log(trial, before)

    def write_model(self, model: Model) -> None:
        """Log the weights as an artifact, and record its name in a tag."""
        run = self._runs.get(model.number)
        if run is None or self._models.get(model.number) == model.filename:
            return
        with _settings():
            with named_file(model) as path:
                self._client.log_artifact(run, str(path))
            self._client.set_tag(run, MODEL, model.filename)
            self._models[model.number] = model.filename

    def close(self) -> None:
        """Do nothing: every request is complete."""

    def _find_experiment(self, study: TrackedStudy) -> str:
        """Return the id of the study's experiment. Another experiment of the study's name is left alone."""
        own = f"tags.`{IDENTITY}` = '{_quoted(study.identity)}'"
        found = self._client.search_experiments(ViewType.ACTIVE_ONLY, 1, own)
        if found:
            return str(found[0].experiment_id)
        name = study.name
        if self._client.get_experiment_by_name(name) is not None:  # also one that was deleted
            name = f"{study.name} {study.identity}"[-450:]
        return str(self._client.create_experiment(name, tags={IDENTITY: study.identity}))

    def _find_runs(self) -> dict[int, str]:
        """Return the digests of ended runs by trial; delete all runs of a trial but the one that is complete."""
        self._runs.clear()
        digests: dict[int, str] = {}
        for run in self._all_runs():
            tags = run.data.tags
            if not re.fullmatch(r"\d+", tags.get(TRIAL, "")):
                continue
            number, run_id = int(tags[TRIAL]), str(run.info.run_id)
            if number in self._runs:  # two processes wrote the trial at the same time
                self._client.delete_run(run_id if number in digests else self._runs[number])
                if number in digests:
                    continue
            self._runs[number] = run_id
            self._models[number] = tags.get(MODEL, "")
            if DIGEST in tags and run.info.status != "RUNNING":
                digests[number] = tags[DIGEST]
        return digests

    def _all_runs(self) -> Iterator[Run]:
        token = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _log(self, trial: TrackedTrial, before: TrackedTrial | None) -> None:
        """Log what `before` does not have, and the state: the digest of an ended trial is logged last."""
        run = self._runs[trial.number]
        known = {} if before is None else before.params
        params = [
            Param(_key(name), str(value)[:LONGEST_PARAM] or " ")
            for name, value in plain_params(trial).items()
            if name not in known
        ]
        metrics = [point for name, curve in trial.new_points(before).items() for point in _points(name, curve, trial)]
        at = _milliseconds(trial.ended)
        metrics += [Metric(_key(name), float(value), at, 0) for name, value in trial.metrics.items()]
        tags = {} if before is not None and before.tags == trial.tags else tags_of(trial)
        if trial.has_ended:
            tags |= {DIGEST: trial.digest}
        self._log_batches(run, metrics, params, [RunTag(name, value[:LONGEST_TAG]) for name, value in tags.items()])
        if trial.has_ended:
            self._client.set_terminated(run, STATUS[trial.state], at)
        elif before is not None and before.state != trial.state:
            self._client.update_run(run, STATUS[trial.state])

    def _log_batches(
        self, run: str, metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]
    ) -> None:
        *first, last = _batches(metrics, METRICS_PER_REQUEST)
        *others, some = _batches(params, OTHERS_PER_REQUEST)
        for part in first:
            self._client.log_batch(run, metrics=part)
        for each in others:
            self._client.log_batch(run, params=each)
        if last or some or tags:
            self._client.log_batch(run, metrics=last, params=some, tags=tags)


@contextmanager
def _settings() -> Iterator[None]:
    """Apply the client's settings, which it reads from the environment with each request."""
    added = [name for name in SETTINGS if name not in os.environ]
    os.environ.update({name: SETTINGS[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, max(1, len(items)), size)]


def _points(name: str, curve: Curve, trial: TrackedTrial) -> Iterator[Metric]:
    """Yield the points of a curve, at times spread evenly from the start of the trial to its end, or to now."""
    start, end = _milliseconds(trial.started), _milliseconds(trial.ended)
    steps = max((step for each in trial.curves.values() for step, _ in each), default=1) or 1
    for step, value in curve:
        yield Metric(_key(name), value, start + round((end - start) * max(0, step) / steps), step)


def _milliseconds(time_or_none: datetime.datetime | None) -> int:
    """Return a time in milliseconds since 1970; the present time for None."""
    return round(1000 * (time.time() if time_or_none is None else time_or_none.timestamp()))


def _key(name: str) -> str:
    """Return a name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /:]", "_", name, flags=re.ASCII)[:250]


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")
