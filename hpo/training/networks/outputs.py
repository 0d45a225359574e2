"""What a network must return for B images, [B, classes], and the error where it returns anything else.

One check for every place that uses what a network returns: trying it out, training it alone or in a stack, evaluation,
the test and predictions. Knows nothing of what the numbers are used for.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hpo.errors import SettingError
from hpo.studyfile import NetworkSettings

MODULE = "network.module"


def checked(out: object, images: int, classes: int, settings: NetworkSettings) -> Tensor:
    """Return what a network made of so many images; raise SettingError unless it is [images, classes] of floats."""
    name = settings.module or f"the {settings.kind}"
    must = f"a network must return [B, {classes}], a number for each class"
    if not isinstance(out, Tensor):
        raise SettingError(MODULE, f"{name} returns a {type(out).__name__}; {must}")
    if out.shape != (images, classes):
        count = "1 image" if images == 1 else f"{images} images"
        raise SettingError(MODULE, f"{name} returns {list(out.shape)} for {count}; {must}")
    if not out.dtype.is_floating_point:
        raise SettingError(MODULE, f"{name} returns {out.dtype}; {must}, that can be trained")
    return out


def watched(network: nn.Module, classes: int, settings: NetworkSettings) -> nn.Module:
    """Return the network, whose every call now raises SettingError where it returns anything else."""

    def check(module: nn.Module, given: tuple[Any, ...], out: object) -> None:
        checked(out, len(given[0]), classes, settings)

    network.register_forward_hook(check)
    return network
