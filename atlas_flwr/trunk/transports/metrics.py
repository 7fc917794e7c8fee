# SPDX-License-Identifier: Apache-2.0
"""A trunk's health and numbers over HTTP, as Prometheus reads them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from atlas_flwr.errors import AtlasError, TrunkError, WireError
from atlas_flwr.trunk.engine.stats import TrunkStats
from atlas_flwr.trunk.transports.grpc_channel import is_loopback
from atlas_flwr.trunk.transports.watching import Call

__all__ = ["TrunkMetrics", "serve_metrics"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
UP = "Whether the trunk gives an account: the next numbers are left out where not"
# Read from the engine's account when asked for, so that calls do not pay for it.
GAUGES = {
    "sessions": ("sessions", "Sessions that are open"),
    "sessions_in_host": ("sessions_in_host", "Idle sessions moved off the GPU"),
    "waiting": ("queue_calls", "Calls that wait for their turn"),
    "passes": ("open_passes", "Forward passes that wait for their backward"),
    "kept_bytes": ("kept_bytes", "Activations kept for a backward"),
    "caches": ("caches", "Generations whose keys and values are kept"),
    "cache_bytes": ("cache_bytes", "Their bytes"),
    "peak_bytes": ("peak_bytes", "Largest resident memory so far"),
    "device_peak_bytes": ("device_peak_bytes", "Largest memory on the GPU so far"),
}
COUNTERS = {
    "steps": ("steps", "Training steps done"),
    "busy_seconds": ("busy_seconds", "Spent in passes, summed over threads"),
    "base_passes": ("base_passes", "Passes over the base"),
    "joined_calls": ("joined_calls", "Calls that shared a pass"),
    "unjoined_calls": ("unjoined_calls", "Calls that ran alone while others waited"),
    "evicted_sessions": ("evicted_sessions", "Sessions forgotten, being idle"),
    "evicted_caches": ("evicted_caches", "Generations forgotten for want of room"),
}


class TrunkMetrics(Collector):
    """Counts calls, and reads the rest when it is asked.

    Parameters
    ----------
    stats : Callable[[], TrunkStats]
        The engine's account.
    lost : Callable[[AtlasError], None]
        Called when there is none to be had, once until there is one again.
    """

    def __init__(
        self,
        stats: Callable[[], TrunkStats],
        lost: Callable[[AtlasError], None] = lambda error: None,
    ) -> None:
        self.stats, self.lost = stats, lost
        self._is_up = True
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        self._seconds = Histogram(
            "atlas_trunk_call_seconds",
            "From a call's arrival to its answer, waiting included",
            ["verb"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._bytes = Counter(
            "atlas_trunk_bytes",
            "Of frames: forward carries activations, backward gradients",
            ["verb", "direction"],
            registry=self.registry,
        )
        self._refused = Counter(
            "atlas_trunk_refused_calls",
            "Calls answered by an error, by its kind",
            ["verb", "error"],
            registry=self.registry,
        )

    def heard(self, call: Call) -> None:
        """Count a call."""
        if call.error:
            self._refused.labels(call.verb, call.error).inc()
        else:
            self._seconds.labels(call.verb).observe(call.seconds)
        self._bytes.labels(call.verb, "in").inc(call.received)
        self._bytes.labels(call.verb, "out").inc(call.sent)

    def collect(self) -> Iterator[Metric]:
        """Read the engine's account; of a trunk that does not answer there is none."""
        stats = self._account()
        yield GaugeMetricFamily("atlas_trunk_up", UP, float(stats is not None))
        if stats is None:
            return
        for key, (name, about) in GAUGES.items():
            yield GaugeMetricFamily(f"atlas_trunk_{name}", about, getattr(stats, key))
        for key, (name, about) in COUNTERS.items():
            yield CounterMetricFamily(f"atlas_trunk_{name}", about, getattr(stats, key))

    def is_up(self) -> bool:
        """Whether the engine gives an account now."""
        return self._account() is not None

    def _account(self) -> TrunkStats | None:
        try:
            stats = self.stats()
        except (TrunkError, WireError) as error:
            was_up, self._is_up = self._is_up, False
            if was_up:
                self.lost(error)
            return None
        self._is_up = True
        return stats

    def text(self) -> bytes:
        """Write all of it for Prometheus."""
        return generate_latest(self.registry)


@contextmanager
def serve_metrics(
    listen: str, metrics: TrunkMetrics, ready: Callable[[], bool]
) -> Iterator[str]:
    """Answer ``/metrics``, ``/healthz`` and ``/readyz``, without TLS or a password.

    Parameters
    ----------
    listen : str
        ``HOST:PORT``, or ``PORT`` on loopback.
    metrics : TrunkMetrics
        What to show.
    ready : Callable[[], bool]
        Whether new calls are taken.

    Yields
    ------
    str
        Where it is.

    Raises
    ------
    TrunkError
        If it cannot listen there.
    """
    host, _, port = listen.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdecimal():
        raise TrunkError(f"metrics at {listen!r}; write PORT or HOST:PORT")

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._say(200, metrics.text(), CONTENT_TYPE_LATEST)
            elif self.path == "/healthz":
                self._say(200, b"alive\n")
            elif self.path == "/readyz":
                well = ready()
                self._say(200 if well else 503, b"ready\n" if well else b"not ready\n")
            else:
                self._say(404, b"there are /metrics, /healthz, /readyz\n")

        def _say(self, status: int, body: bytes, kind: str = "text/plain") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing of each question."""

    try:
        server = _Server((host, int(port)), Answers)
    except (OSError, OverflowError) as error:
        raise TrunkError(
            f"cannot show the trunk's metrics at {listen}: {error}. Give another port "
            "to trunk-metrics, or to --metrics"
        ) from None
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    open_to_all = "" if is_loopback(host) else " (to other machines, too, in the clear)"
    try:
        yield f"http://{host}:{server.server_port}{open_to_all}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
