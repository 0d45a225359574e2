"""The task of a study: the number of outputs of its networks, the loss of a batch, and the metrics of each epoch.

A task is made from the settings of a study and the targets of its split. Learning curves always have `train_loss` and
`val_loss`, for classification also `train_accuracy` and `val_accuracy`: sums over rows, which need no outputs of other
batches. The study's own metrics come after them, and need the outputs of the whole validation split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.data import Split
from hpo.data.examples import describe_classes
from hpo.errors import SettingError
from hpo.studyfile import TaskSettings
from hpo.studyfile.metrics import SUMS, TOP_K, curve_key, is_user_defined
from hpo.training.tasks import losses
from hpo.training.tasks.losses import RowLosses
from hpo.training.tasks.metrics import FUNCTIONS, MetricFunction, top_k
from hpo.training.tasks.user_functions import LOSS, METRIC, UserLoss, UserMetric, load_function

CHECK_EXAMPLES = 4
"""Training examples on which a user-defined loss is tried."""


@dataclass(frozen=True, eq=False)
class Task:
    """Outputs, loss and metrics. `metrics` has the study's own metrics, by key of learning curves.

    `class_weights` [outputs] are on the device of the examples. `user_loss` replaces the cross-entropy.
    """

    kind: str
    outputs: int
    class_weights: Tensor | None = None
    user_loss: UserLoss | None = None
    metrics: Mapping[str, MetricFunction] = field(default_factory=dict)

    @property
    def curve_keys(self) -> tuple[str, ...]:
        """The metrics of a learning curve: the sums of training, those of validation, and the study's own metrics."""
        return (*SUMS[self.kind], *self.metrics)

    @property
    def sums(self) -> int:
        """The number of metrics that are sums over the rows of a split: loss and accuracy."""
        return len(SUMS[self.kind]) // 2

    def to(self, device: torch.device) -> Task:
        """Return the task for examples on this device."""
        return self if self.class_weights is None else replace(self, class_weights=self.class_weights.to(device))

    def losses(self, outputs: Tensor, targets: Tensor, smoothing: Tensor | None = None) -> tuple[RowLosses, Tensor]:
        """Return the losses of a batch, and the members' sums of loss and correct predictions, [2, K].

        `outputs` are [K, B, outputs], `targets` [B]. `smoothing` is the label smoothing of the training loss, [K, 1].
        """
        values = losses.in_float(outputs)
        if self.user_loss is not None:
            rows = self.user_loss(values, targets)
        else:
            rows = losses.cross_entropy(values, targets, smoothing, self.class_weights)
        # transposed, because max is many times as fast as argmax on a CPU, over the order of the last layer's outputs
        predicted = values.detach().transpose(1, 2).max(1).indices
        correct = (predicted == targets.expand(len(values), -1)).sum(1)
        plain = rows.plain.detach().sum(1)
        return rows, torch.stack([plain, correct.to(plain.dtype)])

    def own_metrics(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the study's own metrics of all outputs [K, N, outputs], [metrics, K]."""
        return torch.stack([metric(outputs, targets) for metric in self.metrics.values()])


def classification(classes: int) -> Task:
    """Return the task of a study with default settings."""
    return Task("classification", classes)


def make_task(settings: TaskSettings, metrics: Sequence[str], folder: Path, split: Split) -> Task:
    """Return the task of these settings and metrics, as a study file names them, for the targets of a split.

    `folder` has the user's code. Raises SettingError where settings do not match the targets.
    """
    if settings.top_k is not None and settings.top_k >= split.classes:
        problem = f"must be below the number of classes, {split.classes} (got {settings.top_k})"
        raise SettingError("task.top_k", problem)
    loss = settings.loss if settings.loss is not None and is_user_defined(settings.loss) else None
    functions = {curve_key(each): _function(each, settings, folder) for each in metrics}
    return Task(
        kind=settings.kind,
        outputs=split.classes,
        class_weights=_class_weights(settings.class_weights, split),
        user_loss=None if loss is None else UserLoss(loss, load_function(loss, folder, LOSS)),
        metrics={key: function for key, function in functions.items() if function is not None},
    )


def _function(metric: str, settings: TaskSettings, folder: Path) -> MetricFunction | None:
    """Return the function of a metric; None for one of every learning curve, and one that is not of the outputs."""
    if is_user_defined(metric):
        return UserMetric(metric, load_function(metric, folder, METRIC), _probabilities)
    if metric == TOP_K:
        assert settings.top_k is not None, "the study file has been checked"
        return partial(top_k, k=settings.top_k)
    return FUNCTIONS[settings.kind].get(metric.removeprefix("val_"))


def _probabilities(outputs: Tensor) -> Tensor:
    return torch.softmax(outputs, -1)


def _class_weights(setting: str | list[float] | None, split: Split) -> Tensor | None:
    """Return the weights of the classes. The balanced ones are those of scikit-learn: inverse to the frequencies."""
    if setting is None:
        return None
    if setting == "balanced":
        counts = np.bincount(split.train.targets, minlength=split.classes)
        return torch.from_numpy(len(split.train) / (split.classes * counts))
    if len(setting) != split.classes:
        numbers = f"must have {split.classes} numbers, one for each class"
        raise SettingError("task.class_weights", f"{numbers} (got {len(setting)})")
    return torch.tensor(setting, dtype=torch.float64)


def check_task(task: Task, split: Split, called: Callable[[str, Callable[[], object]], object]) -> None:
    """Try the study's own loss and metrics on random outputs. Raises SettingError for a wrong or an undefined result.

    `called(key, call)` calls user code that the key of the study file refers to.
    """
    generator = torch.Generator().manual_seed(0)
    if task.user_loss is not None:
        targets = torch.from_numpy(split.train.targets[:CHECK_EXAMPLES])
        outputs = torch.randn(2, len(targets), task.outputs, generator=generator).requires_grad_()
        loss = task.user_loss
        rows = called(LOSS, lambda: loss(outputs, targets))
        assert isinstance(rows, RowLosses)
        if not rows.training.requires_grad:
            raise SettingError(LOSS, "the loss does not depend on the network's output by operations of torch")
    for key, metric in task.metrics.items():
        targets = torch.from_numpy(split.validation.targets)
        outputs = torch.randn(1, len(targets), task.outputs, generator=generator)
        values = called(METRIC, partial(metric, outputs, targets))
        assert isinstance(values, Tensor)
        if not isinstance(metric, UserMetric) and not values.isfinite().all():
            raise SettingError(METRIC, f"{key} is undefined: {_undefined(split)}")


def _undefined(split: Split) -> str:
    counts: NDArray[np.int64] = np.bincount(split.validation.targets, minlength=split.classes)
    absent = [name for name, count in zip(split.names, counts, strict=True) if count in (0, len(split.validation))]
    return (
        f"of the {len(split.validation)} validation examples none, or all, are of {describe_classes(absent)}; "
        f"{split.advice}"
    )
