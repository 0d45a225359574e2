"""Sections of a study as Python objects, with the keys of a study file: `hpo.Optimizer(lr=hpo.Range(1e-4, 1e-1))`.

docs/reference/study-file.md describes every key with its limits. A keyword that is not given, or None, has its default.
Where a study file has `{ low, high }` or `{ choices }`, use a `Range` or `Choices`, as a value or as an element of a
list. A section checks each value when it is made; `hpo.Study` checks the rules between keys and sections.

A network, loss, metric or objective function may be the class or function itself instead of "FILE.py:NAME". One that is
in no file of its own, as in a notebook, exists in this process only; so do arrays and DataFrames.

`when` is for conditional parameters: `when={"kind": {"adam": hpo.Optimizer(lr=0.001)}}` is the table
`[optimizer.when.kind.adam]`. A choice is a key as Python has it: a string, a number, True, or a tuple for a list.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias

from hpo.api.section_check import check_section
from hpo.errors import StudyFileError
from hpo.memory_code import is_in_memory
from hpo.studyfile.conditions import choice_key
from hpo.studyfile.messages import unknown_key_text
from hpo.studyfile.models import ValidationMetric
from hpo.studyfile.searched import Choices, Range

Bool: TypeAlias = bool | Choices
Float: TypeAlias = float | Range | Choices
Int: TypeAlias = int | Range | Choices
Ints: TypeAlias = Sequence[Int] | Choices

Dataset: TypeAlias = Literal["digits", "mnist", "fashion_mnist", "cifar10", "breast_cancer", "wine", "diabetes"]
Activation: TypeAlias = Literal["relu", "sigmoid", "tanh", "leaky_relu", "gelu", "elu", "silu"]
OptimizerKind: TypeAlias = Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lion", "muon"]
Schedule: TypeAlias = Literal["constant", "step", "cosine", "onecycle", "plateau"]
Sampler: TypeAlias = Literal["random", "tpe", "gp", "cmaes", "nsga2", "qmc", "grid"]
Metric: TypeAlias = Literal[ValidationMetric, "parameters", "seconds_per_epoch"] | str | Callable[..., Any]
Direction: TypeAlias = Literal["minimize", "maximize"]

Code: TypeAlias = Callable[..., Any]
"""A class or function of the user."""


class ArrayLike(Protocol):
    """A NumPy array, a torch tensor, or a column of a DataFrame."""

    def __array__(self) -> Any:
        """Return the values as a NumPy array."""


class DataFrame(Protocol):
    """A DataFrame of pandas or polars."""

    @property
    def columns(self) -> Any:
        """The names of the columns."""


Array: TypeAlias = ArrayLike | Sequence[Any]


class KeywordError(StudyFileError, TypeError):
    """A section or study has no keyword of that name."""


_ARRAYS = ("x", "y", "x_val", "y_val", "x_test", "y_test", "classes")
"""The keywords of `Data` that are data."""


class Keywords:
    """Base class that remembers which keywords were given, and suggests the nearest one for a wrong one."""

    if not TYPE_CHECKING:  # type checkers and editors read the signature of __init__

        def __new__(cls, *args: Any, **given: Any) -> Self:
            known = list(inspect.signature(cls.__init__).parameters)[1:]
            for key in given:
                if key not in known:
                    raise KeywordError(f"hpo.{cls.__name__}", key, unknown_key_text(key, known))
            made = super().__new__(cls)
            made.__dict__["_given"] = frozenset(given)
            return made


class Section(Keywords):
    """Base class of all sections. A study file gets the keys that were given, even at their defaults, and no others."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        try:
            check_section(name.lower(), plain(self.tree()), f"hpo.{name}")
        except UnnamedCodeError as error:
            key = next(key for key, value in self.tree().items() if error.value in (value, *_elements(value)))
            raise StudyFileError(f"hpo.{name}", key, str(error)) from error

    def tree(self) -> dict[str, Any]:
        """Return the keys that were given, with their values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]  # a dataclass
        given: frozenset[str] = self.__dict__["_given"]
        if len(given) == len(values):  # by dataclasses.replace, which passes every field
            given = frozenset(each.name for each in fields(self) if not _is_default(values[each.name], each))  # type: ignore[arg-type]
        return {key: value for key, value in values.items() if key in given and value is not None}


def _is_default(value: Any, of: Field[Any]) -> bool:
    default = of.default if of.default_factory is MISSING else of.default_factory()
    is_data = hasattr(value, "__array__") or hasattr(value, "columns")  # whose == is an array
    return value is default or (not is_data and bool(value == default))


@dataclass(frozen=True, kw_only=True, eq=False)  # == of arrays is an array, not a bool
class Data(Section):
    """`[data]`: the data set, and the split of its training examples into training and validation.

    One of these has the examples:

    - `dataset`, the name "digits", "mnist", "fashion_mnist", "cifar10", "breast_cancer", "wine", "diabetes", or the
      user's "table:FILE", "npz:FILE", "folder:FOLDER" or "FILE.py:FUNCTION";
    - `x` and `y`, arrays, tensors or lists, [examples, ...] and [examples] or [examples, columns], optionally with a
      validation set, a sealed test set, the names of the classes, and `groups`, an array [examples];
    - `table`, a pandas or polars DataFrame, whose columns `target` are predicted from its `features`.

    `validation` is the fraction for the validation split (above 0, below 1), or of a table the file or DataFrame with
    the validation set. `train_size` is the number of examples to use, `split_seed` the seed of the split, `groups` the
    name of an array or column, `folds` the number of folds of a cross-validation, `splits` the number of splits over
    which `repeats` are spread. `target`, `features`, `categorical` and `test` (a fraction of the rows, a file or a
    DataFrame) are for a table.
    """

    dataset: Dataset | str | None = None
    validation: float | str | DataFrame = "auto"
    train_size: int | None = None
    split_seed: int = 0
    stratify: bool | Literal["auto"] = "auto"
    groups: str | Array | None = None
    order: Literal["time"] | None = None
    folds: int | None = None
    splits: int | None = None
    target: str | Sequence[str] | None = None
    features: Sequence[str] | None = None
    categorical: Sequence[str] | None = None
    test: str | float | DataFrame | None = None
    x: Array | None = None
    y: Array | None = None
    x_val: Array | None = None
    y_val: Array | None = None
    x_test: Array | None = None
    y_test: Array | None = None
    classes: Sequence[str] | None = None
    table: DataFrame | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_memory", self._remember())
        super().__post_init__()

    def tree(self) -> dict[str, Any]:
        """Return the keys that were given, with the names of arrays and DataFrames in this process."""
        memory: dict[str, Any] = self.__dict__["_memory"]
        given = {key: value for key, value in super().tree().items() if key not in (*_ARRAYS, "table")}
        return ({"dataset": memory["dataset"]} if "dataset" in memory else {}) | given | memory

    def __eq__(self, other: object) -> bool:
        return self.tree() == other.tree() if isinstance(other, Data) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # its lists have no hash

    def _remember(self) -> dict[str, Any]:
        """Make the arrays or DataFrames known in this process; return the keys that name them."""
        arrays = {key: getattr(self, key) for key in _ARRAYS if getattr(self, key) is not None}
        kinds = {"dataset": self.dataset is not None, "x and y": bool(arrays), "table": self.table is not None}
        if list(kinds.values()).count(True) != 1:
            given = " and ".join(kind for kind, is_given in kinds.items() if is_given)
            problem = f"{given} exclude each other" if given else "missing"
            raise StudyFileError("hpo.Data", "dataset", f"{problem}: pass a data set, x and y, or a table")
        if self.table is not None:
            from hpo.data.user.memory_table import remember_table

            memory = {"dataset": f"table:{remember_table(self.table)}"}
            others = {"validation": self.validation, "test": self.test}
            return memory | {key: remember_table(each) for key, each in others.items() if hasattr(each, "columns")}
        if not arrays:
            return {}
        from hpo.data.user.memory_arrays import remember_arrays

        groups = {} if self.groups is None else {"groups": self.groups}
        return {"dataset": remember_arrays(arrays | groups)} | {key: key for key in groups}


@dataclass(frozen=True, kw_only=True)
class Task(Section):
    """`[task]`: the kind of targets; the loss, its name, "FILE.py:NAME" or a function, and weights in it.

    A function `loss(output, targets)` returns the loss of each example, [B]. `top_k` is the k of "val_top_k".
    """

    kind: Literal["classification", "multilabel", "regression"] = "classification"
    loss: Literal["cross_entropy", "bce", "mse", "mae", "huber", "gaussian_nll"] | str | Code | None = None
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

    `kind` is required, except beside `module` and in `when`. `module` is a subclass of `torch.nn.Module`, a function
    that returns a module, or "FILE.py:NAME"; it is called with `args`, and with `shape` and `classes` if it has them.
    The other keys are for the built-in networks.
    """

    kind: Literal["mlp", "cnn", "module"] | Choices | None = None
    module: str | Code | Choices | None = None
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
    adamw_lr: Float | None = None
    adjust_lr: Literal["original", "match_rms_adamw"] | Choices = "original"
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
    ema: Float = 0.0
    flip: Float = 0.0
    shift: Int = 0
    cutout: Int = 0
    mixup: Float = 0.0
    patience: Int | None = None
    keep: Literal["none", "best", "last"] = "none"
    keep_trials: int = 5
    checkpoint: Literal["auto", "none"] | int = "auto"
    when: Mapping[str, Mapping[Any, Training]] | None = None


@dataclass(frozen=True, kw_only=True)
class Search(Section):
    """`[search]`: the number of trials, how they are sampled, pruned and ranked, and their limits.

    `timeout` and `trial_timeout` are in seconds, `rung` in epochs, `patience` in trials. A list for `metric` makes a
    search for the Pareto front. A metric of the user's own, a function or "FILE.py:NAME", has a `direction`. So has an
    objective study ("minimize" by default), or a list of one for each value; its other defaults are `pruner="median"`
    and `retries=0`; its `repeats` are of `points` only.
    """

    trials: int
    direction: Direction | Sequence[Direction] | None = None
    sampler: Sampler = "tpe"
    pruner: Literal["auto", "none", "median", "hyperband", "halving"] = "auto"
    rung: int = 3
    factor: int = 3
    random_share: float = 0.1
    metric: ValidationMetric | str | Code | Sequence[Metric] = "val_accuracy"
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


_CODE_KEYS = {"module": True, "loss": True, "metric": True, "objective": True, "args": False}
"""Keys whose values are the user's code, or are not."""


class UnnamedCodeError(ValueError):
    """An object cannot be the user's code: it is no function or class, or has no name."""

    def __init__(self, value: Any, problem: str) -> None:
        self.value = value
        super().__init__(problem)


def plain(value: Any, folder: Path = Path(), memory: dict[str, Any] | None = None, is_code: bool | None = None) -> Any:
    """Return a value as a study file has it: a section, range or choices as a table, a tuple as a list, code by name.

    The values of the keys module, loss, metric and objective are code, whatever its form, and those of `args` are not;
    `is_code` decides for a value without a key. Files of code are relative to `folder`; what is in no file is added to
    `memory`, by its reference. Raises UnnamedCodeError, and StudyFileError for two objects of one name.
    """
    if isinstance(value, Section | Range | Choices):
        value = value.tree()
    if isinstance(value, Mapping):
        keys = {choice_key(plain(key)): each for key, each in value.items()}
        known = {} if is_code is False else _CODE_KEYS
        return {key: plain(each, folder, memory, known.get(key, is_code)) for key, each in keys.items()}
    if isinstance(value, list | tuple):
        return [plain(each, folder, memory, is_code) for each in value]
    if not is_code or not callable(value):
        return value
    from hpo.usercode import reference_to

    try:
        reference = reference_to(value, folder)
    except ValueError as error:
        raise UnnamedCodeError(value, str(error)) from error
    if memory is not None and is_in_memory(reference) and memory.setdefault(reference, value) is not value:
        raise StudyFileError("hpo.Study", "", f"has two different objects named {value.__name__}: rename one of them")
    return reference


def _elements(value: Any) -> Sequence[Any]:
    """Return the elements of a list or of choices."""
    return value.choices if isinstance(value, Choices) else value if isinstance(value, list | tuple) else ()
