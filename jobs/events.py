"""What happened to jobs, in order: one stream per job, one per tenant.

An event's id is the stream's own, so that a reader resumes with the last id it saw
(``Last-Event-ID``) and misses nothing that is still kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobs.database import Database, translated
from jobs.errors import Invalid
from jobs.record import State, from_milliseconds

BEGINNING = "0-0"
"""The place before every event."""

_ID = re.compile(r"(\d{1,20})-(\d{1,20})")
_GREATEST = 2**64 - 1


@dataclass(frozen=True)
class EventType:
    """One kind of event.

    Attributes:
        name: what it is called.
        meaning: what happened.
        data: what comes with it, for people; empty for nothing.
        tenant_too: in the tenant's stream as well as in the job's.
        ends: nothing follows it unless somebody asks for the job again.
    """

    name: str
    meaning: str
    data: str = ""
    tenant_too: bool = True
    ends: bool = False


_TYPES = (
    EventType("job.queued", "The job was accepted and waits."),
    EventType("job.running", "A worker began an attempt.", "`worker`"),
    EventType(
        "job.progress",
        "How far the encode is, at most twice a second; less often the longer it runs.",
        "`phase`, `iteration`, `iterations`, `psnr_db`, `bpp`, `loss`, `seconds`, `eta_seconds`, "
        "...",
        tenant_too=False,
    ),
    EventType(
        "job.preview",
        "There is a picture of how far the encode is.",
        "`number`, `url`, `width`, `height`, `size`, `iteration`, `iterations`, `psnr_db`",
        tenant_too=False,
    ),
    EventType(
        "job.requeued",
        "The attempt did not come to an end; the job waits for another.",
        "`reason`, `strikes`",
    ),
    EventType("job.cancel_requested", "A running job is to be cancelled."),
    EventType("job.finish_requested", "A running job is to keep the best so far."),
    EventType("job.retried", "A job that had ended waits again."),
    EventType("job.succeeded", "The file is there.", "the report", ends=True),
    EventType("job.failed", "The job cannot be done.", "`code`, `message`", ends=True),
    EventType("job.cancelled", "The job was cancelled.", ends=True),
    EventType("job.deleted", "Everything of the job was removed.", ends=True),
)
EVENT_TYPES: Mapping[str, EventType] = {each.name: each for each in _TYPES}
"""Every event by its name. The scripts emit no others; a test compares."""


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        id: place in the stream; give it as ``after`` to read on.
        type: name of one of :data:`EVENT_TYPES`.
        state, attempt, version: of the job right after it.
        data: the progress, report, failure or reason that came with it.
    """

    id: str
    type: str
    job_id: str
    tenant: str
    state: State
    attempt: int
    version: int
    at: datetime
    data: Mapping[str, Any]


def place_of(identifier: str) -> tuple[int, int]:
    """Return an event id as numbers that compare as the events follow each other.

    Raises:
        Invalid: it is no event id.
    """
    match = _ID.fullmatch(identifier)
    place = (int(match[1]), int(match[2])) if match else (_GREATEST + 1, 0)
    if max(place) > _GREATEST:
        raise Invalid(f"event id must be two numbers with a hyphen; got {identifier[:60]!r}")
    return place


def event_from_fields(identifier: str, fields: Mapping[str, str]) -> Event:
    """Build an event from an entry of a stream."""
    data = json.loads(fields["data"] or "{}")
    return Event(
        id=identifier,
        type=fields["type"],
        job_id=fields["job"],
        tenant=fields["tenant"],
        state=State(fields["state"]),
        attempt=int(fields["attempt"]),
        version=int(fields["version"]),
        at=from_milliseconds(int(fields["at"])),
        data=data if isinstance(data, dict) else {},
    )


def job_stream(database: Database, job_id: str) -> str:
    """Return the key of a job's stream."""
    return database.key("job", job_id, "events")


def tenant_stream(database: Database, tenant: str) -> str:
    """Return the key of a tenant's stream."""
    return database.key("tenant", tenant, "events")


class EventLog:
    """Reads event streams. Only the scripts write them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read_job(
        self,
        job_id: str,
        *,
        after: str | None = None,
        limit: int = 100,
        block_ms: int | None = None,
    ) -> list[Event]:
        """Return events of one job, progress included, oldest first.

        Args:
            job_id: the job.
            after: id of the last event already seen; None for the beginning of what is kept.
            limit: most events.
            block_ms: wait so long for one if there is none; must stay below the Redis time-out.

        Raises:
            Invalid: ``after`` is no event id.
        """
        return self._read(job_stream(self._database, job_id), after, limit, block_ms)

    def read_tenant(
        self,
        tenant: str,
        *,
        after: str | None = None,
        limit: int = 100,
        block_ms: int | None = None,
    ) -> list[Event]:
        """Return the transitions of all jobs of a tenant, oldest first; as `read_job`."""
        return self._read(tenant_stream(self._database, tenant), after, limit, block_ms)

    def _read(self, key: str, after: str | None, limit: int, block_ms: int | None) -> list[Event]:
        if after is not None:
            place_of(after)
        with translated():
            reply: Any = self._database.client.xread({key: after or BEGINNING}, limit, block_ms)
        return [event_from_fields(*row) for _, rows in reply for row in rows]
