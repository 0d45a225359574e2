"""What a request may ask of optuna-dashboard, checked before its own code sees it; and each error an answer.

Its own code takes what it gets: a study or trial that is not there, a body that is no object and an artifact of another
study end in "internal server error", some of them half done. Promises: a request for what is not there is a 404, one
that says something else than it should a 400, one that comes too late a 409, one that the storage or the folder of
artifacts cannot take a 503, and none of them changes anything; a study is renamed in place, so that it stays the study
that it is; no artifact is removed that another study has as well. Holds for every route that has these names in its
path and its body, those of later versions among them.
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
from hpo.service.dashboard.guard import READING, Refusal
from hpo.storage import Storage, rename_study, study_id_of
from hpo.storage.artifacts import ARTIFACT, DASHBOARD_ARTIFACT, REMOVED_ARTIFACT
from hpo.studyfile import name_problem

LIST, RENAME = "/api/studies", "/api/studies/<study_id:int>/rename"
MIGRATE = "/incompatible-rdb-schema"
LARGEST_ID = 2**31 - 1
MOST_CHARACTERS = 512
"""Of a user attribute's key, as Optuna's tables have it."""
WRONG = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What the dashboard's own code raises for values that it does not expect."""
log = logging.getLogger(__name__)


class Routes:
    """A plugin of bottle, which the dashboard is made with: it stands between each route and its code."""

    name, api = "hpo", 2

    def __init__(self, storage: Storage, app: Any) -> None:
        self._storage, self._app = storage, app

    def apply(self, callback: Callable[..., Any], route: Any) -> Callable[..., Any]:
        """Return what answers a route's requests in the place of its own code."""
        view = self._rename if route.rule == RENAME else inspect.unwrap(callback)
        in_json = view is not callback

        def answer(**ids: Any) -> Any:
            try:
                self._check(route, ids)
                if in_json:
                    bottle.response.content_type = "application/json"
                return view(**ids)
            except bottle.HTTPError as error:
                return _said(f"{error.status_code} {error.status_line.partition(' ')[2]}", str(error.body))
            except bottle.HTTPResponse:  # a page elsewhere, a file
                raise
            except Refusal as refusal:
                return _said(refusal.status, str(refusal))
            except ArtifactNotFound:
                return _said("404 Not Found", "the file is not in the folder of artifacts")
            except UpdateFinishedTrialError:
                return _said("409 Conflict", "the trial has ended, and is not changed any more")
            except DuplicatedStudyError:
                return _said("400 Bad Request", "Study name already exists.")
            except StorageError as error:
                return _said("503 Service Unavailable", str(error))
            except OSError as error:  # a full disk, a folder that is read-only
                log.warning("%s %s: %s", route.method, bottle.request.path, error)
                return _said("503 Service Unavailable", f"the folder of artifacts cannot be used: {error.strerror}")
            except WRONG as error:
                log.warning("%s %s: %s", route.method, bottle.request.path, error)
                return _said("400 Bad Request", f"the request cannot be answered: {error}")

        return answer

    def _check(self, route: Any, ids: Mapping[str, Any]) -> None:
        """Refuse a request for what is not there, or one whose body is not what it should be."""
        study_id, trial_id, artifact_id = (ids.get(key) for key in ("study_id", "trial_id", "artifact_id"))
        if study_id is not None and not self._is_there(study_id):
            raise Refusal("404 Not Found", f"study_id={study_id} is not found")
        if trial_id is not None:
            found = study_id_of(self._storage, trial_id) if 0 <= trial_id <= LARGEST_ID else None
            if found is None or study_id not in (None, found):
                raise Refusal("404 Not Found", f"trial_id={trial_id} is not found")
            study_id = found
        if route.method in READING:
            return
        if route.rule == MIGRATE:
            raise Refusal("403 Forbidden", "tables of another version are not changed here: see `hpo doctor`")
        if artifact_id is not None and not self._names(study_id, trial_id, artifact_id):
            raise Refusal("404 Not Found", "Artifact is not found.")
        if route.method == "DELETE" and bottle.request.content_length <= 0:
            return
        body = bottle.request.json
        _check_body(body)
        if (
            "values" in body
            and study_id is not None
            and len(body["values"]) != len(self._storage.get_study_directions(study_id))
        ):
            raise Refusal("400 Bad Request", "values: has to hold a number for each objective of the study")

    def _is_there(self, study_id: int) -> bool:
        try:
            return 0 <= study_id <= LARGEST_ID and bool(self._storage.get_study_name_from_id(study_id))
        except KeyError:
            return False

    def _names(self, study_id: Any, trial_id: int | None, artifact_id: str) -> bool:
        """Whether the artifact belongs to the study, or to the trial where there is one."""
        attrs = dict(self._storage.get_study_system_attrs(study_id))
        key = ARTIFACT + artifact_id
        if trial_id is not None:
            old = attrs.get(f"{DASHBOARD_ARTIFACT}{trial_id}:{artifact_id}")
            attrs = {key: old} | self._storage.get_trial_system_attrs(trial_id)
        return attrs.get(key) not in (None, json.loads(REMOVED_ARTIFACT))

    def _rename(self, study_id: int) -> dict[str, Any]:
        """Rename a study, where optuna-dashboard makes a copy of that name and deletes the study."""
        name = bottle.request.json.get("study_name")
        if name is None:
            raise Refusal("400 Bad Request", "You need to set study_name")
        rename_study(self._storage, study_id, name)
        bottle.response.status = 201
        (listing,) = [each for each in self._app.routes if (each.method, each.rule) == ("GET", LIST)]
        studies = inspect.unwrap(listing.callback)()["study_summaries"]
        return next(each for each in studies if each["study_id"] == study_id)


def _said(status: str, reason: str) -> str:
    bottle.response.status = status
    bottle.response.content_type = "application/json"
    return json.dumps({"reason": reason})


def _check_body(body: Any) -> None:
    """Refuse a body that is no object, or in which something that the dashboard knows is not what it should be."""
    if not isinstance(body, dict):
        raise Refusal("400 Bad Request", "the body has to be a JSON object, sent as application/json")
    for key, value in body.items():
        if key in EXPECTED and (problem := EXPECTED[key](value)):
            raise Refusal("400 Bad Request", f"{key}: {problem}")


def _a(kind: type, what: str) -> Callable[[Any], str | None]:
    return lambda value: None if isinstance(value, kind) and not isinstance(value, bool) else f"has to be {what}"


def _list_of(kind: type, what: str) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        fine = isinstance(value, list) and all(isinstance(each, kind) for each in value)
        return None if fine else f"has to be a list of {what}"

    return check


def _numbers(value: Any) -> str | None:
    fine = isinstance(value, list) and all(isinstance(each, int | float) and not math.isnan(each) for each in value)
    return None if fine else "has to be a list of numbers"


def _attrs(value: Any) -> str | None:
    fine = isinstance(value, dict) and all(len(key) <= MOST_CHARACTERS and "\0" not in key for key in value)
    return None if fine else f"has to be an object with keys of at most {MOST_CHARACTERS} characters"


def _file(value: Any) -> str | None:
    head, comma, data = value.partition(",") if isinstance(value, str) else ("", "", "")
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        comma = ""
    return None if comma and head.startswith("data:") else "has to be a data: URL in base64"


EXPECTED: dict[str, Callable[[Any], str | None]] = {
    "study_name": name_problem,
    "directions": _list_of(str, "minimize and maximize"),
    "version": _a(int, "a number"),
    "body": _a(str, "a text"),
    "user_attrs": _attrs,
    "state": _a(str, "a text"),
    "values": _numbers,
    "mode": _a(str, "a text"),
    "candidates": _list_of(int, "trials"),
    "clicked": _a(int, "a trial"),
    "output_type": _a(str, "a text"),
    "file": _file,
    "filename": _a(str, "a text"),
}
"""What is wrong with a value of that name, None for nothing."""
