"""Report of `hpo check`: search space, data, size of a population, and on request the resolved file.

Reads the training data as a launch does, so that every error of a launch is raised here too. Stores nothing.
"""

from __future__ import annotations

import json

from hpo.search.plan import plan
from hpo.search.sampling.pruners import choose_pruner, halving_of
from hpo.search.sampling.samplers import max_epochs
from hpo.search.space import few_digits, size_text
from hpo.studyfile import AnyStudy, Choices, ObjectiveStudy, Parameter, Study
from hpo.studyfile.writing import study_text
from hpo.text import json_text, printable_lines
from hpo.training.devices import describe_device
from hpo.training.size import device_memory, frozen_memory


def check_report(study: AnyStudy, device: str = "auto", resolved: bool = False) -> str:
    """Return the report, with `resolved` the resolved file too. Raises what a launch of this study would raise."""
    report = _objective_report(study, device) if isinstance(study, ObjectiveStudy) else _network_report(study, device)
    if resolved:
        as_json = study.source.lower().endswith(".json")
        report += [
            "",
            json_text(study.resolved(), indent=2) if as_json else study_text(study, with_defaults=True).rstrip(),
        ]
    return printable_lines("\n".join(report))


def _network_report(study: Study, device: str) -> list[str]:
    planned = plan(study, device)
    split, member, population, where = planned.split, planned.size, planned.population, planned.device
    first = " (at the first value of each range)" if study.parameters else ""
    channels, height, width = split.train.inputs.shape[1:]
    shape = f"{width} numbers" if channels == height == 1 else f"{channels} x {height} x {width} pixels"
    return [
        f"{study.source}: valid",
        "",
        f"search space ({size_text(study)}):",
        *(f"  {parameter_line(parameter)}" for parameter in study.parameters),
        "",
        f"data: {split.dataset}, {len(split.train)} training and {len(split.validation)} validation examples "
        f"of {shape}, {split.classes} classes",
        *([f"warning: {split.warning}"] if split.warning else []),
        f"network: {member.parameters:,} parameters{first}",
        f"population: {population} member{'s' * (population > 1)}, {_megabytes(population * member.member_bytes)} "
        f"of {_megabytes(device_memory(where))} on {describe_device(where)}",
        f"frozen member: {_size(member.frozen_bytes)}; "
        f"at most {frozen_memory() // member.frozen_bytes:,} fit into memory",
        f"trials: {study.search.trials} of at most {max_epochs(study)} epochs",
        _pruner_line(study),
    ]


def _pruner_line(study: Study) -> str:
    """Return the pruner and the rungs of successive halving: `pruner: halving (auto: 100 trials of 50 epochs), ...`."""
    choice = choose_pruner(study)
    rungs = halving_of(study).rungs(max_epochs(study)) if choice.name == "halving" else []
    at = f", rungs at epochs {', '.join(map(str, rungs))}" if rungs else ""
    return f"pruner: {choice.name}{f' (auto: {choice.why})' if choice.why else ''}{at}"


def _objective_report(study: ObjectiveStudy, device: str) -> list[str]:
    """Return the same of an objective study, whose search space is known only while its function runs."""
    code = plan(study, device).code
    files = [f"  {file}: SHA-256 {content}" for file, content in code.files.items()]
    return [f"{study.source}: valid", "", f"code in {code.folder}:", *files, f"trials: {study.search.trials}"]


def parameter_line(parameter: Parameter) -> str:
    """Return a parameter's range or choices: `lr: 1e-06 to 0.01, log scale`."""
    where = "" if parameter.when is None else f", where {parameter.when.text()}"
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


def _size(count: int) -> str:
    return _megabytes(count) if count >= 2**20 else f"{count / 2**10:,.0f} KiB"
