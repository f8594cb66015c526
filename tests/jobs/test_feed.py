"""One reader for any number of listeners, against a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from jobs import Event, Feed, Invalid, JobService, Progress, Settings, StoreUnavailable
from jobs.events import job_stream, place_of, tenant_stream

Submit = Callable[..., Any]


def listening(
    settings: Settings,
    work: Callable[[Feed[Event]], Coroutine[Any, Any, None]],
    *,
    queue_length: int = 100,
) -> None:
    """Do ``work`` with a feed that reads."""

    async def run() -> None:
        assert settings.redis_url is not None
        feed: Feed[Event] = Feed(
            settings.redis_url, lambda event: event, queue_length=queue_length, timeout_seconds=5.0
        )
        feed.start()
        try:
            await work(feed)
        finally:
            await feed.close()

    asyncio.run(run())


async def taken(subscription: Any, count: int) -> list[Event]:
    found: list[Event] = []
    while len(found) < count:
        got = await subscription.take(20.0)
        assert got, f"{count} events expected, nothing came after {len(found)}"
        found += got
    return found


def test_many_streams_take_one_connection(
    settings: Settings, service: JobService, submit: Submit
) -> None:
    ids = [submit(n).record.id for n in range(150)]
    claims = [service.store.claim(each, worker="w") for each in ids]

    def connections() -> int:
        return int(service.database.client.info("clients")["connected_clients"])

    async def work(feed: Feed[Event]) -> None:
        before = connections()
        listeners = [
            await feed.subscribe(job_stream(service.database, job_id)) for job_id in (*ids, *ids)
        ]
        assert feed.streams == 150
        for number, claim in enumerate(claims):
            service.store.progress(claim.lease, Progress("fit", iteration=number))
        for index, each in enumerate(listeners):
            (event,) = await taken(each, 1)
            assert event.job_id == ids[index % 150]
            assert event.data["iteration"] == index % 150
        # The reader's own, and those beside it that new listeners share.
        assert connections() - before <= 5
        for each in listeners:
            feed.unsubscribe(each)
        assert feed.streams == 0

    listening(settings, work)


def test_a_full_queue_is_its_listeners_own_trouble(
    settings: Settings, service: JobService, submit: Submit
) -> None:
    job_id = submit().record.id
    claim = service.store.claim(job_id, worker="w")

    async def work(feed: Feed[Event]) -> None:
        stream = job_stream(service.database, job_id)
        slow, fast = await feed.subscribe(stream), await feed.subscribe(stream)
        for number in range(11):
            service.store.progress(claim.lease, Progress("fit", iteration=number))
            (event,) = await taken(fast, 1)
            assert event.data["iteration"] == number
        assert not fast.overflown
        assert slow.overflown
        assert await slow.take(20.0) == []
        # What it did not get is still there.
        kept = await feed.history(stream, slow.latest)
        assert [event.data["iteration"] for event in kept] == list(range(11))

    listening(settings, work, queue_length=10)


def test_what_was_replayed_is_left_out_and_types_are_picked(
    settings: Settings, service: JobService, submit: Submit
) -> None:
    async def work(feed: Feed[Event]) -> None:
        stream = tenant_stream(service.database, "acme")
        some = await feed.subscribe(stream, {"job.running"})
        late = await feed.subscribe(stream)
        first, second = submit(1).record.id, submit(2).record.id
        (seen, _) = await feed.history(stream, late.latest)
        late.saw(seen.id)
        for job_id in (first, second):
            service.store.claim(job_id, worker="w")
        assert [event.job_id for event in await taken(some, 2)] == [first, second]
        told = [(event.type, event.job_id) for event in await taken(late, 3)]
        assert told == [("job.queued", second), ("job.running", first), ("job.running", second)]

    listening(settings, work)


def test_an_end_is_told_at_once(settings: Settings, service: JobService) -> None:
    async def work(feed: Feed[Event]) -> None:
        listener = await feed.subscribe("nothing")
        waiting = asyncio.create_task(listener.take(3600.0))
        await asyncio.sleep(0)
        listener.end("enough")
        listener.end("too late")
        assert await waiting == []
        assert listener.ended == "enough"

    listening(settings, work)


def test_no_redis_is_told(settings: Settings) -> None:
    async def work(feed: Feed[Event]) -> None:
        with pytest.raises(StoreUnavailable):
            await feed.subscribe("nothing")
        with pytest.raises(StoreUnavailable):
            await feed.history("nothing", "0-0")

    listening(settings.model_copy(update={"redis_url": "redis://127.0.0.1:9"}), work)


def test_ids_compare_by_both_numbers() -> None:
    ids = ["0-0", "9-1", "10-0", "10-2", "10-10", "18446744073709551615-0"]
    assert sorted(ids, key=place_of) == ids
    for wrong in ("", "1", "1-", "-1", "1-1-1", "18446744073709551616-0", "1-18446744073709551616"):
        with pytest.raises(Invalid):
            place_of(wrong)
