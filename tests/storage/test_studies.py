"""Studies by name, and what reads them beside hpo."""

from __future__ import annotations

import io
import json
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from hpo.errors import UnknownStudyError
from hpo.storage import Ending, Storage, load_study, study_names


def unknown(storage: Storage, name: str) -> str:
    with pytest.raises(UnknownStudyError) as caught:
        load_study(storage, name)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_names_come_oldest_first(storage: Storage) -> None:
    assert study_names(storage) == []
    for name in ("mnist", "digits", "cifar"):
        storage.create_new_study([StudyDirection.MAXIMIZE], name)
    assert study_names(storage) == ["mnist", "digits", "cifar"]


def test_an_unknown_study_is_answered_with_the_nearest_name(storage: Storage, study_id: int) -> None:
    assert unknown(storage, "digit").endswith(": no study named 'digit' (did you mean 'digits'?)")
    assert unknown(storage, "a\nb").endswith(r": no study named 'a\nb'; it holds 'digits'")
    for k in range(6):
        storage.create_new_study([StudyDirection.MAXIMIZE], f"s{k}")
    assert unknown(storage, "mnist").endswith("'s3' and 2 more (see `hpo studies`)")


def test_an_empty_storage_says_how_to_start(storage: Storage) -> None:
    assert unknown(storage, "digits").endswith("it holds no study yet: start one with `hpo launch FILE`")


def test_a_study_is_read_with_what_it_holds(storage: Storage, study_id: int) -> None:
    storage.set_study_user_attr(study_id, "hpo:study", "{}")
    study = load_study(storage, "digits")
    assert isinstance(study, optuna.Study)
    assert (study.study_name, study.direction) == ("digits", StudyDirection.MAXIMIZE)
    assert study.user_attrs == {"hpo:study": "{}"}


def test_the_dashboard_reads_a_study(storage: Storage, study_id: int) -> None:
    optuna_dashboard = pytest.importorskip("optuna_dashboard")
    template = create_trial(
        state=TrialState.RUNNING,
        params={"lr": 1e-3},
        distributions={"lr": optuna.distributions.FloatDistribution(1e-6, 1e-2, log=True)},
    )
    (trial,) = storage.create_trials(study_id, [template])
    storage.report(1, {trial._trial_id: 0.25})
    storage.finish([Ending(trial._trial_id, TrialState.COMPLETE, 0.25, {"seed": 7}, {"hpo:curve": {"val_loss": [2]}})])
    answer = get(optuna_dashboard.wsgi(storage), f"/api/studies/{study_id}")
    (shown,) = answer["trials"]
    assert (shown["number"], shown["state"], shown["values"]) == (0, "Complete", [0.25])
    assert shown["intermediate_values"] == [{"step": 1, "value": 0.25}]
    assert [(param["name"], float(param["param_internal_value"])) for param in shown["params"]] == [("lr", 1e-3)]


def get(app: Any, path: str) -> Any:
    """What a WSGI application answers to a GET."""
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", "wsgi.input": io.BytesIO()}
    environ |= {
        "wsgi.errors": io.StringIO(),
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
    }
    status: list[str] = []
    body = b"".join(app(environ, lambda line, headers, exc_info=None: status.append(line)))
    assert status == ["200 OK"], body
    return json.loads(body)
