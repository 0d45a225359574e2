"""Prometheus metrics of a worker since its start, at http://ADDRESS:PORT/metrics.

hpo_trials_total{study,state}     trials that this worker ended: complete, pruned, failed
hpo_epochs_total{study}           epochs of populations
hpo_images_total{study}           training examples, counted once for every member: its rate is examples a second
hpo_population_size               members in training now
hpo_frozen_trials{study,epoch}    trials that are frozen at a rung of successive halving now
hpo_storage_seconds_total         seconds in the storage's transactions, including waiting for it
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from hpo.errors import HpoError
from hpo.search.events import (
    EpochEnded,
    Event,
    FrozenTrials,
    PopulationEnded,
    PopulationStarted,
    StudyStarted,
    TrialsFailed,
    TrialsLeftOut,
    TrialsNotPromoted,
)
from hpo.storage import Storage


@dataclass
class Metrics:
    """Listener that counts a worker's events."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self._trials = Counter("hpo_trials", "Trials that ended.", ["study", "state"], registry=self.registry)
        self._epochs = Counter("hpo_epochs", "Epochs of populations.", ["study"], registry=self.registry)
        self._images = Counter(
            "hpo_images", "Training examples, once for every member.", ["study"], registry=self.registry
        )
        self._size = Gauge("hpo_population_size", "Members in training.", registry=self.registry)
        self._frozen = Gauge(
            "hpo_frozen_trials", "Trials that are frozen at a rung.", ["study", "epoch"], registry=self.registry
        )
        self._examples: dict[str, int] = {}  # study -> training examples
        self._rungs: dict[str, set[int]] = {}  # study -> epochs with a gauge
        self._members = 0

    def __call__(self, study: str, event: Event) -> None:
        """Count an event of a study."""
        match event:
            case StudyStarted():
                self._examples[study] = event.images
            case PopulationStarted():
                self._members = len(event.members)
                self._size.set(self._members)
            case EpochEnded():
                self._epochs.labels(study).inc()
                self._images.labels(study).inc(self._members * self._examples[study])
                self._members = event.left
                self._size.set(self._members)
            case PopulationEnded():
                self._size.set(0)
                for state, count in zip(
                    ("complete", "pruned", "failed"), (event.completed, event.pruned, event.failed), strict=True
                ):
                    self._trials.labels(study, state).inc(count)
            case FrozenTrials():
                self._set_frozen(study, dict(event.counts))
            case TrialsLeftOut() | TrialsNotPromoted():
                self._trials.labels(study, "pruned").inc(len(event.members))
            case TrialsFailed():
                self._trials.labels(study, "failed").inc(len(event.members))
            case _:
                pass

    def _set_frozen(self, study: str, counts: dict[int, int]) -> None:
        rungs = self._rungs.setdefault(study, set())
        rungs.update(counts)
        for epoch in rungs:
            self._frozen.labels(study, epoch).set(counts.get(epoch, 0))

    def count_storage_time(self, storage: Storage) -> None:
        """Add the seconds spent in the storage's transactions to the metrics."""
        self.registry.register(_StorageSeconds(storage))

    def serve(self, address: str, port: int) -> int:
        """Serve the metrics at this address and port (0: any free one) until the process ends; return the port."""
        try:
            server, _ = start_http_server(port, address, self.registry)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise HpoError(f"{address}:{port}: the port is in use; choose another with --metrics-port") from error
            raise HpoError(f"{address}:{port}: cannot listen there ({error.strerror or error})") from error
        return int(server.server_port)


class _StorageSeconds(Collector):
    def __init__(self, storage: Storage) -> None:
        self._retry_policy = storage.retry_policy

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "hpo_storage_seconds", "Seconds in the storage's transactions.", value=self._retry_policy.total_s
        )
