"""Which members can share a stack: those whose modules do the same, in shapes that are the same.

hpo's own networks say so in their settings. Of the user's own modules nobody knows what an argument changes, so each is
built and traced; and before the first of a kind is trained, its stack is compared with training it alone
(hpo/training/stacking/proof.py). A kind that cannot be stacked trains one member at a time, and why is said once.

Knows nothing of what is trained on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from hpo.errors import HpoError
from hpo.studyfile import Config, NetworkSettings
from hpo.studyfile.keys import for_all
from hpo.training.device_split import DeviceSplit, Shape
from hpo.training.networks.builtin import build
from hpo.training.networks.user_defined import check_trainable
from hpo.training.stack import Member
from hpo.training.stacking.proof import prove
from hpo.training.stacking.trace import CannotStackError, architecture_of

OWN = (("network", "init"), ("network", "dropout"), ("training", "label_smoothing"), ("training", "patience"))
"""Settings that each member of a population has for itself, besides its optimizer's numbers and schedule."""

PROOF_EXAMPLES = 4
"""Images that a stack is compared on."""


def shared_settings(config: Config) -> str:
    """Return what members of one population must have in common: all settings that change how a stack is built.

    Not those that each member has for itself, and not which weights are kept. The arguments of a module of the user's
    own are left out: what they change shows in the module.
    """
    shared = config.model_dump(mode="json")
    for section, key in (*OWN, *for_all(), ("network", "args")):
        del shared[section][key]
    shared["optimizer"] = shared["optimizer"]["kind"]
    return repr(sorted(shared.items()))


def why_not_stackable(modules: Sequence[nn.Module], images: Tensor) -> str | None:
    """Return why modules cannot be stacked; None where they can. They have been seen to run on such images."""
    try:
        prove(modules, images[:PROOF_EXAMPLES])
    except CannotStackError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - it runs, but not in the type of the comparison, or cannot be copied
        return f"it cannot be compared with its stack: {_line(error)}"
    return None


def two_networks(settings: NetworkSettings, shape: Shape, classes: int, seed: int) -> list[nn.Module]:
    """Return two modules of one kind, with different weights, on the CPU."""
    return [build(settings, shape, classes, each) for each in (seed, seed + 1)]


class Architectures:
    """The kinds of modules that have been met on one split; `say` is told of each that cannot be stacked."""

    def __init__(self, split: DeviceSplit, say: Callable[[str], None]) -> None:
        self._split, self._say = split, say
        self._known: dict[str, str] = {}  # arguments -> what the module does
        self._alone: dict[str, str | None] = {}  # what a module does -> why it cannot be stacked
        self._raised: dict[int, Exception] = {}  # trial number -> what its module has raised

    def population(self, member: Member) -> str:
        """Return what members of one population share, and others do not.

        A member whose module raises something has a population of its own, and `stacks` raises that for it.
        """
        shared = shared_settings(member.config)
        self._raised.pop(member.number, None)  # of an attempt before
        if member.config.network.kind != "module":
            return shared
        try:
            what = self._what(member)
        except Exception as error:  # noqa: BLE001 - kept for `stacks`, so that it fails this member and no other
            self._raised[member.number] = error
            return f"{shared} {member.number}"
        return f"{shared} {what} {member.number if self._alone[what] else ''}"

    def stacks(self, member: Member) -> bool:
        """Return whether the member's module runs in a stack. Raises what the module raises where it does not run."""
        if member.number in self._raised:
            raise self._raised.pop(member.number)
        return member.config.network.kind != "module" or self._alone[self._what(member)] is None

    def _what(self, member: Member) -> str:
        """Return what the member's module does, after its kind has been compared with its stack."""
        settings = member.config.network
        given = json.dumps([settings.module, settings.args], sort_keys=True)
        if given not in self._known:
            shape, classes = self._split.shape, self._split.classes
            modules = two_networks(settings, shape, classes, member.seed)
            what = architecture_of(modules[0])
            if what not in self._alone:
                reason = why_not_stackable(modules, self._split.train)
                if reason is not None:  # is it the stack's fault at all?
                    check_trainable(modules[0], settings, self._split.train[:PROOF_EXAMPLES].cpu().float(), classes)
                    self._tell(str(settings.module), reason)
                self._alone[what] = reason
            self._known[given] = what
        return self._known[given]

    def _tell(self, module: str, reason: str) -> None:
        if reason not in self._alone.values():
            self._say(f"{module}: {reason}; its trials train one at a time")


def _line(error: Exception) -> str:
    said = str(error) if isinstance(error, HpoError) else f"{type(error).__name__}: {error}"
    return (said.splitlines() or [""])[0]
