"""What webhooks must be told, written in the same atomic call as the transition itself.

A message stays until `jobs.fanout` has turned it into deliveries, which is one atomic call too: a
process that dies on the way leaves it to the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs.database import Database, translated
from jobs.events import Event, event_from_fields


@dataclass(frozen=True)
class Message:
    """One thing to be told.

    Attributes:
        id: place in the outbox.
        type: of the webhook message, such as ``job.queued``.
        webhook: the job's own webhook, or None if only the tenant's endpoints are to be told.
        event: what happened.
    """

    id: str
    type: str
    webhook: str | None
    event: Event


class Outbox:
    """The messages that nobody has taken on yet, oldest first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._key = database.key("outbox")

    def read(self, *, limit: int = 100, block_ms: int | None = None) -> list[Message]:
        """Return the oldest messages. Any number of readers may look at the same ones.

        Args:
            limit: most messages.
            block_ms: wait so long for one if there is none; must stay below the Redis time-out.
        """
        with translated():
            reply: Any = self._database.client.xread({self._key: "0-0"}, limit, block_ms)
        return [
            Message(
                id=identifier,
                type=fields["told"],
                webhook=fields["webhook"] or None,
                event=event_from_fields(identifier, fields),
            )
            for _, rows in reply
            for identifier, fields in rows
        ]

    def depth(self) -> int:
        """Return how many messages there are."""
        return int(self._database.call("xlen", self._key))
