"""Sends webhooks: from the outbox to deliveries, from due deliveries to receivers.

::

    outbox ── fan out ──> deliveries that are due ── claim ──> sign, post ──> settle
                                   ^                                            │
                                   └───────────── a wait of the schedule ───────┘

Any number of senders may run. What one holds when it dies is due again when its claim runs out, and
goes out under the same id: a receiver may get a message twice, never not at all.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import httpcore2
from standardwebhooks import Webhook

from jobs import logs
from jobs.deliveries import Deliveries, DeliveryAttempt, DeliveryClaim, Trouble, Verdict
from jobs.errors import BlobsUnavailable, Invalid, Unavailable
from jobs.service import JobService
from jobs.settings import Settings
from jobs.signing import SigningSecret
from jobs.webhook_events import PROGRESS
from jobs.webhook_urls import check_webhook_url, host_of, may_reach
from nifcore import __version__
from worker.webhook_transport import (
    AddressRefused,
    Lookup,
    NameUnknown,
    Resolver,
    WebhookTransport,
    resolve,
)

log = logs.get_logger(__name__)

Answered = TypeVar("Answered")

JITTER = 0.2
"""A wait is lengthened or shortened by up to this share of it."""
PROGRESS_ATTEMPTS = 3
"""Attempts to tell progress; later it is worth nothing."""
_MOST_RETRY_AFTER_SECONDS = 3600.0
_CLAIM_MARGIN_SECONDS = 15.0
_THREADS = 8
_POLL_SECONDS = 0.25
_BLOCK_MS = 500
_STOP_SECONDS = 5.0
_PAUSE_SECONDS = 1.0
_PUT_OFF_SECONDS = 5.0


def signature(secrets: tuple[SigningSecret, ...], message_id: str, at: datetime, body: str) -> str:
    """Return the signatures of a message, one per secret, with spaces between."""
    return " ".join(Webhook(each.secret).sign(message_id, at, body) for each in secrets)


def wait_before_next(
    waits: tuple[float, ...], tries: int, *, uniform: Callable[[float, float], float]
) -> float | None:
    """Return the seconds until the next attempt, None if there is to be none.

    Args:
        waits: the schedule.
        tries: attempts so far.
        uniform: returns a random number of a range.
    """
    if tries > len(waits):
        return None
    return waits[tries - 1] * uniform(1 - JITTER, 1 + JITTER)


class Sender:
    """Sends webhooks until it is told to stop.

    Args:
        service: where deliveries are.
        settings: schedule, limits, and what may be reached.
        resolver: how names become addresses; it may block.
        tls: how certificates are checked.
    """

    def __init__(
        self,
        service: JobService,
        settings: Settings,
        *,
        resolver: Resolver = resolve,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._service = service
        self._settings = settings
        self._deliveries: Deliveries = service.deliveries
        self._resolver = resolver
        self._tls = tls
        self._random = random.SystemRandom()
        self._threads: ThreadPoolExecutor | None = None

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set; what is being sent then may still end."""
        # One thread for each delivery that is sent at a time, and nobody else's: see `_deliver`.
        lookups = ThreadPoolExecutor(self._settings.webhook_concurrency, "lookup")
        try:
            with ThreadPoolExecutor(_THREADS, "webhooks") as self._threads:
                asyncio.run(self._run(stop, lookups))
        finally:
            lookups.shutdown(wait=False, cancel_futures=True)

    async def _run(self, stop: threading.Event, lookups: Executor) -> None:
        transport = WebhookTransport(
            lambda address: may_reach(address, self._settings),
            self._resolver,
            lookups,
            tls=self._tls,
        )
        news = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fan_out(stop, news))
            group.create_task(self._send(stop, news, transport))

    async def _call(self, function: Callable[..., Answered], *args: Any, **more: Any) -> Answered:
        """Run what blocks on a thread of our own, which no receiver can hold up."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *args, **more))

    async def _fan_out(self, stop: threading.Event, news: asyncio.Event) -> None:
        clock = asyncio.get_running_loop().time
        troubled: set[str] = set()
        put_off: dict[str, float] = {}  # message -> when to try again
        while not stop.is_set():
            try:
                messages = await self._call(
                    self._service.outbox.read,
                    limit=100 + len(troubled) + len(put_off),
                    block_ms=_BLOCK_MS,
                )
                put_off = {each.id: put_off[each.id] for each in messages if each.id in put_off}
                fresh = [
                    each
                    for each in messages
                    if each.id not in troubled and put_off.get(each.id, 0.0) <= clock()
                ]
                for message in fresh:
                    try:
                        made = await self._call(self._service.fanout.take_on, message)
                    except BlobsUnavailable as error:
                        # It needs its tenant's first secret, which cannot be kept now. All the
                        # others need no storage.
                        log.warning("webhook message put off", reason=str(error))
                        put_off[message.id] = clock() + _PUT_OFF_SECONDS
                        continue
                    except Unavailable:
                        raise
                    except Exception:
                        # One that cannot be told must not keep back those after it. It stays for
                        # whoever mends it: after a restart it is tried again.
                        log.exception("webhook message put aside", job=message.event.job_id)
                        troubled.add(message.id)
                        continue
                    if made:
                        news.set()
                if messages and not fresh:
                    await asyncio.sleep(_PAUSE_SECONDS)
            except Unavailable as error:
                log.warning("webhook messages put off", reason=str(error))
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _send(
        self, stop: threading.Event, news: asyncio.Event, transport: WebhookTransport
    ) -> None:
        settings = self._settings
        hosts: Counter[str] = Counter()
        tenants: Counter[str] = Counter()
        tasks: set[asyncio.Task[None]] = set()

        def end(claim: DeliveryClaim, task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            hosts[claim.host] -= 1
            tenants[claim.delivery.tenant] -= 1
            news.set()

        while not stop.is_set():
            claims: list[DeliveryClaim] = []
            free = settings.webhook_concurrency - len(tasks)
            news.clear()
            try:
                if free:
                    claims = await self._call(
                        self._deliveries.claim,
                        limit=free,
                        per_host=settings.webhook_concurrency_per_host,
                        per_tenant=settings.webhook_concurrency_per_tenant,
                        claim_seconds=settings.webhook_timeout_seconds + _CLAIM_MARGIN_SECONDS,
                        busy_hosts=+hosts,
                        busy_tenants=+tenants,
                    )
            except Unavailable as error:
                log.warning("webhook deliveries put off", reason=str(error))
                await asyncio.sleep(_PAUSE_SECONDS)
            for claim in claims:
                hosts[claim.host] += 1
                tenants[claim.delivery.tenant] += 1
                task = asyncio.create_task(self._deliver(claim, transport))
                tasks.add(task)
                task.add_done_callback(partial(end, claim))
            if not claims:
                try:
                    async with asyncio.timeout(_POLL_SECONDS):
                        await news.wait()
                except TimeoutError:
                    continue
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_STOP_SECONDS)
            # They go out again, under the same id, when their claim has run out.
            for task in late:
                task.cancel()

    async def _deliver(self, claim: DeliveryClaim, transport: WebhookTransport) -> None:
        lookup = transport.lookup()
        try:
            await self._attempt(claim, transport, lookup)
        except Unavailable as error:
            log.warning("attempt not noted", delivery=claim.delivery.id, reason=str(error))
        except asyncio.CancelledError:
            lookup.abandon()
            raise
        except Exception:
            log.exception("delivery failed", delivery=claim.delivery.id)
        # A name server that does not answer holds a thread for longer than the attempt lasts. Until
        # it lets go this counts as being sent, against the limits of host and tenant: so there is a
        # thread for whatever is sent, and no attempt's time is spent on waiting for one.
        await lookup.ended()

    async def _attempt(
        self, claim: DeliveryClaim, transport: WebhookTransport, lookup: Lookup
    ) -> None:
        clock = asyncio.get_running_loop().time
        at, started = datetime.now(UTC), clock()
        status, retry_after, trouble = await self._post(claim, at, transport, lookup)
        attempt = DeliveryAttempt(at, status, trouble, round((clock() - started) * 1000))
        verdict, wait = self._verdict(claim, trouble, retry_after)
        settled = await self._call(
            self._deliveries.settle,
            claim,
            attempt,
            verdict,
            wait_seconds=wait,
            host=host_of(claim.url),
        )
        delivery = claim.delivery
        bound = log.bind(
            delivery=delivery.id,
            tenant=delivery.tenant,
            webhook=delivery.endpoint_id,
            job=delivery.job_id,
            type=delivery.type,
        )
        bound.info(
            "webhook attempt",
            attempt=delivery.attempts + 1,
            status=status,
            trouble=trouble,
            milliseconds=attempt.milliseconds,
            state=settled.state if settled else "no longer ours",
        )
        if settled is not None and settled.disabled is not None:
            bound.warning("webhook endpoint disabled", reason=settled.disabled)

    async def _post(
        self, claim: DeliveryClaim, at: datetime, transport: WebhookTransport, lookup: Lookup
    ) -> tuple[int | None, float, Trouble | None]:
        """Return the answer's status, the wait that it asks for in seconds, and what went wrong."""
        delivery, body = claim.delivery, claim.delivery.body
        try:
            check_webhook_url(claim.url, self._settings)
        except Invalid:
            return None, 0.0, Trouble.URL_REFUSED
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"nif-webhooks/{__version__}",
            "Webhook-Id": delivery.id,
            "Webhook-Timestamp": str(int(at.timestamp())),
            "Webhook-Signature": signature(claim.secrets, delivery.id, at, body),
        }
        try:
            async with asyncio.timeout(self._settings.webhook_timeout_seconds):
                answer = await transport.post(claim.url, headers, body.encode(), lookup)
        except Exception as error:
            return None, 0.0, trouble_of(error)
        trouble = trouble_with(answer.status)
        wait = (answer.retry_after or "").strip()
        asked = float(wait) if wait.isdecimal() and len(wait) < 10 and wait.isascii() else 0.0
        return answer.status, min(asked, _MOST_RETRY_AFTER_SECONDS) if trouble else 0.0, trouble

    def _verdict(
        self, claim: DeliveryClaim, trouble: Trouble | None, retry_after: float
    ) -> tuple[Verdict, float]:
        if trouble is None:
            return Verdict.DELIVERED, 0.0
        if trouble is Trouble.GONE:
            return Verdict.GONE, 0.0
        waits = self._settings.webhook_waits
        if claim.delivery.type == PROGRESS:
            waits = waits[: PROGRESS_ATTEMPTS - 1]
        wait = wait_before_next(waits, claim.tries + 1, uniform=self._random.uniform)
        if wait is None:
            return Verdict.FAILED, 0.0
        return Verdict.RETRY, max(wait, retry_after)


def trouble_with(status: int) -> Trouble | None:
    """Return what a status of an answer says is wrong, None for 2xx."""
    if 200 <= status < 300:
        return None
    if status == 410:
        return Trouble.GONE
    return Trouble.REDIRECT if 300 <= status < 400 else Trouble.STATUS


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def trouble_of(error: Exception) -> Trouble:
    """Return what kept an answer from coming."""
    if isinstance(error, NameUnknown):
        return Trouble.DNS
    if isinstance(error, AddressRefused):
        return Trouble.ADDRESS_REFUSED
    if isinstance(error, (TimeoutError, httpcore2.TimeoutException)):
        return Trouble.TIMEOUT
    if any(isinstance(each, ssl.SSLError) for each in _causes(error)):
        return Trouble.TLS
    if isinstance(error, (httpcore2.NetworkError, OSError)):
        return Trouble.CONNECT
    if isinstance(error, httpcore2.RemoteProtocolError):
        # A connection that ends without an answer counts as broken, not as bad HTTP.
        broken = "without sending a response" in str(error)
        return Trouble.CONNECT if broken else Trouble.PROTOCOL
    log.error("webhook not sent", exc_info=error)
    return Trouble.UNEXPECTED
