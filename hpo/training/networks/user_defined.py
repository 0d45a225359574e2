"""The user's own module as a trial's network: made from the arguments that its study gives, and tried before training.

`shape` (C, H, W) and `classes` are filled in where the constructor has them and the study does not give them. What the
study file got wrong is a SettingError, which names its key; whatever the user's own code raises goes through as it is.
Knows nothing of stacks.

Promises: a constructor is given copies of the settings' values, so that whatever it does with them changes no setting.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hpo.errors import CodeError, SettingError, nearest
from hpo.studyfile import NetworkSettings
from hpo.training.device_split import Shape
from hpo.training.global_state import seeded
from hpo.usercode import load

MODULE = "network.module"

Mode = Literal["training", "evaluation"]
"""How a module runs: its dropout and batch norm as in training, or as in evaluation."""


def construct(settings: NetworkSettings, shape: Shape, classes: int) -> nn.Module:
    """Return the module that the study's code makes of these settings, for images of `shape`."""
    assert settings.module is not None, "a network of this kind has a module"
    try:
        constructor = load(settings.module, settings.folder)
    except CodeError as error:
        raise SettingError(MODULE, str(error)) from error
    if not callable(constructor):
        raise SettingError(MODULE, f"{settings.module} is no class, nor a function that returns a module")
    network = constructor(**_arguments(constructor, settings, {"shape": shape, "classes": classes}))
    if not isinstance(network, nn.Module):
        raise SettingError(MODULE, f"{settings.module} gives a {type(network).__name__}, and no torch.nn.Module")
    if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        _show_an_image(network, shape)
    return network


@torch.no_grad()
def _show_an_image(network: nn.Module, shape: Shape) -> None:
    """Let lazy layers, such as `nn.LazyLinear`, take their sizes and initial weights; nothing else changes."""
    modes = {layer: layer.training for layer in network.modules()}
    network.eval()(torch.zeros(1, *shape))
    for layer, mode in modes.items():
        layer.training = mode


def _arguments(constructor: Callable[..., Any], settings: NetworkSettings, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments by name. Raises SettingError for one that it does not have, or lacks."""
    args = copy.deepcopy(settings.args)
    try:
        parameters = inspect.signature(constructor).parameters.values()
    except ValueError:  # nobody knows what it takes
        return args
    positional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    named = {each.name: each for each in parameters if each.kind not in (*positional, inspect.Parameter.VAR_KEYWORD)}
    takes_all = any(each.kind == inspect.Parameter.VAR_KEYWORD for each in parameters)
    for name in args:
        if name not in named and not takes_all:
            has = nearest(name, named) or f"; it has {', '.join(named) or 'none'}"
            raise SettingError(f"network.args.{name}", f"is no argument of {settings.module}{has}")
    given = {name: value for name, value in known.items() if name in named} | args
    for name, parameter in named.items():
        if name not in given and parameter.default is inspect.Parameter.empty:
            raise SettingError(f"network.args.{name}", f"missing: {settings.module} has no default for it")
    return given


def check_reproducible(network: nn.Module, again: nn.Module, settings: NetworkSettings) -> None:
    """Raise SettingError where a module that is made again under the same seed has other weights."""
    # What a module keeps besides tensors has no shape.
    both = [each.state_dict().items() for each in (network, again)]
    first, second = ([(name, *getattr(value, "shape", ())) for name, value in state] for state in both)
    if first != second:
        sizes = (sum(parameter.numel() for parameter in each.parameters()) for each in (network, again))
        counts = " parameters, then ".join(f"{size:,}" for size in sizes)
        differs = f"{settings.module} is another network each time it is made ({counts})"
        raise SettingError(MODULE, f"{differs}; its constructor must change no default and nothing global")


def check_trainable(
    network: nn.Module,
    settings: NetworkSettings,
    images: Tensor,
    classes: int,
    modes: Sequence[Mode] = ("training", "evaluation"),
) -> None:
    """Train and evaluate a few images, [B, C, H, W], in the type of their own; they stay as they are.

    `modes` says whether to train, and to evaluate. Raises SettingError where what comes out cannot be trained, and what
    the module itself raises.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise SettingError(MODULE, f"{settings.module} has no parameters to train")
    if complex_one := next((name for name, each in network.named_parameters() if each.is_complex()), None):
        raise SettingError(MODULE, f"{settings.module} has a complex parameter, '{complex_one}'; make it two real ones")
    network = in_type(network.to(images.device), images.dtype)
    with seeded(0, images.device):
        for mode in modes:
            out = checked_output(network.train(mode == "training")(images.clone()), len(images), classes, settings)
            if mode == "training":
                labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
                F.cross_entropy(out, labels).backward()  # type: ignore[no-untyped-call]


def in_type(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the module with its real numbers in that type, float64 or float32; `to` would make complex ones real."""
    return network.double() if dtype == torch.float64 else network.float()


def checked_output(out: object, images: int, classes: int, settings: NetworkSettings) -> Tensor:
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


def with_output_check(network: nn.Module, classes: int, settings: NetworkSettings) -> nn.Module:
    """Return the network, whose every call now raises SettingError where it returns anything else."""

    def check(module: nn.Module, given: tuple[Any, ...], out: object) -> None:
        checked_output(out, len(given[0]), classes, settings)

    network.register_forward_hook(check)
    return network
