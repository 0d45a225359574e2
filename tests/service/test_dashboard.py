"""Tests of the dashboard's server on a real socket: address, password, responses, shutdown."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
import optuna_dashboard
import plotly.graph_objects as go
import pytest
from deadlines import deadline
from forks import Fork
from optuna.artifacts import upload_artifact
from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from hpo.cli import main
from hpo.errors import HpoError, UsageError
from hpo.results.display.study_page import SUMMARY_HEADING
from hpo.service.dashboard.application import PATCHED_VERSION, patched_script
from hpo.service.dashboard.dashboard import VARIABLE, check_names, read_password, serve
from hpo.service.dashboard.view import View
from hpo.storage import Storage
from hpo.storage.artifacts import ArtifactFolder

Store = Callable[..., optuna.Study]
Serve = Callable[..., str]
EPOCHS = 3  # of each trial that `stored` makes


@pytest.fixture(autouse=True)
def no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("HPO_ARTIFACTS", raising=False)


def ask(url: str, path: str, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, Any, bytes]:
    """Send a request; return status, headers and body."""
    connection = http.client.HTTPConnection(str(urlsplit(url).hostname), urlsplit(url).port, timeout=30)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent["Content-Type"] = "application/json"
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def studies(url: str, **headers: str) -> list[str]:
    return [each["study_name"] for each in json.loads(ask(url, "/api/studies", **headers)[2])["study_summaries"]]


def curves(url: str) -> list[int]:
    """Return the number of epochs that are sent of each trial of the first study."""
    return [len(each["intermediate_values"]) for each in json.loads(ask(url, "/api/studies/1")[2])["trials"]]


def test_it_serves_the_studies_once_it_announces_its_address(stored: Store, served: Serve) -> None:
    stored()
    url = served()
    assert url.startswith("http://127.0.0.1:")
    assert studies(url) == ["digits"]
    assert b"<html" in ask(url, "/dashboard")[2].lower()
    status, headers, _ = ask(url, "/")
    assert (status, headers["Location"]) == (302, "/dashboard")


def test_a_busy_port_is_one_line(storage: Storage, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(HpoError, match=rf"^127.0.0.1:{port}: the port is in use; choose another with --port$"):
            serve(storage, tmp_path, "127.0.0.1", port, print)


@pytest.mark.parametrize("host", ["203.0.113.7", "a" * 300])
def test_a_foreign_address_is_one_line(storage: Storage, tmp_path: Path, host: str) -> None:
    with pytest.raises(HpoError, match="cannot listen there") as caught:
        serve(storage, tmp_path, host, 0, print, insecure=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.3.2.1"])
def test_this_machines_own_address_needs_no_password(stored: Store, served: Serve, host: str) -> None:
    stored()
    assert studies(served(host)) == ["digits"]


@pytest.mark.parametrize("host", ["0.0.0.0", "", "0"])
def test_any_other_address_needs_one(storage: Storage, served: Serve, tmp_path: Path, host: str) -> None:
    with pytest.raises(UsageError, match="so it needs a password: set HPO_DASHBOARD_PASSWORD, or use --password-file"):
        serve(storage, tmp_path, host, 0, print)
    for options in ({"password": b"secret"}, {"insecure": True}):
        port = urlsplit(served(host, **options)).port
        assert ask(f"http://127.0.0.1:{port}", "/api/studies")[0] == (401 if "password" in options else 200)


def test_a_password_is_required_on_loopback_too(stored: Store, served: Serve) -> None:
    stored()
    url = served(password=b"secret")
    assert ask(url, "/api/studies")[0] == 401
    assert studies(url, Authorization="Basic " + base64.b64encode(b"me:secret").decode()) == ["digits"]


@pytest.mark.parametrize(
    ("content", "password"),
    [(b"secret", b"secret"), (b"secret\n", b"secret"), (b" a b \r\n", b" a b "), (b"\xff", b"\xff")],
)
def test_the_password_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, password: bytes
) -> None:
    monkeypatch.setenv(VARIABLE, "another")
    (tmp_path / "file").write_bytes(content)
    assert read_password(tmp_path / "file") == password


def test_the_password_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_password(None) is None
    monkeypatch.setenv(VARIABLE, "wörd")
    assert read_password(None) == "wörd".encode()


@pytest.mark.parametrize(("content", "problem"), [(b"", "is empty"), (b"\n", "is empty"), (b"a\nb\n", "several lines")])
def test_a_file_without_a_valid_password(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UsageError, match=f"^{re.escape(str(tmp_path))}/file: .*{problem}"):
        read_password(tmp_path / "file")
    with pytest.raises(UsageError, match="none: the password cannot be read"):
        read_password(tmp_path / "none")
    with pytest.raises(UsageError, match="the password cannot be read"):
        read_password(tmp_path)


def test_insecure_and_a_password_contradict_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert read_password(None, insecure=True) is None
    with pytest.raises(UsageError, match="HPO_DASHBOARD_PASSWORD: is empty"):
        read_password(None)
    monkeypatch.setenv(VARIABLE, "secret")
    with pytest.raises(UsageError, match="remove one of them"):
        read_password(None, insecure=True)


def test_invalid_host_names_are_refused() -> None:
    check_names(["hpo.example.org", "10.0.0.5", "::1"])
    for name in ("http://hpo.example.org", "hpo:8080", "", "*"):
        with pytest.raises(UsageError, match=r"--allow-host '.*': not a host name"):
            check_names([name])


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0: other machines can reach this address"),
        (["--password-file", "none"], "none: the password cannot be read (No such file or directory)"),
        (["--allow-host", "a:1"], "--allow-host 'a:1': not a host name"),
    ],
)
def test_the_command_refuses_in_one_line(
    storage: Storage, capsys: pytest.CaptureFixture[str], args: list[str], problem: str
) -> None:
    assert main(["dashboard", "--storage", storage.shown, "--port", "0", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"hpo: {problem}")
    assert err.count("\n") == 1


def test_sigterm_ends_it_during_a_response(stored: Store, storage: Storage, tmp_path: Path) -> None:
    stored()
    command = ["dashboard", "--port", "0", "--storage", storage.shown, "--read-only"]
    with Fork(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            assert studies(url) == ["digits"]
            assert ask(url, "/api/studies/1", "DELETE")[0] == 403
            # A connection in the middle of a request does not hold it up.
            with socket.create_connection(("127.0.0.1", int(urlsplit(url).port or 0))) as half:
                half.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
                process.send_signal(signal.SIGTERM)
                assert process.communicate(deadline()) == ("", "")
        finally:
            process.kill()
    assert process.returncode == 143


def test_deleting_a_study(stored: Store, served: Serve, storage: Storage) -> None:
    study = stored()
    path = f"/api/studies/{study._study_id}"
    assert ask(served(read_only=True), path, "DELETE", {})[0] == 403
    url = served()
    assert ask(url, path, "DELETE", {}, Origin="http://evil.example")[0] == 403
    assert ask(url, path, "DELETE", {}, Origin=url.replace("127.0.0.1", "evil.example").rstrip("/"))[0] == 403
    assert ask(url, path, "POST", {}, X_HTTP_Method_Override="DELETE")[0] == 405
    assert studies(url) == ["digits"]
    assert ask(url, path, "DELETE", {}, Origin=url.rstrip("/"))[0] == 204
    assert studies(url) == []


def test_notes_can_be_written(stored: Store, served: Serve) -> None:
    """The page's note ends with a summary, which is not stored."""
    study = stored()
    long = "what it is about " * 2000  # optuna-dashboard stores it in pieces
    save_note(study, long)
    url = served()
    note = json.loads(ask(url, f"/api/studies/{study._study_id}")[2])["note"]
    assert note["body"].startswith(f"{long}\n\n{SUMMARY_HEADING}\n")
    assert "**best**: Best-1 \\(trial 11\\)" in note["body"]
    new = {"version": note["version"] + 1, "body": note["body"].replace(long, "changed")}
    assert ask(url, f"/api/studies/{study._study_id}/note", "PUT", new)[0] == 204
    assert get_note(study) == "changed"
    assert json.loads(ask(url, f"/api/studies/{study._study_id}")[2])["note"]["body"].startswith("changed\n\n## ")


def test_the_page_shows_facts_instead_of_records(storage: Storage, stored: Store, served: Serve) -> None:
    study, other = stored(), optuna.create_study(storage=storage, study_name="other")
    study.set_user_attr("mine", 1)
    for each in (study, other):
        each.set_user_attr("hpo:data", {})
    for figure in ("hpo-history", "hpo-landscape"):
        save_plotly_graph_object(study, go.Figure(), graph_object_id=figure)
    url = served()
    page = json.loads(ask(url, f"/api/studies/{study._study_id}")[2])
    attrs = {each["key"]: each["value"] for each in page["user_attrs"]}
    assert list(attrs) == ["state", "best", "next", "mine"]
    assert attrs["best"] == "Best-1 (trial 11): value: 0.5550"
    assert attrs["next"].startswith("hpo status digits --watch --storage sqlite:///")
    assert [each["id"] for each in page["plotly_graph_objects"]] == ["hpo-landscape"]
    listed = json.loads(ask(url, "/api/studies")[2])["study_summaries"]
    assert [[attr["key"] for attr in each["user_attrs"]] for each in listed] == [["mine"], []]
    assert set(storage.get_study_user_attrs(study._study_id)) == {"hpo:study", "hpo:data", "mine"}


def test_damaged_records_do_not_hide_a_study(storage: Storage, stored: Store, served: Serve) -> None:
    study = stored()
    save_note(study, "what it is about")
    study.set_user_attr("hpo:state", "of a later version")
    page = json.loads(ask(served(), f"/api/studies/{study._study_id}")[2])
    assert (page["user_attrs"], page["note"]["body"]) == ([], "what it is about")
    assert len(page["trials"]) == 12


def test_artifacts_are_shown_and_run_no_script(stored: Store, served: Serve, tmp_path: Path) -> None:
    study = stored(3)
    url = served()
    assert not (tmp_path / "artifacts").exists()
    (tmp_path / "page.html").write_text("<script>alert(1)</script>")
    trial = study.ask()
    store = ArtifactFolder(tmp_path / "artifacts")
    artifact = upload_artifact(artifact_store=store, file_path=str(tmp_path / "page.html"), study_or_trial=trial)
    path = f"/artifacts/{study._study_id}/{trial._trial_id}/{artifact}"
    status, headers, body = ask(url, path)
    assert (status, body) == (200, b"<script>alert(1)</script>")
    assert headers["Content-Disposition"] == "attachment"
    assert "sandbox" in headers["Content-Security-Policy"]
    assert headers["Access-Control-Allow-Origin"] is None

    (tmp_path / "artifacts" / artifact).unlink()
    assert ask(url, path)[0] == 404
    assert ask(url, f"/api/studies/{study._study_id}", "DELETE", {})[0] == 204
    assert studies(url) == []


def test_uploading_an_artifact_makes_the_folder(stored: Store, served: Serve, tmp_path: Path) -> None:
    study = stored(1)
    file = "data:text/plain;base64," + base64.b64encode(b"x" * 1_000_000).decode()
    upload = {"file": file, "filename": "a.txt"}
    path = f"/api/artifacts/{study._study_id}"
    assert ask(served(read_only=True), path, "POST", {"filename": "a.txt"})[0] == 403
    status, _, body = ask(served(), path, "POST", upload)
    assert status == 201
    assert [each.name for each in (tmp_path / "artifacts").iterdir()] == [json.loads(body)["artifact_id"]]


@pytest.fixture
def soon_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ten trials the limit of a long study, with four curves sent."""
    for name, count in (("LONG", 10), ("BEST", 2), ("LATEST", 2)):
        monkeypatch.setattr(f"hpo.service.dashboard.view.{name}", count)


def test_of_a_long_study_the_best_and_the_latest_curves_are_sent(soon_long: None, stored: Store, served: Serve) -> None:
    study = stored(18)
    for value in (0.99, 0.98, 0.1, 0.2):
        study.add_trial(optuna.trial.create_trial(value=value, intermediate_values={1: value}))
    url = served()
    assert [number for number, epochs in enumerate(curves(url)) if epochs] == [18, 19, 20, 21]
    sent = json.loads(ask(url, "/api/studies/1")[2])
    assert [each["number"] for each in sent["best_trials"]] == [18]
    assert [each["values"] for each in sent["trials"][16:]] == [[0.58], [0.585], [0.99], [0.98], [0.1], [0.2]]


def test_a_short_study_is_sent_with_all_curves(soon_long: None, stored: Store, served: Serve) -> None:
    stored(10)
    assert curves(served()) == [EPOCHS] * 10


def test_a_short_study_is_read_as_it_is_now(stored: Store, storage: Storage) -> None:
    study = stored(2)
    with closing(View(storage.location)) as view, view.reading(study._study_id):
        assert len(view.get_all_trials(study._study_id)) == 2
        study.ask()
        assert len(view.get_all_trials(study._study_id)) == 3


def test_renaming_a_long_study_keeps_every_curve(
    soon_long: None, stored: Store, served: Serve, storage: Storage
) -> None:
    stored(12)
    url = served()
    assert 0 in curves(url)
    assert ask(url, "/api/studies/1/rename", "POST", {"study_name": "renamed"})[0] == 201
    renamed = optuna.load_study(study_name="renamed", storage=storage)
    assert all(len(trial.intermediate_values) == EPOCHS for trial in renamed.get_trials(deepcopy=False))


def test_a_study_of_another_program_is_sent_with_all_curves(
    soon_long: None, storage: Storage, stored: Store, served: Serve
) -> None:
    study = stored(12)
    other = optuna.create_study(storage=storage, study_name="other", direction="maximize")
    storage.create_trials(other._study_id, study.get_trials(deepcopy=False))
    body = ask(served(), f"/api/studies/{other._study_id}")[2]
    assert all(len(each["intermediate_values"]) == EPOCHS for each in json.loads(body)["trials"])


def test_the_patch_fits_the_pinned_version() -> None:
    pinned = f'"optuna-dashboard=={PATCHED_VERSION}"'
    assert pinned in Path("pyproject.toml").read_text()
    assert optuna_dashboard.__version__ == PATCHED_VERSION, "see hpo.service.dashboard.application.PATCHED_VERSION"
    assert patched_script() is not None


def test_the_script_is_served_patched(served: Serve) -> None:
    url = served()
    status, headers, body = ask(url, "/static/bundle.js")
    assert status == 200
    assert b"intermediate_values.length>0&&(" in body
    packed = ask(url, "/static/bundle.js", Accept_Encoding="gzip")
    assert packed[1]["Content-Encoding"] == "gzip"
    assert len(packed[2]) < len(body) / 3
    assert ask(url, "/static/bundle.js", If_None_Match=headers["ETag"])[0] == 304
    assert ask(url, "/static/bundle.js", "HEAD")[2] == b""


def test_an_artifact_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    store = ArtifactFolder(tmp_path / "a" / "b")
    store.write("one", io.BytesIO(b"first"))

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        store.write("one", Broken())
    with store.open_reader("one") as file:
        assert file.read() == b"first"
    assert [each.name for each in (tmp_path / "a" / "b").iterdir()] == ["one"]
    store.remove("one")
    store.remove("one")


def test_the_page_of_a_study_shows_how_many_trials_are_frozen_at_which_epoch(
    stored: Store, storage: Storage, served: Serve
) -> None:
    """A frozen trial is a running one with a learning curve, on its own page too."""
    study_id = stored(2)._study_id
    template = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING)
    ids = [trial._trial_id for trial in storage.create_trials(study_id, [template] * 4)]
    storage.report_curves({trial_id: {1: 0.5, 2: 0.75} for trial_id in ids})
    storage.freeze({ids[0]: (9, [0.5]), ids[1]: (3, [0.5]), ids[2]: (3, [0.5])})
    url = served()
    status, _, body = ask(url, f"/api/studies/{study_id}")
    assert status == 200
    study = json.loads(body)
    assert study["user_attrs"][0] == {"key": "frozen trials", "value": "2 at epoch 3, 1 at epoch 9"}
    frozen = study["trials"][2]
    assert (frozen["state"], len(frozen["intermediate_values"])) == ("Running", 2)
    assert "values" not in frozen
    assert "frozen trials" not in storage.get_study_user_attrs(study_id)
    storage.thaw(ids)
    assert b"frozen trials" not in ask(url, f"/api/studies/{study_id}")[2]
