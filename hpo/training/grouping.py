"""Group members into populations by architecture, and prove which user-defined modules can train in one stack.

Built-in networks follow from their settings: those of any shape are one group. A user-defined module is built and
traced, because any argument may change its architecture. Before the first module of an architecture is trained, two
such modules are trained for one step both stacked and alone, and compared (hpo/training/stacking/proof.py). So are
modules that differ in sizes only, padded to the largest one; where that fails, they are different groups, after one
warning. Modules that cannot be stacked train one at a time, after one warning with the reason. A further warning
follows where training changes such a module in a way that a state does not include: its members cannot be frozen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hpo.errors import HpoError
from hpo.studyfile import Config, NetworkSettings
from hpo.studyfile.keys import unsearchable_keys
from hpo.training.device_data import DeviceSplit, IntegerShape, Shape, input_type
from hpo.training.member_examples import has_own_examples
from hpo.training.networks.builtin import build
from hpo.training.networks.user_defined import check_ids, check_trainable, in_type, why_not_freezable
from hpo.training.shapes.template import largest_network, largest_settings, network_shape
from hpo.training.stack import Member
from hpo.training.stacking.proof import prove, prove_padded
from hpo.training.stacking.tracing.trace import CannotStackError, architecture_of

PER_MEMBER_SETTINGS = (
    ("network", "init"),
    ("network", "dropout"),
    ("training", "label_smoothing"),
    ("training", "ema"),
    ("training", "mixup"),
    ("training", "cutout"),
    ("training", "patience"),
)
"""Settings that may differ between members of a population, besides the numbers and schedule of the optimizer."""

ELEMENTWISE_OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lion")
"""Optimizers that update each element of a parameter by itself, so that zeros may be added to it."""

MAX_PROVED = 8
"""Architectures that are compared in one padded stack."""

PROOF_EXAMPLES = 4
"""Examples on which stacked and unstacked training are compared."""


def shared_settings(config: Config) -> str:
    """Return, as text, the settings that all members of one architecture share: those that change how it is built.

    Settings per member and keys that cannot be searched are left out. So are the arguments of a user-defined module:
    their effect shows in the module's architecture.
    """
    return repr(sorted(_shared(config).items()))


def _shared(config: Config) -> dict[str, Any]:
    shared = config.model_dump(mode="json")
    for section, key in (*PER_MEMBER_SETTINGS, *unsearchable_keys(), ("network", "args")):
        del shared[section][key]
    shared["optimizer"] = shared["optimizer"]["kind"]
    shared["own_examples"] = has_own_examples(config.training)
    return shared


def stack_key(config: Config) -> str:
    """Return a text that is equal for members that can share a stack, in which their networks are padded to one size.

    Lists of layers may differ in their numbers, and those of an mlp in length; a network without hidden layers differs.
    With an optimizer whose update depends on the shape of a weight, nothing may differ.
    """
    shared, network = _shared(config), config.network
    if config.optimizer.kind not in ELEMENTWISE_OPTIMIZERS:
        return repr(sorted(shared.items()))
    depth = min(1, len(network.hidden)) if network.kind == "mlp" else len(network.hidden)
    shared["network"] |= {"hidden": depth, "conv": len(network.conv)}
    return repr(sorted(shared.items()))


def why_not_stackable(modules: Sequence[nn.Module], examples: Tensor, own_examples: bool = False) -> str | None:
    """Return the reason why modules cannot be stacked, or None if they can.

    `examples` are [N, ...]; the modules must have run on such examples before. With `own_examples`, each member will
    have its own.
    """
    try:
        prove(modules, examples[:PROOF_EXAMPLES], own_examples)
    except CannotStackError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - the module runs, but cannot be copied, or not in the proof's type
        return f"its stacked training cannot be checked: {first_line(error)}"
    return None


def two_networks(settings: NetworkSettings, shape: Shape, classes: int, seed: int) -> list[nn.Module]:
    """Return two networks of the same settings under the seeds `seed` and `seed + 1`, on the CPU."""
    return [build(settings, shape, classes, each) for each in (seed, seed + 1)]


class Grouping:
    """The architectures of user-defined modules found so far on one split.

    `warn` is called with a line of text for each architecture that cannot be stacked. With `apart`, members of
    different architectures are different groups.
    """

    def __init__(self, split: DeviceSplit, warn: Callable[[str], None], apart: bool = False) -> None:
        self._split, self._warn, self._apart = split, warn, apart
        self._architectures: dict[str, str] = {}  # arguments -> architecture
        self._reasons: dict[str, str | None] = {}  # architecture -> why it cannot be stacked
        self._not_freezable: set[str] = set()  # architectures
        self._families: dict[str, str] = {}  # architecture -> the first one of those that are padded to one size
        # Whether with own examples -> first architecture -> settings, one an architecture
        self._padded: dict[bool, dict[str, list[NetworkSettings]]] = {False: {}, True: {}}
        self._warnings: set[str] = set()
        self._raised: dict[int, Exception] = {}  # trial number -> the exception that its module raised

    def key(self, member: Member) -> str:
        """Return a text that is equal for members that can train in one population, and different for all others.

        Built-in networks of any shape train in one population, in several stacks, if they have the same epochs and
        precision. A member whose module raises an exception is a group of its own; `can_stack` raises that exception.
        """
        shared = shared_settings(member.config)
        self._raised.pop(member.number, None)  # of an earlier attempt
        if member.config.network.kind != "module":
            training = member.config.training
            return shared if self._apart else f"built-in {training.epochs} {training.precision}"
        try:
            architecture = self._architecture(member)
        except Exception as error:  # noqa: BLE001 - raised by `can_stack`, so that only this member fails
            self._raised[member.number] = error
            return f"{shared} {member.number}"
        # Members of a stack share the step counts of its optimizer; those of modules may lack gradients.
        updates = [] if member.state is None else [*member.state.optimizer.steps.values()]
        padded = member.config.optimizer.kind in ELEMENTWISE_OPTIMIZERS
        family = self._families[architecture] if padded else architecture
        return f"{shared} {family} {updates} {member.number if self._reasons[architecture] else ''}"

    def can_stack(self, member: Member) -> bool:
        """Return whether the member's module can be stacked. Raises the exception that its module raised, if any."""
        if member.number in self._raised:
            raise self._raised.pop(member.number)
        return member.config.network.kind != "module" or self._reasons[self._architecture(member)] is None

    def can_freeze(self, member: Member) -> bool:
        """Return whether the member's state after an epoch is all that its training needs to continue."""
        return member.config.network.kind != "module" or self._architecture(member) not in self._not_freezable

    def _architecture(self, member: Member) -> str:
        """Return the architecture of the member's module, after checking once whether it can be stacked."""
        settings = member.config.network
        own_examples = has_own_examples(member.config.training)
        arguments = json.dumps([settings.module, settings.args, own_examples], sort_keys=True)
        if arguments not in self._architectures:
            shape, classes = self._split.shape, self._split.task.outputs
            modules = two_networks(settings, shape, classes, member.seed)
            if isinstance(shape, IntegerShape):
                for inputs in (each for fold in self._split.folds for each in (fold.train, fold.validation)):
                    check_ids(build(settings, shape, classes, member.seed), settings, inputs)
            architecture = architecture_of(modules[0]) + " with own examples" * own_examples
            if architecture not in self._reasons:
                reason = why_not_stackable(modules, self._split.train, own_examples)
                if reason is not None:
                    examples = self._split.train[:PROOF_EXAMPLES].cpu()
                    # Raises the module's own error, if it fails unstacked as well.
                    check_trainable(modules[0], settings, examples, classes, noun=self._split.task.output_noun)
                    self._warn_once(f"{settings.module}: {reason}; its trials train one at a time")
                    examples = examples.to(input_type(examples, torch.float32))
                    fresh = in_type(build(settings, shape, classes, member.seed), torch.float32)
                    if problem := why_not_freezable(modules[0], fresh, examples):
                        self._warn_once(f"{settings.module}: {problem}; its trials train without a pause")
                        self._not_freezable.add(architecture)
                self._reasons[architecture] = reason
                self._families[architecture] = architecture
                if reason is None and not self._apart:
                    self._join_family(architecture, settings, own_examples)
            self._architectures[arguments] = architecture
        return self._architectures[arguments]

    def _join_family(self, architecture: str, settings: NetworkSettings, own_examples: bool) -> None:
        """Find the architectures that a new one can be padded with: all of them pass the proof in one stack."""
        problem = ""
        for first, others in self._padded[own_examples].items():
            if others[0].module != settings.module or _kinds(others[0].args) != _kinds(settings.args):
                continue
            try:
                if not self._prove_padded([*others[-MAX_PROVED + 1 :], settings], own_examples):
                    continue
            except CannotStackError as error:
                problem = str(error)
                continue
            except Exception as error:  # noqa: BLE001 - the constructor does not take the largest arguments together
                problem = f"their largest arguments make no network: {first_line(error)}"
                continue
            others.append(settings)
            self._families[architecture] = first
            return
        self._padded[own_examples][architecture] = [settings]
        if problem:
            self._warn_once(f"{settings.module}: networks of different shapes train apart: {problem}")

    def _prove_padded(self, settings: Sequence[NetworkSettings], own_examples: bool) -> bool:
        """Return whether networks of these settings can be padded; False if they differ in something else than sizes.

        Raises CannotStackError where they cannot, and what the constructor of the largest one raises.
        """
        shape, classes = self._split.shape, self._split.task.outputs
        modules = [build(each, shape, classes, seed) for seed, each in enumerate(settings)]
        shapes = [network_shape(each, module, shape) for each, module in zip(settings, modules, strict=True)]
        if any(each.tensors == shapes[-1].tensors for each in shapes[:-1]):
            return False
        largest, template = largest_settings(settings), largest_network(settings, shape, classes)
        own = [each.own_shape(largest) for each in shapes]
        prove_padded(modules, template, own, self._split.train[:PROOF_EXAMPLES], own_examples)
        return True

    def _warn_once(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.add(text)
            self._warn(text)


def _kinds(value: Any) -> Any:
    """Return arguments without their numbers: equal for those that may differ in sizes and rates only."""
    if isinstance(value, dict):
        return {key: _kinds(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_kinds(each) for each in value]
    return type(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def first_line(error: Exception) -> str:
    """Return the first line of an error for users, after the type of any other error."""
    text = str(error) if isinstance(error, HpoError) else f"{type(error).__name__}: {error}"
    return (text.splitlines() or [""])[0]
