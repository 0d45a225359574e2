"""Tests of every route of optuna-dashboard with valid and invalid requests, allowed and refused ones.

The routes are those that the installed version has, so a later one's are tried as well.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
import optuna_dashboard
import pytest
from optuna.artifacts import upload_artifact
from optuna.trial import TrialState
from optuna_dashboard import save_note

from hpo.storage import Storage, copy_study, load_study, study_names
from hpo.storage.artifacts import ArtifactFolder

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "Delete"]
FILE = "data:text/plain;base64," + base64.b64encode(b"a file").decode()
SECRET = "what nobody may see"
BODIES: list[Any] = [
    None,
    b"",
    b"{",
    b"\xff\xfe",
    b'{"study_name": "\xed\xa0\x80"}',
    b"[" * 100_000,
    [],
    "text",
    7,
    {},
    {"study_name": None, "directions": None, "file": None, "filename": None, "version": None, "body": None},
    {"study_name": 7, "directions": 7, "file": 7, "filename": 7, "version": "x", "body": 7, "state": 7, "values": 7},
    {"study_name": " x", "directions": ["maximize"], "version": 10**30, "body": "x", "user_attrs": 7},
    {"study_name": "a\0b", "directions": ["up"], "file": "data:", "filename": "a", "version": 1.5, "body": "\0"},
    {"study_name": "x" * 1000, "directions": ["maximize"], "file": "no,YQ==", "filename": "a", "version": True},
    {"file": "data:,Y", "filename": "a", "state": "complete", "values": [1, 2, 3], "mode": "ChooseWorst"},
    {"file": FILE, "filename": 7, "state": "complete", "values": [None], "mode": [], "candidates": 7, "clicked": {}},
    {"state": "complete", "values": [float("nan")], "mode": "ChooseWorst", "candidates": ["x"], "clicked": "x"},
    {"state": "running", "values": "1", "user_attrs": {"k" * 1000: 1}, "output_type": "page", "last_response": 7},
]
"""Bodies that no route accepts, or only for a missing study, trial or artifact."""

Serve = Callable[..., str]
Everything = tuple[dict[str, list[Any]], dict[str, bytes]]


def ask(url: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    """Send a request; return status and body."""
    connection = http.client.HTTPConnection(str(urlsplit(url).hostname), urlsplit(url).port, timeout=60)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if data is not None or method == "POST":
            sent.setdefault("Content-Type", "application/json")
        connection.request(method, path, data, sent)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.BadStatusLine:  # of a method that HTTP does not know
        return 400, b""
    finally:
        connection.close()


def paths(ids: Mapping[str, object], methods: Collection[str] = METHODS) -> list[str]:
    """Return the installed dashboard's routes with one of these methods, with these ids in the path."""
    routes = optuna_dashboard.wsgi(optuna.storages.InMemoryStorage()).routes
    rules = {route.rule for route in routes if route.method in methods}
    return sorted({re.sub(r"<(\w*)[^>]*>+", lambda found: str(ids.get(found[1], "x")), rule) for rule in rules})


@pytest.fixture
def study(stored: Callable[..., optuna.Study], storage: Storage, tmp_path: Path) -> optuna.Study:
    """Store a study with a note, artifacts and a running trial."""
    made = stored(3)
    save_note(made, SECRET)
    running = made.ask({"lr": optuna.distributions.FloatDistribution(1e-6, 1e-1, log=True)})
    (tmp_path / "note.txt").write_text(SECRET)
    for each in (made, running):
        store = ArtifactFolder(tmp_path / "artifacts")
        upload_artifact(artifact_store=store, file_path=str(tmp_path / "note.txt"), study_or_trial=each)
    return made


def of_study(study: optuna.Study) -> str:
    """Return the id of the study's artifact."""
    attrs = study._storage.get_study_system_attrs(study._study_id)
    return next(key.removeprefix("artifacts:") for key in attrs if key.startswith("artifacts:"))


def ids_of(study: optuna.Study) -> dict[str, object]:
    last = study.get_trials(deepcopy=False)[-1]
    return {"study_id": study._study_id, "trial_id": last._trial_id, "artifact_id": of_study(study), "plot_type": "edf"}


def every_answer(url: str, study: optuna.Study, headers: Mapping[str, str]) -> Iterator[tuple[str, str, int, bytes]]:
    """Request every route with every method; yield method, path, status and body."""
    for path in paths(ids_of(study)):
        for method in METHODS:
            yield method, path, *ask(url, method, path, {} if method == "POST" else None, **headers)


def everything(storage: Storage, folder: Path) -> Everything:
    """Return every row of the storage and every file of the folder of artifacts."""
    with storage.engine.connect() as connection:
        tables = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars().all()
        rows = {name: sorted(map(repr, connection.exec_driver_sql(f"SELECT * FROM {name}"))) for name in tables}
    return rows, {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


@pytest.mark.parametrize(
    ("options", "headers", "statuses"),
    [
        ({"password": b"secret"}, {}, {401}),
        ({"password": b"secret"}, {"Authorization": "Bearer secret", "Sec_Fetch_Site": "same-origin"}, {401, 429}),
        ({}, {"Host": "evil.example"}, {421}),
        ({}, {"Host": "evil.example", "X_Forwarded_Host": "localhost", "Sec_Fetch_Site": "same-origin"}, {421}),
    ],
    ids=["no login", "a wrong login", "another host", "another host behind a proxy"],
)
def test_refused_requests_read_and_change_nothing(
    served: Serve,
    study: optuna.Study,
    storage: Storage,
    tmp_path: Path,
    options: dict[str, Any],
    headers: dict[str, str],
    statuses: set[int],
) -> None:
    url, before = served(**options), everything(storage, tmp_path / "artifacts")
    for method, path, status, body in every_answer(url, study, headers):
        assert status in statuses or (status == 400 and method != method.upper()), (method, path)
        assert b"digits" not in body
        assert SECRET.encode() not in body
    assert everything(storage, tmp_path / "artifacts") == before


@pytest.mark.parametrize(
    ("options", "headers"),
    [
        ({"read_only": True}, {"Sec_Fetch_Site": "same-origin"}),
        ({}, {"Origin": "http://evil.example"}),
        ({}, {"Sec_Fetch_Site": "cross-site"}),
    ],
    ids=["read-only", "another site's page", "another site"],
)
def test_a_read_only_server_changes_nothing(
    served: Serve,
    study: optuna.Study,
    storage: Storage,
    tmp_path: Path,
    options: dict[str, Any],
    headers: dict[str, str],
) -> None:
    url, before = served(**options), everything(storage, tmp_path / "artifacts")
    for method, path, status, _ in every_answer(url, study, headers):
        if method not in ("GET", "HEAD"):
            assert status == 403 or (status == 400 and method != method.upper()), (method, path)
        assert status < 500, (method, path)
    assert everything(storage, tmp_path / "artifacts") == before


@pytest.fixture
def settled(study: optuna.Study, served: Serve, storage: Storage, tmp_path: Path) -> Iterator[str]:
    """Serve a dashboard without a password; check at the end that nothing has changed."""
    before = everything(storage, tmp_path / "artifacts")
    yield served()
    assert everything(storage, tmp_path / "artifacts") == before


def test_missing_things_are_not_found(settled: str, study: optuna.Study) -> None:
    ids = ids_of(study)
    for missing in ("study_id", "trial_id", "artifact_id"):
        for wrong in (999, -1, 10**30, "00000000-0000-0000-0000-000000000000"):
            absent = set(paths({**ids, missing: wrong})) - set(paths(ids))
            for path in absent:
                for method in ("GET", "POST", "PUT", "DELETE"):
                    status, _ = ask(settled, method, path, {} if method != "GET" else None)
                    assert status in (404, 405), (method, path)


def test_a_trial_and_an_artifact_of_another_study_are_not_found(
    settled: str, study: optuna.Study, storage: Storage, stored: Callable[..., optuna.Study]
) -> None:
    ids = ids_of(study)
    artifact = of_study(study)
    (own,) = (key for key in storage.get_trial_system_attrs(int(str(ids["trial_id"]))) if key.startswith("artifacts:"))
    other = storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "other")
    for path in (f"{other}/{artifact}", f"{other}/{ids['trial_id']}/{own[10:]}", f"{ids['study_id']}/{own[10:]}"):
        assert ask(settled, "GET", f"/artifacts/{path}")[0] == 404
        assert ask(settled, "DELETE", f"/api/artifacts/{path}")[0] == 404
    storage.delete_study(other)


def test_no_body_causes_a_server_error_or_half_a_change(settled: str, study: optuna.Study) -> None:
    for body in BODIES:
        for path in paths({**ids_of(study), "study_id": 1}, ("POST", "PUT")):
            for method in ("POST", "PUT"):
                status, answer = ask(settled, method, path, body)
                assert status in (400, 403, 404, 405, 409, 413), (method, path, body, answer)


def test_no_query_or_header_causes_a_server_error(settled: str, study: optuna.Study) -> None:
    for query in ("after=x", "after=-1", "after=" + "9" * 5000, "trial_ids=x", "trial_ids=" + "9" * 40, "%ff=%00"):
        for path in paths(ids_of(study)):
            assert ask(settled, "GET", f"{path}?{query}")[0] < 500, path
    for plot in ("contour", "slice", "parallel_coordinate", "rank", "edf", "timeline", "pareto_front", "none"):
        assert ask(settled, "GET", f"/api/studies/{study._study_id}/plot/{plot}")[0] < 500, plot
    connection = http.client.HTTPConnection(str(urlsplit(settled).hostname), urlsplit(settled).port, timeout=60)
    for path in ("/favicon.ico", "/static/bundle.js"):
        connection.putrequest("GET", path, skip_accept_encoding=True)
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Content-Encoding")) == (200, None)
        answer.read()
    connection.close()


def test_a_trial_that_has_ended_is_not_changed(settled: str, study: optuna.Study) -> None:
    trial = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))[0]._trial_id
    assert ask(settled, "POST", f"/api/trials/{trial}/tell", {"state": "Complete", "values": [1]})[0] == 409
    assert ask(settled, "POST", f"/api/trials/{trial}/user-attrs", {"user_attrs": {"a": 1}})[0] == 409
    upload = {"file": FILE, "filename": "a"}
    assert ask(settled, "POST", f"/api/artifacts/{study._study_id}/{trial}", upload)[0] == 400


def test_a_study_is_renamed_in_place(served: Serve, study: optuna.Study, storage: Storage, tmp_path: Path) -> None:
    url, path = served(), f"/api/studies/{study._study_id}/rename"
    (before, files), attrs = everything(storage, tmp_path / "artifacts"), study.user_attrs
    storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "other")
    for name in ("other", "", " x", "a\nb", "x" * 201, None):
        assert ask(url, "POST", path, {"study_name": name})[0] == 400
    status, body = ask(url, "POST", path, {"study_name": "renamed"})
    assert (status, json.loads(body)["study_id"], json.loads(body)["study_name"]) == (201, study._study_id, "renamed")
    assert study_names(storage) == ["renamed", "other"]
    assert load_study(storage, "renamed").user_attrs == attrs
    optuna.delete_study(study_name="other", storage=storage)
    after = everything(storage, tmp_path / "artifacts")
    assert {key for key in before if before[key] != after[0][key]} == {"studies"}
    assert after[1] == files


def test_a_file_that_another_study_has_stays(
    served: Serve, study: optuna.Study, storage: Storage, tmp_path: Path
) -> None:
    copy_study(storage, "digits", storage, "copy")
    url, copy = served(), load_study(storage, "copy")
    files = sorted(os.listdir(tmp_path / "artifacts"))
    assert ask(url, "DELETE", f"/api/artifacts/{copy._study_id}/{of_study(study)}")[0] == 204
    assert ask(url, "GET", f"/artifacts/{copy._study_id}/{of_study(study)}")[0] == 404
    assert ask(url, "GET", f"/artifacts/{study._study_id}/{of_study(study)}") == (200, SECRET.encode())
    assert ask(url, "DELETE", f"/api/studies/{copy._study_id}")[0] == 204
    assert sorted(os.listdir(tmp_path / "artifacts")) == files
    assert ask(url, "DELETE", f"/api/studies/{study._study_id}")[0] == 204
    assert os.listdir(tmp_path / "artifacts") == []


def test_an_unusable_folder_of_artifacts_is_reported(settled: str, study: optuna.Study, tmp_path: Path) -> None:
    path = f"/api/artifacts/{study._study_id}"
    (tmp_path / "artifacts").rename(tmp_path / "away")
    (tmp_path / "artifacts").touch()
    try:
        wrong = {
            ask(settled, "POST", path, {"file": FILE, "filename": "a.txt"}),
            ask(settled, "DELETE", f"{path}/{of_study(study)}"),
        }
    finally:
        (tmp_path / "artifacts").unlink()
        (tmp_path / "away").rename(tmp_path / "artifacts")
    reasons = ("File exists", "Not a directory")
    assert wrong == {
        (503, json.dumps({"reason": f"the folder of artifacts cannot be used: {reason}"}).encode())
        for reason in reasons
    }


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_only_files_are_artifacts(served: Serve, study: optuna.Study, tmp_path: Path, kind: str) -> None:
    artifact, place = of_study(study), tmp_path / "artifacts" / of_study(study)
    place.unlink()
    (tmp_path / "private").write_text("nobody's business")
    match kind:
        case "link":
            place.symlink_to(tmp_path / "private")
        case "dangling link":
            place.symlink_to(tmp_path / "nothing")
        case "folder":
            place.mkdir()
        case "pipe":
            os.mkfifo(place)
    url, path = served(), f"{study._study_id}/{artifact}"
    status, body = ask(url, "GET", f"/artifacts/{path}")
    assert (status, b"business" in body) == (404, False)
    assert ask(url, "DELETE", f"/api/artifacts/{path}")[0] == 204
    assert (tmp_path / "private").exists()
    assert place.is_dir() == (kind == "folder")
