"""A study's sections as Python objects, with the keys of a study file: `hpo.Optimizer(lr=hpo.Range(1e-4, 1e-1))`.

docs/reference/study-file.md has every key with its limits and default. A key that is left out, or None, has its
default. Where a file says `{ low, high }` or `{ choices }`, a `Range` or `Choices` stands here, in the place of a value
or of an element of a list. A section holds what it is given; `hpo.Study` checks it, for many keys depend on each other.

`when` says what else holds only with a certain choice: `when={"kind": {"adam": hpo.Optimizer(lr=0.001)}}` is
`[optimizer.when.kind.adam]`. A choice is a key as Python has it: a word, a number, True, or a tuple for a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from hpo.studyfile.cases import written
from hpo.studyfile.searched import Choices, Range

Flag: TypeAlias = bool | Choices
Float: TypeAlias = float | Range | Choices
Int: TypeAlias = int | Range | Choices
Word: TypeAlias = str | Choices
Ints: TypeAlias = Sequence[Int] | Choices


class Section:
    """What all sections have in common: they become a table of a study file."""

    def tree(self) -> dict[str, Any]:
        """Return the keys that are given, with their values as a study file has them."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]  # each is a dataclass
        return {key: plain(value) for key, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """`[data]`: which images, and the part of the training images, above 0 and below 1, that scores the trials."""

    dataset: str
    validation: float | None = None
    train_size: int | None = None
    split_seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Network(Section):
    """`[network]`: one trial's network, its rates of dropout (0 or more, below 1) and its initial weights."""

    kind: Word | None = None
    module: Word | None = None
    args: Mapping[str, Any] | None = None
    hidden: Ints | None = None
    activation: Word | None = None
    init: str | Float | None = None
    batch_norm: Flag | None = None
    dropout: Float | Sequence[Float] | None = None
    conv: Ints | None = None
    kernel: Int | None = None
    padding: Int | None = None
    pool: Int | None = None
    when: Mapping[str, Mapping[Any, Network]] | None = None


@dataclass(frozen=True, kw_only=True)
class Optimizer(Section):
    """`[optimizer]`: one trial's optimizer, the learning rate and its schedule, in epochs.

    Only a case may lack `lr`.
    """

    lr: Float | None = None
    kind: Word | None = None
    weight_decay: Float | None = None
    momentum: Float | None = None
    alpha: Float | None = None
    beta1: Float | None = None
    beta2: Float | None = None
    eps: Float | None = None
    schedule: Word | None = None
    step_every: Int | None = None
    step_factor: Float | None = None
    warmup: Float | None = None
    clip: Float | None = None
    when: Mapping[str, Mapping[Any, Optimizer]] | None = None


@dataclass(frozen=True, kw_only=True)
class Training(Section):
    """`[training]`: how many epochs, in which batches (images), on what of the images and in which precision.

    Only a case may lack `epochs`.
    """

    epochs: Int | None = None
    batch_size: Int | None = None
    precision: Word | None = None
    label_smoothing: Float | None = None
    flip: Float | None = None
    shift: Int | None = None
    patience: Int | None = None
    keep: str | None = None
    keep_trials: int | None = None
    when: Mapping[str, Mapping[Any, Training]] | None = None


@dataclass(frozen=True, kw_only=True)
class Search(Section):
    """`[search]`: how many trials in all, chosen and judged how; `timeout` and `trial_timeout` are in seconds.

    Several objectives are a list for `metric`. `direction`, minimize or maximize or a list, is for the user's own
    objective.
    """

    trials: int
    direction: str | Sequence[str] | None = None
    sampler: str | None = None
    pruner: str | None = None
    metric: str | Sequence[str] | None = None
    score: str | None = None
    population: int | str | None = None
    seed: int | None = None
    points: Sequence[Mapping[str, Any]] | None = None
    repeats: int | None = None
    repeat: bool | None = None
    retries: int | None = None
    trial_timeout: float | None = None
    timeout: float | None = None
    patience: int | None = None
    start_from: Sequence[str] | None = None
    limits: Mapping[str, Any] | None = None


def plain(value: Any) -> Any:
    """Return a value as TOML or JSON would have given it: tables, lists and what is neither."""
    if isinstance(value, Section | Range | Choices):
        return {key: plain(each) for key, each in value.tree().items()}
    if isinstance(value, Mapping):
        return {written(plain(key)): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value
