"""The settings that a study file fixes for one trial: what is allowed, and what holds where nothing is said.

Every model is frozen and strict: an integer is accepted for a number, but "0.1", true, nan and inf are not, and an
unknown key is an error, but in a table that is `Open`. The models know nothing of searched values, files or messages:
`hpo.studyfile.study` puts one concrete value at a time into them. A field that only some kinds of network or optimizer
use, or only some values of another key, is marked `UsedBy`; for the others it is carried along unread.
"""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationInfo,
    field_validator,
)

from hpo.studyfile.values import (
    HERE,
    LARGEST,
    MOST_LAYERS,
    STRICT,
    AboveZero,
    Arguments,
    Fraction,
    Name,
    Natural,
    OneForAll,
    Open,
    Positive,
    Reference,
    UsedBy,
    checked_reference,
    number_or,
)


class Settings(BaseModel):
    """What all settings have in common: frozen, strict, no unknown keys, no nan and no infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, **STRICT)


OWN_DATA = "npz:FILE, folder:FOLDER or FILE.py:FUNCTION"


def own_data(dataset: str) -> tuple[Literal["npz", "folder", "code"], str] | None:
    """Return how a data set of the user's own is read, and what: a path or a reference; None for a known data set."""
    kind, colon, path = dataset.partition(":")
    if kind == "npz":
        return "npz", path
    if kind == "folder":
        return "folder", path
    return ("code", dataset) if colon else None


def _own_data(dataset: str) -> str:
    kind, path = own_data(dataset) or ("", "")
    try:
        if kind == "code":
            checked_reference(dataset)
    except ValueError:
        path = ""
    if not path or not dataset.isprintable():
        raise ValueError(f"must be {OWN_DATA}")
    return dataset


class DataSettings(Settings):
    """`[data]`: which images, and how validation is carved from them."""

    dataset: Annotated[
        Annotated[Literal["digits", "mnist", "fashion_mnist", "cifar10"], Tag("known")]
        | Annotated[str, AfterValidator(_own_data), Tag("own")],
        Discriminator(lambda value: "own" if isinstance(value, str) and ":" in value else "known"),
        Field(title="data set", description=f"digits, mnist, fashion_mnist, cifar10, {OWN_DATA}"),
    ]
    validation: float = Field(0.2, gt=0, lt=1)
    train_size: Annotated[int, Field(ge=2, le=LARGEST)] | None = None
    split_seed: Natural = 0


_CNN = UsedBy(("cnn",))
_BUILT_IN = UsedBy(("mlp", "cnn"))
_MODULE = UsedBy(("module",))
_STEP = UsedBy(("step",), key="schedule")


class NetworkSettings(Settings):
    """`[network]`: one trial's network and its initial weights."""

    kind: Literal["mlp", "cnn", "module"]
    module: Annotated[Reference | None, Field(validate_default=True), _MODULE] = None
    args: Annotated[Arguments, Open(), _MODULE] = {}
    hidden: Annotated[list[Positive], Field(max_length=MOST_LAYERS), _BUILT_IN] = [100, 100]
    activation: Annotated[
        Literal["relu", "sigmoid", "tanh", "leaky_relu", "gelu", "elu", "silu"], Field(), _BUILT_IN
    ] = "relu"
    init: Annotated[
        Annotated[Literal["he", "xavier"], Tag("word")] | Annotated[AboveZero, Tag("number")],
        number_or(str, "word"),
        Field(description="he, xavier or a number above 0"),
        _BUILT_IN,
    ] = "he"
    batch_norm: Annotated[bool, Field(), _BUILT_IN] = False
    dropout: Annotated[
        Annotated[Fraction, Tag("number")] | Annotated[list[Fraction], Tag("list")],
        number_or(list, "list"),
        Field(description="a number or a list of numbers"),
        _BUILT_IN,
    ] = 0.0
    conv: Annotated[list[Positive], Field(min_length=1, max_length=MOST_LAYERS), _CNN] = [6, 16]
    kernel: Annotated[Positive, _CNN] = 5
    padding: Annotated[Natural, _CNN] = 0
    pool: Annotated[Positive, _CNN] = 2
    _folder: FilePath = PrivateAttr(HERE)

    @property
    def folder(self) -> FilePath:
        """Where the module's file is looked for."""
        return self._folder

    def located(self, folder: FilePath) -> Self:
        """Return the same settings of a study whose files lie in that folder."""
        copy = self.model_copy()
        copy._folder = folder
        return copy

    @field_validator("module")
    @classmethod
    def _needed_by_its_kind(cls, module: str | None, info: ValidationInfo) -> str | None:
        if module is None and info.data.get("kind") == "module":
            raise ValueError("missing")
        return module

    @property
    def dropout_places(self) -> int:
        """How many places a rate can be given for: after each hidden layer, or before each fully connected one."""
        return _dropout_places(self.kind, self.hidden)

    @field_validator("dropout")
    @classmethod
    def _a_rate_for_each_place(cls, dropout: float | list[float], info: ValidationInfo) -> float | list[float]:
        if isinstance(dropout, list) and {"kind", "hidden"} <= info.data.keys():
            places = _dropout_places(info.data["kind"], info.data["hidden"])
            if len(dropout) != places:
                raise ValueError(f"must be one number or a list of {places}, one for each place")
        return dropout


def _dropout_places(kind: str, hidden: list[int]) -> int:
    return len(hidden) + (kind == "cnn")


class OptimizerSettings(Settings):
    """`[optimizer]`: one trial's optimizer."""

    kind: Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"] = "sgd"
    lr: AboveZero
    weight_decay: float = Field(0.0, ge=0)
    momentum: Annotated[Fraction, UsedBy(("momentum", "nesterov"))] = 0.9
    alpha: Annotated[Fraction, UsedBy(("rmsprop",))] = 0.99
    beta1: Annotated[Fraction, UsedBy(("adam", "adamw"))] = 0.9
    beta2: Annotated[Fraction, UsedBy(("adam", "adamw"))] = 0.999
    eps: Annotated[AboveZero | None, UsedBy(("adagrad", "rmsprop", "adam", "adamw"))] = None
    schedule: Literal["constant", "step", "cosine"] = "constant"
    step_every: Annotated[Positive, _STEP] = 10
    step_factor: Annotated[float, Field(gt=0, lt=1), _STEP] = 0.1
    warmup: float = Field(0.0, ge=0)
    clip: AboveZero | None = None


class TrainingSettings(Settings):
    """`[training]`: how long, in which batches, on what of the images and in which precision."""

    epochs: Positive
    batch_size: Positive = 100
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    label_smoothing: Fraction = 0.0
    flip: float = Field(0.0, ge=0, le=1)
    shift: Natural = 0
    patience: Positive | None = None
    keep: Annotated[Literal["none", "best", "last"], OneForAll()] = "none"
    keep_trials: Annotated[Positive, OneForAll()] = 5


class LimitSettings(Settings):
    """`[search.limits]`: what no trial may exceed; one that would is not trained."""

    parameters: Positive | None = None


ON_VALIDATION = ("val_accuracy", "val_loss")
"""The metrics that an epoch has, of the validation split."""


def is_minimized(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric != "val_accuracy"


class SearchSettings(Settings):
    """`[search]`: how many trials, chosen and judged how."""

    trials: Positive
    sampler: Literal["random", "tpe", "gp", "cmaes", "nsga2", "qmc", "grid"] = "tpe"
    pruner: Literal["none", "median", "hyperband"] = "none"
    metric: Annotated[
        Annotated[Literal["val_accuracy", "val_loss"], Tag("word")]
        | Annotated[list[Literal["val_accuracy", "val_loss", "parameters", "seconds_per_epoch"]], Tag("list")],
        Discriminator(lambda value: "list" if isinstance(value, list) else "word"),
        Field(description="val_accuracy, val_loss, or a list of several, also of parameters and seconds_per_epoch"),
    ] = "val_accuracy"
    score: Literal["last", "best"] = "last"
    population: Annotated[
        Annotated[Literal["auto"], Tag("word")] | Annotated[Positive, Tag("number")],
        number_or(str, "word"),
        Field(description="auto or a whole number"),
    ] = "auto"
    seed: Natural = 0
    points: list[dict[str, Any]] = []
    repeats: Positive = 1
    repeat: bool = False
    retries: Natural = 1
    trial_timeout: AboveZero | None = None
    timeout: AboveZero | None = None
    patience: Positive | None = None
    start_from: list[Name] = []
    limits: LimitSettings = LimitSettings()

    @field_validator("start_from")
    @classmethod
    def _each_study_once(cls, start_from: list[str]) -> list[str]:
        if len(set(start_from)) < len(start_from):
            raise ValueError("must not name a study twice")
        return start_from

    @field_validator("metric")
    @classmethod
    def _several_or_one(cls, metric: str | list[str]) -> str | list[str]:
        if isinstance(metric, list):
            if len(metric) < 2 or len(set(metric)) < len(metric):
                raise ValueError("must name one metric, or list several different ones")
            if metric[0] not in ON_VALIDATION:
                raise ValueError(f"must begin with {' or '.join(ON_VALIDATION)}, by which learning curves are judged")
        return metric

    @property
    def metrics(self) -> tuple[str, ...]:
        """What trials are scored by: one metric, or several, none of which counts more than another."""
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

    @property
    def first_metric(self) -> str:
        """The metric that learning curves are judged by, and in whose order trials are listed."""
        return self.metrics[0]

    @property
    def minimized(self) -> bool:
        """Whether less of the first metric is better."""
        return is_minimized(self.first_metric)

    @property
    def all_minimized(self) -> tuple[bool, ...]:
        """The same of each metric."""
        return tuple(map(is_minimized, self.metrics))


class Config(Settings):
    """One trial's settings, whole."""

    network: NetworkSettings
    optimizer: OptimizerSettings
    training: TrainingSettings

    def located(self, folder: FilePath) -> Self:
        """Return the same settings of a study whose files lie in that folder."""
        return self.model_copy(update={"network": self.network.located(folder)})


class Named(Settings):
    """What every study file has: a name that can be typed."""

    name: Name

    @field_validator("name")
    @classmethod
    def _can_be_typed(cls, name: str) -> str:
        if not name.isprintable():
            raise ValueError("must hold printable characters only")
        if name != name.strip():
            raise ValueError("must not begin or end with a space")
        return name


class StudySettings(Named):
    """A whole study file with one concrete value in place of each searched one; the fields in canonical order."""

    description: str = ""
    data: DataSettings
    network: NetworkSettings
    optimizer: OptimizerSettings
    training: TrainingSettings
    search: SearchSettings
    baseline: dict[str, Any] = {}
