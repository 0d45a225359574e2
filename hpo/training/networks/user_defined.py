"""Construct user-defined networks from a study's arguments, and check them before training.

The arguments `shape`, that of an example, and `classes` are added if the constructor has them and the study does not
set them. A mistake in the study file raises SettingError with the key; exceptions of the user's code are raised as they
are. The constructor gets copies of the study's values, so it cannot change the settings.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hpo.errors import CodeError, HpoError, SettingError, nearest
from hpo.studyfile import NetworkSettings
from hpo.training.device_data import Shape, extreme_examples, input_type, zero_example
from hpo.training.global_locks import seeded
from hpo.usercode import load_reference

MODULE = "network.module"

ADDED_ARGUMENTS = ("shape", "classes", "outputs")
"""The arguments that hpo adds: the shape of an example, and twice the number of outputs."""

Mode = Literal["training", "evaluation"]
"""Mode of a module, which changes dropout and batch norm."""


def construct(settings: NetworkSettings, shape: Shape, classes: int) -> nn.Module:
    """Return the user's module, constructed from these settings for examples of `shape`.

    Raises SettingError where the reference, an argument or the result is wrong, and what the constructor raises.
    """
    assert settings.module is not None, "kind = 'module' requires a module"
    try:
        constructor = load_reference(settings.module, settings.folder)
    except CodeError as error:
        raise SettingError(MODULE, str(error)) from error
    if not callable(constructor):
        raise SettingError(MODULE, f"{settings.module} is neither a class nor a function that returns a module")
    arguments = _arguments(
        constructor, settings, dict(zip(ADDED_ARGUMENTS, (tuple(shape), classes, classes), strict=True))
    )
    try:
        network = constructor(**arguments)
    except Exception as error:
        if len(shape) != 3 and not isinstance(error, HpoError):
            error.add_note(f"for examples of shape {list(shape)}")
        raise
    if not isinstance(network, nn.Module):
        raise SettingError(MODULE, f"{settings.module} returns a {type(network).__name__}, not a torch.nn.Module")
    if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        _initialize_lazy_layers(network, shape)
    return network


@torch.no_grad()
def _initialize_lazy_layers(network: nn.Module, shape: Shape) -> None:
    """Run the network once, so that lazy layers, such as `nn.LazyLinear`, get their sizes and initial weights."""
    modes = {layer: layer.training for layer in network.modules()}
    example = zero_example(shape)
    with _inputs_in_errors(example):
        network.eval()(example)
    for layer, mode in modes.items():
        layer.training = mode


def _arguments(constructor: Callable[..., Any], settings: NetworkSettings, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments by name. Raises SettingError for an unknown or a missing argument.

    `known` are the arguments that are added if the constructor has them.
    """
    args = copy.deepcopy(settings.args)
    try:
        parameters = inspect.signature(constructor).parameters.values()
    except ValueError:  # some callables have no signature
        return args
    positional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    named = {each.name: each for each in parameters if each.kind not in (*positional, inspect.Parameter.VAR_KEYWORD)}
    takes_all = any(each.kind == inspect.Parameter.VAR_KEYWORD for each in parameters)
    for name in args:
        if name not in named and not takes_all:
            has = nearest(name, named) or f"; it has {', '.join(named) or 'none'}"
            raise SettingError(f"network.args.{name}", f"is not an argument of {settings.module}{has}")
    complete = {name: value for name, value in known.items() if name in named} | args
    for name, parameter in named.items():
        if name not in complete and parameter.default is inspect.Parameter.empty:
            raise SettingError(f"network.args.{name}", f"missing: {settings.module} has no default for it")
    return complete


def check_reproducible(network: nn.Module, second: nn.Module, settings: NetworkSettings) -> None:
    """Raise SettingError where a second module constructed with the same settings differs in names or shapes."""
    # Extra state of a module may be no tensor and has no shape.
    both = [each.state_dict().items() for each in (network, second)]
    shapes, second_shapes = ([(name, *getattr(value, "shape", ())) for name, value in state] for state in both)
    if shapes != second_shapes:
        sizes = (sum(parameter.numel() for parameter in each.parameters()) for each in (network, second))
        counts = " parameters, then ".join(f"{size:,}" for size in sizes)
        differs = f"{settings.module} constructs a different network each time ({counts})"
        raise SettingError(MODULE, f"{differs}; its constructor must not change defaults or global state")


def check_trainable(
    network: nn.Module,
    settings: NetworkSettings,
    examples: Tensor,
    classes: int,
    modes: Sequence[Mode] = ("training", "evaluation"),
    compute: torch.dtype = torch.float32,
    noun: str = "output",
) -> None:
    """Run the module forward and, in training mode, backward on a few examples [B, ...], in the type `compute`.

    `noun` names what each output is for, in an error message.
    The examples are not changed; the module is converted to the type and to their device. Raises SettingError for a
    module that cannot be trained and for a wrong output, and what the module itself raises, with the examples' shape.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise SettingError(MODULE, f"{settings.module} has no parameters to train")
    if name := next((name for name, each in network.named_parameters() if each.is_complex()), None):
        raise SettingError(MODULE, f"{settings.module} has a complex parameter, '{name}'; use two real ones instead")
    network = in_type(network.to(examples.device), compute)
    with seeded(0, examples.device):
        for mode in modes:
            with _inputs_in_errors(examples):
                found = network.train(mode == "training")(examples.to(input_type(examples, compute), copy=True))
            out = checked_output(found, len(examples), classes, settings, noun)
            if mode == "training":
                labels = torch.zeros(len(examples), dtype=torch.long, device=examples.device)
                F.cross_entropy(out, labels).backward()  # type: ignore[no-untyped-call]


@torch.no_grad()
def check_ids(network: nn.Module, settings: NetworkSettings, inputs: Tensor) -> None:
    """Raise SettingError where integer inputs [N, ...] have an id beyond one of the network's embeddings.

    Runs the network on the CPU, because an index out of range ends all work on a GPU, and changes it.
    """
    with_id_check(network.cpu().eval(), settings)
    with seeded(0):
        for batch in torch.split(extreme_examples(inputs).cpu(), 100):
            with _inputs_in_errors(batch):
                network(batch)


def with_id_check(network: nn.Module, settings: NetworkSettings) -> nn.Module:
    """Make every embedding of the network check its ids, with SettingError for one out of range; return the network."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            layer.register_forward_pre_hook(partial(_check_range, name, settings))
    return network


def _check_range(name: str, settings: NetworkSettings, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    assert isinstance(layer, nn.Embedding | nn.EmbeddingBag)
    count = layer.num_embeddings
    if not (inputs and isinstance(inputs[0], Tensor) and inputs[0].numel()):
        return
    low, high = (int(each) for each in inputs[0].aminmax())
    if low < 0 or high >= count:
        wrong = f"id {low}" if low < 0 else f"ids up to {high}"
        problem = f"{settings.module}: layer '{name}' has the ids 0 to {count - 1} (num_embeddings), but gets {wrong}"
        raise SettingError(MODULE, problem)


@contextmanager
def _inputs_in_errors(inputs: Tensor) -> Iterator[None]:
    """Add the shape of the inputs to an error that the user's module raises."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, HpoError):
            values = "" if inputs.is_floating_point() else f", integers {inputs.min()} to {inputs.max()}"
            error.add_note(f"for inputs of shape {list(inputs.shape)}{values}")
        raise


def in_type(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the module's real floating-point tensors to float64 or float32; `to` would convert complex ones, too."""
    return network.double() if dtype == torch.float64 else network.float()


def values_of(network: nn.Module) -> dict[str, Any]:
    """Return copies of all that training may change in a module: its state and its non-persistent buffers."""
    return copied_values({**dict(network.named_buffers(remove_duplicate=False)), **network.state_dict()})


def copied_values(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a module's state, whose extra state may be no tensor."""
    return {n: v.detach().clone() if isinstance(v, Tensor) else copy.deepcopy(v) for n, v in state.items()}


def load_values(network: nn.Module, values: Mapping[str, Any]) -> None:
    """Load copies of the values that `values_of` returned into a module of the same architecture and type."""
    device = next(network.parameters()).device
    values = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in copied_values(values).items()}
    for path, module in network.named_modules():
        for name, buffer in module._buffers.items():
            value = values.get(f"{path}.{name}" if path else name, buffer)
            if buffer is None or (buffer.dtype, buffer.shape) != (value.dtype, value.shape):
                setattr(module, name, value)  # a forward may replace a buffer by one of another type or shape
            else:
                buffer.copy_(value)
    state = network.state_dict()
    network.load_state_dict({name: value for name, value in values.items() if name in state})


def why_not_freezable(network: nn.Module, fresh: nn.Module, examples: Tensor) -> str | None:
    """Return the reason why a frozen trial may not continue as it would without the pause, or None if none is found.

    `network` has trained on the examples. Its values are loaded into `fresh`, a new module of the same settings, seed
    and type. The plain attributes of both, which are numbers, strings and collections of them, and the outputs of both
    must then be equal.
    """
    try:
        load_values(fresh, values_of(network))
    except Exception as error:  # noqa: BLE001 - the user's module may not support it
        return f"a frozen trial's state cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())})"
    loaded = _plain_attributes(fresh)
    changed = [name for name, value in _plain_attributes(network).items() if value != loaded.get(name)]
    if changed:
        return f"a frozen trial would lose its attribute '{changed[0]}'; make it a buffer"
    for training in (True, False):
        outputs = []
        for module in (network, fresh):
            with seeded(0, examples.device), torch.no_grad():
                outputs.append(module.train(training)(examples.clone()))
        if not torch.allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-4, equal_nan=True):
            return "a frozen trial would lose what training changes besides parameters and buffers; make it a buffer"
    return None


def _plain_attributes(network: nn.Module) -> dict[str, str]:
    """Return, as JSON, those attributes of the module and its layers that JSON can represent."""
    found = {}
    of_any_module = vars(nn.Module()).keys()
    for path, module in network.named_modules():
        for name in vars(module).keys() - of_any_module:
            with suppress(TypeError, ValueError):
                found[f"{path}.{name}" if path else name] = json.dumps(vars(module)[name])
    return found


def checked_output(out: object, examples: int, classes: int, settings: NetworkSettings, noun: str = "output") -> Tensor:
    """Return the output of a network for a batch; raise SettingError unless it is a float tensor [B, classes].

    `noun` names what each output is for: a class, a label, a target column.
    """
    name = settings.module or f"the {settings.kind}"
    must = f"a network must return [B, {classes}], one number per {noun}"
    if not isinstance(out, Tensor):
        raise SettingError(MODULE, f"{name} returns a {type(out).__name__}; {must}")
    if out.shape != (examples, classes):
        count = "1 example" if examples == 1 else f"{examples} examples"
        raise SettingError(MODULE, f"{name} returns {list(out.shape)} for {count}; {must}")
    if not out.dtype.is_floating_point:
        raise SettingError(MODULE, f"{name} returns {out.dtype}; {must}, in a floating-point type")
    return out


def with_output_check(network: nn.Module, classes: int, settings: NetworkSettings, noun: str = "output") -> nn.Module:
    """Make every call of the network check its output with `checked_output`; return the network."""

    def check(module: nn.Module, inputs: tuple[Any, ...], out: object) -> None:
        checked_output(out, len(inputs[0]), classes, settings, noun)

    network.register_forward_hook(check)
    return network
