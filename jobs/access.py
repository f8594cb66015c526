"""Who asks, how often, and after which job: answered in one round trip to Redis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jobs.database import Database, pairs
from jobs.keys import NOTE_USE_MS, ApiKey, digest, is_plaintext, key_from_hash
from jobs.quotas import Allowance
from jobs.record import JobRecord, State, record_from_hash

REQUESTS = "requests"
_WINDOW_MS = 60_000


@dataclass(frozen=True)
class Seen:
    """A job as it is now.

    Attributes:
        tenant: whose it is.
        state: where it is in its life.
        mark: another one whenever anything that is told of the job or its place has changed.
        position: its place in the queue, 1 is next; None unless it waits.
        record: everything; None if the caller knows the mark already.
    """

    tenant: str
    state: State
    mark: str
    position: int | None
    record: JobRecord | None


@dataclass(frozen=True)
class Admission:
    """What a request may do.

    Attributes:
        key: the API key, None if it is unknown, revoked or expired.
        allowance: what is left of the key's requests, None if they are not counted.
        job: the job that was asked for, None if there is none or the request is one too many.
    """

    key: ApiKey | None
    allowance: Allowance | None = None
    job: Seen | None = None


class Access:
    """Checks keys and counts their requests. Nothing is cached: a revoked key is out at once.

    Args:
        database: with the keys and the jobs.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def look(
        self, plaintext: str, job_id: str, *, requests_per_minute: int, known: str = ""
    ) -> Admission:
        """Verify a key, count one request of it, and look at a job of any tenant.

        Args:
            plaintext: the key.
            job_id: the job; empty for none.
            requests_per_minute: for keys without a limit of their own; 0 = any number.
            known: mark of what the caller has seen; of an unchanged job no record is sent.

        Raises:
            StoreUnavailable.
        """
        if not is_plaintext(plaintext):
            return Admission(None)
        reply = await self._database.run_async(
            *("poll", digest(plaintext), NOTE_USE_MS, REQUESTS, requests_per_minute, _WINDOW_MS),
            *(job_id, known),
        )
        return _admission(reply)


@lru_cache(maxsize=1024)
def _key(flat: tuple[str, ...]) -> ApiKey:
    # By its content: what changes in Redis is never answered from here.
    return key_from_hash(pairs(list(flat)))


def _admission(reply: Any) -> Admission:
    key, taken, job = reply
    if not key:
        return Admission(None)
    allowance = None
    if taken:
        allowed, remaining, reset, retry, limit = (int(value) for value in taken)
        allowance = Allowance(bool(allowed), limit, remaining, reset / 1000, retry / 1000)
    return Admission(_key(tuple(key)), allowance, _seen(job) if job else None)


def _seen(reply: Any) -> Seen:
    tenant, state, mark, place, *values = reply
    return Seen(
        tenant=tenant,
        state=State(state),
        mark=mark,
        position=int(place) if int(place) > 0 else None,
        record=record_from_hash(pairs(values[0])) if values else None,
    )
