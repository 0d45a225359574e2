"""User arrays as examples and labels: accepted shapes, types and class names.

    [N, features]       rows of a table
    [N, H, W]           images of one channel
    [N, H, W, C]        if the last axis has length 1, 3 or 4, and the second does not
    [N, C, H, W]        any other four axes

Inputs are bytes (uint8), of which 255 becomes 1.0, or floats, which stay unchanged. Integers of any other type, such as
token ids, stay integers (int64) and keep their axes, [N, ...]. Labels are whole numbers from 0, or names. Groups are
numbers or strings, one for each example. Every problem is a DataError that names the file and the array. This module
opens no file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.examples import RawExamples
from hpo.errors import OTHER_TASKS, DataError, nearest

_LABELS = "labels must be whole numbers from 0, or names (strings)"
_GROUPS = "groups must be numbers or strings"

CHANNELS = (1, 3, 4)
"""Lengths of an axis that identify it as the channels."""


@dataclass(frozen=True)
class ArrayPair:
    """Inputs and labels, with their file and the names of the arrays."""

    x: NDArray[Any]
    y: NDArray[Any]
    where: str
    names: tuple[str, str] = ("x", "y")


def examples_from_arrays(
    pair: ArrayPair, names: Sequence[str] | None = None, task: str = "classification"
) -> RawExamples:
    """Return the examples of two arrays; `names` are the class or label names, None to derive them from the targets."""
    x = f"{pair.where}: {pair.names[0]}"
    inputs = _convert_type(_with_axes(pair.x, x), x)
    if task != "classification":
        where = f"{pair.where}: {pair.names[1]}"
        targets = _target_columns(pair.y, where, len(inputs))
        if task == "regression":
            return user_examples(inputs, targets, ())
        return user_examples(inputs, targets, _label_names(targets, where, names))
    if pair.y.ndim != 1 or len(pair.y) != len(inputs):
        problem = f"has shape {_shape(pair.y.shape)}, but one label for each example is {_shape((len(inputs),))}"
        scope = f". {OTHER_TASKS}" if pair.y.ndim == 2 and len(pair.y) == len(inputs) else ""
        raise DataError(f"{pair.where}: {pair.names[1]} {problem}{scope}")
    labels, classes = encode_labels(pair.y, f"{pair.where}: {pair.names[1]}", names)
    return user_examples(inputs, labels, classes)


def user_examples(
    inputs: NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.int64],
    labels: NDArray[np.int64] | NDArray[np.float64],
    names: tuple[str, ...],
) -> RawExamples:
    """Return examples of the user; the hash of their content includes type and class names."""
    white = 255 if inputs.dtype == np.uint8 else None
    return RawExamples(inputs, labels, white, names, f" {inputs.dtype} {json.dumps(names)} ")


def _target_columns(y: NDArray[Any], where: str, examples: int) -> NDArray[np.float64]:
    """Return targets that are numbers as [N, columns]. Raises DataError for other types and shapes, and for NaN."""
    if y.dtype.kind not in "biuf":
        problem = f"has type {y.dtype}; the targets must be numbers"
        raise DataError(f"{where} {problem}: convert them, or remove task.kind for classes")
    if y.ndim not in (1, 2) or len(y) != examples or y.size == 0:
        problem = f"has shape {_shape(y.shape)}, but targets of {examples} examples are [{examples}] or [{examples}, D]"
        raise DataError(f"{where} {problem}")
    columns = y.reshape(examples, -1).astype(np.float64)
    if not np.isfinite(columns).all():
        example = int(np.flatnonzero(~np.isfinite(columns).all(axis=1))[0])
        raise DataError(f"{where}: the target of example {example} is NaN or infinite; remove the example, or fill it")
    return columns


def _label_names(targets: NDArray[np.float64], where: str, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of labels. Raises DataError for targets other than 0 and 1, and for another number of names."""
    wrong = np.flatnonzero(~np.isin(targets, (0, 1)).all(axis=1))
    if len(wrong):
        raise DataError(f"{where}: the labels of example {wrong[0]} must be 0 or 1, one column for each label")
    count = targets.shape[1]
    if names is not None and len(names) != count:
        raise DataError(f"{where} has {count} labels, but {len(names)} names")
    return tuple(map(str, range(count))) if names is None else _check_names(names, where)


def encode_labels(
    y: NDArray[Any], where: str, names: Sequence[str] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the labels as numbers from 0, and the class names."""
    if y.dtype.kind in "iu":
        _check_numbers(y, where, names)
        labels = y.astype(np.int64)
        classes = tuple(map(str, range(int(labels.max()) + 1))) if names is None else _check_names(names, where)
    elif y.dtype.kind in "UTO":  # both kinds of NumPy strings, and Python strings
        texts = _strings(y, where)
        classes = _check_names(sorted(set(texts)) if names is None else names, where)
        for text in sorted(set(texts) - set(classes)):
            raise DataError(f"{where}: '{text}' is not one of the classes{nearest(text, classes)}")
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.array([numbers[text] for text in texts], np.int64)
    else:
        scope = f". {OTHER_TASKS}" if y.dtype.kind == "f" else ""
        raise DataError(f"{where} has type {y.dtype}; {_LABELS}{scope}")
    if len(classes) < 2:
        raise DataError(f"{where}: only one class ('{classes[0]}'); a classifier needs at least two")
    return labels, classes


def encode_groups(groups: NDArray[Any], where: str, examples: int) -> NDArray[np.int64]:
    """Return the number of each example's group, from 0 in the order of their values."""
    if groups.shape != (examples,):
        problem = f"has shape {_shape(groups.shape)}, but one group for each example is {_shape((examples,))}"
        raise DataError(f"{where} {problem}")
    if groups.dtype.kind == "O":
        for example, group in enumerate(groups.tolist()):
            if not isinstance(group, str):
                problem = f"the group of example {example} has type {type(group).__name__}, not string"
                raise DataError(f"{where} has type object, but {problem}; {_GROUPS}")
        groups = groups.astype(str)
    if groups.dtype.kind not in "iubfUT":
        raise DataError(f"{where} has type {groups.dtype}; {_GROUPS}")
    if groups.dtype.kind == "f" and not np.isfinite(groups).all():
        example = int(np.flatnonzero(~np.isfinite(groups))[0])
        raise DataError(f"{where}: the group of example {example} is NaN or infinite; give every example a group")
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _check_numbers(labels: NDArray[Any], where: str, names: Sequence[str] | None) -> None:
    """Raise DataError for labels that are not 0 to the number of classes minus 1.

    Without `names` the number of classes is unknown, but at most that of the examples.
    """
    classes = max(2, len(labels)) if names is None else len(names)
    low, high = int(labels.min()), int(labels.max())
    if names is None and low > 0 and high - low < classes:
        advice = f"subtract {low}, or use class names (strings)"
        raise DataError(f"{where}: labels are {low} to {high}, but must start at 0; {advice}")
    for label in (low, high):
        if not 0 <= label < classes:
            example = int(np.flatnonzero(labels == label)[0])
            rule = "whole numbers from 0 without a gap" if names is None else f"0 to {classes - 1}"
            raise DataError(f"{where}: label {label} of example {example}; labels must be {rule}")


def _strings(labels: NDArray[Any], where: str) -> list[str]:
    """Return labels as Python strings. Raise DataError for the first that is not a string, such as a missing value."""
    texts = labels.tolist()
    for example, text in enumerate(texts):
        if not isinstance(text, str):
            problem = f"the label of example {example} has type {type(text).__name__}, others are strings"
            raise DataError(f"{where} has type {labels.dtype}: {problem}; {_LABELS}")
    return list(map(str, texts))


def _check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    for name in names:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise DataError(f"{where}: {name!r} is not a valid class name; use a printable string")
    if len(set(names)) < len(names):
        raise DataError(f"{where}: two classes have the same name")
    return tuple(names)


def _with_axes(x: NDArray[Any], where: str) -> NDArray[Any]:
    """Return rows as [N, features], images as [N, C, H, W], and integers with the axes that they have."""
    integers = x.dtype.kind in "iu" and x.dtype != np.uint8
    if x.ndim < 2 or (x.ndim > 4 and not integers):
        shapes = (
            "[N, length] or have further axes" if integers else "[N, features], [N, H, W], [N, H, W, C] or [N, C, H, W]"
        )
        raise DataError(f"{where} has shape {_shape(x.shape)}; it must be {shapes}")
    if len(x) == 0:
        raise DataError(f"{where} has no examples")
    if math.prod(x.shape) == 0:
        raise DataError(f"{where} has shape {_shape(x.shape)}: its examples are empty")
    if x.ndim == 2 or integers:
        return x
    if x.ndim == 3:
        return x[:, None]
    first, last = x.shape[1] in CHANNELS, x.shape[3] in CHANNELS
    if first and last:
        problem = f"has shape {_shape(x.shape)}, which may be [N, C, H, W] or [N, H, W, C]"
        raise DataError(f"{where} {problem}; save images of one channel as [N, H, W]")
    return np.moveaxis(x, 3, 1) if last else x


def _convert_type(x: NDArray[Any], where: str) -> NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.int64]:
    """Return bytes unchanged, other integers as int64, and finite floats of any precision as float32."""
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    if x.dtype.kind in "iu":
        if x.dtype == np.uint64 and x.max() > np.iinfo(np.int64).max:
            raise DataError(f"{where} has {x.max()}, which is too large for int64")
        return np.ascontiguousarray(x, np.int64)
    if x.dtype.kind != "f":
        kinds = "uint8 (0 to 255), floats, or integers of another type (ids)"
        raise DataError(f"{where} has type {x.dtype}; it must be {kinds}")
    with np.errstate(over="ignore"):  # an overflow becomes infinite, which is refused below
        numbers = np.ascontiguousarray(x, np.float32)
    for index in range(len(numbers)):
        if not np.isfinite(numbers[index]).all():
            raise DataError(f"{where}: example {index} has a value that is NaN, infinite or too large for float32")
    return numbers


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
