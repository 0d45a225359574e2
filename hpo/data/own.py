"""Arrays of the user's own as images and labels: what is accepted, and how the axes are told apart.

    [N, H, W]           one channel
    [N, H, W, C]        where the last axis is 1, 3 or 4 long, and the second is not
    [N, C, H, W]        any other four axes
    [N, features]       images of one channel and one row

Pixels are bytes, 255 of which is 1, or numbers, which are taken as given; labels are whole numbers from 0, or names.
Promises: whatever is wrong is a DataError of one line that names the file and the array. Knows nothing of files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.images import RawImages
from hpo.errors import DataError, nearest

_LABELS = "labels are whole numbers from 0, or strings"

CHANNELS = (1, 3, 4)
"""How long an axis of channels may be to be known as one."""


@dataclass(frozen=True)
class Part:
    """The two arrays of a part of the data, what they are called, and in which file."""

    x: NDArray[Any]
    y: NDArray[Any]
    where: str
    names: tuple[str, str] = ("x", "y")


def own_images(part: Part, names: Sequence[str] | None = None) -> RawImages:
    """Return the images of a part; `names` are those of the classes, where the labels alone do not say them."""
    x = f"{part.where}: {part.names[0]}"
    pixels = _in_type(_as_images(part.x, x), x)
    if part.y.ndim != 1 or len(part.y) != len(pixels):
        shape, wanted = _shown(part.y.shape), _shown((len(pixels),))
        raise DataError(f"{part.where}: {part.names[1]} has shape {shape}, a label an image is {wanted}")
    labels, known = labels_of(part.y, f"{part.where}: {part.names[1]}", names)
    return own(pixels, labels, known)


def own(
    pixels: NDArray[np.uint8] | NDArray[np.float32], labels: NDArray[np.int64], names: tuple[str, ...]
) -> RawImages:
    """Return images of the user's own, [N, C, H, W]; their type and the names of their classes are part of them."""
    white = 255 if pixels.dtype == np.uint8 else None
    return RawImages(pixels, labels, white, names, f" {pixels.dtype} {json.dumps(names)} ")


def labels_of(y: NDArray[Any], where: str, names: Sequence[str] | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the labels as numbers from 0, and the names of their classes."""
    if y.dtype.kind in "iu":
        _check_numbers(y, where, names)
        labels = y.astype(np.int64)
        known = tuple(map(str, range(int(labels.max()) + 1))) if names is None else _checked(names, where)
    elif y.dtype.kind in "UTO":  # strings of NumPy's two kinds, and Python's
        texts = _texts(y, where)
        known = _checked(sorted(set(texts)) if names is None else names, where)
        for text in sorted(set(texts) - set(known)):
            raise DataError(f"{where}: '{text}' is none of the classes{nearest(text, known)}")
        places = {name: place for place, name in enumerate(known)}
        labels = np.array([places[text] for text in texts], np.int64)
    else:
        raise DataError(f"{where} holds {y.dtype}; {_LABELS}")
    if len(known) < 2:
        raise DataError(f"{where}: one class only ('{known[0]}'); there is nothing to tell apart")
    return labels, known


def _check_numbers(labels: NDArray[Any], where: str, names: Sequence[str] | None) -> None:
    """Refuse labels that are beyond the classes, or, where nobody said how many there are, beyond an image each."""
    classes = max(2, len(labels)) if names is None else len(names)
    for label in (labels.min(), labels.max()):
        if not 0 <= int(label) < classes:
            image = int(np.flatnonzero(labels == label)[0])
            rule = "are whole numbers from 0, without a gap" if names is None else f"go from 0 to {classes - 1}"
            raise DataError(f"{where}: label {label} of image {image}; labels {rule}")


def _texts(labels: NDArray[Any], where: str) -> list[str]:
    """Return labels as Python's strings. Raises DataError for the first that is none, such as a missing one."""
    texts = labels.tolist()
    for image, text in enumerate(texts):
        if not isinstance(text, str):
            kind = f"{labels.dtype}, and the label of image {image} is no string but of type {type(text).__name__}"
            raise DataError(f"{where} holds {kind}; {_LABELS}")
    return list(map(str, texts))


def _checked(names: Sequence[str], where: str) -> tuple[str, ...]:
    for name in names:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise DataError(f"{where}: {name!r} cannot be the name of a class")
    if len(set(names)) < len(names):
        raise DataError(f"{where}: two classes have the same name")
    return tuple(names)


def _as_images(x: NDArray[Any], where: str) -> NDArray[Any]:
    """Return images as [N, C, H, W]."""
    if x.ndim not in (2, 3, 4):
        forms = "[N, H, W], [N, H, W, C], [N, C, H, W] or [N, features]"
        raise DataError(f"{where} has shape {_shown(x.shape)}; images are {forms}")
    if len(x) == 0:
        raise DataError(f"{where} holds no images")
    if math.prod(x.shape) == 0:
        raise DataError(f"{where} has shape {_shown(x.shape)}: its images have no pixels")
    if x.ndim == 2:
        return x[:, None, None, :]
    if x.ndim == 3:
        return x[:, None]
    first, last = x.shape[1] in CHANNELS, x.shape[3] in CHANNELS
    if first and last:
        said = f"{where} has shape {_shown(x.shape)}: [N, C, H, W] or [N, H, W, C]?"
        raise DataError(f"{said} Give images of one channel as [N, H, W]")
    return np.moveaxis(x, 3, 1) if last else x


def _in_type(x: NDArray[Any], where: str) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Return bytes as they are, and finite numbers of any precision as float32."""
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    if x.dtype.kind != "f":
        raise DataError(f"{where} holds {x.dtype}; images are uint8, 0 to 255, or floats, which are taken as given")
    with np.errstate(over="ignore"):  # becomes infinite, and is refused
        numbers = np.ascontiguousarray(x, np.float32)
    for index in range(len(numbers)):
        if not np.isfinite(numbers[index]).all():
            raise DataError(f"{where}: image {index} has a pixel that is NaN, infinite or beyond float32")
    return numbers


def _shown(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
