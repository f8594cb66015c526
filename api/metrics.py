"""What is counted, in the text format of Prometheus."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

import jobs
from jobs import JobService

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_HISTOGRAM_PART = re.compile(r"(.+)_(bucket|sum|count)")


class Metrics:
    """Counters of the API process; every app has its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "nif_http_requests",
            "Requests answered.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "nif_http_request_seconds",
            "Seconds from a request's first byte to its answer's last.",
            ("route", "method"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "nif_http_requests_in_flight", "Requests being answered.", registry=self.registry
        )
        self.uploaded = Counter(
            "nif_uploaded_bytes", "Bytes of pictures accepted.", registry=self.registry
        )
        self.problems = Counter(
            "nif_problems", "Problems answered, by code.", ("code",), registry=self.registry
        )
        self.decodes = Counter(
            "nif_decodes",
            "Pictures rendered or taken from the cache.",
            ("source",),
            registry=self.registry,
        )

        self.streams = Gauge("nif_streams", "Event streams open.", registry=self.registry)
        self.streams_ended = Counter(
            "nif_streams_ended",
            "Event streams that are over, by what ended them.",
            ("reason",),
            registry=self.registry,
        )
        self.stream_events = Counter(
            "nif_stream_events", "Events sent live, each reader counted.", registry=self.registry
        )

    def text(self, service: JobService) -> str:
        """Return all metrics; those of the store are left out while it does not answer."""
        own = generate_latest(self.registry).decode()
        return own + "\n".join((*_of_service(service), ""))


_STORE_UP = (
    "# HELP nif_store_up 1 while the store answers; 0: what it counts is left out.",
    "# TYPE nif_store_up gauge",
)


def _of_service(service: JobService) -> Iterator[str]:
    try:
        counters = service.counters()
        counts = service.store.counts()
        queues = service.queues.all()
        workers = service.workers.list()
        backlog = service.deliveries.backlog()
        endpoints = service.endpoints.counts()
    except jobs.Unavailable:
        yield from (*_STORE_UP, "nif_store_up 0")
        return
    yield from (*_STORE_UP, "nif_store_up 1")
    yield "# HELP nif_jobs Jobs by state."
    yield "# TYPE nif_jobs gauge"
    for state, count in counts.items():
        yield f'nif_jobs{{state="{state}"}} {count}'
    for name, meaning, values in (
        ("depth", "Jobs waiting.", {each.name: each.depth for each in queues}),
        ("running", "Jobs running.", {each.name: each.running for each in queues}),
        (
            "oldest_age_seconds",
            "Age of the job that waits longest.",
            {each.name: each.oldest_age_seconds or 0 for each in queues},
        ),
        ("paused", "1 while paused.", {each.name: int(each.paused) for each in queues}),
    ):
        yield f"# HELP nif_queue_{name} {meaning}"
        yield f"# TYPE nif_queue_{name} gauge"
        for queue, value in values.items():
            yield f'nif_queue_{name}{{queue="{queue}"}} {value}'
    yield "# HELP nif_workers Workers heard of."
    yield "# TYPE nif_workers gauge"
    alive = sum(each.alive for each in workers)
    yield f'nif_workers{{alive="true"}} {alive}'
    yield f'nif_workers{{alive="false"}} {len(workers) - alive}'
    for name, meaning, value in (
        ("pending", "Webhook deliveries that wait or are being sent.", backlog.pending),
        (
            "oldest_pending_seconds",
            "Age of the webhook delivery that waits longest.",
            backlog.oldest_age_seconds or 0,
        ),
        ("untold", "Messages not yet turned into webhook deliveries.", backlog.untold),
    ):
        yield f"# HELP nif_webhook_{name} {meaning}"
        yield f"# TYPE nif_webhook_{name} gauge"
        yield f"nif_webhook_{name} {value}"
    yield "# HELP nif_webhook_endpoints Webhook endpoints by state."
    yield "# TYPE nif_webhook_endpoints gauge"
    yield f'nif_webhook_endpoints{{state="enabled"}} {endpoints.enabled}'
    yield f'nif_webhook_endpoints{{state="disabled"}} {endpoints.disabled}'
    yield from _counters(counters)


def _counters(counters: Mapping[str, float]) -> Iterator[str]:
    """Yield the counters of the store, those of one name together as the format wants it.

    What was never counted yet is announced all the same.
    """
    buckets = {each.name for each in jobs.HISTOGRAMS}
    families: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for sample, value in counters.items():
        name = sample.partition("{")[0]
        part = _HISTOGRAM_PART.fullmatch(name)
        families[part[1] if part and part[1] in buckets else name].append((sample, value))
    meanings = {each.name: each.help for each in jobs.COUNTERS}
    meanings |= {each.name: each.help for each in jobs.HISTOGRAMS}
    for name in sorted({*meanings, *families}):
        if name in meanings:
            yield f"# HELP nif_{name} {meanings[name]}"
        yield f"# TYPE nif_{name} {'histogram' if name in buckets else 'counter'}"
        for sample, value in families[name]:
            yield f"nif_{sample} {value:.17g}"
