"""`hpo predict`: classify the images of a .npy file with the network of a model folder.

Images are bytes as in the data set, or floats from 0, black, to 1, white; a network trained on floats takes such
floats. A file of another type or shape is refused before its images are read. Nothing in either file is run as code.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.errors import HpoError
from hpo.results.final_test.model_folder import Model, read_model
from hpo.results.output import Output
from hpo.training.devices import find_device, is_out_of_memory
from hpo.training.evaluation import log_probabilities
from hpo.untrusted_files import open_regular_file

AT_ONCE = 10_000
"""Largest number of images in memory: a file may contain more than fit."""

NUMBERS_AT_ONCE = 2**28
"""Largest number of pixels and activations of these images."""


@dataclass(frozen=True, eq=False)
class Predictions(Output):
    """The most probable class of each image and its probability, [N]; `str()` is CSV with one line for each image.

    `names` are the names of the classes; CSV and JSON have the name of a class.
    """

    classes: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    names: tuple[str, ...]

    def tree(self) -> dict[str, Any]:
        """Return for each image the name of its class and the probability."""
        found = zip(self.classes.tolist(), self.probabilities.tolist(), strict=True)
        rows = [{"image": i, "class": self.names[label], "probability": p} for i, (label, p) in enumerate(found)]
        return {"predictions": rows}

    def lines(self) -> list[str]:
        """Return the lines of the CSV file."""
        return str(self).splitlines()

    def __str__(self) -> str:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["image", "class", "probability"])
        for row in self.tree()["predictions"]:
            rows.writerow([row["image"], row["class"], f"{row['probability']:.6f}"])
        return text.getvalue()


def predictions(folder: Path, images: Path, device: str) -> Predictions:
    """Return the predictions of a folder's network for the images of a file."""
    model = read_model(folder, find_device(device))
    pixels = _pixels(images, model)
    classes, probabilities = np.zeros(len(pixels), np.int64), np.zeros(len(pixels), np.float32)
    at_once = max(1, min(AT_ONCE, NUMBERS_AT_ONCE // (math.prod(model.shape) + model.activations)))
    for start in range(0, len(pixels), at_once):
        some = _scaled(pixels[start : start + at_once], images, model)
        best = _log_probabilities(model, torch.from_numpy(some), folder).max(1)
        if not best.values.isfinite().all():
            image = start + int(best.values.isfinite().logical_not().nonzero()[0])
            raise HpoError(f"{folder}: the network's output for image {image} of {images} is NaN or infinite")
        classes[start : start + at_once] = best.indices
        probabilities[start : start + at_once] = best.values.exp()
    return Predictions(classes, probabilities, model.names)


def _log_probabilities(model: Model, images: Tensor, folder: Path) -> Tensor:
    """Return the network's log-probabilities for images, [N, classes]."""
    try:
        return log_probabilities(model.network, images)
    except HpoError as error:
        raise HpoError(f"{folder}: {error}") from error
    except Exception as error:  # raised by a user-defined network, or for lack of memory
        if is_out_of_memory(error):
            raise HpoError(
                f"{folder}: its network does not fit into memory with {len(images)} images: use another --device"
            ) from error
        raise HpoError(f"{folder}: its network raised {type(error).__name__}: {error}") from error


def _pixels(path: Path, model: Model) -> NDArray[Any]:
    """Return the images of a file, [N, C, H, W], as a memory map."""
    try:
        open_regular_file(path).close()
        found: Any = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise HpoError(f"{path}: is not a .npy file of numbers, or is truncated") from error
    except OSError as error:
        raise HpoError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not isinstance(found, np.ndarray):
        raise HpoError(f"{path}: is an archive of several arrays: save the images alone, with numpy.save")
    if not (found.dtype == np.uint8 and model.white is not None) and found.dtype.kind != "f":
        expected = "floats, as it was trained on" if model.white is None else "uint8, or floats from 0 to 1"
        raise HpoError(f"{path}: contains {found.dtype}, but this network takes {expected}")
    return _in_order(np.asarray(found), path, model)


def _in_order(found: NDArray[Any], path: Path, model: Model) -> NDArray[Any]:
    """Return the images as [N, C, H, W], from any accepted order of axes."""
    channels, height, width = model.shape
    forms = {
        model.shape: lambda images: images,
        (height, width, channels): lambda images: np.moveaxis(images, 3, 1),
        (height, width): lambda images: images[:, None],
        (width,): lambda images: images[:, None, None],
    }
    fitting = [form for form in forms if math.prod(form) == math.prod(model.shape)]
    for form in fitting:
        if found.shape[1:] == form:
            ordered: NDArray[Any] = forms[form](found)
            return ordered
    expected = " or ".join(f"[N, {', '.join(map(str, form))}]" for form in fitting)
    raise HpoError(f"{path}: its shape is {list(found.shape)}, but this network takes {expected}")


def _scaled(some: NDArray[Any], path: Path, model: Model) -> NDArray[np.float32]:
    """Return images scaled as in training."""
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
