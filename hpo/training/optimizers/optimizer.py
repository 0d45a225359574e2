"""Optimizers with hyperparameters per member, over blocks of parameters.

Each kind is an update rule (hpo/training/optimizers/rules.py) that updates all members at once, which compiled passes
compute where there are some (hpo/training/optimizers/compiled.py). Weight decay acts on blocks of weights only.
Optimizer state has the type of the master values. A member's gradient is clipped by its norm over all blocks, as
torch.nn.utils.clip_grad_norm_ does before an optimizer step. A parameter without a gradient is not updated, nor are its
optimizer state and step count, as in torch where the gradient is None.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpo.studyfile import OptimizerSettings
from hpo.training.optimizers.compiled import compiled_update
from hpo.training.optimizers.muon import muon
from hpo.training.optimizers.rules import DECOUPLED, HYPERPARAMETERS, RULES, OptimizerState, hyperparameter
from hpo.training.optimizers.schedules import Plateau, is_scheduled, learning_rates
from hpo.training.stacking.parameter_blocks import ParameterBlocks, ParameterSlot


@dataclass
class _Part:
    """The parameters updated together: a whole block, or one of its parameters. `step` counts the updates.

    `copy` is what the layers compute with, None where that is the master value itself.
    """

    slots: list[ParameterSlot]
    master: Tensor
    grad: Tensor
    copy: Tensor | None
    state: OptimizerState
    decayed: bool
    step: int
    hidden: torch.Size | None = None  # the shape of a hidden matrix, for Muon


@dataclass(frozen=True)
class FrozenOptimizer:
    """One member's optimizer state by parameter: its state tensors, such as moments, and the number of its updates.

    `plateau` is the state of its schedule, None unless that is a plateau.
    """

    states: list[dict[str, Tensor]]
    steps: dict[str, int]
    plateau: Plateau | None = None


class Optimizer:
    """One kind of optimizer over the parameter blocks of K members.

    `settings` has one entry per member; all have the same `kind`. `frozen` are the members' states to continue from;
    their step counts are equal, because members of one architecture at the same epoch have made the same steps.
    `hidden` are the names of the matrices that Muon updates; AdamW updates the other parameters.
    """

    def __init__(
        self,
        blocks: ParameterBlocks,
        settings: Sequence[OptimizerSettings],
        frozen: Sequence[FrozenOptimizer] = (),
        hidden: Collection[str] = (),
    ) -> None:
        self._kind = settings[0].kind
        self._rule, states = RULES[self._kind]
        first = blocks.blocks[0].master
        self._blocks = blocks
        self._hidden = hidden if self._kind == "muon" else ()
        self._states = [[torch.zeros_like(block.master) for _ in range(states)] for block in blocks.blocks]
        self._by_parameter = False  # True once a parameter lacked a gradient: each then counts its own steps
        steps = [0] * len(blocks.blocks)
        if frozen:
            self._load_states(frozen)
            self._by_parameter = True
            names = {slot: name for name, slot in blocks.slots.items()}
            steps = [frozen[0].steps[names[slot]] for block in blocks.blocks for _, slot in block.parameters]
            if len(set(steps)) == 1:
                self._by_parameter, steps = False, steps[: len(blocks.blocks)]
        self._parts = self._make_parts(steps)
        self._scratch = torch.empty(0, dtype=first.dtype, device=first.device)
        self._plateaus = [Plateau(each.lr) for each in settings]  # used by members with that schedule only
        for index, state in enumerate(frozen):
            self._plateaus[index] = state.plateau or self._plateaus[index]
        self._apply_settings(list(settings))

    def _load_states(self, frozen: Sequence[FrozenOptimizer]) -> None:
        for index, states in enumerate(zip(*(each.states for each in frozen), strict=True)):
            for of_block, value in zip(self._states, self._blocks.join_members(states), strict=True):
                of_block[index].copy_(value)

    def freeze(self, member: int) -> FrozenOptimizer:
        """Return a copy, on the CPU, of the state of one member, by index."""
        split = [self._blocks.split(states) for states in zip(*self._states, strict=True)]
        own = [self._blocks.of_member(member, each) for each in split]
        states = [{name: value.clone().cpu() for name, value in each.items()} for each in own]
        steps, slots = {slot: part.step for part in self._parts for slot in part.slots}, self._blocks.slots
        own_steps = {name: steps[slots[here]] for name, here in self._blocks.own_names(member).items()}
        plateau = self._plateaus[member] if self._settings[member].schedule == "plateau" else None
        return FrozenOptimizer(states, own_steps, plateau)

    def _apply_settings(self, settings: list[OptimizerSettings]) -> None:
        self._settings = settings
        self._hyper = {
            name: self._column([hyperparameter(each, name) for each in settings]) for name in HYPERPARAMETERS
        }
        clips = [math.inf if each.clip is None else each.clip for each in settings]
        self._clips = self._column(clips) if min(clips) < math.inf else None
        self._decays = any(each.weight_decay for each in settings)
        self._scheduled = any(map(is_scheduled, settings))
        self._rates: list[Tensor] = []  # learning rates of the epoch's remaining steps, the last step first

    def _column(self, values: list[float]) -> Tensor:
        return self._scratch.new_tensor(values).unsqueeze(1)

    def begin_epoch(self, epoch: int, epochs: int, steps: int) -> None:
        """Compute the learning rates of an epoch. Call it before the epoch's first step.

        `epoch` counts from 1 to `epochs`; `steps` is the number of steps in the epoch.
        """
        if self._scheduled:
            pairs = zip(self._settings, self._plateaus, strict=True)
            rates = np.stack([learning_rates(each, epoch, epochs, steps, at.lr) for each, at in pairs], axis=1)
            self._rates = list(self._scratch.new_tensor(rates[::-1].copy()).unsqueeze(2))

    def end_epoch(self, losses: Sequence[float]) -> None:
        """Update the plateau schedules with the members' validation losses of the epoch. Call it after each epoch."""
        self._plateaus = [
            plateau.after(loss, each) if each.schedule == "plateau" else plateau
            for plateau, loss, each in zip(self._plateaus, losses, self._settings, strict=True)
        ]

    @torch.no_grad()
    def step(self) -> None:
        """Update every master value that has a gradient, then the values that the layers compute with."""
        hyper, decoupled = self._hyper, self._kind in DECOUPLED
        if self._scheduled:
            hyper = {**hyper, "lr": self._rates.pop()}
        # With Muon, the parameters that are no hidden matrices have a learning rate of their own.
        others = {**hyper, "lr": hyper["lr"] * hyper["adamw_ratio"]} if self._kind == "muon" else hyper
        parts = self._parts_with_gradient()
        self._blocks.clear_padding()
        factors = None if self._clips is None or not parts else self._clip_factors(self._clips, parts)
        for part in parts:
            of_part = others if part.hidden is None else hyper
            decay = hyper["weight_decay"] if part.decayed and self._decays else None
            state, step = part.state, part.step
            if part.hidden is None and compiled_update(
                self._kind, part.master, part.grad, part.copy, state, of_part, factors, decay, step
            ):
                continue
            grad = self._gradient(part.grad)
            if factors is not None:
                grad.mul_(factors)
            if decay is not None and decoupled:
                part.master.mul_(1 - of_part["lr"] * decay)
            elif decay is not None:
                grad.addcmul_(part.master, decay)
            if part.hidden is not None:
                muon(part.master, grad, state, of_part, part.hidden)
            else:
                self._rule(part.master, grad, state, of_part, step)
            if part.copy is not None:
                part.copy.copy_(part.master)

    def select(self, members: Tensor) -> None:
        """Reduce settings and state to these members: ascending indices, [n] int64."""
        self._plateaus = [self._plateaus[index] for index in members.tolist()]
        self._apply_settings([self._settings[index] for index in members.tolist()])
        self._states = [[moment[members] for moment in state] for state in self._states]
        self._parts = self._make_parts([part.step for part in self._parts])

    def _parts_with_gradient(self) -> list[_Part]:
        """Return the parts that have a gradient, and count this step for them.

        Parts are whole blocks until some parameter has no gradient for the first time.
        """
        if not self._by_parameter and not all(slot.has_gradient for slot in self._blocks.slots.values()):
            self._by_parameter = True
            self._parts = self._make_parts([part.step for part in self._parts for _ in part.slots])
        parts = [part for part in self._parts if part.slots[0].has_gradient] if self._by_parameter else self._parts
        for part in parts:
            part.step += 1
        return parts

    def _make_parts(self, steps: Sequence[int]) -> list[_Part]:
        """Return the parts with their step counts: one per block, or one per parameter where `_by_parameter`."""
        parts: list[_Part] = []
        hidden = {slot: slot.value.shape[1:] for name, slot in self._blocks.slots.items() if name in self._hidden}
        for block, state in zip(self._blocks.blocks, self._states, strict=True):
            one_by_one = [(columns, [slot]) for columns, slot in block.parameters]
            whole = [(slice(None), [slot for _, slot in block.parameters])]
            for columns, slots in one_by_one if self._by_parameter else whole:
                master, grad = block.master[:, columns], block.grad[:, columns]
                copy = None if block.compute is block.master else block.compute[:, columns]
                moments = [moment[:, columns] for moment in state]
                # A matrix is a block of its own.
                shape = hidden.get(slots[0])
                parts.append(_Part(slots, master, grad, copy, moments, block.decayed, steps[len(parts)], shape))
        return parts

    def _clip_factors(self, clips: Tensor, parts: Sequence[_Part]) -> Tensor:
        """Return the factor that clips each member's gradient, [K, 1]: 1 within the clip, or without a clip.

        1e-6 is the constant of torch's clip_grad_norm_. A norm that is not finite affects its own member only, and
        only if that member has a clip.
        """
        grads = (part.grad for part in parts)
        norms = torch.cat([torch.linalg.vector_norm(g, dim=1, keepdim=True, dtype=clips.dtype) for g in grads], 1)
        norm: Tensor = torch.linalg.vector_norm(norms, dim=1, keepdim=True)
        return (clips / (norm + 1e-6)).clamp(max=1).masked_fill(clips.isinf(), 1)

    def _gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient in the type of the master values. The caller may overwrite it."""
        if grad.dtype == self._scratch.dtype:
            return grad
        if self._scratch.numel() < grad.numel():
            self._scratch = self._scratch.new_empty(grad.numel())
        return self._scratch[: grad.numel()].view_as(grad).copy_(grad)
