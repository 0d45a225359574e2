"""optuna-dashboard as a WSGI application that bears long studies: nothing before it, no server, no login.

It is the package's own application but for three things: it reads long studies through a view that leaves curves out;
its script draws no line where no curve was sent; and its routes take nothing but what they can answer. Where the
installed script is not the one known here, it is served as it is.
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
from hpo.service.dashboard.routes import Routes
from hpo.service.dashboard.view import View
from hpo.storage.artifacts import ArtifactFolder, artifacts_of_other_studies

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ARTIFACTS, SCRIPT = "/artifacts/", "/static/bundle.js"
OTHERS = "hpo.artifacts_of_others"
CURVES = re.compile(  # of which trials the script draws the curve
    rb"(\w+)\.filter\((\w+)=>(!\w+&&\"Complete\"===\2\.state\|\|!\w+&&\"Pruned\"===\2\.state&&\2\.values&&\2\.values\.length>0"
    rb"\|\|\"Running\"===\2\.state)\)(,\w+=\w+\.map\(\2=>\{const \w+=\2\.constraints\.every)"
)


def application(view: View, artifacts: Path) -> WSGIApplication:
    """Return Optuna's dashboard on this storage, with the artifacts of that folder, and nothing before it."""
    dashboard = optuna_dashboard.wsgi(view, artifact_store=_Artifacts(artifacts, view))
    dashboard.install(Routes(view, dashboard))
    app: WSGIApplication = dashboard

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")  # which its own code takes for granted
        if environ["REQUEST_METHOD"] not in READING:
            return app(environ, start_response)
        path = environ["PATH_INFO"]
        if path == SCRIPT and (script := thrifty_script()):
            return _send(script, environ, start_response)
        with view.reading():
            return app(environ, start_response)

    return answer


@functools.cache
def thrifty_script() -> bytes | None:
    """Return optuna-dashboard's script, gzipped, drawing no line for a trial whose curve was not sent.

    Its own draws an empty one, which in a study of 20,000 trials takes as long as the rest of the page. None where the
    script is not the one that this change is made for: then its own is served.
    """
    folder = Path(optuna_dashboard.__file__).parent
    try:
        script = folder.joinpath(SCRIPT.replace("/static/", "public/")).read_bytes()
    except OSError:
        return None
    changed, count = CURVES.subn(rb"\1.filter(\2=>\2.intermediate_values.length>0&&(\3))\4", script)
    return gzip.compress(changed, 6, mtime=0) if count == 1 else None


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
    """The folder as the dashboard has it: a study's request removes no file that another study names, too."""

    def __init__(self, folder: Path, view: View) -> None:
        super().__init__(folder)
        self._view = view

    def remove(self, artifact_id: str) -> None:
        """Remove a file, unless it is another study's as well."""
        environ = bottle.request.environ
        if OTHERS not in environ:
            environ[OTHERS] = artifacts_of_other_studies(self._view, bottle.request.url_args["study_id"])
        if artifact_id not in environ[OTHERS]:
            super().remove(artifact_id)
