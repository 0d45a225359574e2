"""Train one stack, the members that run as one tensor program, one epoch at a time.

An epoch synchronizes with the device once, at its end. Other stacks and threads play no role here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hpo.studyfile import Config
from hpo.training.augmentation import epoch_examples
from hpo.training.device_data import DeviceSplit, steps_per_epoch
from hpo.training.devices import widest_float
from hpo.training.member_examples import MemberExamples, has_own_examples
from hpo.training.networks.user_defined import checked_output, with_output_check
from hpo.training.networks.weights_file import State
from hpo.training.optimizers.muon import hidden_matrices
from hpo.training.optimizers.optimizer import FrozenOptimizer, Optimizer
from hpo.training.optimizers.weight_averages import WeightAverages
from hpo.training.randomness import batch_order, dropout_keys
from hpo.training.shapes.padding import Padding
from hpo.training.stacking.layers import Keyed
from hpo.training.stacking.stacked_network import StackedNetwork
from hpo.training.stacking.tracing.trace import TraceCache
from hpo.training.stacking.unstacked_network import UnstackedNetwork

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
EVALUATION_BATCH = 500
"""Examples evaluated at once: enough to fill the GEMMs, few enough that K times their activations stay small."""

MemberMetrics = dict[int, dict[str, float]]
"""Trial number -> metric -> value."""


@dataclass(frozen=True)
class MemberState:
    """State of a member after an epoch, on the CPU: its training continues from this state as if it had never paused.

    `network` has the values of parameters and buffers, for bfloat16 the float32 master values. Nothing else changes
    during training: random numbers depend on seed and epoch (hpo/training/randomness.py). `averages` are those of
    `training.ema`. With `data.folds` this is the state on the first fold.
    """

    epoch: int
    network: State
    optimizer: FrozenOptimizer
    averages: State | None = None
    other_folds: tuple[MemberState, ...] = ()

    @property
    def folds(self) -> tuple[MemberState, ...]:
        """Return the states on all folds; without `data.folds`, the state alone."""
        return (self, *self.other_folds)

    @property
    def nbytes(self) -> int:
        """The size of the tensors of all folds, in bytes."""
        tensors = [part for fold in self.folds for part in (fold.network, *fold.optimizer.states, fold.averages or {})]
        return sum(each.nbytes for part in tensors for each in part.values() if isinstance(each, Tensor))


@dataclass(frozen=True)
class Member:
    """One trial inside a population: its number, its settings and the seed of its random numbers.

    A member with a state continues after the state's epoch; one without starts with epoch 1. `split` is the index of
    its split; the members of a population have the same one. `val_losses` has the validation losses of the first
    epochs, which `schedule = "plateau"` reads instead of the member's own: for a training without a validation split.
    """

    number: int
    config: Config
    seed: int
    state: MemberState | None = field(default=None, repr=False)
    split: int = 0
    val_losses: tuple[float, ...] = field(default=(), repr=False)

    @property
    def epoch(self) -> int:
        """The epochs that the member has trained."""
        return 0 if self.state is None else self.state.epoch


class Stack:
    """Members of one architecture that train together, on the device and in the type `compute` of the split.

    `modules` are the members' networks, with the values of the members' states. Where they were padded to one
    architecture, `padding` has their own shapes. `split` is the fold of index `fold`.
    With `stacked` False there is one member, whose module runs unstacked. `traces` is the cache of the architecture's
    graph. All members have trained the same number of epochs, `epochs_trained`. `numbers` are the trial numbers of the
    members that remain.
    """

    def __init__(
        self,
        members: Sequence[Member],
        modules: Sequence[nn.Module],
        split: DeviceSplit,
        fold: int = 0,
        stacked: bool = True,
        traces: TraceCache | None = None,
        padding: Padding | None = None,
    ) -> None:
        first = members[0].config
        self._padding = padding
        self.epochs_trained = members[0].epoch
        assert all(member.epoch == self.epochs_trained for member in members), "a stack has members of one epoch"
        self.numbers = [member.number for member in members]
        self._seeds = [member.seed for member in members]
        self._val_losses = {member.number: member.val_losses for member in members}
        self._settings_of = [member.config.training for member in members]
        self._own_examples = has_own_examples(first.training)
        self._split = split
        self._sum_type = widest_float(split.device)
        assert stacked or len(modules) == 1, "only a stack has several members"
        self._network: StackedNetwork | UnstackedNetwork
        if stacked:
            self._network = StackedNetwork(modules, split.compute, traces, padding, self._own_examples)
        else:
            self._network = UnstackedNetwork(
                with_output_check(modules[0], split.task.outputs, first.network, split.task.output_noun),
                split.compute,
                self._own_examples,
            )
        self._optimizer = Optimizer(
            self._network.blocks,
            [member.config.optimizer for member in members],
            [member.state.folds[fold].optimizer for member in members if member.state is not None],
            hidden_matrices(modules[0], split.task.outputs),
        )
        self._averages = WeightAverages(
            self._network.blocks,
            [member.config.training.ema for member in members],
            [member.state.folds[fold].averages for member in members if member.state is not None],
        )
        self._training, self._settings = first.training, first.network

    def epoch(self, epoch: int) -> MemberMetrics:
        """Train and evaluate for one epoch, counted from 1; return trial number -> metric -> value.

        Raises SettingError where the network's output has the wrong shape or type.
        """
        trained = self._train_epoch(epoch)
        self.epochs_trained = epoch
        with self._averages.in_place_of_weights():
            evaluated = self._evaluate()
        table, keys = torch.cat([trained, evaluated]).cpu().tolist(), self._split.task.curve_keys
        metrics = {
            number: {metric: row[index] for metric, row in zip(keys, table, strict=True)}
            for index, number in enumerate(self.numbers)
        }
        given = {n: losses[epoch - 1] for n, losses in self._val_losses.items() if epoch <= len(losses)}
        self._optimizer.end_epoch([given.get(n, of_member["val_loss"]) for n, of_member in metrics.items()])
        return metrics

    def remove(self, numbers: Collection[int]) -> None:
        """Remove these members: parameters, optimizer state, statistics, rates and seeds together."""
        remaining = [index for index, number in enumerate(self.numbers) if number not in numbers]
        if len(remaining) == len(self.numbers):
            return
        self.numbers = [self.numbers[index] for index in remaining]
        self._seeds = [self._seeds[index] for index in remaining]
        self._settings_of = [self._settings_of[index] for index in remaining]
        if remaining:
            indices = torch.tensor(remaining, device=self._split.device)
            self._network.select(indices)
            self._optimizer.select(indices)
            self._averages.select(indices)

    def states(self, numbers: Collection[int]) -> dict[int, State]:
        """Return copies, on the CPU, of the weights, or their averages, of those members that are in `numbers`."""
        indices = {number: index for index, number in enumerate(self.numbers) if number in numbers}
        with self._averages.in_place_of_weights():
            return {number: _on_cpu(self._network.state_dict(index)) for number, index in indices.items()}

    def freeze(self, numbers: Collection[int]) -> dict[int, MemberState]:
        """Return the states of those members of this stack that are in `numbers`."""
        indices = {number: index for index, number in enumerate(self.numbers) if number in numbers}
        return {
            number: MemberState(
                self.epochs_trained,
                _on_cpu(self._network.values(index)),
                self._optimizer.freeze(index),
                self._averages.freeze(index),
            )
            for number, index in indices.items()
        }

    def _train_epoch(self, epoch: int) -> Tensor:
        """Train one epoch; return the means of loss and accuracy over its examples, [2, K]."""
        device, task, targets = self._split.device, self._split.task, self._split.train_targets
        size = self._training.batch_size
        augmented = epoch_examples(self._split, epoch, self._training)
        order = batch_order(self._split.seed, epoch, len(targets)).to(device)
        batches = list(torch.split(order, size))[: steps_per_epoch(len(targets), size)]
        network = self._network
        dropouts: Sequence[Keyed] = network.dropouts
        keys = self._dropout_keys(epoch, len(batches), len(dropouts)).to(device)
        smoothing = None
        if any(smoothings := [each.label_smoothing for each in self._settings_of]):
            smoothing = torch.tensor(smoothings, dtype=self._sum_type, device=device).unsqueeze(1)
        own = MemberExamples(self._settings_of, self._seeds, epoch, batches) if self._own_examples else None
        self._optimizer.begin_epoch(epoch, self._training.epochs, len(batches))
        totals = torch.zeros(task.sums, len(self.numbers), dtype=self._sum_type, device=device)
        for step, (batch, of_step) in enumerate(zip(batches, keys.unbind(), strict=True)):
            for dropout, of_layer in zip(dropouts, of_step.unbind(), strict=True):
                dropout.set_keys(of_layer)
            network.blocks.begin_step()
            examples = augmented(batch)
            if own is None:
                losses, sums = task.losses(self._outputs(examples, training=True), targets[batch], smoothing)
                means = losses.member_means()
            else:
                mixed = own.batch(step, examples)
                means, sums = mixed.losses(task, self._outputs(mixed.inputs, training=True), targets[batch], smoothing)
            # The sum over members of each member's mean loss: a mean over members would divide every step by K.
            means.sum().backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._averages.update()
            totals += sums
        return totals / sum(len(batch) for batch in batches)

    def _dropout_keys(self, epoch: int, steps: int, layers: int) -> Tensor:
        """Return the keys of an epoch's masks, [steps, layers, K, 1]; a member's depend on its own number of layers."""
        if self._padding is None:
            return dropout_keys(self._seeds, epoch, steps, layers)
        keys = torch.zeros(steps, layers, len(self._seeds), 1, dtype=torch.int64)
        for index, (seed, own) in enumerate(zip(self._seeds, self._padding.members, strict=True)):
            keys[:, : len(own.dropouts), index] = dropout_keys([seed], epoch, steps, len(own.dropouts))[:, :, 0]
        return keys

    def _outputs(self, examples: Tensor, training: bool) -> Tensor:
        """Return the members' outputs for examples, as the network takes them, [K, B, outputs].

        Raises SettingError for another shape.
        """
        logits = self._network(examples, training)
        task = self._split.task
        checked_output(logits[0], examples.shape[self._own_examples], task.outputs, self._settings, task.output_noun)
        return logits

    @torch.no_grad()
    def _evaluate(self) -> Tensor:
        """Return the validation split's means of loss and accuracy, and the study's own metrics, [metrics, K]."""
        task, examples, targets = self._split.task, self._split.validation, self._split.validation_targets
        totals = torch.zeros(task.sums, len(self.numbers), dtype=self._sum_type, device=self._split.device)
        gathered = []
        batches = zip(torch.split(examples, EVALUATION_BATCH), torch.split(targets, EVALUATION_BATCH), strict=True)
        for batch, batch_targets in batches:
            outputs = self._outputs(self._network.of_all(batch), training=False)
            totals += task.losses(outputs, batch_targets)[1]
            if task.metrics:
                gathered.append(outputs.to(self._sum_type))
        means = totals / len(targets)
        return torch.cat([means, task.own_metrics(torch.cat(gathered, 1), targets)]) if task.metrics else means


def _on_cpu(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in values.items()}
