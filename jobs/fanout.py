"""From the outbox to deliveries: one for every endpoint that wants to know, and the job's own."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress

from jobs.database import Database
from jobs.endpoints import Endpoints
from jobs.errors import NotFound
from jobs.outbox import Message
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.webhook_events import job_body
from jobs.webhook_urls import host_of


class Fanout:
    """Takes messages of the outbox on. Doing one twice, or in two places, makes nothing twice."""

    def __init__(
        self, database: Database, store: JobStore, endpoints: Endpoints, settings: Settings
    ) -> None:
        self._database = database
        self._store = store
        self._endpoints = endpoints
        self._public_url = settings.public_url

    def take_on(self, message: Message) -> list[str]:
        """Turn a message into deliveries and remove it, in one atomic call; return their ids."""
        event = message.event
        body = ""
        # Without a job, because it was deleted, the script tells nobody.
        with suppress(NotFound):
            body = job_body(message, self._store.get(event.job_id), self._public_url)
        key = self._database.key("tenant", event.tenant, "webhooks", message.type)
        targets = {
            each: _delivery_id(message, each) for each in self._database.call("smembers", key)
        }
        url = message.webhook or ""
        if url:
            self._endpoints.tenant_secrets(event.tenant)
            targets[""] = _delivery_id(message, url)
        made = self._database.run(
            "webhook_fanout",
            message.id,
            event.tenant,
            message.type,
            event.job_id,
            body,
            json.dumps(targets),
            url,
            host_of(url),
            _message_id(message),
        )
        return [str(each) for each in made]


def _message_id(message: Message) -> str:
    """Return the name of what is told: whoever is told the same shares one body."""
    event = message.event
    return f"{event.job_id}:{event.version}:{message.type}"


def _delivery_id(message: Message, target: str) -> str:
    """Return the id that tells the same to the same one every time, and nothing else."""
    event = message.event
    name = f"{event.job_id} {event.version} {message.type} {target}"
    return f"dlv_{hashlib.sha256(name.encode()).hexdigest()[:32]}"
