"""Rules between the sections of a study file: none of their models can check them alone.

Each function yields the path and the problem of every value that breaks a rule, at one stage of the check: in the tree
before its models validate it, in the settings that they return, or in the whole study.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from hpo.studyfile.data_settings import DATASETS, OF_TABLES, prefixed_user_data
from hpo.studyfile.keys import SECTIONS
from hpo.studyfile.messages import format_value
from hpo.studyfile.metrics import TOP_K, VALIDATION_METRICS, metrics_of_task
from hpo.studyfile.models import StudySettings
from hpo.studyfile.study import Study
from hpo.studyfile.trees import MISSING, Path, value_at


def tree_problems(tree: Mapping[str, Any], folder: FilePath) -> Iterator[tuple[Path, str]]:
    """Find the study itself in `search.start_from`, user data without its prefix, and keys of tables beside other data.

    `folder` has the files that the study refers to.
    """
    start_from: Path = ("search", "start_from")
    names = value_at(tree, start_from)
    for index, name in enumerate(names if isinstance(names, list) else ()):
        if name == value_at(tree, ("name",)):
            yield (*start_from, index), f"is the study itself (got {format_value(name)})"
    path: Path = ("data", "dataset")
    dataset = value_at(tree, path)
    if isinstance(dataset, str) and (prefixed := prefixed_user_data(dataset, folder)):
        known = f"unknown data set {format_value(dataset)} (did you mean {format_value(prefixed)}?)"
        yield path, f"{known}; known: {DATASETS}"
    if isinstance(dataset, str) and not dataset.startswith("table:"):
        for section, keys in OF_TABLES.items():
            for key in keys:
                default = SECTIONS[section].model_fields[key].default  # which a resolved file has
                if value_at(tree, (section, key)) not in (MISSING, default):
                    yield (section, key), 'is used only with a table (data.dataset = "table:FILE")'


def settings_problems(settings: StudySettings) -> Iterator[tuple[Path, str]]:
    """Find metrics of another task, settings that the metrics do not use, and more splits than repeats."""
    task, path = settings.task, ("search", "metric")
    for metric in settings.search.named_metrics:
        known = VALIDATION_METRICS.get(metric)
        if known is not None and task.kind not in known.tasks:
            problem = f"{metric} is a metric of {' and '.join(known.tasks)}, but task.kind is {task.kind}"
            yield path, f"{problem}; use {', '.join(metrics_of_task(task.kind))}"
    if TOP_K in settings.search.named_metrics and task.top_k is None:
        yield path, f"{TOP_K} needs task.top_k, the number of classes of which one must be right"
    if TOP_K not in settings.search.named_metrics and task.top_k is not None:
        yield ("task", "top_k"), f"not used without the metric {TOP_K}"
    splits, repeats = settings.data.splits, settings.search.repeats
    if splits is not None and splits > repeats:
        problem = f"must be at most search.repeats, {repeats}: each repeat of a configuration has one split"
        yield ("data", "splits"), f"{problem} (got {splits})"


def study_problems(study: Study) -> Iterator[tuple[Path, str]]:
    """Find label smoothing or mixup of targets that the loss does not take, and embeddings without network or column.

    Of searched values, every candidate must fit.
    """
    loss = study.task.used_loss
    for key, losses in (("label_smoothing", ("cross_entropy",)), ("mixup", ("cross_entropy", "bce"))):
        if loss not in losses:
            for path, value in study.possible_values(("training", key)).items():
                if value:
                    yield path, f"not used with task.loss = {loss} (got {format_value(value)})"
    if study.preprocess.categorical == "embedding":
        path = ("preprocess", "categorical")
        for kind in study.possible_values(("network", "kind")).values():
            if kind != "mlp":
                yield path, f'must be "onehot" when network.kind = "{kind}": only mlp has embeddings of columns'
        if not study.data.categorical:
            yield path, "embedding is not used without data.categorical, the list of these columns"
