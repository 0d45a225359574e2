"""MLflow: a study's runs in a real server equal the storage, live and exported, and a server that dies is in no way."""

from __future__ import annotations

import json
import math
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from deadlines import deadline
from tiny import tree

import hpo
from hpo.search.events import Event, Note, PopulationEnded
from hpo.tracking import live

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow's own packages


class Server:
    """The runs of an MLflow server, read by its HTTP interface: hpo's own client is not used."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def experiment(self, name: str) -> dict[str, Any]:
        return self._get("2.0/mlflow/experiments/get-by-name", experiment_name=name)["experiment"]

    def runs(self, name: str) -> dict[int, dict[str, Any]]:
        """Return the runs of an experiment by trial; fail where a trial has two."""
        query = {"experiment_ids": [self.experiment(name)["experiment_id"]], "max_results": 1000}
        request = urllib.request.Request(
            f"{self.url}/api/2.0/mlflow/runs/search", json.dumps(query).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=deadline()) as answer:
            found = json.load(answer).get("runs", [])
        runs = {int(_pairs(run["data"], "tags")["hpo.trial"]): run for run in found}
        assert len(runs) == len(found)
        return runs

    def curves(self, runs: dict[int, dict[str, Any]], metric: str) -> dict[int, list[float]]:
        """Return the values of a metric by trial, ordered by step."""
        ids = {run["info"]["run_id"]: number for number, run in runs.items()}
        query = urllib.parse.urlencode([("run_id", run) for run in ids] + [("metric_key", metric)])
        found = self._get(f"2.0/mlflow/metrics/get-history-bulk?{query}", "ajax-api")["metrics"]
        curves: dict[int, list[tuple[int, float]]] = {}
        for point in found:
            curves.setdefault(ids[point["run_id"]], []).append((point.get("step", 0), float(point["value"])))
        for curve in curves.values():
            curve.sort()
            assert [step for step, _ in curve] == list(range(1, len(curve) + 1))
        return {number: [value for _, value in curve] for number, curve in curves.items()}

    def files(self, run: dict[str, Any]) -> list[str]:
        found = self._get("2.0/mlflow/artifacts/list", run_id=run["info"]["run_id"])
        return [file["path"] for file in found.get("files", [])]

    def _get(self, path: str, kind: str = "api", **query: str) -> Any:
        text = f"?{urllib.parse.urlencode(query)}" if query else ""
        with urllib.request.urlopen(f"{self.url}/{kind}/{path}{text}", timeout=deadline()) as answer:
            return json.load(answer)


@pytest.fixture
def server(mlflow_port: int) -> Server:
    return Server(mlflow_port)


def _pairs(data: dict[str, Any], kind: str) -> dict[str, Any]:
    return {each["key"]: each["value"] for each in data.get(kind, [])}


STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


def assert_equal(server: Server, study: hpo.StoredStudy) -> None:
    """Compare all runs of a study with its trials in the storage."""
    runs, trials = server.runs(study.name), study.trials()
    assert sorted(runs) == [trial.number for trial in trials]
    for trial in trials:
        run = runs[trial.number]
        params, metrics = _pairs(run["data"], "params"), _pairs(run["data"], "metrics")
        assert run["info"]["status"] == STATUS[trial.state]
        assert {name: float(params[name]) for name in trial.params} == trial.params
        assert int(params["seed"]) == trial.seed
        assert (params["hidden"], params["batch_size"], params["precision"]) == ("[8]", "60", "float64")
        assert metrics.get("score") == trial.value
        assert metrics["epochs"] == trial.epochs
        assert _pairs(run["data"], "tags").get("hpo.reason") == trial.reason
    for metric in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        found = server.curves(runs, metric)
        assert found == {each.number: each.curve[metric].tolist() for each in trials if each.epochs}


def test_exported_runs_equal_the_storage_and_a_second_export_changes_nothing(
    server: Server, study: hpo.StoredStudy
) -> None:
    target = f"mlflow:{server.url}"
    assert study.export_to(target) == f"tiny: 16 trials in {target}"
    assert {trial.state for trial in study.trials()} == {"complete", "pruned", "failed"}
    assert_equal(server, study)
    runs = server.runs("tiny")
    kept = {number for number, run in runs.items() if server.files(run) == ["weights-best.safetensors"]}
    assert len(kept) == 5
    assert study.best.number in kept
    tags = _pairs(server.experiment("tiny"), "tags")
    assert tags["mlflow.note.content"] == "a study of the tests"
    assert 'name = "tiny"' in tags["hpo.study_file"]
    study.export_to(target)
    assert server.runs("tiny") == runs


def test_another_study_of_the_same_name_gets_its_own_experiment(server: Server, study: hpo.StoredStudy) -> None:
    other = hpo.launch(
        tree(search={"trials": 1, "population": 1}), storage="sqlite:///other.db", device="cpu", progress="quiet"
    )
    study.export_to(f"mlflow:{server.url}")
    before = server.runs("tiny")
    other.export_to(f"mlflow:{server.url}")
    assert server.runs("tiny") == before


class Proxy:
    """A door to the server that can be shut: to the launch, the server dies. `seen` is set by the first new run."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.seen = threading.Event()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        """Refuse new connections, and end the present ones."""
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._open += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if b"runs/create" in data:
                    self.seen.set()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(mlflow_port: int) -> Iterator[Proxy]:
    with closing(_Shutting(mlflow_port)) as proxy:
        yield proxy


class _Shutting(Proxy):
    def close(self) -> None:
        self.shut()


def at_second_population(act: Callable[[], None]) -> tuple[Callable[[Event], None], list[Event]]:
    """Return a display that calls a function once the first population has ended, and the events so far."""
    events: list[Event] = []

    def display(event: Event) -> None:
        events.append(event)
        if sum(isinstance(each, PopulationEnded) for each in events) == 1 and isinstance(event, PopulationEnded):
            act()

    return display, events


def test_a_server_that_dies_costs_one_warning_and_an_export_writes_what_is_missing(
    server: Server, proxy: Proxy, study: hpo.StoredStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "FLUSH_S", deadline(120))

    def die() -> None:
        assert proxy.seen.wait(deadline(120))
        proxy.shut()

    display, events = at_second_population(die)
    uri = f"mlflow:http://user:secret@127.0.0.1:{proxy.port}"
    launched = hpo.launch(
        tree(name="dies", search={"trials": 4, "population": 2}),
        storage="sqlite:///hpo.db",
        device="cpu",
        progress=display,
        track=[uri, "tensorboard:logs"],
    )
    assert [trial.state for trial in launched.trials()] == ["complete"] * 4
    (warning,) = [event.text for event in events if isinstance(event, Note) and event.level == "warning"]
    assert warning.startswith(f"mlflow:http://user:***@127.0.0.1:{proxy.port}: cannot be written (")
    assert "`hpo export dies --to mlflow:http://user:***@127.0.0.1:" in warning
    assert "secret" not in repr(events)
    launched.export_to(f"mlflow:{server.url}")
    assert_equal(server, launched)


def test_a_launch_writes_live_what_an_export_would_write(
    server: Server, study: hpo.StoredStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "FLUSH_S", deadline(120))
    seen: list[str] = []

    def look() -> None:
        end = threading.Event()
        while not seen and not end.wait(0.05):
            with suppress(OSError, AssertionError):
                seen.extend(run["info"]["status"] for run in server.runs("live").values())

    display, events = at_second_population(look)
    launched = hpo.launch(
        tree(name="live", search={"trials": 4, "population": 2, "repeats": 2}),
        storage="sqlite:///hpo.db",
        device="cpu",
        progress=display,
        track=f"mlflow:{server.url}",
    )
    assert seen  # before the launch has ended
    assert not [event for event in events if isinstance(event, Note) and event.level == "warning"]
    assert_equal(server, launched)
    before = server.runs("live")
    launched.export_to(f"mlflow:{server.url}")
    assert server.runs("live") == before


def test_a_continued_trial_replaces_its_run(server: Server, study: hpo.StoredStudy) -> None:
    few, more = ({"epochs": epochs, "keep": "last"} for epochs in (2, 3))
    options: dict[str, Any] = {"storage": "sqlite:///hpo.db", "device": "cpu", "progress": "quiet"}
    launched = hpo.launch(tree(name="longer", training=few, search={"trials": 3}), **options)
    launched.export_to(f"mlflow:{server.url}")
    longer = hpo.launch(tree(name="longer", training=more, search={"trials": 4}), extend=True, **options)
    assert {trial.epochs for trial in longer.trials()} == {3}
    longer.export_to(f"mlflow:{server.url}")
    assert_equal(server, longer)
    assert not math.isnan(longer.best.value or math.nan)
