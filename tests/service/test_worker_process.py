"""Tests of `hpo work` as a process: shutdown, log, metrics, and a database server that restarts."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from collections.abc import Callable

from deadlines import wait_for
from optuna.trial import TrialState
from postgresql_server import Server
from prometheus_client.parser import text_string_to_metric_families
from tiny import check_whole, states, study_of, trials_of
from worker_threads import Process

from hpo.search.launch import submit
from hpo.service.status import status
from hpo.storage import Storage, running_trials

Start = Callable[..., Process]

ENDLESS = {"training": {"epochs": 1_000_000}}

HANGING = """
import os, sys, threading
from hpo.cli.interruption import Interruption
from hpo.service import worker_process as process
from hpo.training.stack import Stack
from hpo.cli import main

hear = Interruption.__call__

def say_so(interruption, number, frame):
    os.write(2, b"heard\\n")
    hear(interruption, number, frame)

Interruption.__call__ = say_so
process.STOP_S = float(sys.argv[1])
Stack.epoch = lambda stack, epoch: threading.Event().wait()
sys.exit(main(sys.argv[2:]))
"""
"""`hpo work` with an endless first epoch; it prints when it receives a signal, since two at once count as one."""

FOR_EVER_S = 1e6


def work(start: Start, storage: Storage, *args: str, **options: str) -> Process:
    arguments = ("work", "--device", "cpu", "--storage", storage.location.full_url, *args)
    return start(*arguments, **options)


def scrape(url: str) -> dict[tuple[str, str, str], float]:
    """Return the worker's metrics: (sample, study, state) -> value."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        (sample.name, sample.labels.get("study", ""), sample.labels.get("state", "")): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_worker_is_stopped_during_an_epoch(start: Start, storage: Storage) -> None:
    submit(study_of(**ENDLESS), storage)
    worker = work(start, storage)
    worker.said("population of 4 begins, trials 0-3")
    (seen,) = wait_for(lambda: status(storage).workers)
    assert (seen.pid, seen.study, seen.population, seen.lost) == (worker.process.pid, "tiny", 4, "")
    worker.signal(signal.SIGTERM)
    assert worker.status() == 0
    assert worker.out == []
    assert worker.err[-1].endswith(f"{seen.host}:{seen.pid} ends: a stop was requested")
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (info|warning) \S+:\d+ \S", line) for line in worker.err)
    assert states(trials_of(storage)) == [TrialState.WAITING] * 4
    assert status(storage).workers == ()


def test_an_epoch_that_exceeds_the_shutdown_timeout_is_aborted(start: Start, storage: Storage) -> None:
    submit(study_of(), storage)
    worker = work(lambda *args: start("0.5", *args, script=HANGING), storage)
    worker.said("population of 4 begins")
    worker.signal(signal.SIGTERM)
    assert worker.status() == 0
    assert "aborted, its trials are requeued" in worker.err[-1]
    assert states(trials_of(storage)) == [TrialState.WAITING] * 4
    assert running_trials(storage) == []


def test_it_is_aborted_even_without_a_server(start: Start, server: Server, server_storage: Storage) -> None:
    submit(study_of(), server_storage)
    worker = work(lambda *args: start("0.5", *args, script=HANGING), server_storage)
    worker.said("population of 4 begins")
    server.stop()
    try:
        worker.signal(signal.SIGTERM)
        assert worker.status() == 0
    finally:
        server.start()
    assert "Traceback" not in "\n".join(worker.err)


def test_a_second_signal_ends_a_worker_at_once_and_requeues_its_trials(start: Start, storage: Storage) -> None:
    submit(study_of(), storage)
    worker = work(lambda *args: start(str(FOR_EVER_S), *args, script=HANGING), storage)
    worker.said("population of 4 begins")
    worker.signal(signal.SIGTERM)
    worker.said("heard")
    worker.signal(signal.SIGTERM)
    assert worker.status() == 143
    assert "Traceback" not in "\n".join(worker.err)
    assert states(trials_of(storage)) == [TrialState.WAITING] * 4


def test_a_worker_outlives_its_server_logs_json_and_counts_what_the_storage_has(
    start: Start, server: Server, server_storage: Storage
) -> None:
    """The worker starts before its server and continues after the server has crashed."""
    submit(study_of(name="first"), server_storage)
    server.stop()
    try:
        worker = work(start, server_storage, "--log-format", "json", "--metrics-port", "0")
        worker.said("trying again")
    finally:
        server.start()
    worker.said("the storage answers again")
    wait_for(lambda: status(server_storage, "first").studies[0].state == "ended", lambda: worker.err)
    submit(study_of(name="second", training={"epochs": 60}, search={"trials": 12}), server_storage)
    worker.said('"study": "second", "event": "population_started"')
    server.restart("immediate")
    wait_for(lambda: status(server_storage, "second").studies[0].state == "ended", lambda: worker.err)
    for name, trials in (("first", 6), ("second", 12)):
        check_whole(trials_of(server_storage, name), trials)

    worker.said('"study": "second", "event": "study_ended"')
    metrics = scrape(re.findall(r"http://\S+/metrics", worker.said("metrics at"))[0])
    for name in ("first", "second"):
        for state, count in status(server_storage, name).studies[0].counts.items():
            if state in ("complete", "pruned", "failed"):
                assert metrics[("hpo_trials_total", name, state)] == count
    assert metrics[("hpo_epochs_total", "first", "")] == 4
    images = len(trials_of(server_storage, "first")) * 2 * 120  # members, epochs, and 80% of 150
    assert metrics[("hpo_images_total", "first", "")] == images
    assert metrics[("hpo_population_size", "", "")] == 0
    assert metrics[("hpo_storage_seconds_total", "", "")] > 0

    server.stop()
    try:
        wait_for(lambda: sum("trying again" in line for line in worker.err) > 1, lambda: worker.err)
        worker.signal(signal.SIGTERM)
        assert worker.status() == 0
    finally:
        server.start()
    lines = [json.loads(line) for line in worker.err]
    assert {line["worker"].rpartition(":")[2] for line in lines} == {str(worker.process.pid)}
    assert all({"time", "level", "worker", "message"} <= line.keys() for line in lines)
    of_events = [line for line in lines if "event" in line]
    assert all(line["study"] in ("first", "second") for line in of_events)
    populations = [line for line in of_events if line["event"].startswith("population_")]
    trained = [number for line in populations if line["study"] == "first" for number in line["members"]]
    assert sorted(trained) == sorted([*range(6)] * 2)  # as they begin, and as they end


def test_every_line_of_a_json_log_is_json_even_from_libraries(start: Start, storage: Storage) -> None:
    two = {"weight_decay": {"low": 1e-6, "high": 1e-2, "log": True}}
    for sampler in ("cmaes", "qmc", "gp", "tpe"):
        search = {"sampler": sampler, "pruner": "hyperband", "trials": 8}
        submit(study_of(name=sampler, optimizer=two, search=search), storage)
    worker = work(start, storage, "--until-idle", "--log-format", "json")
    assert worker.status() == 0
    for line in worker.err:
        json.loads(line)
    assert {study.state for study in status(storage).studies} == {"ended"}
