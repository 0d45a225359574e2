"""`hpo report`: a study's search space, results, confirmation, verification, test, and answers for a paper's checklist.

As one HTML page with figures, which needs no network, or as a Markdown section for a paper's appendix. The report of an
objective study has the sections that need only values and seeds: no verification and no test.

A report states what has not been done, and the commands that reproduce the results. Names and descriptions from users
are text in it, never markup. Reads studies and changes nothing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from hpo.errors import HpoError
from hpo.results.certificate import VerificationResult, certificate_of
from hpo.results.checklist import SCORED, checklist, expected_best
from hpo.results.confirm.result import Confirmation, find_confirmation
from hpo.results.confirm.study import confirmations
from hpo.results.confirm.text import CONFIRMATION_HEADING, conclusions, confirmation_rows
from hpo.results.derived_names import file_stem
from hpo.results.display.check import distribution_line, parameter_line
from hpo.results.effort import EFFORT_HEADING, Effort, effort_of
from hpo.results.ensemble.record import ensemble_lines
from hpo.results.figures.kinds import draw
from hpo.results.figures.source import Source, in_words, read_source, space
from hpo.results.final_test.result import evaluation_lines
from hpo.results.ranking import metric_label, params_line, rank_label, score, score_texts
from hpo.results.study_facts import data_line, states_line
from hpo.results.trivial_baseline import trivial_baseline_of
from hpo.search.sampling.warm_start import warm_start
from hpo.search.study_records import CODE, DATA, NO_CODE, RUN, any_stored_study, precisions
from hpo.storage import Storage, StudySummary, load_study, summary
from hpo.storage.test_evaluations import Evaluation, completed, evaluations_of
from hpo.studyfile import AnyStudy, ObjectiveStudy, Study
from hpo.studyfile.writing import study_text
from hpo.text import hpo_command, json_text
from hpo.versions import versions

MAX_POINTS = 2000
"""Largest number of trials in a figure, evenly spread: a page with more of them opens slowly."""


TEMPLATES = {"html": "report.html.j2", "markdown": "report.md.j2"}

MARKDOWN = re.compile(r"([\\`*_\[\]<>|$&])")
"""Characters that have a meaning in a cell or a line of Markdown."""


def report(storage: Storage, name: str, form: str = "html") -> str:
    """Return the report of a study as a page, or as Markdown. Raises HpoError where no trial has ended."""
    study, found = any_stored_study(load_study(storage, name)), summary(storage, name)
    source = read_source(storage, name, limit=MAX_POINTS)
    certificate = certificate_of(found.user_attrs, name)
    confirmation, unconfirmed = None, ""
    try:
        confirmation = find_confirmation(storage, name)
    except HpoError as error:  # a confirmation that is not finished: the report states that
        unconfirmed = str(error)
    efforts = _efforts(storage, found, study)
    return _template(form).render(
        **(_drawn(source) if form == "html" else {}),
        study=study,
        command=lambda verb: hpo_command(verb, name),
        labels=[metric_label(metric) for metric in study.search.metrics],
        summary=_summary_lines(study, found, source, confirmation, storage),
        space=[line.split(": ", 1) for line in _space(study, source)],
        facts=_facts(study, found, storage),
        checklist=checklist(study, found, confirmation, found.user_attrs.get(DATA, {}), efforts),
        effort_heading=EFFORT_HEADING,
        efforts=[effort.cells() for effort in efforts],
        expected=expected_best(study, source),
        ranked=_ranked(source),
        confirmation=None if confirmation is None else _confirmation(confirmation),
        unconfirmed=unconfirmed,
        networks=isinstance(study, Study),
        verified=[] if certificate is None else VerificationResult(certificate).lines(),
        tested=evaluation_lines(evaluations_of(found.user_attrs)),
        by_class=_by_class(evaluations_of(found.user_attrs)),
        sealed=found.user_attrs.get(DATA, {}).get("test") != 0,
        commands=_commands(study, confirmation),
        file=_file(study),
        study_text=study_text(study) if _file(study).endswith("toml") else json_text(study.resolved(), indent=2),
        versions=versions().items(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _drawn(source: Source) -> dict[str, Any]:
    """Return the figures of the page, and the script that draws them."""
    figures = [_figure(figure) for figure in draw(source).values()]
    return {"figures": figures, "plotly_js": Markup(get_plotlyjs())}  # noqa: S704 - plotly's own script


def _template(form: str) -> jinja2.Template:
    text = resources.files("hpo.results").joinpath(TEMPLATES[form]).read_text(encoding="utf-8")
    escapes = form == "html"  # Markdown is escaped by the filter `md`
    environment = jinja2.Environment(autoescape=escapes, undefined=jinja2.StrictUndefined, trim_blocks=True)  # noqa: S701
    environment.filters["md"] = lambda text: MARKDOWN.sub(r"\\\1", " ".join(str(text).split()))
    return environment.from_string(text)


def _efforts(storage: Storage, found: StudySummary, study: AnyStudy) -> list[Effort]:
    """Return the effort of the search and of each of its confirmations."""
    folds = (study.data.folds or 1) if isinstance(study, Study) else None
    return [effort_of(storage, each, folds) for each in (found, *confirmations(storage, found.name))]


def _file(study: AnyStudy) -> str:
    """Return the name of the study file: JSON where a point or the baseline has None, which TOML cannot have."""
    tree = study.resolved()
    values = [*tree["search"].get("points", []), tree.get("baseline", {})]
    return f"{file_stem(study.name)}.{'json' if any(None in each.values() for each in values) else 'toml'}"


def _space(study: AnyStudy, source: Source) -> list[str]:
    """Return a line for each parameter; those of an objective function are known from its trials."""
    if isinstance(study, Study):
        return [parameter_line(parameter) for parameter in study.parameters]
    return [
        distribution_line(name, each) + (", in some trials" if name in source.conditional else "")
        for name, each in space(source.trials).items()
    ]


def _summary_lines(
    study: AnyStudy, found: StudySummary, source: Source, confirmation: Confirmation | None, storage: Storage
) -> list[str]:
    lines = [f"{states_line(found.states, found.frozen)} of {study.search.trials} trials"]
    if source.best:
        best = source.best[0]
        label = rank_label(1, best.number, source.metrics)
        lines.append(f"{label}: {source.score} {score(best):.4f} in the search")
        trivial = trivial_baseline_of(study, found.user_attrs.get(DATA, {}))
        lines += filter(None, [] if trivial is None else [trivial.warning(score(best))])
    else:
        lines.append(f"no trial to rank: {source.outcomes}")
    lines += ensemble_lines(storage, study.name)
    if confirmation is not None:
        lines += conclusions(confirmation)
    return lines


def _facts(study: AnyStudy, found: StudySummary, storage: Storage) -> list[tuple[str, str]]:
    code = found.user_attrs.get(CODE, NO_CODE)["files"]
    hashes = [(f"SHA-256 of {file}", digest) for file, digest in code.items()]
    if isinstance(study, ObjectiveStudy):
        return _objective_facts(study, found, hashes)
    data, run = found.user_attrs[DATA], found.user_attrs.get(RUN, {})
    search, limit, folds = study.search, study.search.limits.parameters, study.data.folds
    named = "labels" if study.task.kind == "multilabel" else "classes"
    return [
        ("data", data_line(data)),
        *([("folds", f"{folds}; the numbers of examples are those of the first fold")] if folds else []),
        *([(named, f"{len(names)}: {', '.join(names)}")] if (names := data.get("classes")) else []),
        *([] if (trivial := trivial_baseline_of(study, data)) is None else [("trivial baseline", trivial.text)]),
        ("SHA-256 of the data", data["sha256"]),
        ("SHA-256 of the split", data["split_sha256"]),
        *hashes,
        ("sampler, pruner", f"{search.sampler}, {search.pruner}"),
        *([("limit", f"{limit:,} parameters; larger networks are pruned without training")] if limit else []),
        ("scored by", f"{', '.join(map(in_words, search.metrics))}, {SCORED[search.score]}"),
        *([("starts from", _start(study, found.user_attrs, storage))] if search.start_from else []),
        ("seed", str(search.seed)),
        ("started", f"{run.get('began', 'not yet')} on {run.get('device', 'no device')}"),
        ("precision", precisions(study, str(run.get("precision", "auto")))),
    ]


def _objective_facts(
    study: ObjectiveStudy, found: StudySummary, hashes: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    search = study.search
    goals = zip(search.metrics, search.all_minimized, strict=True)
    return [
        ("objective function", study.objective),
        *hashes,
        ("sampler, pruner", f"{search.sampler}, {search.pruner}"),
        ("scored by", ", ".join(f"{metric}, {'minimized' if low else 'maximized'}" for metric, low in goals)),
        ("seed", str(search.seed)),
        ("started", str(found.user_attrs.get(RUN, {}).get("began", "not yet"))),
    ]


def _start(study: Study, attrs: Mapping[str, Any], storage: Storage) -> str:
    """Return the studies that the search starts from, and those of them that are not available."""
    before = warm_start(study, attrs, storage)
    known = [f"{', '.join(before.names)} ({len(before.trials)} completed trials)"] if before.names else []
    return "; ".join([*known, *(f"not available: {problem}" for problem in before.problems)])


def _ranked(source: Source) -> list[tuple[str, ...]]:
    return [
        (
            rank_label(rank, trial.number, source.metrics),
            *score_texts(trial, source.metrics),
            params_line(trial.params, trial.distributions),
        )
        for rank, trial in enumerate(source.best, start=1)
    ]


def _figure(figure: go.Figure) -> Markup:
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
    return Markup(drawn)  # noqa: S704 - texts of figures have been escaped by `plain`


def _confirmation(found: Confirmation) -> Mapping[str, Any]:
    metric = metric_label(found.study.search.first_metric)
    return {
        "heading": [cell.format(metric=metric) for cell in CONFIRMATION_HEADING],
        "rows": confirmation_rows(found),
        "conclusions": conclusions(found),
    }


def _by_class(evaluations: Sequence[Evaluation]) -> list[tuple[str, ...]]:
    """Return each class with its test examples and accuracy, from the last test evaluation with a result."""
    classes: list[dict[str, Any]] = next(
        (each["result"].get("classes", []) for each in reversed(completed(evaluations))), []
    )
    return [
        (
            str(each.get("name", each["class"])),
            f"{each['images']:,}",
            "" if each["accuracy"] is None else f"{each['accuracy']:.4f}",
        )
        for each in classes
    ]


def _commands(study: AnyStudy, confirmation: Confirmation | None) -> list[str]:
    commands = [f"hpo launch {shlex.quote(_file(study))}"]
    if confirmation is not None:
        confirmed = [*(each.candidate for each in confirmation.ranked), *confirmation.lost]
        top = sum(candidate.can_win for candidate in confirmed)
        splits = f" --splits {confirmation.splits or 1}" if isinstance(study, Study) else ""
        options = f"--top {top} --seeds {confirmation.seeds}{splits}"
        if confirmation.ensemble is not None:
            size = confirmation.ensemble.ensemble.size
            commands.append(hpo_command("ensemble", study.name, f"--size {size}"))
            options += " --ensemble"
        commands.append(hpo_command("confirm", study.name, options))
    commands.append(hpo_command("export", study.name, f"{'--confirmed ' if confirmation else ''}-o best.json"))
    return [*commands, "hpo replay best.json"] if isinstance(study, Study) else commands
