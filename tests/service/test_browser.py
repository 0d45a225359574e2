"""Tests of the dashboard in Chromium: its pages, and attacks by another site's page in the same browser."""

from __future__ import annotations

import http.server
import io
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from deadlines import deadline
from objectives import objective_study
from optuna.artifacts import upload_artifact
from optuna_dashboard import save_note, save_plotly_graph_object
from tiny import search

from hpo.service.dashboard.figures import update_figures
from hpo.storage import Storage, load_study, study_names
from hpo.storage.artifacts import ArtifactFolder

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH; on Debian: apt-get install chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
GRAPHS = ["plot-history", "graph-intermediate-values", "graph-hyperparameter-importances", "graph-timeline"]
DRAWN = "graphs => graphs.every(id => document.getElementById(id)?.data?.length)"
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100c9fe92ef"
    "0000000049454e44ae426082"
)

Serve = Callable[..., str]
Store = Callable[..., optuna.Study]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def complaints() -> list[str]:
    """Return the console's warnings: refused scripts, failed requests."""
    return []


@pytest.fixture
def page(browser: Any, complaints: list[str]) -> Iterator[Any]:
    context = browser.new_context(http_credentials={"username": "me", "password": "secret"})
    opened = context.new_page()
    opened.set_default_timeout(1000 * deadline())
    opened.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened
    context.close()


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """Serve a page of another site: the same machine, another port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>elsewhere</title><body></body>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_the_list_leads_to_a_study_and_its_graphs(
    page: Any, complaints: list[str], served: Serve, stored: Store
) -> None:
    study = stored()
    figure = optuna.visualization.plot_edf(study)
    save_plotly_graph_object(study, figure, graph_object_id="own-figure")
    study.ask()
    page.goto(served(password=b"secret"))
    page.get_by_text("digits").first.click()
    page.wait_for_function(DRAWN, arg=[*GRAPHS, "user-defined-plot:own-figure"])
    lines = page.evaluate("document.getElementById('graph-intermediate-values').data.map(each => each.y.length)")
    assert lines == [3] * 12  # a line a trial, and none for the one that has no curve yet
    assert page.evaluate("document.getElementById('graph-timeline').data[0].x.length") == 12
    assert complaints == []


@pytest.mark.slow
def test_notes_and_artifacts_are_shown(
    page: Any, complaints: list[str], served: Serve, stored: Store, tmp_path: Path
) -> None:
    study = stored()
    save_note(study, "what it is about")
    trial = study.ask()
    artifacts = ArtifactFolder(tmp_path / "artifacts")
    artifacts.write("seen", io.BytesIO(b""))
    (tmp_path / "curve.png").write_bytes(PIXEL)
    upload_artifact(artifact_store=artifacts, file_path=str(tmp_path / "curve.png"), study_or_trial=trial)
    url = served(password=b"secret")
    page.goto(f"{url}dashboard/studies/{study._study_id}/note")
    page.get_by_text("what it is about").first.wait_for()
    page.goto(f"{url}dashboard/studies/{study._study_id}/trials?numbers={trial.number}")
    page.get_by_text("curve.png").first.wait_for()
    page.wait_for_function("[...document.images].some(each => each.src.includes('/artifacts/') && each.naturalWidth)")
    assert complaints == []


@pytest.mark.slow
def test_the_figures_of_a_study_stand_on_its_page(
    page: Any, complaints: list[str], served: Serve, stored: Store, storage: Storage, tmp_path: Path
) -> None:
    study = stored()
    assert update_figures(storage, "digits")
    search(objective_study(tmp_path, trials=4, pruner="none"), storage, device="auto")
    assert update_figures(storage, "own")
    url = served(read_only=True)
    page.goto(f"{url}dashboard/studies/{study._study_id}")
    drawn = ["user-defined-plot:hpo-landscape"]
    page.wait_for_function(DRAWN, arg=drawn)
    assert page.evaluate("document.getElementById('user-defined-plot:hpo-landscape').data[0].x.length") == 12
    page.get_by_text("Best-1 (trial 11): value: 0.5550").first.wait_for()
    assert page.get_by_text("hpo:study").count() == 0

    own = load_study(storage, "own")
    page.goto(f"{url}dashboard/studies/{own._study_id}")
    page.wait_for_function(DRAWN, arg=["graph-intermediate-values", *drawn])
    page.get_by_text("finished, 4 complete of 4 trials").first.wait_for()
    page.goto(f"{url}dashboard/studies/{own._study_id}/trials?numbers=3")
    page.get_by_text(str(own.trials[3].params["x"])).first.wait_for()
    assert complaints == []


@pytest.mark.slow
def test_a_wrong_password_shows_nothing(browser: Any, served: Serve, stored: Store) -> None:
    stored()
    context = browser.new_context(http_credentials={"username": "me", "password": "guess"})
    page = context.new_page()
    assert page.goto(f"{served(password=b'secret')}api/studies").status == 401
    assert "digits" not in page.content()
    context.close()


def delete_in_the_page(page: Any) -> int:
    """Delete the study in the list, with the mouse; return the HTTP status."""
    page.get_by_text("digits").first.wait_for()
    page.get_by_role("button", name="delete study").first.click()
    with page.expect_response(lambda answer: answer.request.method == "DELETE") as answer:
        page.get_by_role("button", name="yes").click()
    return int(answer.value.status)


@pytest.mark.slow
def test_read_only_a_study_cannot_be_deleted(page: Any, served: Serve, stored: Store, storage: Storage) -> None:
    stored()
    url = served(read_only=True)
    page.goto(url)
    assert delete_in_the_page(page) == 403
    assert study_names(storage) == ["digits"]
    page.goto(url)
    page.get_by_text("digits").first.wait_for()


@pytest.mark.slow
def test_otherwise_it_can(page: Any, served: Serve, stored: Store, storage: Storage) -> None:
    stored()
    page.goto(served(password=b"secret"))
    assert delete_in_the_page(page) == 204
    assert study_names(storage) == []


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_page_of_another_site_cannot_delete(
    page: Any, served: Serve, stored: Store, storage: Storage, elsewhere: str, host: str
) -> None:
    study = stored()
    url = served().replace("127.0.0.1", host)
    page.goto(elsewhere)
    send = """([url, options]) => fetch(url, options).then(answer => `answered ${answer.type}`, () => "failed")"""
    target = f"{url}api/studies/{study._study_id}"
    assert page.evaluate(send, [target, {"method": "DELETE"}]) == "failed"
    assert page.evaluate(send, [target, {"method": "DELETE", "mode": "no-cors"}]) == "failed"
    # A form of text needs nobody's leave to be sent; what counts is what the server makes of it.
    body = '{"study_name": "stolen", "directions": ["maximize"]}'
    page.evaluate(send, [f"{url}api/studies", {"method": "POST", "mode": "no-cors", "body": body}])
    page.evaluate(send, [f"{target}/rename", {"method": "POST", "mode": "no-cors", "body": body}])
    assert page.evaluate(send, [f"{url}api/studies", {}]) == "failed"  # nor can it read
    with page.expect_response(f"{url}api/studies") as answer:
        page.evaluate(
            """url => {
                const form = document.body.appendChild(document.createElement("form"));
                Object.assign(form, { method: "post", action: url, enctype: "text/plain" }).submit();
            }""",
            f"{url}api/studies",
        )
    assert answer.value.status == 403
    assert study_names(storage) == ["digits"]


@pytest.mark.slow
def test_a_page_cannot_be_framed(page: Any, served: Serve, elsewhere: str) -> None:
    url = served()
    page.goto(elsewhere)
    with page.expect_response(f"{url}dashboard"):
        page.evaluate("url => { document.body.innerHTML = `<iframe src='${url}'></iframe>` }", f"{url}dashboard")
    page.wait_for_function("document.querySelector('iframe').contentDocument === null")
    assert all('<div id="dashboard"' not in frame.content() for frame in page.frames)


@pytest.mark.slow
def test_an_artifact_is_saved_and_not_opened(
    page: Any, complaints: list[str], served: Serve, stored: Store, tmp_path: Path
) -> None:
    study = stored(1)
    (tmp_path / "page.html").write_text("<script>fetch('/api/studies/1', {method: 'DELETE'})</script>")
    folder = ArtifactFolder(tmp_path / "artifacts")
    artifact = upload_artifact(artifact_store=folder, file_path=str(tmp_path / "page.html"), study_or_trial=study)
    url = served()
    page.goto(f"{url}dashboard")
    with page.expect_download() as download:
        page.evaluate("path => { location.href = path }", f"/artifacts/{study._study_id}/{artifact}")
    assert Path(download.value.path()).read_text().startswith("<script>")
    assert complaints == []


SCRIPT = "window.ran = 1"
EVIL = f"<img src=x onerror='{SCRIPT}'><script>{SCRIPT}</script><svg onload='{SCRIPT}'></svg>"
EVIL_FILES = {
    "page.html": f"<script>{SCRIPT}; top.ran = 1; fetch('/api/studies/1', {{method: 'DELETE'}})</script>",
    "picture.svg": f"<svg xmlns='http://www.w3.org/2000/svg' onload='{SCRIPT}'><script>top.ran = 1</script></svg>",
    "code.js": f"{SCRIPT}; top.ran = 1",
    f"{EVIL.replace('/', '')}.csv": f"{EVIL},=1+1\n1,2\n",
    f"{EVIL.replace('/', '')}.png": "no picture",
}


def evil_study(storage: Storage, tmp_path: Path) -> tuple[optuna.Study, list[str]]:
    """Store a study with a script in each text that its page shows; return the paths of its artifacts."""
    study = optuna.create_study(storage=storage, study_name=f"digits{EVIL}", directions=["maximize"])
    study.set_user_attr(EVIL, EVIL)
    storage.set_study_system_attr(study._study_id, "study:metric_names", [EVIL])
    for number in range(12):
        trial = study.ask()
        trial.suggest_float(EVIL, 0, 1)
        trial.suggest_categorical(f"choice {EVIL}", [EVIL, f"other {EVIL}"])
        trial.set_user_attr(EVIL, EVIL)
        trial.report(0.5, number)
        study.tell(trial, number)
    last = study.ask()
    last.suggest_categorical(f"choice {EVIL}", [EVIL, f"other {EVIL}"])
    store, found = ArtifactFolder(tmp_path / "artifacts"), []
    for name, text in EVIL_FILES.items():
        (tmp_path / name).write_text(text)
        for each in (study, last):
            made = upload_artifact(artifact_store=store, file_path=str(tmp_path / name), study_or_trial=each)
            found.append(f"/artifacts/{study._study_id}/{f'{last._trial_id}/' if each is last else ''}{made}")
    note = [EVIL, f"[a link](javascript:{SCRIPT})", f"<a href='javascript:{SCRIPT}'>another</a>", "the end of the note"]
    note += [f"<iframe srcdoc='<script>parent.{SCRIPT.removeprefix('window.')}</script>'></iframe>"]
    for path in found:
        note += [f"<iframe src='{path}'></iframe><script src='{path}'></script><object data='{path}'></object>"]
    note += [f"$\\href{{javascript:{SCRIPT}}}{{x}}$", "<base href='//evil.example/'><style>*{ }</style>"]
    for each in (study, last):
        save_note(each, "\n\n".join(note))
    return study, found


@pytest.mark.slow
def test_script_in_whatever_is_shown_does_not_run(page: Any, served: Serve, storage: Storage, tmp_path: Path) -> None:
    study, files = evil_study(storage, tmp_path)
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    at = f"dashboard/studies/{study._study_id}"
    url = served()

    def nothing_ran() -> None:
        page.evaluate("[...document.links].forEach(each => { if (each.protocol === 'javascript:') each.click() })")
        assert all(frame.evaluate("window.ran") is None for frame in page.frames)

    shown = {"dashboard": "digits<img", at: "digits<img", f"{at}/note": "end of the note"}
    shown |= {f"{at}/analytics": "digits<img", f"{at}/trialTable": "digits<img", f"{at}/trials?numbers=12": "page.html"}
    for place, text in shown.items():
        page.goto(f"{url}{place}")
        page.get_by_text(text).first.wait_for()
        page.wait_for_load_state("networkidle")
        nothing_ran()
    for path in files:
        with page.expect_download() as download:
            page.evaluate("path => { location.href = path }", path)
        assert Path(download.value.path()).read_text() in EVIL_FILES.values()
        nothing_ran()
    assert study_names(storage) == [study.study_name]
