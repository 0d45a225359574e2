"""What a worker tells Prometheus adds up to what it has done, whatever became of its trials."""

from __future__ import annotations

import socket
import threading
import urllib.request

import pytest
from optuna.trial import TrialState
from prometheus_client.parser import text_string_to_metric_families
from tiny import states, study_of, trials_of

from hpo.errors import HpoError
from hpo.search.events import EpochEnded, Event, PopulationEnded, PopulationStarted
from hpo.search.launch import submit
from hpo.service import queue_control as control
from hpo.service.metrics import Metrics
from hpo.service.worker import WorkerOptions, work
from hpo.storage import Storage, load_study, summary

Samples = dict[tuple[str, str, str], float]


def samples(url: str) -> Samples:
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        (sample.name, sample.labels.get("study", ""), sample.labels.get("state", "")): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def served(metrics: Metrics, address: str = "127.0.0.1") -> str:
    return f"http://{address}:{metrics.serve(address, 0)}/metrics"


def test_they_add_up_to_what_the_storage_has(storage: Storage) -> None:
    # Most of these diverge, and the pruner takes others.
    wild = {"lr": {"low": 1e-3, "high": 1e250, "log": True}}
    a = study_of(name="a", optimizer=wild, training={"epochs": 4}, search={"trials": 12, "pruner": "median"})
    for study in (a, study_of(name='quo"te\\ and back')):
        submit(study, storage)
    metrics = Metrics()
    url = served(metrics)
    metrics.count_storage_time(storage)
    assert samples(url)["hpo_population_size", "", ""] == 0
    images = {"a": 0, 'quo"te\\ and back': 0}
    left = [0]
    sizes = []

    def listen(study: str, event: Event) -> None:
        metrics(study, event)
        if isinstance(event, PopulationStarted):
            left[0] = len(event.members)
            sizes.append(samples(url)["hpo_population_size", "", ""])
        if isinstance(event, EpochEnded):
            images[study] += left[0] * 120  # 80% of 150
            left[0] = event.left

    work(storage, WorkerOptions(device="cpu", threads=1, until_idle=True), listen, threading.Event())
    found = samples(url)
    for name in images:
        stored = states(trials_of(storage, name))
        for state, word in (
            (TrialState.COMPLETE, "complete"),
            (TrialState.PRUNED, "pruned"),
            (TrialState.FAIL, "failed"),
        ):
            assert found["hpo_trials_total", name, word] == stored.count(state), (name, word)
        assert found["hpo_images_total", name, ""] == images[name]
    assert TrialState.FAIL in states(trials_of(storage, "a"))
    assert set(sizes) <= {1, 2, 3, 4}
    assert found["hpo_population_size", "", ""] == 0
    assert found["hpo_storage_seconds_total", "", ""] == pytest.approx(storage.retry_policy.total_s, rel=0.5)
    assert found["hpo_storage_seconds_total", "", ""] > 0


def test_frozen_trials_are_counted_by_epoch_and_pruned_ones_once(storage: Storage) -> None:
    submit(study_of(training={"epochs": 4}, search={"trials": 12, "pruner": "halving", "rung": 1}), storage)
    metrics = Metrics()
    url = served(metrics)
    checked = []

    def listen(study: str, event: Event) -> None:
        metrics(study, event)
        if isinstance(event, PopulationStarted | PopulationEnded):
            stored = summary(storage, study).frozen
            families = metrics.registry.collect()
            gauges = {
                int(sample.labels["epoch"]): int(sample.value)
                for family in families
                if family.name == "hpo_frozen_trials"
                for sample in family.samples
                if sample.value
            }
            assert gauges == stored
            checked.append(stored)

    work(storage, WorkerOptions(device="cpu", threads=1, until_idle=True), listen, threading.Event())
    found = samples(url)
    trials = states(trials_of(storage))
    assert found["hpo_trials_total", "tiny", "complete"] == trials.count(TrialState.COMPLETE) > 0
    assert found["hpo_trials_total", "tiny", "pruned"] == trials.count(TrialState.PRUNED) > 0
    assert len(trials) == 12
    assert {1: 4} in checked
    assert found["hpo_frozen_trials", "tiny", ""] == 0


def test_a_trial_that_is_not_of_the_studys_space_fails_and_counts(storage: Storage) -> None:
    submit(study_of(), storage)
    load_study(storage, "tiny").enqueue_trial({"learning_rate": 0.1})
    metrics = Metrics()
    url = served(metrics)
    work(storage, WorkerOptions(device="cpu", threads=1, until_idle=True), metrics, threading.Event())
    assert states(trials_of(storage)).count(TrialState.FAIL) == 1
    assert samples(url)["hpo_trials_total", "tiny", "failed"] == 1


def test_nothing_is_in_training_after_a_pause(storage: Storage) -> None:
    submit(study_of(training={"epochs": 100}), storage)
    metrics = Metrics()
    url = served(metrics)

    def listen(study: str, event: Event) -> None:
        metrics(study, event)
        if isinstance(event, EpochEnded) and event.epoch == 2:
            control.pause(storage, study)

    work(storage, WorkerOptions(device="cpu", threads=1, until_idle=True), listen, threading.Event())
    found = samples(url)
    assert found["hpo_population_size", "", ""] == 0
    assert found["hpo_trials_total", "tiny", "complete"] == 0
    assert found["hpo_epochs_total", "tiny", ""] in (2, 3)


def test_a_port_in_use_and_an_address_that_is_none_are_errors_of_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HpoError, match=rf"^127.0.0.1:{port}: the port is in use; choose another"):
            Metrics().serve("127.0.0.1", port)
    with pytest.raises(HpoError, match=r"^192\.0\.2\.1:0: cannot listen there \("):
        Metrics().serve("192.0.2.1", 0)
    with pytest.raises(HpoError, match=r"^no\.such\.host\.invalid:0: cannot listen there \("):
        Metrics().serve("no.such.host.invalid", 0)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_the_sixth_version_of_ip() -> None:
    port = Metrics().serve("::1", 0)
    assert samples(f"http://[::1]:{port}/metrics")["hpo_population_size", "", ""] == 0
