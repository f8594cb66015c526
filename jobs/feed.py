"""Events as they happen: one reader of Redis for any number of listeners in a process.

::

    Redis streams ─► reader ─┬─► subscription ─► listener
     (XREAD BLOCK,           ├─► subscription ─► listener
      one connection)        └─► subscription ─► listener that is too slow: cut off, alone

Every listener has a bounded queue. The reader never waits for one: a queue that is full is emptied
and its listener told to come back with the last id it saw. Reading starts again at the last id of
each stream after Redis was away, so that nothing is left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from jobs.database import translated
from jobs.errors import StoreUnavailable
from jobs.events import BEGINNING, Event, event_from_fields, place_of

log = logging.getLogger(__name__)

PAGE = 500
"""Events read of a stream at once."""

_BLOCK_MS = 1000
_NUDGE_SECONDS = 0.02
_GATHER_SECONDS_PER_STREAM = 20e-6
_LONGEST_GATHER_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
_SIDE_CONNECTIONS = 4

T = TypeVar("T")


class Subscription(Generic[T]):
    """One listener's queue. Made by `Feed.subscribe`, given back by `Feed.unsubscribe`.

    Attributes:
        stream: key of the stream.
        latest: id of the last event when the listening began.
        overflown: the listener was too slow: its queue was emptied and gets nothing more.
        ended: why somebody else ended it, or None.
    """

    def __init__(self, stream: str, types: Collection[str] | None, most: int) -> None:
        self.stream = stream
        self.latest = BEGINNING
        self.overflown = False
        self.ended: str | None = None
        self._types = types
        self._most = most
        self._seen = (0, 0)
        self._items: deque[tuple[tuple[int, int], T]] = deque()
        self._news = asyncio.Event()

    def wants(self, event_type: str) -> bool:
        """Whether events of this type are asked for."""
        return self._types is None or event_type in self._types

    def saw(self, identifier: str) -> None:
        """Leave out what is not after this event: the listener has it already."""
        self._seen = max(self._seen, place_of(identifier))

    def offer(self, place: tuple[int, int], item: T) -> None:
        """Put an item into the queue, or give the listener up if it is full."""
        if self.overflown:
            return
        if len(self._items) >= self._most:
            self.overflown = True
            self._items.clear()
        else:
            self._items.append((place, item))
        self._news.set()

    def end(self, reason: str) -> None:
        """Have `take` return at once, now and from here on."""
        self.ended = self.ended or reason
        self._news.set()

    async def take(self, timeout_seconds: float) -> list[T]:
        """Return what waits, waiting for it at most so long; empty if nothing came."""
        if not self._items and not self.overflown and self.ended is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await self._news.wait()
        self._news.clear()
        found = [item for place, item in self._items if place > self._seen]
        self._items.clear()
        return found


class _Watched(Generic[T]):
    """A stream that somebody listens to: who, and how far it was read."""

    def __init__(self, cursor: str) -> None:
        self.cursor = cursor
        self.place = place_of(cursor)
        self.listeners: set[Subscription[T]] = set()


class Feed(Generic[T]):
    """Reads every stream that somebody listens to, over one connection.

    To be used from one event loop.

    Args:
        url: of Redis.
        encode: makes of an event what is put into queues; called once for all listeners of it.
        queue_length: most events that wait for one listener.
        timeout_seconds: how long Redis may take to answer.
    """

    def __init__(
        self,
        url: str,
        encode: Callable[[Event], T],
        *,
        queue_length: int,
        timeout_seconds: float,
    ) -> None:
        self._encode = encode
        self._queue_length = queue_length
        # Retries are the loop's business: it has to know that a connection is a new one.
        self._reader = _client(url, 1, timeout_seconds + _BLOCK_MS / 1000)
        self._side = _client(url, _SIDE_CONNECTIONS, timeout_seconds)
        self._watched: dict[str, _Watched[T]] = {}
        self._asked = self._taken = 0
        self._wanted = asyncio.Event()
        self._reader_id: int | None = None
        self._can_unblock = True
        self._closed = False
        self._nudging: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to read."""
        self._spawn(self._run())

    async def close(self) -> None:
        """Stop reading and close the connections."""
        # The flag, too: a cancellation that meets an answer of Redis is lost in its client.
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reader.aclose()
        await self._side.aclose()

    @property
    def streams(self) -> int:
        """How many streams are read."""
        return len(self._watched)

    async def subscribe(self, stream: str, types: Collection[str] | None = None) -> Subscription[T]:
        """Listen to a stream from now on.

        Args:
            stream: key of it.
            types: of the events that are wanted; None for all.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        subscription: Subscription[T] = Subscription(stream, types, self._queue_length)
        with translated():
            last: Any = await self._side.xrevrange(stream, count=1)
        subscription.latest = last[0][0] if last else BEGINNING
        watched = self._watched.get(stream)
        if watched is None:
            watched = self._watched[stream] = _Watched(subscription.latest)
            self._asked += 1
            self._wanted.set()
            if self._nudging is None or self._nudging.done():
                self._nudging = self._spawn(self._nudge())
        watched.listeners.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription[T]) -> None:
        """Listen no more; once more does no harm."""
        watched = self._watched.get(subscription.stream)
        if watched is not None:
            watched.listeners.discard(subscription)
            if not watched.listeners:
                del self._watched[subscription.stream]

    async def history(self, stream: str, after: str, *, limit: int = PAGE) -> list[Event]:
        """Return events of a stream that are kept, oldest first.

        Raises:
            Invalid: ``after`` is no event id.
            StoreUnavailable: Redis does not answer.
        """
        place_of(after)
        with translated():
            rows = _rows(await self._side.xread({stream: after}, count=limit))
        return [event_from_fields(*row) for row in rows.get(stream, [])]

    # The reader

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self) -> None:
        failures = 0
        while not self._closed:
            if not self._watched:
                self._wanted.clear()
                await self._wanted.wait()
            self._taken = self._asked
            cursors: Any = {key: each.cursor for key, each in self._watched.items()}
            if not cursors:
                continue
            try:
                with translated():
                    if self._reader_id is None:
                        await self._learn_id()
                    reply = await self._reader.xread(cursors, count=PAGE, block=_BLOCK_MS)
            except (StoreUnavailable, redis.RedisError, OSError) as error:
                self._reader_id = None
                failures += 1
                if failures == 1:
                    log.warning("events are not read, trying again: %s", error)
                await asyncio.sleep(min(_LONGEST_PAUSE_SECONDS, 0.05 * 2 ** min(failures, 6)))
                continue
            if failures:
                log.info("events are read again")
            failures = 0
            self._hand_out(_rows(reply))
            # The more streams, the dearer a call: gather what comes meanwhile. Few cost nothing.
            await asyncio.sleep(
                min(_LONGEST_GATHER_SECONDS, _GATHER_SECONDS_PER_STREAM * len(cursors))
            )

    def _hand_out(self, rows: dict[str, list[tuple[str, dict[str, str]]]]) -> None:
        for stream, entries in rows.items():
            watched = self._watched.get(stream)
            if watched is None:
                continue
            for identifier, fields in entries:
                place = place_of(identifier)
                if place <= watched.place:
                    continue
                watched.cursor, watched.place = identifier, place
                wanting = [each for each in watched.listeners if each.wants(fields["type"])]
                if wanting:
                    item = self._encode(event_from_fields(identifier, fields))
                    for each in wanting:
                        each.offer(place, item)

    async def _learn_id(self) -> None:
        if not self._can_unblock:
            return
        try:
            self._reader_id = int(await self._reader.client_id())
        except redis.ResponseError:
            # The stand-in for Redis has no such command: new streams wait for the next round.
            self._can_unblock = False

    async def _nudge(self) -> None:
        """Have the reader take up new streams rather than wait for news of the old ones."""
        while self._taken < self._asked and self._can_unblock and not self._closed:
            if self._reader_id is not None:
                with suppress(redis.RedisError, OSError):
                    await self._side.client_unblock(self._reader_id)
            await asyncio.sleep(_NUDGE_SECONDS)


def _client(url: str, connections: int, timeout_seconds: float) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=timeout_seconds,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),
        **({} if url.startswith("unix") else {"socket_keepalive": True}),
    )
    return Redis.from_pool(pool)


def _rows(reply: Any) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """Return what XREAD answered, by stream; the client's two protocols write it differently."""
    if not reply:
        return {}
    if isinstance(reply, dict):
        return {key: [row for part in parts for row in part] for key, parts in reply.items()}
    return dict(reply)
