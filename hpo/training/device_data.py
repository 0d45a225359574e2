"""Training and validation examples as tensors on one device, copied there once; shape and type of one example.

The tensors are made from arrays; files are read in `hpo.data`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.data import Examples, Split
from hpo.training.devices import widest_float
from hpo.training.tasks.task import Task, classification

Shape = tuple[int, ...]
"""Shape of one example: (features,) of a table, (channels, height, width) of an image."""


class IntegerShape(Shape):
    """Shape of one example of integers, such as token ids. Networks get them as int64 in every precision."""

    __slots__ = ()


class IndexedShape(Shape):
    """Shape of a row of a table whose last columns are indices for embeddings; `indices` is the number of each one's.

    Such a table is float32 also where networks compute in bfloat16, which has no exact index above 256.
    """

    indices: tuple[int, ...]

    def __new__(cls, sides: Shape, indices: Sequence[int]) -> Self:
        """Return the shape `sides`, (features,), with these numbers of indices."""
        shape = super().__new__(cls, sides)
        shape.indices = tuple(indices)
        return shape


@dataclass(frozen=True)
class DeviceSplit:
    """Training and validation examples [N, ...], targets, [N] int64 or [N, D], and the study's task, on one device.

    `seed` is the split's seed; the order of the batches is derived from it. With `data.folds` this is the first fold.
    `compute` is the type that networks compute in, which is also the type of the examples unless these are integers or
    have indices. `indices` are those of an `IndexedShape`.
    """

    train: Tensor
    train_targets: Tensor
    validation: Tensor
    validation_targets: Tensor
    task: Task
    seed: int
    compute: torch.dtype = torch.float32
    indices: tuple[int, ...] = ()
    other_folds: tuple[DeviceSplit, ...] = ()

    @property
    def folds(self) -> tuple[DeviceSplit, ...]:
        """Return all folds; without `data.folds`, the split alone."""
        return (self, *self.other_folds)

    @property
    def nbytes(self) -> int:
        """The size of the examples of all folds, in bytes."""
        return sum(fold.train.nbytes + fold.validation.nbytes for fold in self.folds)

    @property
    def shape(self) -> Shape:
        """Return the shape of one example."""
        return example_shape(self.train, self.indices)

    @property
    def device(self) -> torch.device:
        """Return the device of the tensors."""
        return self.train.device

    def in_type(self, dtype: torch.dtype) -> DeviceSplit:
        """Return the split for networks that compute in `dtype`; tensors that have their type are not copied."""
        exact = torch.float32 if self.indices and dtype != torch.float64 else dtype
        train, validation = (each.to(input_type(each, exact)) for each in (self.train, self.validation))
        others = tuple(fold.in_type(dtype) for fold in self.other_folds)
        return replace(self, train=train, validation=validation, compute=dtype, other_folds=others)


def split_shape(split: Split) -> Shape:
    """Return the shape of one example of a split."""
    return example_shape(split.train.inputs, split.preprocessing.indices)


def example_shape(inputs: Tensor | NDArray[Any], indices: Sequence[int] = ()) -> Shape:
    """Return the shape of one of these examples, [N, ...]; `indices` are those of an `IndexedShape`."""
    if indices:
        return IndexedShape(tuple(inputs.shape[1:]), indices)
    is_float = inputs.is_floating_point() if isinstance(inputs, Tensor) else inputs.dtype.kind == "f"
    return tuple(inputs.shape[1:]) if is_float else IntegerShape(inputs.shape[1:])


def describe(shape: Shape) -> str:
    """Return words for the shape of an example: `30 features`, `12 integers` or `3 x 32 x 32 pixels`."""
    sides = " x ".join(map(str, shape))
    return f"{sides} {'integers' if isinstance(shape, IntegerShape) else 'features' if len(shape) == 1 else 'pixels'}"


def input_type(inputs: Tensor, compute: torch.dtype) -> torch.dtype:
    """Return the type in which a network that computes in `compute` gets its inputs: integers stay integers."""
    return compute if inputs.is_floating_point() else inputs.dtype


def zero_example(shape: Shape, device: torch.device | None = None) -> Tensor:
    """Return a batch of one example of zeros."""
    return torch.zeros(1, *shape, dtype=torch.int64 if isinstance(shape, IntegerShape) else None, device=device)


def extreme_examples(inputs: Tensor) -> Tensor:
    """Return those of the examples that have the smallest or the largest value at any position."""
    flat = inputs.flatten(1)
    return inputs[torch.unique(torch.cat([flat.argmin(0), flat.argmax(0)]))]


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return the number of batches in an epoch of training examples.

    A last batch of one example is left out, because it has no variance. It is left out also without batch norm, so that
    trials can be compared.
    """
    whole, rest = divmod(examples, batch_size)
    return whole + (rest > 1 or (rest == 1 and whole == 0))


def to_device(split: Split, seed: int, device: torch.device, tasks: Sequence[Task] = ()) -> DeviceSplit:
    """Copy a split to the device. `seed` is the split's seed.

    `tasks` are those of the folds, by default the classification without settings.

    Raises torch's error where the memory is too small.
    """
    first, *others = (
        DeviceSplit(
            train=torch.from_numpy(fold.train.inputs).to(device),
            train_targets=_targets(fold.train, device),
            validation=torch.from_numpy(fold.validation.inputs).to(device),
            validation_targets=_targets(fold.validation, device),
            task=task.to(device),
            seed=seed,
            indices=tuple(fold.preprocessing.indices),
        )
        for fold, task in zip(split.folds, tasks or len(split.folds) * [classification(split.classes)], strict=True)
    )
    return replace(first, other_folds=tuple(others))


def _targets(examples: Examples, device: torch.device) -> Tensor:
    targets = torch.from_numpy(examples.targets)
    return targets.to(device, widest_float(device)) if targets.is_floating_point() else targets.to(device)
