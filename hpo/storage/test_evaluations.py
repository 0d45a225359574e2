"""Records of a study's evaluations on its sealed test set.

The start of an evaluation is stored before the network sees a test example, its result before anybody sees the result.
An evaluation counts once its result is stored: whatever kills the process, no evaluation is hidden, and none is counted
without a result. Of several processes that test at the same time, one gets the first evaluation; the others must be run
with --again. A failed evaluation stores the reason. This module knows nothing of data sets.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from hpo.errors import HpoError
from hpo.storage.sql.statements import read_study_attr
from hpo.storage.storage import Storage

TESTS = "hpo:tests"
"""The user attribute of a study with the list of its test evaluations.

`result` is null while an evaluation runs, and stays null if it was interrupted or failed; then `failed` is the reason.
`trial` is null where an ensemble was evaluated: `ensemble` has its trials with their picks, `subject` its title.
"""

Evaluation = dict[str, Any]


@dataclass(frozen=True)
class StudyRef:
    """A study: its id, its name, and its identity, because another study can get the id."""

    study_id: int
    name: str
    identity: str | None


def evaluations_of(user_attrs: Mapping[str, Any]) -> list[Evaluation]:
    """Return all evaluations that were started, from a study's user attributes."""
    evaluations: list[Evaluation] = user_attrs.get(TESTS, [])
    return evaluations


def completed(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the evaluations that have a result. Only these count."""
    return [each for each in evaluations if each["result"] is not None]


def main_score(scores: Mapping[str, Any]) -> str:
    """Return `accuracy 0.9123`, or of a task without an accuracy `rmse 54.1234`."""
    if "accuracy" in scores:
        return f"accuracy {scores['accuracy']:.4f}"
    value = scores["metric"]["value"]
    return f"{scores['metric']['name']} {'undefined' if value is None else f'{value:.4f}'}"


def subject_of(evaluation: Evaluation) -> str:
    """Return the name of what was evaluated: `trial 4`, or the title of an ensemble."""
    return str(evaluation.get("subject", f"trial {evaluation['trial']}"))


def check_untested(user_attrs: Mapping[str, Any], name: str, again: bool) -> None:
    """Raise HpoError if the study has been evaluated on its test set, unless `again`."""
    if (before := completed(evaluations_of(user_attrs))) and not again:
        last = before[-1]
        often = "once" if len(before) == 1 else f"{len(before)} times"
        score = main_score(last["result"])
        raise HpoError(
            f"study '{name}' has been evaluated on its test set {often} "
            f"(last with {subject_of(last)} at {last['at']}: {score}); repeated testing biases the estimate: "
            "to evaluate it once more use --again, and the result will state how often it was tested"
        )


def start_evaluation(storage: Storage, study: StudyRef, again: bool, about: Mapping[str, Any]) -> Evaluation:
    """Store that an evaluation starts, with the facts `about` it, and return its record.

    Raises HpoError if the study has been tested before and not `again`, or if the study has been deleted.
    """
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    started: Evaluation = {"look": None, "id": secrets.token_hex(8), "at": at, **about, "result": None}

    def add(before: list[Evaluation]) -> list[Evaluation]:
        if any(each["id"] == started["id"] for each in before):
            return before  # an earlier run of this transaction was committed
        check_untested({TESTS: before}, study.name, again)
        return [*before, started]

    _change(storage, study, add, "its test set was not evaluated")
    return started


def complete_evaluation(
    storage: Storage, study: StudyRef, started: Evaluation, again: bool, result: Mapping[str, Any]
) -> Evaluation:
    """Store the result of an evaluation; return its record with its number among the completed evaluations.

    Raises HpoError if another process has completed the first evaluation meanwhile and not `again`, or if the study has
    been deleted. The result is then not stored, and the caller must not show it.
    """
    ended = started | {"result": dict(result)}

    def fill(before: list[Evaluation]) -> list[Evaluation]:
        if any(each["id"] == started["id"] for each in completed(before)):
            return before  # an earlier run of this transaction was committed
        check_untested({TESTS: before}, study.name, again)
        ended["look"] = 1 + max((each["look"] for each in completed(before)), default=0)
        return [*(each for each in before if each["id"] != started["id"]), ended]

    _change(storage, study, fill, "the result of the test evaluation is not stored and not shown")
    return ended


def fail_evaluation(storage: Storage, study: StudyRef, started: Evaluation, reason: str) -> None:
    """Store why an evaluation failed."""
    _change(
        storage,
        study,
        lambda before: [each | {"failed": reason} if each["id"] == started["id"] else each for each in before],
        f"its test evaluation failed ({reason})",
    )


def _change(
    storage: Storage, study: StudyRef, change: Callable[[list[Evaluation]], list[Evaluation]], outcome: str
) -> None:
    def changed(connection: Connection) -> Mapping[str, Any]:
        return {TESTS: change(read_study_attr(connection, study.study_id, TESTS) or [])}

    try:
        storage.set_study_attrs(study.study_id, {}, changed, study.identity)
    except KeyError as error:
        raise HpoError(f"study '{study.name}' was deleted by another process; {outcome}") from error
