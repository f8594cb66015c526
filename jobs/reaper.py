"""Puts right what others left undone: lost leases, vanished wake-ups, unwritten changes, old jobs.

Every step is safe to repeat and to run in several processes at once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.errors import BlobsUnavailable, NotFound, WrongState
from jobs.standing import Standing

if TYPE_CHECKING:
    from jobs.service import JobService

log = logging.getLogger(__name__)

_BATCH = 200
# There are several deliveries to a job; in one round so many batches of them are removed.
_SWEEPS = 25


@dataclass(frozen=True)
class Reaped:
    """What one round did.

    Attributes:
        requeued, poisoned, cancelled: jobs taken from workers that are not heard of any more.
        published: wake-ups sent, for the first time or again.
        withdrawn: jobs whose submission had failed half-way.
        journalled: changes that the journal had missed.
        deleted: half-deleted jobs brought to their end.
        expired: jobs past their retention.
        uploads: direct uploads past their time.
        deliveries: deliveries of webhooks past their retention.
        workers: workers forgotten.
        skipped: steps that the blob store did not allow this time.
    """

    requeued: int = 0
    poisoned: int = 0
    cancelled: int = 0
    published: int = 0
    withdrawn: int = 0
    journalled: int = 0
    deleted: int = 0
    expired: int = 0
    uploads: int = 0
    deliveries: int = 0
    workers: int = 0
    skipped: int = 0


class Reaper:
    """One round does everything that is due now."""

    def __init__(self, service: JobService) -> None:
        self._service = service
        self._database = service.database

    def run_once(self) -> Reaped:
        """Do one round.

        Raises:
            StoreUnavailable: Redis does not answer; nothing can be done without it.
        """
        steps: tuple[Callable[[], Counter[str]], ...] = (
            self._take_back,
            self._publish,
            self._journal,
            self._empty_trash,
            self._expire,
            self._sweep_uploads,
            self._sweep_deliveries,
            self._forget_workers,
        )
        done: Counter[str] = Counter()
        for step in steps:
            try:
                done += step()
            except BlobsUnavailable as error:
                log.warning("%s put off: %s", step.__name__.strip("_"), error)
                done["skipped"] += 1
        return Reaped(**done)

    def _take_back(self) -> Counter[str]:
        done: Counter[str] = Counter()
        while True:
            flat = self._database.run("reap", _BATCH)
            for job_id, outcome in zip(flat[::2], flat[1::2], strict=True):
                log.warning("lease of %s ran out: %s", job_id, outcome)
                done[outcome] += 1
            if len(flat) < 2 * _BATCH:
                return done

    def _publish(self) -> Counter[str]:
        done: Counter[str] = Counter()
        service = self._service
        vanish = round(service.settings.republish_seconds * 1000)
        for queue in service.queues.all():
            waiting = self._waiting(queue.name)
            flat = self._database.run("republish", queue.name, vanish, waiting, _BATCH)
            reasons = dict(zip(flat[::2], flat[1::2], strict=True))
            for record in service.store.get_many(reasons):
                if record is None:
                    continue
                match service.standing(record):
                    case Standing.FAILED:
                        service.withdraw(record)
                        done["withdrawn"] += 1
                        continue
                    case Standing.OPEN:
                        continue
                try:
                    service.wakeups.publish(record.id, priority=record.priority, queue=record.queue)
                except Exception as error:
                    # Whatever the broker's client raises; the next round tries again.
                    log.warning("wake-ups for %s not sent: %s", queue.name, error)
                    return done
                service.store.mark_published(record.id)
                log.info("wake-up of %s sent: it was %s", record.id, reasons[record.id])
                done["published"] += 1
        return done

    def _waiting(self, queue: str) -> int:
        try:
            waiting = self._service.wakeups.waiting(queue)
        except Exception as error:
            # As if the broker could not count; publishing will tell whether it is there at all.
            log.warning("messages of %s not counted: %s", queue, error)
            waiting = None
        return -1 if waiting is None else waiting

    def _journal(self) -> Counter[str]:
        ids = self._database.call("zrange", self._database.key("unjournalled"), 0, _BATCH - 1)
        return Counter(journalled=sum(self._service.write_changes(job_id) for job_id in ids))

    def _empty_trash(self) -> Counter[str]:
        key = self._database.key
        deleted = 0
        for job_id in self._database.call("zrange", key("trash"), 0, _BATCH - 1):
            tenant = self._database.call("hget", key("job", job_id), "tenant")
            if tenant is None:
                self._database.call("zrem", key("trash"), job_id)
            else:
                self._service.clear(tenant, job_id)
                deleted += 1
        return Counter(deleted=deleted)

    def _expire(self) -> Counter[str]:
        days = self._service.settings.retention_days
        if days == 0:
            return Counter()
        latest = self._database.now_milliseconds() - round(days * 86_400_000)
        key = self._database.key("finished")
        expired = 0
        for job_id in self._database.call("zrangebyscore", key, "-inf", latest, 0, _BATCH):
            try:
                self._service.delete(None, job_id)
                expired += 1
            except (NotFound, WrongState) as error:
                log.debug("not expired: %s", error)  # deleted or retried meanwhile
        return Counter(expired=expired)

    def _sweep_uploads(self) -> Counter[str]:
        return Counter(uploads=self._service.uploads.sweep(limit=_BATCH))

    def _sweep_deliveries(self) -> Counter[str]:
        swept = 0
        for _ in range(_SWEEPS):
            removed = self._service.deliveries.sweep(limit=_BATCH)
            swept += removed
            if removed < _BATCH:
                break
        return Counter(deliveries=swept)

    def _forget_workers(self) -> Counter[str]:
        return Counter(workers=self._service.workers.forget_old())
