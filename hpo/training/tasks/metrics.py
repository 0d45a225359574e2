"""Metrics of K members' outputs [K, N, outputs] for targets [N, ...]: one value for each member, [K], on their device.

Every value equals that of the scikit-learn function of the same meaning, member by member. Where scikit-learn's result
is undefined, so is this one:

    auroc               NaN where a class or label has no example, or all of them
    average_precision   0 for a label without positive examples
    r2                  1 for exact predictions of constant targets, else 0; NaN for one example
    f1 (macro)          classes that have neither examples nor predictions do not count
    balanced_accuracy   classes without examples do not count

Classification: outputs are logits, the prediction is the first largest one. Several labels: a label is predicted where
its logit is above 0. Regression: outputs are predictions in the unit of the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hpo.training.tasks.losses import in_float

MetricFunction = Callable[[Tensor, Tensor], Tensor]


def balanced_accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over classes of the fraction of their examples that are predicted correctly."""
    correct, _, examples = _class_counts(outputs, labels)
    present = examples > 0
    return (correct[:, present] / examples[present]).mean(1)


def f1(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the macro F1 score: the mean over classes."""
    scores, counted, _ = _class_f1(*_class_counts(outputs, labels))
    return scores.sum(1) / counted.sum(1)


def f1_weighted(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the F1 score, the mean over classes, each weighted by its number of examples."""
    scores, _, examples = _class_f1(*_class_counts(outputs, labels))
    return (scores * examples).sum(1) / examples.sum()


def auroc(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the area under the ROC curve: of class 1 of two classes, else the mean over classes, one against the rest.

    Scores are log-probabilities, and for two classes the difference of the logits, which do not round to 1.
    """
    logits = in_float(outputs)
    if logits.shape[2] == 2:
        return _binary_auroc(logits[:, :, 1] - logits[:, :, 0], labels == 1)
    scores = torch.log_softmax(logits, 2)
    return torch.stack([_binary_auroc(scores[:, :, c], labels == c) for c in range(logits.shape[2])]).mean(0)


def top_k(outputs: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return the fraction of examples whose class is among the `k` largest logits; of equal ones, the last counts."""
    own = outputs.gather(2, labels.expand(len(outputs), -1)[:, :, None])
    later = torch.arange(outputs.shape[2], device=outputs.device) > labels[:, None]
    above = ((outputs > own) | ((outputs == own) & later)).sum(2)
    return (above < k).to(_float_type(outputs)).mean(1)


def multilabel_f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the macro F1 score: the mean over labels; 0 for a label that is neither present nor predicted."""
    predicted, present = outputs > 0, targets > 0
    counts = (each.sum(-2).to(_float_type(outputs)) for each in (predicted & present, predicted, present))
    correct, guessed, true = counts
    return (2 * correct / (guessed + true).clamp(min=1)).mean(1)


def multilabel_auroc(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over labels of the area under the ROC curve."""
    logits = in_float(outputs)
    return torch.stack([_binary_auroc(logits[:, :, i], targets[:, i] > 0) for i in range(logits.shape[2])]).mean(0)


def average_precision(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over labels of the average precision."""
    logits = in_float(outputs)
    each = [_average_precision(logits[:, :, label], targets[:, label] > 0) for label in range(logits.shape[2])]
    return torch.stack(each).mean(0)


def rmse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the root of the mean squared error, the mean over the targets' columns."""
    return (outputs - targets).square().mean(1).sqrt().mean(1)


def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean absolute error."""
    return (outputs - targets).abs().mean(1).mean(1)


def r2(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the coefficient of determination, the mean over the targets' columns."""
    if len(targets) < 2:
        return torch.full_like(outputs[:, 0, 0], torch.nan)
    residual = (outputs - targets).square().sum(1)
    total = (targets - targets.mean(0)).square().sum(0).expand_as(residual)
    found = 1 - residual / torch.where(total == 0, 1, total)
    return torch.where(total == 0, (residual == 0).to(found.dtype), found).mean(1)


FUNCTIONS: Mapping[str, Mapping[str, MetricFunction]] = {
    "classification": {
        "balanced_accuracy": balanced_accuracy,
        "f1": f1,
        "f1_weighted": f1_weighted,
        "auroc": auroc,
    },
    "multilabel": {"f1": multilabel_f1, "auroc": multilabel_auroc, "average_precision": average_precision},
    "regression": {"rmse": rmse, "mae": mae, "r2": r2},
}
"""Task -> name -> function. Not among them: loss and accuracy, which are sums over rows, and `top_k`, which has a k."""


def _class_counts(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each class's correct predictions [K, C], predictions [K, C] and examples [C]."""
    members, _, classes = outputs.shape
    predicted = outputs.max(2).indices
    cells = predicted + classes * torch.arange(members, device=outputs.device)[:, None]
    correct = torch.bincount(cells[predicted == labels], minlength=members * classes)
    guessed = torch.bincount(cells.flatten(), minlength=members * classes)
    examples = torch.bincount(labels, minlength=classes)
    kind = _float_type(outputs)
    return correct.view(members, classes).to(kind), guessed.view(members, classes).to(kind), examples.to(kind)


def _class_f1(correct: Tensor, guessed: Tensor, examples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each class's F1 score [K, C], whether it has examples or predictions [K, C], and its examples [C]."""
    both = guessed + examples
    return 2 * correct / both.clamp(min=1), both > 0, examples


def _binary_auroc(scores: Tensor, positive: Tensor) -> Tensor:
    """Return the fraction of pairs of a positive and a negative row in order, [K]; equal scores count half.

    `scores` are [K, N], `positive` is [N]. NaN without positive or without negative rows.
    """
    values, others = scores[:, positive].contiguous(), scores[:, ~positive].sort(1).values.contiguous()
    if not values.shape[1] or not others.shape[1]:
        return torch.full_like(scores[:, 0], torch.nan)
    twice = torch.searchsorted(others, values) + torch.searchsorted(others, values, right=True)
    return twice.to(_float_type(scores)).mean(1) / (2 * others.shape[1])


def _average_precision(scores: Tensor, positive: Tensor) -> Tensor:
    """Return the mean over positive rows of the precision at their scores, [K]; 0 without positive rows."""
    values, all_values = scores[:, positive].sort(1).values.contiguous(), scores.sort(1).values.contiguous()
    if not values.shape[1]:
        return torch.zeros_like(scores[:, 0])
    correct = values.shape[1] - torch.searchsorted(values, values)
    guessed = all_values.shape[1] - torch.searchsorted(all_values, values)
    return (correct.to(_float_type(scores)) / guessed).mean(1)


def _float_type(outputs: Tensor) -> torch.dtype:
    return torch.float64 if outputs.dtype == torch.float64 else torch.float32
