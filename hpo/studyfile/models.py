"""The settings that a study file fixes for one trial: what is allowed, and what holds where nothing is said.

Every model is frozen and strict: an integer is accepted for a number, but "0.1", true, nan and inf are not, and an
unknown key is an error, but in a table that is `Open`. The models know nothing of searched values, files or messages:
`hpo.studyfile.study` puts one concrete value at a time into them. A field that only some kinds of network or optimizer
use, or only some values of another key, is marked `UsedBy`; for the others it is carried along unread.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from hpo.studyfile.trees import Path

LARGEST = 2**63 - 1  # what SQL, NumPy and torch can hold
DEEPEST = 4  # lists in lists of an argument
HERE = FilePath()
"""The current folder."""


@dataclass(frozen=True)
class UsedBy:
    """Marks a field that only these kinds of its section use, or only these values of another of its keys."""

    values: tuple[str, ...]
    key: str = "kind"


@dataclass(frozen=True)
class OneForAll:
    """Marks a field of a searchable section that is the same for all trials: it does not change what they learn."""


@dataclass(frozen=True)
class Open:
    """Marks a table of a searchable section whose keys are not the models': each of its values may be searched."""


Natural = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
AboveZero = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


def _reference(text: str) -> str:
    file, colon, name = text.rpartition(":")
    if not (colon and file.endswith(".py") and all(part.isidentifier() for part in name.split("."))):
        raise ValueError('must be FILE.py:NAME, such as "my_net.py:Net"')
    return text


Reference = Annotated[str, AfterValidator(_reference)]
"""The user's own code: a Python file, relative to the study file's folder, and a name in it (hpo/usercode.py)."""


def _argument_name(name: str) -> str:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError("is no name that an argument can have in Python")
    return name


def _argument(value: Any, depth: int = 0) -> Any:
    if depth > DEEPEST:
        raise ValueError("is nested too deeply")
    if isinstance(value, list):
        return [_argument(each, depth + 1) for each in value]
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > LARGEST:
            raise ValueError("is too large")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
    elif not isinstance(value, str):
        raise ValueError("must be a number, a string, true, false or a list of them")
    elif any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("must be a string of whole Unicode characters")
    return value


Arguments = dict[Annotated[str, AfterValidator(_argument_name)], Annotated[Any, AfterValidator(_argument)]]


def _number_or(other: type, tag: str) -> Discriminator:
    """Pick the one branch of a union that a value is checked against, so that a wrong one makes one error."""
    return Discriminator(lambda value: tag if isinstance(value, other) else "number")


STRICT = ConfigDict(strict=True, allow_inf_nan=False)


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
            _reference(dataset)
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
    hidden: Annotated[list[Positive], _BUILT_IN] = [100, 100]
    activation: Annotated[
        Literal["relu", "sigmoid", "tanh", "leaky_relu", "gelu", "elu", "silu"], Field(), _BUILT_IN
    ] = "relu"
    init: Annotated[
        Annotated[Literal["he", "xavier"], Tag("word")] | Annotated[AboveZero, Tag("number")],
        _number_or(str, "word"),
        Field(description="he, xavier or a number above 0"),
        _BUILT_IN,
    ] = "he"
    batch_norm: Annotated[bool, Field(), _BUILT_IN] = False
    dropout: Annotated[
        Annotated[Fraction, Tag("number")] | Annotated[list[Fraction], Tag("list")],
        _number_or(list, "list"),
        Field(description="a number or a list of numbers"),
        _BUILT_IN,
    ] = 0.0
    conv: Annotated[list[Positive], Field(min_length=1), _CNN] = [6, 16]
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
        _number_or(str, "word"),
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


def sections(model: type[Settings]) -> dict[str, type[Settings]]:
    """Return the tables of a study file, by key."""
    return {
        key: field.annotation
        for key, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
    }


SECTIONS = sections(StudySettings)
SEARCHABLE = tuple(Config.model_fields)  # the sections whose values may be searched


@cache
def names() -> dict[str, Path]:
    """Map each setting's short name to its path: its key, or the dotted path of a key that several sections own."""
    paths: list[Path] = [(key,) for key in StudySettings.model_fields if key not in SECTIONS]
    paths += [(section, key) for section, model in SECTIONS.items() for key in model.model_fields]
    keys = [path[-1] for path in paths]
    return {str(path[-1]) if keys.count(path[-1]) == 1 else ".".join(map(str, path)): path for path in paths}


@cache
def open_tables() -> frozenset[Path]:
    """Return the paths of the tables whose keys are not the models', each of which may be searched."""
    return frozenset[Path](_marked(Open))


@cache
def for_all() -> frozenset[tuple[str, str]]:
    """Return the paths of the keys that cannot be searched although others of their section can."""
    return _marked(OneForAll)


def _marked(kind: type[OneForAll] | type[UsedBy] | type[Open]) -> frozenset[tuple[str, str]]:
    return frozenset(
        (section, key)
        for section in SEARCHABLE
        for key, field in SECTIONS[section].model_fields.items()
        if any(isinstance(mark, kind) for mark in field.metadata)
    )


@cache
def conditional() -> frozenset[tuple[str, str]]:
    """Return the paths of the keys that only some values of another key use."""
    return _marked(UsedBy)


def unused_keys(section: str, values: Mapping[str, object]) -> dict[str, UsedBy]:
    """Return the keys of a section that nothing its table may say uses, each with the mark that says what does.

    A table that names a kind, or another such value, that is none has no keys that go unused for it.
    """
    marks = {
        key: mark
        for key, field in SECTIONS[section].model_fields.items()
        for mark in field.metadata
        if isinstance(mark, UsedBy)
    }
    possible = {mark: possible_values(section, mark.key, values) for mark in set(marks.values())}
    return {key: mark for key, mark in marks.items() if possible[mark] and not set(mark.values) & set(possible[mark])}


@cache
def _adapter(section: str, key: str) -> TypeAdapter[Any]:
    field = SECTIONS[section].model_fields[key]
    allowed: Any = Annotated[field.annotation, Field(), *field.metadata]
    return TypeAdapter(allowed, config=STRICT)


def understood(section: str, key: str, value: Any) -> Any:
    """Return a value as its key means it, 0.0 where 0 stands for a fraction; itself where it cannot be one."""
    try:
        return _adapter(section, key).validate_python(value)
    except ValidationError:
        return value


def possible_values(section: str, key: str, values: Mapping[str, object]) -> list[str]:
    """Return the words that a key may be, as a section's table says, or none where it says one that is not allowed."""
    field = SECTIONS[section].model_fields[key]
    value = values.get(key, field.default)
    words = value.get("choices") if isinstance(value, Mapping) else [value]
    return words if isinstance(words, list) and all(word in get_args(field.annotation) for word in words) else []
