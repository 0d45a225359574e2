"""Texts for the dashboard's pages of a study and its trials: key facts, results, next commands, a trial's metrics.

Computed from the storage whenever a page is read; nothing is stored. The page shows them as user attributes, and the
results and commands also as the end of the study's note, in Markdown.
"""

from __future__ import annotations

import math
import re
import textwrap
from typing import Any

from optuna.trial import FrozenTrial

from hpo.errors import HpoError
from hpo.results.confirm.gain import gain_lines
from hpo.results.confirm.result import find_confirmation
from hpo.results.confirm.study import confirms_record, original_name
from hpo.results.confirm.text import winner_line
from hpo.results.display.summary import next_commands
from hpo.results.final_test.result import evaluation_lines
from hpo.results.ranking import rank_label, scores_line
from hpo.results.study_facts import data_line, metrics_of, states_line
from hpo.search.study_records import (
    CURVE,
    DATA,
    any_stored_study,
    config_as_trained,
    epochs_trained,
    trial_target,
)
from hpo.storage import (
    STATE_REASON,
    Storage,
    StudyState,
    StudySummary,
    best_trials,
    load_study,
    state_of,
    storage_option,
)
from hpo.storage.test_evaluations import evaluations_of
from hpo.studyfile import Study
from hpo.text import hpo_command, printable

RECORD = "hpo:"
"""The prefix of the user attributes with hpo's own records, which the page does not show."""

SUMMARY_HEADING = "## Results so far (added by hpo, not stored in the note)"
DIGITS = 6  # significant digits of a number
LINE = 90
"""The most characters of a user attribute of a trial: its page does not wrap them."""

MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|$~&])")


def study_texts(storage: Storage, found: StudySummary, url: str | None) -> tuple[dict[str, str], str]:
    """Return the user attributes to show for a study, and the summary for its note.

    `url` is the storage that commands name, None for the default storage.
    """
    commands = list(map(printable, _commands(storage, found, url)))
    attrs = {
        "state": _state(found),
        **_results(storage, found),
        "next": " or ".join(commands),
        **_facts(storage, found),
    }
    attrs = {key: printable(value) for key, value in attrs.items() if value}
    shown = [f"- **{key}**: {_escaped(value)}" for key, value in attrs.items() if key != "next"]
    block = ["", "Next:", "", "```sh", *commands, "```"] if commands else []
    return attrs, "\n".join([SUMMARY_HEADING, "", *shown, *block])


def without_summary(note: str) -> str:
    """Return a note without the summary that `study_texts` returned for it."""
    return note.partition(SUMMARY_HEADING)[0].rstrip()


def trial_attrs(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """Return the user attributes to show for a trial: metrics at the scored epoch, epochs, configuration."""
    curve, epochs = trial.system_attrs.get(CURVE, {}), epochs_trained(trial)
    at = (trial.user_attrs.get("score_epoch") or epochs) - 1
    last = {key: values[at] for key, values in sorted(curve.items()) if 0 <= at < len(values)}
    numbers = {
        key: float(f"{value:.{DIGITS}g}")
        for key, value in last.items()
        if key not in study.search.metrics and isinstance(value, float) and math.isfinite(value)
    }
    return {**numbers, **({"epochs": epochs} if epochs else {}), **_configuration(study, trial)}


def _configuration(study: Study, trial: FrozenTrial) -> dict[str, str]:
    """Return `kind mlp, hidden [64, 64]` by section, without defaults; a further line of a section is `network 2`."""
    try:
        config = config_as_trained(study, trial)
    except HpoError:  # a waiting trial, or one from before a change of the study
        return {}
    changed, found = config.model_dump(mode="json", exclude_defaults=True), {}
    for section in ("network", "optimizer", "training"):
        kind = getattr(getattr(config, section), "kind", None)
        values = ({} if kind is None else {"kind": kind}) | changed.get(section, {})
        text = printable(", ".join(f"{key} {_value(value)}" for key, value in values.items()))
        for number, line in enumerate(textwrap.wrap(text, LINE), start=1):
            found[section if number == 1 else f"{section} {number}"] = line
    return found


def _value(value: Any) -> str:
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)


def _state(found: StudySummary) -> str:
    """Return `finished, 16 complete of 16 trials`."""
    state, why = state_of(found.user_attrs), found.user_attrs.get(STATE_REASON)
    word = f"{why or state}" if state == StudyState.ENDED else f"{state} ({why})" if why else f"{state}"
    return f"{word}, {states_line(found.states, found.frozen)} of {trial_target(found.user_attrs) or '-'} trials"


def _facts(storage: Storage, found: StudySummary) -> dict[str, str]:
    """Return the study's data, and the study that it confirms."""
    data, record = found.user_attrs.get(DATA), confirms_record(found)
    return {
        "data": data_line(data) if data else "",
        "confirms": original_name(storage, record) if record else "",
    }


def _results(storage: Storage, found: StudySummary) -> dict[str, str]:
    """Return the best trial, the result of the last confirmation, and the test evaluations."""
    results = {}
    metrics = metrics_of(found)
    if best := best_trials(storage, found.study_id, 1):
        results["best"] = f"{rank_label(1, best[0].number, metrics)}: {scores_line(best[0], metrics)}"
    try:
        confirmation = find_confirmation(storage, found.name)
    except HpoError as error:  # not finished, or every run failed
        results["confirmed"] = str(error)
    else:
        if confirmation is not None:
            results |= {"confirmed": winner_line(confirmation), "tuning": "; ".join(gain_lines(confirmation))}
    if tested := evaluation_lines(evaluations_of(found.user_attrs)):
        results["tested"] = "; ".join(tested)
    return results


def _commands(storage: Storage, found: StudySummary, url: str | None) -> list[str]:
    """Return the commands to run next; none for a confirmation, which its original study's commands read."""
    if confirms_record(found):
        return []
    state, option = state_of(found.user_attrs), storage_option(url)
    if state in (StudyState.PAUSED, StudyState.STOPPED):
        return [hpo_command("resume", found.name, option)]
    if state == StudyState.OPEN:
        return [hpo_command("status", found.name, f"--watch {option}".rstrip())]
    return next_commands(any_stored_study(load_study(storage, found.name)), storage, url)


def _escaped(text: str) -> str:
    """Return text in which no character has a meaning in Markdown."""
    return MARKDOWN.sub(r"\\\1", text)
