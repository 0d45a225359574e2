"""Lines of `[data]`, `[task]` and `[preprocess]` for a data set, with the kind of its task guessed from the targets.

Only training data are used: of a table, `TEST_SHARE` of the rows is sealed, and their values are not used here, either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpo.data.examples import RawExamples
from hpo.data.known.catalogue import CATALOGUE
from hpo.data.sources import Source, source_of
from hpo.data.table_rows import TableRows
from hpo.data.user.table import TableSource
from hpo.data.user.table_columns import Column, training_columns
from hpo.errors import DataError, UsageError, nearest
from hpo.starter.line import Line
from hpo.studyfile import DataSettings, parse_study, user_data
from hpo.text import first_few

TEST_SHARE = 0.2
"""Fraction of a table's rows for the sealed test set."""

MAX_CLASSES = 20
"""Whole numbers with at most so many different values are taken for classes."""

MAX_IMAGE_CLASSES = 1000
"""The same for the targets of images, which are rarely numbers."""

MAX_CATEGORIES = 50
"""A column of text with more different values is left out."""

FEW_ROWS = 1000
"""Below so many rows, one validation split leaves much to chance."""

FOLDS = 5

IMBALANCE = 3
"""Classes are imbalanced if the largest has this many times the rows of the smallest."""

MAX_NAMES = 5
"""Maximum number of column names in a comment."""


@dataclass(frozen=True)
class DataKeys:
    """The lines of the tables about the data, and the facts that the other tables depend on.

    `rows` counts training and validation rows. `image` is the height and width of images, None for other inputs.
    `imbalance` names the sizes of the smallest and largest class, "" where classes are balanced.
    """

    data: tuple[Line, ...]
    task: Line
    preprocess: tuple[Line, ...]
    rows: int
    image: tuple[int, ...] | None
    imbalance: str


def data_keys(dataset: str, targets: Sequence[str], kind: str | None, folder: Path) -> DataKeys:
    """Return the keys of a data set, whose path is relative to `folder`; `kind` None is guessed.

    Raises StudyFileError and UsageError for invalid arguments, and DataError and CodeError where reading fails.
    """
    lines = [Line("dataset", dataset)]
    lines += [Line("target", targets[0] if len(targets) == 1 else list(targets))] if targets else []
    columns: list[Column] = []
    preprocess: list[Line] = []
    if (user_data(dataset) or ("",))[0] == "table":
        sealed = [*lines, Line("test", TEST_SHARE), *([] if targets else [Line("target", "?")])]
        columns = _columns(_settings(sealed, kind, folder), targets, folder)
        table, preprocess = _table_lines(columns, targets, dataset)
        lines += table
    settings = _settings(lines, kind, folder)
    task = Line("kind", kind) if kind else _guessed(settings, columns, folder)
    source = source_of(settings, folder, task.value)
    raw = source.read_training()
    image = _image_sides(raw)
    return DataKeys(
        (*lines, *_split_lines(source, raw, task.value)),
        task,
        (*_scaling_lines(raw), *preprocess),
        len(raw),
        image,
        _imbalance(raw) if task.value == "classification" else "",
    )


def _settings(lines: Sequence[Line], kind: str | None, folder: Path) -> DataSettings:
    """Return the checked settings of these lines for a kind of task, if any. Raises StudyFileError."""
    rest = {
        "task": {} if kind is None else {"kind": kind},
        "network": {"kind": "mlp"},
        "optimizer": {"lr": 0.1},
        "training": {"epochs": 1},
        "search": {"trials": 1},
    }
    data = {line.key: line.value for line in lines}
    return parse_study({"name": "starter", "data": data, **rest}, "", folder).data


def _columns(settings: DataSettings, targets: Sequence[str], folder: Path) -> list[Column]:
    """Return the columns of a table. Raises UsageError without a target, or where the table lacks one."""
    source = source_of(settings, folder, "regression")
    assert isinstance(source, TableSource), "the data set is a table"
    columns, path = training_columns(source), source.path
    names = [column.name for column in columns]
    if not targets:
        raise UsageError(f"--target: missing: name the column to predict; {path} has {first_few(names, MAX_NAMES)}")
    for target in targets:
        if target not in names:
            has = nearest(target, names) or f"; it has {first_few(names, MAX_NAMES)}"
            raise UsageError(f"--target: {path} has no column '{target}'{has}")
    return columns


def _table_lines(columns: Sequence[Column], targets: Sequence[str], dataset: str) -> tuple[list[Line], list[Line]]:
    """Return the lines of `[data]` and of `[preprocess]` that describe columns. Raises DataError without a feature."""
    others = [column for column in columns if column.name not in targets]
    unused = {column.name: reason for column in others if (reason := _why_unused(column))}
    features = [column for column in others if column.name not in unused]
    if not features:
        why = f": {first_few([f'{name} {reason}' for name, reason in unused.items()], MAX_NAMES)}" if unused else ""
        raise DataError(f"{dataset}: has no column besides the target that can be a feature{why}")
    lines, preprocess = [], []
    if unused:
        reasons = first_few([f"{name} ({reason})" for name, reason in unused.items()], MAX_NAMES)
        lines.append(Line("features", [column.name for column in features], f"left out: {reasons}"))
    categorical = [column.name for column in features if column.kind == "text"]
    if categorical:
        lines.append(Line("categorical", categorical, "columns of text"))
    lines.append(Line("test", TEST_SHARE, "this fraction of the rows is sealed: only `hpo test` reads it"))
    if incomplete := [column.name for column in features if column.missing]:
        comment = f"missing values of {first_few(incomplete, MAX_NAMES)}; a category gets the most frequent one"
        preprocess.append(Line("impute", "median", comment))
    if categorical:
        preprocess.append(Line("unknown", "ignore", 'a category that no training row has; "error" refuses it'))
    return lines, preprocess


def _why_unused(column: Column) -> str:
    """Return the reason why a column is no feature; "" if it can be one."""
    if column.kind == "other":
        return "neither numbers nor text"
    if column.distinct < 2:
        return "the same in all rows" if column.distinct else "no values"
    if column.kind == "text" and column.distinct > min(MAX_CATEGORIES, column.rows / 2):
        return f"text with {column.distinct} different values"
    named_id = column.name.lower() in ("id", "index", "row") or column.name.lower().endswith("_id")
    return "an identifier" if named_id and column.is_whole and column.distinct == column.rows else ""


def _guessed(settings: DataSettings, columns: Sequence[Column], folder: Path) -> Line:
    """Return the kind of the task with the reason."""
    if settings.dataset in CATALOGUE:
        return Line("kind", CATALOGUE[settings.dataset].task)
    targets = [column for column in columns if column.name in settings.targets]
    most = MAX_CLASSES
    if not columns and (user_data(settings.dataset) or ("",))[0] != "folder":
        try:
            raw = source_of(settings, folder, "regression").read_training()
        except DataError:  # text, or an error that reading classes raises again
            return Line("kind", "classification")
        most = MAX_CLASSES if _image_sides(raw) is None else MAX_IMAGE_CLASSES
        targets = [_column_of(each) for each in raw.targets.T]
    if not targets:
        return Line("kind", "classification", "one class for each sub-folder")
    names = f"the target{'s' * (len(targets) > 1)} {first_few(settings.targets or ('y',), MAX_NAMES)}"
    if len(targets) == 1 and targets[0].kind == "text":
        return Line("kind", "classification", f"{names} has {targets[0].distinct} different words")
    if len(targets) == 1 and targets[0].is_whole and targets[0].distinct <= most:
        comment = f'{names} has {targets[0].distinct} different whole numbers; "regression" predicts a number'
        return Line("kind", "classification", comment)
    if len(targets) > 1 and all(target.is_whole and (target.low, target.high) == (0, 1) for target in targets):
        return Line("kind", "multilabel", f"{names} are 0 or 1")
    more = f" has {targets[0].distinct} different numbers" if len(targets) == 1 else " are numbers"
    return Line("kind", "regression", names + more)


def _column_of(numbers: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Column:
    distinct = np.unique(numbers)
    is_whole, low, high = bool((distinct % 1 == 0).all()), float(distinct[0]), float(distinct[-1])
    return Column("y", "numbers", len(numbers), len(distinct), 0, is_whole, low, high)


def _split_lines(source: Source, raw: RawExamples, kind: str) -> Iterator[Line]:
    """Yield the lines about the validation split and the test set."""
    if raw.read_validation is not None:
        yield Line("", comment="the validation set of these data scores the trials")
    elif len(raw) < FEW_ROWS and (kind != "classification" or min(_class_sizes(raw)) >= FOLDS):
        yield Line("folds", FOLDS, f"{len(raw)} examples are few: each configuration is trained on {FOLDS} folds")
    else:
        yield Line("validation", 0.2, "this fraction of the examples is the validation split, which scores the trials")
    try:
        source.check_test()
    except DataError as error:
        yield Line("", comment=f"`hpo test` needs a test set: {str(error).partition(': ')[2]}")


def _scaling_lines(raw: RawExamples) -> Iterator[Line]:
    """Yield the lines about the scale of the inputs."""
    inputs = raw.inputs
    if _image_sides(raw) is not None:
        yield Line("image", "per-channel", "mean and standard deviation are those of the training images")
    elif inputs.numeric if isinstance(inputs, TableRows) else inputs.ndim == 2 and inputs.dtype.kind == "f":
        yield Line("standardize", True, "mean and standard deviation are those of the training rows")


def _image_sides(raw: RawExamples) -> tuple[int, ...] | None:
    """Return the height and width of images; None for other inputs."""
    return None if isinstance(raw.inputs, TableRows) or raw.inputs.ndim != 4 else raw.inputs.shape[2:]


def _imbalance(raw: RawExamples) -> str:
    low, high = min(_class_sizes(raw)), max(_class_sizes(raw))
    return f"the classes have {low:,} to {high:,} examples" if high >= IMBALANCE * low else ""


def _class_sizes(raw: RawExamples) -> list[int]:
    """Return the number of examples of each class that has any."""
    return [int(count) for count in np.bincount(raw.targets.astype(np.int64)) if count]
