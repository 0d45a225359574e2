"""The task of a study: the number of outputs of its networks, the loss of a batch, and the metrics of each epoch.

A task is made from the settings of a study and the targets of its split. Learning curves always have `train_loss` and
`val_loss`, for classification also `train_accuracy` and `val_accuracy`: sums over rows, which need no outputs of other
batches. The study's own metrics come after them, and need the outputs of the whole validation split. The targets of a
regression are standardized in the loss, with the mean and deviation of the training examples; its metrics are in the
user's unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hpo.data import Split
from hpo.data.examples import class_counts, describe_classes
from hpo.errors import SettingError
from hpo.studyfile import TaskSettings
from hpo.studyfile.metrics import SUMS, TOP_K, curve_key, is_user_defined
from hpo.training.devices import widest_float
from hpo.training.tasks import losses
from hpo.training.tasks.losses import RowLosses
from hpo.training.tasks.metrics import FUNCTIONS, MetricFunction, top_k
from hpo.training.tasks.user_functions import LOSS, METRIC, UserLoss, UserMetric, load_function

CHECK_EXAMPLES = 4
"""Training examples on which a user-defined loss is tried."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean and standard deviation of the training targets, [D]: a network predicts standardized targets."""

    mean: Tensor
    deviation: Tensor

    def to(self, device: torch.device) -> Scaling:
        """Return the scaling on a device, in its widest type."""
        kind = widest_float(device)
        return Scaling(self.mean.to(device, kind), self.deviation.to(device, kind))

    def standardized(self, targets: Tensor) -> Tensor:
        """Return targets in the network's unit."""
        return (targets - self.mean) / self.deviation

    def restored(self, outputs: Tensor) -> Tensor:
        """Return the predictions of outputs [..., outputs] in the user's unit, [..., D]; a variance is left out."""
        return outputs[..., : len(self.mean)] * self.deviation + self.mean


@dataclass(frozen=True, eq=False)
class Task:
    """Outputs, loss and metrics. `metrics` has the study's own metrics, by key of learning curves.

    `weights` are those of classes or labels in the loss, [outputs], on the device of the examples. `user_loss` replaces
    `loss`. `scaling` is that of a regression.
    """

    kind: str
    outputs: int
    loss: str
    weights: Tensor | None = None
    user_loss: UserLoss | None = None
    scaling: Scaling | None = None
    metrics: Mapping[str, MetricFunction] = field(default_factory=dict)

    @property
    def curve_keys(self) -> tuple[str, ...]:
        """The metrics of a learning curve: the sums of training, those of validation, and the study's own metrics."""
        return (*SUMS[self.kind], *self.metrics)

    @property
    def output_noun(self) -> str:
        """What each output of a network is for, in an error message."""
        return output_noun(self.kind, self.loss)

    @property
    def sums(self) -> int:
        """The number of metrics that are sums over the rows of a split: the loss, for classification also accuracy."""
        return len(SUMS[self.kind]) // 2

    @property
    def has_user_functions(self) -> bool:
        """Whether the loss or a metric is a function of the user."""
        return self.user_loss is not None or any(isinstance(each, UserMetric) for each in self.metrics.values())

    def to(self, device: torch.device) -> Task:
        """Return the task for examples on this device."""
        return replace(
            self,
            weights=None if self.weights is None else self.weights.to(device, widest_float(device)),
            scaling=None if self.scaling is None else self.scaling.to(device),
        )

    def losses(self, outputs: Tensor, targets: Tensor, smoothing: Tensor | None = None) -> tuple[RowLosses, Tensor]:
        """Return the losses of a batch, and the members' sums of loss and, for classes, correct predictions, [sums, K].

        `outputs` are [K, B, outputs], `targets` [B] or [B, D]; classes and labels may also be each member's own, [K, B]
        or [K, B, D]. `smoothing` is the label smoothing of the training loss, [K, 1].
        """
        values = losses.in_float(outputs)
        expected = targets if self.scaling is None else self.scaling.standardized(targets)
        correct: Tensor | None = None
        if self.user_loss is not None:
            rows = self.user_loss(values, expected)
            if self.kind == "classification":
                correct = losses.correct_labels(values.transpose(1, 2), targets)
        elif self.kind == "classification":
            rows, correct = losses.cross_entropy(values, expected, smoothing, self.weights)
        elif self.kind == "multilabel":
            rows = losses.bce(values, expected, self.weights)
        else:
            rows = REGRESSION_LOSSES[self.loss](values, expected)
        plain = rows.plain.detach().sum(1)
        return rows, plain[None] if correct is None else torch.stack([plain, correct.to(plain.dtype)])

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return outputs in the form of the metrics: a regression's in the user's unit, others as they are."""
        return outputs if self.scaling is None else self.scaling.restored(outputs)

    def own_metrics(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the study's own metrics of all outputs [K, N, outputs], [metrics, K]."""
        predictions = self.predictions(outputs)
        return torch.stack([metric(predictions, targets) for metric in self.metrics.values()])

    def measures(self, metrics: Mapping[str, MetricFunction]) -> dict[str, MetricFunction]:
        """Return functions of a network's outputs: `metrics` of its predictions, the accuracy of classes, the loss."""

        def mean(index: int, outputs: Tensor, targets: Tensor) -> Tensor:
            return self.losses(outputs, targets)[1][index] / len(targets)

        def of_outputs(metric: MetricFunction, outputs: Tensor, targets: Tensor) -> Tensor:
            return metric(self.predictions(outputs), targets)

        found: dict[str, MetricFunction] = {name: partial(of_outputs, metric) for name, metric in metrics.items()}
        if self.kind == "classification":
            found["accuracy"] = partial(mean, 1)
        return found | {"loss": partial(mean, 0)}


REGRESSION_LOSSES = {
    "mse": losses.mse,
    "mae": losses.mae,
    "huber": losses.huber,
    "gaussian_nll": losses.gaussian_nll,
}


def classification(classes: int) -> Task:
    """Return the task of a study with default settings."""
    return Task("classification", classes, "cross_entropy")


def output_count(settings: TaskSettings, split: Split) -> int:
    """Return the number of outputs of a network: one for each class, label or target column, and one for a variance."""
    if settings.kind != "regression":
        return split.classes
    return split.columns * (2 if settings.used_loss == "gaussian_nll" else 1)


def output_noun(kind: str, loss: str) -> str:
    """Return what each output of a network is for."""
    if loss == "gaussian_nll":
        return "mean, then one per logarithm of a variance"
    return {"classification": "class", "multilabel": "label", "regression": "target column"}[kind]


def make_task(settings: TaskSettings, metrics: Sequence[str], folder: Path, split: Split) -> Task:
    """Return the task of these settings and metrics, as a study file names them, for the targets of a split.

    `folder` has the user's code. Raises SettingError where settings do not match the targets.
    """
    if settings.top_k is not None and settings.top_k >= split.classes:
        problem = f"must be below the number of classes, {split.classes} (got {settings.top_k})"
        raise SettingError("task.top_k", problem)
    loss = settings.used_loss
    functions = {curve_key(each): _function(each, settings, folder) for each in metrics}
    weights = settings.class_weights if settings.kind == "classification" else settings.pos_weight
    return Task(
        kind=settings.kind,
        outputs=output_count(settings, split),
        loss=loss,
        weights=_weights(weights, settings.kind, split),
        user_loss=UserLoss(loss, load_function(loss, folder, LOSS)) if is_user_defined(loss) else None,
        scaling=_scaling(split) if settings.kind == "regression" else None,
        metrics={key: function for key, function in functions.items() if function is not None},
    )


def _function(metric: str, settings: TaskSettings, folder: Path) -> MetricFunction | None:
    """Return the function of a metric; None for one of every learning curve, and one that is not of the outputs."""
    if is_user_defined(metric):
        return UserMetric(metric, load_function(metric, folder, METRIC), PREDICTIONS[settings.kind])
    if metric == TOP_K:
        assert settings.top_k is not None, "the study file has been checked"
        return partial(top_k, k=settings.top_k)
    return FUNCTIONS[settings.kind].get(metric.removeprefix("val_"))


PREDICTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "classification": partial(torch.softmax, dim=-1),
    "multilabel": torch.sigmoid,
    "regression": lambda predictions: predictions,
}
"""Task -> what turns outputs into the predictions that the user's metric gets: probabilities, or numbers."""


def _weights(setting: str | list[float] | None, kind: str, split: Split) -> Tensor | None:
    """Return the weights of the classes or labels. The balanced ones of classes are those of scikit-learn.

    They are inverse to the frequencies. The balanced one of a label is its number of negative examples for each
    positive one. Raises SettingError for a wrong number, and for a label without a positive training example.
    """
    if setting is None:
        return None
    key, noun = ("class_weights", "class") if kind == "classification" else ("pos_weight", "label")
    if setting == "balanced":
        counts = class_counts(split.train, split)
        if not counts.all():
            absent = [name for name, count in zip(split.names, counts, strict=True) if not count]
            raise SettingError(f"task.{key}", f"no training example of {describe_classes(absent)} to balance")
        if kind == "classification":
            return torch.from_numpy(len(split.train) / (split.classes * counts))
        return torch.from_numpy((len(split.train) - counts) / counts)
    if len(setting) != split.classes:
        numbers = f"must have {split.classes} numbers, one for each {noun}"
        raise SettingError(f"task.{key}", f"{numbers} (got {len(setting)})")
    return torch.tensor(setting, dtype=torch.float64)


def _scaling(split: Split) -> Scaling:
    targets = torch.from_numpy(split.train.targets).double()
    deviation = targets.std(0, correction=0)
    constant = torch.nonzero(deviation == 0)
    if len(constant):
        column = f" column {constant[0].item()} of" * (split.columns > 1)
        problem = f"{column} the targets of all training examples are equal; use others, or a larger data.train_size"
        raise SettingError("data.dataset", f"{split.dataset}:{problem}")
    return Scaling(targets.mean(0), deviation)


def check_task(task: Task, split: Split, called: Callable[[str, Callable[[], object]], object]) -> None:
    """Try the study's own loss and metrics on random outputs. Raises SettingError for a wrong or an undefined result.

    `called(key, call)` calls user code that the key of the study file refers to.
    """
    generator = torch.Generator().manual_seed(0)
    if task.user_loss is not None:
        targets = torch.from_numpy(split.train.targets[:CHECK_EXAMPLES])
        outputs = torch.randn(2, len(targets), task.outputs, generator=generator).requires_grad_()
        loss = task.user_loss
        expected = targets if task.scaling is None else task.scaling.standardized(targets)
        rows = called(LOSS, lambda: loss(outputs, expected))
        assert isinstance(rows, RowLosses)
        if not rows.training.requires_grad:
            raise SettingError(
                LOSS,
                f"{task.loss} does not depend on the network's output by operations of torch; it must not detach it",
            )
    for key, metric in task.metrics.items():
        targets = torch.from_numpy(split.validation.targets)
        outputs = torch.randn(1, len(targets), task.outputs, generator=generator)
        values = called(METRIC, partial(metric, task.predictions(outputs), targets))
        assert isinstance(values, Tensor)
        if not isinstance(metric, UserMetric) and not values.isfinite().all():
            raise SettingError(METRIC, f"{key} is undefined: {_undefined(split)}")


def _undefined(split: Split) -> str:
    if split.task == "regression":
        return f"it needs two validation examples (got {len(split.validation)})"
    counts = class_counts(split.validation, split)
    absent = [name for name, count in zip(split.names, counts, strict=True) if count in (0, len(split.validation))]
    return (
        f"of the {len(split.validation)} validation examples none, or all, are of {describe_classes(absent)}; "
        f"{split.advice}"
    )
