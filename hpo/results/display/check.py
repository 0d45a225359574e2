"""Report of `hpo check`: search space, data, size of a population, and on request the resolved file.

Reads the training data as a launch does, so that every error of a launch is raised here too. Stores nothing.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hpo.data import Split
from hpo.errors import StorageError, UsageError
from hpo.results.study_facts import open_existing
from hpo.results.trivial_baseline import trivial_baseline_of
from hpo.search.plan import NetworkPlan, baseline_scores, member_of, plan, to_planned_device
from hpo.search.sampling.pruners import choose_pruner, halving_lines, halving_of, max_epochs
from hpo.search.space import few_digits, size_text
from hpo.search.study_records import stored_pruner, with_stored_defaults
from hpo.studyfile import AnyStudy, Choices, ObjectiveStudy, Parameter, Range, Study
from hpo.studyfile.writing import study_text
from hpo.text import columns, json_text, printable_lines
from hpo.training.device_data import describe, split_shape
from hpo.training.devices import describe_device
from hpo.training.size import device_memory, frozen_memory
from hpo.training.speed.choices import time_ways


def check_report(
    study: AnyStudy,
    device: str = "auto",
    resolved: bool = False,
    storage_url: str | None = None,
    measure: bool = False,
) -> str:
    """Return the report, with `measure` the speed of training, and with `resolved` the resolved file too.

    A study that is stored already has the stored pruner and split. A default storage that cannot be read is ignored.
    Raises what a launch of this study would raise.
    """
    if measure and isinstance(study, ObjectiveStudy):
        raise UsageError("--measure: an objective study trains its networks itself; remove the option")
    report = (
        _objective_report(study, device)
        if isinstance(study, ObjectiveStudy)
        else _network_report(study, device, storage_url, measure)
    )
    if resolved:
        as_json = study.source.lower().endswith(".json")
        report += [
            "",
            json_text(study.resolved(), indent=2) if as_json else study_text(study, with_defaults=True).rstrip(),
        ]
    return printable_lines("\n".join(report))


def _network_report(study: Study, device: str, storage_url: str | None, measure: bool) -> list[str]:
    as_stored, pruner = _stored_choices(study, storage_url)
    planned = plan(as_stored, device)
    split, member, population, where = planned.split, planned.size, planned.population, planned.device
    trivial = trivial_baseline_of(study, {"trivial": baseline_scores(study, planned.splits)})
    first = " (at the first value of each range)" if study.parameters else ""
    return [
        f"{study.source}: valid",
        "",
        f"search space ({size_text(study)}):",
        *(f"  {parameter_line(parameter)}" for parameter in study.parameters),
        "",
        f"data: {split.dataset}, {len(split.train)} training and {len(split.validation)} validation examples "
        f"{'in the first fold ' * bool(split.other_folds)}of {describe(split_shape(split))}, "
        f"{_targets_text(split)}",
        f"split: {split.method}{_further_splits(planned)}",
        *([f"warning: {split.warning}"] if split.warning else []),
        *([] if trivial is None else [f"trivial baseline: {trivial.text}"]),
        f"network: {member.parameters:,} parameters{first}",
        f"population: {population} member{'s' * (population > 1)}, {_megabytes(population * member.member_bytes)} "
        f"of {_megabytes(device_memory(where))} on {describe_device(where)}",
        f"frozen member: {_size(member.frozen_bytes)}; "
        f"at most {frozen_memory() // member.frozen_bytes:,} fit into memory",
        f"trials: {study.search.trials} of at most {max_epochs(study)} epochs",
        *_pruner_lines(study, pruner),
        *(["", *_speed_lines(study, planned)] if measure else []),
    ]


MEASURED_MEMBERS = 16
"""The largest population that is measured, to be done in seconds."""


def _speed_lines(study: Study, planned: NetworkPlan) -> list[str]:
    """Return a table of the time of a training step, stacked and one at a time, in each precision."""
    count, config = min(planned.population, MEASURED_MEMBERS), planned.config
    members = [member_of(study, number, config) for number in range(count)]
    double = config.training.precision == "float64"
    precisions = ["float64"] if double else ["float32"] if planned.device.type == "mps" else ["float32", "bfloat16"]
    ways = time_ways(members, to_planned_device(study, planned)[0], precisions, planned.stacked)
    rows = [["way of training", "mean ms", "least", "quartiles", "speed"]]
    for way in ways:
        times = [1000 * seconds for seconds in way.seconds]
        quartiles = " ".join(f"{each:.3f}" for each in statistics.quantiles(times, n=4))
        name = f"stacks of {way.stack_size}" if way.stack_size else "one at a time"
        speed = f"{ways[0].mean / way.mean:.2f}"
        rows.append([f"{name}, {way.precision}", f"{1000 * way.mean:.3f}", f"{min(times):.3f}", quartiles, speed])
    where = describe_device(planned.device)
    title = f"a step of one trial, in {len(ways[0].seconds)} chunks of {count} trials, in alternation on {where}:"
    return [title, *columns(rows).splitlines()]


def _further_splits(planned: NetworkPlan) -> str:
    seeds = [each.data.split_seed for each in planned.other_splits]
    return f", and {len(seeds)} further splits for the repeats, to seed {seeds[-1]}" if seeds else ""


def _targets_text(split: Split) -> str:
    """Return `10 classes`, `2 labels` or `1 number to predict`."""
    count, noun = {
        "classification": (split.classes, "classes"),
        "multilabel": (split.columns, "label" if split.columns == 1 else "labels"),
        "regression": (split.columns, f"number{'s' * (split.columns > 1)} to predict"),
    }[split.task]
    return f"{count} {noun}"


def _pruner_lines(study: Study, stored: str | None) -> list[str]:
    """Return the pruner and the rungs of successive halving: `pruner: halving (auto: 100 trials of 50 epochs), ...`."""
    choice = choose_pruner(study, stored)
    rungs = halving_of(study).rungs(max_epochs(study)) if choice.name == "halving" else []
    at = f", rungs at epochs {', '.join(map(str, rungs))}" if rungs else ""
    line = f"pruner: {choice.name}{f' (auto: {choice.why})' if choice.why else ''}{at}"
    return [line, *halving_lines(study, choice.name)]


def _stored_choices(study: Study, storage_url: str | None) -> tuple[Study, str | None]:
    """Return the study with stored defaults, and the pruner that was chosen when it began, where it is stored."""
    try:
        storage = open_existing(storage_url)
    except StorageError:
        if storage_url is not None:
            raise
        return study, None
    try:
        known = with_stored_defaults(study, storage)
        assert isinstance(known, Study), "it has the kind of the given one"
        pruner = known.search.pruner  # "none" for a study from before "auto"
        return known, stored_pruner(study, storage) if pruner == study.search.pruner else pruner
    finally:
        storage.close()


def _objective_report(study: ObjectiveStudy, device: str) -> list[str]:
    """Return the same of an objective study, whose search space is known only while its function runs."""
    code = plan(study, device).code
    files = [f"  {file}: SHA-256 {content}" for file, content in code.files.items()]
    return [f"{study.source}: valid", "", f"code in {code.folder}:", *files, f"trials: {study.search.trials}"]


def parameter_line(parameter: Parameter) -> str:
    """Return a parameter's range or choices: `lr: 1e-06 to 0.01, log scale`."""
    where = "" if parameter.when is None else f", where {parameter.when.text()}"
    searched = parameter.searched.choices if isinstance(parameter.searched, Choices) else parameter.searched
    return _line(parameter.name, searched, parameter.integer) + where


def distribution_line(name: str, distribution: BaseDistribution) -> str:
    """Return the range or choices of a parameter as Optuna stores them: `lr: 1e-06 to 0.01, log scale`."""
    if isinstance(distribution, CategoricalDistribution):
        return _line(name, distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    integer, low, high = isinstance(distribution, IntDistribution), distribution.low, distribution.high
    step = None if integer and distribution.step == 1 else distribution.step
    return _line(name, Range.converted(low, high, distribution.log, step), integer)


def _line(name: str, searched: Range | Sequence[Any], integer: bool = False) -> str:
    if not isinstance(searched, Range):
        return f"{name}: one of {', '.join(json.dumps(few_digits(each)) for each in searched)}"
    scale = ", log scale" if searched.log else "" if searched.step is None else f", step {searched.step:g}"
    kind = ", whole numbers" if integer else ""
    return f"{name}: {searched.low:g} to {searched.high:g}{scale}{kind}"


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _size(count: int) -> str:
    return _megabytes(count) if count >= 2**20 else f"{count / 2**10:,.0f} KiB"
