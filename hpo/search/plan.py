"""What a launch will do with a study: its device, images, first settings, and how large its populations are.

Everything that can be wrong with the study file, the data or the device is found here, before anything is stored; a
launch and `hpo check` begin with it. Knows nothing of storages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, overload

import optuna
import torch

from hpo.data import Split, load_split
from hpo.errors import CodeError, HpoError, SettingError
from hpo.search.sampling.samplers import PRECISION, check_search
from hpo.search.space import Values, config_of
from hpo.studyfile import AnyStudy, Config, ObjectiveStudy, Study
from hpo.studyfile.messages import dotted
from hpo.training.device_split import DeviceSplit, example_shape, to_device
from hpo.training.devices import describe_device, find_device, is_out_of_memory
from hpo.training.grouping import PROOF_EXAMPLES, two_networks, why_not_stackable
from hpo.training.networks.builtin import build
from hpo.training.networks.user_defined import Mode, check_reproducible, check_trainable
from hpo.training.size import MemberSize, device_memory, member_size, population_size
from hpo.training.stack import DTYPES, EVALUATION_BATCH
from hpo.usercode import Code, code_of, in_a_line, load


@dataclass(frozen=True)
class Plan:
    """`config` has every searched value at its first, `size` is of one member of it, `population` a number of them.

    `stacked` is whether members of `config` train in a stack; a module of the user's own may not. `code` is what that
    is made of, without files where there is none.
    """

    device: torch.device
    images: Split
    config: Config
    size: MemberSize
    population: int
    stacked: bool
    code: Code

    @property
    def warning(self) -> str:
        """A line on what its images lack; "" for nothing."""
        return self.images.warning


@dataclass(frozen=True)
class ObjectivePlan:
    """The user's own function of a trial, and the code that it is."""

    function: Callable[[optuna.Trial], Any]
    code: Code
    warning: str = ""


@overload
def plan(study: Study, device: str) -> Plan: ...
@overload
def plan(study: ObjectiveStudy, device: str) -> ObjectivePlan: ...
def plan(study: AnyStudy, device: str) -> Plan | ObjectivePlan:
    """Return the plan. Raises UsageError or StudyFileError (the file, the device), DataError and CodeError.

    The user's own objective chooses its device itself.
    """
    return _own_plan(study) if isinstance(study, ObjectiveStudy) else _plan(study, device)


def _own_plan(study: ObjectiveStudy) -> ObjectivePlan:
    code = code_of([study.objective], study.folder)
    function = load(study.objective, study.folder)
    if isinstance(function, type):
        made = f"is a class, of which the file must make one: add a line such as `objective = {function.__name__}()`"
        raise study.error("objective", f"{study.objective} {made}, and name that")
    if not callable(function):
        raise study.error("objective", f"must name a function of a trial (got {type(function).__name__})")
    return ObjectivePlan(function, code)


def _plan(study: Study, device: str) -> Plan:
    check_search(study)
    where = find_device(device)
    precisions = study.possible(PRECISION)
    for place, precision in precisions.items():
        if where.type == "mps" and precision == "float64":
            raise study.error(dotted(place), "float64 does not exist on mps; use float32, or --device cpu")
    code = _code(study)
    images = load_split(study)
    _check_shift(study, images)
    config = study.first_config
    wide = ["float32" if each == "auto" else each for each in precisions.values()]  # the larger one of those of "auto"
    assumed = max(wide, key=lambda each: DTYPES[each].itemsize)
    with _named(study, config):
        stacked = config.network.kind != "module" or _stacks(config, images, where, _modes_of_one(study, images))
        size = member_size(config, example_shape(images.train.pixels.shape), images.classes, assumed)
    limit, searched = study.search.limits.parameters, any(each.setting[0] == "network" for each in study.parameters)
    if limit is not None and size.parameters > limit and not searched:
        problem = f"is below the {size.parameters:,} parameters that every network of this study has (got {limit:,})"
        raise study.error("search.limits.parameters", problem)
    if size.least_bytes > device_memory(where) and not searched:
        needs, has = (f"{count / 2**30:,.1f} GiB" for count in (size.least_bytes, device_memory(where)))
        problem = f"a network of {size.parameters:,} parameters needs at least {needs} to train, and {where} has {has}"
        raise study.error("network", problem)
    wanted = 1 if study.search.population == "auto" and not stacked else study.search.population
    population = population_size(wanted, study.search.trials, size.member_bytes, where)
    return Plan(where, images, config, size, population, stacked, code)


def _code(study: Study) -> Code:
    """Return the study's code as it is now, which is imported."""
    for reference, key in study.references.items():
        try:
            code_of([reference], study.folder)
        except CodeError as error:
            raise study.error(key, str(error)) from error
    return code_of(study.references, study.folder)


@contextmanager
def _named(study: Study, config: Config) -> Iterator[None]:
    """Turn what is wrong with a network into an error of the study file, whoever found it."""
    try:
        yield
    except SettingError as error:
        raise study.error(error.key, error.problem) from error
    except HpoError:
        raise
    except Exception as error:
        if config.network.kind != "module" or is_out_of_memory(error):
            raise
        said = f"{config.network.module} raised {in_a_line(error, study.folder)}"
        raise study.error("network.module", said) from error


def _stacks(config: Config, images: Split, device: torch.device, modes_of_one: Sequence[Mode]) -> bool:
    """Try the user's own module on a few images, and on one in these modes; return whether it can be stacked."""
    few = torch.from_numpy(images.train.pixels[:PROOF_EXAMPLES])
    kind = torch.float64 if config.training.precision == "float64" else torch.float32
    shape = example_shape(few.shape)
    network = build(config.network, shape, images.classes, 0)
    modules = two_networks(config.network, shape, images.classes, 0)
    check_reproducible(network, modules[0], config.network)
    check_trainable(network, config.network, few.to(device, kind), images.classes)
    try:
        check_trainable(network, config.network, few[:1].to(device, kind), images.classes, modes_of_one)
    except Exception as error:
        error.add_note("for a batch of 1 image")
        raise
    return why_not_stackable(modules, few) is None


def _modes_of_one(study: Study, images: Split) -> list[Mode]:
    """Return in which modes the study's networks may get a batch of one image: a last one, or the only one."""
    found: list[Mode] = []
    if 1 in study.possible(("training", "batch_size")).values():
        found.append("training")
    if any(size % EVALUATION_BATCH == 1 for size in (len(images.validation), images.test_size or 0)):
        found.append("evaluation")
    return found


def can_train(study: Study, values: Values) -> bool:
    """Return whether a trial with these stored values could be trained: on the study's images, within its limits.

    Its network is made, and sees one image.
    """
    config, limit = config_of(study, values), study.search.limits.parameters
    try:
        images = load_split(study)
        _check_shift(study, images)
        with _named(study, config):
            size = member_size(config, example_shape(images.train.pixels.shape), images.classes, "float32")
    except HpoError:
        return False
    return limit is None or size.parameters <= limit


def _check_shift(study: Study, images: Split) -> None:
    """Raise StudyFileError for a shift that could move an image out of sight."""
    side = min(images.train.pixels.shape[2:])
    for place, shift in study.possible(("training", "shift")).items():
        if shift >= side:
            problem = f"must be below {side}, the pixels of an image's shorter side (got {shift})"
            raise study.error(dotted(place), problem)


def on_device(study: Study, planned: Plan) -> DeviceSplit:
    """Copy the plan's images to its device. Raises HpoError where they do not fit."""
    try:
        return to_device(planned.images, study.data.split_seed, planned.device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        where = describe_device(planned.device)
        raise HpoError(f"study '{study.name}': its images do not fit into the memory of {where}") from error
