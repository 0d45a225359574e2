"""Settings of a study file with concrete values: types, limits and defaults.

Every model is frozen and strict: an integer is a number, but "0.1", true, nan and inf are not, and an unknown key is an
error, except in a table marked `OpenTable`. A field marked `UsedBy` is used only with some values of another key, such
as `kind`, and ignored with the others. Searched values are replaced by concrete ones before a model sees them.
"""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PrivateAttr,
    Tag,
    ValidationInfo,
    field_validator,
)

from hpo.errors import OTHER_TASKS
from hpo.studyfile.data_settings import DataSettings, PreprocessSettings
from hpo.studyfile.metrics import VALIDATION_METRICS, curve_key, is_user_defined
from hpo.studyfile.task_settings import TaskSettings
from hpo.studyfile.values import (
    CURRENT_FOLDER,
    MAX_LAYERS,
    AboveZero,
    Arguments,
    Fraction,
    Name,
    Natural,
    NotSearchable,
    OpenTable,
    Positive,
    Reference,
    Settings,
    UsedBy,
    number_or,
    word_or_reference,
)

_CNN = UsedBy(("cnn",))
_BUILT_IN = UsedBy(("mlp", "cnn"))
_MODULE = UsedBy(("module",))
_MUON = UsedBy(("muon",))
_STEP = UsedBy(("step",), key="schedule")
_ONECYCLE = UsedBy(("onecycle",), key="schedule")
_PLATEAU = UsedBy(("plateau",), key="schedule")
SCHEDULES_OF_ALL_EPOCHS = ("cosine", "onecycle")
"""The schedules whose learning rates depend on the number of epochs."""


class NetworkSettings(Settings):
    """`[network]`: a trial's network and its initial weights."""

    kind: Literal["mlp", "cnn", "module"]
    module: Annotated[Reference | None, Field(validate_default=True), _MODULE] = None
    args: Annotated[Arguments, OpenTable(), _MODULE] = {}
    hidden: Annotated[list[Positive], Field(max_length=MAX_LAYERS), _BUILT_IN] = [100, 100]
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
    conv: Annotated[list[Positive], Field(min_length=1, max_length=MAX_LAYERS), _CNN] = [6, 16]
    kernel: Annotated[Positive, _CNN] = 5
    padding: Annotated[Natural, _CNN] = 0
    pool: Annotated[Positive, _CNN] = 2
    _folder: FilePath = PrivateAttr(CURRENT_FOLDER)

    @property
    def folder(self) -> FilePath:
        """The folder of the module's file."""
        return self._folder

    def with_folder(self, folder: FilePath) -> Self:
        """Return the settings with the folder of the study's files."""
        copy = self.model_copy()
        copy._folder = folder
        return copy

    @field_validator("module")
    @classmethod
    def _check_module(cls, module: str | None, info: ValidationInfo) -> str | None:
        if module is None and info.data.get("kind") == "module":
            raise ValueError("missing")
        return module

    @field_validator("dropout")
    @classmethod
    def _check_dropout(cls, dropout: float | list[float], info: ValidationInfo) -> float | list[float]:
        if isinstance(dropout, list) and {"kind", "hidden"} <= info.data.keys():
            # An mlp drops out after each hidden layer, a cnn before each fully connected one.
            layers = len(info.data["hidden"]) + (info.data["kind"] == "cnn")
            if len(dropout) != layers:
                raise ValueError(f"must be one number or a list of {layers}, one for each dropout layer")
        return dropout


class OptimizerSettings(Settings):
    """`[optimizer]`: a trial's optimizer and learning rate schedule."""

    kind: Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lion", "muon"] = "sgd"
    lr: AboveZero
    weight_decay: float = Field(0.0, ge=0)
    momentum: Annotated[Fraction, UsedBy(("momentum", "nesterov", "muon"))] = 0.9
    alpha: Annotated[Fraction, UsedBy(("rmsprop",))] = 0.99
    beta1: Annotated[Fraction, UsedBy(("adam", "adamw", "lion", "muon"))] = 0.9
    beta2: Annotated[Fraction, UsedBy(("adam", "adamw", "lion", "muon"))] = 0.999
    eps: Annotated[AboveZero | None, UsedBy(("adagrad", "rmsprop", "adam", "adamw", "muon"))] = None
    adamw_lr: Annotated[AboveZero | None, _MUON] = None
    adjust_lr: Annotated[Literal["original", "match_rms_adamw"], _MUON] = "original"
    schedule: Literal["constant", "step", "cosine", "onecycle", "plateau"] = "constant"
    step_every: Annotated[Positive, _STEP] = 10
    step_factor: Annotated[float, Field(gt=0, lt=1), _STEP] = 0.1
    pct_start: Annotated[float, Field(ge=0, le=1), _ONECYCLE] = 0.3
    div_factor: Annotated[float, Field(ge=1), _ONECYCLE] = 25.0
    final_div_factor: Annotated[float, Field(ge=1), _ONECYCLE] = 1e4
    plateau_factor: Annotated[float, Field(gt=0, lt=1), _PLATEAU] = 0.1
    plateau_patience: Annotated[Natural, _PLATEAU] = 10
    warmup: Annotated[float, Field(ge=0), UsedBy(("constant", "step", "cosine", "plateau"), key="schedule")] = 0.0
    clip: AboveZero | None = None


class TrainingSettings(Settings):
    """`[training]`: epochs, batches, averages, augmentation, precision, early stopping and checkpoints."""

    epochs: Positive
    batch_size: Positive = 100
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    label_smoothing: Fraction = 0.0
    ema: Fraction = 0.0
    flip: float = Field(0.0, ge=0, le=1)
    shift: Natural = 0
    cutout: Natural = 0
    mixup: float = Field(0.0, ge=0)
    patience: Positive | None = None
    keep: Annotated[Literal["none", "best", "last"], NotSearchable()] = "none"
    keep_trials: Annotated[Positive, NotSearchable()] = 5
    checkpoint: Annotated[
        Annotated[Literal["auto", "none"], Tag("word")] | Annotated[Positive, Tag("number")],
        number_or(str, "word"),
        Field(description="auto, none or a whole number"),
        NotSearchable(),
    ] = "auto"


class LimitSettings(Settings):
    """`[search.limits]`: limits on a trial; a configuration above a limit is not trained."""

    parameters: Positive | None = None


ValidationMetric = Literal[
    "val_accuracy",
    "val_balanced_accuracy",
    "val_f1",
    "val_f1_weighted",
    "val_auroc",
    "val_top_k",
    "val_average_precision",
    "val_rmse",
    "val_mae",
    "val_r2",
    "val_loss",
]
ListedMetric = Annotated[
    Annotated[Literal[ValidationMetric, "parameters", "seconds_per_epoch"], Tag("word")]
    | Annotated[Reference, Tag("reference")],
    word_or_reference(),
]


class SearchSettings(Settings):
    """`[search]`: trials, sampler, pruner, metric and limits of the search."""

    trials: Positive
    sampler: Literal["random", "tpe", "gp", "cmaes", "nsga2", "qmc", "grid"] = "tpe"
    pruner: Literal["auto", "none", "median", "hyperband", "halving"] = "auto"
    rung: Positive = 3
    factor: Annotated[int, Field(ge=2)] = 3
    random_share: Fraction = 0.1
    metric: Annotated[
        Annotated[ValidationMetric, Tag("word")]
        | Annotated[Reference, Tag("reference")]
        | Annotated[list[ListedMetric], Tag("list")],
        word_or_reference(),
        Field(
            description=f"{', '.join(VALIDATION_METRICS)}, FILE.py:NAME, or a list of several, also of parameters and "
            "seconds_per_epoch",
            json_schema_extra={"hint": OTHER_TASKS},
        ),
    ] = "val_accuracy"
    direction: Annotated[Literal["minimize", "maximize"] | None, Field(validate_default=True)] = None
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
    def _check_start_from(cls, start_from: list[str]) -> list[str]:
        if len(set(start_from)) < len(start_from):
            raise ValueError("must not name a study twice")
        return start_from

    @field_validator("metric")
    @classmethod
    def _check_metrics(cls, metric: str | list[str]) -> str | list[str]:
        metrics = [metric] if isinstance(metric, str) else metric
        user_defined = [each for each in metrics if is_user_defined(each)]
        for each in user_defined:
            if curve_key(each) in VALIDATION_METRICS:
                raise ValueError(f"{each} has the name of a metric of hpo; rename the function")
        if isinstance(metric, list):
            if len(metric) < 2 or len(set(metric)) < len(metric):
                raise ValueError("must be one metric, or a list of different metrics")
            if len(user_defined) > 1:
                raise ValueError("must have at most one user-defined metric, because search.direction is of one")
            if metric[0] not in VALIDATION_METRICS and not is_user_defined(metric[0]):
                first = f"{', '.join(VALIDATION_METRICS)} or FILE.py:NAME"
                raise ValueError(f"must begin with the metric of the learning curves: {first}")
        return metric

    @field_validator("direction")
    @classmethod
    def _check_direction(cls, direction: str | None, info: ValidationInfo) -> str | None:
        metric = info.data.get("metric", "")
        found = [each for each in ([metric] if isinstance(metric, str) else metric) if is_user_defined(each)]
        if found and direction is None:
            raise ValueError(f'missing: set "minimize" or "maximize" for the metric {found[0]}')
        if direction is not None and metric and not found:
            raise ValueError("not used, because the direction of this metric is known; only for metric = FILE.py:NAME")
        return direction

    @property
    def named_metrics(self) -> tuple[str, ...]:
        """The metrics that are optimized as the study file names them, one or several of equal weight."""
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that are optimized, by their keys in learning curves."""
        return tuple(map(curve_key, self.named_metrics))

    @property
    def first_metric(self) -> str:
        """The metric of learning curves and of the order of trials in lists."""
        return self.metrics[0]

    @property
    def minimized(self) -> bool:
        """True if lower values of the first metric are better."""
        return self.all_minimized[0]

    @property
    def all_minimized(self) -> tuple[bool, ...]:
        """For each metric, True if lower values are better."""
        return tuple(
            self.direction == "minimize"
            if is_user_defined(each)
            else each not in VALIDATION_METRICS or VALIDATION_METRICS[each].minimized
            for each in self.named_metrics
        )


class Config(Settings):
    """All settings of one trial."""

    network: NetworkSettings
    optimizer: OptimizerSettings
    training: TrainingSettings

    def with_folder(self, folder: FilePath) -> Self:
        """Return the settings with the folder of the study's files."""
        return self.model_copy(update={"network": self.network.with_folder(folder)})


class NamedSettings(Settings):
    """Base of both kinds of study file: a name that can be typed."""

    name: Name

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not name.isprintable():
            raise ValueError("must have printable characters only")
        if name != name.strip():
            raise ValueError("must not begin or end with a space")
        return name


class StudySettings(NamedSettings):
    """A study file with a concrete value in place of each searched one; the fields in canonical order."""

    description: str = ""
    data: DataSettings
    task: TaskSettings = TaskSettings()
    network: NetworkSettings
    optimizer: OptimizerSettings
    training: TrainingSettings
    search: SearchSettings
    preprocess: PreprocessSettings = PreprocessSettings()
    baseline: dict[str, Any] = {}
