"""Who did what: acts of administrators and of people at the dashboard, newest kept, oldest dropped.

The log is a stream of bounded length beside the jobs. It is for looking up what happened, not for
proving it: who can write to Redis can write here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from jobs.database import Database
from jobs.errors import Invalid
from jobs.record import from_milliseconds

KEPT = 10_000
"""Entries that are kept, roughly."""

_LONGEST = 500
_ID = re.compile(r"\d{1,20}-\d{1,20}")


@dataclass(frozen=True)
class AuditEntry:
    """One act.

    Attributes:
        id: place in the log; give it as ``before`` to read on.
        key_id, key_name, tenant: of the API key that was used.
        way: ``dashboard`` or ``api``.
        action: what was done, such as ``job.cancel`` or ``key.create``.
        target: to what: the id of a job, key or worker, or a queue's name.
        detail: more about it, for people; never a secret.
    """

    id: str
    at: datetime
    key_id: str
    key_name: str
    tenant: str
    way: str
    action: str
    target: str
    detail: str


class AuditLog:
    """Writes and reads the log."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._key = database.key("audit")

    def note(
        self,
        action: str,
        target: str,
        *,
        key_id: str,
        key_name: str,
        tenant: str,
        way: str,
        detail: str = "",
    ) -> None:
        """Write an entry; texts are cut at 500 characters."""
        fields = {
            "key": key_id,
            "name": key_name,
            "tenant": tenant,
            "way": way,
            "action": action,
            "target": target,
            "detail": detail,
        }
        with self._database.pipeline() as pipeline:
            cut = {name: text[:_LONGEST] for name, text in fields.items()}
            pipeline.xadd(self._key, cut, maxlen=KEPT, approximate=True)
            pipeline.execute()

    def read(self, *, limit: int = 100, before: str | None = None) -> tuple[AuditEntry, ...]:
        """Return entries, newest first.

        Args:
            limit: most entries.
            before: id of the last entry of the page before.

        Raises:
            Invalid: ``before`` is no id of an entry.
        """
        if before is not None and not _ID.fullmatch(before):
            raise Invalid(f"an entry's id is two numbers with a hyphen; got {before[:60]!r}")
        highest = "+" if before is None else f"({before}"
        with self._database.pipeline() as pipeline:
            pipeline.xrevrange(self._key, highest, "-", count=limit)
            (rows,) = pipeline.execute()
        return tuple(
            AuditEntry(
                id=identifier,
                at=from_milliseconds(int(identifier.partition("-")[0])),
                key_id=fields["key"],
                key_name=fields["name"],
                tenant=fields["tenant"],
                way=fields["way"],
                action=fields["action"],
                target=fields["target"],
                detail=fields["detail"],
            )
            for identifier, fields in rows
        )
