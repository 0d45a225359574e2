"""Sections of a study as Python objects, with the keys of a study file: `hpo.Optimizer(lr=hpo.Range(1e-4, 1e-1))`.

docs/reference/study-file.md describes every key with its limits. A keyword that is not given, or None, has its default.
Where a study file has `{ low, high }` or `{ choices }`, use a `Range` or `Choices`, as a value or as an element of a
list. A section checks its keywords only; `hpo.Study` checks the values, because many depend on other sections.

`when` is for conditional parameters: `when={"kind": {"adam": hpo.Optimizer(lr=0.001)}}` is the table
`[optimizer.when.kind.adam]`. A choice is a key as Python has it: a string, a number, True, or a tuple for a list.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from hpo.studyfile.conditions import choice_key
from hpo.studyfile.messages import unknown_key_text
from hpo.studyfile.models import ValidationMetric
from hpo.studyfile.searched import Choices, Range

Bool: TypeAlias = bool | Choices
Float: TypeAlias = float | Range | Choices
Int: TypeAlias = int | Range | Choices
Ints: TypeAlias = Sequence[Int] | Choices

Activation: TypeAlias = Literal["relu", "sigmoid", "tanh", "leaky_relu", "gelu", "elu", "silu"]
OptimizerKind: TypeAlias = Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lion"]
Schedule: TypeAlias = Literal["constant", "step", "cosine", "onecycle", "plateau"]
Sampler: TypeAlias = Literal["random", "tpe", "gp", "cmaes", "nsga2", "qmc", "grid"]
Metric: TypeAlias = Literal[ValidationMetric, "parameters", "seconds_per_epoch"] | str
Direction: TypeAlias = Literal["minimize", "maximize"]


class Keywords:
    """Base class that remembers which keywords were given, and suggests the nearest one for a wrong one."""

    if not TYPE_CHECKING:  # type checkers and editors read the signature of __init__

        def __new__(cls, *args: Any, **given: Any) -> Self:
            known = list(inspect.signature(cls.__init__).parameters)[1:]
            for key in given:
                if key not in known:
                    raise TypeError(f"hpo.{cls.__name__}: {key}: {unknown_key_text(key, known)}")
            made = super().__new__(cls)
            made.__dict__["_given"] = frozenset(given)
            return made


class Section(Keywords):
    """Base class of all sections. A study file gets the keys that were given, even at their defaults, and no others."""

    def tree(self) -> dict[str, Any]:
        """Return the keys that were given, with their values as a study file has them."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]  # a dataclass
        given: frozenset[str] = self.__dict__["_given"]
        if len(given) == len(values):  # by dataclasses.replace, which passes every field
            given = frozenset(each.name for each in fields(self) if values[each.name] != _default(each))  # type: ignore[arg-type]
        return {key: plain(value) for key, value in values.items() if key in given and value is not None}


def _default(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """`[data]`: the data set, and the split of its training examples into training and validation.

    `dataset` is "digits", "mnist", "fashion_mnist", "cifar10", "breast_cancer", "wine", "diabetes", "table:FILE",
    "npz:FILE", "folder:FOLDER" or "FILE.py:FUNCTION". `validation` is the fraction for the validation split (above 0,
    below 1), or for a table the file with the validation set, `groups` the name of an array or column, `folds` the
    number of folds of a cross-validation, `splits` the number of splits over which `repeats` are spread. The keywords
    from `target` on are for a table.
    """

    dataset: Literal["digits", "mnist", "fashion_mnist", "cifar10", "breast_cancer", "wine", "diabetes"] | str
    validation: float | str = "auto"
    train_size: int | None = None
    split_seed: int = 0
    stratify: bool | Literal["auto"] = "auto"
    groups: str | None = None
    order: Literal["time"] | None = None
    folds: int | None = None
    splits: int | None = None
    target: str | Sequence[str] | None = None
    features: Sequence[str] | None = None
    categorical: Sequence[str] | None = None
    test: str | float | None = None


@dataclass(frozen=True, kw_only=True)
class Task(Section):
    """`[task]`: the kind of targets; the loss, or "FILE.py:NAME", and weights in it; the k of "val_top_k"."""

    kind: Literal["classification", "multilabel", "regression"] = "classification"
    loss: Literal["cross_entropy", "bce", "mse", "mae", "huber", "gaussian_nll"] | str | None = None
    class_weights: Literal["balanced"] | Sequence[float] | None = None
    pos_weight: Literal["balanced"] | Sequence[float] | None = None
    top_k: int | None = None


@dataclass(frozen=True, kw_only=True)
class Preprocess(Section):
    """`[preprocess]`: the preprocessing of the inputs, which is fitted on training examples only.

    `impute`, `categorical` and `unknown` are for a table.
    """

    standardize: bool = False
    impute: Literal["none", "median", "mean", "most_frequent"] = "none"
    categorical: Literal["onehot", "embedding"] = "onehot"
    unknown: Literal["error", "ignore"] = "error"
    image: Literal["none", "per-channel"] = "none"


@dataclass(frozen=True, kw_only=True)
class Network(Section):
    """`[network]`: one trial's network, its dropout rates (0 or more, below 1) and its initial weights.

    `kind` is required, except beside `module` and in `when`.
    """

    kind: Literal["mlp", "cnn", "module"] | Choices | None = None
    module: str | Choices | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    hidden: Ints = (100, 100)
    activation: Activation | Choices = "relu"
    init: Literal["he", "xavier"] | Float = "he"
    batch_norm: Bool = False
    dropout: Float | Sequence[Float] = 0.0
    conv: Ints = (6, 16)
    kernel: Int = 5
    padding: Int = 0
    pool: Int = 2
    when: Mapping[str, Mapping[Any, Network]] | None = None


@dataclass(frozen=True, kw_only=True)
class Optimizer(Section):
    """`[optimizer]`: one trial's optimizer, its learning rate, and the schedule, in epochs.

    `lr` is required, except in `when`.
    """

    lr: Float | None = None
    kind: OptimizerKind | Choices = "sgd"
    weight_decay: Float = 0.0
    momentum: Float = 0.9
    alpha: Float = 0.99
    beta1: Float = 0.9
    beta2: Float = 0.999
    eps: Float | None = None
    schedule: Schedule | Choices = "constant"
    step_every: Int = 10
    step_factor: Float = 0.1
    pct_start: Float = 0.3
    div_factor: Float = 25.0
    final_div_factor: Float = 1e4
    plateau_factor: Float = 0.1
    plateau_patience: Int = 10
    warmup: Float = 0.0
    clip: Float | None = None
    when: Mapping[str, Mapping[Any, Optimizer]] | None = None


@dataclass(frozen=True, kw_only=True)
class Training(Section):
    """`[training]`: the number of epochs, the batch size (in examples), augmentation, precision and early stopping.

    `epochs` is required, except in `when`.
    """

    epochs: Int | None = None
    batch_size: Int = 100
    precision: Literal["auto", "float32", "bfloat16", "float64"] | Choices = "auto"
    label_smoothing: Float = 0.0
    flip: Float = 0.0
    shift: Int = 0
    patience: Int | None = None
    keep: Literal["none", "best", "last"] = "none"
    keep_trials: int = 5
    checkpoint: Literal["auto", "none"] | int = "auto"
    when: Mapping[str, Mapping[Any, Training]] | None = None


@dataclass(frozen=True, kw_only=True)
class Search(Section):
    """`[search]`: the number of trials, how they are sampled, pruned and ranked, and their limits.

    `timeout` and `trial_timeout` are in seconds. A list for `metric` makes a search for the Pareto front. A metric of
    the user's own, "FILE.py:NAME", has a `direction`. So has an objective study ("minimize" by default), or a list of
    one for each value; its other defaults are `pruner="median"` and `retries=0`; its `repeats` are of `points` only.
    """

    trials: int
    direction: Direction | Sequence[Direction] | None = None
    sampler: Sampler = "tpe"
    pruner: Literal["auto", "none", "median", "hyperband", "halving"] = "auto"
    rung: int = 3
    factor: int = 3
    random_share: float = 0.1
    metric: ValidationMetric | str | Sequence[Metric] = "val_accuracy"
    score: Literal["last", "best"] = "last"
    population: int | Literal["auto"] = "auto"
    seed: int = 0
    points: Sequence[Mapping[str, Any]] = ()
    repeats: int = 1
    repeat: bool = False
    retries: int = 1
    trial_timeout: float | None = None
    timeout: float | None = None
    patience: int | None = None
    start_from: Sequence[str] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)


def plain(value: Any) -> Any:
    """Return a value as a study file has it: a section, range or choices as a table, a tuple as a list."""
    if isinstance(value, Section | Range | Choices):
        return {key: plain(each) for key, each in value.tree().items()}
    if isinstance(value, Mapping):
        return {choice_key(plain(key)): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value
