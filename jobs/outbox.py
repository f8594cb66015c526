"""What webhooks must be told, written in the same atomic call as the transition itself.

Entries stay until they are done: a sender that dies leaves its entries to another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis

from jobs.database import Database, translated
from jobs.events import Event, event_from_fields


@dataclass(frozen=True)
class Message:
    """One thing to be told.

    Attributes:
        id: for `Outbox.done`.
        webhook: the job's own webhook, or None if only the tenant's endpoints are to be told.
        event: what happened.
    """

    id: str
    webhook: str | None
    event: Event


class Outbox:
    """Hands messages to senders, each to one at a time.

    Args:
        database: where.
        group: name shared by senders that divide the messages among them.
    """

    def __init__(self, database: Database, group: str = "webhooks") -> None:
        self._database = database
        self._group = group
        self._key = database.key("outbox")

    def subscribe(self, tenant: str, subscribed: bool = True) -> None:
        """Have transitions of a tenant's jobs written also without a webhook of the job's own."""
        key = self._database.key("tenant", tenant, "webhooks")
        if subscribed:
            self._database.call("set", key, "1")
        else:
            self._database.call("delete", key)

    def read(self, sender: str, *, limit: int = 10, stuck_ms: int = 120_000) -> list[Message]:
        """Return messages for this sender: first those that another one has had for too long."""
        client = self._database.client
        with translated():
            try:
                client.xgroup_create(self._key, self._group, id="0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
            claimed: Any = client.xautoclaim(
                self._key, self._group, sender, stuck_ms, count=limit, start_id="0-0"
            )
            # An entry that was removed while it was being sent has no fields any more.
            entries = [row for row in claimed[1] if row[1]]
            if len(entries) < limit:
                fresh: Any = client.xreadgroup(
                    self._group, sender, {self._key: ">"}, count=limit - len(entries)
                )
                entries += [row for _, rows in fresh for row in rows]
        return [
            Message(identifier, fields["webhook"] or None, event_from_fields(identifier, fields))
            for identifier, fields in entries
        ]

    def done(self, identifier: str) -> None:
        """Remove a message: it was delivered, or handed on to a list of deliveries."""
        with self._database.pipeline() as pipeline:
            pipeline.xack(self._key, self._group, identifier)
            pipeline.xdel(self._key, identifier)
            pipeline.execute()

    def depth(self) -> int:
        """Return how many messages wait or are being sent."""
        return int(self._database.call("xlen", self._key))
