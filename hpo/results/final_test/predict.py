"""`hpo predict`: classify the examples of a .npy file, or the rows of a table, with the network of a model folder.

Inputs are preprocessed as in training. A table has the feature columns of the training table, in any order; its other
columns, such as the target, are ignored. Images are bytes as in the data set, or floats from 0, black, to 1, white; a
network trained on floats or on integers takes such numbers. A file of another type or shape is refused before its
examples are read. Nothing in either file is run as code.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.data.preprocessing import Inputs
from hpo.data.table_rows import TableRows
from hpo.errors import HpoError
from hpo.results.final_test.model_folder import Model, read_model
from hpo.results.output import Output
from hpo.studyfile.data_settings import TABLE_FILES
from hpo.training.device_data import IntegerShape, Shape
from hpo.training.devices import find_device, is_out_of_memory
from hpo.training.evaluation import log_probabilities, network_outputs
from hpo.untrusted_files import open_regular_file

AT_ONCE = 10_000
"""Largest number of examples in memory: a file may contain more than fit."""

NUMBERS_AT_ONCE = 2**28
"""Largest number of inputs and activations of these examples."""


@dataclass(frozen=True, eq=False)
class _Numbered(Output):
    """Predictions, of which `str()` is CSV with one line for each example.

    `noun` is the name of their numbers: row, image or example. `rows` are the numbers that the rows of a table have in
    its file, None for other examples.
    """

    noun: str
    rows: NDArray[np.int64] | None

    def lines(self) -> list[str]:
        """Return the lines of the CSV file."""
        return str(self).splitlines()

    def numbers(self, examples: int) -> list[int]:
        """Return the number of each example: of its row in the file, or from 0."""
        return list(range(examples)) if self.rows is None else self.rows.tolist()


@dataclass(frozen=True, eq=False)
class Predictions(_Numbered):
    """The most probable class of each example and its probability, [N].

    `names` are the names of the classes; CSV and JSON have the name of a class.
    """

    classes: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    names: tuple[str, ...]

    def tree(self) -> dict[str, Any]:
        """Return for each example its number, the name of its class and the probability."""
        numbers = self.numbers(len(self.classes))
        found = zip(numbers, self.classes.tolist(), self.probabilities.tolist(), strict=True)
        rows = [{self.noun: number, "class": self.names[label], "probability": p} for number, label, p in found]
        return {"predictions": rows}

    def __str__(self) -> str:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([self.noun, "class", "probability"])
        for row in self.tree()["predictions"]:
            number, label, probability = row.values()
            rows.writerow([number, label, f"{probability:.6f}"])
        return text.getvalue()


@dataclass(frozen=True, eq=False)
class TargetPredictions(_Numbered):
    """The numbers that a regression predicts, or the probabilities of several labels, [N, columns].

    `names` are the names of the columns.
    """

    values: NDArray[np.float64]
    names: tuple[str, ...]

    def tree(self) -> dict[str, Any]:
        """Return for each example its number and the value of each column by name."""
        numbered = zip(self.numbers(len(self.values)), self.values.tolist(), strict=True)
        rows = [{self.noun: number, **dict(zip(self.names, row, strict=True))} for number, row in numbered]
        return {"predictions": rows}

    def __str__(self) -> str:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([self.noun, *self.names])
        numbered = zip(self.numbers(len(self.values)), self.values.tolist(), strict=True)
        rows.writerows([number, *(f"{value:.6g}" for value in row)] for number, row in numbered)
        return text.getvalue()


def predictions(folder: Path, file: Path, device: str) -> Predictions | TargetPredictions:
    """Return the predictions of a folder's network for the examples of a file."""
    model = read_model(folder, find_device(device))
    inputs = _rows(file, model) if model.preprocessing.kind == "table" else _inputs(file, model)
    return (
        _classes(model, inputs, file, folder)
        if model.task == "classification"
        else _targets(model, inputs, file, folder)
    )


def _batches(model: Model, inputs: NDArray[Any] | TableRows, path: Path) -> Iterator[tuple[int, Tensor]]:
    """Yield the examples in parts that fit into memory, each with the number of its first one."""
    at_once = max(1, min(AT_ONCE, NUMBERS_AT_ONCE // (math.prod(model.shape) + model.activations)))
    for start in range(0, len(inputs), at_once):
        yield start, torch.from_numpy(_prepared(inputs, slice(start, start + at_once), path, model))


def _numbered(model: Model, inputs: NDArray[Any] | TableRows) -> tuple[str, NDArray[np.int64] | None]:
    """Return the first fields of the predictions: what is numbered, and the numbers of a table's rows."""
    if isinstance(inputs, TableRows):
        return "row", inputs.lines
    is_image = len(model.shape) == 3 and model.shape[:2] != (1, 1)  # earlier versions: [1, 1, features]
    return "image" if is_image else "example", None


def _targets(model: Model, inputs: NDArray[Any] | TableRows, path: Path, folder: Path) -> TargetPredictions:
    """Return the numbers of a regression in the user's unit, or the probabilities of labels."""
    parts = []
    for start, some in _batches(model, inputs, path):
        outputs = _called(partial(network_outputs, model.network, some), len(some), folder)
        if model.scaling is not None:
            mean, deviation = (torch.tensor(each, dtype=torch.float64) for each in model.scaling)
            values = outputs[:, : len(mean)] * deviation + mean
        else:
            values = outputs.sigmoid()
        if not values.isfinite().all():
            raise _not_finite(folder, path, inputs, start + int(values.isfinite().all(1).logical_not().nonzero()[0]))
        parts.append(values.numpy())
    columns = model.names if model.scaling is None else tuple(f"column {i}" for i in range(len(model.scaling[0])))
    found = np.concatenate(parts) if parts else np.zeros((0, len(columns)))
    names = ("value",) if model.scaling is not None and len(columns) == 1 else columns
    return TargetPredictions(*_numbered(model, inputs), found, names)


def _classes(model: Model, inputs: NDArray[Any] | TableRows, path: Path, folder: Path) -> Predictions:
    classes, probabilities = np.zeros(len(inputs), np.int64), np.zeros(len(inputs), np.float32)
    for start, some in _batches(model, inputs, path):
        best = _called(partial(log_probabilities, model.network, some), len(some), folder).max(1)
        if not best.values.isfinite().all():
            raise _not_finite(folder, path, inputs, start + int(best.values.isfinite().logical_not().nonzero()[0]))
        classes[start : start + len(some)] = best.indices
        probabilities[start : start + len(some)] = best.values.exp()
    return Predictions(*_numbered(model, inputs), classes, probabilities, model.names)


def _not_finite(folder: Path, path: Path, inputs: NDArray[Any] | TableRows, index: int) -> HpoError:
    example = f"row {inputs.lines[index]}" if isinstance(inputs, TableRows) else f"example {index}"
    return HpoError(f"{folder}: the network's output for {example} of {path} is NaN or infinite")


def _called(call: Callable[[], Tensor], examples: int, folder: Path) -> Tensor:
    """Return the outputs of the network for so many images; turn its exceptions into errors of one line."""
    try:
        return call()
    except HpoError as error:
        raise HpoError(f"{folder}: {error}") from error
    except Exception as error:  # raised by a user-defined network, or for lack of memory
        if is_out_of_memory(error):
            raise HpoError(
                f"{folder}: its network does not fit into memory with {examples} examples: use another --device"
            ) from error
        raise HpoError(f"{folder}: its network raised {type(error).__name__}: {error}") from error


def _rows(path: Path, model: Model) -> TableRows:
    """Return the feature columns of a table."""
    if not path.name.endswith(TABLE_FILES):
        raise HpoError(f"{path}: this network takes the rows of a table, a {' or '.join(TABLE_FILES)} file")
    from hpo.data.user.table import read_rows  # polars takes longer to import than a small table to read

    return read_rows(path, model.preprocessing.numeric, model.preprocessing.categorical)


def _prepared(
    found: NDArray[Any] | TableRows, part: slice, path: Path, model: Model
) -> NDArray[np.float32] | NDArray[np.int64]:
    """Return some inputs as the network takes them."""
    if isinstance(found, TableRows):
        inputs: Inputs = found.take(np.arange(len(found))[part])
    else:
        inputs = _scaled(found[part], path, model)
    return model.preprocessing.apply(inputs)


def _inputs(path: Path, model: Model) -> NDArray[Any]:
    """Return the examples of a file, [N, ...], as a memory map."""
    try:
        open_regular_file(path).close()
        found: Any = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise HpoError(f"{path}: is not a .npy file of numbers, or is truncated") from error
    except OSError as error:
        raise HpoError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not isinstance(found, np.ndarray):
        raise HpoError(f"{path}: is an archive of several arrays: save the examples alone, with numpy.save")
    if isinstance(model.shape, IntegerShape):
        accepted, expected = found.dtype.kind in "iu", "integers, as it was trained on"
    elif model.white is None:
        accepted, expected = found.dtype.kind == "f", "floats, as it was trained on"
    else:
        accepted, expected = found.dtype.kind == "f" or found.dtype == np.uint8, "uint8, or floats from 0 to 1"
    if not accepted:
        raise HpoError(f"{path}: contains {found.dtype}, but this network takes {expected}")
    return _in_order(np.asarray(found), path, model)


def _in_order(found: NDArray[Any], path: Path, model: Model) -> NDArray[Any]:
    """Return the examples with the axes of the model's input, from any accepted order of axes.

    A table may be [N, features] or [N, 1, 1, features], whichever of them the card has.
    """
    forms: dict[Shape, Callable[[NDArray[Any]], NDArray[Any]]] = {tuple(model.shape): lambda inputs: inputs}
    if len(model.shape) == 3 and not isinstance(model.shape, IntegerShape):
        channels, height, width = model.shape
        forms |= {
            (height, width, channels): lambda images: np.moveaxis(images, 3, 1),
            (height, width): lambda images: images[:, None],
            (width,): lambda rows: rows[:, None, None],
        }
    elif len(model.shape) == 1:
        forms |= {(1, 1, *model.shape): lambda rows: rows[:, 0, 0]}
    fitting = [form for form in forms if math.prod(form) == math.prod(model.shape)]
    for form in fitting:
        if found.shape[1:] == form:
            return forms[form](found)
    expected = " or ".join(f"[N, {', '.join(map(str, form))}]" for form in fitting)
    raise HpoError(f"{path}: its shape is {list(found.shape)}, but this network takes {expected}")


def _scaled(some: NDArray[Any], path: Path, model: Model) -> NDArray[np.float32] | NDArray[np.int64]:
    """Return examples scaled as in training."""
    if isinstance(model.shape, IntegerShape):
        if some.dtype == np.uint64 and some.max(initial=0) > np.iinfo(np.int64).max:
            raise HpoError(f"{path}: contains {some.max()}, which is too large for int64")
        return np.array(some, np.int64, order="C")
    if model.white is None:
        if not np.isfinite(some).all():
            raise HpoError(f"{path}: contains NaN or infinite numbers")
        return np.array(some, np.float32, order="C")
    highest = model.white if some.dtype == np.uint8 else 1
    if not (np.all(some >= 0) and np.all(some <= highest)):  # a NaN is neither
        kind = "bytes" if some.dtype == np.uint8 else "numbers"
        raise HpoError(f"{path}: contains {kind} outside 0 to {highest} (white)")
    scaled = np.array(some, np.float32, order="C")
    if some.dtype == np.uint8:
        scaled /= model.white
    return scaled
