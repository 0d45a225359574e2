"""optuna-dashboard as a WSGI application, patched for studies of more than 1,000 trials. No server, no login.

Three changes: it reads studies through a view with readable facts and without most learning curves of long studies; its
script draws no line for a trial without a curve; its routes refuse invalid requests. The script of another version is
served unchanged.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import bottle  # type: ignore[import-untyped]
import optuna_dashboard

from hpo.service.dashboard.guard import READING
from hpo.service.dashboard.request_checks import Routes
from hpo.service.dashboard.view import View
from hpo.storage.artifacts import ArtifactFolder, artifacts_of_other_studies

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ARTIFACTS, SCRIPT = "/artifacts/", "/static/bundle.js"
OTHERS = "hpo.artifacts_of_others"
STUDY_PAGE = re.compile(r"/api/studies/([0-9]{1,10})\b")

PATCHED_VERSION = "0.21.0"
"""Version of optuna-dashboard whose script the patch fits. pyproject.toml pins it; a test fails for any other.

Without the patch the page of a study takes twice as long to open, 16 s instead of 8 s with 20,000 trials, because the
script draws an empty line for each trial (benchmarks/dashboard.py; docs/how-to/dashboard.md has the table).
"""

TRIALS_WITH_CURVE = re.compile(  # the expression in the script that selects the trials whose curves are drawn
    rb"(\w+)\.filter\((\w+)=>(!\w+&&\"Complete\"===\2\.state\|\|!\w+&&\"Pruned\"===\2\.state&&\2\.values&&\2\.values\.length>0"
    rb"\|\|\"Running\"===\2\.state)\)(,\w+=\w+\.map\(\2=>\{const \w+=\2\.constraints\.every)"
)


def application(view: View, artifacts: Path) -> WSGIApplication:
    """Return the patched optuna-dashboard for this storage and this folder of artifacts."""
    dashboard = optuna_dashboard.wsgi(view, artifact_store=_Artifacts(artifacts, view))
    dashboard.install(Routes(view, dashboard))
    app: WSGIApplication = dashboard

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")  # its code expects the header
        if environ["REQUEST_METHOD"] not in READING:
            return app(environ, start_response)
        path = environ["PATH_INFO"]
        if path == SCRIPT and (script := patched_script()):
            return _send(script, environ, start_response)
        page = STUDY_PAGE.match(path)
        with view.reading(None if page is None else int(page[1])):
            return app(environ, start_response)

    return answer


@functools.cache
def patched_script() -> bytes | None:
    """Return optuna-dashboard's script, gzipped, patched to draw no line for a trial without a curve.

    Return None if the patch does not fit the installed version.
    """
    folder = Path(optuna_dashboard.__file__).parent
    try:
        script = folder.joinpath(SCRIPT.replace("/static/", "public/")).read_bytes()
    except OSError:
        return None
    patched, count = TRIALS_WITH_CURVE.subn(rb"\1.filter(\2=>\2.intermediate_values.length>0&&(\3))\4", script)
    return gzip.compress(patched, 6, mtime=0) if count == 1 else None


def _send(script: bytes, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    tag = f'"{hashlib.sha256(script).hexdigest()}"'
    headers = [("ETag", tag), ("Cache-Control", "no-cache"), ("Vary", "Accept-Encoding")]
    if environ.get("HTTP_IF_NONE_MATCH") == tag:
        start_response("304 Not Modified", headers)
        return []
    if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
        headers.append(("Content-Encoding", "gzip"))
    else:
        script = gzip.decompress(script)
    headers += [("Content-Type", "text/javascript; charset=utf-8"), ("Content-Length", str(len(script)))]
    start_response("200 OK", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [script]


class _Artifacts(ArtifactFolder):
    """Folder of artifacts that removes no file which another study has too."""

    def __init__(self, folder: Path, view: View) -> None:
        super().__init__(folder)
        self._view = view

    def remove(self, artifact_id: str) -> None:
        """Remove a file, unless another study has it too."""
        environ = bottle.request.environ
        if OTHERS not in environ:
            environ[OTHERS] = artifacts_of_other_studies(self._view, bottle.request.url_args["study_id"])
        if artifact_id not in environ[OTHERS]:
            super().remove(artifact_id)
