"""What a launch will do with a study: its device, images, first settings, and how large its populations are.

Everything that can be wrong with the study file, the data or the device is found here, before anything is stored; a
launch and `hpo check` begin with it. Knows nothing of storages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hpo.data import Split, load_split
from hpo.errors import HpoError
from hpo.search.samplers import check_search
from hpo.studyfile import Config, Study
from hpo.studyfile.searched import candidates
from hpo.training.devices import describe, find_device, is_out_of_memory
from hpo.training.images import DeviceSplit, shape_of_images, to_device
from hpo.training.size import Size, population_size, size_of


@dataclass(frozen=True)
class Plan:
    """`config` has every searched value at its first, `size` is of one member of it, `population` a number of them."""

    device: torch.device
    images: Split
    config: Config
    size: Size
    population: int


def plan(study: Study, device: str) -> Plan:
    """Return the plan. Raises UsageError or StudyFileError (the file, the device) and DataError."""
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
    limit, searched = study.search.limits.parameters, any(each.setting[0] == "network" for each in study.parameters)
    if limit is not None and size.parameters > limit and not searched:
        problem = f"is below the {size.parameters:,} parameters that every network of this study has (got {limit:,})"
        raise study.error("search.limits.parameters", problem)
    population = population_size(study.search.population, study.search.trials, size.member_bytes, where)
    return Plan(where, images, config, size, population)


def _check_shift(study: Study, images: Split) -> None:
    """Raise StudyFileError for a shift that could move an image out of sight."""
    side = min(images.train.pixels.shape[2:])
    for at, value in study.said(("training", "shift")).items():
        for place, shift in candidates(value).items() if isinstance(value, dict) else [((), value)]:
            if shift >= side:
                key = ".".join(map(str, (*at, *place)))
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
