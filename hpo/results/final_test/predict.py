"""`hpo predict`: what a network from a folder says of images in a .npy file, as CSV.

Images are bytes, as the data set's files have them, or numbers from 0, black, to 1, white; for a network that was
trained on numbers as given, such numbers. What is neither, or of another size, is refused before any is looked at
closely. Nothing in either file is run as code.
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
from hpo.results.result import Output
from hpo.training.devices import find_device, is_out_of_memory
from hpo.training.evaluation import log_probabilities
from hpo.untrusted_files import open_regular_file

AT_ONCE = 10_000
"""Images that are converted at once, at most: a file may hold more than fit into memory."""

NUMBERS_AT_ONCE = 2**28
"""Their pixels, and what the network makes of them, at most."""


@dataclass(frozen=True, eq=False)
class Predictions(Output):
    """The most probable class of each image and its probability, [N]; `str()` is CSV, a line an image.

    `names` are those of the classes, which CSV has in the place of their numbers.
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
    """Return what the network of a folder says of the images of a file."""
    model = read_model(folder, find_device(device))
    pixels = _pixels(images, model)
    classes, probabilities = np.zeros(len(pixels), np.int64), np.zeros(len(pixels), np.float32)
    at_once = max(1, min(AT_ONCE, NUMBERS_AT_ONCE // (math.prod(model.shape) + model.activations)))
    for start in range(0, len(pixels), at_once):
        some = _scaled(pixels[start : start + at_once], images, model)
        best = _answers(model, torch.from_numpy(some), folder).max(1)
        if not best.values.isfinite().all():
            image = start + int(best.values.isfinite().logical_not().nonzero()[0])
            raise HpoError(f"{folder}: the network's answer to image {image} of {images} is NaN or infinite")
        classes[start : start + at_once] = best.indices
        probabilities[start : start + at_once] = best.values.exp()
    return Predictions(classes, probabilities, model.names)


def _answers(model: Model, images: Tensor, folder: Path) -> Tensor:
    """Return the logarithms of the probabilities, [N, classes], that the network has for images."""
    try:
        return log_probabilities(model.network, images)
    except HpoError as error:
        raise HpoError(f"{folder}: {error}") from error
    except Exception as error:  # only a module of the user's own can raise, but for want of memory
        if is_out_of_memory(error):
            raise HpoError(f"{folder}: its network does not fit into memory with {len(images)} images") from error
        raise HpoError(f"{folder}: its network raised {type(error).__name__}: {error}") from error


def _pixels(path: Path, model: Model) -> NDArray[Any]:
    """Return the images of a file, [N, C, H, W], still on the disk."""
    try:
        open_regular_file(path).close()
        found: Any = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise HpoError(f"{path}: is no .npy file of numbers, or is cut short") from error
    except OSError as error:
        raise HpoError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not isinstance(found, np.ndarray):
        raise HpoError(f"{path}: is an archive of several arrays; save the images alone, with numpy.save")
    if not (found.dtype == np.uint8 and model.white is not None) and found.dtype.kind != "f":
        wanted = "floats, as it was trained on" if model.white is None else "uint8, or floats from 0 to 1"
        raise HpoError(f"{path}: holds {found.dtype}; this network takes {wanted}")
    return _in_order(np.asarray(found), path, model)


def _in_order(found: NDArray[Any], path: Path, model: Model) -> NDArray[Any]:
    """Return the images as [N, C, H, W], whichever way their axes lie."""
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
    wanted = " or ".join(f"[N, {', '.join(map(str, form))}]" for form in fitting)
    raise HpoError(f"{path}: its shape is {list(found.shape)}; this network takes {wanted}")


def _scaled(some: NDArray[Any], path: Path, model: Model) -> NDArray[np.float32]:
    """Return images as the network was trained on them."""
    if model.white is None:
        if not np.isfinite(some).all():
            raise HpoError(f"{path}: holds numbers that are NaN or infinite")
        return np.array(some, np.float32, order="C")
    highest = model.white if some.dtype == np.uint8 else 1
    if not (np.all(some >= 0) and np.all(some <= highest)):  # a NaN is neither
        kind = "bytes" if some.dtype == np.uint8 else "numbers"
        raise HpoError(f"{path}: holds {kind} outside 0 to {highest}, which is white here")
    scaled = np.array(some, np.float32, order="C")
    if some.dtype == np.uint8:
        scaled /= model.white
    return scaled
