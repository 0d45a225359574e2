"""Repeating a trial from its export alone: the file, the data set, and nothing else.

The export says which images, which settings and which seed; the result says how far it is from what was exported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AllowInfNan, BeforeValidator, Field, ValidationError

from hpo.data import Split
from hpo.errors import CodeError, HpoError, UsageError
from hpo.results.export.best import VERSION
from hpo.results.final_test.model_card import CodeRecord, FileModel
from hpo.results.ranking import METRIC_LABELS
from hpo.results.reproduce.retrain import Repeated, Stored, repeat
from hpo.results.result import Result
from hpo.search.plan import plan
from hpo.search.study_records import Curve
from hpo.studyfile import Study, parse_study
from hpo.studyfile.messages import dotted_key, format_value, truncate, validation_problems
from hpo.studyfile.reading import EXPORT, OBJECTIVE_EXPORT, base_folder, read_tree
from hpo.studyfile.values import Natural
from hpo.text import decode_non_finite
from hpo.training.stack import Member
from hpo.usercode import find_unchanged_code

Number = Annotated[float, AllowInfNan(True), BeforeValidator(decode_non_finite)]


class _Confirmed(FileModel):
    """What is read of the numbers of a confirmation."""

    seeds: list[Natural] = Field(min_length=1)
    scores: list[Number]


class _Exported(FileModel):
    """What is read of an export; the curve came with the second version."""

    config: dict[str, Any]
    seed: Natural
    value: Number
    precision: Literal["float32", "bfloat16", "float64"]
    data: dict[str, Any]
    code: CodeRecord | None = None
    curve: dict[str, list[Number]] = Field(default_factory=dict)


DIGITS = 9  # of a version; of thousands of them Python makes no number

AnyModel = TypeVar("AnyModel", bound=FileModel)


@dataclass(frozen=True)
class Replay:
    """A study of the exported trial, and how it came out: once, or for a confirmed one under each of its seeds."""

    study: Study
    runs: tuple[Repeated, ...]


def replay(path: Path, device: str, stop: threading.Event, say: Callable[[str], None]) -> Replay:
    """Train what an export describes.

    Raises UsageError for a file that is no export, DataError and HpoError where the images are missing or others, and
    InterruptionError where `stop` is set.
    """
    tree = _read(path)
    exported = _checked(_Exported, tree, path)
    study = parse_study(exported.config, str(path), base_folder(tree, path))
    study = _located(study, exported.code, path)
    if study.parameters:
        raise UsageError(f"{path}: config: still searches {study.parameters[0].name}, so it is no trial's")
    planned = plan(study, device)
    _check_data(study, planned.split, exported.data)
    config = study.config({})
    for metric, values in exported.curve.items():
        shorter = config.training.patience is not None and 0 < len(values) < config.training.epochs
        if len(values) != config.training.epochs and not shorter:
            raise UsageError(f"{path}: curve.{metric}: must have a value an epoch, {config.training.epochs} in all")
    seeds: dict[int, tuple[float, Curve]] = {exported.seed: (exported.value, exported.curve)}
    if "confirmed" in tree:
        seeds = {seed: (score, {}) for seed, score in _confirmed(tree["confirmed"], path).items()}
    trials = [
        Stored(Member(number, config, seed), score, curve)
        for number, (seed, (score, curve)) in enumerate(seeds.items())
    ]
    return Replay(study, tuple(repeat(study, planned, exported.precision, trials, stop, say)))


def _located(study: Study, code: CodeRecord | None, path: Path) -> Study:
    """Return the study with the folder that its code is in: that of the export, its own, or the current one."""
    if not study.references:
        return study
    if code is None:
        raise UsageError(f"{path}: code: missing: it does not say which code its network is")
    try:
        folder = find_unchanged_code(study.references, code.model_dump(), path.absolute().parent, study.folder)
        return replace(study, folder=folder)
    except CodeError as error:
        raise CodeError(f"{path}: {error}") from error


class ReplayResult(Result[Replay]):
    """A replay as text and as JSON."""

    def tree(self) -> dict[str, Any]:
        """Return each run's score, the exported one, and how far they differ."""
        study = self.found.study
        runs = [
            {"score": run.score, "exported": run.stored, "difference": run.difference, "largest": dict(run.largest)}
            for run in self.found.runs
        ]
        return {"study": study.name, "metric": study.search.first_metric, "runs": runs}

    def lines(self) -> list[str]:
        """Return for each run its score, the exported one, and the largest difference of each metric."""
        tree = self.tree()
        label = METRIC_LABELS[tree["metric"]]
        lines = []
        for run in tree["runs"]:
            line = f"{label} {run['score']:.6g}, exported {run['exported']:.6g}, difference {run['difference']:.2g}"
            differences = ", ".join(f"{metric} {value:.2g}" for metric, value in run["largest"].items())
            lines.append(f"{line}; largest in any epoch: {differences}" if differences else line)
        return lines


def _read(path: Path) -> dict[str, Any]:
    tree = read_tree(path)
    name = str(tree.get("schema")) if isinstance(tree, dict) else ""
    if name.startswith(OBJECTIVE_EXPORT):
        raise UsageError(
            f"{path}: is the export of an objective's trial: call {format_value(tree.get('objective'))} with its params"
        )
    version = name.removeprefix(EXPORT)
    if not name.startswith(EXPORT) or not version.isdecimal():
        raise UsageError(f"{path}: is no export; `hpo export NAME -o best.json` writes one")
    if len(version) > DIGITS or int(version) > VERSION:
        raise UsageError(
            f"{path}: is written by a newer hpo ({truncate(name)}); this one reads up to {EXPORT}{VERSION}"
        )
    return {key: value for key, value in tree.items() if value is not None}


def _confirmed(tree: Any, path: Path) -> dict[int, float]:
    """Return the scores of a confirmed trial's runs, by seed."""
    confirmed = _checked(_Confirmed, tree, path, "confirmed")
    if len(confirmed.scores) != len(confirmed.seeds):
        raise UsageError(f"{path}: confirmed.scores: must have a score for each of the seeds")
    return dict(zip(confirmed.seeds, confirmed.scores, strict=True))


def _checked(model: type[AnyModel], tree: Any, path: Path, *above: str) -> AnyModel:
    """Return what is read of an export; raise UsageError for the first thing that cannot be."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        place = error.errors(include_url=False)[0]["loc"]  # whole, for there is no union here
        fault = next(iter(validation_problems(error, model, tree).values()))
        raise UsageError(f"{path}: {dotted_key((*above, *place))}: {fault.text}") from error


def _check_data(study: Study, split: Split, exported: Mapping[str, Any]) -> None:
    known = {"sha256": split.content_sha256, "split_sha256": split.split_sha256}
    if any(exported.get(key) != value for key, value in known.items()):
        raise HpoError(
            f"{study.source}: the images of {split.dataset} here are not those that it was trained on "
            "(their SHA-256 differs); bring those, for with others it is another trial"
        )
