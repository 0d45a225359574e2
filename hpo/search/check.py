"""What `hpo check` says of a study: the file with every default, its search space, and how large its populations are.

Reads the training images, as a launch would, so that what a launch would refuse is refused here; stores nothing.
"""

from __future__ import annotations

import json

from hpo.search.plan import plan
from hpo.search.sampling.samplers import most_epochs
from hpo.search.space import few_digits, size_text
from hpo.studyfile import AnyStudy, Choices, ObjectiveStudy, Parameter
from hpo.text import json_text, printable_lines
from hpo.training.devices import describe_device
from hpo.training.size import device_memory


def describe(study: AnyStudy, device: str = "auto") -> str:
    """Return the report, some lines of text. Raises what a launch would raise for this file."""
    if isinstance(study, ObjectiveStudy):
        return _describe_own(study, device)
    planned = plan(study, device)
    split, member, population, where = planned.split, planned.size, planned.population, planned.device
    first = " (at the first value of each range)" if study.parameters else ""
    text = "\n".join(
        [
            f"{study.source}: sound",
            "",
            json_text(study.resolved(), indent=2),
            "",
            f"search space ({size_text(study)}):",
            *(f"  {parameter_line(parameter)}" for parameter in study.parameters),
            "",
            f"data: {split.dataset}, {len(split.train)} training and {len(split.validation)} validation images of "
            f"{' x '.join(map(str, split.train.pixels.shape[1:]))}, {split.classes} classes",
            *([f"warning: {split.warning}"] if split.warning else []),
            f"network: {member.parameters:,} parameters{first}",
            f"population: {population} members, {_megabytes(population * member.member_bytes)} "
            f"of {_megabytes(device_memory(where))} on {describe_device(where)}",
            f"trials: {study.search.trials} of at most {most_epochs(study)} epochs",
        ]
    )
    return printable_lines(text)


def _describe_own(study: ObjectiveStudy, device: str) -> str:
    """The same of the user's own objective; what it searches shows only when it runs."""
    code = plan(study, device).code
    files = [f"  {file}: SHA-256 {content}" for file, content in code.files.items()]
    resolved = json_text(study.resolved(), indent=2)
    said = [f"{study.source}: sound", "", resolved, "", f"code in {code.folder}:", *files]
    return printable_lines("\n".join([*said, f"trials: {study.search.trials}"]))


def parameter_line(parameter: Parameter) -> str:
    """Return what is searched of a parameter: `lr: 1e-06 to 0.01, log scale`."""
    where = "" if parameter.when is None else f", where {parameter.when.words()}"
    return _range_line(parameter) + where


def _range_line(parameter: Parameter) -> str:
    searched = parameter.searched
    if isinstance(searched, Choices):
        return f"{parameter.name}: one of {', '.join(json.dumps(few_digits(each)) for each in searched.choices)}"
    scale = ", log scale" if searched.log else "" if searched.step is None else f", step {searched.step:g}"
    kind = ", whole numbers" if parameter.integer else ""
    return f"{parameter.name}: {searched.low:g} to {searched.high:g}{scale}{kind}"


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
