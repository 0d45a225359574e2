"""Content of experiments and runs: one rendering of a stored study and its trials, the same for every tracker.

`hpo launch --track` and `hpo export --to` both write what this module renders, so they give equal runs. It reads the
storage and writes nothing.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError
from hpo.results.confirm.gain import gain_line
from hpo.results.confirm.result import find_confirmation
from hpo.results.confirm.text import winner_line
from hpo.results.export.trials import trial_record
from hpo.results.study_facts import STEP, metrics_of
from hpo.search.space import is_whole
from hpo.search.study_records import RUN, STUDY, any_stored_study, config_as_trained, user_attrs_of
from hpo.storage import Storage, TrialFields, identity, load_study, summary
from hpo.storage.artifacts import ArtifactFolder, artifact_folder, checkpoint_files
from hpo.storage.test_evaluations import completed, evaluations_of, main_score
from hpo.studyfile import AnyStudy, Study
from hpo.studyfile.keys import SEARCHABLE, setting_paths, unused_keys
from hpo.studyfile.objective import VALUE
from hpo.studyfile.writing import study_text
from hpo.text import json_text

SCORE, EPOCHS, SEED = "score", "epochs", "seed"

WITHOUT_EFFECT = frozenset({"keep", "keep_trials", "checkpoint"})
"""Settings that do not affect the training of a trial."""

Curve = tuple[tuple[int, float], ...]
"""The values of a metric, each with its epoch, or with the step that an objective function reported."""


@dataclass(frozen=True)
class TrackedStudy:
    """A study as an experiment. `identity` is unique, `tags` are texts by name."""

    name: str
    identity: str
    description: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class TrackedTrial:
    """A trial as a run.

    `state` is complete, pruned, failed, running or waiting. `params` are the searched values by name, and the fixed
    settings of the network and its training. `metrics` are the final ones: `score`, or one for each of several
    metrics, and the number of epochs.
    """

    number: int
    state: str
    started: datetime.datetime | None
    ended: datetime.datetime | None
    params: Mapping[str, Any]
    curves: Mapping[str, Curve]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name of the run."""
        return f"trial {self.number}"

    @property
    def has_ended(self) -> bool:
        """Whether the trial is complete, pruned or failed."""
        return self.state in ("complete", "pruned", "failed")

    @property
    def digest(self) -> str:
        """A hash of the content: a tracker stores it, and a run with the same digest need not be written again."""
        text = json_text({key: str(each) for key, each in asdict(self).items()})
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def extends(self, before: TrackedTrial) -> bool:
        """Return whether this is the same attempt of the trial as `before`, with nothing of it changed."""
        same_params = all(self.params.get(name) == value for name, value in before.params.items())
        same_curves = all(
            self.curves.get(name, ())[: len(curve)] == curve for name, curve in before.curves.items() if curve
        )
        return self.started == before.started and same_params and same_curves

    def new_points(self, before: TrackedTrial | None) -> dict[str, Curve]:
        """Return the points of each curve that `before` does not have."""
        known = {} if before is None else {name: len(curve) for name, curve in before.curves.items()}
        return {name: curve[known.get(name, 0) :] for name, curve in self.curves.items()}


@dataclass(frozen=True)
class Model:
    """The file with the weights of a kept trial."""

    number: int
    path: Path
    filename: str


class StudyContent:
    """Reader of a stored study's content; `name` is the study's name. Raises UnknownStudyError."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self.name = storage, name
        stored = load_study(storage, name)
        attrs = user_attrs_of(stored)
        self.study_id, self._attrs = stored._study_id, attrs
        self._study: AnyStudy | None = any_stored_study(stored) if STUDY in attrs else None
        self._metrics = metrics_of(summary(storage, self.study_id))
        self._precision = str(attrs.get(RUN, {}).get("precision", "auto"))
        self._last, self._unfinished = -1, set[int]()

    def study(self) -> TrackedStudy:
        """Return the study, with the results of its confirmation and its test evaluations so far."""
        tags = {"study": self.name}
        description = ""
        if self._study is not None:
            text = study_text(self._study)
            tags |= {"study_file": text, "study_file_sha256": hashlib.sha256(text.encode()).hexdigest()}
            description = self._study.description
            with suppress(HpoError):  # not finished
                if found := find_confirmation(self._storage, self.name):
                    tags["confirmed"] = f"{winner_line(found)}; {gain_line(found)}"
        attrs = summary(self._storage, self.study_id).user_attrs
        if tested := completed(evaluations_of(attrs)):
            tags["tested"] = f"trial {tested[-1]['trial']}: test {main_score(tested[-1]['result'])}"
        return TrackedStudy(self.name, identity(self._attrs, self.name), description, tags)

    def news(self) -> list[TrackedTrial]:
        """Return the trials that have started or ended since the last call, and all running ones, by number."""
        fields = TrialFields()
        trials = {trial.number: trial for trial in self._storage.read_unfinished(self._unfinished, fields)}
        found = self._storage.read_trials(self.study_id, self._last, self._unfinished, fields)
        trials |= {trial.number: trial for trial in found}
        self._last = max((trial._trial_id for trial in found), default=self._last)
        self._unfinished = {trial._trial_id for trial in trials.values() if not trial.state.is_finished()}
        return [self._trial(trials[number]) for number in sorted(trials)]

    def models(self) -> list[Model]:
        """Return the weights of the kept trials, where their files are on this machine."""
        files = ArtifactFolder(artifact_folder(self._storage.location))
        found = []
        for file in checkpoint_files(self._storage, self.study_id):
            path = Path(files._get_filepath(file.artifact_id))
            if file.state == TrialState.COMPLETE and path.is_file() and not path.is_symlink():
                found.append(Model(file.number, path, file.filename))
        return found

    def _trial(self, trial: FrozenTrial) -> TrackedTrial:
        record = trial_record(self.name, self._study, self._metrics, self._precision, trial)
        curves = self._curves(trial, record["curve"])
        metrics: dict[str, float] = {}
        if trial.state.is_finished():
            scores = record.get("values") or ({} if record["value"] is None else {SCORE: record["value"]})
            metrics = {name if name == SCORE else f"{SCORE}.{name}": value for name, value in scores.items()}
            metrics[EPOCHS] = max(map(len, curves.values()), default=0)
        seed = {} if record["seed"] is None else {SEED: record["seed"]}
        tags = {key: str(record[key]) for key in ("device", "reason") if record[key]}
        return TrackedTrial(
            number=trial.number,
            state=record["state"],
            started=record["started"],
            ended=record["ended"],
            params={**self._fixed(trial, record["precision"]), **record["params"], **seed},
            curves=curves,
            metrics=metrics,
            tags={"trial": str(trial.number), "state": record["state"], **tags},
        )

    def _curves(self, trial: FrozenTrial, curve: Mapping[str, Any]) -> dict[str, Curve]:
        """Return the learning curves; of a running trial that of the first metric, which is stored by epoch."""
        if isinstance(self._study, Study):
            if curve:
                return {metric: tuple(enumerate(map(float, values), 1)) for metric, values in curve.items()}
            reported = tuple(sorted(trial.intermediate_values.items()))
            return {self._study.search.first_metric: reported} if reported else {}
        return {VALUE: tuple(zip(curve[STEP], curve[VALUE], strict=True))} if curve else {}

    def _fixed(self, trial: FrozenTrial, precision: str | None) -> dict[str, Any]:
        """Return the settings of a network study's trial that affect its training, by their short names."""
        if not isinstance(self._study, Study) or not is_whole(self._study, trial.params):
            return {}
        config = config_as_trained(self._study, trial)
        names, settings = {path: name for name, path in setting_paths().items()}, dict[str, Any]()
        for section in SEARCHABLE:
            values = getattr(config, section).model_dump(exclude_none=True)
            without_effect = WITHOUT_EFFECT | unused_keys(section, values).keys()
            settings |= {names[section, key]: each for key, each in values.items() if key not in without_effect}
        settings["precision"] = precision  # not "auto"
        return {name: value for name, value in settings.items() if value != {}}
