"""What `hpo check` says of a study: the file with every default, its search space, and how large its populations are.

Reads the training images, as a launch would, so that what a launch would refuse is refused here; stores nothing.
"""

from __future__ import annotations

import json

from hpo.data import load_split
from hpo.search.samplers import check_search, most_epochs
from hpo.search.space import how_many
from hpo.studyfile import Choices, Config, Parameter, Study
from hpo.training.devices import describe as describe_device
from hpo.training.devices import find_device
from hpo.training.images import Shape
from hpo.training.size import memory, population_size, size_of


def describe(study: Study, device: str = "auto") -> str:
    """Return the report, some lines of text. Raises what a launch would raise for this file."""
    check_search(study)
    where = find_device(device)
    split = load_split(study)
    channels, height, width = split.train.pixels.shape[1:]
    shape: Shape = (channels, height, width)
    precision = study.first.training.precision
    config = Config.model_validate(study.first.model_dump(include=set(Config.model_fields)))
    member = size_of(config, shape, split.classes, "float32" if precision == "auto" else precision)
    population = population_size(study.search.population, study.search.trials, member.member_bytes, where)
    first = " (at the first value of each range)" if study.parameters else ""
    return "\n".join(
        [
            f"{study.source}: sound",
            "",
            json.dumps(study.resolved(), indent=2, ensure_ascii=False),
            "",
            f"search space ({how_many(study)}):",
            *(f"  {_line(parameter)}" for parameter in study.parameters),
            "",
            f"data: {split.dataset}, {len(split.train)} training and {len(split.validation)} validation images",
            f"network: {member.parameters:,} parameters{first}",
            f"population: {population} members, {_megabytes(population * member.member_bytes)} "
            f"of {_megabytes(memory(where))} on {describe_device(where)}",
            f"trials: {study.search.trials} of at most {most_epochs(study)} epochs",
        ]
    )


def _line(parameter: Parameter) -> str:
    searched = parameter.searched
    if isinstance(searched, Choices):
        return f"{parameter.name}: one of {', '.join(map(json.dumps, searched.choices))}"
    scale = ", log scale" if searched.log else "" if searched.step is None else f", step {searched.step:g}"
    kind = ", whole numbers" if parameter.integer else ""
    return f"{parameter.name}: {searched.low:g} to {searched.high:g}{scale}{kind}"


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
