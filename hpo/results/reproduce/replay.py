"""`hpo replay`: train an exported trial again from its file and the data set alone, without a storage.

The export contains the configuration, the seed and the hashes of the data; the result states how far the scores and
curves are from the exported ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AllowInfNan, BeforeValidator, Field, ValidationError

from hpo.data import Split, load_splits
from hpo.errors import CodeError, HpoError, UsageError
from hpo.results.certificate import largest_text
from hpo.results.export.best import VERSION
from hpo.results.final_test.model_card import CodeRecord, FileModel
from hpo.results.output import Result
from hpo.results.ranking import metric_label
from hpo.results.reproduce.retrain import Retrained, StoredTrial, retrain
from hpo.search.plan import plan
from hpo.studyfile import Study, parse_study
from hpo.studyfile.messages import dotted_key, format_value, truncate, validation_problems
from hpo.studyfile.reading import EXPORT, OBJECTIVE_EXPORT, base_folder, read_tree
from hpo.studyfile.values import Natural
from hpo.text import decode_non_finite
from hpo.training.stack import Member
from hpo.usercode import find_unchanged_code

Number = Annotated[float, AllowInfNan(True), BeforeValidator(decode_non_finite)]


class _Confirmed(FileModel):
    """The runs of an exported confirmation; `split_seeds` where they have several splits."""

    seeds: list[Natural] = Field(min_length=1)
    scores: list[Number]
    split_seeds: list[Natural] | None = None


class _Exported(FileModel):
    """The keys of an export that a replay needs; version 1 has no curve."""

    config: dict[str, Any]
    seed: Natural
    value: Number
    precision: Literal["float32", "bfloat16", "float64"]
    data: dict[str, Any]
    code: CodeRecord | None = None
    curve: dict[str, list[Number]] = Field(default_factory=dict)


MAX_VERSION_DIGITS = 9
"""A limit, because int() refuses thousands of digits."""

AnyModel = TypeVar("AnyModel", bound=FileModel)


@dataclass(frozen=True)
class Replay:
    """A replay: the study of the exported trial, and its run, or one run for each seed of a confirmed trial."""

    study: Study
    runs: tuple[Retrained, ...]


def replay(path: Path, device: str, stop: threading.Event, say: Callable[[str], None]) -> Replay:
    """Train the trial of an export again.

    Raises UsageError for a file that is not an export, DataError and HpoError where the data are missing or different,
    and InterruptionError where `stop` is set.
    """
    tree = _read_export(path)
    exported = _checked(_Exported, tree, path)
    study = parse_study(exported.config, str(path), base_folder(tree, path))
    study = _located(study, exported.code, path)
    if study.parameters:
        raise UsageError(
            f"{path}: config: still searches {study.parameters[0].name}: a trial has one value for every key"
        )
    planned = plan(study, device)
    _check_data(study, planned.split, exported.data)
    config = study.config({})
    # The runs of a confirmation have no curves, and may have more epochs than the trial.
    for metric, values in () if "confirmed" in tree else exported.curve.items():
        shorter = config.training.patience is not None and 0 < len(values) < config.training.epochs
        if len(values) != config.training.epochs and not shorter:
            raise UsageError(f"{path}: curve.{metric}: must have a value an epoch, {config.training.epochs} in all")
    trials = [StoredTrial(Member(0, config, exported.seed), exported.value, exported.curve)]
    if "confirmed" in tree:
        runs = _confirmed(tree["confirmed"], path)
        splits = dict.fromkeys(runs.split_seeds or ())
        if splits:
            first, *others = load_splits(study, list(splits))
            planned = replace(planned, split=first, other_splits=tuple(others))
        indices = [[*splits].index(seed) for seed in runs.split_seeds or ()] or len(runs.seeds) * [0]
        trials = [
            StoredTrial(Member(number, config, seed, split=split), score, {})
            for number, (seed, score, split) in enumerate(zip(runs.seeds, runs.scores, indices, strict=True))
        ]
    return Replay(study, tuple(retrain(study, planned, exported.precision, trials, stop, say)))


def _located(study: Study, code: CodeRecord | None, path: Path) -> Study:
    """Return the study with the folder of its code: that of the export, the original one, or the current one."""
    if not study.references:
        return study
    if code is None:
        raise UsageError(f"{path}: code: missing: the export of a user-defined network needs the record of its code")
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
        label = metric_label(tree["metric"])
        lines = []
        for run in tree["runs"]:
            line = f"{label} {run['score']:.6g}, exported {run['exported']:.6g}, difference {run['difference']:.2g}"
            largest = largest_text(run["largest"])
            lines.append(f"{line}; largest in any epoch: {largest}" if largest else line)
        return lines


def _read_export(path: Path) -> dict[str, Any]:
    tree = read_tree(path)
    name = str(tree.get("schema")) if isinstance(tree, dict) else ""
    if name.startswith(OBJECTIVE_EXPORT):
        raise UsageError(
            f"{path}: is the export of an objective study: call {format_value(tree.get('objective'))} with its params"
        )
    version = name.removeprefix(EXPORT)
    if not name.startswith(EXPORT) or not version.isdecimal():
        raise UsageError(f"{path}: is not an export: write one with `hpo export NAME -o best.json`")
    if len(version) > MAX_VERSION_DIGITS or int(version) > VERSION:
        raise UsageError(
            f"{path}: was written by a newer hpo ({truncate(name)}): this version reads up to {EXPORT}{VERSION}"
        )
    return {key: value for key, value in tree.items() if value is not None}


def _confirmed(tree: Any, path: Path) -> _Confirmed:
    """Return the runs of a confirmation: seeds, scores and, where they have several splits, seeds of the splits."""
    confirmed = _checked(_Confirmed, tree, path, "confirmed")
    for key, values in (("scores", confirmed.scores), ("split_seeds", confirmed.split_seeds)):
        if values is not None and len(values) != len(confirmed.seeds):
            problem = f"must have {'a score' if key == 'scores' else 'one'} for each of the seeds"
            raise UsageError(f"{path}: confirmed.{key}: {problem}")
    return confirmed


def _checked(model: type[AnyModel], tree: Any, path: Path, *above: str) -> AnyModel:
    """Return the model of an export. Raises UsageError for the first invalid key."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        place = error.errors(include_url=False)[0]["loc"]  # the whole path: the models have no unions
        fault = next(iter(validation_problems(error, model, tree).values()))
        raise UsageError(f"{path}: {dotted_key((*above, *place))}: {fault.text}") from error


def _check_data(study: Study, split: Split, exported: Mapping[str, Any]) -> None:
    known = {"sha256": split.content_sha256, "split_sha256": split.split_sha256}
    if any(exported.get(key) != value for key, value in known.items()):
        raise HpoError(
            f"{study.source}: the data of {split.dataset} here are not those of the exported trial (their SHA-256 "
            "differs): restore the original data"
        )
