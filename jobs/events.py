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

_ID = re.compile(r"\d{1,20}-\d{1,20}")


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        id: place in the stream; give it as ``after`` to read on.
        type: ``job.queued``, ``job.running``, ``job.progress``, ``job.requeued``, ``job.retried``,
            ``job.cancel_requested``, ``job.finish_requested``, ``job.succeeded``, ``job.failed``,
            ``job.cancelled`` or ``job.deleted``.
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
        return self._read(self._database.key("job", job_id, "events"), after, limit, block_ms)

    def read_tenant(
        self,
        tenant: str,
        *,
        after: str | None = None,
        limit: int = 100,
        block_ms: int | None = None,
    ) -> list[Event]:
        """Return the transitions of all jobs of a tenant, oldest first; as `read_job`."""
        return self._read(self._database.key("tenant", tenant, "events"), after, limit, block_ms)

    def _read(self, key: str, after: str | None, limit: int, block_ms: int | None) -> list[Event]:
        if after is not None and not _ID.fullmatch(after):
            raise Invalid(f"event id must be two numbers with a hyphen; got {after[:60]!r}")
        with translated():
            reply: Any = self._database.client.xread({key: after or "0-0"}, limit, block_ms)
        return [event_from_fields(*row) for _, rows in reply for row in rows]
