"""What a launch will do with a study: its device, images, first settings, and how large its populations are.

Everything that can be wrong with the study file, the data or the device is found here, before anything is stored; a
launch and `hpo check` begin with it. Knows nothing of storages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, overload

import optuna
import torch

from hpo.data import Split, load_split
from hpo.errors import HpoError
from hpo.search.samplers import check_search
from hpo.studyfile import AnyStudy, Config, ObjectiveStudy, Study
from hpo.studyfile.searched import candidates
from hpo.studyfile.trees import Path, value_at
from hpo.training.devices import describe, find_device, is_out_of_memory
from hpo.training.images import DeviceSplit, shape_of_images, to_device
from hpo.training.size import Size, population_size, size_of
from hpo.usercode import Code, code_of, load


@dataclass(frozen=True)
class Plan:
    """`config` has every searched value at its first, `size` is of one member of it, `population` a number of them."""

    device: torch.device
    images: Split
    config: Config
    size: Size
    population: int


@dataclass(frozen=True)
class ObjectivePlan:
    """The user's own function of a trial, and the code that it is."""

    function: Callable[[optuna.Trial], Any]
    code: Code


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
    if not callable(function):
        raise study.error("objective", f"must name a function of a trial (got {type(function).__name__})")
    return ObjectivePlan(function, code)


def _plan(study: Study, device: str) -> Plan:
    check_search(study)
    where = find_device(device)
    precision = study.first.training.precision
    if where.type == "mps" and precision == "float64":
        raise study.error("training.precision", "float64 does not exist on mps; use float32, or --device cpu")
    images = load_split(study)
    _check_shift(study, images)
    config = Config.model_validate(study.first.model_dump(include=set(Config.model_fields)))
    assumed = "float32" if precision == "auto" else precision  # the larger of the two that "auto" chooses from
    size = size_of(config, shape_of_images(images.train.pixels.shape), images.classes, assumed)
    population = population_size(study.search.population, study.search.trials, size.member_bytes, where)
    return Plan(where, images, config, size, population)


def _check_shift(study: Study, images: Split) -> None:
    """Raise StudyFileError for a shift that could move an image out of sight."""
    path: Path = ("training", "shift")
    side = min(images.train.pixels.shape[2:])
    value = value_at(study.resolved(), path)
    for place, shift in candidates(value).items() if isinstance(value, dict) else [((), value)]:
        if shift >= side:
            key = ".".join(map(str, (*path, *place)))
            raise study.error(key, f"must be below {side}, the pixels of an image's shorter side (got {shift})")


def on_device(study: Study, planned: Plan) -> DeviceSplit:
    """Copy the plan's images to its device. Raises HpoError where they do not fit."""
    try:
        return to_device(planned.images, study.data.split_seed, planned.device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        where = describe(planned.device)
        raise HpoError(f"study '{study.name}': its images do not fit into the memory of {where}") from error
