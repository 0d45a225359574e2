"""Shared helpers: settings in one line, synthetic images, and reference training in plain torch.

The plain side uses torch.nn, torch.autograd and torch.optim only, one member at a time. Of hpo it takes the initial
weights' seed, the order of the batches and, where a network drops out or images are augmented, the random numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hpo.studyfile import Config, OptimizerSettings, TrainingSettings
from hpo.training.device_data import DeviceSplit
from hpo.training.networks.builtin import build
from hpo.training.optimizers import muon
from hpo.training.population import train
from hpo.training.randomness import augmentation_numbers, batch_order, cutout_numbers, dropout_keys, mixup_numbers
from hpo.training.seeds import member_seed
from hpo.training.stack import Member
from hpo.training.stacking.dropout import Dropout
from hpo.training.stacking.stacked_network import StackedNetwork
from hpo.training.tasks.task import classification

KINDS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lion", "muon")

Curve = list[dict[str, float]]


class Lion(torch.optim.Optimizer):
    """Lion as Algorithm 2 of its paper states it, one parameter after the other."""

    def __init__(self, groups: Any, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (beta1, beta2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
            for theta in group["params"]:
                if theta.grad is None:
                    continue
                g, m = theta.grad, self.state[theta].get("m", torch.zeros_like(theta))
                c = beta1 * m + (1 - beta1) * g
                theta -= lr * (torch.sign(c) + decay * theta)
                self.state[theta]["m"] = beta2 * m + (1 - beta2) * g


class MuonWithAdamW(torch.optim.Optimizer):
    """torch.optim.Muon for all matrices but the output layer, the last one with as many rows, and AdamW."""

    def __init__(self, module: nn.Module, settings: OptimizerSettings, outputs: int) -> None:
        matrices = [each for each in module.parameters() if each.dim() == 2]
        last = matrices.pop(max(index for index, each in enumerate(matrices) if len(each) == outputs))
        others = [each for each in module.parameters() if each.dim() > 2]
        vectors = [each for each in module.parameters() if each.dim() < 2]
        super().__init__(matrices, {"lr": settings.lr})
        decay, lr, betas = settings.weight_decay, settings.adamw_lr or settings.lr, (settings.beta1, settings.beta2)
        self.both = [
            torch.optim.Muon(matrices, settings.lr, decay, settings.momentum, adjust_lr_fn=settings.adjust_lr),
            torch.optim.AdamW(
                [{"params": [last, *others], "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
                lr,
                betas=betas,
                eps=settings.eps or 1e-8,
            ),
        ]
        self.param_groups = [group for each in self.both for group in each.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for each in self.both:
            each.step()


@contextmanager
def muon_in_float64() -> Iterator[None]:
    """Run the Newton-Schulz iterations of torch and of hpo in float64: bfloat16 would hide small differences."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(muon, "ITERATION_TYPE", torch.float64)
        patch.setattr(torch.Tensor, "bfloat16", lambda x: x.double().clone())
        yield


class Net(nn.Module):
    """A network with these layers and this forward function."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.what = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self, x)


def assert_same(ours: Tensor, plain: Tensor, rtol: float = 1e-9) -> None:
    """Assert equality up to the rounding of another order of sums, for values of the order of 1."""
    torch.testing.assert_close(ours.detach(), plain.detach(), rtol=rtol, atol=rtol * 1e-2)


def config(
    kind: str = "mlp",
    *,
    lr: float = 0.1,
    epochs: int = 3,
    batch_size: int = 16,
    precision: str = "float64",
    **more: Any,
) -> Config:
    """Return settings of a small network; `more` has `optimizer={...}`, `training={...}` and keys of the network."""
    training = {"epochs": epochs, "batch_size": batch_size, "precision": precision, **more.pop("training", {})}
    optimizer = {"lr": lr, **more.pop("optimizer", {})}
    network = {"kind": kind, "hidden": [12, 8], **more}
    return Config.model_validate(
        {
            "network": network,
            "optimizer": optimizer,
            "training": training,
        }
    )


def made_images(train: int = 70, validation: int = 30, shape: tuple[int, int, int] = (1, 8, 8)) -> DeviceSplit:
    """Return noisy copies of ten patterns in ten classes, which a network learns in a few epochs."""
    generator = torch.Generator().manual_seed(5)
    count = train + validation
    labels = torch.arange(count) % 10
    labels = labels[torch.randperm(count, generator=generator)]
    patterns = torch.rand(10, *shape, generator=generator)
    images = (patterns[labels] + 0.3 * torch.randn(count, *shape, generator=generator)).clamp(0, 1)
    return DeviceSplit(images[:train], labels[:train], images[train:], labels[train:], task=classification(10), seed=3)


def member(number: int, settings: Config) -> Member:
    return Member(number, settings, member_seed(0, number))


def curves(
    members: Sequence[Member], split: DeviceSplit, precision: str = "float64", drop: dict[int, set[int]] | None = None
) -> tuple[dict[int, Curve], dict[int, str]]:
    """Train, dropping the members in `drop` after each epoch; return every member's curve and the failures."""
    found: dict[int, Curve] = {each.number: [] for each in members}
    reasons: dict[int, str] = {}
    epochs = train(members, split, precision)
    result = next(epochs, None)
    while result is not None:
        for number, metrics in result.metrics.items():
            found[number].append(metrics)
        reasons.update(result.failed)
        try:
            result = epochs.send((drop or {}).get(result.epoch, set()))
        except StopIteration:
            result = None
    return found, reasons


def assert_same_curves(ours: Curve, other: Curve, rtol: float) -> None:
    assert len(ours) == len(other) > 0
    for epoch, expected in zip(ours, other, strict=True):
        assert epoch.keys() == expected.keys()
        for metric, value in expected.items():
            assert abs(epoch[metric] - value) <= rtol * abs(value), metric


def torch_optimizer(module: nn.Module, settings: OptimizerSettings, outputs: int = 3) -> torch.optim.Optimizer:
    """Return the optimizer of torch.optim, with weight decay on weights only."""
    weights = [each for each in module.parameters() if each.dim() > 1]
    vectors = [each for each in module.parameters() if each.dim() <= 1]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    lr, eps = settings.lr, {} if settings.eps is None else {"eps": settings.eps}
    betas = (settings.beta1, settings.beta2)
    make: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(groups, lr),
        "momentum": lambda: torch.optim.SGD(groups, lr, momentum=settings.momentum),
        "nesterov": lambda: torch.optim.SGD(groups, lr, momentum=settings.momentum, nesterov=True),
        "adagrad": lambda: torch.optim.Adagrad(groups, lr, **eps),
        "rmsprop": lambda: torch.optim.RMSprop(groups, lr, alpha=settings.alpha, **eps),
        "adam": lambda: torch.optim.Adam(groups, lr, betas=betas, **eps),
        "adamw": lambda: torch.optim.AdamW(groups, lr, betas=betas, **eps),
        "muon": lambda: MuonWithAdamW(module, settings, outputs),
        "lion": lambda: Lion(groups, lr, betas),
    }
    return make[settings.kind]()


def torch_schedulers(
    optimizer: torch.optim.Optimizer, settings: OptimizerSettings, epochs: int, steps: int
) -> tuple[list[LRScheduler], list[LRScheduler]]:
    """Return the schedulers of torch.optim to call after every step, and those to call after every epoch."""
    by_step: list[LRScheduler] = []
    by_epoch: list[LRScheduler] = []
    if settings.schedule == "cosine":
        by_step.append(CosineAnnealingLR(optimizer, epochs * steps))
    if settings.schedule == "onecycle":
        given = {key: getattr(settings, key) for key in ("pct_start", "div_factor", "final_div_factor")}
        by_step.append(OneCycleLR(optimizer, settings.lr, epochs * steps, cycle_momentum=False, **given))
    if settings.schedule == "step":
        by_epoch.append(StepLR(optimizer, settings.step_every, settings.step_factor))
    if (warmup := round(settings.warmup * steps)) > 1:
        assert warmup == settings.warmup * steps, "LinearLR has whole steps"
        by_step.append(LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1))
    return by_step, by_epoch


def torch_plateau(optimizer: torch.optim.Optimizer, settings: OptimizerSettings) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(optimizer, factor=settings.plateau_factor, patience=settings.plateau_patience)


def plain_images(split: DeviceSplit, epoch: int, settings: TrainingSettings) -> Tensor:
    """Return the training images of an epoch, augmented one by one: padded, cropped, mirrored."""
    images, shift = split.train, settings.shift
    if not (settings.flip or shift):
        return images
    _, height, width = split.shape
    found = []
    for image, numbers in zip(images, augmentation_numbers(split.seed, epoch, len(images)).T.tolist(), strict=True):
        flip, top, left = numbers[0], *(math.floor(number * (2 * shift + 1)) for number in numbers[1:])
        moved = F.pad(image, [shift] * 4)[:, top : top + height, left : left + width]
        found.append(moved.flip(2) if flip < settings.flip else moved)
    return torch.stack(found)


def cut_out(trial: Member, epoch: int, batch: Tensor, images: Tensor) -> Tensor:
    """Return a batch of images with a square of zeros in each, one by one, as the authors of cutout do."""
    side, found = trial.config.training.cutout, images.clone()
    if not side:
        return found
    numbers = cutout_numbers([trial.seed], epoch, batch.numpy())[:, 0]
    for image, down, right in zip(found, *numbers.tolist(), strict=True):
        _, height, width = image.shape
        top, left = (math.floor(at * length) - side // 2 for at, length in ((down, height), (right, width)))
        image[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 0
    return found


class KeyedDropout(nn.Module):
    """Dropout for a plain network with the masks of one member of a stack."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.layer = Dropout("", [nn.Dropout(rate)])

    def forward(self, x: Tensor) -> Tensor:
        # A linear layer's output has the memory order [units, images], which the masks follow.
        laid_out = x.t().contiguous().t() if x.dim() == 2 and self.after_linear else x
        return self.layer(laid_out.unsqueeze(0), True, self.training).squeeze(0)

    after_linear = True


def plain_curve(trial: Member, split: DeviceSplit) -> Curve:
    """Return the learning curve of one member, trained by a plain torch loop in float64."""
    settings = trial.config
    module = build(settings.network, split.shape, split.task.outputs, trial.seed).double()
    dropouts: list[KeyedDropout] = []
    for parent in list(module.modules()):
        previous: nn.Module | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                keyed = KeyedDropout(child.p)
                keyed.after_linear = not isinstance(previous, nn.Flatten)
                setattr(parent, name, keyed)
                dropouts.append(keyed)
            previous = child
    optimizer = torch_optimizer(module, settings.optimizer, split.task.outputs)
    size = settings.training.batch_size
    labels, steps = split.train_targets, len(_batches(split, 1, size))
    by_step, by_epoch = torch_schedulers(optimizer, settings.optimizer, settings.training.epochs, steps)
    plateau = torch_plateau(optimizer, settings.optimizer) if settings.optimizer.schedule == "plateau" else None
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(settings.training.ema))
    evaluated = averaged if settings.training.ema else module
    curve: Curve = []
    for epoch in range(1, settings.training.epochs + 1):
        batches = _batches(split, epoch, size)
        images = plain_images(split, epoch, settings.training).double()
        keys = dropout_keys([trial.seed], epoch, len(batches), len(dropouts))
        loss_sum = right = 0.0
        module.train()
        for step, batch in enumerate(batches):
            for place, dropout in enumerate(dropouts):
                dropout.layer.set_keys(keys[step, place])
            optimizer.zero_grad()
            inputs, smoothing = cut_out(trial, epoch, batch, images[batch]), settings.training.label_smoothing
            share, other = 1.0, batch
            if settings.training.mixup:
                shares, orders = mixup_numbers([settings.training.mixup], [trial.seed], epoch, list(map(len, batches)))
                share, other = shares[step].item(), batch[orders[step][0]]
                inputs = share * inputs + (1 - share) * inputs[orders[step][0]]
            logits = module(inputs)
            losses = [F.cross_entropy(logits, labels[at], label_smoothing=smoothing) for at in (batch, other)]
            (share * losses[0] + (1 - share) * losses[1]).backward()
            if settings.optimizer.clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), settings.optimizer.clip)
            optimizer.step()
            averaged.update_parameters(module)
            for scheduler in by_step:
                scheduler.step()
            for weight, at in ((share, batch), (1 - share, other)):
                loss_sum += weight * F.cross_entropy(logits.detach(), labels[at]).item() * len(batch)
                right += weight * (logits.argmax(1) == labels[at]).sum().item()
        for scheduler in by_epoch:
            scheduler.step()
        seen = sum(map(len, batches))
        evaluated.eval()
        with torch.no_grad():
            logits = evaluated(split.validation.double())
        curve.append(
            {
                "train_loss": loss_sum / seen,
                "train_accuracy": right / seen,
                "val_loss": F.cross_entropy(logits, split.validation_targets).item(),
                "val_accuracy": (logits.argmax(1) == split.validation_targets).double().mean().item(),
            }
        )
        if plateau is not None:
            plateau.step(curve[-1]["val_loss"])
    return curve


def _batches(split: DeviceSplit, epoch: int, size: int) -> list[Tensor]:
    batches = list(torch.split(batch_order(split.seed, epoch, len(split.train_targets)), size))
    if len(batches) > 1 and len(batches[-1]) == 1 < size:
        batches.pop()
    return batches


def seeded(make: Callable[[], nn.Module], members: int = 3) -> list[nn.Module]:
    """Return modules in float64 with random weights, biases, norm parameters and statistics."""
    modules = []
    for number in range(members):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(number)
            module = make().double()
            for name, value in module.state_dict().items():
                if value.is_floating_point():
                    value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else torch.randn_like(value) / 2)
        modules.append(module)
    return modules


def assert_trains_like_plain(modules: Sequence[nn.Module], x: Tensor, labels: Tensor, steps: int = 3) -> StackedNetwork:
    """Assert that outputs, gradients, buffers and, after each step, parameters equal plain torch for each member."""
    network = StackedNetwork(modules, torch.float64)
    plain = [copy.deepcopy(module).train() for module in modules]
    rate = 0.05
    for _ in range(steps):
        network.blocks.begin_step()
        out = network(x.clone(), training=True)
        losses = F.cross_entropy(out.flatten(0, 1), labels.repeat(len(modules)), reduction="none")
        losses.view(len(modules), -1).mean(1).sum().backward()
        for number, module in enumerate(plain):
            module.zero_grad()
            expected = module(x.clone())
            F.cross_entropy(expected, labels).backward()
            assert_same(out[number], expected)
            for name, parameter in module.named_parameters():
                if parameter.grad is not None:
                    assert_same(network.blocks.slots[name].grad[number], parameter.grad)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= rate * (0 if parameter.grad is None else parameter.grad)
        with torch.no_grad():
            for block in network.blocks.blocks:
                block.master -= rate * block.grad
            network.blocks.refresh()
    for number, module in enumerate(plain):
        state = network.state_dict(number)
        assert state.keys() == module.state_dict().keys()
        for name, value in module.state_dict().items():
            assert_same(state[name].double(), value.double())
        with torch.no_grad():
            assert_same(network(x, training=False)[number], module.eval()(x))
        module.load_state_dict(state)
    return network
