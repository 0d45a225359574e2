"""Check requests to optuna-dashboard's routes, and answer each error with an HTTP status.

optuna-dashboard does not check requests: a missing study or trial, a body that is no object or an artifact of another
study ends in "internal server error", sometimes after half of the change. Here a missing thing is a 404, an
invalid request a 400, one for an ended trial a 409, an error of the storage or the folder of artifacts a 503, and none
of them changes anything. A study is renamed in place, and no artifact is removed that another study has too. The checks
go by the names in a route's path and body, so they cover routes of later versions too.
"""

from __future__ import annotations

import base64
import binascii
import inspect
import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import bottle  # type: ignore[import-untyped]
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError

from hpo.errors import StorageError
from hpo.results.display.study_page import without_summary
from hpo.service.dashboard.guard import READING, Refusal
from hpo.storage import Storage, rename_study, study_id_of
from hpo.storage.artifacts import ARTIFACT, DASHBOARD_ARTIFACT, REMOVED_ARTIFACT
from hpo.studyfile import name_problem

LIST, RENAME, NOTE = "/api/studies", "/api/studies/<study_id:int>/rename", "/api/studies/<study_id:int>/note"
MIGRATE = "/incompatible-rdb-schema"
LARGEST_ID = 2**31 - 1
MAX_KEY_LENGTH = 512
"""Most characters of a user attribute's key in Optuna's tables."""
INVALID_VALUE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""Errors that optuna-dashboard's code raises for values that it does not expect."""
log = logging.getLogger(__name__)


class Routes:
    """Plugin of bottle, optuna-dashboard's web framework: it wraps the code of each route."""

    name, api = "hpo", 2

    def __init__(self, storage: Storage, app: Any) -> None:
        self._storage, self._app = storage, app

    def apply(self, callback: Callable[..., Any], route: Any) -> Callable[..., Any]:
        """Return a function that checks a request, calls the route's code, and turns its errors into responses."""
        view = self._rename if route.rule == RENAME else inspect.unwrap(callback)
        in_json = view is not callback

        def answer(**ids: Any) -> Any:
            try:
                self._check(route, ids)
                if in_json:
                    bottle.response.content_type = "application/json"
                return view(**ids)
            except bottle.HTTPError as error:
                return _error(f"{error.status_code} {error.status_line.partition(' ')[2]}", str(error.body))
            except bottle.HTTPResponse:  # a redirect or a file
                raise
            except Refusal as refusal:
                return _error(refusal.status, str(refusal))
            except ArtifactNotFound:
                return _error("404 Not Found", "the file is missing in the folder of artifacts")
            except UpdateFinishedTrialError:
                return _error("409 Conflict", "the trial has ended and cannot be changed")
            except DuplicatedStudyError:
                return _error("400 Bad Request", "Study name already exists.")
            except StorageError as error:
                return _error("503 Service Unavailable", str(error))
            except OSError as error:  # a full disk or a read-only folder
                log.warning("%s %s: %s", route.method, bottle.request.path, error)
                return _error("503 Service Unavailable", f"the folder of artifacts cannot be used: {error.strerror}")
            except INVALID_VALUE_ERRORS as error:
                log.warning("%s %s: %s", route.method, bottle.request.path, error)
                return _error("400 Bad Request", f"the request cannot be answered: {error}")

        return answer

    def _check(self, route: Any, ids: Mapping[str, Any]) -> None:
        """Raise Refusal for a missing study, trial or artifact, or an invalid body."""
        study_id, trial_id, artifact_id = (ids.get(key) for key in ("study_id", "trial_id", "artifact_id"))
        if study_id is not None and not self._has_study(study_id):
            raise Refusal("404 Not Found", f"study_id={study_id} is not found")
        if trial_id is not None:
            found = study_id_of(self._storage, trial_id) if 0 <= trial_id <= LARGEST_ID else None
            if found is None or study_id not in (None, found):
                raise Refusal("404 Not Found", f"trial_id={trial_id} is not found")
            study_id = found
        if route.method in READING:
            return
        if route.rule == MIGRATE:
            raise Refusal("403 Forbidden", "the dashboard does not migrate tables of another version: see `hpo doctor`")
        if artifact_id is not None and not self._has_artifact(study_id, trial_id, artifact_id):
            raise Refusal("404 Not Found", "Artifact is not found.")
        if route.method == "DELETE" and bottle.request.content_length <= 0:
            return
        body = bottle.request.json
        _check_body(body)
        if route.rule == NOTE and isinstance(body.get("body"), str):
            body["body"] = without_summary(body["body"])  # the view adds it to each note
        if (
            "values" in body
            and study_id is not None
            and len(body["values"]) != len(self._storage.get_study_directions(study_id))
        ):
            raise Refusal("400 Bad Request", "values: must contain a number for each objective of the study")

    def _has_study(self, study_id: int) -> bool:
        try:
            return 0 <= study_id <= LARGEST_ID and bool(self._storage.get_study_name_from_id(study_id))
        except KeyError:
            return False

    def _has_artifact(self, study_id: Any, trial_id: int | None, artifact_id: str) -> bool:
        """Return whether the artifact belongs to the trial, or to the study if `trial_id` is None."""
        attrs = dict(self._storage.get_study_system_attrs(study_id))
        key = ARTIFACT + artifact_id
        if trial_id is not None:
            old = attrs.get(f"{DASHBOARD_ARTIFACT}{trial_id}:{artifact_id}")
            attrs = {key: old} | self._storage.get_trial_system_attrs(trial_id)
        return attrs.get(key) not in (None, json.loads(REMOVED_ARTIFACT))

    def _rename(self, study_id: int) -> dict[str, Any]:
        """Rename a study in place. optuna-dashboard would copy it and delete the original."""
        name = bottle.request.json.get("study_name")
        if name is None:
            raise Refusal("400 Bad Request", "You need to set study_name")
        rename_study(self._storage, study_id, name)
        bottle.response.status = 201
        (listing,) = [each for each in self._app.routes if (each.method, each.rule) == ("GET", LIST)]
        studies = inspect.unwrap(listing.callback)()["study_summaries"]
        return next(each for each in studies if each["study_id"] == study_id)


def _error(status: str, reason: str) -> str:
    bottle.response.status = status
    bottle.response.content_type = "application/json"
    return json.dumps({"reason": reason})


def _check_body(body: Any) -> None:
    """Raise Refusal for a body that is no object or has an invalid value under a known key."""
    if not isinstance(body, dict):
        raise Refusal("400 Bad Request", "the body must be a JSON object, sent as application/json")
    for key, value in body.items():
        if key in EXPECTED and (problem := EXPECTED[key](value)):
            raise Refusal("400 Bad Request", f"{key}: {problem}")


def _of_type(kind: type, what: str) -> Callable[[Any], str | None]:
    return lambda value: None if isinstance(value, kind) and not isinstance(value, bool) else f"must be {what}"


def _list_of(kind: type, what: str) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        valid = isinstance(value, list) and all(isinstance(each, kind) for each in value)
        return None if valid else f"must be a list of {what}"

    return check


def _numbers(value: Any) -> str | None:
    valid = isinstance(value, list) and all(isinstance(each, int | float) and not math.isnan(each) for each in value)
    return None if valid else "must be a list of numbers"


def _attrs(value: Any) -> str | None:
    valid = isinstance(value, dict) and all(len(key) <= MAX_KEY_LENGTH and "\0" not in key for key in value)
    return None if valid else f"must be an object with keys of at most {MAX_KEY_LENGTH} characters"


def _file(value: Any) -> str | None:
    head, comma, data = value.partition(",") if isinstance(value, str) else ("", "", "")
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        comma = ""
    return None if comma and head.startswith("data:") else "must be a data: URL in base64"


EXPECTED: dict[str, Callable[[Any], str | None]] = {
    "study_name": name_problem,
    "directions": _list_of(str, "minimize and maximize"),
    "version": _of_type(int, "a number"),
    "body": _of_type(str, "a text"),
    "user_attrs": _attrs,
    "state": _of_type(str, "a text"),
    "values": _numbers,
    "mode": _of_type(str, "a text"),
    "candidates": _list_of(int, "trials"),
    "clicked": _of_type(int, "a trial"),
    "output_type": _of_type(str, "a text"),
    "file": _file,
    "filename": _of_type(str, "a text"),
}
"""Key of a body -> function that returns the problem of its value, or None."""
