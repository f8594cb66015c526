"""Event streams over HTTP (Server-Sent Events): jobs as they happen, for any number of readers.

::

    request ─► admitted ─► listens ─► replay of what was missed ─► live, until the job ends
                  │                                                  │
                  └► 429, 503: too many                              ├► end      the job ended
                                                                     ├► dropped  reads too slowly
                                                                     └► closed   the service stops

All streams of a process share one reader of Redis (`jobs.feed`); a stream costs a connection, a
task and a bounded queue.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

import anyio
import structlog
from anyio.to_thread import run_sync
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import jobs
from api import views
from api.caller import Caller
from api.metrics import Metrics
from api.problems import Problem, retry_after
from api.settings import KEEP_FREE_SECONDS, STREAM_KEY_SECONDS, STREAM_STALL_SECONDS
from jobs import EVENT_TYPES, Event, Feed, JobRecord, JobService, Settings, State, Subscription
from jobs.events import job_stream, tenant_stream
from jobs.feed import PAGE

RECONNECT_MS = 2000
"""How long a client is asked to wait before it comes back."""

SNAPSHOT, END, DROPPED = "job.snapshot", "end", "dropped"
STREAM_EVENTS: Mapping[str, str] = {
    SNAPSHOT: "First in a job's stream that replays nothing: the job as `GET /v1/jobs/{job_id}` "
    "shows it.",
    END: "Nothing follows; close the stream. `reason` is `job_ended` or `key_revoked`.",
    DROPPED: "The reader was too slow and is cut off; come back with `Last-Event-ID`.",
}
"""Events of the streams themselves, besides those of jobs. They have no id."""

_HEARTBEAT = b": still here\n\n"
_CLOSED = b": the service stops\n\n"
_HISTORY_PAUSE_SECONDS = 0.5
_SPARE_FILES = 1024

log = structlog.get_logger("api")


class Outgoing(NamedTuple):
    """An event as it is sent to everybody who listens."""

    type: str
    wire: bytes


def outgoing(event: Event) -> Outgoing:
    """Return an event as it is sent."""
    data = views.event_view(event).model_dump_json()
    return Outgoing(event.type, format_sse_event(data_str=data, event=event.type, id=event.id))


def _own(name: str, data: Mapping[str, Any]) -> bytes:
    return format_sse_event(data_str=json.dumps(data), event=name)


@dataclass(eq=False)
class _Open:
    """An open stream: who reads it."""

    tenant: str
    key_id: str
    subscription: Subscription[Outgoing] | None = None


@dataclass(frozen=True)
class _Start:
    """Where a stream begins.

    Attributes:
        after: id that is read on from, or None to begin now.
        page: what is known to come first after it.
        first: sent before everything else.
        job: the job that is followed, or None for all of a tenant.
        types: of the events that are sent; None for all.
    """

    after: str | None
    page: list[Event]
    first: bytes
    job: JobRecord | None
    types: Collection[str] | None


class EventStream(EventSourceResponse):
    """A response that lasts. A reader that takes nothing for too long is cut off.

    Args:
        chunks: what is sent.
        done: called once it is over, however it ends.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None], done: Callable[[str], None]) -> None:
        # Proxies must not wait until there is more of it.
        super().__init__(chunks, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._chunks = chunks
        self._done = done
        self._outcome = "client_left"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._chunks.aclose()
            self._done(self._outcome)

    async def stream_response(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        async for chunk in self._chunks:
            with anyio.move_on_after(STREAM_STALL_SECONDS) as patience:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            if patience.cancelled_caught:
                # An unfinished answer is the one way to have the server close the connection.
                log.warning("stream cut off", reason="nothing is read from it")
                self._outcome = "stalled"
                return
        self._outcome = "ended"
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Streams:
    """All event streams of a process.

    Args:
        settings: limits and intervals.
        service: jobs and keys.
        metrics: where streams are counted.
    """

    def __init__(self, settings: Settings, service: JobService, metrics: Metrics) -> None:
        assert settings.redis_url is not None  # the service would not have been opened
        self._settings = settings
        self._service = service
        self._metrics = metrics
        self._feed: Feed[Outgoing] = Feed(
            settings.redis_url,
            outgoing,
            queue_length=settings.stream_queue,
            timeout_seconds=settings.redis_timeout_seconds,
        )
        self._open: set[_Open] = set()
        self._closed = False
        self._key_checks: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to read events."""
        _allow_files(self._settings.streams)
        self._feed.start()
        self._key_checks = asyncio.create_task(self._check_keys())

    async def close(self) -> None:
        """End all streams and stop reading."""
        self.end_all()
        if self._key_checks is not None:
            self._key_checks.cancel()
            with suppress(asyncio.CancelledError):
                await self._key_checks
        await self._feed.close()

    def end_all(self) -> None:
        """End all streams at once, and let none begin: the service stops."""
        self._closed = True
        for each in list(self._open):
            if each.subscription is not None:
                each.subscription.end("shutdown")

    # Beginning

    async def follow_job(
        self, caller: Caller, job_id: str, *, after: str | None, types: Collection[str] | None
    ) -> Response:
        """Return the stream of a job, or 204 where nothing follows ``after`` any more.

        Raises:
            Problem: ``too_many_streams`` or ``streams_full``.
            NotFound: the caller has no such job.
            StoreUnavailable.
        """
        database, store = self._service.database, self._service.store
        opened = self._admit(caller)
        try:
            subscription = await self._feed.subscribe(job_stream(database, job_id))
            opened.subscription = subscription
            # Read after the listening began: what happens from here on comes by the stream.
            job = await run_sync(self._service.get, caller.sees, job_id)
            page: list[Event] = []
            if after is not None:
                page = await self._feed.history(subscription.stream, after)
                if not page and job.state.terminal:
                    self._close(opened, "nothing_new")
                    return Response(status_code=204)
            first = b""
            if not page:
                position = None
                if job.state is State.QUEUED:
                    position = await run_sync(store.position, job_id)
                view = views.job_view(job, self._settings, position)
                first = format_sse_event(data_str=view.model_dump_json(), event=SNAPSHOT)
        except BaseException:
            self._close(opened, "refused")
            raise
        return self._response(opened, subscription, _Start(after, page, first, job, types))

    async def follow_tenant(
        self, caller: Caller, tenant: str, *, after: str | None, types: Collection[str] | None
    ) -> Response:
        """Return the stream of a tenant's jobs; without ``after`` it begins now.

        Raises:
            Problem: ``too_many_streams`` or ``streams_full``.
            StoreUnavailable.
        """
        opened = self._admit(caller)
        try:
            stream = tenant_stream(self._service.database, tenant)
            subscription = await self._feed.subscribe(stream, types)
            opened.subscription = subscription
            page = [] if after is None else await self._feed.history(stream, after)
        except BaseException:
            self._close(opened, "refused")
            raise
        return self._response(opened, subscription, _Start(after, page, b"", None, types))

    def _admit(self, caller: Caller) -> _Open:
        settings = self._settings
        if self._closed or (settings.streams and len(self._open) >= settings.streams):
            what = "the service stops" if self._closed else f"{settings.streams} streams are open"
            raise Problem("streams_full", what, headers=retry_after(KEEP_FREE_SECONDS))
        limit = settings.streams_per_tenant
        if limit and sum(each.tenant == caller.tenant for each in self._open) >= limit:
            raise Problem(
                "too_many_streams",
                f"{limit} streams of yours are open",
                headers=retry_after(KEEP_FREE_SECONDS),
                limit=limit,
            )
        opened = _Open(caller.tenant, caller.key.id)
        self._open.add(opened)
        self._metrics.streams.set(len(self._open))
        return opened

    def _close(self, opened: _Open, outcome: str) -> None:
        self._open.discard(opened)
        if opened.subscription is not None:
            self._feed.unsubscribe(opened.subscription)
        self._metrics.streams.set(len(self._open))
        self._metrics.streams_ended.labels(outcome).inc()

    def _response(
        self, opened: _Open, subscription: Subscription[Outgoing], start: _Start
    ) -> EventStream:
        if self._closed:
            subscription.end("shutdown")

        def done(outcome: str) -> None:
            if subscription.overflown and outcome == "ended":
                outcome = "dropped"
            self._close(opened, subscription.ended or outcome)

        return EventStream(self._chunks(subscription, start), done)

    # Sending

    async def _chunks(
        self, subscription: Subscription[Outgoing], start: _Start
    ) -> AsyncGenerator[bytes, None]:
        # An id without data makes a client come back to this place, and shows it nothing.
        begin = format_sse_event(id=start.after or subscription.latest, retry=RECONNECT_MS)
        yield begin + start.first
        page, last = start.page, None
        while page:
            last = page[-1]
            subscription.saw(last.id)
            wanted = [outgoing(event).wire for event in page if self._sends(start, event.type)]
            if wanted:
                yield b"".join(wanted)
            page = [] if len(page) < PAGE else await self._history(subscription, last.id)
        if start.job is not None and _is_over(start.job, last):
            yield _own(END, {"reason": "job_ended"})
            return
        async for chunk in self._live(subscription, start):
            yield chunk

    async def _live(
        self, subscription: Subscription[Outgoing], start: _Start
    ) -> AsyncGenerator[bytes, None]:
        every = self._settings.stream_heartbeat_seconds
        quiet_until = time.monotonic() + every
        while True:
            items = await subscription.take(max(0.0, quiet_until - time.monotonic()))
            wires = [item.wire for item in items if self._sends(start, item.type)]
            over = start.job is not None and any(EVENT_TYPES[item.type].ends for item in items)
            self._metrics.stream_events.inc(len(wires))
            closing = b""
            if over:
                closing = _own(END, {"reason": "job_ended"})
            elif subscription.overflown:
                closing = _own(DROPPED, {"reason": "too_slow"})
            elif subscription.ended == "key_revoked":
                closing = _own(END, {"reason": "key_revoked"})
            elif subscription.ended is not None:
                closing = _CLOSED
            if not wires and not closing and time.monotonic() >= quiet_until:
                wires = [_HEARTBEAT]
            if wires or closing:
                quiet_until = time.monotonic() + every
                yield b"".join(wires) + closing
            if closing:
                return

    @staticmethod
    def _sends(start: _Start, event_type: str) -> bool:
        return start.types is None or event_type in start.types

    async def _history(self, subscription: Subscription[Outgoing], after: str) -> list[Event]:
        """Return what follows, also if Redis is away for a moment."""
        while subscription.ended is None and not subscription.overflown:
            try:
                return await self._feed.history(subscription.stream, after)
            except jobs.StoreUnavailable:
                await asyncio.sleep(_HISTORY_PAUSE_SECONDS)
        return []

    # Ending

    async def _check_keys(self) -> None:
        """End the streams of keys that are revoked or expired."""
        while True:
            await asyncio.sleep(STREAM_KEY_SECONDS)
            asked = {each.key_id for each in self._open}
            if not asked:
                continue
            try:
                good = await run_sync(self._service.keys.in_force, asked)
            except jobs.Unavailable:
                continue  # nothing is known to be wrong with them
            for each in list(self._open):
                bad = each.key_id in asked and each.key_id not in good
                if bad and each.subscription is not None:
                    each.subscription.end("key_revoked")


def _is_over(job: JobRecord, last: Event | None) -> bool:
    """Whether a job had ended when its last event was read; the newer of the two knows."""
    if last is None or last.version < job.version:
        return job.state.terminal
    return EVENT_TYPES[last.type].ends or last.state.terminal


def _allow_files(streams: int) -> None:
    """Let the process have a file for every stream, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = streams + _SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        log.warning("fewer files may be open than streams are allowed", files=most)


@asynccontextmanager
async def open_streams(
    settings: Settings, service: JobService, metrics: Metrics
) -> AsyncIterator[Streams]:
    """Yield the streams of this process, which end when the server is told to stop."""
    streams = Streams(settings, service, metrics)
    streams.start()
    try:
        with _ended_by_signals(streams):
            yield streams
    finally:
        await streams.close()


@contextmanager
def _ended_by_signals(streams: Streams) -> Iterator[None]:
    """End the streams on the signals that stop the server.

    A server that stops waits for its answers to end before it tells the app anything; streams would
    keep it waiting for ever. The server's own handlers are called too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals do not come here
        return
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Any] = {}

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(streams.end_all)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for each in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(each)
        if callable(handler):  # the default one ends the process at once
            before[each] = handler
            signal.signal(each, on_signal)
    try:
        yield
    finally:
        for each, handler in before.items():
            if signal.getsignal(each) is on_signal:
                signal.signal(each, handler)
