"""What a worker tells Prometheus: counts of its own work since it started, at http://ADDRESS:PORT/metrics.

    hpo_trials_total{study,state}     trials that ended here: complete, pruned, failed
    hpo_epochs_total{study}           epochs of populations
    hpo_images_total{study}           training images, each counted once for every member: its rate is images a second
    hpo_population_size               members in training now
    hpo_storage_seconds_total         time spent in the storage's transactions, waiting for it included

Knows of the storage only how long it took.
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
    PopulationEnded,
    PopulationStarted,
    StudyStarted,
    TrialsFailed,
    TrialsLeftOut,
)
from hpo.storage import Storage


@dataclass
class Metrics:
    """Listens to a worker's events and counts."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self._trials = Counter("hpo_trials", "Trials that ended.", ["study", "state"], registry=self.registry)
        self._epochs = Counter("hpo_epochs", "Epochs of populations.", ["study"], registry=self.registry)
        self._images = Counter(
            "hpo_images", "Training images, once for every member.", ["study"], registry=self.registry
        )
        self._size = Gauge("hpo_population_size", "Members in training.", registry=self.registry)
        self._images_of: dict[str, int] = {}
        self._left = 0

    def __call__(self, study: str, event: Event) -> None:
        """Count an event of a study."""
        match event:
            case StudyStarted():
                self._images_of[study] = event.images
            case PopulationStarted():
                self._left = len(event.members)
                self._size.set(self._left)
            case EpochEnded():
                self._epochs.labels(study).inc()
                self._images.labels(study).inc(self._left * self._images_of[study])
                self._left = event.left
                self._size.set(self._left)
            case PopulationEnded():
                self._size.set(0)
                for state, count in zip(
                    ("complete", "pruned", "failed"), (event.completed, event.pruned, event.failed), strict=True
                ):
                    self._trials.labels(study, state).inc(count)
            case TrialsLeftOut():
                self._trials.labels(study, "pruned").inc(len(event.members))
            case TrialsFailed():
                self._trials.labels(study, "failed").inc(len(event.members))
            case _:
                pass

    def watch(self, storage: Storage) -> None:
        """Tell of a storage's seconds, too."""
        self.registry.register(_StorageSeconds(storage))

    def serve(self, address: str, port: int) -> int:
        """Answer at this address and port (0: any free one) until the process ends; return the port."""
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
            "hpo_storage_seconds", "Time in the storage's transactions.", value=self._retry_policy.total_s
        )
