"""A server's metrics for Prometheus. Knows nothing of requests."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("bigr_requests_total", "Requests answered.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "bigr_request_seconds", "Time to answer.", ["path"], buckets=_SECONDS, registry=self.registry
        )
        self.batches = Histogram(
            "bigr_batch_pictures", "Pictures per batch of the network.", buckets=_SIZES, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "bigr_batch_seconds", "Time of the network for a batch.", buckets=_SECONDS, registry=self.registry
        )
        self.pictures = Counter("bigr_pictures_total", "Pictures encoded.", registry=self.registry)
        self.unreadable = Counter("bigr_unreadable_total", "Pictures refused.", ["kind"], registry=self.registry)
        self.reloads = Counter("bigr_index_reloads_total", "Index opened again.", ["outcome"], registry=self.registry)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A metric that is read on request."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def observe_batch(self, size: int, seconds: float) -> None:
        """Count a batch of the network."""
        self.batches.observe(size)
        self.batch_seconds.observe(seconds)
        self.pictures.inc(size)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)
