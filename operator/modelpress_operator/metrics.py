"""Prometheus metrics of the operator. No object's name is ever a label."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LONG = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0, 86400.0)


class Metrics:
    """One registry for one operator process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.reconciles = self._counter("reconcile", "Reconciliations by how they ended.", "controller", "result")
        self.reconcile_seconds = self._histogram(
            "reconcile_duration_seconds", "Deciding and carrying out, per object.", FAST, "controller"
        )
        self.queue_seconds = self._histogram("workqueue_wait_seconds", "How long an object waited for a worker.", FAST)
        self.queue_depth = self._gauge("workqueue_depth", "Objects that wait for a worker.")
        self.api_requests = self._counter(
            "api_requests",
            "Requests to the API server; code is 'error' where none came back.",
            "verb",
            "resource",
            "code",
        )
        self.api_seconds = self._histogram("api_request_duration_seconds", "Until the answer was read.", FAST, "verb")
        self.watch_activity = self._gauge(
            "watch_last_activity_timestamp_seconds",
            "When something was last heard from a watch, bookmarks too.",
            "resource",
        )
        self.leader = self._gauge("leader", "1 on the replica that holds the Lease.")
        self.trials = self._counter("trials", "Trials of sweeps that finished, by phase.", "result")
        self.trial_seconds = self._histogram(
            "trial_duration_seconds", "From a trial's first start to its end.", LONG, "result"
        )
        self.job_seconds = self._histogram(
            "job_duration_seconds", "From a standalone job's first start to its end.", LONG, "result"
        )
        self.attempts = self._counter("attempts", "Child Jobs created, by what for.", "purpose")
        self.progress = self._counter(
            "progress_requests", "Reports of running trials, by how they were answered.", "code"
        )
        self.events_lost = self._counter("events_lost", "Events that could not be written.")

    def watch_phases(self, count: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Export how many objects of each kind are in each phase, counted when asked for."""
        self.registry.register(_Phases(count))

    def text(self) -> bytes:
        """All metrics in the exposition format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"modelpress_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"modelpress_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"modelpress_{name}", text, labels, buckets=buckets, registry=self.registry)


class _Phases(Collector):
    def __init__(self, count: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        self._count = count

    def collect(self) -> Iterable[Metric]:
        counts: Tally[tuple[str, str]] = Tally(self._count())
        for name, kind in (("modelpress_jobs", "CompressionJob"), ("modelpress_sweeps", "CompressionSweep")):
            family = GaugeMetricFamily(name, f"{kind}s by phase.", labels=["phase"])
            for (of, phase), number in sorted(counts.items()):
                if of == kind:
                    family.add_metric([phase], number)
            yield family
